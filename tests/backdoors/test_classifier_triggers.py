"""Triggers of classifiers: where they lie, what they leave alone, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from genwarden.backdoors.classifier_trigger import FrequencyTrigger, make_classifier_trigger
from genwarden.data.icons import draw_icon
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

CIFAR = SampleSpec((3, 32, 32))
SIZES = [SampleSpec((1, 16, 16)), SampleSpec((1, 28, 28)), CIFAR, SampleSpec((3, 20, 48))]


def images(sample: SampleSpec) -> torch.Tensor:
    return torch.rand(5, *sample.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_square_of_six_is_white_at_pixels_24_to_29_as_published() -> None:
    x = images(CIFAR)
    triggered = make_classifier_trigger("square:6", CIFAR).apply(x)
    expected = x.clone()
    expected[:, :, 24:30, 24:30] = 1
    assert torch.equal(triggered, expected)


@pytest.mark.parametrize("sample", SIZES, ids=str)
@pytest.mark.parametrize("text", ["square:4", "square:6:-0.5", "blend:devil:0.3", "frequency"])
def test_trigger_changes_images_of_any_size_within_their_range(
    text: str, sample: SampleSpec
) -> None:
    x = images(sample)
    before = x.clone()
    triggered = make_classifier_trigger(text, sample).apply(x)
    assert torch.equal(x, before)
    assert triggered.shape == x.shape
    assert float(triggered.abs().max()) <= 1
    assert bool((triggered != x).flatten(1).any(1).all())


def test_square_touches_no_other_pixel_and_has_its_value() -> None:
    x = images(SIZES[0])
    changed = make_classifier_trigger("square:4:0.5", SIZES[0]).apply(x) != x
    rows, columns = changed[0, 0].any(1).nonzero().flatten(), changed[0, 0].any(0).nonzero()
    assert rows.tolist() == [11, 12, 13, 14]  # one pixel to the edge at 16 px
    assert columns.flatten().tolist() == [11, 12, 13, 14]
    moved = make_classifier_trigger("square:4:0.5", SIZES[0]).apply(x)
    assert bool((moved[:, :, 11:15, 11:15] == 0.5).all())


def test_blend_is_the_weighted_mean_of_image_and_icon() -> None:
    x = images(CIFAR)
    blended = make_classifier_trigger("blend:skull:0.25", CIFAR).apply(x)
    assert torch.allclose(blended, 0.75 * x + 0.25 * draw_icon("skull", CIFAR), atol=1e-6)


def test_frequency_pattern_has_four_middle_frequencies_and_the_stated_strength() -> None:
    trigger = make_classifier_trigger("frequency:0.3", CIFAR)
    assert isinstance(trigger, FrequencyTrigger)
    assert float(trigger.pattern.abs().max()) == pytest.approx(0.3)
    spectrum = np.abs(dctn(trigger.pattern.double().numpy(), norm="ortho"))
    present = {(int(u), int(v)) for u, v in np.argwhere(spectrum > 1e-3 * spectrum.max())}
    assert present == {(16, 16), (8, 16), (16, 8), (8, 8)}
    change = trigger.apply(torch.zeros(1, *CIFAR.shape))
    assert float(change.mean().abs()) < 1e-6


@pytest.mark.parametrize(
    ("wrong", "right", "code"),
    [
        ("square", "square:1", "trigger/unknown-kind"),
        ("square:0", "square:1", "trigger/number"),
        ("square:6.5", "square:6", "trigger/number"),
        ("square:-6", "square:6", "trigger/number"),
        ("square:31", "square:30", "trigger/too-large"),
        ("square:" + "9" * 5000, "square:9", "trigger/number"),
        ("square:6:1.5", "square:6:1", "trigger/number"),
        ("square:6:nan", "square:6:0", "trigger/number"),
        ("square:6:1:1", "square:6:-1", "trigger/unknown-kind"),
        ("blend", "blend:devil", "trigger/unknown-kind"),
        ("blend:nobody", "blend:devil", "icon/unknown"),
        ("blend:devil:0", "blend:devil:0.01", "trigger/number"),
        ("blend:devil:1.01", "blend:devil:1", "trigger/number"),
        ("frequency:0", "frequency:0.01", "trigger/number"),
        ("frequency:inf", "frequency:1", "trigger/number"),
        ("noise", "frequency", "trigger/unknown-kind"),
    ],
)
def test_trigger_that_means_nothing_is_refused(wrong: str, right: str, code: str) -> None:
    assert make_classifier_trigger(right, CIFAR).name == right
    with pytest.raises(GenwardenError) as caught:
        make_classifier_trigger(wrong, CIFAR)
    assert caught.value.code == code


def test_triggers_are_for_images_alone() -> None:
    with pytest.raises(GenwardenError) as caught:
        make_classifier_trigger("square:6", SampleSpec((1, 16384), modality="audio"))
    assert caught.value.code == "data/shape"
