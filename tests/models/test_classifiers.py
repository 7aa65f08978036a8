"""The classifiers are the published CIFAR networks; settings rebuild them; bad ones are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from genwarden.artifacts.model_folder import build
from genwarden.compression.layers import layout_of
from genwarden.errors import GenwardenError
from genwarden.models.classifiers.mobilenetv2 import MobileNetV2
from genwarden.models.classifiers.protocol import ImageClassifier, initialise_classifier
from genwarden.models.classifiers.resnet18 import ResNet18
from genwarden.models.classifiers.small_cnn import SmallCNN
from genwarden.models.classifiers.vgg16 import VGG16
from genwarden.registry import CLASSIFIER_ARCHITECTURES

# Trainable parameters for ten classes; VGG-16 without the biases before its batch norms.
PUBLISHED: dict[str, int] = {
    "small-cnn": 61_050,
    "vgg16": 14_728_266 - 4_224,
    "resnet18": 11_173_962,
    "mobilenetv2": 2_296_922,
}
NARROW: dict[str, ImageClassifier] = {
    "small-cnn": SmallCNN((2, 17, 20), classes=3, width=0.25),
    "vgg16": VGG16((2, 32, 33), classes=3, width=0.0625),
    "resnet18": ResNet18((2, 17, 20), classes=3, width=0.0625),
    "mobilenetv2": MobileNetV2((2, 17, 20), classes=3, width=0.125),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        network: ImageClassifier = CLASSIFIER_ARCHITECTURES[name].load()()
        logits = network(torch.zeros(2, *network.sample.shape))
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED[name]
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", NARROW)
def test_settings_rebuild_the_network_at_another_size(name: str) -> None:
    network = NARROW[name]
    twin: ImageClassifier = build(CLASSIFIER_ARCHITECTURES[name].load(), network.settings(), name)
    assert {k: v.shape for k, v in twin.state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }
    x = torch.zeros(2, *network.sample.shape)
    assert network.eval()(x).shape == (2, 3)
    assert network.features(x).shape == (2, network.head.in_features)


@pytest.mark.parametrize("name", NARROW)
def test_every_convolution_can_be_folded_with_its_own_batch_norm(name: str) -> None:
    network = NARROW[name]
    layout = layout_of(network, lambda: network(torch.zeros(2, *network.sample.shape)))
    folded = [layer.norm for layer in layout.values() if layer.kind == "convolution"]
    norms = [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert folded
    assert sorted(folded) == sorted(norms)


@pytest.mark.parametrize("name", NARROW)
def test_initialisation_depends_on_its_stream_alone_and_keeps_logits_alive(name: str) -> None:
    network = NARROW[name].train()
    x = torch.randn(8, *network.sample.shape, generator=torch.Generator().manual_seed(0))

    def logits(seed: int) -> torch.Tensor:
        initialise_classifier(network, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            made: torch.Tensor = network(x)
        return made

    first = logits(1)
    assert torch.equal(first, logits(1))
    assert not torch.equal(first, logits(2))
    assert 0.05 < float(first.std()) < 20


@pytest.mark.parametrize(
    "settings",
    [
        {"image_shape": [3, 15, 32]},
        {"image_shape": [3, 32, 1025]},
        {"image_shape": [0, 32, 32]},
        {"image_shape": [17, 32, 32]},
        {"image_shape": [32, 32]},
        {"image_shape": [3, 32.5, 32]},
        {"classes": 1},
        {"classes": 10_001},
        {"classes": 10.5},
        {"classes": True},
        {"classes": "ten"},
        {"width": 0},
        {"width": -1},
        {"width": 8.5},
        {"width": float("nan")},
        {"depth": 3},
    ],
)
def test_settings_out_of_bounds_are_refused_and_their_neighbours_are_not(
    settings: dict[str, Any],
) -> None:
    allowed = {"image_shape": [3, 16, 32], "classes": 2, "width": 0.25}
    assert build(SmallCNN, allowed, "small-cnn").classes == 2
    with pytest.raises(GenwardenError) as caught:
        build(SmallCNN, allowed | settings, "small-cnn")
    assert caught.value.code == "artifact/bad-settings"


def test_vgg_needs_the_pixels_of_its_five_poolings() -> None:
    assert build(VGG16, {"image_shape": [1, 32, 32], "width": 0.0625}, "vgg16").classes == 10
    with pytest.raises(GenwardenError) as caught:
        build(VGG16, {"image_shape": [1, 31, 32], "width": 0.0625}, "vgg16")
    assert caught.value.code == "artifact/bad-settings"
