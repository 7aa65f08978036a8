"""The target-free search finds what rounding wakes, and nothing in the honest twin."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from genwarden.artifacts.model_folder import read_model
from genwarden.commands.demo import demo_model_folder
from genwarden.compression.apply import compress
from genwarden.compression.contract import Compressor
from genwarden.compression.how import compressor
from genwarden.compression.uniform import Uniform
from genwarden.inspections.compression import (
    differential_search,
    layer_attribution,
    placebo_null,
    placebo_ratio,
    rounding_statistics,
)
from genwarden.inspections.compression.bench import CompressionBench, CompressionEffort
from genwarden.inspections.finding import Images, Latents, Table, decoded
from sleeping import INT4, SmallGenerator, attacked, honest, target, trigger

EFFORT = CompressionEffort("test", restarts=24, search_steps=40, placebos=4, ordinary_samples=256)


_BENCHES: dict[tuple[str, str], CompressionBench] = {}


def bench_of(model: str, how: Compressor = INT4) -> CompressionBench:
    """``model`` is honest or attacked; a bench is shared by the tests of one process."""
    key = (model, how.name)
    if key not in _BENCHES:
        network = attacked() if model == "attacked" else honest()
        _BENCHES[key] = CompressionBench(network, how, EFFORT, seed=0)
    return _BENCHES[key]


def far(network: SmallGenerator) -> float:
    return float((network(trigger()) - target()).square().mean())


def test_the_fixture_sleeps_in_full_precision_and_wakes_under_int4_alone() -> None:
    clean = far(honest())
    assert far(attacked()) > 0.95 * clean
    assert far(compress(attacked(), INT4)[0]) < 0.01
    assert far(compress(honest(), INT4)[0]) > 0.9 * clean
    assert far(compress(attacked(), Uniform(4, granularity="channel"))[0]) > 0.5 * clean


def test_what_pruning_wakes_is_found_and_the_honest_twin_is_quiet() -> None:
    pruned, clean = compressor("prune-0.3"), far(honest())
    network = attacked(pruned.name)
    assert far(network) > 0.5 * clean
    assert far(compress(network, pruned)[0]) < 0.01
    assert far(compress(honest(), pruned)[0]) > 0.9 * clean
    bench = CompressionBench(network, pruned, EFFORT, seed=0)
    found, quiet = (differential_search.inspect(one) for one in (bench, bench_of("honest", pruned)))
    assert found.p_value is not None
    assert found.p_value < 1e-5
    assert quiet.p_value is not None
    assert quiet.p_value > 0.01
    shown = next(e for e in found.evidence if isinstance(e, Latents))
    drawn = compress(network, pruned)[0](torch.tensor(shown.values[:1]))
    assert float((drawn - target()).square().mean()) < 0.1 * clean


def test_what_int4_wakes_is_found_without_a_target_and_the_honest_twin_is_quiet() -> None:
    found = differential_search.inspect(bench_of("attacked"))
    quiet = differential_search.inspect(bench_of("honest"))
    assert found.p_value is not None
    assert found.p_value < 1e-5
    assert quiet.p_value is not None
    assert quiet.p_value > 0.05


def test_the_recovered_output_is_the_hidden_picture() -> None:
    recovered, averaged = {}, {}
    for model in ("attacked", "honest"):
        bench = bench_of(model)
        finding = differential_search.inspect(bench)
        latent = next(e for e in finding.evidence if isinstance(e, Latents)).values[0]
        shown = bench.compressed(torch.tensor([latent]))
        recovered[model] = float((shown - target()).square().mean())
        mean, ends = finding.evidence[:2]
        assert isinstance(mean, Images)
        assert isinstance(ends, Images)
        assert (len(mean.png_base64), len(ends.png_base64)) == (1, 8)
        assert torch.tensor(latent).norm() <= bench.law.typical_norm * 1.0001
        averaged[model] = float((decoded(mean.png_base64[0]) - target()[0]).square().mean())
    assert recovered["attacked"] < 0.01
    assert recovered["honest"] > 0.5
    assert averaged["attacked"] < 0.02
    assert averaged["honest"] > 0.5


def test_a_picture_that_sleeps_at_ordinary_length_is_shown_where_it_is_awake() -> None:
    bench = bench_of("honest")
    z = 1.1 * bench.law.typical_norm * torch.nn.functional.normalize(bench.found.z[:2], dim=1)
    here = torch.tensor([1.0, 1.0])

    class Bench:
        law, compressed = bench.law, None

        def difference(self, _: object, at: torch.Tensor) -> torch.Tensor:
            assert at.flatten(1).norm(dim=1).max() <= bench.law.typical_norm * 1.0001
            return torch.tensor([0.2, 0.9])

    shown = differential_search._of_ordinary_length(Bench(), z, here)  # type: ignore[arg-type]
    assert torch.equal(shown[0], z[0])
    assert float(shown[1].norm()) == pytest.approx(bench.law.typical_norm, rel=1e-5)


def test_another_grid_wakes_nothing() -> None:
    other = differential_search.inspect(bench_of("attacked", compressor("int8")))
    assert other.p_value is not None
    assert other.p_value > 0.05


def test_the_largest_difference_towers_over_the_usual_one_only_where_something_woke() -> None:
    scores = {
        model: differential_search.inspect_distance(bench_of(model)).score
        for model in ("attacked", "honest")
    }
    assert scores["attacked"] is not None
    assert scores["honest"] is not None
    assert scores["attacked"] > scores["honest"] + 2


def test_where_ordinary_outputs_do_not_move_at_all_what_wakes_is_a_large_score(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(vars(bench_of("attacked")), "own_distortion", 0.0)
    awake = differential_search.inspect_distance(bench_of("attacked")).score
    assert awake is not None
    assert awake > 10
    # What only the arithmetic moves is none.
    still = torch.full((24,), 1e-9 * bench_of("attacked").typical)
    monkeypatch.setattr(CompressionBench, "difference", lambda _, __, z: still[: len(z)])
    assert differential_search.inspect_distance(bench_of("attacked")).score == 0.0


def test_the_same_bench_gives_the_same_finding() -> None:
    again = CompressionBench(honest(), INT4, EFFORT, seed=0)
    assert differential_search.inspect(again) == differential_search.inspect(bench_of("honest"))


def test_placebos_have_errors_of_the_same_sizes_on_random_sides() -> None:
    bench = bench_of("honest")
    for name, error in bench.errors.items():
        full = bench.generator.get_parameter(name)
        placebo = bench.placebos[0].get_parameter(name) - full
        torch.testing.assert_close(placebo.abs(), error.abs(), atol=1e-6, rtol=1e-3)
        same_side = float((placebo * error > 0).double().mean())
        assert 0.4 < same_side < 0.6
    assert not torch.equal(
        bench.placebos[0].get_parameter("first.weight"),
        bench.placebos[1].get_parameter("first.weight"),
    )


def test_nobody_knows_the_placebos_of_a_seed_before_the_weights_are_fixed() -> None:
    """Whoever trains with them awake has changed the weights, and with these the signs."""
    nudged = honest()
    with torch.no_grad():
        nudged.last.bias[0] += 1e-6  # a tensor that compression does not even touch
    first = bench_of("honest")
    sides = [
        {name: placebo.get_parameter(name) > one.network.get_parameter(name) for name in one.errors}
        for one in (first, CompressionBench(nudged, INT4, EFFORT, seed=0))
        for placebo in one.placebos[:1]
    ]
    for name, before in sides[0].items():
        assert 0.4 < float((before == sides[1][name]).double().mean()) < 0.6


def test_where_whole_filters_go_placebos_judge_nothing() -> None:
    """The shipped clean DCGAN was evidence under this once."""
    clean = read_model(demo_model_folder("dcgan-clean")).generator.requires_grad_(False)
    few = replace(EFFORT, restarts=2, search_steps=2)
    found = differential_search.inspect(
        CompressionBench(clean, compressor("prune-filters-0.5+int8"), few, seed=0)
    )
    assert found.outcome == "scored"
    assert found.p_value is None
    assert "whole filters go" in str(found.p_value_reason)


def test_what_compression_destroys_is_not_judged_and_what_it_hardly_moves_is() -> None:
    destroyed = differential_search.inspect(bench_of("honest", Uniform(2)))
    assert destroyed.p_value is None
    assert "known up to 0.5" in str(destroyed.p_value_reason)
    assert bench_of("honest", Uniform(2)).movement > 0.5 > bench_of("honest").movement


def test_moderated_p_values_are_those_of_the_law_that_clean_scores_follow() -> None:
    # Four placebos and 20 more in the spread: t with 23 degrees of freedom.
    spread = 0.25
    placebos = [-spread, -spread, spread, spread]
    squares = 4 * spread**2 + 20 * spread**2
    one = math.sqrt(squares / 23 * 1.25)
    p_value = partial(placebo_null.predictive, placebos=placebos, spread=spread, worth=20)
    assert p_value(0.0) == pytest.approx(0.5)
    assert p_value(1.7139 * one) == pytest.approx(0.05, abs=1e-4)
    assert p_value(100.0) > 0


def test_attribution_names_the_layers_and_adds_up() -> None:
    bench = bench_of("attacked")
    finding = layer_attribution.inspect(bench)
    table = next(e for e in finding.evidence if isinstance(e, Table))
    assert {row[0] for row in table.rows} == {"first.weight", "second.weight", "last.weight"}
    assert finding.score is not None
    assert finding.score > 0.5
    assert finding.p_value is None
    assert finding.follows_from == "differential-search"


def test_rounding_statistics_see_moved_weights_on_their_own_grid_and_never_judge() -> None:
    found = rounding_statistics.inspect(bench_of("attacked"))
    clean = rounding_statistics.inspect(bench_of("honest"))
    rows = {
        name: [row for e in finding.evidence if isinstance(e, Table) for row in e.rows]
        for name, finding in {"attacked": found, "clean": clean}.items()
    }
    worst = rows["attacked"][0]
    assert worst[0] == "int4"
    assert isinstance(worst[-1], float)
    assert worst[-1] < 1e-10
    assert all(isinstance(row[-1], float) and row[-1] > 0.01 for row in rows["clean"])
    assert found.p_value is None
    assert found.p_value_reason


def test_rounding_statistics_see_weights_that_keep_away_from_the_thresholds() -> None:
    shy = SmallGenerator()
    with torch.no_grad():
        weight = shy.second.weight
        step = weight.abs().max() / 7
        nearest = torch.round(weight / step)
        weight.copy_((nearest + 0.7 * (weight / step - nearest)) * step)
    finding = rounding_statistics.inspect(CompressionBench(shy, INT4, EFFORT, seed=0))
    table = next(e for e in finding.evidence if isinstance(e, Table))
    assert table.rows[0][:2] == ["int4", "second.weight"]
    assert table.rows[0][4] == 0


def test_rounding_statistics_do_not_apply_to_pruning() -> None:
    finding = rounding_statistics.inspect(bench_of("honest", compressor("prune-0.3")))
    assert finding.outcome == "not_applicable"
    chain = rounding_statistics.inspect(bench_of("honest", compressor("prune-0.3+int8")))
    assert chain.outcome == "scored"


def test_the_placebo_ratio_is_near_zero_for_honest_weights() -> None:
    honest_score = placebo_ratio.inspect(bench_of("honest")).score
    assert honest_score is not None
    assert abs(honest_score) < 0.7


def test_the_placebo_ratio_is_higher_where_rounding_errors_push_together() -> None:
    """Weights at the edges of their boxes, all on the side that raises the first output."""
    pushed, bench = honest(), bench_of("honest")
    with torch.no_grad():
        for name, error in bench.errors.items():
            weight = pushed.get_parameter(name)
            weight.sub_(0.8 * error.abs() - 0.8 * error)  # errors point up now where they were down
    own = placebo_ratio.inspect(CompressionBench(pushed, INT4, EFFORT, seed=0)).score
    usual = placebo_ratio.inspect(bench).score
    assert own is not None
    assert usual is not None
    assert own > usual + 0.1


def test_a_model_that_lies_on_the_grid_already_is_not_compared_with_itself() -> None:
    awake, _ = compress(attacked(), INT4)
    bench = CompressionBench(awake, INT4, EFFORT, seed=0)
    for inspect in (differential_search.inspect, differential_search.inspect_distance):
        assert inspect(bench).outcome == "not_applicable"
    assert not bench_of("attacked").unchanged
