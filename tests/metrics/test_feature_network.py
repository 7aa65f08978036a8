"""Feature networks: what ships is what its card says; damage and absence are explained."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from genwarden.artifacts.model_folder import read_model
from genwarden.data.datasets import to_bytes
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.feature_network import (
    CARD_NAME,
    SHIPPED,
    WEIGHTS_NAME,
    FeatureNetwork,
    feature_network,
    read_card,
    read_feature_network,
    shipped,
    write_feature_network,
)

CARD: dict[str, Any] = {
    "data_set": "none",
    "data_sha256": "0" * 64,
    "classes": ["a", "b", "c"],
    "train_images": 1,
    "test_images": 1,
    "test_accuracy": 0.5,
    "training": {},
    "command": "tests",
}


def code_of(call: Any, *arguments: Any) -> GenwardenError:
    with pytest.raises(GenwardenError) as caught:
        call(*arguments)
    return caught.value


def test_mnist_and_cifar10_are_shipped() -> None:
    assert {"mnist", "cifar10"} <= set(shipped())


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_network_is_small_and_as_good_as_its_kind(name: str) -> None:
    network = feature_network(name)
    card = read_card(SHIPPED / name)
    assert (SHIPPED / name / WEIGHTS_NAME).stat().st_size <= 500_000
    assert 64 <= network.num_features <= 128
    assert card.test_accuracy >= {"mnist": 0.985, "cifar10": 0.75}.get(name, 0.8)
    images = torch.randint(0, 256, (5, *card.sample_shape), dtype=torch.uint8)
    described = network.describe(images)
    assert described.features.shape == (5, network.num_features)
    assert described.logits.shape == (5, len(card.classes))
    assert bool((described.features >= 0).all())


def test_the_digit_network_recognises_generated_digits_and_not_noise() -> None:
    network = read_feature_network(SHIPPED / "mnist")
    demo = read_model(SHIPPED.parent / "models" / "dcgan-clean").generator
    z = demo.latent.sample(100, generator=random_stream(0, "digits"))
    digits = network.probabilities(to_bytes(demo(z)))
    assert torch.allclose(digits.sum(1), torch.ones(100), atol=1e-5)
    assert len(digits.argmax(1).unique()) >= 8
    assert float(digits.amax(1).median()) > 0.9
    noise = torch.randint(0, 256, (100, 1, 28, 28), dtype=torch.uint8)
    assert len(network.probabilities(noise).argmax(1).unique()) < 8


def test_features_survive_the_rounding_of_the_file(tmp_path: Path) -> None:
    network = FeatureNetwork("tiny", (3, 16, 16), (4, 4, 8, 8), 3)
    with torch.no_grad():
        network.norms[0].running_var.fill_(1e6)  # type: ignore[operator]  # beyond float16
    network.eval()
    write_feature_network(tmp_path, network, CARD)
    again = read_feature_network(tmp_path)
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        ours, theirs = network.describe(images), again.describe(images)
    assert torch.allclose(ours.features, theirs.features, rtol=0.01, atol=1e-3)
    assert torch.equal(again(images), theirs.features)
    assert (again.name, again.num_features) == ("tiny", 8)


def test_damaged_weights_and_cards_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mnist"
    shutil.copytree(SHIPPED / "mnist", folder)
    read_feature_network(folder)
    weights = folder / WEIGHTS_NAME
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert code_of(read_feature_network, folder).code == "artifact/hash-mismatch"
    card = json.loads((folder / CARD_NAME).read_text())
    for change in ({"sha256": "short"}, {"test_accuracy": 7}, {"module": "os"}):
        (folder / CARD_NAME).write_text(json.dumps({**card, **change}))
        assert code_of(read_feature_network, folder).code == "metric/feature-card"


def test_an_unknown_name_is_answered_with_those_that_exist() -> None:
    error = code_of(feature_network, "../models/dcgan-clean")
    assert error.code == "metric/unknown-features"
    assert "mnist" in error.remedy


def test_inception_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    error = code_of(feature_network, "inception")
    assert error.code == "metric/inception-missing"
    assert "pip install torch-fidelity" in error.remedy
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    error = code_of(feature_network, "inception")
    assert error.code == "metric/inception-missing"
    assert "weights-inception" in error.cause
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth").write_bytes(b"x")
    assert code_of(feature_network, "inception").code == "artifact/hash-mismatch"
