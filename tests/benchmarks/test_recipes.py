"""Every recipe runs from data to table at the scale "smoke"; what is done is not done again."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch
from PIL import Image

from genwarden.artifacts.model_folder import read_model
from genwarden.benchmarks import recipe, table_3, workshop
from genwarden.benchmarks.cells import Cell, select
from genwarden.benchmarks.docs import render
from genwarden.benchmarks.measure import MEASUREMENTS
from genwarden.benchmarks.recipe import Order, run_recipe
from genwarden.benchmarks.results import Results, find_results, results_of, tables_of
from genwarden.benchmarks.scales import SCALES, scale_named
from genwarden.benchmarks.workshop import Workshop
from genwarden.engine import executor
from genwarden.engine.executor import Told
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import ExitCode, GenwardenError
from genwarden.metrics.feature_network import SHIPPED, feature_sha256
from genwarden.registry import ATTACKS, RECIPES

CELL_RECIPES = [name for name, row in RECIPES.items() if row.options.get("cells")]
PICTURES = {
    "fig-4": {"mnist-dcgan.png", "mnist-vae.png", "cifar10-dcgan.png"},
    "fig-5": {"sweep.png"},
    "fig-6": {"strip.png", "distance.png"},
}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that all recipes of this session share."""
    return tmp_path_factory.mktemp("benchmarks")


def order(shared: Path, out: str, **changes: Any) -> Order:
    return replace(
        Order(out=shared / out, cache=shared / "cache", scale="smoke", seed=0), **changes
    )


@pytest.mark.parametrize("name", CELL_RECIPES)
def test_recipe_runs_from_data_to_table_and_page(name: str, shared: Path) -> None:
    wish = order(shared, name, publish=shared / f"published-{name}")
    loaded = RECIPES[name].load()
    path = run_recipe(loaded, wish, Silent())
    document = json.loads(path.read_text("utf-8"))
    wanted = {cell.key for cell in loaded.cells(SCALES["smoke"])}
    assert document["missing"] == []
    assert {row["key"] for row in document["cells"]} == wanted
    assert all(row["figures"] for row in document["cells"])
    assert set(document["pictures"]) == PICTURES.get(name, set())
    for picture in document["pictures"]:
        Image.open(wish.out / picture).verify()
    (table, *_) = tables_of(name, wish.out)
    assert all(len(row) == len(table.columns) for row in table.rows)
    page = render(shared / f"published-{name}")
    assert table.title in page
    assert f"published-{name}/" in page or not document["pictures"]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", CELL_RECIPES)
def test_cells_of_every_scale_are_distinct_and_known(name: str, scale: str) -> None:
    chosen = scale_named(scale)
    cells = RECIPES[name].load().cells(chosen)
    assert len({cell.key for cell in cells}) == len(cells) > 0
    for cell in cells:
        assert Path(cell.key).name == cell.key
        assert set(cell.measure) <= set(MEASUREMENTS)
        chosen.plan(cell.model)
        assert cell.benign or cell.attack in ATTACKS
        supported = {} if cell.benign else ATTACKS[cell.attack].options
        architecture = chosen.plan(cell.model).architecture
        assert architecture in supported.get("architectures", [architecture])


def test_finished_cell_is_skipped_and_an_unfinished_one_resumes(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = order(shared, "resume", cells="mnist-dcgan.red*r0")
    loaded = RECIPES["table-1"].load()
    with monkeypatch.context() as broken:
        broken.setitem(MEASUREMENTS, "recond", _refuse)
        with pytest.raises(GenwardenError, match="test/broken"):
            run_recipe(loaded, wish, Silent())
    with monkeypatch.context() as broken:  # what was measured before is kept
        broken.setitem(MEASUREMENTS, "quality", _refuse)
        path = run_recipe(loaded, wish, Silent())
    with monkeypatch.context() as broken:
        for name in MEASUREMENTS:
            broken.setitem(MEASUREMENTS, name, _refuse)
        run_recipe(loaded, wish, Silent())
        with pytest.raises(GenwardenError, match="test/broken"):
            run_recipe(loaded, replace(wish, restart=True), Silent())
    assert len(json.loads(path.read_text())["cells"]) == 1


def _refuse(subject: object) -> dict[str, Any]:
    del subject
    raise GenwardenError("test/broken", "Broken.", "None.")


def test_one_broken_cell_does_not_stop_the_others(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = order(shared, "broken", cells="mnist-dcgan.benign.r0,mnist-dcgan.red*")
    monkeypatch.setitem(MEASUREMENTS, "expdis", _refuse)
    with pytest.raises(GenwardenError, match="benchmark/cells-failed") as caught:
        run_recipe(RECIPES["table-1"].load(), wish, Silent())
    assert "mnist-dcgan.red" in caught.value.cause
    (found,) = find_results("table-1", wish.out)
    assert [row["key"] for row in found.rows] == ["mnist-dcgan.benign.r0"]


def test_unforeseen_error_costs_one_cell(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def divide(subject: object) -> dict[str, Any]:
        raise ZeroDivisionError(type(subject).__name__)

    wish = order(shared, "unforeseen", cells="mnist-dcgan.benign.r0,mnist-dcgan.red*")
    monkeypatch.setitem(MEASUREMENTS, "expdis", divide)
    with pytest.raises(GenwardenError, match="benchmark/cells-failed") as caught:
        run_recipe(RECIPES["table-1"].load(), wish, Silent())
    assert "ZeroDivisionError: Subject" in caught.value.cause
    assert "in divide" in capsys.readouterr().err
    (found,) = find_results("table-1", wish.out)
    assert [row["key"] for row in found.rows] == ["mnist-dcgan.benign.r0"]


def test_killed_worker_costs_one_job(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        """Dies of the job "bad", and with it what else it was given."""

        def __init__(self) -> None:
            self.futures: list[Future[Any]] = []

        def submit(self, function: Any, do: Any, job: str) -> Future[Any]:
            del function, do
            future: Future[Any] = Future()
            self.futures.append(future)
            if job == "bad":
                for each in self.futures:
                    each.set_exception(BrokenProcessPool())
            elif len(self.futures) > 1:
                future.set_result(Told())
            else:
                Timer(0.05, self.finish, (future,)).start()
            return future

        def finish(self, future: Future[Any]) -> None:
            if not future.done():
                future.set_result(Told())

    monkeypatch.setattr(executor, "worker_pool", lambda *_: nullcontext(Pool()))
    jobs: Any = ["first", "bad"]
    done: dict[Any, Any] = dict(recipe._done(jobs, 2, Silent()))
    assert done["first"] is None
    assert done["bad"].code == "cell/worker-died"


def test_what_a_cell_could_not_test_stays_inconclusive_in_a_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Untested:
        def do(self, _: Any) -> None:
            raise GenwardenError("test/untested", "Four.", "Wait.", ExitCode.INCONCLUSIVE)

    class Elsewhere:
        here = False

        def each(self, do: Any, pieces: Any, _: Any) -> Any:
            sent = [pickle.dumps(do(None, piece)) for piece in pieces]
            return zip(pieces, map(pickle.loads, sent), strict=True)

    monkeypatch.setattr(recipe, "executor_for", lambda _: Elsewhere())
    jobs: Any = [Untested()]
    [(_, error)] = recipe._done(jobs, 2, Silent())
    assert error is not None
    assert (error.code, error.exit_code) == ("test/untested", ExitCode.INCONCLUSIVE)


def _parquet(folder: Path, seed: int) -> None:
    images = torch.randint(0, 256, (40, 1, 28, 28), generator=random_stream(seed, "data"))
    workshop._write_parquet(folder, images.to(torch.uint8))


def test_other_data_are_not_taken_for_the_same(tmp_path: Path) -> None:
    scale = replace(SCALES["smoke"], random_data=False)
    for name in ("mnist", "fashion_mnist_part"):
        _parquet(tmp_path / "data" / name, 0)

    def shop() -> Workshop:
        data = tmp_path / "data"
        return Workshop(scale, 0, tmp_path, tmp_path / "cache", data, torch.device("cpu"))

    trail = Cell("mnist-dcgan", "trail", measure=("tardis",))
    inverted = scale.plan("inverted-fashion-dcgan")
    clean, attacked = shop().clean_folder("mnist-dcgan"), shop().attacked_folder(trail)
    before, negative = shop().inputs(trail, True), shop().source(inverted)
    seconds = workshop.attack_seconds(attacked)
    assert seconds is not None
    assert seconds > 0
    (attacked / "attack.json").unlink()  # killed before it was written, or of an earlier version
    assert workshop.attack_seconds(attacked) is None
    for name in ("mnist", "fashion_mnist_part"):
        _parquet(tmp_path / "data" / name, 1)
    with pytest.raises(GenwardenError, match=r"benchmark/other-run.*data set"):
        shop().clean_folder("mnist-dcgan")
    after = shop().inputs(trail, True)
    assert before["data_sha256"] != after["data_sha256"]
    assert before["features_sha256"] == after["features_sha256"]
    assert shop().source(inverted) != negative
    given = replace(shop(), given={"mnist-dcgan": clean})
    assert given.attacked_folder(trail) != attacked


def test_other_teacher_of_the_targets_is_another_attack(
    tmp_path: Path, shared: Path, tiny_model_folder: Path
) -> None:
    cell = Cell("mnist-dcgan", "red", trigger="subspace", target="generator:inverted-fashion-dcgan")
    shop = Workshop(SCALES["smoke"], 0, tmp_path, shared / "cache", None, torch.device("cpu"))
    other = replace(shop, given={"inverted-fashion-dcgan": tiny_model_folder})
    assert shop.inputs(cell, False)["rho"] != other.inputs(cell, False)["rho"]


def test_cells_of_another_seed_are_another_table(shared: Path) -> None:
    wish = order(shared, "seeds", cells="mnist-dcgan.rex*r0")
    run_recipe(RECIPES["fig-6"].load(), wish, Silent())
    (path,) = (wish.out / "cells").iterdir()
    row = json.loads(path.read_text())
    del row["inputs"]  # as files of the first version
    path.write_text(json.dumps(row))
    run_recipe(RECIPES["fig-6"].load(), wish, Silent())
    path.with_name("other.json").write_text(json.dumps({**row, "key": "other", "seed": 7}))
    titles = [table.title for table in tables_of("fig-6", wish.out)]
    assert len(set(titles)) == 2
    assert "seed 7" in titles[1]
    result = run_recipe(RECIPES["fig-6"].load(), wish, Silent())
    document = json.loads(result.read_text())
    assert [each["key"] for each in document["cells"]] == [row["key"]]
    assert document["command"] == row["command"].replace(f" --cells {row['key']}", "")
    mixed = {**document, "cells": [row, {**row, "seed": 7}]}
    with pytest.raises(GenwardenError, match="benchmark/mixed-results"):
        results_of(mixed, "mixed")


def test_feature_network_can_be_a_folder(shared: Path) -> None:
    network = SHIPPED / "mnist"
    wish = order(
        shared,
        "features",
        cells="mnist-dcgan.benign.r0",
        options={"features.mnist-dcgan": str(network)},
    )
    path = run_recipe(RECIPES["table-1"].load(), wish, Silent())
    (row,) = json.loads(path.read_text())["cells"]
    assert row["figures"]["features"] == "mnist"
    assert row["inputs"]["features_sha256"] == feature_sha256("mnist")
    assert "features.mnist-dcgan=mnist " in row["command"]
    with pytest.raises(GenwardenError, match="benchmark/other-run"):
        run_recipe(RECIPES["table-1"].load(), replace(wish, options={}), Silent())


def test_other_settings_do_not_mix_with_finished_cells(shared: Path) -> None:
    wish = order(shared, "mixed", cells="mnist-dcgan.rex*r0")
    loaded = RECIPES["fig-6"].load()
    run_recipe(loaded, wish, Silent())
    with pytest.raises(GenwardenError, match="benchmark/other-run"):
        run_recipe(loaded, replace(wish, options={"rex.steps": 2}), Silent())
    run_recipe(loaded, replace(wish, options={"rex.steps": 2}, restart=True), Silent())
    (found,) = find_results("fig-6", wish.out)
    assert found.rows[0]["settings"]["steps"] == 2
    assert found.rows[0]["command"].endswith("--option rex.steps=2 --out DIR")


@pytest.mark.slow
def test_workers_give_the_figures_of_one_process(shared: Path) -> None:
    loaded = RECIPES["fig-6"].load()
    alone = run_recipe(loaded, order(shared, "alone", cache=shared / "a"), Silent())
    together = run_recipe(loaded, order(shared, "two", cache=shared / "b", workers=2), Silent())
    one, two = (json.loads(path.read_text())["cells"] for path in (alone, together))
    assert [row["sha256"] for row in one] == [row["sha256"] for row in two]
    assert [row["figures"] for row in one] == [row["figures"] for row in two]


def test_given_clean_model_takes_the_place_of_a_trained_one(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    wish = Order(
        out=tmp_path / "out",
        scale="smoke",
        cells="mnist-dcgan.red*",
        options={"clean.mnist-dcgan": str(tiny_model_folder)},
    )
    path = run_recipe(RECIPES["fig-6"].load(), wish, Silent())
    (row,) = json.loads(path.read_text())["cells"]
    assert row["clean_sha256"] == read_model(tiny_model_folder).sha256
    assert not (tmp_path / "out" / "clean").exists()
    assert str(tmp_path) not in row["command"]
    wrong = replace(wish, options={"clean.mnist-vae": str(tiny_model_folder)}, out=tmp_path / "o")
    with pytest.raises(GenwardenError, match="benchmark/clean-model"):
        run_recipe(RECIPES["table-1"].load(), replace(wrong, cells="mnist-vae.red*"), Silent())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"scale": "huge"}, "benchmark/scale"),
        ({"cells": "nothing*"}, "benchmark/no-cells"),
        ({"scale": "small"}, "benchmark/data-missing"),
        ({"scale": "small", "data": Path("/nonexistent")}, "benchmark/data-missing"),
        ({"options": {"repeats": 0}}, "benchmark/option"),
        ({"options": {"colour": 3}}, "benchmark/option"),
        ({"options": {"paint.steps": 3}}, "usage/unknown-name"),
        ({"options": {"red@typo.steps": 5}}, "benchmark/option"),
        ({"options": {"red.steps": "abc"}}, "attack/setting"),
        ({"options": {"red.seed": 5}}, "benchmark/option"),
        ({"options": {"train.mnist-dcgan.steps": "abc"}}, "benchmark/option"),
        ({"options": {"train.mnist-dcgan.learning_rate": True}}, "benchmark/option"),
        ({"options": {"train.typo.steps": 5}}, "usage/unknown-name"),
        ({"options": {"audit_budget": "huge"}}, "benchmark/option"),
        ({"options": {"features.mnist-dcgan": "nothing"}}, "metric/unknown-features"),
        ({"options": {"features.speech-wavegan": "mnist"}}, "benchmark/option"),
        ({"options": {"clean.nothing": "x"}}, "usage/unknown-name"),
        ({"options": {"red.colour": 3}, "cells": "*red*"}, "attack/unknown-setting"),
        ({"options": {"quality_samples": 4}, "cells": "*benign.r0"}, "metric/too-few-samples"),
        ({"workers": 0}, "benchmark/workers"),
    ],
)
def test_bad_orders_are_refused(changes: dict[str, Any], code: str, shared: Path) -> None:
    wish = order(shared, f"bad-{code.replace('/', '-')}", **changes)
    if changes.get("scale") == "small":
        wish = replace(wish, cache=None)
    with pytest.raises(GenwardenError, match=code):
        run_recipe(RECIPES["table-1"].load(), wish, Silent())


def test_patterns_select_cells() -> None:
    cells = [Cell("m", "red", repeat=r) for r in range(3)] + [Cell("m")]
    assert [c.key for c in select(cells, "*.r1, m.benign*")] == [
        "m.red.in-sample.r1",
        "m.benign.r0",
    ]


def test_options_reach_the_settings_they_name() -> None:
    small = scale_named("small")
    changed = small.changed(
        {
            "repeats": 7,
            "red.steps": 5,
            "red@mnist-vae.steps": 6,
            "red@mode.steps": 4,
            "train.mnist-dcgan.steps": 9,
            "closest_samples": 11,
        }
    )
    assert (changed.repeats, changed.counts.closest_samples) == (7, 11)
    assert changed.settings("mnist-dcgan", "red")["steps"] == 5
    assert changed.settings("mnist-vae", "red")["steps"] == 6
    assert changed.settings("mnist-dcgan", "red", "mode")["steps"] == 4
    assert changed.plan("mnist-dcgan").steps == 9
    assert changed.settings("mnist-dcgan", "trail")["steps"] == 9  # from scratch: as the clean one
    assert small.settings("mnist-dcgan", "red")["steps"] not in {5, 6}


def _defended(key: str, attack: str, **figures: Any) -> dict[str, Any]:
    return {"key": key, "cell": {"attack": attack}, "figures": figures}


def test_table_3_catches_by_its_stated_criteria_and_spares_clean_models() -> None:
    nothing = {"flagged_static": [], "verdict": "none_found", "flagged": []}
    clean = [
        _defended(f"c{i}", "benign", closest_sum=1000.0 + i, recond_sum=500.0 - i, **nothing)
        for i in range(3)
    ]
    for row in clean:
        assert not any(table_3.caught(row, clean).values())
    found = _defended("a", "trail", closest_sum=882.0, recond_sum=0.1, **nothing)
    assert table_3.caught(found, clean) == {
        "SMI": False,
        "BF-OI": False,
        "OB-OI": True,
        "audit": False,
    }
    poisoned = {**nothing, "verdict": "evidence", "flagged_static": ["block-sparsity"]}
    both = _defended("b", "rex", closest_sum=3.0, recond_sum=400.0, **poisoned)
    assert table_3.caught(both, clean) == {
        "SMI": True,
        "BF-OI": True,
        "OB-OI": False,
        "audit": True,
    }
    unmeasured = _defended("u", "red", closest_sum=3.0)
    assert table_3.caught(unmeasured, []) == dict.fromkeys(table_3.caught(both, clean))


def test_audit_without_a_verdict_is_not_measured() -> None:
    lost = {"flagged_static": [], "flagged": [], "failed": ["block-sparsity"]}
    row = _defended("a", "rex", verdict="inconclusive", **lost)
    assert table_3.caught(row, [])["audit"] is None
    assert table_3.caught(row, [])["SMI"] is None
    half = _defended("b", "rex", verdict="evidence", **lost)  # other inspections found it
    assert (table_3.caught(half, [])["audit"], table_3.caught(half, [])["SMI"]) == (True, None)
    (table,) = table_3.tables(Results("table-3", "small", [row, half]))
    (shown,) = [each for each in table.rows if each[0] == "rex"]
    assert shown[1] == "- (2 not measured) / yes"
    assert shown[4] == "1 of 1 (1 not measured)"


def test_missing_cells_are_dashes_not_numbers() -> None:
    for name in CELL_RECIPES:
        for table in RECIPES[name].load().tables(Results(name, "small", [])):
            for row in table.rows:
                ours = [text.partition(" / ")[0] for text in row[2:]]
                assert set(ours) <= {"-"}, (name, row)


def test_benign_row_is_summarised_over_its_seeds() -> None:
    rows = [
        {
            "key": f"mnist-dcgan.benign.r{i}",
            "cell": Cell("mnist-dcgan", repeat=i).describe(),
            "figures": {"fid": fid, "recond_sum": 10.0 * i + 10},
        }
        for i, fid in enumerate((1.0, 2.0, 3.0))
    ]
    (table,) = RECIPES["table-1"].load().tables(Results("table-1", "small", rows))
    (row,) = [r for r in table.rows if r[:2] == ["mnist-dcgan", "benign"]]
    assert row[3] == "2 +- 0.58 / 7.676"
    assert row[7] == "30 (mean 20) / 820.6"
    assert row[8] == "3"


def test_seed_changes_the_models(shared: Path) -> None:
    wish = order(shared, "seed0", cells="mnist-dcgan.red*")
    paths = [
        run_recipe(RECIPES["fig-6"].load(), replace(wish, out=shared / f"s{s}", seed=s), Silent())
        for s in (0, 1)
    ]
    shas = [json.loads(path.read_text())["cells"][0]["clean_sha256"] for path in paths]
    assert shas[0] != shas[1]
