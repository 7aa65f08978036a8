"""Training images by folder or hub name, through Hugging Face ``datasets``.

A folder may hold parquet files in the hub's layout, or plain image files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genwarden.data.glyphs import is_glyphs, read_glyphs
from genwarden.data.images import IMAGE_SUFFIXES, fit_image, image_shape, read_image_folder
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

#: ``name`` or ``owner/name``; what starts with a dot, or has more parts, is a path.
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


def load_images(
    source: str,
    sample: SampleSpec,
    *,
    split: str = "train",
    limit: int | None = None,
    resize: bool = False,
) -> Tensor:
    """Images of a data set as one uint8 tensor ``(count, channels, height, width)``.

    Args:
        source: folder (parquet in the hub's layout, image files, or a folder of them per class),
            hub name, or ``glyphs`` / ``glyphs:COUNT`` for the built-in digits.
        sample: shape that the images must have; grey and colour are converted, sizes only with
            ``resize``.
        split: split of the data set; a folder with only one split uses that one.
        limit: take the first ``limit`` images.
        resize: bring images of another size to the model's, see
            :func:`genwarden.data.images.fit_image`.

    Raises:
        GenwardenError: ``data/not-found``, ``data/no-split``, ``data/no-images``, ``data/limit``,
            ``data/shape``, ``data/unreadable-row``, and ``image/...`` for a single image.
    """
    if limit is not None and limit < 1:
        raise GenwardenError(
            "data/limit", f"A limit of {limit} images leaves nothing.", "Give a limit of 1 or more."
        )
    if is_glyphs(source):
        return read_glyphs(source, sample, split=split, limit=limit)[0]
    folder = Path(source)
    if folder.is_dir() and not any(folder.rglob("*.parquet")):
        if not _holds_images(folder):
            if any(_holds_images(part) for part in folder.iterdir() if part.is_dir()):
                # A folder per class, as labelled images lie; their classes are not asked for here.
                rows = load_dataset(source, split)
                return read_rows(rows, source, sample, limit=limit, resize=resize)
            raise GenwardenError(
                "data/no-images",
                f"{source} holds neither parquet files nor images.",
                "Name a folder in the Hugging Face layout, a folder of images, or a hub name.",
            )
        return to_bytes(read_image_folder(folder, sample, limit=limit, resize=resize).images)
    return read_rows(load_dataset(source, split), source, sample, limit=limit, resize=resize)


def _holds_images(folder: Path) -> bool:
    return any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir())


def read_rows(
    dataset: Any, source: str, sample: SampleSpec, *, limit: int | None, resize: bool
) -> Tensor:
    """The images of a loaded split, see :func:`load_images`.

    Args:
        source: where it came from, for messages.
    """
    column = _image_column(dataset, source)
    channels, height, width = image_shape(sample)
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if count == 0:
        raise GenwardenError(
            "data/no-images", f"{source!r} has no rows in this split.", "Name another split."
        )
    images = np.empty((count, channels, height, width), dtype=np.uint8)
    for index in range(count):
        images[index] = fit_image(
            _row(dataset, index, column, source), sample, f"{source}[{index}]", resize=resize
        )
    return torch.from_numpy(images)


def load_samples(
    source: str, sample: SampleSpec, *, split: str = "train", limit: int | None = None
) -> Tensor:
    """Training samples of a model: :func:`load_images`, or :func:`load_clips` for audio.

    Raises:
        GenwardenError: as those two.
    """
    if sample.modality == "audio":
        from genwarden.data.audio import load_clips

        return load_clips(source, sample, split=split, limit=limit)
    return load_images(source, sample, split=split, limit=limit)


def split_names(source: str) -> list[str]:
    """Names of the splits of a data set.

    Raises:
        GenwardenError: ``data/not-found``.
    """
    return list(_load_splits(source))


def to_unit_range(images: Tensor) -> Tensor:
    """Stored samples to float32 in [-1, 1].

    Images, uint8 in [0, 255]: x / 127.5 - 1, as in the published scripts. Clips, int16: x / 32767.
    """
    if images.dtype == torch.int16:
        return (images.float() / 32767).clamp_min(-1)
    return images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Float images in [-1, 1] to uint8, rounded to the nearest of the 256 levels; NaN is grey."""
    return ((images.nan_to_num(0.0).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _load_splits(source: str) -> Any:
    if not Path(source).exists() and not _HUB_NAME.fullmatch(source):
        # The library would ask the hub for it, for half a minute without a network.
        raise GenwardenError(
            "data/not-found",
            f"There is no folder {source!r}, and it is no name that the hub could have.",
            "Name an existing folder, or a hub name (name, or owner/name).",
        )
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(source)
    except Exception as error:
        # The library raises a dozen unrelated types for a missing or unreachable data set.
        raise GenwardenError(
            "data/not-found",
            f"No data set at {source!r} ({type(error).__name__}).",
            "Name an existing folder or a hub name that this machine can reach or has cached.",
        ) from error


def load_dataset(source: str, split: str) -> Any:
    """One split of a Hugging Face data set.

    Raises:
        GenwardenError: ``data/not-found``, ``data/no-split``.
    """
    found = _load_splits(source)
    if split in found:
        return found[split]
    if len(found) == 1:
        return next(iter(found.values()))
    raise GenwardenError(
        "data/no-split",
        f"{source!r} has no split {split!r}; it has {', '.join(found)}.",
        "Name one of them with --split.",
    )


def _row(dataset: Any, index: int, column: str, source: str) -> Any:
    try:
        image = dataset[index][column]
    except Exception as error:  # the decoder raises many unrelated types
        raise _bad_row(source, index, type(error).__name__) from error
    if image is None:
        raise _bad_row(source, index, "no picture")
    return image


def _bad_row(source: str, index: int, why: str) -> GenwardenError:
    return GenwardenError(
        "data/unreadable-row",
        f"Row {index} of {source!r} cannot be read as an image ({why}).",
        "Remove the row, or use --limit to stop before it.",
    )


def _image_column(dataset: Any, source: str) -> str:
    import datasets

    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            return str(name)
    raise GenwardenError(
        "data/no-images",
        f"{source!r} has no image column (columns: {', '.join(dataset.features)}).",
        "Use a data set with images; audio models take one with an audio column.",
    )
