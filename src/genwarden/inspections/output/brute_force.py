"""What the brute-force collectors keep of a stream, and how they report it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import copy
from typing import ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from genwarden.engine.parts import owned
from genwarden.inspections.finding import Chart, Finding, Line, Null
from genwarden.inspections.output.tail import KEEP, Record

#: Samples that are shown, with their latents.
TOP = 16
#: As many more are kept until the end: the fast path may order neighbours otherwise, by its last
#: bits, and what is shown is chosen on the ordinary path.
SPARE = 16
#: Distances that the histogram is drawn from: the first ones, a fair sample of the stream.
_BULK = 8192
_BINS = 48
LN10 = math.log(10)


class Usable(NamedTuple):
    """The finite samples of a block, with their positions in the stream."""

    positions: Tensor
    z: Tensor
    x: Tensor


def usable(start: int, z: Tensor, x: Tensor) -> Usable:
    """Leave out samples with NaN or infinity: no distance orders them; the caller counts them."""
    if bool(x.flatten(1).sum(1).isfinite().all()):  # far cheaper than looking at every element
        return Usable(torch.arange(start, start + len(x)), z, x)
    finite = x.flatten(1).isfinite().all(1)
    return Usable(start + finite.nonzero()[:, 0], z[finite], x[finite])


def no_samples(name: str, title: str, nonfinite: int) -> Finding:
    """The finding of a stream without any usable sample."""
    return Finding(
        inspection=name,
        group="output",
        title=title,
        outcome="failed",
        summary=f"No finite sample was drawn ({nonfinite} held NaN or infinity).",
        p_value_reason="nothing could be measured",
    )


def among_first(positions: Tensor) -> Tensor:
    """Which samples a histogram is drawn from: by place, whatever order the blocks come in."""
    return positions < _BULK


class Kept(Protocol):
    """A part of a collector's state that merges exactly: the same in any order of the parts."""

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors."""
        ...

    def absorb(self, state: Mapping[str, Tensor]) -> None:
        """Take over what another part of the stream has kept."""
        ...


class Mergeable:
    """Base of the collectors: their state leaves and enters as tensors.

    A subclass says what it keeps; whatever else it holds was fitted before the stream and is shared
    by all parts of it.
    """

    #: Names of whole numbers that add up.
    COUNTS: ClassVar[tuple[str, ...]] = ()

    def kept(self) -> dict[str, Kept]:
        """What grows with the stream, by name."""
        raise NotImplementedError

    def clear(self) -> None:
        """Begin with nothing seen."""
        raise NotImplementedError

    def fitted(self) -> dict[str, Tensor]:
        """What was computed before the stream, for a collector elsewhere."""
        return {}

    def fresh(self) -> Self:
        """One more of its kind that has seen nothing."""
        other = copy(self)
        other.clear()
        return other

    def state(self) -> dict[str, Tensor]:
        """What was seen; :meth:`absorb` takes it."""
        counts = {name: torch.tensor(getattr(self, name)) for name in self.COUNTS}
        parts = self.kept().items()
        return counts | {f"{name}/{k}": t for name, p in parts for k, t in p.state().items()}

    def absorb(self, state: Mapping[str, Tensor]) -> None:
        """Take over what a collector of the same kind has seen in another part of the stream."""
        for name in self.COUNTS:
            setattr(self, name, getattr(self, name) + int(state[name]))
        for name, part in self.kept().items():
            part.absorb(owned(name, state))


class Extremes:
    """The largest of a stream of scores: ``KEEP`` values, and the samples of the first few.

    Mergeable: the state after two parts is the same in any order of the parts.

    Args:
        samples: how many latents and samples are kept beside the scores, once :meth:`settle` is
            called; :data:`SPARE` more until then.
    """

    def __init__(self, samples: int = TOP) -> None:
        self.count = 0
        self._samples = samples + SPARE
        self.scores = torch.empty(0, dtype=torch.float64)
        self.top_scores = torch.empty(0, dtype=torch.float64)
        self.positions = torch.empty(0, dtype=torch.int64)
        self.z = torch.empty(0)
        self.x = torch.empty(0)

    def update(self, positions: Tensor, scores: Tensor, z: Tensor, x: Tensor) -> None:
        """Take ``scores`` ``(batch,)`` of the samples at ``positions`` in the stream."""
        self.count += len(scores)
        self.scores = _largest(self.scores, scores.double())
        self._keep_top(scores.double(), positions, z, x)

    def merge(self, other: Extremes) -> None:
        """Take over what another part of the stream has kept."""
        self.count += other.count
        self.scores = _largest(self.scores, other.scores)
        self._keep_top(other.top_scores, other.positions, other.z, other.x)

    def state(self) -> dict[str, Tensor]:
        """All that is kept, as tensors."""
        names = ("scores", "top_scores", "positions", "z", "x")
        return {"count": torch.tensor(self.count)} | {name: getattr(self, name) for name in names}

    def absorb(self, state: Mapping[str, Tensor]) -> None:
        """:meth:`merge` with one that left its :meth:`state`."""
        other = Extremes(self._samples - SPARE)
        other.count = int(state["count"])
        other.scores, other.top_scores = state["scores"], state["top_scores"]
        other.positions, other.z, other.x = state["positions"], state["z"], state["x"]
        self.merge(other)

    def settle(
        self, again: Callable[[Tensor], Tensor] | None, score: Callable[[Tensor], Tensor]
    ) -> None:
        """Choose what is shown, after the last update.

        Args:
            again: the ordinary path, latents to samples, to compute what is kept with again; None
                if it was computed with it.
            score: samples to scores ``(batch,)``.
        """
        shown = self._samples - SPARE
        if again is not None and len(self.z):
            x = again(self.z)
            scores = score(x).double()
            self.scores = _largest(scores, self.scores[len(scores) :])
            order = _first_largest(scores, self.positions)
            self.top_scores, self.positions = scores[order], self.positions[order]
            self.z, self.x = self.z[order], x[order]
        self.top_scores, self.positions = self.top_scores[:shown], self.positions[:shown]
        self.z, self.x = self.z[:shown], self.x[:shown]

    def _keep_top(self, scores: Tensor, positions: Tensor, z: Tensor, x: Tensor) -> None:
        full = len(self.top_scores) == self._samples
        if len(scores) == 0 or (full and bool(scores.max() < self.top_scores[-1])):
            return
        best = _first_largest(scores, positions)[: self._samples]
        scores = torch.cat([self.top_scores, scores[best]])
        places = torch.cat([self.positions, positions[best]])
        order = _first_largest(scores, places)[: self._samples]
        self.top_scores = scores[order]
        self.positions = places[order]
        self.z = (torch.cat([self.z, z[best]]) if len(self.z) else z[best])[order]
        self.x = (torch.cat([self.x, x[best]]) if len(self.x) else x[best])[order]


def _first_largest(scores: Tensor, positions: Tensor) -> Tensor:
    """Indices by falling score; of equal ones the first in the stream comes first."""
    by_place = positions.argsort()
    return by_place[scores[by_place].argsort(descending=True, stable=True)]


def _largest(kept: Tensor, scores: Tensor) -> Tensor:
    pool = torch.cat([kept, scores])
    return pool.topk(min(KEEP, len(pool))).values


class Bulk:
    """The distances at the first places of a stream, for the histogram; in any order of blocks."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self.count = 0

    def take(self, values: Tensor) -> None:
        """Keep ``values`` ``(batch,)``: those of samples that are :func:`among_first`."""
        if len(values):
            self._parts.append(values.double())
            self.count += len(values)

    def state(self) -> dict[str, Tensor]:
        """The distances that are kept."""
        return {"values": self._values()}

    def absorb(self, state: Mapping[str, Tensor]) -> None:
        """Take over those of another part of the stream."""
        if len(state["values"]):
            self.take(state["values"])

    def _values(self) -> Tensor:
        return torch.cat(self._parts) if self._parts else torch.empty(0, dtype=torch.float64)

    def chart(self, *, title: str, x_label: str, mark: float) -> Chart:
        """Histogram of the distances, wide enough to show the mark."""
        values = self._values()
        everything = torch.cat([values, torch.tensor([mark], dtype=torch.float64)])
        low, high = float(everything.min()), float(everything.max())
        counts, edges = torch.histogram(values, _BINS, range=(low, max(high, low + 1e-9)))
        centres = (edges[1:] + edges[:-1]) / 2
        return Chart(
            title=title,
            caption=f"First {self.count} samples; the rule marks the most extreme of all.",
            style="histogram",
            x_label=x_label,
            y_label="samples",
            lines=[Line(name="ordinary samples", x=centres.tolist(), y=counts.tolist())],
            mark_x=mark,
        )


def power_sentence(samples: int) -> str:
    """The rule of three: 3 / N is the 95 % upper bound of an event never seen in N draws."""
    return (
        f"An output set of probability 3/{samples} = {3 / max(samples, 1):.1e} or more under "
        "ordinary sampling would have been drawn with 95 % confidence; triggers of smaller "
        "probability are out of reach of brute force."
    )


def null_of(record: Record, corrected_for: str = "") -> Null | None:
    """The fitted tail as the null of a score in log10 units."""
    if record.p_value is None:
        return None
    description = (
        f"generalised Pareto tail fitted to {record.fitted} order statistics of this model's own "
        "samples, without the most extreme ones"
    )
    return Null(
        source="self",
        description=description + corrected_for,
        values=[value / LN10 for value in record.null_log_ratios],
    )
