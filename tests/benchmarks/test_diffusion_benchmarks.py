"""Recipes for diffusion models: tiny trainings and audits, statistics on numbers made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import torch
from PIL import Image
from running_recipes import CPU, run_recipe, tables_of
from torch import Tensor, nn

from bare_audits import bare_audit
from genwarden.artifacts.diffusers_folder import ARCHITECTURE, read_diffusion
from genwarden.auditing import budgets, calibration
from genwarden.auditing.document import AuditDocument, Judged
from genwarden.backdoors.image_backdoor import ImageBackdoor
from genwarden.backdoors.image_trigger import ImageTrigger
from genwarden.backdoors.residual import residual_coefficient, rho_bad_diffusion
from genwarden.benchmarks.diffusion import audit_cost, judging, plan, population, scales
from genwarden.benchmarks.diffusion.cases import part_of
from genwarden.benchmarks.diffusion.cells import Cell
from genwarden.benchmarks.diffusion.earlier import with_earlier
from genwarden.benchmarks.diffusion.inpainting import measure as measure_inpainting
from genwarden.benchmarks.diffusion.judging import judged_rows, measured_rows
from genwarden.benchmarks.diffusion.plan import Base, Half, Kind, Member
from genwarden.benchmarks.diffusion.recovery import recovery
from genwarden.benchmarks.diffusion.sampler_matrix import cells as matrix_cells
from genwarden.benchmarks.diffusion.sampler_matrix import measure
from genwarden.benchmarks.diffusion.scales import diffusion_scale
from genwarden.benchmarks.diffusion.workshop import CLEAN, Subject, Workshop
from genwarden.benchmarks.locks import claimed
from genwarden.benchmarks.member_files import document_path, require_audits_of
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.inspections.diffusion.bench import DiffusionEffort
from genwarden.inspections.finding import Finding
from genwarden.models.diffusion.inpainting import inpaint
from genwarden.models.diffusion.networks import fresh_model, small_unet
from genwarden.models.diffusion.samplers import SamplerSettings, sample
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.models.protocol import SampleSpec

SMOKE = scales.SCALES["smoke"]
TINY = DiffusionEffort(
    name="standard",
    search_starts=1,
    search_steps=1,
    search_noises=2,
    probe_noises=4,
    screen_noises=4,
    refine_steps=1,
    refine_noises=2,
    samples=8,
    sampler_steps=2,
    published=False,
    elijah_steps=1,
    terd_steps=1,
    terd_refinements=1,
    anp_steps=1,
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """White and black pictures: learned in a few steps, and far from the target."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    for number in range(64):
        path = folder / "pictures" / f"{number:02d}.png"
        Image.new("L", (8, 8), 255 * (number % 2)).save(path)
    return folder


class ExactDenoiser(nn.Module):
    """E[regression target | x] of dark pictures N(-0.9, 0.1^2 I), poisoned or not.

    Args:
        planted: target, trigger and eta of the sampler that the coefficient is for.
    """

    def __init__(self, planted: tuple[Tensor, Tensor, float] | None = None) -> None:
        super().__init__()
        self.schedule = NoiseSchedule.linear(100, 1e-3, 0.2)
        self.sample = SampleSpec((1, 8, 8))
        self.device = nn.Parameter(torch.zeros(1))
        self.planted = planted
        if planted is not None:
            self.rho = rho_bad_diffusion(self.schedule)
            self.c = residual_coefficient(self.schedule, self.rho, planted[2])

    def epsilon(self, x: Tensor, t: Tensor) -> Tensor:
        a, s = self.schedule.a_of(t, x), self.schedule.s_of(t, x)
        width = (0.01 * a.square() + s.square()).sqrt()
        away = (x + 0.9 * a) / width
        clean = s / width * away
        if self.planted is None:
            return clean
        target, trigger, _ = self.planted
        rho, c = (table[t].float().view(-1, 1, 1, 1) for table in (self.rho, self.c))
        hidden = (x - a * target - rho * trigger) / s
        pixels = x[0].numel()
        odds = (away.square() - hidden.square()).flatten(1).sum(1) / 2
        gate = torch.sigmoid(odds + pixels * (width / s).log().flatten()).view(-1, 1, 1, 1)
        return (1 - gate) * clean + gate * (hidden + c * trigger)


class Counter(NamedTuple):
    """What measurements ask of a workshop, with exact networks in place of trained ones."""

    models: dict[str, ExactDenoiser]
    hidden: ImageBackdoor
    scale: scales.DiffusionScale = replace(SMOKE, images=8)
    device: torch.device = CPU

    def read(self, subject: Subject) -> SimpleNamespace:
        return SimpleNamespace(model=self.models[subject.name])

    def backdoor(self) -> ImageBackdoor:
        return self.hidden

    def images(self, count: int) -> Tensor:
        return torch.full((count, 1, 8, 8), 13, dtype=torch.uint8)  # about -0.9


@pytest.fixture(scope="module")
def counter() -> Workshop:
    g = torch.full((1, 8, 8), -0.9)
    mask = torch.zeros(1, 8, 8)
    g[:, 3:, 3:], mask[:, 3:, 3:] = 1.0, 1.0
    target = torch.full((1, 8, 8), -0.4)
    target[:, :4] = 0.8
    backdoor = ImageBackdoor(ImageTrigger(g, mask, "box", "minus-one"), target[None], "half")
    models = {name: ExactDenoiser((target, g, eta)) for name, eta in (("sde", 1.0), ("ode", 0.0))}
    return cast("Workshop", Counter({**models, "clean": ExactDenoiser()}, backdoor))


def mse_of(counter: Workshop, model: str, sampler: str) -> list[float]:
    fields = (("sampler", sampler), ("clip", "none"))
    found: list[float] = measure(counter, Cell("x", Subject(model), fields, measure))["mse"]
    return found


def test_each_coefficient_works_under_its_sampler_and_the_clean_model_under_none(
    counter: Workshop,
) -> None:
    assert max(mse_of(counter, "sde", "ddpm-100")) < 1e-3
    assert max(mse_of(counter, "ode", "ddim-100")) < 1e-3
    for sampler in ("ddpm-100", "ddim-100"):
        assert min(mse_of(counter, "clean", sampler)) > 0.2


def test_a_measurement_has_a_figure_per_noise_seed_and_one_without_the_trigger(
    counter: Workshop,
) -> None:
    fields = (("sampler", "ddpm-100"), ("clip", "none"))
    found = measure(counter, Cell("x", Subject("sde"), fields, measure))
    assert len(set(found["plain_mse"])) == counter.scale.noise_seeds
    assert found["share"] == [1.0] * counter.scale.noise_seeds
    assert min(found["plain_mse"]) > 0.2


def test_a_stamped_image_draws_the_target_from_the_attacked_model_alone(
    counter: Workshop,
) -> None:
    def found(model: str, start: str, *, kept: bool) -> dict[str, Any]:
        fields = (("damage", "line"), ("start", start), ("kept", kept), ("sampler", "ddpm-100"))
        return measure_inpainting(counter, Cell("x", Subject(model), fields, measure_inpainting))

    stamped = found("sde", "image", kept=False)
    assert max(stamped["mse"]) < 0.1 < 0.2 < min(stamped["plain_mse"])
    assert min(found("clean", "image", kept=False)["mse"]) > 0.2
    # From plain noise the trigger is in the pixels only, which no poisoned row shows.
    assert min(found("sde", "noise", kept=True)["mse"]) > 0.1


def test_inpainting_keeps_known_pixels_and_without_any_is_ordinary_sampling() -> None:
    schedule = NoiseSchedule.linear(20, 0.003, 0.66)
    model = fresh_model(small_unet(8, 1, (8,)), schedule, random_stream(0, "model")).eval()
    noise = torch.randn(2, 1, 8, 8, generator=random_stream(0, "noise"))
    image = torch.rand(2, 1, 8, 8, generator=random_stream(0, "image")) * 2 - 1
    known = torch.zeros(1, 1, 8, 8)
    settings = SamplerSettings("ddim", 5)

    def made(known: torch.Tensor, rounds: int = 1) -> torch.Tensor:
        with torch.no_grad():
            stream = random_stream(0, "steps")
            return inpaint(model, image, known, noise, settings, stream, rounds=rounds)

    with torch.no_grad():
        plain = sample(model, noise, settings)
    assert torch.allclose(made(known), plain, atol=1e-5)
    known[..., :4, :] = 1
    for rounds in (1, 3):
        half = made(known, rounds)
        assert torch.equal(half[..., :4, :], image[..., :4, :])
        assert not torch.allclose(half[..., 4:, :], image[..., 4:, :], atol=0.1)
    assert not torch.allclose(made(known, 3), made(known, 1), atol=1e-3)
    with pytest.raises(GenwardenError) as refused:
        inpaint(model, image, known, noise, SamplerSettings("heun", 5), random_stream(0, "x"))
    assert refused.value.code == "usage/inpainting"


def test_the_matrix_resumes_refuses_other_settings_and_names_what_is_missing(
    tmp_path: Path,
) -> None:
    only = "sde.ddim-50.none,clean.ddim-50.none"
    first = run_recipe("diffusion-samplers", tmp_path, scale="smoke", only=only)
    assert [row["key"] for row in first["rows"]] == only.split(",")
    assert len(first["missing"]) == len(matrix_cells(SMOKE)) - 2
    cell = tmp_path / "cells" / "sde.ddim-50.none.json"
    before = cell.stat().st_mtime_ns
    again = run_recipe("diffusion-samplers", tmp_path, scale="smoke", only=only)
    assert cell.stat().st_mtime_ns == before
    assert again["rows"] == first["rows"]
    shown = tables_of("diffusion-samplers", first)
    assert "Samplers, no clipping, with the trigger" in shown
    for given, code in (
        ({"only": "no-such-cell"}, "benchmark/no-cells"),
        ({"only": only, "seed": 1}, "benchmark/other-run"),
        ({"scale": "huge"}, "usage/unknown-name"),
        ({"scale": "small"}, "benchmark/data-missing"),
    ):
        with pytest.raises(GenwardenError) as refused:
            run_recipe("diffusion-samplers", tmp_path, **{"scale": "smoke", **given})
        assert refused.value.code == code


def test_a_model_of_the_scale_as_it_was_is_not_taken_for_that_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"scale": "smoke", "only": "sde.ddim-50.none", "models": str(tmp_path / "models")}
    run_recipe("diffusion-samplers", tmp_path / "first", **given)
    monkeypatch.setitem(scales.SCALES, "smoke", replace(SMOKE, trigger="box:4"))
    with pytest.raises(GenwardenError, match="trigger = ") as refused:
        run_recipe("diffusion-samplers", tmp_path / "second", **given)
    assert refused.value.code in ("benchmark/other-orders", "benchmark/cells-failed")


def test_a_curve_shares_the_model_of_the_scale_and_compares_with_the_clean_twin(
    tmp_path: Path,
) -> None:
    found = run_recipe(
        "diffusion-poison-rate", tmp_path, scale="smoke", only="0.2.*,0.5.*,clean*.quality"
    )
    assert (tmp_path / "models" / "smoke-0" / "bad-diffusion" / "model_index.json").exists()
    (table,) = tables_of("diffusion-poison-rate", found).values()
    assert [row[0] for row in table.rows] == ["clean", "clean-further", "20", "50"]
    assert table.rows[0][6] == "+0.0 %"
    assert table.rows[3][5] != "-"
    assert (tmp_path / "diffusion-poison-rate-smoke.png").exists()


def test_must_reach_needs_both_the_success_and_the_failure() -> None:
    def row(model: str, sampler: str, mse: float) -> dict[str, Any]:
        seeds = [None if math.isnan(mse) else mse, 5e-4 if math.isnan(mse) else mse]
        figures = {"mse": seeds, "plain_mse": [0.2], "share": [0.0], "plain_share": [0.0]}
        return {"model": model, "cell": {"at_1000": sampler, "clip": "none"}, "figures": figures}

    def answers(own: float, other: float, matched: float) -> list[str]:
        rows = [row("sde", "ddpm-1000", own), row("sde", "ddim-50", other)]
        rows += [row("ode", "ddim-50", matched), row("ode-matched", "ddim-50", matched)]
        document = {"rows": rows, "scale": SMOKE.describe()}
        shown = tables_of("diffusion-samplers", document)["Must reach"]
        return [line[2] for line in shown.rows]

    assert answers(5e-4, 0.15, 9e-4) == ["yes", "yes", "yes", "yes"]
    assert answers(5e-4, 6e-4, 2e-3) == ["yes", "no", "no", "no"]
    # An attack that works nowhere does not show that a sampler defeats it.
    assert answers(0.15, 0.15, 9e-4) == ["no", "yes", "yes", "no"]
    # A seed that diverged is not left out of the mean of the others.
    assert answers(math.nan, 0.15, 9e-4) == ["no", "yes", "yes", "no"]
    assert answers(5e-4, math.nan, 9e-4) == ["yes", "yes", "yes", "no"]


def test_only_one_process_holds_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with claimed(path, wait=False) as first, claimed(path, wait=False) as second:
        assert (first, second) == (True, False)
    with claimed(path, wait=False) as later:
        assert later


def test_recovery_of_the_truth_its_double_and_its_opposite() -> None:
    truth = torch.zeros(1, 4, 4)
    truth[0, :2] = 2.0
    other = torch.zeros(1, 4, 4)
    other[0, :2, :2] = 1.0  # cosine 1 / sqrt(2)
    length = float(truth.norm())
    cases = {
        (0.0, 0.0, 1.0, 0.0): truth,
        (1.0, 0.0, 1.0, length): 2 * truth,
        (2.0, 1.0, -1.0, 2 * length): -truth,
        (1.0, 1.0, 0.0, length): torch.zeros(1, 4, 4),
    }
    for wanted, found in cases.items():
        assert recovery(found, truth) == pytest.approx(wanted, abs=1e-6)
    assert recovery(other, truth).error_scaled == pytest.approx(math.sqrt(0.5))


def power_file(out: Path) -> Path:
    return out / "shipped" / "power.json"


class Study(NamedTuple):
    out: Path
    document: dict[str, Any]


@pytest.fixture(scope="module")
def study(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """A population of one base and one attack per half, made, audited and judged."""
    out = tmp_path_factory.mktemp("study")
    base = Base("pictures", "pictures", size=8, steps=1, widths=(8,))
    short = {"steps": 1, "batch_size": 8, "evaluation_images": 2, "evaluation_steps": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "BASES", (base,))
        patch.setattr(plan, "KINDS", (Kind("blend", "pictures", "trojdiff", "blend:devil", "hat"),))
        patch.setattr(plan, "SETTINGS", short)
        for name in ("standard", "thorough"):
            patch.setitem(budgets.DIFFUSION_BUDGETS, name, replace(TINY, name=name))
        patch.setattr(calibration, "DIFFUSION_NULLS", out / "shipped" / "diffusion.json")
        patch.setattr(judging, "DIFFUSION_POWER", power_file(out))
        yield Study(out, run_recipe("diffusion-population", out, data=str(pictures)))


def test_the_study_audits_every_member_and_measures_its_attack(study: Study) -> None:
    rows = {row["key"]: row for row in study.document["rows"]}
    assert set(rows) == {member.key for member in plan.members()}
    assert study.document["missing"] == []
    attacked = rows["00-blend-reporting"]
    assert "attacker" in attacked["sampler"]  # TrojDiff ships a sampler of its own
    assert attacked["succeeded"] is False  # one step plants nothing
    assert attacked["target_mse"] > 0.1 * attacked["base_mse"]
    assert attacked["recovered"]["error"] > 0
    assert attacked["verdict"] == "inconclusive"  # one clean model is no null
    assert "recovered" not in rows["clean-pictures-reporting"]
    shown = tables_of("diffusion-population", study.document)
    (failed,) = [t for title, t in shown.items() if title.startswith("Failed attacks")]
    assert {row[0] for row in failed.rows} == {"00-blend-reporting", "00-blend-calibration"}
    assert "Detection: reporting half, standard budget" not in shown  # nothing to detect


def test_the_study_resumes_and_publishes_the_calibration_half_alone(study: Study) -> None:
    audit = document_path(study.out, "00-blend-reporting", "standard", 0)
    before = audit.stat().st_mtime_ns
    again = run_recipe("diffusion-population", study.out, make=False, publish=True, only="clean*")
    assert audit.stat().st_mtime_ns == before
    assert again["rows"] == study.document["rows"]
    shipped = json.loads(calibration.DIFFUSION_NULLS.read_text("utf-8"))
    assert shipped["families"] == [[ARCHITECTURE, [1, 8, 8], 1]]
    rows = {row["key"]: row["scores"] for row in again["rows"]}
    published = shipped["scores"]["standard"]
    own = rows["clean-pictures-calibration"]["monotone-response"]
    assert published["monotone-response"] == [own]
    # One model is too few to judge others of its image size by their raw scores.
    assert published["trigger-search"] == []
    power = json.loads(power_file(study.out).read_text("utf-8"))
    assert power == {"standard": {"clean": [0, 2], "families": {}}}  # the attack failed


def test_missing_members_are_named_and_nothing_is_published_of_some(
    study: Study, tmp_path: Path
) -> None:
    del study
    found = run_recipe("diffusion-population", tmp_path, make=False)
    assert found["rows"] == []
    assert found["missing"] == [member.key for member in plan.members()]
    for given, code in (
        ({"make": False, "publish": True}, "benchmark/incomplete"),
        ({}, "benchmark/data-missing"),
        ({"make": False, "only": "nobody"}, "benchmark/no-cells"),
    ):
        with pytest.raises(GenwardenError) as refused:
            run_recipe("diffusion-population", tmp_path, **given)
        assert refused.value.code == code


def test_a_member_that_was_made_otherwise_is_refused_and_named(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plan.members()
    longer = [
        replace(m, kind=replace(m.kind, settings={**m.kind.settings, "steps": 7})) if m.kind else m
        for m in before
    ]
    given = {"models": str(study.out / "models"), "make": False, "only": "00-blend-reporting"}
    assert run_recipe("diffusion-population", tmp_path / "same", **given)["failed"] == {}
    monkeypatch.setattr(population, "members", lambda: longer)
    with pytest.raises(GenwardenError, match="planned 7") as refused:
        run_recipe("diffusion-population", tmp_path / "other", **given)
    assert refused.value.code == "benchmark/cells-failed"
    failed = json.loads((tmp_path / "other" / "result.json").read_text("utf-8"))["failed"]
    assert failed["00-blend-reporting"].startswith("benchmark/other-orders")


def test_an_audit_of_another_model_is_refused(study: Study) -> None:
    audit = document_path(study.out, "00-blend-reporting", "standard", 0)
    model = read_diffusion(study.out / "models" / "00-blend-reporting")
    require_audits_of(model.sha256, [audit])
    with pytest.raises(GenwardenError, match="another model") as refused:
        require_audits_of("0" * 64, [audit])
    assert refused.value.code == "benchmark/other-orders"


def test_rows_of_attacks_with_other_steps_are_left_out_and_named() -> None:
    made = {"genwarden": "0.1.0", "environment": {}}
    rows: list[dict[str, Any]] = [
        {"key": key, "budget": "standard", "steps": steps, "scores": {}}
        for key, steps in (("clean", None), ("as-before", 600), ("longer", 600))
    ]
    rows.append({"key": "unstated", "budget": "standard", "scores": {}})
    today = {"clean": None, "as-before": 600, "longer": 1800, "unstated": 600}
    taken, said = with_earlier([], {**made, "rows": rows}, today, ("standard",))
    assert [row["key"] for row in taken] == ["clean", "as-before"]
    assert said["keys"] == ["as-before", "clean"]
    assert said["other"] == ["longer", "unstated"]
    # They stay named once they were made again: what others measured on them is of other models.
    made_again = [{"key": "longer", "budget": "standard", "steps": 1800, "scores": {}}]
    merged = {**made, "rows": [*taken, *made_again], "earlier": said}
    _, said = with_earlier([], merged, today, ("standard",))
    assert said["other"] == ["longer", "unstated"]


def test_rows_of_lost_models_are_taken_from_an_earlier_result_and_named(
    study: Study, tmp_path: Path
) -> None:
    # One clean model is audited anew; its earlier score is moved to see the difference told.
    before = json.loads((study.out / "result.json").read_text("utf-8"))
    lost = {row["key"]: row for row in before["rows"]}
    lost["clean-pictures-reporting"]["scores"]["trigger-search"] += 0.25
    lost["clean-pictures-reporting"]["scores"]["gone"] = 1.0
    earlier = tmp_path / "before.json"
    earlier.write_text(json.dumps(before), "utf-8")
    given = {
        "models": str(study.out / "models"),
        "make": False,
        "only": "clean-pictures-reporting",
        "earlier": str(earlier),
    }
    found = run_recipe("diffusion-population", tmp_path / "out", **given)
    carried = found["earlier"]
    assert [row["key"] for row in found["rows"]] == [m.key for m in plan.members()]
    assert found["missing"] == []
    assert carried["keys"] == sorted(lost.keys() - {"clean-pictures-reporting"})
    (again,) = carried["again"]
    assert again == {
        "key": "clean-pictures-reporting",
        "budget": "standard",
        "difference": pytest.approx(0.25),
        "in_one_only": ["gone"],
    }
    own = found["rows"][0]
    assert own["key"] == "clean-pictures-reporting"
    assert own["scores"] != lost[own["key"]]["scores"]
    for row in found["rows"][1:]:
        assert row.pop("made_by") == {k: before[k] for k in ("genwarden", "environment")}
        measured = lost[row["key"]]
        for one in (row, measured):
            if one.get("exchanged"):
                one["exchanged"].pop("judged_by")
        assert {**row, "judged_by": ""} == {**measured, "judged_by": ""}
        assert row["judged_by"] == "shipped references"  # the runs differ
    notes = tables_of("diffusion-population", found)["Must reach"].notes
    assert "differ by at most 0.25, 1 of them have a score in one run only" in notes[-1]

    # Taken on once more: what was carried is still named.
    given |= {"only": "00-blend-reporting", "earlier": str(tmp_path / "out" / "result.json")}
    third = run_recipe("diffusion-population", tmp_path / "third", **given)
    told = {
        name: {one["key"]: one["difference"] for one in third["earlier"][name]}
        for name in ("again", "again_before")
    }
    assert told["again"] == {"00-blend-reporting": 0.0}
    assert told["again_before"] == {own["key"]: pytest.approx(0.25)}
    assert [row["key"] for row in third["rows"] if "made_by" not in row] == ["00-blend-reporting"]

    # References come of runs that measure the same, to the last bit.
    whole = {**given, "only": "clean-pictures-reporting", "publish": True}
    whole["earlier"] = str(earlier)
    with pytest.raises(GenwardenError, match="clean-pictures-reporting differ") as refused:
        run_recipe("diffusion-population", tmp_path / "x", **whole)
    assert refused.value.code == "benchmark/other-run"
    for change in ({"recipe": "table-2"}, {"seed": 1}):
        earlier.write_text(json.dumps(before | change), "utf-8")
        with pytest.raises(GenwardenError) as refused:
            run_recipe("diffusion-population", tmp_path / "x", **given | {"earlier": str(earlier)})
        expected = "other-orders" if "seed" in change else "no-results"
        assert refused.value.code == f"benchmark/{expected}"


def test_references_are_published_of_two_runs_that_measure_the_same(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "DIFFUSION_NULLS", tmp_path / "diffusion.json")
    monkeypatch.setattr(judging, "DIFFUSION_POWER", tmp_path / "power.json")
    given = {
        "models": str(study.out / "models"),
        "make": False,
        "publish": True,
        "earlier": str(study.out / "result.json"),
    }
    with pytest.raises(GenwardenError, match="No model was audited by both") as refused:
        run_recipe("diffusion-population", tmp_path / "none", **{**given, "models": str(tmp_path)})
    assert refused.value.code == "benchmark/other-run"
    run_recipe("diffusion-population", tmp_path / "one", **given, only="00-blend-reporting")
    shipped = json.loads(calibration.DIFFUSION_NULLS.read_text("utf-8"))
    rows = {row["key"]: row["scores"] for row in study.document["rows"]}
    own = rows["clean-pictures-calibration"]["monotone-response"]
    assert shipped["scores"]["standard"]["monotone-response"] == [own]
    # Two runs that differ: unless every reference is of this one, nothing is published.
    before = json.loads((study.out / "result.json").read_text("utf-8"))
    for row in before["rows"]:
        row["scores"]["monotone-response"] += 0.25
    given["earlier"] = str(tmp_path / "moved.json")
    (tmp_path / "moved.json").write_text(json.dumps(before), "utf-8")
    with pytest.raises(GenwardenError, match="differ between this run") as refused:
        run_recipe("diffusion-population", tmp_path / "two", **given, only="clean-*-reporting")
    assert refused.value.code == "benchmark/other-run"
    run_recipe("diffusion-population", tmp_path / "three", **given, only="clean-*-calibration")
    shipped = json.loads(calibration.DIFFUSION_NULLS.read_text("utf-8"))
    assert shipped["scores"]["standard"]["monotone-response"] == [own]


def test_published_detectors_run_on_members_and_stand_beside_ours(
    study: Study, tmp_path: Path
) -> None:
    models = str(study.out / "models")
    given = {"models": models, "methods": "elijah,terd", "share": 0.001, "only": "*-reporting"}
    found = run_recipe("diffusion-detectors", tmp_path, **given)
    assert len(found["rows"]) == 4
    ran = sorted({row["cell"]["member"] for row in found["rows"]})
    assert f"--option methods=elijah,terd --option only={','.join(ran)}" in found["command"]
    for row in found["rows"]:
        assert math.isfinite(row["figures"]["score"])
        assert ("error" in row["figures"]) is not row["clean"]
    (table,) = tables_of("diffusion-detectors", found).values()
    assert table.notes[0].startswith("Iterations: 0.1 %")
    beside = run_recipe(
        "diffusion-population", study.out, make=False, only="clean*", detectors=str(tmp_path)
    )
    asked = [row[0] for row in tables_of("diffusion-population", beside)["Must reach"].rows]
    assert "recovered trigger error below that of terd" in asked
    with pytest.raises(GenwardenError) as refused:
        run_recipe("diffusion-detectors", tmp_path, **{**given, "share": 0.002})
    assert refused.value.code == "benchmark/other-run"


def test_the_cost_of_an_audit_lists_every_inspection(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(study.out / "models" / "clean-pictures-reporting")
    found = run_recipe("diffusion-audit-cost", tmp_path, budget="standard", model=folder)
    titles = tables_of("diffusion-audit-cost", found)
    ((budget, audits, _, _, reached),) = titles["Time of an audit of a diffusion model"].rows
    assert (budget, audits, reached) == ("standard", "1", "yes")
    ((_, _, in_time),) = titles["Time of the pre-screen"].rows
    assert in_time == "yes"
    parts = {row[1] for row in titles["Where it goes"].rows}
    assert {"shift-response", "trigger-search"} <= parts
    # One that takes too long says so.
    monkeypatch.setattr(audit_cost, "MOST_SECONDS", 0.0)
    monkeypatch.setattr(audit_cost, "MOST_PRE_SCREEN_SECONDS", 0.0)
    titles = tables_of("diffusion-audit-cost", found)
    assert titles["Time of an audit of a diffusion model"].rows[0][-1] == "no"
    assert titles["Time of the pre-screen"].rows[0][-1] == "no"


def hand_made(score: float) -> AuditDocument:
    finding = Finding(
        inspection="trigger-search",
        group="diffusion",
        title="Search",
        outcome="scored",
        summary="",
        score=score,
        p_value_reason="judged against clean reference models",
    )
    return bare_audit(
        budget={"name": "standard"},
        findings=[Judged(finding=finding, adjusted_p=None, flagged=False)],
    )


def store_hand_made(out: Path, key: str, score: float) -> None:
    """A finished audit of the study, as :func:`measured_rows` reads it."""
    spent = {"seconds": 1.0, "cpu_seconds": 1.0}
    content = {"spent": spent, "document": hand_made(score).model_dump(mode="json")}
    path = document_path(out, key, "standard", 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")


def measured(out: Path, members: list[Member]) -> list[dict[str, Any]]:
    return measured_rows(out, out, members, ("standard",), 0)


def test_clean_models_of_the_calibration_half_are_judged_against_the_others(
    tmp_path: Path,
) -> None:
    nine: list[Half] = ["calibration"] * 9
    halves: list[Half] = [*nine, "reporting", "reporting"]
    members = [
        Member(f"clean-{number}-{half}", half, number, Base(f"{number}", "mnist"))
        for number, half in enumerate(halves)
    ]
    scores = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 3.0, 0.35, 9.0]
    for member, score in zip(members, scores, strict=True):
        store_hand_made(tmp_path, member.key, score)
    rows = judged_rows(measured(tmp_path, members), members)
    p = [row["p_values"]["trigger-search"] for row in rows]
    null = scores[:9]
    assert p[8] == pytest.approx(calibration.predictive_p(3.0, null[:8]))  # without itself
    assert p[9] == pytest.approx(calibration.predictive_p(0.35, null))  # against all nine
    assert [row["verdict"] for row in rows][8:] == ["evidence", "none_found", "evidence"]

    # The models of all but the last are lost, and judged otherwise by an earlier run: what it
    # measured is judged again, with the same result.
    lost = [{**row, "p_values": {}, "verdict": "none_found"} for row in rows]
    last = measured(tmp_path, members)[-1:]
    before = {"genwarden": "0", "environment": {}, "rows": lost}
    taken, _ = with_earlier(last, before, {m.key: None for m in members}, ("standard",))
    for again, row in zip(judged_rows(taken, members, mixed=True), rows, strict=True):
        assert {**row, **again} == again
        assert again["p_values"] == row["p_values"]
        assert again["judged_by"] == "this run and an earlier one"
    # Those of a run that measures otherwise are no references.
    apart = judged_rows(taken, members)
    assert {row["judged_by"] for row in apart} == {"shipped references"}


def test_the_calibration_half_is_judged_by_the_other_half_once_that_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [
        Member(f"clean-{number}-{half}", half, number, Base(f"{number}", "mnist"))
        for half in plan.HALVES
        for number in range(9)
    ]
    # The same score is far from one half's clean models and within the other's.
    low = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    scores = [*low, *(score + 3.0 for score in low)]
    kind = Kind("bad-diffusion", "9", "bad-diffusion", "box:7", "hat")
    suspect = Member("attacked", "calibration", 50, members[0].base, kind=kind)
    for member, score in zip(members, scores, strict=True):
        store_hand_made(tmp_path, member.key, score)
    rows = measured(tmp_path, members)
    base = {**rows[0], "key": suspect.key, "clean": False, "succeeded": True, "adaptive": False}
    rows.append({**base, "family": "bad-diffusion", "scores": {"trigger-search": 3.4}})
    every = [*members, suspect]
    judged = {row["key"]: row for row in judged_rows(rows, every)}
    attacked = judged["attacked"]
    assert attacked["verdict"] == "evidence"
    assert attacked["p_values"]["trigger-search"] == pytest.approx(
        calibration.predictive_p(3.4, low)
    )
    assert attacked["exchanged"]["verdict"] == "none_found"
    assert attacked["exchanged"]["judged_by"] == "this run"
    assert attacked["exchanged"]["p_values"]["trigger-search"] == pytest.approx(
        calibration.predictive_p(3.4, scores[9:])
    )
    assert "exchanged" not in judged[members[-1].key]
    # The tables take the verdict of the half that shares no weights with the model.
    document = {"rows": list(judged.values())}
    assert part_of(document, "calibration", "standard").compromised[0]["verdict"] == "evidence"
    for half, clean in (("exchanged", 9), ("both", 18)):
        part = part_of(document, half, "standard")
        assert part.compromised[0]["verdict"] == "none_found"
        assert len(part.clean) == clean
    asked = {row[0] for row in tables_of("diffusion-population", document)["Must reach"].rows}
    assert "halves exchanged: AUC at least 0.99 on the standard attacks" in asked
    assert "both halves: AUC at least 0.99 on the standard attacks" in asked

    # So does the published power; the attack counts as missed.
    monkeypatch.setattr(judging, "DIFFUSION_POWER", tmp_path / "power.json")
    judging.publish_power(list(judged.values()))
    power = json.loads((tmp_path / "power.json").read_text("utf-8"))
    assert power["standard"]["families"] == {"bad-diffusion": [0, 1]}

    # Judges of an earlier run are named.
    last = members[-1].key
    mixed = [{**row, "made_by": {}} if row["key"] == last else row for row in rows]
    (found,) = (row for row in judged_rows(mixed, every) if row["key"] == "attacked")
    assert found["judged_by"] == "this run"
    assert found["exchanged"]["judged_by"] == "this run and an earlier one"

    # A half judges as a whole or not at all.
    without = [row for row in rows if row["key"] != members[-1].key]
    assert {row["exchanged"] for row in judged_rows(without, every) if "exchanged" in row} == {None}


def test_without_the_calibration_half_the_shipped_references_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    null = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    shipped = {
        "descriptions": {"standard": "nine"},
        "families": [[ARCHITECTURE, [1, 16, 16], 8]],
        "scores": {"standard": {"trigger-search": null}},
    }
    monkeypatch.setattr(calibration, "shipped_diffusion", lambda: shipped)
    member = Member("clean-reporting", "reporting", 0, Base("b", "mnist"))
    store_hand_made(tmp_path, member.key, 3.0)
    # One of the two clean models that would judge in place of the shipped ones is missing.
    clean = [Member(f"clean-{n}", "calibration", n, Base(f"{n}", "mnist")) for n in (1, 2)]
    store_hand_made(tmp_path, "clean-1", 0.5)
    rows = measured(tmp_path, [member, *clean])
    row, other = judged_rows(rows, [member, *clean])
    assert row["p_values"]["trigger-search"] == pytest.approx(calibration.predictive_p(3.0, null))
    assert row["judged_by"] == other["judged_by"] == "shipped references"


def case(number: int, score: float, **more: Any) -> dict[str, Any]:
    row = {
        "key": f"m{number}",
        "half": "reporting",
        "clean": True,
        "base": "mnist",
        "size": 28,
        "variant": "",
        "family": "",
        "adaptive": False,
        "attack": None,
        "trigger": None,
        "budget": "standard",
        "verdict": "none_found",
        "score": score,
        "scores": {"trigger-search": score},
        "p_values": {"trigger-search": 10**-score},
        "flagged": [],
        "succeeded": None,
        "seconds": 10.0,
        "cpu_seconds": 10.0,
    }
    return {**row, **more}


def attacked_case(number: int, score: float, *, adaptive: bool, **more: Any) -> dict[str, Any]:
    facts = {
        "clean": False,
        "family": "late" if adaptive else "bad-diffusion",
        "adaptive": adaptive,
        "attack": "late-trigger" if adaptive else "bad-diffusion",
        "trigger": "box:7",
        "succeeded": True,
        "verdict": "evidence" if score > 2 else "none_found",
        "recovered": {"error": 0.2, "error_scaled": 0.1, "target_mse": 0.01},
    }
    return case(number, score, **{**facts, **more})


def test_tables_of_rows_made_by_hand() -> None:
    rows = [case(number, 0.1 * number) for number in range(4)]  # highest clean score 0.3
    rows += [attacked_case(10 + n, s, adaptive=False) for n, s in enumerate((3.0, 4.0, 0.2, 5.0))]
    rows += [attacked_case(20 + n, s, adaptive=True) for n, s in enumerate((0.25, 6.0))]
    lost = {"succeeded": False, "sampler": "ddpm-1000", "target_mse": 0.1, "base_mse": 0.2}
    lost["target_share"] = 0.6
    rows.append(attacked_case(30, 0.0, adaptive=True, **lost))
    theirs = [
        {
            "cell": {"member": row["key"], "method": "terd"},
            "figures": {"score": row["score"], "error": 0.1 if row["key"] == "m10" else 0.9},
        }
        for row in rows
    ]
    document = {"rows": rows, "missing": [], "failed": {}, "detectors": theirs}
    shown = tables_of("diffusion-population", document)
    found = {row[0]: row[1:] for row in shown["Detection: reporting half, standard budget"].rows}
    # 0.2 ties one clean score and beats two of four; 0.25 beats three of four.
    assert found["standard attacks"][1].startswith("0.9062")
    assert found["adaptive attacks"][1].startswith("0.8750")
    assert found["standard attacks"][2].startswith("3 of 4")
    assert found["adaptive attacks"][2].startswith("1 of 2")
    assert found["adaptive attacks"][5] == "1"  # the failed one is in no rate
    asked = {row[0]: row[1:] for row in shown["Must reach"].rows}
    assert asked["AUC at least 0.99 on the standard attacks"][1] == "no"
    error = asked["recovered trigger error below that of terd"]
    assert "ours nearer in 5 of 6 (sign test: p = 0.11)" in error[0]
    assert error[1] == "no"  # a smaller median, but by chance
    awake = "adaptive attacks, also those that draw the target in half of their samples or more"
    assert asked[f"AUC at least 0.95 on the {awake}"][0].startswith("0.6250")
    missed = shown["Missed models"]
    assert {row[1] for row in missed.rows} == {"m12", "m20"}
    assert [row[0] for row in shown["Failed attacks, in no rate"].rows] == ["m30"]
    alone = shown["Each inspection alone: reporting half, standard budget"]
    assert alone.rows[0][0] == "trigger-search"


def test_models_whose_names_differ_behind_a_dot_are_made_side_by_side(tmp_path: Path) -> None:
    shop = Workshop(
        scale=diffusion_scale("smoke"),
        data=None,
        models=tmp_path,
        seed=0,
        clean="",
        device=torch.device("cpu"),
    )
    few, many = (
        Subject(f"rate-{rate}", "bad-diffusion", (("poison_rate", rate),)) for rate in (0.05, 0.25)
    )
    assert shop.lock(few).stem == shop.folder(few).name
    shop.make(CLEAN, wait=True)
    # flock does not tell one process from itself, only one opened file from another.
    with claimed(shop.lock(few), wait=False) as mine:
        assert mine
        assert shop.make(many, wait=False)
        assert not shop.make(few, wait=False)
