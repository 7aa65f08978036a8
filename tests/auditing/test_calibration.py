"""Population p-values: calibrated, cautious with few references, never invented."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.special import stdtr

from genwarden.auditing import calibration
from genwarden.auditing.calibration import (
    MIN_REFERENCES,
    calibrate,
    exponential_p,
    predictive_p,
)
from genwarden.inspections.finding import Finding
from genwarden.registry import INSPECTIONS
from genwarden.reports.words import assumption


def scored(score: float, name: str = "novelty-search") -> Finding:
    return Finding(
        inspection=name,
        group="output",
        title="t",
        outcome="scored",
        summary="s",
        score=score,
        p_value_reason="needs the scores of clean reference models",
    )


@pytest.fixture
def references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    clean = [0.1 * i for i in range(12)]
    path = tmp_path / "nulls.json"
    path.write_text(
        json.dumps(
            {"descriptions": {"quick": "test"}, "scores": {"quick": {"novelty-search": clean}}}
        )
    )
    monkeypatch.setattr(calibration, "NULLS", path)
    calibration.clear_cache()
    yield clean
    calibration.clear_cache()


def test_few_scores_that_happen_to_agree_are_judged_by_the_spread_under_other_conditions() -> None:
    wide = [float(v) for v in torch.linspace(-1.5, 1.5, 9)]
    scores = {
        "int8: placebo-ratio": [0.01 * i for i in range(9)],
        "int4: placebo-ratio": wide,
        "prune-0.3: placebo-ratio": wide,
        "int4: differential-distance": [100.0 * v for v in wide],
        "nf4: placebo-ratio": [1000.0, -1000.0],  # too few to be believed
    }
    table = {"descriptions": {}, "scores": {"quick": scores}}
    finding = Finding(
        inspection="placebo-ratio",
        group="compression",
        title="x",
        outcome="scored",
        summary="x",
        score=1.0,
    )

    def p(how: str) -> float:
        found = calibrate(finding, "quick", table, condition=how).p_value
        assert found is not None
        return found

    close, alone = p("int8"), predictive_p(1.0, scores["int8: placebo-ratio"])
    assert alone < 1e-6 < 0.05 < close < 0.2
    # Where the own scores are as wide as the others', nothing changes, and never becomes sharper.
    assert p("int4") == predictive_p(1.0, wide)
    assert predictive_p(1.0, wide, prior_variance=1e-9) == predictive_p(1.0, wide)


def test_the_exponential_law_is_uniform_for_new_gaps_and_keeps_a_normal_one_from_alarm() -> None:
    """Gaps reach far: a normal law beside them takes some for evidence."""
    stream = torch.Generator().manual_seed(0)
    draws = -torch.rand(4000, 18, generator=stream).clamp_min(1e-9).log()
    p = torch.tensor([exponential_p(row[0], row[1:]) for row in draws.tolist()])
    normal = torch.tensor([predictive_p(row[0], row[1:]) for row in draws.tolist()])
    for level in (0.5, 0.1, 0.01):
        assert float((p < level).double().mean()) == pytest.approx(level, abs=0.006 + 0.05 * level)
    assert float((normal < 1e-3).double().mean()) > 5 * float((p < 1e-3).double().mean())
    assert exponential_p(0.0, [0.1] * 9) == 1
    assert exponential_p(0.3, [0.0] * 9) > 1e-9  # gaps of clean models are at least 0.05 on average


def test_the_lead_of_a_class_is_judged_by_the_law_of_gaps() -> None:
    clean = [0.05, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.8, 1.1]
    table = {"descriptions": {}, "scores": {"quick": {"int4: guarded-lead": clean}}}
    found = calibration.against_clean("guarded-lead", 2.0, "quick", table, condition="int4")
    assert found is not None
    assert found.p_value == exponential_p(2.0, clean)
    assert "exponential prediction" in found.null.description
    assert assumption(found.null).endswith("assuming an exponential prediction")
    # Beside one another, gaps of honest models are compared where they are nearly normal.
    gaps = (-torch.rand(4000, generator=torch.Generator().manual_seed(1)).log()).tolist()
    values = torch.tensor(calibration.on_scale("guarded-lead", gaps).values)
    skewness = float(((values - values.mean()) / values.std()).pow(3).mean())
    assert abs(skewness) < 0.25


def test_predictive_p_is_uniform_for_new_clean_draws() -> None:
    stream = torch.Generator().manual_seed(0)
    draws = torch.randn(4000, 11, generator=stream).tolist()
    p = torch.tensor([predictive_p(row[0], row[1:]) for row in draws])
    for level in (0.01, 0.05, 0.2, 0.5):
        assert abs(float((p < level).float().mean()) - level) < 0.025


def test_fewer_references_give_a_more_cautious_p_value() -> None:
    few, many = [0.0, 1.0] * 4, [0.0, 1.0] * 20
    assert predictive_p(5.0, few) > 10 * predictive_p(5.0, many)


def test_equal_references_do_not_make_a_tiny_deviation_significant() -> None:
    assert predictive_p(1.02, [1.0] * 10) > 0.1


def test_high_score_gets_a_small_p_and_a_clean_score_a_large_one(references: list[float]) -> None:
    high = calibrate(scored(8.0), "quick")
    assert high.p_value is not None
    assert high.p_value < 1e-4
    assert high.p_value_reason is None
    assert high.null is not None
    assert high.null.values == pytest.approx(references)
    usual = calibrate(scored(0.5), "quick")
    assert usual.p_value is not None
    assert usual.p_value > 0.3


def test_inspection_without_enough_references_keeps_no_p_value(references: list[float]) -> None:
    assert len(references) >= MIN_REFERENCES
    unknown = calibrate(scored(99.0, "other"), "quick")
    assert unknown.p_value is None
    assert unknown.p_value_reason


def test_finding_with_its_own_null_is_left_alone(references: list[float]) -> None:
    del references
    own = scored(8.0).model_copy(update={"p_value": 0.4})
    assert calibrate(own, "quick").p_value == 0.4


def test_published_references_cover_the_uncalibrated_inspections() -> None:
    table = calibration.read_table(calibration.NULLS)
    quick = table["scores"]["quick"]
    judged = [name for name in INSPECTIONS if calibration.needs_population(name)]
    assert len(judged) >= 6
    for name in judged:
        assert len(quick[name]) >= MIN_REFERENCES, name


def test_inspection_that_is_shown_and_never_judged_gets_no_p_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "nulls.json"
    table = {"descriptions": {"quick": "test"}, "scores": {"quick": {"capacity": [0.2, 1.0] * 8}}}
    path.write_text(json.dumps(table))
    monkeypatch.setattr(calibration, "NULLS", path)
    calibration.clear_cache()
    try:
        assert calibrate(scored(9.0, "capacity"), "quick").p_value is None
    finally:
        calibration.clear_cache()


def test_score_over_many_targets_is_corrected_for_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "nulls.json"
    clean = [0.1 * i for i in range(12)]
    table = {"descriptions": {"quick": "test"}, "scores": {"quick": {"reconstruct-target": clean}}}
    path.write_text(json.dumps(table))
    monkeypatch.setattr(calibration, "NULLS", path)
    calibration.clear_cache()
    one, ten = (
        calibrate(
            scored(2.0, "reconstruct-target").model_copy(update={"budget": {"targets": n}}), "quick"
        ).p_value
        for n in (1, 10)
    )
    calibration.clear_cache()
    assert one is not None
    assert ten == pytest.approx(10 * one)


def test_a_score_is_compared_with_its_own_shape_and_the_spread_of_all() -> None:
    small, large = (
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
        [5.0, 5.1, 5.2, 5.3, 5.4, 5.5, 5.6, 5.7],
    )
    table: dict[str, Any] = {
        "descriptions": {"quick": "both"},
        "families": [["unet2d", [1, 8, 8], 8], ["unet2d", [1, 16, 16], 8]],
        "scores": {"quick": {"trigger-search": [*small, *large]}},
        "groups": {"quick": {"trigger-search": {"1x8x8": small, "1x16x16": large}}},
    }

    def p(score: float, shape: tuple[int, ...]) -> float:
        found = calibration.against_clean(
            "trigger-search", score, "quick", table, sample_shape=shape
        )
        assert found is not None
        return found.p_value

    # 3 is far above the small models and far below the large ones.
    assert p(3.0, (1, 8, 8)) < 1e-7
    assert p(3.0, (1, 16, 16)) > 0.99
    assert 0.4 < p(3.0, (1, 32, 32)) < 0.6  # no group: all together, as far as that may judge
    # Both groups have the same spread: the t is that of one, the degrees of freedom are those of
    # both.
    spread = (sum((x - 0.35) ** 2 for x in small) / 7) ** 0.5
    t = (1.2 - 0.35) / (spread * (1 + 1 / 8) ** 0.5)
    assert p(1.2, (1, 8, 8)) == pytest.approx(float(stdtr(14, -t)))
    assert p(1.2, (1, 8, 8)) < calibration.predictive_p(1.2, small)
    # Where the own group spreads more than the others, it counts half.
    wide = [4 * x for x in small]
    t = (4.5 - 1.4) / ((spread**2 * (16 + 8.5) / 2) ** 0.5 * (1 + 1 / 8) ** 0.5)
    table["groups"]["quick"]["trigger-search"] = {"1x8x8": wide, "1x16x16": large}
    assert p(4.5, (1, 8, 8)) == pytest.approx(float(stdtr(14, -t)))
    # Too few of its own: those of another shape do not stand in.
    table["groups"]["quick"]["trigger-search"]["1x8x8"] = small[:6]
    few = calibration.references("trigger-search", "quick", table, sample_shape=(1, 8, 8))
    assert few.values == []
