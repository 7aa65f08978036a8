"""Statistics, tables and figures of the population study, on rows made by hand."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom, binomtest, mannwhitneyu, norm
from typer.testing import CliRunner

from genwarden import cli_benchmark
from genwarden.auditing.budgets import BUDGETS as AUDIT_BUDGETS
from genwarden.benchmarks.docs import render
from genwarden.benchmarks.options import checked_options
from genwarden.benchmarks.population.audits import (
    by_attack,
    decision_scores,
    one_per_member,
    read_audits,
)
from genwarden.benchmarks.population.figures import draw
from genwarden.benchmarks.population.must_reach import matching
from genwarden.benchmarks.population.plan import members
from genwarden.benchmarks.population.statistics import (
    Interval,
    Share,
    area,
    area_interval,
    clopper_pearson,
    found_at,
    roc,
)
from genwarden.benchmarks.population.tables import tables
from genwarden.benchmarks.tables import Table
from genwarden.cli import app
from genwarden.cli_options import parse_settings
from genwarden.errors import GenwardenError


def row(key: str, score: float, **changes: Any) -> dict[str, Any]:
    """A row of the result file: clean unless an attack is named."""
    clean = "attack" not in changes
    made = {
        "key": key,
        "half": "reporting",
        "clean": clean,
        "kind": "mnist-quarter",
        "variant": "",
        "attack": None,
        "trigger": None if clean else "in-sample",
        "target": None if clean else "icon:devil",
        "near": False,
        "tardis_sum": None if clean else 1.0,
        "clean_distance": None if clean else 100.0,
        "succeeded": None if clean else True,
        "budget": "standard",
        "audit_seed": 0,
        "verdict": "evidence" if score > 2 else "none_found",
        "suspicion": 1 - 10**-score,
        "score": score,
        "p_values": {"novelty-search": 10**-score},
        "scores": {"novelty-search": score},
        "flagged": ["novelty-search"] if score > 2 else [],
        "match": None,
        "seconds": 60.0,
        "cpu_seconds": 50.0,
    }
    return {**made, **changes}


def study() -> list[dict[str, Any]]:
    """Four clean models and two attacks: one found, one as inconspicuous as a clean model."""
    clean = [row(f"c{i}", 0.1 * i) for i in range(4)]
    found = [row(f"r{i}", 5.0 + i, attack="red", match=0.05) for i in range(3)]
    hidden = row("s0", 0.15, attack="split-gate", trigger="mode", near=True)
    return [*clean, *found, hidden]


def calibration() -> list[dict[str, Any]]:
    """Other members, in the other half."""
    return [{**each, "half": "calibration", "key": f"k-{each['key']}"} for each in study()]


def of(made: list[Table], title: str) -> Table:
    return next(table for table in made if table.title.startswith(title))


def line(table: Table, *start: str) -> dict[str, str]:
    """The row that begins so, by column."""
    rows = [r for r in table.rows if tuple(r[: len(start)]) == start]
    assert len(rows) == 1, (start, table.rows)
    return dict(zip(table.columns, rows[0], strict=True))


def made(rows: list[dict[str, Any]]) -> list[Table]:
    return tables({"recipe": "population", "command": "c", "seed": 0, "rows": rows}, "x")


# --- statistics ----------------------------------------------------------------------------------


def test_area_is_mann_whitney_with_ties_halved() -> None:
    clean, compromised = [0.0, 1.0, 1.0, 2.0], [1.0, 3.0, 0.5]
    found = area(clean, compromised)
    assert found is not None
    # 1.0: one below, two equal, one above; 3.0: all below; 0.5: one below.
    assert found.value == (2 + 4 + 1) / 12
    expected = mannwhitneyu(compromised, clean).statistic / 12
    assert found.value == expected
    random = np.random.default_rng(0)
    many = random.integers(0, 6, 40).tolist(), random.integers(2, 9, 50).tolist()
    larger = area(*many)
    assert larger is not None
    assert larger.value == pytest.approx(mannwhitneyu(many[1], many[0]).statistic / 2000)


def test_equal_scores_are_chance_and_one_class_alone_has_no_area() -> None:
    equal = area([1.0] * 5, [1.0] * 3)
    assert equal is not None
    assert equal.value == 0.5
    assert area([], [1.0]) is None
    assert area([1.0], []) is None
    assert roc([], [1.0]) is None
    assert found_at([1.0], []) is None


def test_area_counts_structural_evidence_above_everything() -> None:
    found = area([0.0, 3.0], [math.inf, 3.0])
    assert found is not None
    assert found.value == (2 + 1.5) / 4


def test_roc_takes_equal_scores_in_one_step_and_its_area_is_the_statistic() -> None:
    clean, compromised = [0.0, 1.0, 1.0, 2.0], [1.0, 3.0, 0.5]
    corners = roc(clean, compromised)
    assert corners is not None
    assert corners.false_alarms == [0.0, 0.0, 0.25, 0.75, 0.75, 1.0]
    assert corners.found == [0.0, 1 / 3, 1 / 3, 2 / 3, 1.0, 1.0]
    found = area(clean, compromised)
    assert found is not None
    assert np.trapezoid(corners.found, corners.false_alarms) == pytest.approx(found.value)


@pytest.mark.parametrize(("found", "of"), [(0, 18), (18, 18), (7, 9), (1, 1), (50, 57)])
def test_intervals_of_shares_are_clopper_pearsons(found: int, of: int) -> None:
    expected = binomtest(found, of).proportion_ci(0.95, "exact")
    assert clopper_pearson(found, of) == pytest.approx((expected.low, expected.high), abs=1e-9)
    low, high = clopper_pearson(found, of)
    if found:  # by its definition: at the lower end so many or more have probability 2.5 %
        assert binom.sf(found - 1, of, low) == pytest.approx(0.025)
    if found < of:
        assert binom.cdf(found, of, high) == pytest.approx(0.025)


def test_share_of_nothing_has_no_value_and_the_widest_interval() -> None:
    assert Share(0, 0).value is None
    assert Share(0, 0).interval == Interval(0.0, 1.0)


def test_area_of_one_keeps_a_width_that_shrinks_with_the_models() -> None:
    few, many = area_interval(1.0, 18, 3), area_interval(1.0, 180, 300)
    assert few.high == many.high == 1.0
    assert 0.5 < few.low < 0.9
    assert 0.97 < many.low < 1.0
    assert area_interval(0.0, 18, 3).high == pytest.approx(1 - few.low)


@pytest.mark.parametrize(("value", "m", "n"), [(0.9, 18, 57), (0.5, 10, 10), (0.99, 18, 2)])
def test_area_interval_solves_its_own_equation(value: float, m: int, n: int) -> None:
    quantile = norm.ppf(0.975)
    mean = (m + n) / 2
    for end in area_interval(value, m, n):
        # Newcombe's form of the same variance.
        factor = 2 * mean - 1 - (3 * mean - 3) / ((2 - end) * (1 + end))
        error = math.sqrt(end * (1 - end) * factor / (m * n))
        assert abs(value - end) == pytest.approx(quantile * error, rel=1e-6)


@pytest.mark.parametrize(("shift", "n"), [(1.8, 57), (3.3, 57), (3.3, 6)])
def test_area_interval_holds_its_level_on_normal_scores(shift: float, n: int) -> None:
    random = np.random.default_rng(1)
    truth = norm.cdf(shift / math.sqrt(2))
    hits = 0
    for _ in range(600):
        found = area(random.normal(0, 1, 18).tolist(), random.normal(shift, 1, n).tolist())
        assert found is not None
        hits += found.interval.low <= truth <= found.interval.high
    assert hits / 600 > 0.93


def test_found_at_zero_and_at_one_percent_false_alarms() -> None:
    compromised = [0.5, 2.0, 2.5, 9.0]
    # A score that equals the highest clean one is not above it.
    assert found_at([0.0, 2.0], compromised) == Share(2, 4)
    assert found_at([0.0] * 98 + [2.0], compromised, 0.01) == Share(2, 4)
    assert found_at([0.0] * 99 + [2.0], compromised, 0.01) == Share(4, 4)
    assert found_at([0.0] * 99 + [2.0], compromised) == Share(2, 4)


# --- rows ----------------------------------------------------------------------------------------


def test_rows_that_cannot_be_judged_are_refused() -> None:
    good = row("a", 1.0)
    for wrong in (
        [{k: v for k, v in good.items() if k != "verdict"}],
        [{**good, "score": math.nan}],
        [{**good, "score": None}],
        [good, good],
    ):
        with pytest.raises(GenwardenError, match="benchmark/unreadable"):
            read_audits(wrong)
    assert len(read_audits([good, {**good, "budget": "quick"}, {**good, "audit_seed": 1}])) == 3


def test_rates_count_each_model_once_however_often_it_was_audited() -> None:
    rows = [row("a", 9.0, audit_seed=3), row("a", 1.0, audit_seed=1), row("b", 2.0, audit_seed=4)]
    assert [audit.score for audit in one_per_member(read_audits(rows))] == [1.0, 2.0]
    repeated = [*study(), *(row("c0", 9.0, audit_seed=seed) for seed in range(1, 10))]
    assert of(made(repeated), "Detection").rows == of(made(study()), "Detection").rows


def test_adaptive_attackers_stand_after_the_published_attacks() -> None:
    names = ["split-gate", "unknown", "trail", "red", "noisy-rex"]
    audits = read_audits(row(name, 1.0, attack=name) for name in names)
    assert list(by_attack(audits)) == ["red", "trail", "unknown", "noisy-rex", "split-gate"]


def test_only_evidence_with_a_near_picture_matches() -> None:
    rows = [
        row("near", 5.0, attack="red", match=0.1),
        row("far", 5.0, attack="red", match=0.2),
        row("no picture", 5.0, attack="rex"),
        row("not found", 1.0, attack="rex", match=0.01),
        row("no single target", 5.0, attack="rex", targets=3, match=0.01),
        row("clean", 5.0),
    ]
    assert matching(read_audits(rows)) == Share(1, 3)
    shown = [{**rows[1], "match_any": 0.1}, *rows[2:], *study()[:4]]
    table = of(made(shown), "Does the evidence")
    overall = line(table, "reporting", "standard", "all")
    assert overall["evidence shows the target"].startswith("0 of 2: 0.0 %")
    assert (overall["median distance"], overall["no picture"]) == ("0.2", "1")
    assert overall["any of its pictures does"] == "1 of 2"


# --- tables --------------------------------------------------------------------------------------


def test_detection_by_family_is_what_the_rows_say() -> None:
    table = of(made(study()), "Detection: reporting half, standard")
    overall = line(table, "all")
    # 3 of the 4 beat all clean models; the last beats two of the four.
    assert overall["AUC"].startswith("0.8750 [")
    assert overall["found at zero false alarms"].startswith("3 of 4: 75.0 % [19.4, 99.4]")
    assert overall["verdict evidence"].startswith("3 of 4: 75.0 %")
    assert line(table, "red")["AUC"].startswith("1.0000 [")
    assert line(table, "split-gate (adaptive)")["AUC"].startswith("0.5000 [")
    assert line(table, "target near the data")["models"] == "1"
    assert line(table, "trigger: mode")["verdict evidence"].startswith("0 of 1")
    assert "1 % false alarms is the same point" in table.notes[0]
    assert "found at 1 % false alarms" not in table.columns


def test_one_percent_point_appears_with_a_hundred_clean_models() -> None:
    clean = [row(f"c{i}", 0.0) for i in range(99)] + [row("c99", 3.0)]
    table = of(made([*clean, row("r", 1.0, attack="red")]), "Detection")
    assert line(table, "all")["found at 1 % false alarms"].startswith("1 of 1")
    assert line(table, "all")["found at zero false alarms"].startswith("0 of 1")


def test_failed_attacks_are_listed_and_in_no_rate() -> None:
    failed = row("f", 0.0, attack="red", succeeded=False, tardis_sum=80.0)
    before, after = made(study()), made([*study(), failed])
    first, second = of(before, "Detection"), of(after, "Detection")
    assert line(second, "red") == {**line(first, "red"), "attack failed": "1"}
    assert [r[:-1] for r in first.rows] == [r[:-1] for r in second.rows]
    assert not any(table.title.startswith("Failed") for table in before)
    assert of(after, "Failed").rows == [["f", "80", "100", "0.8", "standard: none_found"]]
    aims = [
        [r for r in of(result, "Must reach").rows if "seconds" not in r[1]]
        for result in (before, after)
    ]
    assert aims[0] == aims[1]


def test_false_alarms_are_counted_by_variant_and_named() -> None:
    alarm = row("p", 4.0, variant="pruned")
    odd = row("q", 1.0, variant="pruned", verdict="inconclusive", suspicion=None)
    table = of(made([*study(), alarm, odd]), "False alarms")
    pruned = line(table, "reporting", "standard", "pruned")
    assert pruned["verdict evidence"].startswith("1 of 2: 50.0 %")
    assert (pruned["inconclusive"], pruned["which"]) == ("1 of 2", "p")
    assert line(table, "reporting", "standard", "plain")["which"] == "-"
    # The one clean model at 4 costs no red model (5 and more) at zero false alarms.
    detection = of(made([*study(), alarm, odd]), "Detection")
    assert line(detection, "red")["found at zero false alarms"].startswith("3 of 3")


def test_must_reach_says_yes_no_and_what_was_not_measured() -> None:
    table = of(made(study()), "Must reach")
    assert line(table, "AUC at least 0.99 overall")["reached"] == "no (incomplete)"
    family = line(table, "AUC at least 0.95 for each attack family")
    # Nothing lies below, but most families have no model yet.
    assert family["reached"] == "-"
    assert "without a model: rex, trail" in family["ours"]
    adaptive = line(table, "AUC at least 0.95 for each adaptive attacker")
    assert adaptive["reached"] == "no (incomplete)"
    assert "below: split-gate" in adaptive["ours"]
    evidence = line(table, "evidence shows the target in at least 80 % of found cases")
    assert evidence["ours"].startswith("3 of 3")
    quarter = line(table, "standard: at most 120 s on 2 cores, DCGAN of quarter width")
    assert quarter["reached"] == "yes (incomplete)"
    slow = [{**each, "seconds": 121.0} for each in study()]
    asked = quarter["asked"]
    assert line(of(made(slow), "Must reach"), asked)["reached"] == "no (incomplete)"
    assert line(table, "two audits of one seed agree byte for byte")["reached"] == "-"
    assert line(table, "quick: a ROC of its own")["reached"] == "-"
    population = line(table, "population: 30 clean and 100 compromised models")
    assert population["reached"] == "no"
    assert any("Not audited yet (reporting half, standard)" in note for note in table.notes)


def planned() -> list[dict[str, Any]]:
    """The whole plan at the standard budget, everything found."""
    return [
        row(member.key, 0.1 + index / 1000, half=member.half)
        if member.key.startswith("clean.")
        else row(member.key, 9.0, half=member.half, attack=member.key.split(".")[1], match=0.0)
        for index, member in enumerate(members(0))
    ]


def test_complete_population_is_not_called_incomplete() -> None:
    table = of(made([*planned(), *({**r, "budget": "quick"} for r in planned())]), "Must reach")
    assert not any("incomplete" in r[2] for r in table.rows)
    assert not any("Not audited yet" in note for note in table.notes)
    assert line(table, "AUC at least 0.99 overall")["reached"] == "yes"
    population = line(table, "population: 30 clean and 100 compromised models")
    assert population["reached"] == "yes"
    adaptive = line(table, "AUC at least 0.95 for each adaptive attacker")
    assert adaptive["reached"] == "yes"
    failed = [{**r, "succeeded": r["attack"] != "search-aware"} for r in planned()]
    unmeasured = line(of(made(failed), "Must reach"), adaptive["asked"])
    assert unmeasured["reached"] == "-"
    assert "without a model: search-aware" in unmeasured["ours"]
    halved = of(made(planned()[:-1]), "Must reach")
    assert any("0 clean and 1 compromised" in note for note in halved.notes)


def test_each_inspection_alone_shows_what_only_it_finds() -> None:
    both = {"novelty-search": 1e-3, "spectral": 1e-4}
    rows = [
        row("c", 0.0, p_values={"novelty-search": 0.5, "spectral": 0.005}, scores={}),
        row("c2", 0.0, p_values={"novelty-search": 0.6, "spectral": None}, scores={}),
        row("r", 3.0, attack="red", p_values=both, flagged=["spectral"]),
        row("x", 9.0, attack="rex", p_values={}, scores={}, flagged=["parallel-paths"]),
    ]
    result = made(rows)
    alone = of(result, "Each inspection alone: reporting half, standard")
    novelty = line(alone, "novelty-search")
    assert novelty["models"] == "3"
    assert novelty["compromised, p < 0.01"].startswith("1 of 2")
    assert novelty["clean, p < 0.01"].startswith("0 of 2")
    assert novelty["AUC of p"].startswith("0.5000")  # above both, below both
    assert (novelty["flagged by it"], novelty["only by it"]) == ("0", "0")
    spectral = line(alone, "spectral")
    assert spectral["clean, p < 0.01"].startswith("1 of 2")
    assert (spectral["only by it"], spectral["clean flagged by it"]) == ("1", "0")
    assert line(alone, "parallel-paths")["AUC of p"].startswith("0.7500")  # structure, no p
    matrix = of(result, "Which inspection alone finds which attack")
    assert line(matrix, "spectral")["red"] == "1 of 1"
    assert line(matrix, "spectral")["clean"] == "1 of 2"
    assert line(matrix, "parallel-paths")["rex"] == "1 of 1"


def test_calibration_half_comes_first_where_inspections_are_chosen_and_last_where_reported() -> (
    None
):
    titles = [table.title for table in made([*study(), *calibration()])]
    detection = [t for t in titles if t.startswith("Detection")]
    alone = [t for t in titles if t.startswith("Each inspection")]
    assert ["reporting" in t for t in detection] == [True, False]
    assert ["reporting" in t for t in alone] == [False, True]


def test_flips_between_seeds_are_counted_by_model() -> None:
    steady = [row("c0", 0.1 * seed, audit_seed=seed) for seed in range(1, 10)]
    turned = [row("r0", 1.0 if seed == 4 else 9.0, attack="red", audit_seed=seed) for seed in (4,)]
    rows = [*study(), *steady, *turned]
    found = of(made(rows), "The same model under several seeds")
    assert found.rows[0][2:] == ["2 .. 10", "1 of 2: 50.0 % [1.3, 98.7]", "r0"]
    asked = "10 seeds flip no verdict in at least 98 % of the models"
    # Only c0 has ten seeds.
    assert line(of(made(rows), "Must reach"), asked)["ours"].startswith("1 of 1")
    assert line(of(made(study()), "Must reach"), asked)["reached"] == "-"


def test_missed_models_and_times_are_listed() -> None:
    result = made([*study(), row("c0", 0.0, budget="quick", seconds=3.0, cpu_seconds=2.0)])
    missed = of(result, "Missed")
    assert missed.rows == [["standard", "s0", "none_found", "0.15", "novelty-search (p = 0.71)"]]
    times = line(of(result, "Time"), "mnist-quarter")
    assert times["standard: seconds"] == "60.0, 60.0"
    assert times["quick: core-seconds"] == "2.0, 2.0"


def test_rows_of_every_budget_of_the_audit_are_shown() -> None:
    for budget in AUDIT_BUDGETS:
        rows = [{**each, "budget": budget} for each in study()]
        result = made(rows)
        assert line(of(result, f"Detection: reporting half, {budget}"), "red")["models"] == "3"
        assert f"{budget}: seconds" in of(result, "Time").columns
        assert set(draw(rows)) == {"roc.png", "scores.png"}


@pytest.mark.parametrize("count", range(9))
def test_unfinished_results_still_give_tables_and_pictures(count: int) -> None:
    rows = study()[::-1][:count]
    for table in made(rows):
        assert all(len(r) == len(table.columns) for r in table.rows), table.title
        assert table.markdown().startswith("### ")
    if count in {0, 4, 5}:  # drawing takes its time
        expected = {0: set(), 4: {"scores.png"}, 5: {"scores.png", "roc.png"}}
        assert set(draw(rows)) == expected[count]  # the clean rows come last


# --- figures, page, command ----------------------------------------------------------------------


def test_pictures_are_the_same_bytes_and_show_the_reporting_half_only() -> None:
    rows = [*study(), *({**r, "budget": "quick"} for r in study())]
    first = draw(rows)
    assert set(first) == {"roc.png", "scores.png"}
    assert first == draw([*rows, *calibration()])
    assert first != draw([*rows[:-1], {**rows[-1], "score": 7.0}])
    for content in first.values():
        width, height = Image.open(io.BytesIO(content)).size
        assert width > 400
        assert height > 250


def test_command_hands_its_options_to_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[str, Any] = {}

    def record(name: str, out: Path, **given: Any) -> Path:
        taken.update(given, name=name)
        return out / "result.json"

    monkeypatch.setattr(cli_benchmark, "run_benchmark", record)
    words = ["--data", "DATA", "--out", str(tmp_path), "--workers", "2", "--budget", "quick"]
    words += ["--only", "*.rex.*", "--seed", "3", "--device", "cpu", "--option", "audit_seeds=2"]
    done = CliRunner().invoke(app, ["benchmark", "population", *words])
    assert done.exit_code == 0, done.output
    assert "result.json" in done.output.replace("\n", "")
    assert (taken["name"], taken["data"], taken["seed"]) == ("population", "DATA", 3)
    assert taken["options"] == {"budget": "quick", "only": "*.rex.*", "audit_seeds": 2}
    assert taken["given"] == {"workers": 2}


def test_text_with_a_comma_is_an_option_of_the_long_form_too() -> None:
    def recipe(*, budget: str = "standard,quick") -> str:
        return budget

    options = parse_settings(["budget=quick,standard"])
    assert checked_options("some", recipe, options) == {"budget": "quick,standard"}


def test_help_of_the_command_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['genwarden', 'benchmark', 'population', '--help']\n"
        "from genwarden.start import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'torch', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--only" in done.stdout


def test_page_shows_tables_and_pictures_of_the_study(tmp_path: Path) -> None:
    document = {
        "recipe": "population",
        "command": "genwarden benchmark population",
        "seed": 0,
        "rows": study(),
        "pictures": ["population-roc.png"],
        "failed": {"clean.mnist-vae.reporting": "model/corrupt: cut short"},
    }
    (tmp_path / "population.json").write_text(json.dumps(document))
    page = render(tmp_path)
    assert "| AUC at least 0.99 overall | 0.8750 [" in page
    assert "| clean.mnist-vae.reporting | model/corrupt: cut short |" in page
    assert f"![population-roc.png](../{tmp_path.name}/population-roc.png)\n" in page


def test_audits_that_could_not_judge_are_no_low_scores() -> None:
    clean = [row("a", 0.3), row("b", 0.1, verdict="inconclusive")]
    attacked = [
        row("c", 5.0, attack="red"),
        row("d", 5.0, attack="red", verdict="inconclusive"),
    ]
    assert decision_scores(read_audits(clean)) == [0.3]
    assert decision_scores(read_audits(attacked)) == [5.0, -math.inf]
