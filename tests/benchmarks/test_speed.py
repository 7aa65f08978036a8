"""The recipe ``speed`` measures what it says, and its page follows the result file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from genwarden.benchmarks.docs import render
from genwarden.benchmarks.performance_page import performance_page
from genwarden.benchmarks.speed import clocks
from genwarden.benchmarks.speed.audits import untrained
from genwarden.benchmarks.speed.clocks import Work, rates
from genwarden.benchmarks.speed.recipe import run
from genwarden.benchmarks.speed.scan import STAGES, operations_per_sample
from genwarden.benchmarks.speed.tables import figures, tables
from genwarden.benchmarks.stopwatch import Seconds
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {"batches": "4+8", "rounds": 1, "restarts": 6, "steps": 2, "audits": "none"}


def measured(folder: Path, out: Path, **options: Any) -> dict[str, Any]:
    path = run(
        out,
        data=None,
        seed=0,
        device=torch.device("cpu"),
        progress=Silent(),
        model=str(folder),
        search_model=str(folder),
        **(TINY | options),
    )
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document


def test_every_asked_figure_is_measured_and_shown(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clocks, "_ROUND_S", 0.0)
    document = measured(tiny_model_folder, tmp_path / "out")
    assert all(
        math.isfinite(value)
        for clock in ("wall", "processor")
        for value in figures(document, clock).values()
    )
    scan = document["scan"]
    assert set(scan["eager_samples_per_s"]["bfloat16"]) == {"4", "8"}
    for precision in ("float32", "bfloat16"):
        assert set(scan["stages_samples_per_s"][precision]) == set(STAGES)
        assert precision in scan["computed"][precision]
        assert scan["computed"][precision].startswith("fast path")
    assert document["search"]["restarts"] == 6
    plain, *halved = document["search"]["rows"]
    assert plain["halvings"] == 0
    assert halved
    for row in [plain, *halved]:
        assert row["finished_squared_distance"] <= row["best_squared_distance"]
    must_reach, *_ = tables(document)
    assert [row[4] in {"yes", "no"} for row in must_reach.rows] == [True] * 8
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "speed.json").write_text(json.dumps(document))
    page = performance_page(tmp_path / "results")
    assert "Where a scan spends its time" in page
    assert "## speed (speed.json)" in render(tmp_path / "results")
    document["start_s"]["help"]["wall"] = 2.0
    (tmp_path / "results" / "speed.json").write_text(json.dumps(document))
    assert performance_page(tmp_path / "results") != page


def test_figures_compare_the_whole_scan_with_what_it_is_made_of() -> None:
    rate = {"wall": 1.0, "processor": 1.0}

    def both(value: float) -> dict[str, float]:
        return {clock: value * one for clock, one in rate.items()}

    document: dict[str, Any] = {
        "scan": {
            "stages_samples_per_s": {
                "float32": {"scan": both(800.0), "forward": both(1000.0)},
                "bfloat16": {"scan": both(500.0), "forward": both(2000.0)},
            },
            "eager_samples_per_s": {"float32": {"64": both(200.0), "128": both(400.0)}},
            "operations_per_sample": 10.0,
            "floor_operations_per_s": {
                "bfloat16": {"matrix product": both(10_000.0), "convolution": both(16_000.0)},
                "float32": {"matrix product": both(8_000.0), "convolution": both(4_000.0)},
            },
        },
        "search": {"rows": [{"seconds": both(30.0)}, {"seconds": both(10.0)}]},
        "start_s": {"help": both(0.5), "audit": both(3.0)},
    }
    found = figures(document, "wall")
    assert found["over_eager"] == pytest.approx(2.0)
    assert found["floor_share"] == pytest.approx(0.5)
    assert found["floor_share_float32"] == pytest.approx(1.0)
    assert found["overhead_float32"] == pytest.approx(0.25)
    assert found["overhead_bfloat16"] == pytest.approx(3.0)
    document["scan"]["stages_samples_per_s"]["bfloat16"]["scan"] = both(1600.0)
    found = figures(document, "wall")  # now bfloat16 is the faster one
    assert (found["floor_share"], found["overhead_bfloat16"]) == pytest.approx((1.0, 0.25))
    assert (found["floor_share_float32"], found["over_eager"]) == pytest.approx((1.0, 2.0))


def test_committed_page_is_generated_from_the_committed_results() -> None:
    page = (ROOT / "docs" / "performance.md").read_text("utf-8")
    assert page == performance_page(ROOT / "results")


def test_rates_take_turns_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0, 0.0]
    monkeypatch.setattr(clocks, "_ROUND_S", 0.0)
    monkeypatch.setattr(clocks, "now", lambda: Seconds(*clock))
    order: list[str] = []

    def work(name: str, wall: list[float]) -> Work:
        def do() -> None:
            order.append(name)
            clock[0] += wall.pop(0)
            clock[1] += 0.5

        return Work(do, 10)

    # The first repeat is not counted, and one slow round of three changes nothing.
    found = rates({"a": work("a", [9, 2, 2, 7]), "b": work("b", [9, 5, 4, 5])}, rounds=3)
    assert order == ["a", "b"] * 4
    assert found["a"] == {"wall": 5.0, "processor": 20.0}
    assert found["b"] == {"wall": 2.0, "processor": 20.0}


def test_operations_are_those_of_the_published_network() -> None:
    # 100 x 12544, then 25 taps: 49 x 256 x 128, 49 x 128 x 64, 196 x 64 x 1; two per product.
    expected = 2 * (100 * 12544 + 25 * (49 * 256 * 128 + 49 * 128 * 64 + 196 * 64))
    counted = operations_per_sample(untrained("dcgan28", 256), torch.device("cpu"))
    assert counted == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "options", [{"batches": "8+x"}, {"batches": "0"}, {"rounds": 0}, {"audits": "fast"}]
)
def test_orders_that_mean_nothing_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(GenwardenError) as refused:
        measured(tmp_path / "absent", tmp_path / "out", **options)
    assert refused.value.code == "benchmark/option"
