"""The numbers that judge trigger inversions of classifiers, on made-up classes."""

from __future__ import annotations

import math

import pytest
import torch

from genwarden.compression.how import compressor
from genwarden.inspections.classifier import placebo_ratio
from genwarden.inspections.classifier.anomaly import mad_anomaly, smallest_p
from genwarden.inspections.classifier.bench import ClassifierBench, ClassifierEffort, VariantBench
from genwarden.inspections.classifier.differential_inversion import (
    MOST_MOVEMENT,
    _judged,
    expected_spread,
    gap_p,
    lead,
)
from genwarden.inspections.classifier.inversion import Exemplars, Inverted, mask_weight
from genwarden.inspections.classifier.neural_cleanse import judged_norms, norm_null
from genwarden.models.classifiers.protocol import initialise_classifier
from genwarden.models.classifiers.small_cnn import SmallCNN


def test_the_mad_anomaly_is_that_of_the_published_formula() -> None:
    norms = torch.tensor([5.0, 28.0, 30.0, 31.0, 33.0])
    assert mad_anomaly(norms)[0] == pytest.approx((30 - 5) / (1.4826 * 2))


def test_a_class_is_judged_against_the_others_and_two_classes_are_not_judged() -> None:
    ordinary = torch.tensor([3.4, 3.2, 3.5, 3.3, 3.6, 3.1, 3.4, 3.3, 3.5, 3.2])
    attacked = ordinary.clone()
    attacked[4] = 1.5
    p_clean, p_attacked = smallest_p(ordinary), smallest_p(attacked)
    assert p_clean is not None
    assert p_clean > 0.2
    assert p_attacked is not None
    assert p_attacked < 1e-4
    assert smallest_p(ordinary[:2]) is None


def test_classes_that_happen_to_be_nearly_equal_are_no_evidence() -> None:
    norms = torch.tensor([30.0, 30.01, 29.99, 30.0, 30.02, 30.01, 29.98, 30.0, 30.01, 29.5])
    p = smallest_p(norms.log())
    assert p is not None
    assert p > 0.5


def _with_norms(norms: list[float]) -> Inverted:
    """Triggers on images of 32 x 32 pixels; 1024 is a class that no mask led to."""
    norm, count = torch.tensor(norms, dtype=torch.float64), len(norms)
    return Inverted(
        torch.ones(count, 1, 32, 32), torch.zeros(count, 1, 32, 32), norm, norm * 0, norm * 0
    )


def test_classes_that_no_mask_led_to_are_not_what_the_others_are_compared_with() -> None:
    few = _with_norms([1024.0] * 9 + [100.0])
    assert judged_norms(few)[2] is None
    assert "1 classes that a mask led to (of 10)" in norm_null(None, few)["p_value_reason"]
    ordinary = [25.0, 17.0, 40.0, 66.0, 21.0]
    some = judged_norms(_with_norms([1024.0] * 5 + ordinary))[2]
    assert some is not None
    assert some > 0.5
    attacked = judged_norms(
        _with_norms([1024.0] * 2 + [25.0, 17.0, 40.0, 66.0, 21.0, 30.0, 27.0, 0.5])
    )
    assert attacked[1] == 9
    assert attacked[2] is not None
    assert attacked[2] < 0.01


def test_gaps_of_an_honest_network_are_no_evidence() -> None:
    stream = torch.Generator().manual_seed(0)
    flagged = sum(
        gap_p(0.15 * torch.randn(10, generator=stream, dtype=torch.float64), 0.0) < 0.01
        for _ in range(300)
    )
    assert flagged <= 6


def test_gaps_scatter_as_widely_as_compression_moves_the_logits() -> None:
    stream = torch.Generator().manual_seed(0)
    wide = [
        expected_spread(0.4) * torch.randn(10, generator=stream, dtype=torch.float64)
        for _ in range(300)
    ]
    assert sum(gap_p(gaps, 0.4) < 0.01 for gaps in wide) <= 6
    assert sum(gap_p(gaps, 0.0) < 0.01 for gaps in wide) > 20


def test_several_attacked_classes_do_not_hide_each_other() -> None:
    stream = torch.Generator().manual_seed(0)
    gaps = 0.2 * torch.randn(10, generator=stream, dtype=torch.float64)
    every = gaps + 2.2
    gaps[[2, 5, 7]] += 2.2
    assert gap_p(gaps, 0.1) < 1e-4
    assert gap_p(every, 0.1) < 1e-4


def test_two_classes_can_be_judged_by_their_gap() -> None:
    assert gap_p(torch.tensor([0.1, 2.5]), 0.1) < 1e-3
    assert gap_p(torch.tensor([0.1, 0.25]), 0.1) > 0.05


def test_the_scatter_of_the_others_is_the_unit_of_the_lead() -> None:
    def found(*objectives: float) -> Inverted:
        one = torch.zeros(len(objectives))
        return Inverted(one, one, one, torch.tensor(objectives).double(), one)

    far = lead(found(1.0, 2.0, 2.0, 2.0))
    assert far == pytest.approx(math.log(2) / 0.15)
    assert lead(found(2.0, 1.0, 2.0, 2.0)) == pytest.approx(far)
    assert lead(found(1.0, 2.0, 4.0, 8.0)) < far / 2
    assert lead(found(1.0, 1.0, 2.0, 2.0)) == 0
    assert lead(found(1.0, 2.0)) == pytest.approx(far)  # of two classes there is no scatter


def test_masks_of_large_images_weigh_less_in_proportion_to_their_area() -> None:
    assert mask_weight(28 * 28) == mask_weight(32 * 32) == 0.02
    assert mask_weight(64 * 64) == pytest.approx(0.005)


def test_images_made_from_the_network_are_not_taken_for_real_ones() -> None:
    classifier = SmallCNN(image_shape=(1, 16, 16), width=0.25)
    initialise_classifier(classifier, torch.Generator().manual_seed(0))
    classifier.eval().requires_grad_(False)
    images = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    effort = ClassifierEffort("quick", 6, 1, 1, 2, 1, 1, 2, 2, 2)
    shown = Exemplars(images, classifier(images).argmax(1))

    def said(given: torch.Tensor | None) -> str:
        full = ClassifierBench(classifier, effort, 0, given=given, exemplars=shown)
        return placebo_ratio.inspect(VariantBench(full, compressor("int4"))).summary

    made = "images made from the network, which may wake a backdoor themselves (--data"
    assert f"of the answers stay on 6 {made}" in said(None)
    assert "of the answers stay on 6 images given;" in said(images)


@pytest.mark.parametrize("movement", [MOST_MOVEMENT + 0.01, math.inf, math.nan])
def test_where_no_clean_network_was_measured_a_gap_is_not_judged(movement: float) -> None:
    gaps = torch.tensor([0.1, 5.0, 0.0, -0.1])
    assert _judged(gaps, 0.3, "1 placebo", "")["p_value"] < 1e-3
    blind = _judged(gaps, movement, "1 placebo", "")
    assert "p_value" not in blind
    assert "known up to" in blind["p_value_reason"]


def test_a_gap_is_not_judged_where_placebos_are_no_stand_ins() -> None:
    gaps = torch.tensor([0.1, 5.0, 0.0, -0.1])
    blind = _judged(gaps, 0.3, "1 placebo", "whole filters go")
    assert "p_value" not in blind
    assert "whole filters go" in blind["p_value_reason"]
