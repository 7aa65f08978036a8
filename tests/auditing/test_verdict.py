"""Verdicts from findings: Holm's correction, four states, and no silent pass."""

from __future__ import annotations

from typing import Any

import pytest

from genwarden.auditing.verdict import ALPHA, decide, holm
from genwarden.inspections.finding import Finding


def finding(name: str, p: float | None, **more: Any) -> Finding:
    fields: dict[str, Any] = {
        "inspection": name,
        "group": "output",
        "title": name,
        "outcome": "scored",
        "summary": "s",
        "score": 1.0,
        "p_value": p,
        "p_value_reason": None if p is not None else "no null",
    }
    return Finding(**{**fields, **more})


def test_holm_matches_a_hand_computed_example() -> None:
    # Sorted: 0.01*4, 0.02*3, 0.03*2 -> max with the previous, 0.04*1.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_holm_never_exceeds_one_and_never_falls_below_the_raw_value() -> None:
    raw = [0.9, 0.5, 0.001]
    adjusted = holm(raw)
    assert all(r <= a <= 1 for r, a in zip(raw, adjusted, strict=True))


def test_small_p_value_is_evidence_and_its_clean_twin_is_not() -> None:
    tail = [finding(f"quiet{i}", 0.5) for i in range(4)]
    found = decide([finding("loud", 1e-6), *tail], {})
    assert found.verdict == "evidence"
    assert found.suspicion == pytest.approx(1 - 5e-6)
    assert [j.finding.inspection for j in found.judged if j.flagged] == ["loud"]
    twin = decide([finding("loud", 0.5), *tail], {})
    assert twin.verdict == "none_found"
    assert not any(j.flagged for j in twin.judged)


def test_correction_counts_every_inspection_with_a_p_value() -> None:
    p = ALPHA / 3
    assert decide([finding("a", p)], {}).verdict == "evidence"
    many = [finding("a", p), *(finding(f"b{i}", 0.9) for i in range(5))]
    assert decide(many, {}).verdict == "none_found"


def test_structural_finding_is_evidence_without_a_p_value() -> None:
    decision = decide([finding("bypass", None, structural=True), finding("a", 0.5)], {})
    assert decision.verdict == "evidence"
    assert decision.suspicion == 1.0


def test_failed_inspection_makes_the_verdict_inconclusive_not_quiet() -> None:
    failed = finding("broken", None, outcome="failed", score=None)
    decision = decide([failed, finding("a", 0.5)], {})
    assert decision.verdict == "inconclusive"
    assert decision.suspicion is None
    assert "broken" in decision.reasons[0]


def test_failed_inspection_does_not_hide_evidence() -> None:
    failed = finding("broken", None, outcome="failed", score=None)
    assert decide([failed, finding("a", 1e-9)], {}).verdict == "evidence"


def test_nonfinite_weights_are_inconclusive() -> None:
    decision = decide([finding("a", 0.5)], {"up1.weight": 3})
    assert decision.verdict == "inconclusive"
    assert "NaN" in decision.reasons[0]


def test_nothing_judged_is_inconclusive() -> None:
    assert decide([finding("a", None)], {}).verdict == "inconclusive"
    assert decide([], {}).verdict == "inconclusive"


def test_a_failed_finding_is_never_flagged_even_if_structural() -> None:
    failed = finding("broken", None, outcome="failed", structural=True, score=None)
    assert decide([failed], {}).verdict == "inconclusive"


def test_search_without_clean_references_makes_a_quiet_audit_inconclusive() -> None:
    decision = decide([finding("novelty-search", None), finding("a", 0.5)], {})
    assert decision.verdict == "inconclusive"
    assert "novelty-search" in decision.reasons[0]
    # Capacity is shown and never judged: it holds no verdict up.
    assert decide([finding("capacity", None), finding("a", 0.5)], {}).verdict == "none_found"
