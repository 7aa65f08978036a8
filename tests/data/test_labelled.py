"""Labelled images: columns, splits, class folders, and the digits drawn by code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from genwarden.data.glyphs import draw_glyphs, is_glyphs
from genwarden.data.labelled import load_labelled, read_labelled
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

GREY = SampleSpec((1, 8, 8))
TYPES: dict[str, Any] = {
    "stated": datasets.ClassLabel(names=["no", "yes"]),
    "plain": datasets.Value("int64"),
    "words": datasets.Value("string"),
    "shares": datasets.Value("float32"),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's cache stays in tmp_path."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def pictures(count: int) -> list[Image.Image]:
    return [Image.fromarray(np.full((8, 8), 10 * i, np.uint8)) for i in range(count)]


def write(folder: Path, **columns: Any) -> str:
    """A data set of as many images as the first column has rows; ``name=(kind, values)``."""
    count = len(next(iter(columns.values()))[1]) if columns else 3
    rows = datasets.Dataset.from_dict(
        {"image": pictures(count), **{name: values for name, (_, values) in columns.items()}},
        features=datasets.Features(
            {"image": datasets.Image(), **{n: TYPES[kind] for n, (kind, _) in columns.items()}}
        ),
    )
    folder.mkdir(exist_ok=True)
    rows.to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


def refusal(source: str, **options: Any) -> str:
    with pytest.raises(GenwardenError) as caught:
        load_labelled(source, GREY, **options)
    return caught.value.code


def test_stated_classes_and_plain_numbers_are_read(tmp_path: Path) -> None:
    stated = read_labelled(write(tmp_path / "a", target=("stated", [1, 0, 1])), GREY)
    assert (stated.labels.tolist(), stated.classes) == ([1, 0, 1], ["no", "yes"])
    assert stated.images[:, 0, 0, 0].tolist() == [0, 10, 20]
    plain = read_labelled(write(tmp_path / "b", label=("plain", [0, 2, 1])), GREY)
    assert (plain.labels.tolist(), plain.classes) == ([0, 2, 1], ["0", "1", "2"])
    images, labels = load_labelled(str(tmp_path / "b"), GREY, limit=2)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert (len(images), labels.tolist()) == (2, [0, 2])


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"label": ("words", ["cat", "dog", "cat"])},
        {"label": ("shares", [0.0, 1.0, 0.5])},
        {"digit": ("plain", [0, 1, 2])},
        {"label": ("plain", [0, -1, 2])},
        {"label": ("plain", [0, None, 2])},
        {"fine": ("stated", [0, 1, 0]), "coarse": ("stated", [0, 0, 1])},
    ],
)
def test_data_set_without_one_class_per_image_is_refused(
    columns: dict[str, Any], tmp_path: Path
) -> None:
    assert refusal(write(tmp_path / "set", **columns)) == "data/no-labels"


def test_sizes_are_changed_only_on_demand(tmp_path: Path) -> None:
    source = write(tmp_path / "set", label=("plain", [0, 1, 2]))
    larger = SampleSpec((3, 16, 16))
    with pytest.raises(GenwardenError) as caught:
        load_labelled(source, larger)
    assert caught.value.code == "image/shape"
    assert load_labelled(source, larger, resize=True)[0].shape == (3, 3, 16, 16)


def test_folder_per_class_is_read(tmp_path: Path) -> None:
    for name, level in (("cats", 10), ("dogs", 200)):
        (tmp_path / "animals" / name).mkdir(parents=True)
        for index in range(2):
            picture = Image.fromarray(np.full((8, 8), level + index, np.uint8))
            picture.save(tmp_path / "animals" / name / f"{index}.png")
    found = read_labelled(str(tmp_path / "animals"), GREY)
    assert found.classes == ["cats", "dogs"]
    levels = found.images[:, 0, 0, 0]
    assert [int(level) >= 200 for level in levels] == [label == 1 for label in found.labels]


def test_glyphs_are_the_same_everywhere_and_the_parts_share_no_image() -> None:
    sample = SampleSpec((1, 16, 16))
    images, labels = draw_glyphs(200, sample)
    again, _ = draw_glyphs(200, sample)
    unseen, _ = draw_glyphs(200, sample, part="test")
    other, _ = draw_glyphs(200, sample, seed=1)
    assert torch.equal(images, again)
    assert not (images[:, None] == unseen[None]).flatten(2).all(2).any()
    assert not torch.equal(images, other)
    assert labels.bincount().tolist() == [20] * 10
    assert int(images.max()) > 150


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 16, 24)])
def test_glyphs_have_any_shape(shape: tuple[int, int, int]) -> None:
    assert draw_glyphs(3, SampleSpec(shape))[0].shape == (3, *shape)


def test_glyphs_are_a_source_by_name_unless_a_folder_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = load_labelled("glyphs:30", GREY, limit=20)
    assert (len(images), len(labels)) == (20, 20)
    assert torch.equal(load_labelled("glyphs:30", GREY, split="test")[0][:1], expected_test())
    assert refusal("glyphs", split="validation") == "data/no-split"
    assert refusal("glyphs:0") == "data/limit"
    assert refusal("glyphs", limit=0) == "data/limit"
    monkeypatch.chdir(tmp_path)
    assert is_glyphs("glyphs")
    (tmp_path / "glyphs").mkdir()
    assert not is_glyphs("glyphs")


def expected_test() -> torch.Tensor:
    return draw_glyphs(30, GREY, part="test")[0][:1]
