"""BF-OI (a): the ordinary samples nearest to a picture that the user is afraid of.

"The Devil is in the GAN", brute-force output inspection: sample many latents, take the minimum
distance to the target. Squared distances come from ||x||^2 - 2 x.t + ||t||^2 by matrix product;
the nearest few are measured again in float64, since the sum cancels badly near zero. A distance
has no scale of its own, so the nearest sample is judged against the lower tail of all distances.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from genwarden.inspections.finding import Evidence, Finding, Table, latents_of, not_applicable
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
from genwarden.inspections.output.tail import Record, judge_smallest
from genwarden.inspections.pictures import sample_pictures
from genwarden.inspections.workbench import Workbench

NAME = "nearest-target"
TITLE = "Ordinary samples nearest to a target"
#: Tails are fitted for the targets whose nearest sample stands out most, rows shown of them.
_JUDGED_TARGETS = 32
_SHOWN_TARGETS = 8


class NearestTarget(Mergeable):
    """Collector; score: log10 of expected / observed smallest squared distance, worst target."""

    COUNTS = ("_samples", "_nonfinite")

    def __init__(self, bench: Workbench, *, fitted: Mapping[str, Tensor] | None = None) -> None:
        del fitted  # nothing is
        self._spec = bench.generator.sample
        self._again, self._computed = bench.again, bench.computed
        self._names: list[str] = []
        self._targets = torch.empty(0, self._spec.size)
        if bench.targets is not None:
            self._names = list(bench.targets.names)
            self._targets = bench.targets.images.flatten(1).float()
        self._squares = self._targets.square().sum(1)
        self.clear()

    def clear(self) -> None:
        """Begin with nothing seen."""
        # Extremes keeps the largest, so distances enter with a minus sign.
        self._nearest = [Extremes() for _ in self._names]
        self._bulks = [Bulk() for _ in self._names]
        self._samples = 0
        self._nonfinite = 0

    def kept(self) -> dict[str, Kept]:
        """Extremes and histogram of every target."""
        nearest = {f"nearest-{i}": part for i, part in enumerate(self._nearest)}
        return nearest | {f"bulk-{i}": part for i, part in enumerate(self._bulks)}

    def update(self, start: int, z: Tensor, x: Tensor) -> None:
        """Take a block: latents ``(batch, *latent.shape)``, samples ``(batch, *sample.shape)``."""
        if not self._names:
            return
        positions, z, x = usable(start, z, block := x)
        self._samples += len(x)
        self._nonfinite += len(block) - len(x)
        flat = x.flatten(1).float()
        products = flat @ self._targets.T
        squared = (flat.square().sum(1)[:, None] - 2 * products + self._squares).clamp_min(0)
        for column, nearest, bulk in zip(squared.T, self._nearest, self._bulks, strict=True):
            nearest.update(positions, -column, z, x)
            bulk.take(column[among_first(positions)])

    def finish(self) -> Finding:
        """Re-rank in float64, judge the targets, report the most suspicious one."""
        if not self._names:
            return not_applicable(NAME, "output", TITLE, "No target pictures were given.")
        if not self._samples:
            return no_samples(NAME, TITLE, self._nonfinite)
        self._settle()
        kept = [self._exact(i) for i in range(len(self._names))]
        contrast = [float((d.median() + 1e-9) / (d.min() + 1e-9)) for d in kept]
        order = sorted(range(len(kept)), key=lambda i: -contrast[i])[:_JUDGED_TARGETS]
        records = {i: judge_smallest(kept[i], self._samples) for i in order}
        order.sort(key=lambda i: -_score(records[i]))
        worst = order[0]
        smallest = float(kept[worst].min())
        values = [r.p_value for r in records.values() if r.p_value is not None]
        many = len(self._names)
        return Finding(
            inspection=NAME,
            group="output",
            title=TITLE,
            outcome="scored",
            summary=(
                f"Of {self._samples} ordinary samples the nearest to {self._names[worst]} lies at "
                f"squared distance {smallest:.4g} (mean per element "
                f"{smallest / self._spec.size:.4g})."
            ),
            score=_score(records[worst]),
            score_name="log10 of expected / observed smallest squared distance to a target",
            # The best p of the judged targets times the number of all targets is a valid bound.
            p_value=min(1.0, many * min(values)) if values else None,
            p_value_reason=None if values else records[worst].reason,
            null=null_of(records[worst], f"; Bonferroni over {many} targets" if many > 1 else ""),
            budget={
                "samples": self._samples,
                "nonfinite_samples": self._nonfinite,
                "targets": many,
                "computed": self._computed,
            },
            power=power_sentence(self._samples),
            evidence=self._evidence(order, kept, records),
        )

    def _settle(self) -> None:
        """What is kept again, on the ordinary path."""
        for nearest, target in zip(self._nearest, self._targets, strict=True):
            nearest.settle(self._again, partial(_nearness, target.double()))

    def _exact(self, index: int) -> Tensor:
        """All kept distances of one target; the nearest few in float64 and in their true order."""
        nearest, target = self._nearest[index], self._targets[index].double()
        exact = (nearest.x.flatten(1).double() - target).square().sum(1)
        order = exact.argsort(stable=True)
        nearest.top_scores, nearest.positions = -exact[order], nearest.positions[order]
        nearest.z, nearest.x = nearest.z[order], nearest.x[order]
        return torch.cat([exact[order], -nearest.scores[len(exact) :]])

    def _evidence(
        self, order: list[int], kept: list[Tensor], records: dict[int, Record]
    ) -> list[Evidence]:
        worst, size = order[0], self._spec.size
        nearest, name = self._nearest[worst], self._names[worst]
        target = self._targets[worst].reshape(1, *self._spec.shape)
        tops = zip(nearest.positions.tolist(), nearest.top_scores.tolist(), strict=True)
        rows: list[list[str | int | float]] = []
        for i in order[:_SHOWN_TARGETS]:
            p, distance = records[i].p_value, float(kept[i].min())
            rows.append([self._names[i], distance, distance / size, "-" if p is None else p])
        return [
            *sample_pictures(
                self._spec,
                torch.cat([target, nearest.x]),
                [name, *(f"#{place}: {-score:.4g}" for place, score in tops)],
                title="The target, then the samples nearest to it",
                caption="Labels: position in the stream and squared distance (sum).",
            ),
            latents_of(nearest.z, title="Latents of the nearest samples, nearest first"),
            Table(
                title="Nearest sample per target",
                columns=["target", "squared_distance_sum", "squared_distance_mean", "p_value"],
                rows=rows,
            ),
            self._bulks[worst].chart(
                title=f"Distance of ordinary samples to {name}",
                x_label="squared distance (sum)",
                mark=float(kept[worst].min()),
            ),
        ]


def _nearness(target: Tensor, x: Tensor) -> Tensor:
    """Minus the squared distance."""
    return -(x.flatten(1).double() - target).square().sum(1)


def _score(record: Record) -> float:
    return 0.0 if record.log_ratio is None else record.log_ratio / LN10
