"""A folder that holds a verdict on something else is left alone, for every kind of model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genwarden.artifacts.manifest import WEIGHTS_NAME
from genwarden.artifacts.model_folder import write_model
from genwarden.auditing import audit as audit_room
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.commands.demo import demo_model_folder
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError
from genwarden.models.dcgan import DCGAN28


@pytest.fixture
def finished(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AuditOptions:
    """A finished audit of the tiny generator, of no inspection: what it says does not matter."""
    monkeypatch.setattr(audit_room, "INSPECTIONS", {})
    options = AuditOptions(model=tiny_model_folder, out=tmp_path / "out", budget="quick")
    audit_model(options, progress=Silent())
    return options


def refusal(options: AuditOptions) -> GenwardenError:
    """What stops an audit; the finished one is untouched."""
    before = {p.name: p.read_bytes() for p in options.out.iterdir()}
    with pytest.raises(GenwardenError) as caught:
        audit_model(options, progress=Silent())
    assert caught.value.code == "audit/other-audit"
    assert "--restart" in caught.value.remedy
    assert {p.name: p.read_bytes() for p in options.out.iterdir()} == before
    return caught.value


@pytest.mark.parametrize("kind", ["dcgan-clean", "ddpm-clean", "cnn-clean"])
def test_an_audit_of_another_model_is_not_written_over(finished: AuditOptions, kind: str) -> None:
    error = refusal(replace(finished, model=demo_model_folder(kind)))
    assert "other weights" in error.cause


@pytest.mark.parametrize(
    ("more", "flag"),
    [
        ({"seed": 1}, "--seed"),
        ({"budget": "standard"}, "--budget"),
        ({"deploy_as": "int8"}, "--deploy-as"),
    ],
)
def test_nor_is_one_with_other_options(
    finished: AuditOptions, more: dict[str, Any], flag: str
) -> None:
    assert flag in refusal(replace(finished, **more)).cause


def test_weights_that_changed_under_the_same_path_are_another_model(
    finished: AuditOptions, tiny_generator: DCGAN28
) -> None:
    with torch.no_grad():
        tiny_generator.up1.weight.mul_(2)
    write_model(finished.model, tiny_generator, "dcgan28", {})
    assert "other weights" in refusal(finished).cause


def test_the_same_audit_can_be_made_again_and_restart_replaces_any(finished: AuditOptions) -> None:
    audit_model(finished, progress=Silent())
    audit_model(replace(finished, device="cpu"), progress=Silent())
    other = replace(finished, seed=1, restart=True)
    assert audit_model(other, progress=Silent()).document.seed == 1
    assert "--seed" in refusal(finished).cause


def test_a_file_of_something_else_called_audit_json_stays(finished: AuditOptions) -> None:
    (finished.out / "audit.json").write_text('{"auditor": "somebody"}')
    assert "no audit" in refusal(finished).cause


def test_a_refused_file_replaces_only_the_audit_of_its_own_path(
    finished: AuditOptions, tmp_path: Path
) -> None:
    broken = tmp_path / "other.safetensors"
    broken.write_bytes(b"not weights")
    other = replace(finished, model=broken, architecture="dcgan28")
    assert "another file" in refusal(other).cause
    weights = finished.model / WEIGHTS_NAME
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    # The verdict on sound weights must not stand beside a file that is now damaged.
    assert audit_model(finished, progress=Silent()).document.verdict == "refused"
    weights.write_bytes(whole)
    assert audit_model(finished, progress=Silent()).document.model is not None


def test_a_finished_audit_stays_until_the_same_one_is_whole_again(
    finished: AuditOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = (finished.out / "audit.json").read_bytes()
    monkeypatch.setattr("genwarden.commands.open_suspect.audit", stopped)
    with pytest.raises(KeyboardInterrupt):
        audit_model(finished, progress=Silent())
    assert (finished.out / "audit.json").read_bytes() == before
    with pytest.raises(KeyboardInterrupt):
        audit_model(replace(finished, seed=1, restart=True), progress=Silent())
    assert not (finished.out / "audit.json").exists()
