"""The recipe ray-scaling: what its tables say of a result, and what it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genwarden.benchmarks.ray_scaling.recipe import run
from genwarden.benchmarks.ray_scaling.tables import tables
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError


def result(*, ratio: float, identical: bool) -> dict[str, Any]:
    def done(rate: float) -> dict[str, float]:
        return {"samples_per_s": rate, "seconds": 10.0}

    return {
        "timed": {"architecture": "dcgan28", "parameters": 1000},
        "channels": "4+4+4",
        "samples": 100,
        "scaling_samples": 10,
        "scaling": [{"1": done(1000.0), "2": done(1000.0 * ratio)}],
        "ratio": ratio,
        "ratios": [ratio],
        "local": {"seconds": 5.0},
        "identical": identical,
        "accidents": {
            "pieces": 8,
            "worker": 2,
            "node": 4,
            "driver": 6,
            "last": {"pieces_kept": 6},
            "seconds": 9.0,
        },
        "environment": {"device": "cpu", "cores": "2"},
        "load": 0.5,
    }


def test_a_result_that_differs_cannot_be_overlooked() -> None:
    for identical, word in ((True, "yes"), (False, "NO")):
        accidents = tables(result(ratio=1.8, identical=identical), "file")[-1]
        assert ["result identical to this process's", word] in accidents.rows


def test_a_billion_samples_are_not_planned_with_a_ratio_that_cannot_be() -> None:
    billion = tables(result(ratio=1.8, identical=True), "file")[1]
    assert billion.rows[1][:2] == ["2", "1800"]
    disturbed = tables(result(ratio=2.5, identical=True), "file")[1]
    assert [row[0] for row in disturbed.rows] == ["1"]
    assert "idle machine" in disturbed.notes[0]


def test_timing_needs_a_model_and_says_how_to_do_without(tmp_path: Path) -> None:
    with pytest.raises(GenwardenError, match="benchmark/clean-missing") as caught:
        run(tmp_path, data=None, seed=0, device=torch.device("cpu"), progress=Silent())
    assert "rounds=0" in caught.value.remedy
