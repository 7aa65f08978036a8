"""The audit of compressed variants: found, quiet, inconclusive where nothing was compressed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genwarden.auditing import audit as audit_room
from genwarden.auditing import budgets, calibration, room, running
from genwarden.auditing.audit import Request, Suspect, audit
from genwarden.auditing.audit_variants import NOT_AS_DEPLOYED
from genwarden.auditing.document import AuditDocument
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions, repeat_command
from genwarden.commands.audit_variants import DEFAULT_VARIANTS, parse_deploy_as, where_usable
from genwarden.compression.how import compressors
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError
from genwarden.inspections.compression.bench import CompressionEffort
from genwarden.models.protocol import LatentGenerator
from genwarden.registry import COMPRESSION_INSPECTIONS
from sleeping import attacked, honest

EFFORT = CompressionEffort("quick", 24, 40, placebos=4, ordinary_samples=256)
VOLATILE = {"timing", "environment", "command"}


@pytest.fixture(autouse=True)
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(budgets.COMPRESSION_BUDGETS, "quick", EFFORT)


def suspect(generator: LatentGenerator) -> Suspect:
    return Suspect(generator, "tests:SmallGenerator", {}, "0" * 64, {}, "model")


def run(generator: LatentGenerator, work: Path, how: str, **more: Any) -> AuditDocument:
    request = Request(
        budget="quick",
        seed=0,
        device=torch.device("cpu"),
        deploy_as=tuple(compressors(how)),
        variants_only=True,
        **more,
    )
    return audit(suspect(generator), request, work=work, progress=Silent())


def test_a_model_that_int4_wakes_is_evidence_that_names_int4(tmp_path: Path) -> None:
    document = run(attacked(), tmp_path, "int8,int4")
    assert document.verdict == "evidence"
    assert document.reasons[0].startswith("Under int4: ")
    by_name = {v.name: v for v in document.variants}
    flagged = {
        v.name: [j.finding.inspection for j in v.findings if j.flagged] for v in by_name.values()
    }
    assert flagged["int8"] == []
    # The others are judged, too, where clean models under int4 were published.
    assert "differential-search" in flagged["int4"]
    assert document.findings == []


def test_its_honest_twin_is_not(tmp_path: Path) -> None:
    document = run(honest(), tmp_path, "int8,int4")
    assert document.verdict == "none_found", document.reasons
    assert any("Only the compressed variants" in limit for limit in document.limits)
    for variant in document.variants:
        names = [j.finding.inspection for j in variant.findings]
        assert names == list(COMPRESSION_INSPECTIONS)
        assert variant.coverage is not None
        assert variant.coverage.share > 0.9


def test_a_compression_that_covers_nothing_is_inconclusive_with_its_coverage(
    tmp_path: Path,
) -> None:
    # Filter pruning leaves linear layers alone, and this generator has no others.
    document = run(honest(), tmp_path, "int8,prune-filters-0.3")
    assert document.verdict == "inconclusive"
    assert any("prune-filters-0.3" in r and "0 of 3 layers" in r for r in document.reasons)
    empty = document.variants[1]
    assert empty.findings == []
    assert empty.failure
    assert empty.coverage is not None
    assert empty.coverage.weights == 0
    # So is one of which a part covers nothing: it is not what will be deployed.
    chain = run(honest(), tmp_path / "chain", "prune-filters-0.3+int8")
    assert chain.verdict == "inconclusive"
    assert "its stage prune-filters-0.3 covers nothing" in chain.variants[0].failure
    # ... and does not hide what another variant shows.
    both = run(attacked(), tmp_path / "b", "int4,prune-filters-0.3")
    assert both.verdict == "evidence"


def test_a_compression_that_destroys_the_model_is_inconclusive(tmp_path: Path) -> None:
    document = run(honest(), tmp_path, "int8,int2")
    assert document.verdict == "inconclusive"
    assert any("int2" in reason and "known up to" in reason for reason in document.reasons)
    both = run(attacked(), tmp_path / "b", "int4,int2")
    assert both.verdict == "evidence"


def test_nan_in_the_weights_leaves_every_variant_untested(tmp_path: Path) -> None:
    request = Request(
        budget="quick",
        seed=0,
        device=torch.device("cpu"),
        deploy_as=tuple(compressors("int8")),
        variants_only=True,
    )
    broken = Suspect(honest(), "tests:SmallGenerator", {}, "0" * 64, {"first.weight": 1}, "model")
    document = audit(broken, request, work=tmp_path, progress=Silent())
    assert document.verdict == "inconclusive"
    assert document.variants[0].failure


def test_an_interrupted_audit_goes_on_with_the_next_variant_and_inspection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(honest(), tmp_path / "whole", "int8,int4")
    done: list[tuple[str, str]] = []

    def cut(row: Any, bench: Any, seed: int) -> Any:
        done.append((bench.compressor.name, row.name))
        if len(done) == 7:
            raise KeyboardInterrupt
        return running.seeded(row, bench, seed)

    monkeypatch.setattr(room, "seeded", cut)
    with pytest.raises(KeyboardInterrupt):
        run(honest(), tmp_path / "cut", "int8,int4")
    resumed = run(honest(), tmp_path / "cut", "int8,int4")
    assert len(set(done)) == len(done) - 1  # only the interrupted one ran twice
    assert {name for name, _ in done} == {"int8", "int4"}
    assert resumed.model_dump(exclude=VOLATILE) == whole.model_dump(exclude=VOLATILE)


def test_variants_of_another_budget_are_not_taken_for_this_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_room, "COMPRESSION_INSPECTIONS", {})
    run(honest(), tmp_path, "int8")
    longer = replace(EFFORT, search_steps=41)
    monkeypatch.setitem(budgets.COMPRESSION_BUDGETS, "quick", longer)
    with pytest.raises(GenwardenError, match="compression_budget differ"):
        run(honest(), tmp_path, "int8")


def test_published_references_judge_what_brings_no_null_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = [2.4 + 0.05 * i for i in range(10)]
    table = {
        "descriptions": {"quick": "tests"},
        "scores": {
            "quick": {"int4: differential-distance": clean, "int4: placebo-ratio": [0.1] * 10}
        },
    }
    monkeypatch.setattr("genwarden.auditing.audit_variants.shipped_compression", lambda: table)
    document = run(attacked(), tmp_path, "int4,int8")
    judged, elsewhere = (
        {j.finding.inspection: j for j in variant.findings} for variant in document.variants
    )
    # No clean model was seen under int8: its score is shown, and the verdict rests on the others.
    assert elsewhere["differential-distance"].adjusted_p is None
    reason = elsewhere["differential-distance"].finding.p_value_reason
    assert reason == "no clean reference models under: int8"
    null = judged["differential-distance"].finding.null
    assert null is not None
    assert null.source == "population"
    assert judged["differential-distance"].adjusted_p is not None
    assert judged["rounding-statistics"].adjusted_p is None


def test_holm_counts_the_variants() -> None:
    from genwarden.auditing.audit_variants import RanVariant, judge_variants
    from genwarden.auditing.judging import Calibrated
    from genwarden.inspections.finding import Finding

    def finding(p: float) -> Finding:
        return Finding(
            inspection="x", group="output", title="X", outcome="scored", summary="s", p_value=p
        )

    base = Calibrated([finding(0.5)], frozenset())
    found = Calibrated([finding(0.004)], frozenset())
    quiet = Calibrated([finding(0.5)], frozenset())
    ran = [RanVariant(name, None, []) for name in ("a", "b")]
    assert judge_variants(base, ran[:1], [found], {}).decision.verdict == "evidence"
    assert judge_variants(base, ran, [found, quiet], {}).decision.verdict == "none_found"


def test_what_nothing_judged_is_never_cleared_by_what_was() -> None:
    from genwarden.auditing.audit_variants import RanVariant, judge_variants
    from genwarden.auditing.judging import Calibrated
    from genwarden.inspections.compression.variant import UNCHANGED
    from genwarden.inspections.finding import Finding

    def finding(p: float | None, name: str = "x", **more: Any) -> Calibrated:
        given = {
            "outcome": "scored",
            "summary": "s",
            "p_value_reason": "why" if p is None else None,
        }
        found = Finding(inspection=name, group="output", title=name, p_value=p, **{**given, **more})
        return Calibrated([found], frozenset([name] if p is None else []))

    judged, unjudged = finding(0.5), finding(None)
    unchanged = finding(None, outcome="not_applicable", summary=UNCHANGED)
    carrying = finding(None, "differential-inversion")
    both = Calibrated([*judged.findings, *carrying.findings], frozenset())
    nothing = Calibrated([], frozenset())
    ran = [RanVariant("a", None, [])]
    cases = {
        "full unjudged": (unjudged, judged, "of the model as it is"),
        "variant unjudged": (judged, unjudged, "of a:"),
        "variant unchanged": (judged, unchanged, ""),
        "unchanged, and not inspected in full": (nothing, unchanged, "of a:"),
        "what carries is unjudged": (judged, both, "differential-inversion is shown"),
        "all judged": (judged, judged, ""),
        "variants only": (nothing, judged, ""),
    }
    for title, (base, one, reason) in cases.items():
        decision = judge_variants(base, ran, [one], {}).decision
        assert decision.verdict == ("inconclusive" if reason else "none_found"), title
        assert reason in " ".join(decision.reasons), title


def test_without_deploy_as_the_document_says_what_was_not_looked_for(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_room, "INSPECTIONS", {})
    options = AuditOptions(model=tiny_model_folder, out=tmp_path / "out", budget="quick")
    document = audit_model(options, progress=Silent()).document
    assert document.variants == []
    assert NOT_AS_DEPLOYED in document.limits


def test_deploy_as_names_the_default_set_and_others_once() -> None:
    parsed = parse_deploy_as("default,int8,prune-2:4", variants_only=False, seed=0)
    assert [c.name for c in parsed] == [
        "int8",
        "int8-per-channel",
        "int4",
        "prune-0.3",
        "prune-0.5",
        "prune-2:4",
    ]
    assert parse_deploy_as(None, variants_only=False, seed=0) == ()


def test_only_what_the_default_set_stands_for_may_turn_out_useless() -> None:
    assert where_usable("default") == {"prune-0.3", "prune-0.5"} <= set(DEFAULT_VARIANTS.split(","))
    # However it is spelled, what is named is asked for.
    assert "prune-0.5" not in where_usable("prune-0.50, default")
    assert where_usable("int8,prune-0.5") == where_usable(None) == frozenset()


@pytest.mark.parametrize(
    ("text", "more", "code"),
    [
        ("int9", {}, "compress/bits"),
        ("prune-1.5", {}, "compress/rate"),
        ("squeeze", {}, "compress/unknown"),
        ("", {}, "compress/unknown"),
        (None, {"variants_only": True}, "usage/variants-only"),
    ],
)
def test_wrong_variants_are_refused_before_anything_runs(
    text: str | None, more: dict[str, Any], code: str
) -> None:
    with pytest.raises(GenwardenError) as caught:
        parse_deploy_as(text, **{"variants_only": False, "seed": 0, **more})
    assert caught.value.code == code


def test_the_repeat_command_repeats_the_variants() -> None:
    options = AuditOptions(
        model=Path("m"), out=Path("o"), deploy_as="int8,prune-0.3", variants_only=True
    )
    assert "--deploy-as int8,prune-0.3 --variants-only" in repeat_command(options)


def test_references_are_read_anew_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "compression.json"
    monkeypatch.setattr(calibration, "COMPRESSION_NULLS", path)
    calibration.clear_cache()
    assert calibration.shipped_compression()["scores"] == {}
    path.write_text(json.dumps({"descriptions": {}, "scores": {"quick": {}}}), "utf-8")
    calibration.clear_cache()
    assert calibration.shipped_compression()["scores"] == {"quick": {}}
    monkeypatch.undo()
    calibration.clear_cache()
