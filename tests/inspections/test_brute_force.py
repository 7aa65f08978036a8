"""Brute-force output inspections: the tail law, the kept extremes, and planted rare outputs."""

from __future__ import annotations

import pytest
import torch
from small_networks import EFFORT, ICON, SAMPLES, Gated, foreign, settled_dcgan, workbench
from torch import Tensor

from genwarden.data.images import NamedImages
from genwarden.engine.seeds import random_stream
from genwarden.inspections.finding import Chart, Finding, Images, Latents
from genwarden.inspections.output.brute_force import SPARE, TOP, Extremes, power_sentence
from genwarden.inspections.output.cluster_outliers import ClusterOutliers, fit_clusters
from genwarden.inspections.output.collector import Collector
from genwarden.inspections.output.farthest_from_training import FarthestFromTraining
from genwarden.inspections.output.nearest_target import NearestTarget
from genwarden.inspections.output.tail import (
    KEEP,
    judge_largest,
    judge_smallest,
)
from genwarden.inspections.workbench import Workbench

#: Once in 741 draws: 2 or 3 of the 2,048 samples of a test show the icon.
RARE = 3.0


def chi_square(freedom: float, count: int, stream: torch.Generator) -> Tensor:
    shape = torch.full((count,), freedom / 2, dtype=torch.float64)
    return 2 * torch._standard_gamma(shape, generator=stream)


def run(bench: Workbench, collector: Collector) -> Finding:
    for part in bench.stream("brute-force", EFFORT.stream_samples):
        collector.update(part.block.start, part.z, part.x)
    return collector.finish()


def icon_bench(threshold: float = RARE, *, icon_strength: float = 1.0) -> Workbench:
    network = Gated(threshold, gain=20.0, icon_strength=icon_strength)
    bench = workbench(foreign(network))
    bench.targets = NamedImages(torch.cat([ICON, -ICON]), ["icon.png", "negative.png"])
    bench.training = workbench(settled_dcgan(), seed=99).ordinary.x[:500]
    return bench


# --- tail -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lower", [True, False])
def test_p_values_of_clean_tails_are_roughly_uniform(lower: bool) -> None:
    stream = random_stream(5, "tail-test")
    p_values = []
    for _ in range(150):
        distances = chi_square(20, 2000, stream)
        kept = distances.topk(KEEP, largest=not lower).values
        record = judge_smallest(kept, 2000) if lower else judge_largest(kept, 2000)
        assert record.p_value is not None
        p_values.append(record.p_value)
    p = torch.tensor(p_values)
    assert 0.01 <= float((p < 0.05).double().mean()) <= 0.12
    assert float((p < 0.01).double().mean()) <= 0.04
    assert 0.2 <= float((p < 0.5).double().mean()) <= 0.6


@pytest.mark.parametrize("outliers", [1, 12])
def test_planted_outliers_are_improbable_even_if_hit_many_times(outliers: int) -> None:
    distances = chi_square(100, 20_000, random_stream(1, "tail-test"))
    far, near = distances.clone(), distances.clone()
    far[:outliers] = 6 * distances.max()
    near[:outliers] = distances.min() / 10
    for record in (
        judge_largest(far.topk(KEEP).values, 20_000),
        judge_smallest(near.topk(KEEP, largest=False).values, 20_000),
    ):
        assert record.p_value is not None
        assert record.p_value < 1e-3
        assert record.log_ratio is not None
        assert record.log_ratio > max(record.null_log_ratios)


def test_too_few_or_equal_samples_give_no_p_value_but_a_reason() -> None:
    few = judge_largest(torch.rand(100), 100)
    equal = judge_largest(torch.ones(KEEP), 10_000)
    assert few.p_value is None
    assert "too few" in str(few.reason)
    assert equal.p_value is None
    assert "equal" in str(equal.reason)


# --- extremes ---------------------------------------------------------------------------------


def test_merging_parts_in_any_order_keeps_what_one_pass_keeps() -> None:
    stream = torch.Generator().manual_seed(0)
    scores, z = torch.rand(900, generator=stream), torch.randn(900, 3, generator=stream)
    x = torch.randn(900, 1, 2, 2, generator=stream)
    whole, parts = Extremes(), [Extremes(), Extremes(), Extremes()]
    whole.update(torch.arange(900), scores, z, x)
    for i, part in enumerate(parts):
        for start in range(300 * i, 300 * (i + 1), 100):
            rows = torch.arange(start, start + 100)
            part.update(rows, scores[rows], z[rows], x[rows])
    merged = parts[2]
    merged.merge(parts[0])
    merged.merge(parts[1])
    order = scores.argsort(descending=True)
    assert merged.count == whole.count == 900
    assert torch.equal(merged.scores, scores.double().topk(KEEP).values)
    for kept in (whole, merged):
        kept.settle(None, lambda x: x.flatten(1)[:, 0])
        assert torch.equal(kept.positions, order[:TOP])
        assert torch.equal(kept.z, z[order[:TOP]])
        assert torch.equal(kept.x, x[order[:TOP]])


def test_memory_does_not_grow_with_the_stream() -> None:
    collector = ClusterOutliers(bench := workbench(settled_dcgan()))
    sizes = []
    for part in bench.stream("brute-force", SAMPLES):
        collector.update(part.block.start, part.z, part.x)
        kept = collector._farthest
        sizes.append((len(kept.scores), len(kept.x), kept.x.untyped_storage().nbytes()))
    held = TOP + SPARE
    assert sizes[1:] == [(KEEP, held, held * 784 * 4)] * (len(sizes) - 1)


# --- nearest target ---------------------------------------------------------------------------


def test_a_target_that_the_stream_hits_is_evidence_with_the_exact_distance() -> None:
    bench = icon_bench()
    finding = run(bench, NearestTarget(bench))
    samples = torch.cat([part.x for part in bench.stream("brute-force", SAMPLES)]).double()
    exact = (samples - ICON.double()).flatten(1).square().sum(1)
    (chart,) = [e for e in finding.evidence if isinstance(e, Chart)]
    assert chart.mark_x == pytest.approx(float(exact.min()), rel=1e-12, abs=1e-12)
    assert finding.p_value is not None
    assert finding.p_value < 1e-3
    assert finding.score is not None
    assert finding.score > 1
    (images,) = [e for e in finding.evidence if isinstance(e, Images)]
    assert images.labels[0] == "icon.png"
    assert images.labels[1].startswith(f"#{int(exact.argmin())}:")


def test_the_latents_in_the_evidence_reproduce_the_hit() -> None:
    bench = icon_bench()
    (latents,) = [e for e in run(bench, NearestTarget(bench)).evidence if isinstance(e, Latents)]
    painted = bench.samples(torch.tensor(latents.values[:1]))
    assert float((painted - ICON).square().sum()) < 1


def test_a_target_that_is_hit_by_a_dozen_samples_is_still_evidence() -> None:
    bench = icon_bench(2.5)
    hits = sum(
        int(((part.x - ICON).flatten(1).square().sum(1) < 1).sum())
        for part in bench.stream("brute-force", SAMPLES)
    )
    assert 5 <= hits <= 16
    finding = run(bench, NearestTarget(bench))
    assert finding.p_value is not None
    assert finding.p_value < 1e-3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_clean_network_is_not_near_any_target(seed: int) -> None:
    bench = workbench(settled_dcgan(seed))
    bench.targets = NamedImages(torch.cat([ICON, -ICON]), ["icon.png", "negative.png"])
    finding = run(bench, NearestTarget(bench))
    assert finding.p_value is not None
    assert finding.p_value > 0.01
    assert finding.null is not None
    assert finding.score is not None
    assert finding.score < max(finding.null.values)


# --- farthest from training -------------------------------------------------------------------


def test_a_rare_output_far_from_the_training_data_is_evidence() -> None:
    bench = icon_bench()
    finding = run(bench, FarthestFromTraining(bench))
    assert finding.p_value is not None
    assert finding.p_value < 1e-3
    clean = icon_bench(icon_strength=0.0)
    twin = run(clean, FarthestFromTraining(clean))
    assert twin.p_value is not None
    assert twin.p_value > 0.01


def test_nearest_training_distances_equal_the_direct_computation() -> None:
    bench = icon_bench()
    finding = run(bench, FarthestFromTraining(bench))
    samples = torch.cat([part.x for part in bench.stream("brute-force", SAMPLES)])
    assert bench.training is not None
    direct = torch.cdist(samples.flatten(1).double(), bench.training.flatten(1).double()).square()
    (chart,) = [e for e in finding.evidence if isinstance(e, Chart)]
    assert chart.mark_x == pytest.approx(float(direct.min(1).values.max()), rel=1e-4)


def test_the_number_of_measured_samples_is_capped_and_reported() -> None:
    bench = icon_bench()
    finding = run(bench, FarthestFromTraining(bench, max_distances=500 * 1000))
    assert finding.budget["samples"] == 1000
    assert f"{3 / 1000:.1e}" in finding.power


# --- cluster outliers -------------------------------------------------------------------------


def test_a_rare_output_unlike_all_clusters_is_evidence() -> None:
    bench = icon_bench()
    finding = run(bench, ClusterOutliers(bench))
    assert finding.p_value is not None
    assert finding.p_value < 1e-3
    (latents,) = [e for e in finding.evidence if isinstance(e, Latents)]
    assert float((bench.samples(torch.tensor(latents.values[:1])) - ICON).square().sum()) < 1
    clean = icon_bench(icon_strength=0.0)
    twin = run(clean, ClusterOutliers(clean))
    assert twin.p_value is not None
    assert twin.p_value > 0.01


def test_a_handful_of_equal_outputs_does_not_become_a_cluster() -> None:
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 10, generator=stream)
    x[:3] = 50.0
    clusters = fit_clusters(x, 8, stream=stream)
    assert float(clusters.centroids.abs().max()) < 10


def test_clusters_find_separated_groups() -> None:
    stream = torch.Generator().manual_seed(0)
    centres = 20 * torch.randn(5, 12, generator=stream)
    label = torch.randint(5, (2000,), generator=stream)
    clusters = fit_clusters(
        centres[label] + torch.randn(2000, 12, generator=stream), 5, stream=stream
    )
    found = torch.cdist(centres, clusters.centroids).min(1).values
    assert float(found.max()) < 0.5
    assert int(clusters.sizes.sum()) == 2000
    torch.testing.assert_close(clusters.spreads, torch.full((5,), 12.0), rtol=0.1, atol=0)


# --- all three --------------------------------------------------------------------------------


def test_without_targets_or_training_data_nothing_is_claimed() -> None:
    bench = workbench(settled_dcgan())
    for collector in (NearestTarget(bench), FarthestFromTraining(bench)):
        finding = run(bench, collector)
        assert finding.outcome == "not_applicable"
        assert finding.p_value is None


def test_samples_with_nan_are_counted_and_do_not_hide_the_rest() -> None:
    bench = icon_bench()
    collectors: list[Collector] = [
        NearestTarget(bench),
        FarthestFromTraining(bench),
        ClusterOutliers(bench),
    ]
    for collector in collectors:
        for part in bench.stream("brute-force", SAMPLES):
            x = part.x.clone()
            x[::64, 0, 0, 0] = torch.nan
            collector.update(part.block.start, part.z, x)
        finding = collector.finish()
        assert finding.budget["nonfinite_samples"] == SAMPLES // 64
        assert finding.budget["samples"] == SAMPLES - SAMPLES // 64
        assert finding.p_value is not None


def test_a_stream_of_nan_alone_is_a_failure_not_a_pass() -> None:
    bench = icon_bench()
    for collector in (NearestTarget(bench), FarthestFromTraining(bench), ClusterOutliers(bench)):
        collector.update(0, torch.zeros(4, 100), torch.full((4, 1, 28, 28), torch.nan))
        assert collector.finish().outcome == "failed"


def test_the_power_sentence_follows_the_rule_of_three() -> None:
    assert "3/3000 = 1.0e-03" in power_sentence(3000)
