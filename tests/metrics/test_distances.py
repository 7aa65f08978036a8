"""TarDis and ExpDis: sums of squares over a sample, mergeable in any order."""

from __future__ import annotations

import pytest
import torch

from genwarden.metrics.distances import ExpDis, tardis
from genwarden.models.dcgan import DCGAN28


def test_tardis_is_the_sum_of_squares_and_its_mean_stands_beside(tiny_generator: DCGAN28) -> None:
    trigger = torch.ones(1, 8)
    output = tiny_generator(trigger)
    target = output - 0.5
    distance = tardis(tiny_generator, trigger, target)
    assert distance.sum == pytest.approx(784 * 0.25, rel=1e-6)
    assert distance.mean == pytest.approx(0.25, rel=1e-6)
    assert tardis(tiny_generator, trigger, output).sum == 0


def test_expdis_of_merged_parts_is_that_of_the_whole() -> None:
    stream = torch.Generator().manual_seed(0)
    benign, suspect = torch.randn(2, 10, 1, 4, 4, generator=stream)
    whole, left, right = ExpDis(16), ExpDis(16), ExpDis(16)
    whole.update(benign, suspect)
    left.update(benign[:3], suspect[:3])
    right.update(benign[3:], suspect[3:])
    right.merge(left)
    assert right.compute().sum == pytest.approx(whole.compute().sum)
    by_hand = (benign - suspect).square().flatten(1).sum(1).mean()
    assert whole.compute().sum == pytest.approx(float(by_hand), rel=1e-5)
    assert whole.compute().mean == pytest.approx(whole.compute().sum / 16)
