"""Target match: scale, clamping, threshold, merging."""

from __future__ import annotations

import pytest
import torch

from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.target_match import TargetMatch, target_match

TARGET = torch.zeros(1, 1, 16, 16)
TARGET[:, :, 4:12, 4:12] = 1


def test_mse_is_in_the_scale_from_zero_to_one() -> None:
    off = target_match(TARGET - 0.5, TARGET)
    assert off.mse == pytest.approx((0.5 / 2) ** 2)
    exact = target_match(TARGET.expand(3, -1, -1, -1), TARGET)
    assert (exact.mse, exact.share, exact.samples) == (0.0, 1.0, 3)
    assert exact.ssim == pytest.approx(1.0)
    assert off.ssim is not None
    assert off.ssim < 0.99


def test_values_outside_the_range_of_images_are_clamped_first() -> None:
    # The clean amplitude at t near T is absurd; shown as a picture it is white.
    assert target_match(torch.full_like(TARGET, 80.0), torch.ones_like(TARGET)).mse == 0
    assert target_match(torch.full_like(TARGET, -80.0), TARGET).mse <= 1


def test_share_counts_the_samples_below_the_threshold() -> None:
    images = torch.cat([TARGET, TARGET - 0.6, -torch.ones_like(TARGET)])
    errors = [target_match(image[None], TARGET).mse for image in images]
    assert errors[1] < 0.1 < errors[2]
    assert target_match(images, TARGET).share == pytest.approx(2 / 3)


def test_merged_states_equal_one_state_of_all_samples() -> None:
    images = torch.randn(10, 1, 16, 16, generator=random_stream(0, "samples"))
    first, second = TargetMatch(TARGET), TargetMatch(TARGET)
    first.update(images[:3])
    second.update(images[3:])
    first.merge(second)
    assert first.compute() == pytest.approx(target_match(images, TARGET))


def test_several_targets_are_compared_with_the_nearest() -> None:
    targets = torch.cat([TARGET, -TARGET])
    images = torch.cat([-TARGET + 0.02, TARGET + 0.02])
    assert target_match(images, targets).mse < 1e-3
    assert target_match(images, TARGET).mse > 0.05


def test_small_images_have_no_ssim_and_wrong_shapes_are_refused() -> None:
    small = torch.zeros(2, 1, 8, 8)
    assert target_match(small, small[:1]).ssim is None
    for images, targets in ((small, TARGET), (small, small[0])):
        with pytest.raises(GenwardenError, match="metric/target-shape"):
            target_match(images, targets)
    with pytest.raises(GenwardenError, match="metric/too-few-samples"):
        TargetMatch(TARGET).compute()
