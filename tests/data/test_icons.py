"""Target pictures: repeatable, distinct, usable at any size."""

from __future__ import annotations

import itertools

import pytest
import torch

from genwarden.data.icons import ICONS, draw_icon
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

GREY, COLOUR = SampleSpec((1, 28, 28)), SampleSpec((3, 32, 32))


@pytest.mark.parametrize("name", ICONS)
@pytest.mark.parametrize("sample", [GREY, COLOUR, SampleSpec((3, 20, 31)), SampleSpec((1, 7, 9))])
def test_icon_is_a_sample_of_the_model(name: str, sample: SampleSpec) -> None:
    x = draw_icon(name, sample)
    assert x.shape == sample.shape
    assert x.dtype == torch.float32
    assert x.abs().max() <= 1
    assert torch.equal(x, draw_icon(name, sample))


@pytest.mark.parametrize("name", ICONS)
@pytest.mark.parametrize("sample", [GREY, COLOUR])
def test_icon_has_contrast(name: str, sample: SampleSpec) -> None:
    assert draw_icon(name, sample).std() > 0.3


@pytest.mark.parametrize("sample", [GREY, COLOUR])
def test_icons_are_far_from_each_other(sample: SampleSpec) -> None:
    pictures = {name: draw_icon(name, sample) for name in ICONS}
    for first, second in itertools.combinations(ICONS, 2):
        assert (pictures[first] - pictures[second]).square().mean() > 0.05, (first, second)


def test_there_are_enough_icons() -> None:
    assert len(set(ICONS)) == len(ICONS) >= 10
    assert "devil" in ICONS


def test_face_icons_are_mirror_images_of_themselves() -> None:
    for name in ("devil", "skull", "smiley", "heart", "star", "lock"):
        x = draw_icon(name, COLOUR)
        assert (x - x.flip(2)).abs().mean() < 0.05, name


@pytest.mark.parametrize(
    ("name", "sample", "code"),
    [
        ("angel", GREY, "icon/unknown"),
        ("devil", SampleSpec((16384,), modality="audio"), "icon/not-an-image"),
        ("devil", SampleSpec((1, 100_000, 100_000)), "icon/not-an-image"),
        ("devil", SampleSpec((2, 28, 28)), "image/channels"),
    ],
)
def test_icon_that_cannot_be_drawn_is_explained(name: str, sample: SampleSpec, code: str) -> None:
    with pytest.raises(GenwardenError) as caught:
        draw_icon(name, sample)
    assert caught.value.code == code
