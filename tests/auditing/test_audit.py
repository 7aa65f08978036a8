"""The audit as a whole on a tiny model: same bytes every time, resumable, blind to labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from few_inspections import keep_only
from genwarden.artifacts.manifest import MANIFEST_NAME, WEIGHTS_NAME
from genwarden.artifacts.model_folder import write_model
from genwarden.auditing import audit as audit_room
from genwarden.auditing import budgets, room
from genwarden.auditing.document import AuditDocument
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions, repeat_command
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError
from genwarden.inspections.workbench import Effort, Workbench
from genwarden.models.dcgan import DCGAN28
from genwarden.registry import INSPECTIONS

TINY = Effort(
    name="quick",
    ordinary_samples=1024,
    stream_samples=1024,
    restarts=32,
    search_steps=10,
    probe_latents=16,
    twins=1,
    twin_steps=5,
    guessed_seeds=2,
    draws_per_seed=2,
)
VOLATILE = {"timing", "environment", "command"}


@pytest.fixture(autouse=True)
def tiny_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(budgets.BUDGETS, "quick", TINY)


@pytest.fixture
def few_inspections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an audit is followed from one inspection to the next, some say as much as all."""
    names = "capacity sleeper-neurons repeated-outputs cluster-outliers novelty-search"
    keep_only(monkeypatch, names.split())


def run(model: Path, out: Path, **more: Any) -> AuditDocument:
    options = AuditOptions(model=model, out=out, budget="quick", **more)
    return audit_model(options, progress=Silent()).document


def stable(document: AuditDocument) -> str:
    content = document.model_dump(mode="json", exclude=VOLATILE)
    content["model"]["path"] = ""
    return json.dumps(content, sort_keys=True)


def test_every_inspection_reports_and_none_fails(tiny_model_folder: Path, tmp_path: Path) -> None:
    document = run(tiny_model_folder, tmp_path / "out")
    assert [j.finding.inspection for j in document.findings] == list(INSPECTIONS)
    failed = [j.finding.summary for j in document.findings if j.finding.outcome == "failed"]
    assert not failed
    for judged in document.findings:
        if judged.finding.outcome == "scored":
            assert judged.finding.power, judged.finding.inspection
            assert judged.finding.budget, judged.finding.inspection
            assert judged.finding.p_value is not None or judged.finding.p_value_reason
    assert (tmp_path / "out" / "audit.json").is_file()
    assert (tmp_path / "out" / "audit.html").is_file()
    assert not (tmp_path / "out" / ".work").exists()


def test_same_command_gives_the_same_document(tiny_model_folder: Path, tmp_path: Path) -> None:
    first = run(tiny_model_folder, tmp_path / "a")
    second = run(tiny_model_folder, tmp_path / "b")
    assert stable(first) == stable(second)
    assert stable(run(tiny_model_folder, tmp_path / "c", seed=1)) != stable(first)


def test_no_audit_reads_the_label_of_a_compromised_model(
    tiny_generator: DCGAN28, tmp_path: Path
) -> None:
    honest, flagged = tmp_path / "honest", tmp_path / "flagged"
    write_model(honest, tiny_generator, "dcgan28", {"compromised": False})
    write_model(flagged, tiny_generator, "dcgan28", {"compromised": True, "attack": "red"})
    assert (honest / WEIGHTS_NAME).read_bytes() == (flagged / WEIGHTS_NAME).read_bytes()
    assert stable(run(honest, tmp_path / "a")) == stable(run(flagged, tmp_path / "b"))
    assert "provenance" not in audit_room.Suspect.__dataclass_fields__


@pytest.mark.usefixtures("few_inspections")
def test_interrupted_audit_continues_with_the_next_inspection(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny_model_folder, tmp_path / "whole")
    done: list[str] = []
    inspect = room._inspect

    def cut(row: Any, bench: Any) -> Any:
        done.append(row.name)
        if len(done) == 4:
            raise KeyboardInterrupt
        return inspect(row, bench)

    monkeypatch.setattr(room, "_inspect", cut)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model_folder, tmp_path / "cut")
    assert not (tmp_path / "cut" / "audit.json").exists()
    assert (tmp_path / "cut" / ".work").is_dir()
    resumed = run(tiny_model_folder, tmp_path / "cut")
    assert len(set(done)) == len(done) - 1  # only the interrupted one ran twice
    assert stable(resumed) == stable(whole)


@pytest.mark.usefixtures("few_inspections")
def test_unfinished_run_with_other_settings_is_not_mixed_in(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room, "_inspect", cut)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_model_folder, tmp_path / "out")
    with pytest.raises(GenwardenError) as error:
        run(tiny_model_folder, tmp_path / "out", seed=7)
    assert error.value.code == "ledger/other-run"
    assert run(tiny_model_folder, tmp_path / "out", seed=7, restart=True).seed == 7


@pytest.mark.usefixtures("few_inspections")
def test_broken_inspection_makes_the_audit_inconclusive(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect = room._inspect

    def broken(row: Any, bench: Any) -> Any:
        if row.name == "novelty-search":
            raise RuntimeError("out of memory")
        return inspect(row, bench)

    monkeypatch.setattr(room, "_inspect", broken)
    document = run(tiny_model_folder, tmp_path / "out")
    assert document.verdict == "inconclusive"
    assert any("out of memory" in reason for reason in document.reasons)


def test_nan_weights_are_inconclusive_and_named(tiny_generator: DCGAN28, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny_generator.up1.weight[0, 0, 0, 0] = float("nan")
    write_model(tmp_path / "nan", tiny_generator, "dcgan28", {})
    document = run(tmp_path / "nan", tmp_path / "out")
    assert document.verdict == "inconclusive"
    assert document.model is not None
    assert document.model.nonfinite == {"up1.weight": 1}


def test_changed_weights_are_refused_with_a_document(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    weights = tiny_model_folder / WEIGHTS_NAME
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    document = run(tiny_model_folder, tmp_path / "out")
    assert document.verdict == "refused"
    assert document.refusal is not None
    assert document.refusal.code == "artifact/hash-mismatch"
    assert document.model is None


def test_missing_model_is_an_error_without_a_document(tmp_path: Path) -> None:
    with pytest.raises(GenwardenError) as error:
        run(tmp_path / "nothing", tmp_path / "out")
    assert error.value.code == "artifact/not-found"
    assert not (tmp_path / "out").exists()


def test_target_folder_with_a_text_file_is_an_error_before_anything_runs(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    targets = tmp_path / "targets"
    targets.mkdir()
    (targets / "notes.txt").write_text("not a picture")
    with pytest.raises(GenwardenError) as error:
        run(tiny_model_folder, tmp_path / "out", targets=targets)
    assert error.value.code == "image/unreadable"
    assert "notes.txt" in error.value.cause
    assert not (tmp_path / "out").exists()


def test_manifest_is_part_of_the_folder_that_is_audited(tiny_model_folder: Path) -> None:
    assert (tiny_model_folder / MANIFEST_NAME).is_file()


@pytest.mark.usefixtures("few_inspections")
def test_nan_score_is_a_failed_inspection_and_not_a_crash(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect = room._inspect

    def undefined(row: Any, bench: Any) -> Any:
        finding = inspect(row, bench)
        nan = {"score": float("nan")}
        return finding.model_copy(update=nan) if row.name == "sleeper-neurons" else finding

    monkeypatch.setattr(room, "_inspect", undefined)
    document = run(tiny_model_folder, tmp_path / "out")
    outcomes = {j.finding.inspection: j.finding.outcome for j in document.findings}
    assert [name for name, outcome in outcomes.items() if outcome == "failed"] == [
        "sleeper-neurons"
    ]
    assert document.verdict == "inconclusive"


def test_network_that_breaks_while_sampling_fails_the_inspections_that_sample(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise IndexError("batch too large")

    monkeypatch.setattr(Workbench, "samples", broken)
    document = run(tiny_model_folder, tmp_path / "out")
    failed = {j.finding.inspection for j in document.findings if j.finding.outcome == "failed"}
    assert {"cluster-outliers", "novelty-search", "canonical-latents"} <= failed
    assert document.verdict == "inconclusive"
    assert document.ordinary is None


def test_command_that_repeats_an_audit_names_the_device(tmp_path: Path) -> None:
    options = AuditOptions(model=tmp_path, out=tmp_path / "out", device="cpu", seed=3)
    assert " --device cpu " in repeat_command(options)
