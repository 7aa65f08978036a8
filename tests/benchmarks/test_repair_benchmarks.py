"""The benchmarks of repairs: tiny models with an exact backdoor, repairs whose truth is known."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_effort import TINY

from bare_audits import bare_audit, bare_facts
from few_inspections import keep_only
from genwarden.artifacts.model_folder import read_model, write_model
from genwarden.auditing import budgets
from genwarden.auditing.document import Judged
from genwarden.benchmarks.population import study
from genwarden.benchmarks.population.making import make
from genwarden.benchmarks.population.plan import members
from genwarden.benchmarks.repairs import cell, matrix, pruning, sanitisation
from genwarden.benchmarks.repairs.judging import outcomes_of
from genwarden.benchmarks.repairs.measuring import at_the_trigger
from genwarden.benchmarks.repairs.suspects import Case, Shelf
from genwarden.benchmarks.results import tables_of
from genwarden.benchmarks.tables import Table
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError
from genwarden.inspections.finding import EXACT, Finding, Latents
from genwarden.models.dcgan import DCGAN28
from genwarden.models.layers import glorot_
from genwarden.registry import REPAIRS, Row
from genwarden.repairs.contract import Clues, Repaired, RepairRun

CPU = torch.device("cpu")
CLEAN = "clean.mnist-eighth.reporting"
BYPASS = "077.computation-bypass.mnist-eighth.in-sample.icon-devil.reporting"
GATED = "081.gated-expansion.mnist-quarter.in-sample.icon-devil.reporting"
GATED_CLEAN = "clean.mnist-quarter.reporting"
Method = Callable[[Any, Clues, Any, RepairRun], Repaired]


@dataclass(frozen=True)
class Given(Row):
    """A repair of this file."""

    def load(self) -> Method:
        return METHODS[self.name]


def nothing(suspect: Any, clues: Clues, settings: Any, run: RepairRun) -> Repaired:
    """Gives the suspect back as it was."""
    del clues, settings, run
    return Repaired(copy.deepcopy(suspect), {}, [], "bypass")


def restored(suspect: Any, clues: Clues, settings: Any, run: RepairRun) -> Repaired:
    """Gives the benign computation back."""
    del clues, settings, run
    return Repaired(copy.deepcopy(suspect.inner), {"dropped": 1}, [], "dcgan28")


def ruined(suspect: Any, clues: Clues, settings: Any, run: RepairRun) -> Repaired:
    """Blackens everything, the suspect that it was handed as well."""
    del clues, settings, run
    with torch.no_grad():
        for weight in suspect.parameters():
            weight.zero_()
    return Repaired(suspect, {}, [], "bypass")


def unable(suspect: Any, clues: Clues, settings: Any, run: RepairRun) -> Repaired:
    del suspect, clues, settings, run
    raise GenwardenError("repair/not-applicable", "There is nothing to cut out.", "Try another.")


def diverging(suspect: Any, clues: Clues, settings: Any, run: RepairRun) -> Repaired:
    del suspect, clues, settings, run
    raise GenwardenError("repair/diverged", "The training diverged.", "Try another.")


METHODS: dict[str, Method] = {
    each.__name__: each for each in (nothing, restored, ruined, unable, diverging)
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clean members (tiny networks) and two attacked ones, under the plan's own names."""
    root = tmp_path_factory.mktemp("models")
    plan = {member.key: member for member in members(0)}
    for seed, key in enumerate((CLEAN, GATED_CLEAN)):
        generator = DCGAN28(channels=(4, 4, 4), latent_dim=6)
        glorot_(generator, torch.Generator().manual_seed(seed))
        write_model(root / key, generator.eval(), "dcgan28", {})
    for key in (BYPASS, GATED):
        make(plan[key], root, root / "no-data", progress=Silent(), device=CPU)
    return root


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in METHODS:
        row = Given(name, "", name, {"settings": "genwarden.repairs.contract:RepairSettings"})
        monkeypatch.setitem(REPAIRS, name, row)
    monkeypatch.setitem(budgets.BUDGETS, "quick", TINY)
    monkeypatch.setattr(study, "_CLEAN_SAMPLES", 256)


def run(out: Path, models: Path, repairs: str, only: str = BYPASS, **more: Any) -> dict[str, Any]:
    """The result file, also of a run that ends with failed cells."""
    arguments: dict[str, Any] = {"data": None, "expdis_samples": 64, **more}
    try:
        matrix.run(
            out,
            seed=0,
            device=CPU,
            progress=Silent(),
            models=str(models),
            only=only,
            repairs=repairs,
            **arguments,
        )
    except GenwardenError as error:
        if error.code != "benchmark/cells-failed":
            raise
    content: dict[str, Any] = json.loads((out / "result.json").read_text("utf-8"))
    return content


def titled(found: list[Table], title: str) -> Table:
    return next(table for table in found if table.title.startswith(title))


def named(table: Table, first: str) -> dict[str, str]:
    row = next(row for row in table.rows if row[0] == first)
    return dict(zip(table.columns, row, strict=True))


def test_a_repair_counts_only_if_the_backdoor_is_gone(models: Path, tmp_path: Path) -> None:
    document = run(tmp_path, models, "nothing,restored")
    by_repair = {outcome.row["repair"]: outcome for outcome in outcomes_of(document)}
    assert by_repair["restored"].figures["ratio"] == pytest.approx(1)
    assert by_repair["restored"].reached()["ratio >= 0.5"] is True
    assert by_repair["nothing"].figures["ratio"] < 0.01
    assert by_repair["nothing"].reached()["ratio >= 0.5"] is False
    # What was not measured is not met: neither re-audit nor FID was asked for.
    assert not by_repair["restored"].all_reached()
    found = tables_of("repair-matrix", tmp_path)
    ratios = named(titled(found, "Attack by repair: TarDis"), "computation-bypass")
    assert ratios["restored"].endswith("(1/1)")
    assert ratios["nothing"].endswith("(0/1)")


def test_one_working_trigger_is_not_hidden_behind_others(models: Path) -> None:
    shelf = Shelf(models, None, 0, CPU)
    case = shelf.open(next(m for m in members(0) if m.key == BYPASS))
    assert case.trigger is not None
    assert case.target is not None
    second = torch.cat([case.trigger, case.trigger + 1])  # the test knows only the first
    pair = at_the_trigger(
        Case(case.member, case.suspect, case.clean, second, case.target),
        case.suspect.generator,
    )
    assert pair["ratio"] > 0.4
    assert pair["ratio_worst"] < 0.01


def test_failed_and_inapplicable_cells_are_told_apart_and_never_count(
    models: Path, tmp_path: Path
) -> None:
    with pytest.raises(GenwardenError, match="1 cells failed"):
        matrix.run(
            tmp_path,
            data=None,
            seed=0,
            device=CPU,
            progress=Silent(),
            models=str(models),
            only=BYPASS,
            repairs="diverging,unable,restored",
            expdis_samples=64,
        )
    document = json.loads((tmp_path / "result.json").read_text("utf-8"))
    status = {row["repair"]: row["status"] for row in document["rows"]}
    assert status["diverging"] == "failed: repair/diverged"
    assert status["unable"] == "not applicable: There is nothing to cut out."
    assert status["restored"] == "done"
    found = tables_of("repair-matrix", tmp_path)
    wanted = titled(found, "What must be reached")
    for name in ("diverging", "unable"):
        row = named(wanted, name)
        assert row["repaired"] == "0 of 1"
        assert row["ratio >= 0.5"] == row["all of these"] == "0 of 1"
    assert named(wanted, "restored")["ratio >= 0.5"] == "1 of 1"
    assert [row[1] for row in titled(found, "Cells that failed").rows] == [status["diverging"]]
    ratios = named(titled(found, "Attack by repair: TarDis"), "all")
    assert (ratios["diverging"], ratios["unable"]) == ("1 failed", "1 n/a")


def test_a_second_run_repairs_nothing_again_but_tries_what_failed(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path, models, "restored,unable,diverging")

    def forbidden(*_: object) -> Repaired:
        raise AssertionError("a finished cell is not done again")

    monkeypatch.setitem(METHODS, "restored", forbidden)
    monkeypatch.setitem(METHODS, "unable", forbidden)
    monkeypatch.setitem(METHODS, "diverging", nothing)
    again = run(tmp_path, models, "restored,unable,diverging")
    for before, after in zip(first["rows"], again["rows"], strict=True):
        if before["repair"] == "diverging":
            assert after["status"] == "done"
        else:
            assert after == before
    # The methods would have been called without what the first run left.
    fresh = run(tmp_path / "fresh", models, "restored,unable")
    assert {row["status"] for row in fresh["rows"]} == {"failed: AssertionError"}


def test_other_settings_are_refused_until_the_cells_are_restarted(
    models: Path, tmp_path: Path
) -> None:
    run(tmp_path, models, "restored")
    with pytest.raises(GenwardenError, match="expdis_samples"):
        run(tmp_path, models, "restored", expdis_samples=32)
    again = run(tmp_path, models, "restored", expdis_samples=32, restart=True)
    assert again["rows"][0]["figures"]["expdis_samples"] == 32


def test_a_repair_that_spoils_its_input_is_measured_against_the_suspect_as_it_was(
    models: Path, tmp_path: Path
) -> None:
    (row,) = run(tmp_path, models, "ruined")["rows"]
    assert row["figures"]["expdis_suspect_sum"] > 0.1
    assert row["figures"]["tardis_before_sum"] < 0.01 * row["figures"]["tardis_clean_sum"]


def test_a_re_audit_that_is_asked_for_later_leaves_the_repair_alone(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    structural = {"parallel-paths", "obfuscating-operations", "capacity"}
    keep_only(monkeypatch, structural)
    before = run(tmp_path, models, "nothing,restored")["rows"]
    monkeypatch.setitem(METHODS, "restored", unable)
    document = run(tmp_path, models, "nothing,restored", reaudit="quick")
    for old, new in zip(before, document["rows"], strict=True):
        assert new["figures"] == old["figures"]
        flagged = new["reaudits"]["quick"]["flagged"]
        assert ("parallel-paths" in flagged) is (new["repair"] == "nothing")
    by_repair = {outcome.row["repair"]: outcome for outcome in outcomes_of(document)}
    assert by_repair["nothing"].reached()["re-audit clear"] is False


def test_clean_models_are_in_no_rate_of_removed_backdoors(models: Path, tmp_path: Path) -> None:
    both = f"{CLEAN},{BYPASS}"
    run(tmp_path, models, "pruning", only=both)
    found = tables_of("repair-matrix", tmp_path)
    assert named(titled(found, "What must be reached"), "pruning")["repaired"].endswith("of 1")
    row = named(titled(found, "Clean models"), "pruning")
    assert row["clean models"] == "1"


def test_attacks_that_missed_are_named_and_in_no_rate(models: Path, tmp_path: Path) -> None:
    document = run(tmp_path, models, "restored")
    document["suspects"][BYPASS]["facts"]["succeeded"] = False
    (tmp_path / "result.json").write_text(json.dumps(document))
    titles = {table.title: table for table in tables_of("repair-matrix", tmp_path)}
    assert [row[0] for row in titles["Attacks that missed their target"].rows] == [BYPASS]
    assert not any(title.startswith("What must be reached") for title in titles)


def test_table_numbers_come_from_the_cells(models: Path, tmp_path: Path) -> None:
    document = run(tmp_path, models, "restored")
    document["rows"][0]["figures"] |= {"ratio": 0.125, "ratio_worst": 0.125}
    document["rows"][0]["figures"]["expdis_suspect_mean"] = 2 / 784
    document["rows"][0]["quality"] = {"fid": [10.0, 11.0, 12.0], "samples": 9}
    document["suspects"][BYPASS]["quality"] = {"fid": [9.0, 10.0, 11.5], "samples": 9}
    (tmp_path / "result.json").write_text(json.dumps(document))
    found = tables_of("repair-matrix", tmp_path)
    attack = "computation-bypass"
    assert named(titled(found, "Attack by repair: TarDis"), attack)["restored"] == "0.125 (0/1)"
    assert named(titled(found, "Attack by repair: ExpDis"), attack)["restored"] == "2"
    wanted = named(titled(found, "What must be reached"), "restored")
    assert wanted["ratio >= 0.5"] == wanted["ExpDis <= 1"] == "0 of 1"
    assert wanted["FID within spread"] == "1 of 1"
    document["rows"][0]["quality"]["fid"] = [13.0, 14.0, 15.0]
    (tmp_path / "result.json").write_text(json.dumps(document))
    wanted = named(titled(tables_of("repair-matrix", tmp_path), "What must"), "restored")
    assert wanted["FID within spread"] == "0 of 1"


def test_auto_is_listed_suspect_by_suspect_with_its_method(models: Path, tmp_path: Path) -> None:
    document = run(tmp_path, models, "restored")
    document["rows"][0] |= {"repair": "auto", "changes": {"method": "bypass-removal"}}
    (tmp_path / "result.json").write_text(json.dumps(document))
    row = named(titled(tables_of("repair-matrix", tmp_path), "auto, suspect"), BYPASS)
    assert row["method"] == "bypass-removal"
    assert row["not reached"] == "FID within spread (unknown), re-audit clear (unknown)"


def audit_of(sha256: str, latent: list[float]) -> dict[str, Any]:
    """An audit as the study keeps it, with one structural finding."""
    finding = Finding(
        inspection="parallel-paths",
        group="static",
        title="Parallel paths",
        outcome="scored",
        summary="two paths",
        structural=True,
        null=EXACT,
        evidence=[Latents(title="latents", values=[latent, latent[:2]])],
    )
    model = bare_facts(
        sha256=sha256, architecture="bypass", latent_shape=[6], sample_shape=[1, 28, 28]
    )
    document = bare_audit(
        model=model,
        budget={"name": "standard"},
        findings=[Judged(finding=finding, adjusted_p=None, flagged=False)],
    )
    return {"spent": {}, "document": document.model_dump(mode="json")}


def test_clues_are_what_the_audit_of_this_very_model_flags(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Clues] = []

    def listening(suspect: Any, clues: Clues, settings: Any, run: RepairRun) -> Repaired:
        told.append(clues)
        return nothing(suspect, clues, settings, run)

    monkeypatch.setitem(METHODS, "nothing", listening)
    run(tmp_path / "without", models, "nothing")
    assert told[0].latents.shape == (0, 6)
    assert told[0].flagged == ()
    audits = tmp_path / "audits"
    audits.mkdir()
    path = audits / f"{BYPASS}.standard.0.json"
    path.write_text(json.dumps(audit_of(read_model(models / BYPASS).sha256, [0.5] * 6)))
    run(tmp_path / "with", models, "nothing", audits=str(audits))
    assert told[1].flagged == ("parallel-paths",)
    assert torch.equal(told[1].latents, torch.full((1, 6), 0.5))
    path.write_text(json.dumps(audit_of("0" * 64, [0.5] * 6)))
    document = run(tmp_path / "other", models, "nothing", audits=str(audits))
    assert document["rows"][0]["status"] == "failed: benchmark/other-audit"
    assert len(told) == 2


def test_a_member_that_is_missing_fails_without_data(models: Path, tmp_path: Path) -> None:
    other = tmp_path / "models"
    shutil.copytree(models / CLEAN, other / CLEAN)
    document = run(tmp_path / "out", other, "nothing")
    (row,) = document["rows"]
    assert row["status"] == "failed: benchmark/data-missing"
    assert row["attack"] == "computation-bypass"


def test_the_sheet_has_a_row_per_repaired_suspect(models: Path, tmp_path: Path) -> None:
    document = run(tmp_path, models, "restored,unable")
    assert document["pictures"] == ["repair-matrix-restored-1x28x28.png"]
    with Image.open(tmp_path / document["pictures"][0]) as sheet:
        width, height = sheet.size
    assert width > 28 * 12
    assert 28 < height < 3 * 30 * 2


def test_pruning_nothing_changes_nothing_and_pruning_more_moves_more(
    models: Path, tmp_path: Path
) -> None:
    pruning.run(
        tmp_path,
        data=None,
        seed=0,
        device=CPU,
        progress=Silent(),
        models=str(models),
        only=GATED,
        samples=64,
        expdis_samples=64,
    )
    document = json.loads((tmp_path / "result.json").read_text("utf-8"))
    figures = document["rows"][0]["figures"]
    assert figures["expdis_sum"][0] == 0
    assert figures["expdis_sum"][-1] > figures["expdis_sum"][0]
    assert figures["tardis_sum"][0] < 0.1 * figures["tardis_clean_sum"]
    half = figures["tardis_sum"][pruning.SHARES.index(0.5)]
    (table,) = tables_of("repair-pruning", tmp_path)
    assert named(table, "gated-expansion")["at 50 %"] == f"{half:.4g}"
    figures["tardis_sum"][pruning.SHARES.index(0.5)] = 12345.0
    (tmp_path / "result.json").write_text(json.dumps(document))
    (table,) = tables_of("repair-pruning", tmp_path)
    assert float(named(table, "gated-expansion")["at 50 %"]) == pytest.approx(12345, rel=1e-3)
    assert document["pictures"] == ["repair-pruning.png"]


def test_sanitisation_stands_beside_the_papers_numbers(models: Path, tmp_path: Path) -> None:
    sanitisation.run(
        tmp_path,
        data=None,
        seed=0,
        device=CPU,
        progress=Silent(),
        models=str(models),
        only=GATED,
        steps=1,
        expdis_samples=64,
    )
    document = json.loads((tmp_path / "result.json").read_text("utf-8"))
    (row,) = document["rows"]
    assert row["status"] == "done"
    assert row["settings"]["steps"] == 1
    row["attack"] = "rex"
    row["figures"] |= {"tardis_after_sum": 100.0, "expdis_suspect_sum": 50.0}
    (tmp_path / "result.json").write_text(json.dumps(document))
    (table,) = tables_of("repair-sanitisation", tmp_path)
    assert named(table, "rex")["after / printed"] == "100 / 2314"
    assert named(table, "rex")["ExpDis / printed"] == "50 / 24.14"


def test_fid_is_measured_once_data_are_given(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell, "fid_values", lambda *_: {"fid": [3.0, 4.0, 5.0], "samples": 2048})
    first = run(tmp_path, models, "restored")
    assert first["rows"][0]["quality"] == {"skipped": "no --data was given"}
    (outcome,) = outcomes_of(first)
    assert outcome.fid_change is None
    second = run(tmp_path, models, "restored", data=str(tmp_path / "data"))
    (outcome,) = outcomes_of(second)
    assert (outcome.fid_change, outcome.fid_spread) == (0, 2)
    assert second["rows"][0]["figures"] == first["rows"][0]["figures"]


@pytest.mark.slow
def test_workers_find_what_one_process_finds(models: Path, tmp_path: Path) -> None:
    only = f"{BYPASS},{GATED}"
    one = run(tmp_path / "one", models, "pruning,bypass-removal", only=only)
    two = run(tmp_path / "two", models, "pruning,bypass-removal", only=only, workers=2)
    assert [r["figures"] for r in one["rows"] if r["status"] == "done"] == [
        r["figures"] for r in two["rows"] if r["status"] == "done"
    ]
