"""Recipes for compression: tiny trainings and audits, statistics on numbers made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compression_recipes import audit_little, measure_little, write_pictures
from running_recipes import run_recipe, tables_of

from genwarden.auditing import budgets
from genwarden.benchmarks.compression import scales
from genwarden.benchmarks.compression.attack_tables import (
    classifier_reached,
    generator_reached,
    pruning_reached,
)
from genwarden.benchmarks.compression.attacks import trials
from genwarden.benchmarks.compression.remedies import remedies_for
from genwarden.benchmarks.compression.remedy_tables import awake, gone, ratio
from genwarden.benchmarks.compression.runtime import moments
from genwarden.compression.how import compressor
from genwarden.errors import GenwardenError
from genwarden.registry import COMPRESSION_REMEDIES


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_little(monkeypatch)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    audit_little(monkeypatch)


def test_attack_recipe_resumes_and_gives_the_same(data: Path, tmp_path: Path) -> None:
    only = "cnn.pruning-artifact.unknown-rate.*,vae.dormant-box..int4.*"
    options = {"data": str(data), "scale": "smoke", "runtime": False}
    models = str(tmp_path / "models")
    first = run_recipe("compression-attacks", tmp_path / "a", only=only, models=models, **options)
    assert [row["attack"] for row in first["rows"]] == ["pruning-artifact", "dormant-box"]
    assert set(first["rows"][0]["figures"]["sweep"]) == {
        "full",
        "prune-filters-0.25",
        "prune-filters-0.5",
    }
    assert len(first["rows"][0]["figures"]["annealed"]) >= 2
    titles = tables_of("compression-attacks", first)
    assert {row[-1] for row in titles["Must reach"].rows} == {"no"}  # after three steps
    again = run_recipe("compression-attacks", tmp_path / "b", only=only, **options)
    for one, other in zip(first["rows"], again["rows"], strict=True):
        one["figures"].pop("attack_seconds"), other["figures"].pop("attack_seconds")
        assert one["figures"] == other["figures"]
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "b" / "cells").iterdir()}
    run_recipe("compression-attacks", tmp_path / "b", only=only, **options)
    assert before == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "b" / "cells").iterdir()}


@pytest.mark.slow
def test_int8_attacks_are_run_on_the_runtime_with_every_calibration_set(
    data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    only = "cnn.dormant-box-classifier..int8.*,vae.dormant-box.int8.int8.*"
    found = run_recipe("compression-attacks", tmp_path, only=only, data=str(data), scale="smoke")
    sets = {row["sort"]: row["figures"]["runtime"]["int8"] for row in found["rows"]}
    assert list(sets["classifier"]) == ["same", "similar", "dissimilar"]
    assert list(sets["generator"]) == ["same", "half spread", "few"]
    titles = tables_of("compression-attacks", found)
    assert len(titles["Calibration sets"].rows) == 3
    assert len(titles["Generators on the runtime"].rows) == 3


def test_a_scale_without_its_data_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(GenwardenError) as caught:
        run_recipe("compression-attacks", tmp_path, scale="smoke", runtime=False)
    assert caught.value.code == "benchmark/data-missing"
    assert not (tmp_path / "models").exists()


def test_the_paper_scale_is_the_papers() -> None:
    scale = scales.compression_scale("paper")
    assert {s.architecture: s.paper_accuracy for s in scale.subjects} == {
        "resnet18": 93.84,
        "vgg16": 92.90,
        "mobilenetv2": 92.64,
    }
    assert scale.targets == (1, 3, 5, 7, 9)
    assert len(trials(scale)) == len({trial.key for trial in trials(scale)})
    with pytest.raises(GenwardenError) as caught:
        scales.compression_scale("huge")
    assert caught.value.code == "usage/unknown-name"


@pytest.mark.parametrize("name", sorted(scales.SCALES))
def test_every_trial_has_settings_that_its_attack_takes(name: str) -> None:
    from genwarden.attacks.compression.run_classifier import settings_of as of_classifier
    from genwarden.attacks.settings import settings_of

    for trial in trials(scales.compression_scale(name)):
        fill = of_classifier if trial.subject.sort == "classifier" else settings_of
        assert fill(trial.attack, trial.given(3)).seed == 3


def test_aims_of_attacks_are_judged_on_what_they_were_made_for() -> None:
    def row(
        success: float, asleep: float = 0.1, accuracy: float = 0.985, compressed: float = 0.9
    ) -> dict[str, Any]:
        attacked = {
            "full": {"accuracy": accuracy, "attack_success": asleep},
            "int8": {"accuracy": compressed, "attack_success": success},
            "int4": {"accuracy": 0.1, "attack_success": 0.0},
        }
        untouched = {
            "full": {"accuracy": 0.99, "attack_success": 0.1},
            "int8": {"accuracy": 0.94, "attack_success": 0.1},
        }
        return {"how": "int8", "figures": {"attacked": attacked, "untouched": untouched}}

    assert classifier_reached(row(0.96))
    assert not classifier_reached(row(0.94))
    assert not classifier_reached(row(0.96, asleep=0.21))
    assert not classifier_reached(row(0.96, accuracy=0.97))
    assert not classifier_reached(row(1.0, compressed=0.1))  # it answers everything with the target
    near = {"kept": 0.96, "distances": {"int4": 0.009, "int8": 1.0}}
    assert generator_reached({"how": "int4", "figures": near})
    assert not generator_reached({"how": "int4,int8", "figures": near})
    assert not generator_reached({"how": "int4", "figures": {**near, "kept": 0.94}})


def test_pruning_attacks_are_judged_by_the_deployers_that_they_expect() -> None:
    def row(sweep: float, annealed: dict[str, float], **settings: Any) -> dict[str, Any]:
        full = {"accuracy": 0.97, "attack_success": 0.01}

        def pruned(success: float) -> dict[str, float]:
            return {"accuracy": 0.95, "attack_success": success}

        return {
            "attack": "pruning-artifact",
            "settings": {"rate": 0.3, **settings},
            "figures": {
                "untouched": {"full": {"accuracy": 0.975, "attack_success": 0.0}},
                "attacked": {"full": full},
                "sweep": {
                    "full": full,
                    "prune-filters-0.3": pruned(sweep),
                    "prune-filters-0.5": pruned(0.93),
                },
                "annealed": {
                    f"prune-filters-annealed-{name}": pruned(success)
                    for name, success in annealed.items()
                },
            },
        }

    own_alone = {"0.3": 1.0, "0.3-run1": 0.1}
    everybody = {"0.3-run1": 0.96, "0.5-run1": 0.92}
    alike, unknown = {"layer_rates": "uniform"}, {"knowledge": "unknown-rate"}
    assert pruning_reached(row(0.96, own_alone, **alike))
    assert not pruning_reached(row(0.94, everybody, **alike))
    # What the attacker's own annealing reaches is no deployer's.
    assert not pruning_reached(row(1.0, own_alone))
    # A known rate is judged at that rate, an unknown one at all and 90 %.
    assert pruning_reached(row(0.0, {**everybody, "0.5-run1": 0.2}))
    assert pruning_reached(row(0.0, everybody, **unknown))
    assert not pruning_reached(row(0.0, {**everybody, "0.5-run1": 0.89}, **unknown))
    assert pruning_reached(row(0.91, {}, **alike, **unknown))
    broken = row(1.0, {"0.3-run1": 1.0})
    broken["figures"]["annealed"]["prune-filters-annealed-0.3-run1"]["accuracy"] = 0.5
    assert not pruning_reached(broken)


def remedy_row(remedy: str, distance: float, cost: float, **more: Any) -> dict[str, Any]:
    figures = {
        "attacked": {"distance": distance, "cost": cost, "seconds": 1.0},
        "untouched": {"distance": 2.0, "cost": cost / 2, "seconds": 1.0},
        "clean_distance": 2.0,
    }
    return {
        "network": "vae",
        "sort": "generator",
        "attack": "dormant-box",
        "label": "",
        "how": "int4",
        "target": "icon:devil",
        "cell": {"how": "int4", "remedy": remedy},
        "figures": figures,
        **more,
    }


def test_remedies_are_judged_against_plain_compression_of_the_same_model() -> None:
    plain, cured = remedy_row("none", 0.01, 0.004), remedy_row("noise", 1.5, 0.005)
    other = remedy_row("none", 0.01, 0.001, how="int4,int8")
    rows = [other, plain, cured]
    assert gone(cured)
    assert not gone(plain)
    assert ratio(cured, rows, "attacked") == pytest.approx(1.25)
    assert awake(cured, rows)
    # What plain compression does not wake is no success of a remedy.
    asleep = remedy_row("none", 1.9, 0.004)
    assert not awake(cured, [asleep, cured])
    titles = tables_of("compression-remedies", {"rows": rows})
    lines = {row[0]: row for row in titles["Remedies, generators"].rows}
    assert lines["noise"][2:5] == ["1 of 1", "1.25, 1.25", "1 of 1"]
    assert lines["none"][2] == "0 of 2"


def test_every_remedy_that_does_something_to_a_compression_is_tried_on_it() -> None:
    scale = scales.compression_scale("smoke")
    by_sort = {trial.subject.sort: trial for trial in trials(scale)}
    uniform = remedies_for(by_sort["generator"], compressor("int8"))
    assert uniform == ["none", *COMPRESSION_REMEDIES]
    pruned = remedies_for(by_sort["classifier"], compressor("prune-0.3"))
    assert "finetuned" in pruned
    assert "noise" not in pruned
    assert "fine-pruning" in pruned


def test_remedy_recipe_measures_attacked_and_untouched_model(data: Path, tmp_path: Path) -> None:
    found = run_recipe(
        "compression-remedies",
        tmp_path,
        data=str(data),
        scale="smoke",
        only="vae.dormant-box..int4.*.none,vae.dormant-box..int4.*.scale-jitter,"
        "cnn.dormant-box-classifier..int4.*.stochastic-rounding",
    )
    assert [row["cell"]["remedy"] for row in found["rows"]] == [
        "stochastic-rounding",
        "none",
        "scale-jitter",
    ]
    for row in found["rows"]:
        assert row["figures"]["attacked"]["cost"] > 0
        assert row["figures"]["untouched"]["cost"] > 0
    tables_of("compression-remedies", found)


@pytest.mark.usefixtures("quick")
def test_audit_cost_lists_every_inspection(tmp_path: Path) -> None:
    found = run_recipe(
        "compression-audit-cost", tmp_path, budget="quick", deploy_as="int4,prune-0.5"
    )
    titles = tables_of("compression-audit-cost", found)
    ((budget, audits, _, _, reached),) = titles["Time of an audit of five variants"].rows
    assert (budget, audits, reached) == ("quick", "1", "yes")
    parts = {row[1] for row in titles["Where it goes"].rows}
    assert "differential-search" in parts


def test_moments_of_one_draw_have_no_spread() -> None:
    assert moments([0.5]) == {"mean": 0.5, "std": 0.0}
    assert moments([0.0, 1.0])["std"] == pytest.approx(0.5**0.5)


@pytest.mark.slow
def test_sleeping_diffusion_models_are_made_once_and_audited_beside_honest_ones(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = replace(
        budgets.DIFFUSION_VARIANT_BUDGETS["quick"], steps=1, noises=2, probe_noises=2, placebos=1
    )
    monkeypatch.setitem(budgets.DIFFUSION_VARIANT_BUDGETS, "quick", tiny)
    given: dict[str, Any] = {"data": str(data), "only": "int4", "deploy_as": "int4", "steps": 1}
    found = run_recipe("compression-diffusion", tmp_path, **given)
    assert [(row["model"], row["how"]) for row in found["rows"]] == [
        ("ddpm-clean", ""),
        ("dormant-box-diffusion", "int4"),
    ]
    assert all(set(row["by_variant"]) == {"int4"} for row in found["rows"])
    titles = tables_of("compression-diffusion", found)
    (row,) = titles["Diffusion models that compression wakes"].rows
    attack, how, _, compressed, _, reached, _ = row
    # One step wakes nothing.
    assert (attack, how, reached) == ("dormant-box-diffusion", "int4", "no")
    assert float(compressed) > 0.01
    # Kept models and audits are used again; other settings are not mixed with them.
    again = run_recipe("compression-diffusion", tmp_path, **{**given, "data": None})
    assert again["rows"] == found["rows"]
    with pytest.raises(GenwardenError, match="other settings"):
        run_recipe("compression-diffusion", tmp_path, **{**given, "steps": 2})
    with pytest.raises(GenwardenError, match="int3"):
        run_recipe("compression-diffusion", tmp_path, only="int3")
