"""Whatever happens at whichever write: the same command again ends as if nothing had happened."""

from __future__ import annotations

import os
import resource
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from few_inspections import keep_only
from genwarden.auditing import audit as audit_room
from genwarden.auditing import budgets, scanning
from genwarden.auditing.running import guarded
from genwarden.benchmarks.robustness.snapshots import snapshot
from genwarden.errors import GenwardenError
from genwarden.inspections.finding import Finding
from genwarden.inspections.workbench import Effort
from genwarden.registry import Row

from .faults import DeathError, Fault, watched
from .scenarios import OUT, SCENARIOS, Scenario, make_inputs

#: A few inspections stand for all: each is one piece of work in the ledger.
_FEW = ("capacity", "cluster-outliers", "repeated-outputs")
_TINY = Effort("quick", 64, 64, 4, 1, 4, 1, 1, 1, 1)


@pytest.fixture(autouse=True)
def small_audits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(budgets.BUDGETS, "quick", _TINY)
    keep_only(monkeypatch, _FEW)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the inputs of every scenario."""
    monkeypatch.chdir(tmp_path)
    make_inputs()
    return tmp_path


def undisturbed(scenario: Scenario) -> tuple[dict[str, Any], int]:
    """What the command leaves, and how many changes of the folder that takes."""
    with watched(OUT) as watch:
        scenario.run()
    found = snapshot(OUT)
    shutil.rmtree(OUT)
    return found, watch.calls


def interrupted(scenario: Scenario, at: int, fault: Fault) -> None:
    """Run the command into a fault; the user sees one foreseen error, or none."""
    with watched(OUT, at, fault) as watch:
        try:
            scenario.run()
        except DeathError:
            seen = "death"
        except GenwardenError as error:
            seen = error.code
        else:
            seen = "nothing, as the change did not matter"
    assert watch.struck
    assert seen == "death" or fault != "death"
    assert seen in {"death", "output/not-writable", "nothing, as the change did not matter"}


def check(scenario: Scenario, fault: Fault, *, every: int) -> int:
    """Strike at every ``every``-th change and the last; returns how many points there are."""
    expected, changes = undisturbed(scenario)
    points = {*range(1, changes + 1, every), changes}
    for at in sorted(points):
        interrupted(scenario, at, fault)
        scenario.again()
        assert snapshot(OUT) == expected, f"{fault} at change {at} of {changes}"
        shutil.rmtree(OUT)
    return changes


@pytest.mark.parametrize(
    ("name", "every"),
    [
        *(("train", 5), ("attack", 9), ("audit", 13), ("compress", 3), ("repair", 140)),
        *(("train-diffusion", 60), ("attack-diffusion", 30)),
    ],
)
def test_death_at_a_write_changes_nothing_in_the_end(name: str, every: int, here: Path) -> None:
    del here
    assert check(SCENARIOS[name], "death", every=every) > 15


@pytest.mark.parametrize("fault", ["full disk", "no permission"])
@pytest.mark.parametrize(("name", "every"), [("audit", 40), ("compress", 7), ("train", 20)])
def test_a_write_that_fails_is_one_error_and_changes_nothing_in_the_end(
    name: str, every: int, fault: Fault, here: Path
) -> None:
    del here
    check(SCENARIOS[name], fault, every=every)


@pytest.mark.parametrize("name", ["compress", "train", "attack-diffusion"])
def test_a_real_limit_on_the_size_of_files_is_one_error_and_changes_nothing_in_the_end(
    name: str, here: Path
) -> None:
    del here
    scenario = SCENARIOS[name]
    expected, _ = undisturbed(scenario)
    largest = max(len(content) for content in expected.values() if isinstance(content, bytes))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, before[1]))
    try:
        with pytest.raises(GenwardenError) as caught:
            scenario.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.code == "output/not-writable"
    assert not [path for path in OUT.rglob("*") if path.name.endswith(".partial")]
    scenario.again()
    assert snapshot(OUT) == expected


@pytest.mark.parametrize("name", ["compress", "train", "attack-diffusion"])
def test_a_folder_without_write_permission_is_one_error_and_changes_nothing_in_the_end(
    name: str, here: Path
) -> None:
    del here
    scenario = SCENARIOS[name]
    expected, _ = undisturbed(scenario)
    OUT.mkdir(mode=0o555)
    if os.access(OUT, os.W_OK):
        pytest.skip("nothing is forbidden to root")
    try:
        with pytest.raises(GenwardenError) as caught:
            scenario.run()
    finally:
        OUT.chmod(0o755)
    assert caught.value.code == "output/not-writable"
    scenario.again()
    assert snapshot(OUT) == expected


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["death", "full disk", "no permission"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_write_of_every_command(name: str, fault: Fault, here: Path) -> None:
    del here
    check(SCENARIOS[name], fault, every=1)


def test_two_deaths_in_a_row_change_nothing_in_the_end(here: Path) -> None:
    del here
    scenario = SCENARIOS["compress"]
    expected, changes = undisturbed(scenario)
    for first in range(3, changes, 4):
        interrupted(scenario, first, "death")
        with watched(OUT, 5), pytest.raises(DeathError):
            scenario.run()
        scenario.again()
        assert snapshot(OUT) == expected
        shutil.rmtree(OUT)


def test_at_most_one_inspection_is_repeated(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del here
    ran: Counter[str] = Counter()
    real = guarded

    def counted(row: Row, run: Callable[[], Finding]) -> Finding:
        ran[row.name] += 1
        return real(row, run)

    for module in (audit_room, scanning):
        monkeypatch.setattr(module, "guarded", counted)
    scenario = SCENARIOS["audit"]
    _, changes = undisturbed(scenario)
    for at in range(2, changes, 17):
        ran.clear()
        interrupted(scenario, at, "death")
        finished = (OUT / "audit.json").exists()
        scenario.run()
        shutil.rmtree(OUT)
        assert set(ran) == set(_FEW)
        # A finished audit is made anew when it is asked for again.
        assert finished or sum(count - 1 for count in ran.values()) <= 1, at


def test_the_dead_leave_half_a_file_and_no_result_of_it(here: Path) -> None:
    """The faults themselves: without the care of ``engine.files`` these tests would fail."""
    del here
    scenario = SCENARIOS["compress"]
    _, changes = undisturbed(scenario)
    left = set()
    for at in range(1, changes + 1, 2):
        interrupted(scenario, at, "death")
        left |= {path.suffix for path in OUT.rglob("*") if path.is_file()}
        whole = [path for path in OUT.rglob("*.json") if path.is_file()]
        snapshots = [path.read_text() for path in whole]
        assert all(text.endswith("}\n") for text in snapshots)
        shutil.rmtree(OUT, ignore_errors=True)
    assert ".partial" in left
