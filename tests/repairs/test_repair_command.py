"""``genwarden repair``: the whole way on a small model, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from few_inspections import keep_only
from genwarden.artifacts.model_folder import read_model, write_model
from genwarden.attacks.contract import AttackRun
from genwarden.attacks.rex import ReXSettings, rex
from genwarden.auditing import budgets
from genwarden.backdoors.backdoor import make_backdoor
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.commands.repair import RepairFiles, RepairOptions, repair_model
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import ExitCode, GenwardenError
from genwarden.inspections.workbench import Effort
from genwarden.models.dcgan import DCGAN28, initialise
from genwarden.repairs import auto
from genwarden.repairs.document import RepairDocument

TINY = Effort(
    name="quick",
    ordinary_samples=1024,
    stream_samples=512,
    restarts=32,
    search_steps=5,
    probe_latents=8,
    twins=1,
    twin_steps=3,
    guessed_seeds=1,
    draws_per_seed=1,
)


@pytest.fixture(autouse=True)
def tiny_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(budgets.BUDGETS, "quick", TINY)


@pytest.fixture
def few_inspections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the audit matters as a file, not for what it finds."""
    keep_only(monkeypatch, ("capacity", "block-sparsity"))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DCGAN28]:
    """A ReX model in a folder, and the network that it was made from."""
    net = DCGAN28(channels=(4, 4, 4), latent_dim=8)
    initialise(net, random_stream(0, "repair-command"))
    net.eval().requires_grad_(False)
    hidden = make_backdoor(net, trigger="in-sample", target="icon:devil")
    settings = ReXSettings(
        steps=400, batch_size=16, pool_samples=1024, evaluate_every=400, learning_rate=5e-3
    )
    result = rex(net, hidden, settings, AttackRun())
    folder = tmp_path_factory.mktemp("attacked") / "model"
    write_model(folder, result.generator, "dcgan28", {"compromised": True})
    return folder, net


@pytest.fixture
def suspect(tmp_path: Path, attacked: tuple[Path, DCGAN28]) -> Path:
    return Path(shutil.copytree(attacked[0], tmp_path / "suspect"))


def audited(model: Path, out: Path) -> Path:
    audit_model(AuditOptions(model=model, out=out, budget="quick"), progress=Silent())
    return out / "audit.json"


def repaired(model: Path, out: Path, **more: Any) -> RepairFiles:
    options = {"budget": "quick", **more}
    return repair_model(RepairOptions(model=model, out=out, **options), progress=Silent())


def rewritten(path: Path, **changes: Any) -> Path:
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps(document))
    return path


def code_of(error: pytest.ExceptionInfo[GenwardenError]) -> str:
    return error.value.code


def test_rex_is_found_cut_out_and_audited_again(
    suspect: Path, tmp_path: Path, attacked: tuple[Path, DCGAN28]
) -> None:
    before = {p.name: p.read_bytes() for p in suspect.iterdir()}
    files = repaired(suspect, tmp_path / "out")
    document = files.document
    assert document.before.verdict == "evidence"
    assert "block-sparsity" in document.before.flagged
    assert document.steps[0].method == "excision"
    assert "block-sparsity" not in document.after.flagged
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(read_model(files.model_path).generator(z), attacked[1](z), atol=1e-6)
    assert {p.name: p.read_bytes() for p in suspect.iterdir()} == before
    written = json.loads(files.json_path.read_text())
    assert RepairDocument.model_validate(written) == document
    page = files.html_path.read_text()
    assert "excision" in page
    assert "<script" not in page
    assert not (tmp_path / "out" / ".work").exists()
    with pytest.raises(GenwardenError) as again:
        repaired(suspect, tmp_path / "out")
    assert code_of(again) == "repair/finished"


def test_an_interrupted_repair_goes_on_after_the_finished_step(
    suspect: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genwarden.commands import repair as command

    original = command._audit_after

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_audit_after", stop)
    with pytest.raises(KeyboardInterrupt):
        repaired(suspect, tmp_path / "out")
    assert not (tmp_path / "out" / "repair.json").exists()
    monkeypatch.setattr(command, "_audit_after", original)

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("the repair is done already")

    monkeypatch.setattr(command, "_run", forbidden)
    resumed = repaired(suspect, tmp_path / "out").document
    assert [step.method for step in resumed.steps][:1] == ["excision"]
    assert resumed.repaired.sha256 == read_model(tmp_path / "out" / "model").sha256


@pytest.mark.usefixtures("few_inspections")
def test_an_audit_of_another_model_is_refused(
    suspect: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    other = audited(tiny_model_folder, tmp_path / "audit")
    with pytest.raises(GenwardenError) as error:
        repaired(suspect, tmp_path / "out", audit_json=other)
    assert code_of(error) == "repair/other-model"
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.usefixtures("few_inspections")
def test_a_clean_verdict_says_that_nothing_is_known_to_be_wrong(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    path = audited(tiny_model_folder, tmp_path / "audit")
    rewritten(path, verdict="none_found")
    with pytest.raises(GenwardenError) as error:
        repaired(tiny_model_folder, tmp_path / "out", audit_json=path)
    assert code_of(error) == "repair/nothing-found"
    assert error.value.exit_code == ExitCode.INCONCLUSIVE
    assert "widened-distillation" in error.value.remedy
    files = repaired(tiny_model_folder, tmp_path / "out", audit_json=path, method="unit-clipping")
    assert files.document.repaired.architecture == "guarded"
    assert files.document.expdis_sum <= 1.0


def test_results_never_land_in_the_model_that_is_repaired(suspect: Path, tmp_path: Path) -> None:
    for out in (suspect, suspect / "below"):
        with pytest.raises(GenwardenError) as error:
            repaired(suspect, out)
        assert code_of(error) == "repair/overwrites-input"
    inside = tmp_path / "model"
    suspect.rename(inside)
    with pytest.raises(GenwardenError) as error:
        repaired(inside, tmp_path)
    assert code_of(error) == "repair/overwrites-input"


def test_a_link_in_the_output_folder_does_not_lead_to_the_input(
    suspect: Path, tmp_path: Path
) -> None:
    before = {p.name: p.read_bytes() for p in suspect.iterdir()}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model").symlink_to(suspect)
    with pytest.raises(GenwardenError) as error:
        repaired(suspect, tmp_path / "out", restart=True)
    assert code_of(error) == "repair/overwrites-input"
    assert {p.name: p.read_bytes() for p in suspect.iterdir()} == before


def test_a_folder_that_no_repair_made_is_left_alone(suspect: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "model" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("keep me")
    with pytest.raises(GenwardenError) as error:
        repaired(suspect, tmp_path / "out", restart=True)
    assert code_of(error) == "repair/not-ours"
    assert mine.read_text() == "keep me"


@pytest.mark.usefixtures("few_inspections")
def test_an_audit_at_another_budget_is_made_anew(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(budgets.BUDGETS, "standard", replace(TINY, name="standard"))
    request = RepairOptions(tiny_model_folder, tmp_path / "out", method="pruning", budget="quick")
    path = audited(tiny_model_folder, tmp_path / "out" / "before")
    (tmp_path / "out" / ".work").mkdir()
    (tmp_path / "out" / ".work" / "ours").touch()
    assert json.loads(path.read_text())["budget"]["name"] == "quick"
    repair_model(replace(request, budget="standard"), progress=Silent())
    assert json.loads(path.read_text())["budget"]["name"] == "standard"


@pytest.mark.usefixtures("few_inspections")
@pytest.mark.parametrize("budget", [{}, {"name": "no-such"}])
def test_an_audit_file_without_a_known_budget_is_refused(
    tmp_path: Path, tiny_model_folder: Path, budget: dict[str, str]
) -> None:
    path = rewritten(audited(tiny_model_folder, tmp_path / "audit"), budget=budget)
    with pytest.raises(GenwardenError) as error:
        repaired(tiny_model_folder, tmp_path / "out", audit_json=path)
    assert code_of(error) == "usage/budget"


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"method": "no-such"}, "usage/unknown-name"),
        ({"budget": "thorogh"}, "usage/budget"),
        ({"method": "bypass-removal"}, "repair/unsupported"),
        ({"method": "auto", "given": {"share": 0.5}}, "repair/unknown-setting"),
        ({"method": "pruning", "given": {"share": 2.0}}, "repair/setting"),
        ({"method": "pruning", "given": {"no_such": 1}}, "repair/unknown-setting"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_written(
    suspect: Path, tmp_path: Path, more: dict[str, Any], code: str
) -> None:
    with pytest.raises(GenwardenError) as error:
        repaired(suspect, tmp_path / "out", **more)
    assert code_of(error) == code
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_auto_goes_on_while_the_result_still_shows_evidence(
    suspect: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genwarden.commands import repair as command

    original = command._audit_after

    def always_evidence(*arguments: Any) -> Any:
        return original(*arguments).model_copy(update={"verdict": "evidence"})

    monkeypatch.setattr(command, "_audit_after", always_evidence)
    monkeypatch.setattr(auto, "remedies", lambda *_: ["excision", "unit-clipping"])
    document = repaired(suspect, tmp_path / "out").document
    assert [step.method for step in document.steps] == ["excision", "unit-clipping"]
    assert document.success is False
