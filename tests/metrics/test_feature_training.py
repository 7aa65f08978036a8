"""Training of feature networks: it learns, resumes bit for bit, and its recipe keeps its word."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from torch import Tensor

from genwarden.benchmarks import feature_network as recipe
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.feature_network import FeatureNetwork, read_card, read_feature_network
from genwarden.training import features
from genwarden.training.features import FeatureTraining, accuracy, augment, train_features

CPU = torch.device("cpu")


def bars(count: int) -> tuple[Tensor, Tensor]:
    """Class 0: a horizontal bar on noise, class 1: a vertical one."""
    stream = random_stream(0, "bars", count)
    images = torch.randint(0, 60, (count, 1, 28, 28), generator=stream, dtype=torch.uint8)
    labels = torch.randint(0, 2, (count,), generator=stream)
    for image, label in zip(images, labels, strict=True):
        at = int(torch.randint(6, 20, (1,), generator=stream))
        if label:
            image[0, 4:24, at : at + 3] = 230
        else:
            image[0, at : at + 3, 4:24] = 230
    return images, labels


def fresh() -> FeatureNetwork:
    return FeatureNetwork("bars", (1, 28, 28), (4, 4, 8, 8), 2)


def train(network: FeatureNetwork, out: Path, **changes: Any) -> None:
    images, labels = bars(240)
    settings = replace(FeatureTraining(epochs=6, batch_size=20), **changes)
    train_features(
        network, images, labels, settings, out=out, run_id="r", progress=Silent(), device=CPU
    )


def test_a_network_learns_to_tell_two_classes_apart(tmp_path: Path) -> None:
    unseen = bars(201)
    network = fresh().eval()
    assert accuracy(network, *unseen) < 0.75
    train(network, tmp_path)
    assert accuracy(network, *unseen) > 0.95


def test_a_stopped_training_continues_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped, resumed = fresh(), fresh(), fresh()
    train(whole, tmp_path / "whole")
    monkeypatch.setattr(features, "_CHECKPOINT_STEPS", 10)

    calls = 0
    real = features.augment

    def power_cut(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 25:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(features, "augment", power_cut)
        with pytest.raises(KeyboardInterrupt):
            train(stopped, tmp_path / "cut")
    train(resumed, tmp_path / "cut")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_augmentation_moves_mirrors_and_inverts() -> None:
    images, _ = bars(64)
    stream = random_stream(0, "augment")
    plain = FeatureTraining(epochs=1, shift=0)
    assert torch.equal(augment(images, plain, stream), images)
    inverted = augment(images, replace(plain, invert=True), stream)
    flags = {
        (torch.equal(a, b), torch.equal(a, 255 - b)) for a, b in zip(inverted, images, strict=True)
    }
    assert flags == {(True, False), (False, True)}
    mirrored = augment(images, replace(plain, mirror=True), stream)
    flags = {
        (torch.equal(a, b), torch.equal(a, b.flip(2)))
        for a, b in zip(mirrored, images, strict=True)
    }
    assert flags == {(True, False), (False, True)}
    moved = augment(images, replace(plain, shift=2), stream)
    shifts = set()
    for a, b in zip(moved, images, strict=True):
        fits = [
            (y, x)
            for y in range(-2, 3)
            for x in range(-2, 3)
            if torch.equal(a[:, 4:-4, 4:-4], b[:, 4 + y : 24 + y, 4 + x : 24 + x])
        ]
        assert len(fits) == 1  # the content is only moved, by a whole number of pixels
        shifts.add(fits[0])
    assert len(shifts) > 10


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``data/bars`` in the hub's layout, with a train and a test split."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "data" / "bars"
    folder.mkdir(parents=True)
    for split, count in (("train", 240), ("test", 60)):
        images, labels = bars(count)
        rows = datasets.Dataset.from_dict(
            {"image": [Image.fromarray(i[0].numpy()) for i in images], "label": labels.tolist()},
            features=datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(names=["flat", "steep"])}
            ),
        )
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    training = FeatureTraining(epochs=6, batch_size=20)
    plan = recipe.Plan("bars", (1, 28, 28), (4, 4, 8, 8), training)
    monkeypatch.setitem(recipe.PLANS, "bars", plan)
    return tmp_path / "data"


def run(out: Path, data: Path | None, **options: Any) -> Path:
    source = None if data is None else str(data)
    return recipe.run(out, data=source, seed=0, device=CPU, progress=Silent(), **options)


def test_the_recipe_writes_a_network_whose_card_tells_its_accuracy(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "SHIPPED", tmp_path / "assets")
    out = tmp_path / "out"
    result = json.loads(run(out, data_folder, dataset="bars", publish=True).read_text())
    card = read_card(tmp_path / "assets" / "bars")
    assert card == read_card(out)
    assert card.classes == ["flat", "steep"]
    assert (card.train_images, card.test_images) == (240, 60)
    assert (
        result["test_accuracy"]
        == card.test_accuracy
        == accuracy(read_feature_network(out), *bars(60))
    )
    assert card.test_accuracy > 0.9
    assert not (out / "work").exists()


def test_images_are_held_out_where_there_is_no_test_split(
    tmp_path: Path, data_folder: Path
) -> None:
    (data_folder / "bars" / "test-00000-of-00001.parquet").unlink()
    run(tmp_path / "out", data_folder, dataset="bars", epochs=0.1)
    card = read_card(tmp_path / "out")
    assert (card.train_images, card.test_images) == (200, 40)


def test_a_recipe_without_data_plan_or_labels_is_refused(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlabelled = datasets.Dataset.from_dict({"label": [0.5, 1.5]})
    (tmp_path / "data" / "numbers").mkdir()
    unlabelled.to_parquet(tmp_path / "data" / "numbers" / "train-00000-of-00001.parquet")
    plan = replace(recipe.PLANS["bars"], folder="numbers")
    monkeypatch.setitem(recipe.PLANS, "numbers", plan)
    for data, dataset, code in (
        (None, "bars", "benchmark/data-missing"),
        (data_folder, "other", "usage/unknown-name"),
        (data_folder, "numbers", "data/no-labels"),
    ):
        with pytest.raises(GenwardenError) as caught:
            run(tmp_path / "out", data, dataset=dataset)
        assert caught.value.code == code
