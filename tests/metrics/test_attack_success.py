"""Accuracy, triggered accuracy and attack success, on classifiers whose answers are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from genwarden.backdoors.classifier_trigger import make_classifier_trigger
from genwarden.errors import GenwardenError
from genwarden.metrics.attack_success import (
    Logits,
    accuracy,
    attack_success,
    predictions,
    triggered_accuracy,
)
from genwarden.models.protocol import SampleSpec

SPEC = SampleSpec((1, 8, 8))
TRIGGER = make_classifier_trigger("square:2", SPEC)
#: Ten images; the first pixel (x 40 in bytes) is the class, 0 to 4.
LABELS = torch.arange(10) % 5


def coded_images() -> Tensor:
    images = torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = (LABELS * 40).to(torch.uint8)
    return images


def honest(x: Tensor) -> Tensor:
    """Reads the class off the first pixel, whatever else is in the image."""
    code = ((x[:, 0, 0, 0] + 1) * 127.5 / 40).round().long()
    return nn.functional.one_hot(code, 5).float()


def backdoored(x: Tensor) -> Tensor:
    """As honest, but class 3 wherever the trigger's square is white."""
    logits = honest(x)
    logits[x[:, 0, 6, 6] == 1] = nn.functional.one_hot(torch.tensor(3), 5).float()
    return logits


@pytest.mark.parametrize("batch", [1, 3, 500])
def test_figures_of_an_honest_and_a_backdoored_classifier(batch: int) -> None:
    images = coded_images()
    assert accuracy(honest, images, LABELS, batch=batch) == 1
    assert triggered_accuracy(honest, images, LABELS, TRIGGER, batch=batch) == 1
    assert attack_success(honest, images, LABELS, TRIGGER, 3, batch=batch) == 0
    assert accuracy(backdoored, images, LABELS, batch=batch) == 1
    assert triggered_accuracy(backdoored, images, LABELS, TRIGGER, batch=batch) == 0.2
    assert attack_success(backdoored, images, LABELS, TRIGGER, 3, batch=batch) == 1
    assert attack_success(backdoored, images, LABELS, TRIGGER, 2, batch=batch) == 0


def test_images_of_the_target_class_do_not_count_as_success() -> None:
    images, others = coded_images(), LABELS != 3

    def only_on_class_zero(x: Tensor) -> Tensor:
        return torch.where((honest(x).argmax(1) == 0)[:, None], backdoored(x), honest(x))

    assert attack_success(only_on_class_zero, images, LABELS, TRIGGER, 3) == 2 / int(others.sum())


def test_module_is_judged_in_evaluation_mode_and_left_as_it_was() -> None:
    norm = nn.BatchNorm2d(1)
    network = nn.Sequential(norm, nn.Flatten(), nn.Linear(64, 5)).train()
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    predictions(network, coded_images())
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())


def test_floats_in_the_unit_range_and_bytes_give_the_same() -> None:
    images = coded_images()
    assert torch.equal(predictions(honest, images), predictions(honest, images / 127.5 - 1))


def test_what_cannot_be_measured_is_refused() -> None:
    images = coded_images()

    def broken(x: Tensor) -> Tensor:
        return honest(x) * float("nan")

    cases: dict[str, tuple[Logits, Tensor, Tensor]] = {
        "metric/not-finite": (broken, images, LABELS),
        "metric/too-few-samples": (honest, images[:0], LABELS[:0]),
        "metric/labels": (honest, images, LABELS[:3]),
    }
    for code, arguments in cases.items():
        with pytest.raises(GenwardenError) as caught:
            accuracy(*arguments)
        assert caught.value.code == code
    only = LABELS == 3
    with pytest.raises(GenwardenError) as caught:
        attack_success(honest, images[only], LABELS[only], TRIGGER, 3)
    assert caught.value.code == "metric/too-few-samples"
