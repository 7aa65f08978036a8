"""Images with a class each: Hugging Face data sets with a label column, or the built-in glyphs."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from genwarden.data.datasets import load_dataset, read_rows
from genwarden.data.glyphs import CLASSES, is_glyphs, read_glyphs
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

#: Name of an integer column that is taken for the class where no column says that it is one.
_LABEL_NAME: Final = "label"


class LabelledImages(NamedTuple):
    """Images uint8 ``(count, channels, height, width)`` and their classes.

    ``labels`` are int64 ``(count,)``, indices into ``classes``.
    """

    images: Tensor
    labels: Tensor
    classes: list[str]


def load_labelled(
    source: str,
    sample: SampleSpec,
    *,
    split: str = "train",
    limit: int | None = None,
    resize: bool = False,
) -> tuple[Tensor, Tensor]:
    """Images and labels of a data set; arguments and errors as :func:`read_labelled`.

    Returns:
        uint8 ``(count, channels, height, width)`` and int64 ``(count,)``.
    """
    found = read_labelled(source, sample, split=split, limit=limit, resize=resize)
    return found.images, found.labels


def read_labelled(
    source: str,
    sample: SampleSpec,
    *,
    split: str = "train",
    limit: int | None = None,
    resize: bool = False,
) -> LabelledImages:
    """Images, the class of each, and the names of the classes.

    Args:
        source: a folder (parquet in the hub's layout, or image files in a folder per class), a hub
            name, or ``glyphs`` / ``glyphs:COUNT`` for the built-in digits
            (:mod:`genwarden.data.glyphs`). The class is the one ClassLabel column, or else a column
            of whole numbers called "label".
        sample: shape that the images must have; grey and colour are converted, sizes only with
            ``resize``.
        split: split of the data set; a folder with only one split uses that one.
        limit: take the first ``limit`` images.

    Raises:
        GenwardenError: ``data/no-labels``, and as :func:`genwarden.data.datasets.load_images`.
    """
    if limit is not None and limit < 1:
        raise GenwardenError(
            "data/limit", f"A limit of {limit} images leaves nothing.", "Give a limit of 1 or more."
        )
    if is_glyphs(source):
        images, labels = read_glyphs(source, sample, split=split, limit=limit)
        return LabelledImages(images, labels, [str(digit) for digit in range(CLASSES)])
    dataset = load_dataset(source, split)
    column, classes = _label_column(dataset, source)
    labels = dataset[column][:limit] if limit else dataset[column][:]
    if any(label is None or label < 0 for label in labels):
        raise _no_labels(source)
    images = read_rows(dataset, source, sample, limit=limit, resize=resize)
    names = classes or [str(number) for number in range(max(labels) + 1)]
    return LabelledImages(images, torch.tensor(labels, dtype=torch.int64), names)


def _label_column(dataset: Any, source: str) -> tuple[str, list[str]]:
    """The column of the classes and their names; none where the data set states none."""
    import datasets

    stated = [n for n, f in dataset.features.items() if isinstance(f, datasets.ClassLabel)]
    if len(stated) == 1:
        return stated[0], [str(name) for name in dataset.features[stated[0]].names]
    plain = dataset.features.get(_LABEL_NAME)
    if stated or not isinstance(plain, datasets.Value) or "int" not in str(plain.dtype):
        raise _no_labels(source)
    return _LABEL_NAME, []


def _no_labels(source: str) -> GenwardenError:
    return GenwardenError(
        "data/no-labels",
        f"{source!r} has no column that gives every image one class.",
        "Use a data set in the hub's layout with one ClassLabel column or a column 'label' of "
        "whole numbers, or image files in a folder per class.",
    )
