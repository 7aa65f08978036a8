"""The benchmark commands: what they take, print and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from genwarden.benchmarks import stylegan_table
from genwarden.benchmarks.results import tables_of
from genwarden.benchmarks.store import summary_of
from genwarden.cli import app, parse_settings, run_benchmark
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError
from genwarden.registry import RECIPES

RUNNER = CliRunner()


def test_list_names_every_recipe() -> None:
    listed = RUNNER.invoke(app, ["benchmark", "list"])
    assert listed.exit_code == 0
    assert all(name in listed.output for name in RECIPES)


def test_run_then_table_in_both_forms(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    words = ["run", "wavegan", "--scale", "smoke", "--cells", "*red*", "--option", "red.steps=1"]
    done = RUNNER.invoke(app, ["benchmark", *words, "--out", out])
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "out" / "result.json").read_text())
    assert document["missing"] == ["speech-wavegan.rex.in-sample.clip-drum.r0"]
    tardis = document["cells"][0]["figures"]["tardis_sum"]
    shown = RUNNER.invoke(app, ["benchmark", "table", "wavegan", "--results", out])
    markdown = RUNNER.invoke(app, ["benchmark", "table", "wavegan", "--results", out, "--markdown"])
    assert shown.exit_code == markdown.exit_code == 0
    assert f"| red | {tardis:.4g} / 0.4301 |" in markdown.output
    assert "| rex | - / 0.4207 |" in markdown.output  # not run yet


def test_explain_shows_what_a_recipe_does() -> None:
    explained = RUNNER.invoke(app, ["explain", "table-3"])
    assert "BF-OI, brute force with the known target" in explained.output


def test_dotted_options_are_for_benchmarks_only() -> None:
    pair = ["data-poisoning@mnist-vae.steps=3"]
    assert parse_settings(pair, dotted=True) == {"data-poisoning@mnist-vae.steps": 3}
    with pytest.raises(GenwardenError, match="usage/setting"):
        parse_settings(pair)


def _run(name: str, tmp_path: Path, **given: Any) -> Path:
    return run_benchmark(
        name,
        tmp_path,
        data=None,
        seed=0,
        device=torch.device("cpu"),
        progress=Silent(),
        options={},
        given={"scale": "small", "workers": 1, "restart": False, "cells": None, **given},
    )


def test_recipe_without_cells_refuses_what_it_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(GenwardenError, match="benchmark/no-cells"):
        _run("verdicts", tmp_path, workers=2)
    with pytest.raises(GenwardenError, match="usage/unknown-name"):
        _run("nothing", tmp_path)


def test_table_is_refused_where_there_is_none(tmp_path: Path) -> None:
    for recipe, code in (
        ("verdicts", "benchmark/no-table"),
        ("table-1", "benchmark/no-results"),
        ("nothing", "usage/unknown-name"),
    ):
        with pytest.raises(GenwardenError, match=code):
            tables_of(recipe, tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(GenwardenError, match="benchmark/unreadable"):
        tables_of("table-1", tmp_path)


def test_stylegan_table_shows_theory_and_practice() -> None:
    summary = summary_of([0.5, 1.5])
    document = {
        "published_size": {
            "dimensions": 512,
            "slices": 18,
            "fresh_samples": 10,
            "summary": {"lambda 1": {"q": summary}},
        },
        "rows": [{}],
        "summary": {"closed-form": {"pixel_change_percent": summary}},
    }
    theory, practice = stylegan_table.tables(document, "x")
    assert theory.rows[0][:2] == ["1", "1 +- 0.5"]
    assert "1 +- 0.5 / just over 2" in practice.rows[0]
