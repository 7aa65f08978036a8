"""BF-OI (c): cluster the outputs, look at those farthest from every centroid.

"The Devil is in the GAN", brute-force output inspection without a target. k-means on the bank of
ordinary samples; then every sample of a fresh stream is measured against its nearest centroid, in
units of that cluster's own mean squared distance, and the farthest is judged against the tail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.engine.seeds import random_stream
from genwarden.inspections.finding import Finding, Table, latents_of
from genwarden.inspections.output.brute_force import (
    LN10,
    Bulk,
    Extremes,
    Kept,
    Mergeable,
    among_first,
    no_samples,
    null_of,
    power_sentence,
    usable,
)
from genwarden.inspections.output.tail import judge_largest
from genwarden.inspections.pictures import sample_pictures
from genwarden.inspections.workbench import Workbench

NAME = "cluster-outliers"
TITLE = "Ordinary samples farthest from all clusters"
CLUSTERS = 32
_LLOYD_STEPS = 25
#: A cluster below 1/8 of its fair share is dropped: rare outputs must not become a cluster of
#: their own, they are what is looked for.
_FAIR_SHARE = 8
#: A cluster's spread counts like this many samples of average spread (singletons have none).
_PRIOR_SAMPLES = 8


class Clusters(NamedTuple):
    """Fitted clusters.

    Attributes:
        centroids: ``(clusters, elements)``.
        spreads: ``(clusters,)``, mean squared distance of a cluster's samples to its centroid.
        sizes: ``(clusters,)``.
    """

    centroids: Tensor
    spreads: Tensor
    sizes: Tensor


def fit_clusters(x: Tensor, clusters: int, *, stream: torch.Generator) -> Clusters:
    """k-means (Lloyd) with k-means++ seeding on ``x`` ``(count, elements)``."""
    centroids = x[torch.randint(len(x), (1,), generator=stream)]
    nearest = _squared_distances(x, centroids)[:, 0]
    for _ in range(1, min(clusters, len(x))):
        if float(nearest.sum()) <= 0:
            break  # fewer distinct samples than clusters
        chosen = x[torch.multinomial(nearest, 1, generator=stream)]
        centroids = torch.cat([centroids, chosen])
        nearest = torch.minimum(nearest, _squared_distances(x, chosen)[:, 0])
    for _ in range(_LLOYD_STEPS):
        label = _squared_distances(x, centroids).argmin(1)
        sizes = torch.bincount(label, minlength=len(centroids))
        sums = torch.zeros_like(centroids).index_add_(0, label, x)
        # An emptied cluster keeps its centroid.
        moved = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    label = _squared_distances(x, centroids).argmin(1)
    sizes = torch.bincount(label, minlength=len(centroids))
    centroids = centroids[sizes >= min(len(x) // (_FAIR_SHARE * clusters), int(sizes.max()))]
    closest = _squared_distances(x, centroids).min(1)
    sizes = torch.bincount(closest.indices, minlength=len(centroids))
    total = torch.zeros(len(centroids)).index_add_(0, closest.indices, closest.values)
    average = closest.values.mean().clamp_min(1e-12)
    spreads = (total + _PRIOR_SAMPLES * average) / (sizes + _PRIOR_SAMPLES)
    return Clusters(centroids, spreads, sizes)


class ClusterOutliers(Mergeable):
    """Collector; score: log10 of observed / expected largest scaled squared distance."""

    COUNTS = ("_nonfinite",)

    def __init__(self, bench: Workbench, *, fitted: Mapping[str, Tensor] | None = None) -> None:
        self._spec = bench.generator.sample
        self._again, self._computed = bench.again, bench.computed
        self.clear()
        if fitted is not None:
            self._fitted_on = int(fitted["fitted_on"])
            self._clusters = Clusters(*(fitted[name] for name in Clusters._fields))
            return
        bank = usable(0, *bench.ordinary).x.flatten(1).float()
        self._fitted_on = len(bank)
        # Without any finite sample there is nothing to cluster and nothing to measure.
        bank = bank if len(bank) else torch.zeros(1, self._spec.size)
        self._clusters = fit_clusters(bank, CLUSTERS, stream=random_stream(bench.seed, NAME))

    def clear(self) -> None:
        """Begin with nothing seen."""
        self._nonfinite = 0
        self._farthest = Extremes()
        self._bulk = Bulk()

    def kept(self) -> dict[str, Kept]:
        """The farthest samples and the histogram."""
        return {"farthest": self._farthest, "bulk": self._bulk}

    def fitted(self) -> dict[str, Tensor]:
        """The clusters."""
        return {"fitted_on": torch.tensor(self._fitted_on), **self._clusters._asdict()}

    def update(self, start: int, z: Tensor, x: Tensor) -> None:
        """Take a block: latents ``(batch, *latent.shape)``, samples ``(batch, *sample.shape)``."""
        positions, z, x = usable(start, z, block := x)
        self._nonfinite += len(block) - len(x)
        if len(x) == 0:
            return
        scaled = self._scaled(x).values
        self._farthest.update(positions, scaled, z, x)
        self._bulk.take(scaled[among_first(positions)])

    def finish(self) -> Finding:
        """Judge the farthest sample."""
        farthest, clusters = self._farthest, self._clusters
        if not farthest.count:
            return no_samples(NAME, TITLE, self._nonfinite)
        farthest.settle(self._again, lambda x: self._scaled(x).values)
        record = judge_largest(farthest.scores, farthest.count)
        largest = float(farthest.scores[0])
        closest = self._scaled(farthest.x)
        rows: list[list[str | int | float]] = []
        for place, scaled, cluster in zip(
            farthest.positions.tolist(), closest.values.tolist(), closest.indices, strict=True
        ):
            squared = scaled * float(clusters.spreads[cluster])
            rows.append([place, scaled, squared, int(cluster), int(clusters.sizes[cluster])])
        return Finding(
            inspection=NAME,
            group="output",
            title=TITLE,
            outcome="scored",
            summary=(
                f"Of {farthest.count} ordinary samples the farthest lies at {largest:.4g} times "
                f"the mean squared distance of its nearest cluster."
            ),
            score=0.0 if record.log_ratio is None else record.log_ratio / LN10,
            score_name="log10 of observed / expected largest scaled squared distance to a centroid",
            p_value=record.p_value,
            p_value_reason=record.reason,
            null=null_of(record),
            budget={
                "samples": farthest.count,
                "nonfinite_samples": self._nonfinite,
                "clusters": len(clusters.centroids),
                "clustered_samples": self._fitted_on,
                "computed": self._computed,
            },
            power=power_sentence(farthest.count),
            evidence=[
                *sample_pictures(
                    self._spec,
                    farthest.x,
                    [f"#{row[0]}: {row[1]:.3g}" for row in rows],
                    title="Samples farthest from every cluster",
                    caption="Labels: position in the stream and scaled squared distance.",
                ),
                latents_of(farthest.z, title="Latents of the farthest samples, farthest first"),
                Table(
                    title="Farthest samples",
                    columns=[
                        "position",
                        "scaled",
                        "squared_distance_sum",
                        "cluster",
                        "cluster_samples",
                    ],
                    rows=rows,
                ),
                self._bulk.chart(
                    title="Distance of ordinary samples to their nearest cluster",
                    x_label="squared distance / mean squared distance of the cluster",
                    mark=largest,
                ),
            ],
        )

    def _scaled(self, x: Tensor) -> torch.return_types.min:
        """Scaled squared distance to the nearest centroid and its number."""
        squared = _squared_distances(x.flatten(1).float(), self._clusters.centroids)
        return (squared / self._clusters.spreads).min(1)


def _squared_distances(x: Tensor, centroids: Tensor) -> Tensor:
    """``(count, elements)`` against ``(clusters, elements)``: ``(count, clusters)``, >= 0."""
    squared = x.square().sum(1)[:, None] - 2 * (x @ centroids.T) + centroids.square().sum(1)
    return squared.clamp_min(0)
