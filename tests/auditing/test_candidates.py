"""Candidates of an audit, and `genwarden sample` that makes them again."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from genwarden.artifacts.model_folder import write_model
from genwarden.auditing import audit as audit_room
from genwarden.auditing import budgets, candidates, room
from genwarden.auditing.document import AuditDocument
from genwarden.cli import app
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.commands.sample import sample_grid
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError
from genwarden.inspections.finding import Finding, latents_of
from genwarden.models.dcgan import DCGAN28
from genwarden.registry import Row

LATENT = torch.linspace(-4, 4, 8)[None]


def _finding(*, structural: bool) -> Finding:
    return Finding(
        inspection="planted",
        group="output",
        title="Planted",
        outcome="scored",
        summary="s",
        structural=structural,
        p_value=None if structural else 0.5,
        evidence=[latents_of(LATENT, title="t")],
    )


FOUND, QUIET = _finding(structural=True), _finding(structural=False)


@pytest.fixture
def audit_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model_folder: Path
) -> Callable[[Finding], AuditDocument]:
    """An audit of the tiny model with one inspection of the test's own."""
    small = replace(budgets.budget("quick"), ordinary_samples=256)
    monkeypatch.setitem(budgets.BUDGETS, "quick", small)

    def run(finding: Finding) -> AuditDocument:
        row = Row("planted", "genwarden.inspections.output.planted:inspect", "s")
        monkeypatch.setattr(audit_room, "INSPECTIONS", {"planted": row})
        monkeypatch.setattr(room, "_inspect", lambda *_: finding)
        options = AuditOptions(tiny_model_folder, tmp_path / "out", budget="quick")
        return audit_model(options, progress=Silent()).document

    return run


def sampled(model: Path, out: Path, audit_json: Path | None, **more: Any) -> Path:
    given: dict[str, Any] = {
        "count": None,
        "columns": 8,
        "seed": 0,
        "architecture": None,
        "settings": {},
    }
    return sample_grid(model, out, audit_json=audit_json, **(given | more))


def test_command_of_a_candidate_makes_its_picture_again(
    audit_with: Callable[[Finding], AuditDocument], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (candidate,) = audit_with(FOUND).candidates
    assert candidate.output is not None
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(candidate.command)
    assert arguments[:2] == ["genwarden", "sample"]
    result = CliRunner().invoke(app, arguments[1:])
    assert result.exit_code == 0, result.output
    shown = Image.open(_png(candidate.output.png_base64[0], tmp_path))
    again = Image.open(tmp_path / "candidate-1.png")
    assert again.resize(shown.size, Image.Resampling.NEAREST).tobytes() == shown.tobytes()
    assert again.size == (2 * shown.width, 2 * shown.height)


def _png(base64: str, folder: Path) -> Path:
    from base64 import b64decode

    path = folder / "shown.png"
    path.write_bytes(b64decode(base64))
    return path


def test_audit_without_evidence_has_no_candidates(
    audit_with: Callable[[Finding], AuditDocument],
) -> None:
    document = audit_with(QUIET)
    assert document.verdict == "none_found"
    assert document.candidates == []
    assert "candidates" not in document.timing


def test_failure_of_a_dossier_leaves_the_verdict_and_is_said(
    audit_with: Callable[[Finding], AuditDocument], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(candidates, "reference_of", broken)
    document = audit_with(FOUND)
    assert document.verdict == "evidence"
    assert document.candidates == []
    assert any("planted could not be examined" in limit for limit in document.limits)
    assert any("out of memory" in limit for limit in document.limits)


def test_two_audits_have_the_same_candidates(
    audit_with: Callable[[Finding], AuditDocument],
) -> None:
    first, second = audit_with(FOUND), audit_with(FOUND)
    assert len(first.candidates) == 1
    assert first.candidates == second.candidates


def test_candidate_is_refused_with_other_weights_numbers_and_shapes(
    audit_with: Callable[[Finding], AuditDocument],
    tmp_path: Path,
    tiny_generator: DCGAN28,
    tiny_model_folder: Path,
) -> None:
    document = audit_with(FOUND)
    audit_json, out = tmp_path / "out" / "audit.json", tmp_path / "x.png"
    with torch.no_grad():
        next(tiny_generator.parameters()).add_(0.1)
    write_model(tmp_path / "other", tiny_generator, "dcgan28", {})

    def refused(code: str, model: Path = tiny_model_folder, **more: Any) -> None:
        with pytest.raises(GenwardenError) as error:
            sampled(model, out, more.pop("audit_json", audit_json), **more)
        assert error.value.code == code
        assert not out.exists()

    refused("sample/other-model", tmp_path / "other")
    refused("sample/no-such-candidate", candidate=2)
    refused("usage/candidate", count=4)
    refused("usage/candidate", audit_json=None, candidate=1)
    refused("report/not-found", audit_json=tmp_path / "nothing.json")
    short = document.candidates[0].model_copy(update={"latent": [1.0, 2.0]})
    for name, held, code in (
        ("short.json", [short], "sample/latent-shape"),
        ("none.json", [], "sample/no-such-candidate"),
    ):
        changed = document.model_copy(update={"candidates": held})
        (tmp_path / name).write_text(changed.model_dump_json())
        refused(code, audit_json=tmp_path / name)
    assert sampled(tiny_model_folder, out, audit_json) == out
    assert out.exists()
