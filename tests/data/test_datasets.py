"""Training images through Hugging Face ``datasets`` or from plain folders."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from genwarden.data.datasets import load_images
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

GREY = SampleSpec((1, 4, 6))
COLOUR = SampleSpec((3, 4, 6))


def pictures(count: int) -> list[Image.Image]:
    return [Image.fromarray(np.full((4, 6), 10 * i, np.uint8)) for i in range(count)]


@pytest.fixture
def parquet_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two splits of small images in the hub's layout; the library's cache stays in tmp_path."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "set"
    folder.mkdir()
    for split, count in (("train", 5), ("test", 2)):
        rows = datasets.Dataset.from_dict(
            {"image": pictures(count), "label": list(range(count))},
            features=datasets.Features(
                {"image": datasets.Image(), "label": datasets.Value("int8")}
            ),
        )
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def refusal(source: str, sample: SampleSpec = GREY, **options: int) -> GenwardenError:
    with pytest.raises(GenwardenError) as caught:
        load_images(source, sample, **options)  # type: ignore[arg-type]
    return caught.value


def test_parquet_splits_are_read_in_order(parquet_folder: Path) -> None:
    train = load_images(str(parquet_folder), GREY)
    assert (train.dtype, tuple(train.shape)) == (torch.uint8, (5, 1, 4, 6))
    assert train[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
    assert len(load_images(str(parquet_folder), GREY, split="test")) == 2
    assert len(load_images(str(parquet_folder), GREY, limit=3)) == 3
    assert load_images(str(parquet_folder), COLOUR).shape == (5, 3, 4, 6)


def test_unusable_parquet_folder_is_explained(parquet_folder: Path) -> None:
    assert refusal(str(parquet_folder), SampleSpec((1, 5, 6))).code == "image/shape"
    assert refusal(str(parquet_folder), SampleSpec((9,), modality="audio")).code == "data/shape"
    with pytest.raises(GenwardenError) as caught:
        load_images(str(parquet_folder), GREY, split="validation")
    assert caught.value.code == "data/no-split"
    assert "train" in caught.value.cause


def test_data_set_without_images_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "numbers").mkdir()
    datasets.Dataset.from_dict({"x": [1, 2]}).to_parquet(tmp_path / "numbers" / "train.parquet")
    assert refusal(str(tmp_path / "numbers")).code == "data/no-images"


def test_damaged_parquet_is_explained(parquet_folder: Path) -> None:
    (parquet_folder / "train-00000-of-00001.parquet").write_bytes(b"PAR1 not really PAR1")
    assert refusal(str(parquet_folder)).code == "data/not-found"


@pytest.mark.parametrize("mistyped", ["./minst", "/data/mnist", "a/b/c", "../mnist", "mnist/"])
def test_what_can_be_no_hub_name_is_not_looked_for_on_the_hub(
    mistyped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda _: pytest.fail("the hub was asked"))
    assert refusal(mistyped).code == "data/not-found"


def test_a_hub_name_is_looked_for_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unreachable(name: str) -> None:
        asked.append(name)
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    for name in ("mnist", "ylecun/mnist"):
        assert refusal(name).code == "data/not-found"
    assert asked == ["mnist", "ylecun/mnist"]


def test_plain_folder_of_images_is_read(tmp_path: Path) -> None:
    for index, picture in enumerate(pictures(3)):
        picture.save(tmp_path / f"{index}.png")
    images = load_images(str(tmp_path), GREY)
    assert images[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert len(load_images(str(tmp_path), GREY, limit=2)) == 2


def test_folder_with_neither_parquet_nor_images_is_explained(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    assert refusal(str(tmp_path)).code == "data/no-images"


def test_limit_below_one_is_refused(tmp_path: Path) -> None:
    assert refusal(str(tmp_path), limit=0).code == "data/limit"


def test_a_folder_per_class_is_read_without_its_classes(tmp_path: Path) -> None:
    for number, name in enumerate(("eights", "nines")):
        (tmp_path / name).mkdir()
        for copy in range(2):
            grey = Image.new("L", (6, 5), 100 * number + 50 * copy)
            grey.save(tmp_path / name / f"{copy}.png")
    found = load_images(str(tmp_path), SampleSpec((1, 5, 6)))
    assert sorted(found[:, 0, 0, 0].tolist()) == [0, 50, 100, 150]
    # Images beside folders of images: which of them are meant is not guessed.
    Image.new("L", (6, 5)).save(tmp_path / "alone.png")
    assert refusal(str(tmp_path), SampleSpec((1, 5, 6))).code == "image/subfolder"
