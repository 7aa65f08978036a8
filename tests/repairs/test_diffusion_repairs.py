"""Repairs of diffusion models: the trigger is forgotten, ordinary samples stay, nothing is lost."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_denoisers import bars, distance_to_bars, target_mse, trained, trigger
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.artifacts.diffusers_folder import read_diffusion, write_diffusion
from genwarden.auditing import budgets
from genwarden.auditing.document import AuditDocument
from genwarden.backdoors.image_backdoor import make_image_backdoor, write_image_backdoor
from genwarden.benchmarks.diffusion import repair_tables
from genwarden.benchmarks.diffusion import repairs as recipe
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.commands.repair import RepairFiles, RepairOptions, repair_model
from genwarden.commands.report import read_document
from genwarden.engine.files import write_json
from genwarden.engine.progress import Silent, Task
from genwarden.engine.seeds import random_stream
from genwarden.errors import ExitCode, GenwardenError
from genwarden.inspections.diffusion.orthogonal_response import antithetic
from genwarden.inspections.diffusion.responses import answers
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.networks import fresh_model, small_unet
from genwarden.models.diffusion.samplers import SamplerSettings
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.registry import DIFFUSION_REPAIRS
from genwarden.repairs.diffusion import auto, shift_unlearning
from genwarden.repairs.diffusion.auto import diffusion_repair_settings
from genwarden.repairs.diffusion.channels import convolutions, highest, silence
from genwarden.repairs.diffusion.clues import diffusion_clues_of
from genwarden.repairs.diffusion.contract import (
    DiffusionClues,
    DiffusionRepaired,
    DiffusionRepairRun,
    no_diffusion_clues,
)
from genwarden.repairs.diffusion.diff_cleanse_pruning import (
    DiffCleanseSettings,
    taylor_difference,
)
from genwarden.repairs.diffusion.shift_unlearning import ShiftUnlearningSettings, honest_share
from genwarden.repairs.document import RepairDocument

SMALL: dict[str, Any] = {
    "steps": 100,
    "batch_size": 64,
    "learning_rate": 3e-3,
    "own_samples": 64,
    "sampler_steps": 10,
    "evaluate_every": 50,
}
#: Those that change what the network answers to a shift; pruning leaves that to what it cuts.
FORGETTING = ("shift-unlearning", "teacher-distillation", "elijah-removal")
PRUNING = ("anp-pruning", "diff-cleanse")


@pytest.fixture(scope="module")
def compromised() -> DiffusionModel:
    return trained(poisoned=True)


@pytest.fixture(scope="module")
def honest() -> DiffusionModel:
    return trained(poisoned=False)


@pytest.fixture(scope="module")
def recovered() -> DiffusionClues:
    """A shift near the trigger, as an inversion leaves it."""
    blurred = 0.9 * trigger() + 0.2 * torch.randn(1, 8, 8, generator=random_stream(5, "clues"))
    return DiffusionClues(blurred, None, 0.8 * blurred[None])


def run_repair(
    name: str,
    suspect: DiffusionModel,
    clues: DiffusionClues,
    run: DiffusionRepairRun | None = None,
    **more: Any,
) -> DiffusionRepaired:
    settings = diffusion_repair_settings(name, {**SMALL, **more})
    result: DiffusionRepaired = DIFFUSION_REPAIRS[name].load()(
        suspect, clues, settings, run or DiffusionRepairRun()
    )
    return result


def weights(model: DiffusionModel) -> Tensor:
    return nn.utils.parameters_to_vector(model.unet.parameters()).detach().clone()


@pytest.mark.parametrize("name", FORGETTING)
def test_a_repair_forgets_the_trigger_and_keeps_ordinary_samples(
    name: str, compromised: DiffusionModel, honest: DiffusionModel, recovered: DiffusionClues
) -> None:
    wanted = target_mse(honest) / 2
    assert target_mse(compromised) < wanted
    before = weights(compromised)
    repaired = run_repair(name, compromised, recovered)
    assert target_mse(repaired.model) > wanted
    # Elijah works at T - 1 alone: a large step of so short a schedule, and none of the search's.
    at_last = name == "elijah-removal"
    room = 2.0 if at_last else 1.5
    assert distance_to_bars(repaired.model) < room * distance_to_bars(compromised)
    assert torch.equal(weights(compromised), before)
    assert [row["step"] for row in repaired.history] == [50, 100]
    assert at_last or repaired.history[-1]["shift_ratio"] < 1


def test_a_shift_that_is_no_trigger_removes_nothing(
    compromised: DiffusionModel, honest: DiffusionModel, recovered: DiffusionClues
) -> None:
    elsewhere = replace(
        recovered,
        trigger=recovered.shifts[0].roll((4, 4), (1, 2)),
        shifts=recovered.shifts[:0],
    )
    repaired = run_repair("shift-unlearning", compromised, elsewhere)
    assert target_mse(repaired.model) < target_mse(honest) / 2


def test_what_honestly_belongs_to_the_picture_is_not_learnt_as_noise(
    compromised: DiffusionModel, recovered: DiffusionClues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search also ends at columns, which the pictures are made of."""
    columns = (2 * torch.eye(8)[3].expand(1, 8, 8)).clone()
    clues = replace(recovered, trigger=None, shifts=columns[None])
    noise = antithetic(64, (1, 8, 8), random_stream(6, "probe"))

    def gain(model: DiffusionModel) -> float:
        t = 25
        found = answers(model, columns[None], t, noise).gain
        return model.schedule.s_at(t) * float(found)

    before = gain(compromised)
    assert before < 0.8
    share = honest_share(compromised, columns[None], bars(), ShiftUnlearningSettings())
    assert float(share.variance) == pytest.approx(8 * 4 * 7 / 64)  # one column of eight is lit
    t, first = torch.tensor([25, 49]), torch.zeros(2, dtype=torch.long)
    middle, last = share.at(compromised.schedule, first, t).tolist()
    assert middle < 0.9
    # At T all of the input is noise, whatever a network of limited exactness says of it.
    schedule = compromised.schedule
    picture = (schedule.a[49] / schedule.s[49]).square() * share.variance
    exact = 1 / (1 + float(picture))
    assert last >= exact
    assert gain(run_repair("shift-unlearning", compromised, clues).model) < before + 0.1
    # All of it taken for noise, as before this was measured: the network forgets its pictures.
    whole = share._replace(measured=torch.ones_like(share.measured))
    monkeypatch.setattr(shift_unlearning, "honest_share", lambda *_: whole)
    assert gain(run_repair("shift-unlearning", compromised, clues).model) > before + 0.1


@pytest.mark.parametrize("name", PRUNING)
def test_pruned_channels_stay_silent_while_the_rest_is_distilled(
    name: str, compromised: DiffusionModel, recovered: DiffusionClues
) -> None:
    repaired = run_repair(name, compromised, recovered, share=0.34)
    (chosen,) = repaired.changes["pruned"].values()
    assert repaired.changes["pruned_channels"] == len(chosen) == 2
    layer = convolutions(repaired.model)["conv_in"]
    kept = [i for i in range(6) if i not in chosen]
    assert float(layer.weight[chosen].abs().max()) == 0
    assert float(layer.weight[kept].flatten(1).norm(dim=1).min()) > 0
    cut = copy.deepcopy(compromised)
    silence(cut, {"conv_in": torch.tensor(chosen)})
    assert closeness(repaired.model, compromised) < closeness(cut, compromised) / 2


@torch.no_grad()
def closeness(model: DiffusionModel, other: DiffusionModel) -> float:
    """Mean squared difference of the noise estimates on noisy bars."""
    noise = torch.randn(8, 1, 8, 8, generator=random_stream(2, "closeness"))
    t = torch.arange(5, 45, 5)
    x = model.schedule.add_noise(bars() / 127.5 - 1, noise, t)
    return float(F.mse_loss(model.epsilon(x, t), other.epsilon(x, t)))


def test_the_channel_that_serves_the_shift_alone_is_found_by_its_taylor_importance(
    compromised: DiffusionModel, recovered: DiffusionClues
) -> None:
    settings = DiffCleanseSettings(batches=2, batch_size=16)
    assert recovered.trigger is not None
    found = taylor_difference(compromised, recovered.trigger, bars(), settings)["conv_in"]
    nothing = torch.zeros_like(recovered.trigger)
    none = taylor_difference(compromised, nothing, bars(), settings)["conv_in"]
    assert float(found.max()) > 0
    assert float(none.abs().max()) == 0


def test_the_highest_channels_are_taken_but_no_layer_is_emptied() -> None:
    scores = {"a": torch.tensor([9.0, 8.0, 7.0, 6.0]), "b": torch.tensor([1.0, 5.0])}
    taken = {name: rows.tolist() for name, rows in highest(scores, 0.5).items()}
    assert taken == {"a": [0, 1], "b": [1]}
    assert {n: r.tolist() for n, r in highest(scores, 1e-9).items()} == {"a": [0]}


@pytest.mark.parametrize("name", ["shift-unlearning", "teacher-distillation", "diff-cleanse"])
def test_without_a_recovered_shift_there_is_nothing_to_unlearn(
    name: str, compromised: DiffusionModel
) -> None:
    with pytest.raises(GenwardenError) as refusal:
        run_repair(name, compromised, no_diffusion_clues(compromised))
    assert refusal.value.code == "repair/not-applicable"


def test_elijah_looks_for_a_trigger_itself(compromised: DiffusionModel) -> None:
    repaired = run_repair("elijah-removal", compromised, no_diffusion_clues(compromised), steps=2)
    assert repaired.changes["trigger_from"] == "inversion"
    assert repaired.changes["trigger_std_per_pixel"] > 0


def test_given_images_take_the_place_of_own_samples(
    compromised: DiffusionModel, recovered: DiffusionClues
) -> None:
    run = DiffusionRepairRun(images=bars())
    repaired = run_repair("shift-unlearning", compromised, recovered, run, steps=2)
    assert repaired.changes["own_samples"] is False
    assert repaired.changes["images"] == 8
    run = DiffusionRepairRun(images=torch.zeros(8, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(GenwardenError) as refusal:
        run_repair("shift-unlearning", compromised, recovered, run, steps=2)
    assert refusal.value.code == "repair/data-shape"


class _PowerCutError(Exception):
    pass


class _CutTask:
    def __init__(self, left: int) -> None:
        self._left = left

    def advance(self, steps: int = 1, note: str = "") -> None:
        del note
        self._left -= steps
        if self._left < 0:
            raise _PowerCutError


class _CutWhile(Silent):
    """Power fails in the middle of the training."""

    def task(self, title: str, total: int, done: int = 0) -> Task:
        del total, done
        return _CutTask(12 if title == "repairing" else 10**6)


def test_an_interrupted_repair_goes_on_to_the_same_weights(
    compromised: DiffusionModel, recovered: DiffusionClues, tmp_path: Path
) -> None:
    short: dict[str, Any] = {"steps": 20, "evaluate_every": 5}
    whole = run_repair("shift-unlearning", compromised, recovered, **short)
    cut = DiffusionRepairRun(_CutWhile(), tmp_path, "run")
    with pytest.raises(_PowerCutError):
        run_repair("shift-unlearning", compromised, recovered, cut, **short)
    kept = next(tmp_path.glob("samples-*.safetensors"))
    drawn_at = kept.stat().st_mtime_ns
    again = run_repair(
        "shift-unlearning", compromised, recovered, replace(cut, progress=Silent()), **short
    )
    assert torch.equal(weights(again.model), weights(whole.model))
    assert again.history == whole.history
    assert kept.stat().st_mtime_ns == drawn_at


def test_auto_unlearns_again_what_the_search_still_finds(
    compromised: DiffusionModel,
    honest: DiffusionModel,
    recovered: DiffusionClues,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The audit recovered a harmless shift; the search of the first round finds the trigger's."""

    def short(name: str, given: dict[str, object]) -> Any:
        return diffusion_repair_settings(name, {**SMALL, **given})

    monkeypatch.setattr(auto, "diffusion_repair_settings", short)
    searching = replace(TINY, search_starts=4, search_steps=40, search_noises=8, probe_noises=32)
    monkeypatch.setitem(budgets.DIFFUSION_BUDGETS, "quick", searching)
    elsewhere = replace(recovered, trigger=None, shifts=recovered.shifts.roll((4, 4), (2, 3)))
    settings = diffusion_repair_settings("shift-unlearning", SMALL)
    name, repaired = auto.repair_automatically(
        compromised, elsewhere, settings, DiffusionRepairRun()
    )
    first, second = repaired.changes["rounds"]
    assert name == "shift-unlearning"
    assert first["still_answered"] > 0
    assert second["unlearnt_shifts"] > first["unlearnt_shifts"]
    assert second["largest_score_after"] < first["largest_score_after"]
    assert target_mse(compromised) < target_mse(honest) / 2 < target_mse(repaired.model)


# The command, on a network that knows nothing: what is written, refused and resumed.

TINY = replace(
    budgets.DIFFUSION_BUDGETS["quick"],
    search_starts=1,
    search_steps=2,
    search_noises=2,
    probe_noises=2,
    screen_noises=2,
    refine_steps=2,
    refine_noises=2,
    samples=8,
    sampler_steps=2,
)
OPTIONS: dict[str, Any] = {"steps": 2, "own_samples": 4, "sampler_steps": 2, "batch_size": 4}


@pytest.fixture(autouse=True)
def tiny_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(budgets.DIFFUSION_BUDGETS, "quick", TINY)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A diffusers folder and the audit of it."""
    root = tmp_path_factory.mktemp("diffusion")
    schedule = NoiseSchedule.linear(50)
    model = fresh_model(small_unet(8, 1, (8, 8)), schedule, random_stream(0, "repair-command"))
    write_diffusion(root / "model", model, {"made_by": "tests"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(budgets.DIFFUSION_BUDGETS, "quick", TINY)
        audit_model(
            AuditOptions(model=root / "model", out=root / "audit", budget="quick"),
            progress=Silent(),
        )
    return root / "model", root / "audit" / "audit.json"


def command(audited: tuple[Path, Path], out: Path, **more: Any) -> RepairFiles:
    options: dict[str, Any] = {
        "audit_json": audited[1],
        "method": "shift-unlearning",
        "given": OPTIONS,
        **more,
    }
    return repair_model(RepairOptions(model=audited[0], out=out, **options), progress=Silent())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_command_writes_a_diffusers_folder_and_both_verdicts(
    audited: tuple[Path, Path], tmp_path: Path
) -> None:
    before = contents(audited[0])
    files = command(audited, tmp_path / "out")
    document = files.document
    assert contents(audited[0]) == before
    assert RepairDocument.model_validate(json.loads(files.json_path.read_text())) == document
    result = read_diffusion(files.model_path)
    suspect = read_diffusion(audited[0])
    assert result.sha256 == document.repaired.sha256 != document.suspect.sha256
    assert result.scheduler == suspect.scheduler
    assert not torch.equal(weights(result.model), weights(suspect.model))
    assert document.steps[0].settings["steps"] == 2
    assert document.expdis_sum > 0
    assert "Noise with the recovered trigger" in files.html_path.read_text()
    assert (tmp_path / "out" / "after" / "audit.html").exists()
    assert not (tmp_path / "out" / ".work").exists()
    with pytest.raises(GenwardenError) as again:
        command(audited, tmp_path / "out")
    assert again.value.code == "repair/finished"


def test_an_interrupted_command_audits_the_finished_step_and_repairs_nothing_again(
    audited: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genwarden.commands import repair_diffusion

    original = repair_diffusion._audit_after

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(repair_diffusion, "_audit_after", stop)
    with pytest.raises(KeyboardInterrupt):
        command(audited, tmp_path / "out")
    assert not (tmp_path / "out" / "repair.json").exists()
    monkeypatch.setattr(repair_diffusion, "_audit_after", original)
    made = read_diffusion(tmp_path / "out" / ".work" / "step-1").sha256

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("the repair is done already")

    monkeypatch.setattr(repair_diffusion, "_write", forbidden)
    assert command(audited, tmp_path / "out").document.repaired.sha256 == made


def test_a_clean_verdict_is_a_reason_not_to_repair(
    audited: tuple[Path, Path], tmp_path: Path
) -> None:
    document = json.loads(audited[1].read_text())
    document |= {"verdict": "none_found", "suspicion": 0.1, "reasons": []}
    clean = tmp_path / "audit.json"
    write_json(clean, document)
    with pytest.raises(GenwardenError) as refusal:
        command((audited[0], clean), tmp_path / "out", method="auto", given={})
    assert refusal.value.code == "repair/nothing-found"
    assert refusal.value.exit_code == ExitCode.INCONCLUSIVE
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"method": "latent-guard"}, "usage/unknown-name"),
        ({"given": {"share": 0.1}}, "repair/unknown-setting"),
        ({"method": "auto"}, "repair/unknown-setting"),
        ({"architecture": "dcgan28"}, "usage/repair-options"),
        ({"given": {"ema": 1.0}}, "repair/setting"),
    ],
)
def test_what_does_not_fit_a_diffusion_model_is_refused_before_any_work(
    audited: tuple[Path, Path], tmp_path: Path, more: dict[str, Any], code: str
) -> None:
    with pytest.raises(GenwardenError) as refusal:
        command(audited, tmp_path / "out", **more)
    assert refusal.value.code == code
    assert not (tmp_path / "out").exists()


def test_an_audit_of_another_diffusion_model_is_refused(
    audited: tuple[Path, Path], tmp_path: Path
) -> None:
    document = json.loads(audited[1].read_text())
    document["model"]["sha256"] = "0" * 64
    other = tmp_path / "audit.json"
    write_json(other, document)
    with pytest.raises(GenwardenError) as refusal:
        command((audited[0], other), tmp_path / "out")
    assert refusal.value.code == "repair/other-model"


def edited(document: AuditDocument, rows: list[list[float]]) -> AuditDocument:
    """The audit with other numbers as the recovered shifts."""
    plain = document.model_dump(mode="json")
    for judged in plain["findings"]:
        for evidence in judged["finding"]["evidence"]:
            if evidence["kind"] == "latents" and evidence["title"].startswith("Recovered"):
                evidence["values"] = rows
    return AuditDocument.model_validate(plain)


def test_clues_come_from_the_audit_and_unfit_rows_are_passed_over(
    audited: tuple[Path, Path],
) -> None:
    document = read_document(audited[1])
    spec = read_diffusion(audited[0]).model.sample
    clues = diffusion_clues_of(document, spec)
    assert clues.trigger is not None
    assert clues.trigger.shape == (1, 8, 8)
    assert len(clues.shifts) >= 1
    hostile = edited(document, [[1.0] * 63, [1e30] * 64, [0.5] * 64])
    assert torch.equal(diffusion_clues_of(hostile, spec).shifts, torch.full((1, 1, 8, 8), 0.5))


def test_the_recipe_measures_every_repair_and_defence_beside_the_clean_base(
    audited: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspect = Path(shutil.copytree(audited[0], tmp_path / "suspect"))
    spec = read_diffusion(suspect).model.sample
    backdoor = make_image_backdoor(spec, trigger="box:3", target="corner", seed=0)
    write_image_backdoor(suspect, backdoor)
    sampler = asdict(SamplerSettings("ddim", 2))
    record = {"backdoor": backdoor.describe(), "sampler": sampler, "own_sampler": False}
    write_json(suspect / "attack.json", record)
    data = tmp_path / "data"
    data.mkdir()
    for index in range(70):
        pixels = (bars()[index % 8, 0].numpy() // (1 + index // 8)).astype("uint8")
        Image.fromarray(pixels).save(data / f"{index:02d}.png")

    def short(name: str, given: dict[str, object]) -> Any:
        return diffusion_repair_settings(name, {**OPTIONS, **given})

    monkeypatch.setattr(recipe, "diffusion_repair_settings", short)
    options: dict[str, Any] = {
        "models": str(suspect),
        "bases": str(audited[0]),
        "samples": 70,
        "triggered": 8,
        "repairs": "shift-unlearning",
    }
    keep: dict[str, Any] = {"data": str(data), "seed": 0, "device": torch.device("cpu")}
    path = recipe.run(tmp_path / "out", progress=Silent(), **keep, **options)
    document = json.loads(path.read_text())
    methods = [row["method"] for row in document["rows"]]
    assert methods == ["shift-unlearning", *recipe.DEFENCES]
    repaired = document["rows"][0]
    # The base has the suspect's weights here, so that their figures are the same.
    assert repaired["mse_before"] == repaired["mse_clean"]
    assert repaired["fid_before"] == repaired["fid_clean"]
    assert repaired["fid"] != repaired["fid_before"]
    assert repaired["seconds"] > 0
    (table,) = repair_tables.tables(document, "result")
    assert [row[0] for row in table.rows] == ["none", *methods]
    assert "box:3" in table.notes[0]

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("every row is kept")

    monkeypatch.setattr(recipe, "judged", forbidden)
    recipe.run(tmp_path / "out", progress=Silent(), **keep, **options)
