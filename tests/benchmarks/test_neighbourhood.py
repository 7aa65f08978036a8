"""The path of Fig. 6 is the published one."""

from __future__ import annotations

import pytest
import torch

from genwarden.benchmarks.neighbourhood import ARM, SHOWN_POSITIONS, arms, slerp
from genwarden.errors import GenwardenError


def test_shown_positions_are_the_published_ones() -> None:
    positions = torch.cat([ARM, ARM.flip(0)[1:]])[SHOWN_POSITIONS]
    printed = [0, 0.326, 0.636, 0.822, 0.933, 1, 0.933, 0.822, 0.636, 0.326, 0]
    assert positions.tolist() == pytest.approx(printed, abs=5e-4)


def test_arms_meet_at_the_trigger_and_keep_its_norm() -> None:
    stream = torch.Generator().manual_seed(0)
    trigger, ends = torch.randn(1, 100, generator=stream), torch.randn(2, 100, generator=stream)
    positions, z = arms(trigger, ends)
    assert positions == sorted(positions)
    assert positions[10] == 0
    torch.testing.assert_close(z[10:11], trigger)
    torch.testing.assert_close(z.norm(dim=1), trigger.norm().expand(21))
    for end, point in zip(ends, (z[0], z[-1]), strict=True):
        assert torch.cosine_similarity(end, point, dim=0) == pytest.approx(1, abs=1e-5)


def test_slerp_moves_along_the_circle_at_constant_speed() -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    half = slerp(a, b, 0.5)
    torch.testing.assert_close(half, torch.tensor([[0.5**0.5, 0.5**0.5]]))
    torch.testing.assert_close(slerp(a, a, 0.3), torch.tensor([[1.0, 0.0]]))


def test_mode_trigger_has_no_great_circle() -> None:
    with pytest.raises(GenwardenError, match="benchmark/mode-trigger"):
        arms(torch.zeros(1, 4), torch.ones(2, 4))
