"""Files that are refused: what the user is told, and what the document says of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.commands.report import ReadAudit, read_audit
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError
from genwarden.models.dcgan import DCGAN28
from genwarden.reports.ml_bom import ml_bom
from genwarden.reports.sarif import sarif


def audited(path: Path, out: Path, **options: object) -> ReadAudit:
    audit_model(AuditOptions(path, out, **options), progress=Silent())  # type: ignore[arg-type]
    return read_audit(out)  # a folder stands for the audit in it


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    path.write_text("<!DOCTYPE html><html>not found</html>")
    return path


@pytest.mark.parametrize("architecture", [None, "dcgan28"])
def test_a_bad_file_is_refused_whether_or_not_its_architecture_is_named(
    architecture: str | None, page: Path, tmp_path: Path
) -> None:
    document = audited(page, tmp_path / "out", architecture=architecture).document
    assert document.verdict == "refused"
    assert document.refusal is not None
    assert document.refusal.code == "artifact/html-page"


def test_reports_name_the_file_that_was_refused(page: Path, tmp_path: Path) -> None:
    read = audited(page, tmp_path / "out")
    sha256 = hashlib.sha256(page.read_bytes()).hexdigest()
    (artifact,) = sarif(read.document)["runs"][0]["artifacts"]
    assert artifact["location"]["uri"].endswith("weights.pt")
    assert artifact["hashes"] == {"sha-256": sha256}
    (component,) = ml_bom(read.document, audit_name="audit.json", audit_sha256=read.sha256)[
        "components"
    ]
    assert component["name"] == "weights.pt"
    assert component["hashes"] == [{"alg": "SHA-256", "content": sha256}]


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"channels": [8, 4, 4]}, "usage/wrong-architecture"),
        ({"chanels": [4, 4, 4]}, "usage/bad-settings"),
    ],
)
def test_a_wrong_word_of_the_user_is_no_verdict_on_the_file(
    settings: dict[str, object], code: str, tmp_path: Path
) -> None:
    path, out = tmp_path / "weights.pt", tmp_path / "out"
    torch.save(DCGAN28((4, 4, 4), latent_dim=8).state_dict(), path)
    with pytest.raises(GenwardenError) as told:
        audited(path, out, architecture="dcgan28", settings={"latent_dim": 8, **settings})
    assert told.value.code == code
    assert not (out / "audit.json").exists()


def test_no_audit_goes_into_the_folder_of_its_model(tiny_model_folder: Path) -> None:
    with pytest.raises(GenwardenError) as told:
        audited(tiny_model_folder, tiny_model_folder / "." / "")
    assert told.value.code == "usage/out-is-model"


def test_a_bare_file_that_is_sound_still_needs_its_architecture(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(DCGAN28((4, 4, 4), latent_dim=8).state_dict(), path)
    with pytest.raises(GenwardenError) as told:
        audited(path, tmp_path / "out")
    assert told.value.code == "usage/architecture-missing"
