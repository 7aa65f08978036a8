"""The benchmark page says what the result files say."""

from __future__ import annotations

import json
from pathlib import Path

from genwarden.benchmarks.docs import render
from genwarden.benchmarks.store import summary_of

ROOT = Path(__file__).parents[2]


def test_committed_page_is_generated_from_the_committed_results() -> None:
    assert (ROOT / "docs" / "benchmarks.md").read_text("utf-8") == render(ROOT / "results")


def test_results_of_a_retired_recipe_point_to_the_present_one() -> None:
    page = render(ROOT / "results")
    assert "retired recipe red-rex" in page
    assert "`genwarden benchmark run red-rex" not in page


def test_page_changes_with_the_results(tmp_path: Path) -> None:
    result = {
        "recipe": "verdicts",
        "command": "c",
        "budget": "quick",
        "rows": [
            {
                "model": "m",
                "verdict": "evidence",
                "suspicion": 0.999,
                "flagged": ["novelty-search"],
                "seconds": 12.0,
            }
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(result))
    first = render(tmp_path)
    assert "| m | evidence | 0.9990 | novelty-search | 12 |" in first
    result["rows"][0]["verdict"] = "none_found"  # type: ignore[index]
    (tmp_path / "a.json").write_text(json.dumps(result))
    assert render(tmp_path) != first


def test_summary_gives_mean_and_standard_error() -> None:
    summary = summary_of([1.0, 2.0, 3.0])
    assert summary["mean"] == 2.0
    assert abs(summary["standard_error"] - (1 / 3) ** 0.5) < 1e-12
    assert (summary["minimum"], summary["maximum"], summary["repeats"]) == (1.0, 3.0, 3)
