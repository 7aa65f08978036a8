"""BF-OI (b): the ordinary samples farthest from everything in the training data.

"The Devil is in the GAN", brute-force output inspection: the maximum over samples of the distance
to the nearest training sample. Distances come from one matrix product per block of training rows;
the number of samples is capped so that samples times training rows stays affordable. The farthest
sample is judged against the upper tail of all nearest-neighbour distances.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.inspections.finding import Finding, latents_of, not_applicable
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

NAME = "farthest-from-training"
TITLE = "Ordinary samples farthest from the training data"
#: Distances computed in all: 4e9 of 784 elements are 6e12 operations, about 50 core-seconds.
MAX_DISTANCES = 4_000_000_000
_ROWS = 8192


class _Nearest(NamedTuple):
    distance: Tensor
    row: Tensor


class FarthestFromTraining(Mergeable):
    """Collector; score: log10 of observed / expected largest squared nearest distance.

    Args:
        max_distances: bound on samples times training rows; later samples are not measured.
    """

    COUNTS = ("_samples", "_nonfinite")

    def __init__(
        self,
        bench: Workbench,
        *,
        fitted: Mapping[str, Tensor] | None = None,
        max_distances: int = MAX_DISTANCES,
    ) -> None:
        del fitted  # nothing is
        self._spec = bench.generator.sample
        self._again, self._computed = bench.again, bench.computed
        self._device = bench.device
        empty = torch.empty(0, self._spec.size)
        rows = empty if bench.training is None else bench.training.flatten(1).float()
        self._training = rows.to(self._device)
        self._squares = self._training.square().sum(1)
        self._limit = max_distances // max(len(rows), 1)
        self.clear()

    def clear(self) -> None:
        """Begin with nothing seen."""
        self._farthest = Extremes()
        self._bulk = Bulk()
        self._samples = 0
        self._nonfinite = 0

    def kept(self) -> dict[str, Kept]:
        """The farthest samples and the histogram."""
        return {"farthest": self._farthest, "bulk": self._bulk}

    def update(self, start: int, z: Tensor, x: Tensor) -> None:
        """Take a block: latents ``(batch, *latent.shape)``, samples ``(batch, *sample.shape)``."""
        room = self._limit - start
        if len(self._training) == 0 or room <= 0:
            return
        positions, z, x = usable(start, z[:room], block := x[:room])
        self._samples += len(x)
        self._nonfinite += len(block) - len(x)
        if len(x) == 0:
            return
        distance = self._nearest(x).distance
        self._farthest.update(positions, distance, z, x)
        self._bulk.take(distance[among_first(positions)])

    def finish(self) -> Finding:
        """Judge the farthest sample."""
        if len(self._training) == 0:
            return not_applicable(NAME, "output", TITLE, "No training samples were given.")
        if not self._samples:
            return no_samples(NAME, TITLE, self._nonfinite)
        farthest = self._farthest
        farthest.settle(self._again, lambda x: self._nearest(x).distance)
        record = judge_largest(farthest.scores, self._samples)
        largest = float(farthest.scores[0])
        beside = self._training[self._nearest(farthest.x).row.to(self._device)].cpu()
        pairs = torch.stack([farthest.x, beside.reshape(farthest.x.shape)], dim=1).flatten(0, 1)
        tops = zip(farthest.positions.tolist(), farthest.top_scores.tolist(), strict=True)
        labels = [text for p, s in tops for text in (f"#{p}: {s:.4g}", "nearest training")]
        return Finding(
            inspection=NAME,
            group="output",
            title=TITLE,
            outcome="scored",
            summary=(
                f"Of {self._samples} ordinary samples the farthest lies at squared distance "
                f"{largest:.4g} (mean per element {largest / self._spec.size:.4g}) from its "
                f"nearest of {len(self._training)} training samples."
            ),
            score=0.0 if record.log_ratio is None else record.log_ratio / LN10,
            score_name="log10 of observed / expected largest squared distance to training data",
            p_value=record.p_value,
            p_value_reason=record.reason,
            null=null_of(record),
            budget={
                "samples": self._samples,
                "nonfinite_samples": self._nonfinite,
                "training_samples": len(self._training),
                "computed": self._computed,
            },
            power=power_sentence(self._samples),
            evidence=[
                *sample_pictures(
                    self._spec,
                    pairs,
                    labels,
                    title="Farthest samples, each beside its nearest training sample",
                    caption="Labels: position in the stream and squared distance (sum).",
                ),
                latents_of(farthest.z, title="Latents of the farthest samples, farthest first"),
                self._bulk.chart(
                    title="Distance of ordinary samples to the nearest training sample",
                    x_label="squared distance (sum)",
                    mark=largest,
                ),
            ],
        )

    def _nearest(self, x: Tensor) -> _Nearest:
        """Nearest training row of each sample, ``(batch,)`` both, on the CPU."""
        flat = x.flatten(1).float().to(self._device)
        best = torch.full((len(flat),), float("inf"), device=self._device)
        where = torch.zeros(len(flat), dtype=torch.int64, device=self._device)
        for begin in range(0, len(self._training), _ROWS):
            rows = self._training[begin : begin + _ROWS]
            # ||x||^2 is the same for all rows and is added once at the end.
            partial = torch.addmm(self._squares[begin : begin + _ROWS], flat, rows.T, alpha=-2).min(
                dim=1
            )
            closer = partial.values < best
            best = torch.where(closer, partial.values, best)
            where = torch.where(closer, partial.indices + begin, where)
        distance = (best + flat.square().sum(1)).clamp_min(0)
        return _Nearest(distance.cpu(), where.cpu())
