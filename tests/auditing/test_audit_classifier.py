"""A classifier that int4 wakes is found under int4 and not in full size; its twin is cleared."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from classifier_audits import HOW, SEARCHES, SHORT, TARGET, audit, run_on_zeros
from genwarden.artifacts.classifier_folder import write_classifier
from genwarden.auditing import audit_classifier as room
from genwarden.auditing.budgets import CLASSIFIER_BUDGETS
from genwarden.auditing.document import AuditDocument, Judged
from genwarden.auditing.given_references import GivenReferences
from genwarden.auditing.running import seeded
from genwarden.backdoors.classifier_trigger import make_classifier_trigger
from genwarden.commands.audit import AuditFiles, audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.commands.compress import CompressOptions, compress_model
from genwarden.commands.compress_trial import triggers_of, try_recovered
from genwarden.commands.compressing import ClassifierSubject, open_subject
from genwarden.compression.apply import compress
from genwarden.compression.how import compressor, compressors
from genwarden.data.datasets import to_unit_range
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError
from genwarden.metrics.attack_success import accuracy, attack_success
from glyph_task import GlyphTask


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLASSIFIER_BUDGETS, "quick", SHORT)


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
    small = compress(glyph_task.classifier, compressor(HOW), run_on_zeros)[0]
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
    given = audit(woken.classifier, tmp_path / "given", images=images)
    made = audit(woken.classifier, tmp_path / "made")
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
    plain = _by_name(audit(classifier, tmp_path / "plain", only=only).findings)
    score = plain["strip"].finding.score
    assert score is not None
    table = {
        "descriptions": {"quick": "that you gave: nine"},
        "scores": {"quick": {f"{condition}: strip": [score + 0.1 * n for n in range(-4, 5)]}},
    }
    own = GivenReferences(table, "0" * 64, 9, [], [], [])
    document = audit(classifier, tmp_path / "own", only=only, references=own)
    judged = _by_name(document.findings)
    assert judged["strip"].finding.p_value is not None
    assert judged["neural-cleanse"].finding.p_value is None
    assert document.verdict == "inconclusive"
    assert "shown and not judged" in " ".join(document.reasons)


def test_the_untouched_classifier_is_cleared(glyph_task: GlyphTask, tmp_path: Path) -> None:
    document = audit(
        glyph_task.classifier,
        tmp_path,
        images=to_unit_range(glyph_task.test_images),
        deploy_as=tuple(compressors(HOW)),
        only=(*SEARCHES, "guarded-lead"),
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
    document = audit(
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


def test_the_same_audit_gives_the_same_findings(glyph_task: GlyphTask, tmp_path: Path) -> None:
    images = to_unit_range(glyph_task.test_images)
    first, second = (
        audit(
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


def test_an_interrupted_audit_continues_in_the_middle_of_a_variant(
    glyph_task: GlyphTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def audited(name: str) -> AuditDocument:
        return audit(
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


def test_options_of_other_models_are_refused(glyph_task: GlyphTask, tmp_path: Path) -> None:
    write_classifier(tmp_path / "suspect", glyph_task.classifier, "small-cnn", {})
    options = AuditOptions(
        model=tmp_path / "suspect", out=tmp_path / "out", targets=tmp_path / "feared.png"
    )
    with pytest.raises(GenwardenError, match="a classifier"):
        audit_model(options, progress=Silent())
