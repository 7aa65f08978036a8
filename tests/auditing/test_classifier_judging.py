"""How scores of compressed classifiers are judged."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from classifier_audits import HOW, SHORT, audit
from genwarden.auditing.audit_classifier import (
    judged_by_references,
)
from genwarden.auditing.audit_variants import Judgement, RanVariant, judge_variants
from genwarden.auditing.budgets import CLASSIFIER_BUDGETS
from genwarden.auditing.calibration import references, shipped_classifiers, uncalibrated
from genwarden.auditing.fit import condition_of
from genwarden.auditing.judging import Calibrated
from genwarden.compression.apply import Coverage
from genwarden.compression.how import compressor, compressors
from genwarden.data.datasets import to_unit_range
from genwarden.inspections.classifier.bench import ClassifierBench, VariantBench
from genwarden.inspections.classifier.differential_inversion import inspect_lead, lead
from genwarden.inspections.classifier.inversion import Blind
from genwarden.inspections.compression.variant import UNCHANGED
from genwarden.inspections.finding import Finding, not_applicable
from genwarden.models.classifiers.protocol import ImageClassifier
from glyph_task import GlyphTask


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLASSIFIER_BUDGETS, "quick", SHORT)


def variant_of(task: GlyphTask, how: str) -> VariantBench:
    full = ClassifierBench(
        classifier=task.copy().classifier,
        effort=SHORT,
        seed=0,
        device=torch.device("cpu"),
        given=to_unit_range(task.test_images),
    )
    return VariantBench(full, compressor(how))


def test_the_lead_is_that_of_the_network_as_it_is_and_not_under_filter_pruning(
    woken: GlyphTask,
) -> None:
    rounded = variant_of(woken, HOW)
    found = inspect_lead(rounded)
    assert found.score == pytest.approx(lead(rounded.guarded_differential))
    assert found.score != pytest.approx(lead(rounded.differential), rel=0.01)
    assert inspect_lead(variant_of(woken, "prune-0.3")).outcome == "scored"
    filters = inspect_lead(variant_of(woken, "prune-filters-0.3"))
    assert filters.outcome == "not_applicable"
    assert "whole filters go" in filters.summary


def test_guards_take_away_what_any_errors_of_the_size_do(woken: GlyphTask) -> None:
    """A placebo separates from the full network as an honest variant does; guarded, less easily."""
    variant = variant_of(woken, HOW)
    guards = [variant.placebo(number) for number in range(1, 9)]

    def dearer(network: ImageClassifier) -> float:
        """By which factor guards raise the objective of the easiest class."""
        bare, guarded = (
            variant.alone.invert(
                network, title="test", blind=Blind(variant.classifier, used), seed=1
            ).objective.min()
            for used in ((), guards)
        )
        return float(guarded / bare)

    assert dearer(variant.compressed) < 1.15 < dearer(variant.placebo(0))


def test_the_lead_is_judged_by_classifiers_of_as_many_classes() -> None:
    """The easier of two classes leads the other by far more than the easiest of ten the next."""
    effort = CLASSIFIER_BUDGETS["quick"]
    condition = condition_of(HOW, given=effort.images, wanted=effort.images)
    table = shipped_classifiers()
    clean = references("guarded-lead", "quick", table, condition=condition).values
    finding = Finding(
        inspection="guarded-lead",
        group="classifier",
        title="Lead",
        outcome="scored",
        summary="",
        score=1.0 + max(clean),
        p_value_reason="needs the scores of clean reference models",
    )
    p = {}
    for classes in (2, 10):
        judged = judged_by_references(
            HOW, [finding], "small-cnn", classes, (1, 16, 16), given=effort.images, effort=effort
        )
        p[classes] = judged.findings[0].p_value
        assert ("guarded-lead" in judged.unfit) is (classes == 2)
    assert p[2] is None
    assert p[10] is not None
    assert p[10] < 0.01


def scored(inspection: str, score: float, **more: Any) -> Finding:
    return Finding(
        inspection=inspection,
        group="classifier",
        title=inspection,
        outcome="scored",
        summary="",
        score=score,
        **{"p_value_reason": "needs the scores of clean reference models", **more},
    )


def judged_int4(
    *findings: Finding,
    table: dict[str, Any] | None = None,
    beside: Sequence[Finding] = (),
    where_usable: Collection[str] = (),
) -> Judgement:
    """What an audit of int4 says of these findings, alone or with int8 ``beside`` it."""
    effort = CLASSIFIER_BUDGETS["quick"]
    found = {
        how: judged_by_references(
            how,
            under,
            "small-cnn",
            10,
            (1, 16, 16),
            given=effort.images,
            effort=effort,
            table=table,
        )
        for how, under in ((HOW, findings), ("int8", beside))
        if under
    }
    coverage = Coverage(("a",), (), 1, 1)
    ran = [RanVariant(how, coverage, list(one.findings)) for how, one in found.items()]
    nothing = Calibrated([], frozenset())
    return judge_variants(nothing, ran, [*found.values()], {}, where_usable=where_usable)


def test_each_score_is_tested_once_and_what_found_nothing_is_shown() -> None:
    alarming = {"p_value": 1e-12, "p_value_reason": None}
    findings = (
        scored("neural-cleanse", 9.0, **alarming),
        scored("differential-inversion", 0.1, p_value=0.5, p_value_reason=None),
        scored("differential-gap", 0.1, follows_from="differential-inversion"),
        scored("guarded-lead", 0.1),
        scored("logit-shift", 99.0),
    )
    judged = judged_int4(*findings)
    assert judged.decision.verdict == "none_found"
    tested = {j.finding.inspection for j in judged.variants[0].findings if j.adjusted_p is not None}
    assert tested == {"differential-gap", "guarded-lead"}
    # Stored and judged again without references, the own null of the search speaks.
    stored = [uncalibrated(j.finding) for j in judged.variants[0].findings]
    alone = judged_int4(*stored, table={"descriptions": {}, "scores": {}})
    assert alone.decision.verdict == "none_found"
    tested = {j.finding.inspection for j in alone.variants[0].findings if j.adjusted_p is not None}
    assert tested == {"differential-inversion"}


def test_where_damage_leaves_one_score_it_may_be_evidence_and_clears_nothing() -> None:
    """Whoever gives a second class a backdoor as easy takes the lead away, and no gap is left."""
    damage = "Compressed, it keeps 60% of its answers."
    left_out = [
        not_applicable("differential-inversion", "classifier", "Trigger", damage),
        not_applicable("differential-gap", "classifier", "Trigger", damage),
    ]
    quiet = judged_int4(*left_out, scored("guarded-lead", 0.1))
    assert quiet.decision.verdict == "inconclusive"
    assert f"Too little is known of {HOW}: {damage}" in quiet.decision.reasons
    assert judged_int4(*left_out, scored("guarded-lead", 99.0)).decision.verdict == "evidence"
    # Of what the default set stands for it is said that it is not covered, beside what is.
    whole = [scored("differential-gap", 0.1), scored("guarded-lead", 0.1)]
    beside = judged_int4(*left_out, scored("guarded-lead", 0.1), beside=whole, where_usable=(HOW,))
    assert beside.decision.verdict == "none_found"
    assert f"Not covered is {HOW}: {damage}" in beside.decision.reasons
    alone = judged_int4(*left_out, scored("guarded-lead", 0.1), where_usable=(HOW,))
    assert alone.decision.verdict == "inconclusive"
    # What changes nothing is another matter: the model as it is speaks for it.
    same = judged_int4(
        not_applicable("differential-inversion", "classifier", "Trigger", UNCHANGED),
        scored("guarded-lead", 0.1),
    )
    assert not any(HOW in reason for reason in same.decision.reasons)


def test_references_of_the_gap_do_not_speak_for_errors_that_are_too_large() -> None:
    reason = "errors of this size move the logits by 0.90 of their spread"
    judged = judged_int4(
        scored("differential-inversion", 0.1, p_value_reason=reason),
        scored("differential-gap", 0.1, follows_from="differential-inversion"),
        scored("guarded-lead", 0.1),
    )
    assert judged.decision.verdict == "inconclusive"
    assert reason in " ".join(judged.decision.reasons)


def test_what_clean_models_judge_is_higher_where_compression_wakes_a_backdoor(
    woken: GlyphTask, glyph_task: GlyphTask, tmp_path: Path
) -> None:
    """No clean model of the tests' network is shipped, so scores stand for p-values here."""
    names = ("differential-gap", "guarded-lead")
    scores = {}
    for name, task in (("woken", woken), ("clean", glyph_task)):
        document = audit(
            task.copy().classifier,
            tmp_path / name,
            images=to_unit_range(task.test_images),
            deploy_as=tuple(compressors(HOW)),
            only=names,
            variants_only=True,
        )
        (variant,) = document.variants
        scores[name] = {j.finding.inspection: j.finding.score for j in variant.findings}
    for name in names:
        attacked, clean = scores["woken"][name], scores["clean"][name]
        assert attacked is not None
        assert clean is not None
        assert attacked > clean + 0.5, name
