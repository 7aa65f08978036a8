"""The benchmark commands: what they take, print and refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from genwarden.benchmarks import feature_network, speed_tables, stylegan, stylegan_table
from genwarden.benchmarks.options import checked_options
from genwarden.benchmarks.results import tables_of
from genwarden.benchmarks.store import summary_of
from genwarden.cli import app
from genwarden.cli_benchmark import run_benchmark
from genwarden.cli_options import parse_settings
from genwarden.engine.choice import EngineChoice, executor_for
from genwarden.engine.executor import InProcess
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
    assert document["missing"] == ["speech-wavegan.rex.in-sample.clip-drum.x10.r0"]
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


def _run(
    name: str,
    tmp_path: Path,
    options: dict[str, Any] | None = None,
    choice: EngineChoice | None = None,
    **given: Any,
) -> Path:
    return run_benchmark(
        name,
        tmp_path,
        data=None,
        seed=0,
        device=torch.device("cpu"),
        progress=Silent(),
        options=options or {},
        given={"scale": "small", "workers": 1, "restart": False, "cells": None, **given},
        choice=choice,
    )


def test_recipe_without_cells_refuses_what_it_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(GenwardenError, match="benchmark/no-cells"):
        _run("verdicts", tmp_path, workers=2)
    with pytest.raises(GenwardenError, match="usage/unknown-name"):
        _run("nothing", tmp_path)


def test_cells_choose_in_studies_that_call_it_only(tmp_path: Path) -> None:
    with pytest.raises(GenwardenError, match="No cell of diffusion-samplers matches 'nobody'"):
        _run("diffusion-samplers", tmp_path, scale="smoke", cells="nobody")


def test_an_engine_is_not_started_for_what_cannot_be_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    @contextmanager
    def opened(choice: EngineChoice, **_: Any) -> Iterator[Any]:
        started.append(choice)
        yield InProcess()

    monkeypatch.setattr("genwarden.engine.choice.open_executor", opened)
    ray = EngineChoice("ray", workers=2)
    for name, more, code in (
        ("verdicts", {}, "benchmark/no-cells"),
        ("determinism", {}, "benchmark/no-cells"),
        ("nothing", {}, "usage/unknown-name"),
        ("population", {"options": {"colour": 3}}, "benchmark/option"),
    ):
        with pytest.raises(GenwardenError, match=code):
            _run(name, tmp_path, workers=2, choice=ray, **more)
    assert not started
    # And one that can be split is given to it, as a whole.
    seen = []
    row = RECIPES["population"]

    def method(out: Path, *, workers: int = 1, **_: Any) -> Path:
        seen.append((workers, type(executor_for(workers))))
        return out

    monkeypatch.setattr(type(row), "load", lambda _: method)
    assert _run("population", tmp_path, workers=2, choice=ray) == tmp_path
    assert (started, seen) == ([ray], [(1, InProcess)])


@pytest.mark.parametrize(
    "options",
    [
        {"colour": 3},
        {"triggers": "many"},
        {"triggers": 2.5},
        {"lambdas": "a+b"},
        {"clean": True},
        {"seed": 4},
    ],
)
def test_bad_option_of_a_recipe_without_cells_names_the_good_ones(
    options: dict[str, Any], tmp_path: Path
) -> None:
    def recipe(*, clean: str = "", seed: int = 0, triggers: int = 5, lambdas: str = "0.1+1") -> str:
        return f"{clean} {seed} {triggers} {lambdas}"

    with pytest.raises(GenwardenError, match=r"benchmark/option") as caught:
        checked_options("some", recipe, options)
    assert "triggers=5" in caught.value.remedy
    good = {"clean": 7, "triggers": 2, "lambdas": "1+10"}
    assert checked_options("some", recipe, good) == {**good, "clean": "7"}
    with pytest.raises(GenwardenError, match="benchmark/option"):
        _run("red-throughput", tmp_path, options={"colour": 3})


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


def test_speed_tables_show_what_the_files_hold() -> None:
    shared = {
        "architecture": "dcgan28",
        "architecture_settings": {"latent_dim": 6},
        "environment": {"device": "cpu", "threads": "1"},
    }
    figures = {"tardis_sum": summary_of([1.0, 3.0]), "expdis_sum": summary_of([0.25, 0.25])}
    sweep = {
        **shared,
        "summary": {"0.1": figures},
        "settings": {"steps": 60},
        "target": "icon:devil",
        "seconds": {"sweep": None, "steps_ratio": {"wall": 1.5, "processor": 1.25}},
    }
    of_lambda, times = speed_tables.sweep_tables(sweep, "x")
    assert of_lambda.rows == [["0.1", "2 +- 1", "0.25 +- 0", "2"]]
    assert ["steps: alone / together", "1.5", "1.25"] in times.rows
    assert ["the whole sweep", "-", "-"] in times.rows
    row = {
        "method": "red",
        "batch_size": 32,
        "students": 1,
        "student_steps_per_s": 44.5,
        "operations_per_s": 3e10,
        "step_over_floor": 5.25,
    }
    peak = {"matrix_product": 1.5e11, "convolution": 1e11}
    document = {**shared, "rows": [row], "peak_operations_per_s": peak, "precision": "float32"}
    (speed,) = speed_tables.throughput_tables(document, "x")
    assert speed.rows == [["red", "32", "1", "44.5", "30", "5.25", "-"]]


def test_feature_network_has_a_table() -> None:
    document = {
        "data_set": "mnist",
        "features": 64,
        "train_images": 60_000,
        "test_images": 10_000,
        "test_accuracy": 0.9912,
        "training_s": 61.0,
        "environment": {"device": "cpu"},
    }
    (table,) = feature_network.tables(document, "x")
    assert table.rows == [["mnist", "64", "60,000", "99.12", "10,000", "61"]]


def test_stylegan_command_repeats_the_run_and_restart_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def theory(triggers: int, *rest: Any) -> dict[str, Any]:
        del rest
        return {"rows": [{}] * triggers}

    monkeypatch.setattr(stylegan, "published_size", theory)  # slow, and tested elsewhere

    def run(**changes: Any) -> dict[str, Any]:
        path = _run("stylegan-edit", tmp_path, scale="smoke", **changes)
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found

    options = {"triggers": 1, "offset_weight": 0.5}
    first = run(options=options)
    assert first["command"] == (
        "genwarden benchmark run stylegan-edit --scale smoke --option triggers=1 "
        "--option target=icon:devil --option offset_weight=0.5 --seed 0 --out DIR"
    )
    assert not first["rows"]
    with pytest.raises(GenwardenError, match="ledger/other-run"):
        run(options={**options, "triggers": 2})
    again = run(options={**options, "triggers": 2}, restart=True)
    assert len(again["published_size"]["rows"]) == 2
    for wrong in ({"method": "training"}, {"colour": 3}):
        with pytest.raises(GenwardenError, match=r"benchmark/option|attack/unknown-setting"):
            run(options={**options, **wrong}, restart=True)
