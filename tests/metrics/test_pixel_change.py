"""Mean absolute pixel distortion, and ExpDis over the same frame."""

from __future__ import annotations

import copy

import pytest
import torch

from genwarden.metrics.distances import expdis
from genwarden.metrics.pixel_change import PixelChange, pixel_change
from genwarden.models.dcgan import DCGAN28


def changed(generator: DCGAN28) -> DCGAN28:
    other = copy.deepcopy(generator)
    with torch.no_grad():
        other.to_image.weight.mul_(0.9)
    return other


def test_a_known_shift_is_reported_in_percent_of_the_value_range() -> None:
    state = PixelChange(elements=16)
    state.update(torch.zeros(3, 1, 4, 4), torch.full((3, 1, 4, 4), 0.05))
    result = state.compute()
    assert result.absolute_sum == pytest.approx(0.8)
    assert result.absolute_mean == pytest.approx(0.05)
    assert result.percent_mean == pytest.approx(2.5)  # of a range of width 2
    other = PixelChange(elements=16)
    other.update(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), -0.45))
    state.merge(other)
    assert state.compute().absolute_mean == pytest.approx((3 * 0.05 + 0.45) / 4)
    assert state.compute().samples == 4


def test_only_a_changed_model_has_a_distortion(tiny_generator: DCGAN28) -> None:
    other = changed(tiny_generator)
    assert pixel_change(tiny_generator, tiny_generator, samples=200).percent_mean == 0
    result = pixel_change(tiny_generator, other, samples=200)
    z = torch.randn(2000, 8, generator=torch.Generator().manual_seed(1))
    by_hand = float((tiny_generator(z) - other(z)).abs().mean())
    assert result.absolute_mean == pytest.approx(by_hand, rel=0.05)
    assert result.percent_mean == pytest.approx(50 * result.absolute_mean)
    assert pixel_change(tiny_generator, other, samples=200) == result


def test_expdis_of_two_models_is_the_mean_of_the_summed_squares(tiny_generator: DCGAN28) -> None:
    other = changed(tiny_generator)
    assert expdis(tiny_generator, tiny_generator, samples=100).sum == 0

    def unit(count: int, stream: torch.Generator) -> torch.Tensor:
        del stream
        return torch.ones(count, 8)

    one = torch.ones(1, 8)
    by_hand = float((tiny_generator(one) - other(one)).square().sum())
    assert expdis(tiny_generator, other, samples=30, draw=unit).sum == pytest.approx(by_hand, 1e-4)
    ordinary = expdis(tiny_generator, other, samples=300)
    assert ordinary.sum > 0
    assert ordinary.mean == pytest.approx(ordinary.sum / 784)
