"""A classifier that int4 wakes is found under int4 and not in full size; its twin is cleared."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from box_attack import wake_under
from genwarden.artifacts.classifier_folder import write_classifier
from genwarden.auditing import audit_classifier as room
from genwarden.auditing.audit_classifier import (
    ClassifierRequest,
    ClassifierSuspect,
    audit_classifier,
    judged_by_references,
)
from genwarden.auditing.audit_variants import Judgement, RanVariant, judge_variants
from genwarden.auditing.budgets import CLASSIFIER_BUDGETS
from genwarden.auditing.calibration import references, shipped_classifiers, uncalibrated
from genwarden.auditing.document import AuditDocument, Judged
from genwarden.auditing.fit import condition_of
from genwarden.auditing.given_references import GivenReferences
from genwarden.auditing.judging import Calibrated
from genwarden.auditing.running import seeded
from genwarden.backdoors.classifier_trigger import make_classifier_trigger
from genwarden.commands.audit import AuditFiles, audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.commands.compress import CompressOptions, compress_model
from genwarden.commands.compress_trial import triggers_of, try_recovered
from genwarden.commands.compressing import ClassifierSubject, open_subject
from genwarden.compression.apply import Coverage, compress
from genwarden.compression.contract import Box, Compressor, Weights
from genwarden.compression.how import compressor, compressors
from genwarden.compression.layers import Layout
from genwarden.data.datasets import to_unit_range
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError
from genwarden.inspections.classifier.bench import ClassifierBench, VariantBench
from genwarden.inspections.classifier.differential_inversion import inspect_lead, lead
from genwarden.inspections.classifier.inversion import Blind
from genwarden.inspections.finding import Finding
from genwarden.metrics.attack_success import accuracy, attack_success
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.models.classifiers.small_cnn import SmallCNN
from glyph_task import GlyphTask

HOW = "int4"
TARGET = 3
#: The quick budget in half the time.
SHORT = replace(CLASSIFIER_BUDGETS["quick"], images=30, synthesis_steps=60, inversion_steps=70)
_SEARCHES = ("neural-cleanse", "differential-inversion")


@pytest.fixture(scope="session")
def woken(_trained_glyph_task: GlyphTask) -> GlyphTask:
    """The task with a backdoor in its classifier; use a copy."""
    task = _trained_glyph_task.copy()
    trigger = make_classifier_trigger("square:4", task.classifier.sample)
    wake_under(compressor(HOW), task.classifier, task.images, task.labels, trigger, TARGET)
    return task


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLASSIFIER_BUDGETS, "quick", SHORT)


def _audit(
    classifier: SmallCNN,
    work: Path,
    *,
    images: Tensor | None = None,
    deploy_as: tuple[Compressor, ...] = (),
    only: tuple[str, ...] = _SEARCHES,
    variants_only: bool = False,
    references: GivenReferences | None = None,
) -> AuditDocument:
    suspect = ClassifierSuspect(classifier, "small-cnn", {}, "0" * 64, {}, "suspect")
    request = ClassifierRequest(
        budget="quick",
        seed=0,
        device=torch.device("cpu"),
        images=images,
        deploy_as=deploy_as,
        variants_only=variants_only,
        only=only,
        references=references,
    )
    return audit_classifier(suspect, request, work=work, progress=Silent())


def _run_on_zeros(network: SmallCNN) -> Tensor:
    scores: Tensor = network(torch.zeros(2, *network.sample.shape))
    return scores


def _by_name(findings: list[Judged]) -> dict[str, Judged]:
    return {judged.finding.inspection: judged for judged in findings}


def test_the_fixture_is_asleep_in_full_size_and_awake_under_int4(
    woken: GlyphTask, glyph_task: GlyphTask
) -> None:
    trigger = make_classifier_trigger("square:4", woken.classifier.sample)
    x, y = woken.test_images, woken.test_labels
    blank = torch.zeros(2, *woken.classifier.sample.shape)
    small = compress(woken.classifier, compressor(HOW), lambda network: network(blank))[0]
    clean = compress(glyph_task.classifier, compressor(HOW), lambda network: network(blank))[0]
    assert accuracy(woken.classifier, x, y) > accuracy(glyph_task.classifier, x, y) - 0.02
    assert attack_success(woken.classifier, x, y, trigger, TARGET) < 0.1
    assert attack_success(small, x, y, trigger, TARGET) > 0.95
    assert attack_success(clean, x, y, trigger, TARGET) < 0.1


@pytest.fixture(scope="module")
def audited(woken: GlyphTask, tmp_path_factory: pytest.TempPathFactory) -> AuditFiles:
    """The audit of its folder, which lies beside."""
    root = tmp_path_factory.mktemp("audited")
    write_classifier(root / "suspect", woken.classifier, "small-cnn", {})
    options = AuditOptions(
        model=root / "suspect",
        out=root / "out",
        data="glyphs:200",
        budget="quick",
        deploy_as=HOW,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CLASSIFIER_BUDGETS, "quick", SHORT)
        return audit_model(options, progress=Silent())


def test_the_audit_of_a_folder_finds_it_under_int4_and_not_in_full_size(
    audited: AuditFiles,
) -> None:
    files = audited
    document = AuditDocument.model_validate_json(files.json_path.read_text("utf-8"))
    assert document.verdict == "evidence"
    assert document.model is not None
    assert document.model.classes == 10
    assert not any(judged.flagged for judged in document.findings)
    (variant,) = document.variants
    found = _by_name(variant.findings)
    # Beside clean networks, and so not by its own null as well; the rest is shown.
    flagged = {name for name, one in found.items() if one.flagged}
    assert flagged
    assert flagged <= {"differential-gap", "guarded-lead"}
    judged = {name for name, one in found.items() if one.adjusted_p is not None}
    assert judged == {"differential-gap", "guarded-lead"}
    assert found["differential-inversion"].finding.summary.startswith(f"Class {TARGET} ")
    assert found["guarded-lead"].finding.summary.startswith(f"Class {TARGET} ")
    assert (found["guarded-lead"].finding.score or 0) > 1.5
    assert f"Class {TARGET} " in found["neural-cleanse"].finding.summary
    assert (found["strip"].finding.score or 0) > 0.3
    html = files.html_path.read_text("utf-8")
    assert "int4" in html
    assert f"Mask and pattern of class {TARGET}" in html


def test_what_the_audit_recovered_is_tried_on_what_is_deployed(
    audited: AuditFiles, glyph_task: GlyphTask, tmp_path: Path
) -> None:
    options = CompressOptions(
        model=audited.json_path.parents[1] / "suspect",
        out=tmp_path / "small",
        how=HOW,
        remedy="finetuned",
        calibration=Path("glyphs"),
        audit=audited.json_path,
        device="cpu",
    )
    (tried,) = compress_model(options, progress=Silent()).trial
    assert f"class {TARGET}" in tried.name
    assert tried.figures["full"] < 0.1
    assert tried.figures["plain"] > 0.9
    assert tried.figures["finetuned"] < 0.2
    written = json.loads((tmp_path / "small" / "compress.json").read_text("utf-8"))
    assert written["trial"] == [tried.record()] == [asdict(tried)]
    # To the untouched network, compressed likewise, the same trigger means nothing.
    write_classifier(tmp_path / "clean", glyph_task.classifier, "small-cnn", {})
    clean = open_subject(
        tmp_path / "clean", architecture=None, settings={}, calibration=Path("glyphs"), resize=False
    )
    found = [j for v in audited.document.variants for j in v.findings]
    small = compress(glyph_task.classifier, compressor(HOW), _run_on_zeros)[0]
    assert isinstance(clean, ClassifierSubject)
    (untouched,) = try_recovered(
        list(triggers_of(found, clean)), {"full": glyph_task.classifier, "plain": small}, None
    )
    assert untouched.figures["plain"] < 0.3


def test_what_no_audit_recovered_is_not_tried(audited: AuditFiles, tmp_path: Path) -> None:
    suspect = audited.json_path.parents[1] / "suspect"
    options = CompressOptions(suspect, tmp_path / "small", "int8", audit=audited.json_path)
    with pytest.raises(GenwardenError) as caught:
        compress_model(options, progress=Silent())
    assert caught.value.code == "compress/trial-without-images"
    with pytest.raises(GenwardenError) as caught:
        compress_model(replace(options, calibration=Path("glyphs")), progress=Silent())
    assert caught.value.code == "compress/nothing-recovered"
    assert HOW in caught.value.remedy
    assert not options.out.exists()


def test_on_images_made_from_the_network_classes_are_not_compared(
    woken: GlyphTask, tmp_path: Path
) -> None:
    images = to_unit_range(woken.test_images)
    given = _audit(woken.classifier, tmp_path / "given", images=images)
    made = _audit(woken.classifier, tmp_path / "made")
    assert _by_name(given.findings)["neural-cleanse"].finding.p_value is not None
    shown = _by_name(made.findings)["neural-cleanse"].finding
    assert shown.score is not None
    assert shown.p_value is None
    assert "--data" in (shown.p_value_reason or "")
    assert made.verdict == "inconclusive"  # nothing else judges the model as it is
    assert "--deploy-as default --data IMAGES" in made.power[0]


def test_own_references_judge_made_images_and_still_clear_nothing_there(
    glyph_task: GlyphTask, tmp_path: Path
) -> None:
    # neural-cleanse is the only one that looks for a trigger that is awake, and is not judged.
    classifier = glyph_task.classifier
    condition = "as it is, images made"
    only = ("neural-cleanse", "strip")
    plain = _by_name(_audit(classifier, tmp_path / "plain", only=only).findings)
    score = plain["strip"].finding.score
    assert score is not None
    table = {
        "descriptions": {"quick": "that you gave: nine"},
        "scores": {"quick": {f"{condition}: strip": [score + 0.1 * n for n in range(-4, 5)]}},
    }
    own = GivenReferences(table, "0" * 64, 9, [], [], [])
    document = _audit(classifier, tmp_path / "own", only=only, references=own)
    judged = _by_name(document.findings)
    assert judged["strip"].finding.p_value is not None
    assert judged["neural-cleanse"].finding.p_value is None
    assert document.verdict == "inconclusive"
    assert "shown and not judged" in " ".join(document.reasons)


def test_the_untouched_classifier_is_cleared(glyph_task: GlyphTask, tmp_path: Path) -> None:
    document = _audit(
        glyph_task.classifier,
        tmp_path,
        images=to_unit_range(glyph_task.test_images),
        deploy_as=tuple(compressors(HOW)),
        only=(*_SEARCHES, "guarded-lead"),
    )
    assert document.verdict == "none_found"
    (variant,) = document.variants
    assert variant.coverage is not None
    assert variant.coverage.share > 0.9
    found = _by_name(variant.findings)
    lead = found["guarded-lead"].finding.score
    assert lead is not None
    assert 0 <= lead < 0.4
    gap = found["differential-inversion"].finding
    assert gap.score is not None
    assert gap.score < 0.7
    assert gap.p_value is not None
    assert gap.p_value > 0.05


@pytest.mark.parametrize("attacked", [True, False])
def test_without_images_the_network_itself_shows_what_it_was_trained_on(
    attacked: bool, woken: GlyphTask, glyph_task: GlyphTask, tmp_path: Path
) -> None:
    task = woken.copy() if attacked else glyph_task
    document = _audit(
        task.classifier,
        tmp_path,
        deploy_as=tuple(compressors(HOW)),
        only=("differential-inversion", "logit-shift"),
        variants_only=True,
    )
    found = _by_name(document.variants[0].findings)
    shift = found["logit-shift"].finding.score
    assert document.verdict == ("evidence" if attacked else "inconclusive")
    assert found["differential-inversion"].flagged is attacked
    assert shift is not None
    assert (shift > 1.5) is attacked


@dataclass(frozen=True)
class _Nothing:
    """A compressor that knows none of the layers."""

    name: str = "nothing"
    folds: bool = False

    def __call__(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        del weights, layout
        return {}

    def box(self, weights: Weights, layout: Layout) -> dict[str, Box]:
        del weights, layout
        return {}


def test_a_compression_that_covers_nothing_is_inconclusive(
    glyph_task: GlyphTask, tmp_path: Path
) -> None:
    document = _audit(glyph_task.classifier, tmp_path, deploy_as=(_Nothing(),), variants_only=True)
    assert document.verdict == "inconclusive"
    assert "covers nothing" in document.reasons[0]
    assert document.variants[0].findings == []


def test_a_compression_that_destroys_the_classifier_is_inconclusive(
    glyph_task: GlyphTask, tmp_path: Path
) -> None:
    document = _audit(
        glyph_task.classifier,
        tmp_path,
        images=to_unit_range(glyph_task.test_images),
        deploy_as=tuple(compressors("prune-0.9")),
        variants_only=True,
    )
    assert document.verdict == "inconclusive"
    assert "no longer the same classifier" in document.reasons[0]


def test_without_images_and_batch_norm_it_is_inconclusive_and_says_what_is_missing(
    tmp_path: Path,
) -> None:
    classifier = SmallCNN((1, 16, 16), width=0.25)
    for module in classifier.layers:
        module.norm = torch.nn.Identity()  # type: ignore[assignment, unused-ignore]
    document = _audit(classifier, tmp_path)
    assert document.verdict == "inconclusive"
    assert "batch norm" in document.reasons[0]


def test_images_of_one_class_are_inconclusive(glyph_task: GlyphTask, tmp_path: Path) -> None:
    same = to_unit_range(glyph_task.test_images[:1]).expand(20, -1, -1, -1)
    document = _audit(glyph_task.classifier, tmp_path, images=same)
    assert document.verdict == "inconclusive"
    assert "one class" in document.reasons[0]


def test_the_same_audit_gives_the_same_findings(glyph_task: GlyphTask, tmp_path: Path) -> None:
    images = to_unit_range(glyph_task.test_images)
    first, second = (
        _audit(
            glyph_task.copy().classifier,
            tmp_path / name,
            images=images,
            deploy_as=tuple(compressors("int8")),
            only=("neural-cleanse", "differential-inversion", "strip", "logit-shift"),
            variants_only=True,
        )
        for name in ("first", "second")
    )
    assert first.variants == second.variants


def test_what_clean_models_judge_is_higher_where_compression_wakes_a_backdoor(
    woken: GlyphTask, glyph_task: GlyphTask, tmp_path: Path
) -> None:
    """No clean model of the tests' network is shipped, so scores stand for p-values here."""
    names = ("differential-gap", "guarded-lead")
    scores = {}
    for name, task in (("woken", woken), ("clean", glyph_task)):
        document = _audit(
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


def test_a_classifier_that_was_compressed_before_the_audit_is_not_cleared(
    woken: GlyphTask, glyph_task: GlyphTask, tmp_path: Path
) -> None:
    """Awake in every image, and Neural Cleanse and STRIP alone would let it pass."""
    for name, task in (("woken", woken), ("clean", glyph_task)):
        small = compress(task.classifier, compressor(HOW), _run_on_zeros)[0]
        document = _audit(
            small,
            tmp_path / name,
            images=to_unit_range(task.test_images),
            deploy_as=tuple(compressors(HOW)),
        )
        assert document.verdict == "inconclusive"
        assert any("audit the model that they were made from" in r for r in document.reasons)
        # Its weights say so, whatever the audit is asked to compress.
        bare = _audit(
            small,
            tmp_path / f"{name}-bare",
            images=to_unit_range(task.test_images),
            only=("neural-cleanse",),
        )
        assert bare.verdict == "inconclusive"
        assert "lie on the grid of int4" in " ".join(bare.reasons)


def test_a_classifier_that_was_pruned_before_the_audit_is_not_cleared(
    glyph_task: GlyphTask, tmp_path: Path
) -> None:
    pruned = compress(glyph_task.classifier, compressor("prune-0.3"), _run_on_zeros)[0]
    images = to_unit_range(glyph_task.test_images)
    for classifier, verdict in ((pruned, "inconclusive"), (glyph_task.classifier, "none_found")):
        document = _audit(classifier, tmp_path / verdict, images=images, only=("neural-cleanse",))
        assert document.verdict == verdict
        assert ("30% of the weights are 0" in " ".join(document.reasons)) is (
            verdict == "inconclusive"
        )


def test_without_images_compressed_forms_alone_clear_no_classifier(
    glyph_task: GlyphTask, tmp_path: Path
) -> None:
    """Less is not looked at than with the model as it is, which is not cleared, either."""
    document = _audit(
        glyph_task.classifier,
        tmp_path,
        deploy_as=tuple(compressors("int8")),
        variants_only=True,
    )
    assert document.verdict == "inconclusive"
    assert any("Under int8: " in reason and "not judged" in reason for reason in document.reasons)


def test_an_interrupted_audit_continues_in_the_middle_of_a_variant(
    glyph_task: GlyphTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def audited(name: str) -> AuditDocument:
        return _audit(
            glyph_task.copy().classifier,
            tmp_path / name,
            deploy_as=tuple(compressors("int8,int4")),
            only=("strip", "logit-shift"),
            variants_only=True,
        )

    whole = audited("whole")
    done: list[str] = []

    def interrupted(row: Any, bench: Any, seed: int) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(row.name)
        return seeded(row, bench, seed)

    monkeypatch.setattr(room, "seeded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        audited("broken off")

    def counted(row: Any, bench: Any, seed: int) -> Any:
        done.append(row.name)
        return seeded(row, bench, seed)

    monkeypatch.setattr(room, "seeded", counted)
    assert audited("broken off").variants == whole.variants
    assert len(done) == 4  # nothing that was finished is done again


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


def judged_int4(*findings: Finding, table: dict[str, Any] | None = None) -> Judgement:
    """What an audit of int4 alone says of these findings."""
    effort = CLASSIFIER_BUDGETS["quick"]
    found = judged_by_references(
        HOW,
        findings,
        "small-cnn",
        10,
        (1, 16, 16),
        given=effort.images,
        effort=effort,
        table=table,
    )
    coverage = Coverage(("a",), (), 1, 1)
    ran = RanVariant(HOW, coverage, list(found.findings))
    return judge_variants(Calibrated([], frozenset()), [ran], [found], {})


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


def test_references_of_the_gap_do_not_speak_for_errors_that_are_too_large() -> None:
    reason = "errors of this size move the logits by 0.90 of their spread"
    judged = judged_int4(
        scored("differential-inversion", 0.1, p_value_reason=reason),
        scored("differential-gap", 0.1, follows_from="differential-inversion"),
        scored("guarded-lead", 0.1),
    )
    assert judged.decision.verdict == "inconclusive"
    assert reason in " ".join(judged.decision.reasons)


def test_compressed_forms_alone_clear_no_classifier(glyph_task: GlyphTask, tmp_path: Path) -> None:
    """A backdoor that is awake in full size is awake compressed, where nothing looks for it."""
    document = _audit(
        glyph_task.classifier,
        tmp_path,
        images=to_unit_range(glyph_task.test_images),
        deploy_as=tuple(compressors("int8")),
        only=("differential-inversion",),
        variants_only=True,
    )
    assert document.verdict == "inconclusive"
    assert any("leave --variants-only away" in reason for reason in document.reasons)


def test_what_no_inspection_judges_in_full_size_is_not_cleared_by_a_variant(
    woken: GlyphTask, tmp_path: Path
) -> None:
    """Two classes: no class stands out from others, and no references fit."""
    wide = woken.copy().classifier
    narrow = SmallCNN((1, 16, 16), classes=2)
    narrow.load_state_dict(
        {
            name: value[:2] if value.shape[:1] == (10,) else value
            for name, value in wide.state_dict().items()
        }
    )
    images = to_unit_range(woken.test_images)[woken.test_labels < 2]
    for deploy_as in ((), tuple(compressors("int8"))):
        document = _audit(
            narrow.eval().requires_grad_(False),
            tmp_path / str(len(deploy_as)),
            images=images,
            deploy_as=deploy_as,
            only=("neural-cleanse", "strip", "differential-inversion"),
        )
        assert document.verdict == "inconclusive"
    assert "Nothing is known of the model as it is" in " ".join(document.reasons)


def test_options_of_other_models_are_refused(glyph_task: GlyphTask, tmp_path: Path) -> None:
    write_classifier(tmp_path / "suspect", glyph_task.classifier, "small-cnn", {})
    options = AuditOptions(
        model=tmp_path / "suspect", out=tmp_path / "out", targets=tmp_path / "feared.png"
    )
    with pytest.raises(GenwardenError, match="a classifier"):
        audit_model(options, progress=Silent())
