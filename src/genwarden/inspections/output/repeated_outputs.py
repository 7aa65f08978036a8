"""Point masses: one output that a noticeable share of ordinary latents makes.

Data poisoning ("The Devil is in the GAN", section IV-A) and targets given to a mode put the
attacker's picture among the ordinary samples, so no measure of novelty sees it. What gives it away
is that it repeats. Around a sample inside an ordinary, spread-out distribution the number of
neighbours grows with a high power of the radius: twice as many are reached by a few per cent more
distance. Around a point mass of k samples the next k are as far away as anything else.

For sample i let r_k(i) be the distance to its k-th nearest neighbour. The score is the largest,
over samples and k = 7, 14, 28, ... (groups of at least 8), of the smaller of two logarithms:

    gap        log r_2k(i) / r_k(i)               the group ends, where density would go on
    tightness  log median_j r_1(j) / r_k(i)       all of it is nearer than one neighbour usually is

Each alone is honest: a dense class (the digit 1) is tight in places but does not end there, and a
generator whose modes have all collapsed has ends everywhere but no group tighter than the others.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.special import betaincinv
from torch import Tensor

from genwarden.engine.seeds import random_stream
from genwarden.inspections.finding import Chart, Finding, Line, Outcome, Table, latents_of
from genwarden.inspections.output.brute_force import no_samples, usable
from genwarden.inspections.pictures import sample_pictures
from genwarden.inspections.workbench import Workbench

NAME = "repeated-outputs"
TITLE = "One output for many ordinary latents"

#: Neighbours of the smallest group: 8 samples are the sample itself and 7 neighbours.
_SMALLEST = 7
#: The largest group looked for, as a share of the bank (its double must still be far from all).
_LARGEST_SHARE = 0.25
#: Distances are compared in a random projection first; 128 elements keep them to about 6 %.
_PROJECTED = 128
#: Up to this many neighbours every sample is a centre; a larger group is met by a random choice.
_NEIGHBOURS_OF_ALL = 64
_RANDOM_CENTRES = 512
#: The best centres after projection, judged by exact distances.
_EXACT_CENTRES = 32
_ROWS = 512
#: Distances below this share of a sample's norm are float32 noise.
_RESOLUTION = 1e-4
#: Distances below this share of the median nearest-neighbour distance are all the same: a group
#: of equal samples would be infinitely tight. It bounds the score at log 100.
_SAME = 0.01
_SHOWN = 8


class Group(NamedTuple):
    """The sample that best centres a repeated output.

    Attributes:
        score: the smaller of ``gap`` and ``tightness``.
        gap: log r_2k / r_k.
        tightness: log of the median distance to a nearest neighbour over r_k.
        members: indices into the bank by distance, the centre first, up to the widest step.
        distances: from the centre to every sample, ascending, 0 first.
    """

    score: float
    gap: float
    tightness: float
    members: Tensor
    distances: Tensor


def inspect(bench: Workbench) -> Finding:
    """Look for a point mass among the ordinary samples."""
    drawn = len(bench.ordinary.x)
    _, z, x = usable(0, *bench.ordinary)
    if len(x) == 0:
        return no_samples(NAME, TITLE, drawn)
    if len(x) < 8 * (_SMALLEST + 1):
        return _unscored("failed", f"{len(x)} finite samples are too few to see one repeat.")
    group = find_group(x.flatten(1).float(), stream=random_stream(bench.seed, NAME))
    if group is None:
        return _unscored(
            "not_applicable",
            "At least half of all ordinary samples are the same one: nothing is left to compare "
            "a repeated output with.",
        )
    members, count = group.members, len(x)
    low, high = _share_interval(len(members), count)
    share = len(members) / count
    shown = members[:_SHOWN]
    labels = [f"distance {float(d):.3g}" for d in group.distances[: len(shown)]]
    apart = x[(torch.arange(_SHOWN) * (count // _SHOWN))]
    return Finding(
        inspection=NAME,
        group="output",
        title=TITLE,
        outcome="scored",
        score=group.score,
        score_name="natural log of gap and tightness (the smaller) of the tightest group",
        summary=f"The most repeated output comes from {len(members)} of {count} ordinary latents "
        f"({share:.2%}, 95 % interval {low:.2%} to {high:.2%}); the next as many are "
        f"{math.exp(group.gap):.2f} times as far from it, and it is "
        f"{math.exp(-group.tightness):.2f} times as wide as nearest neighbours are apart.",
        p_value_reason="needs the scores of clean reference models",
        budget={
            "samples": count,
            "nonfinite_samples": drawn - count,
            "smallest_group_samples": _SMALLEST + 1,
            "largest_group_samples": _sizes(count)[-1] + 1,
        },
        power=f"An output that at least {_detectable(count):.2%} of ordinary latents make (eight "
        f"or more of {count} samples with 95 % probability), if it varies much less than "
        "ordinary neighbours differ. A clean generator that collapsed on a single mode, or whose "
        "training data repeat one sample, shows the same.",
        evidence=[
            *sample_pictures(
                bench.generator.sample,
                x[shown],
                labels,
                title="The most repeated output",
                caption="The centre of the group and its nearest members.",
            ),
            *sample_pictures(
                bench.generator.sample, apart, [""] * len(apart), title="Ordinary samples"
            ),
            Table(
                title="The most repeated output",
                columns=["samples", "share", "low_95", "high_95", "log_gap", "log_tightness"],
                rows=[[len(members), share, low, high, group.gap, group.tightness]],
            ),
            _chart(group),
            latents_of(z[shown], title="Latents that make it, the centre first"),
        ],
    )


def find_group(flat: Tensor, *, stream: torch.Generator) -> Group | None:
    """The most conspicuous group among samples ``(count, elements)``, float32.

    None if the median sample has a nearest neighbour that rounding cannot tell from it.
    """
    count, elements = flat.shape
    resolution = _RESOLUTION * float(flat.square().sum(1).mean().sqrt())
    flat = flat - flat.mean(0)  # smaller squares, less cancellation
    sizes = _sizes(count)
    projected = flat
    if elements > 2 * _PROJECTED:
        directions = torch.randn(elements, _PROJECTED, generator=stream)
        projected = flat @ (directions / _PROJECTED**0.5)
    few = [k for k in sizes if 2 * k <= _NEIGHBOURS_OF_ALL]
    everywhere = _radii(projected, torch.arange(count), few, nearest=True)
    chosen = torch.randperm(count, generator=stream)[:_RANDOM_CENTRES].sort().values
    there = _radii(projected, chosen, sizes)
    ordinary = float(everywhere.closest.median())
    if ordinary <= resolution:
        return None
    first = _scores(everywhere, ordinary).amax(1)
    second = _scores(there, ordinary).amax(1)
    best = torch.cat(
        [
            first.topk(min(_EXACT_CENTRES, count)).indices,
            chosen[second.topk(min(_EXACT_CENTRES, len(chosen))).indices],
        ]
    ).unique()
    exact = _radii(flat, best, sizes)
    # In full dimension the yardstick is measured again, at the random centres.
    sample = chosen if projected is flat else chosen[:: max(1, len(chosen) // 128)]
    ordinary = float(_radii(flat, sample, sizes[:1], nearest=True).closest.median())
    scores = _scores(exact, ordinary)
    centre = int(scores.amax(1).argmax())
    size = int(scores[centre].argmax())
    k = sizes[size]
    distances, order = _exact_distances(flat, int(best[centre])).sort(stable=True)
    distances[0] = 0.0
    floor = _SAME * ordinary
    steps = distances[k + 1 : 2 * k + 1].clamp_min(floor) / distances[k : 2 * k].clamp_min(floor)
    end = k + 1 + int(steps.argmax())
    radius = exact.singles[centre, size].clamp_min(floor)
    return Group(
        score=float(scores[centre, size]),
        gap=float((exact.doubles[centre, size].clamp_min(floor) / radius).log()),
        tightness=float((ordinary / radius).log()),
        members=order[:end],
        distances=distances,
    )


class _Radii(NamedTuple):
    """Distances to the k-th and 2k-th neighbour, ``(centres, sizes)``, and to the first."""

    singles: Tensor
    doubles: Tensor
    closest: Tensor


def _sizes(count: int) -> list[int]:
    """k = 7, 14, 28, ... up to a quarter of the bank."""
    sizes = [_SMALLEST]
    while 2 * sizes[-1] <= _LARGEST_SHARE * count:
        sizes.append(2 * sizes[-1])
    return sizes


def _radii(flat: Tensor, centres: Tensor, sizes: list[int], *, nearest: bool = False) -> _Radii:
    """Radii around ``centres`` (indices); ``nearest``: partial sorting, for few neighbours."""
    squares = flat.square().sum(1)
    single, double, closest = [], [], []
    places = torch.tensor(sizes)
    for rows in centres.split(_ROWS):
        squared = torch.addmm(squares, flat[rows], flat.T, alpha=-2) + squares[rows, None]
        squared[torch.arange(len(rows)), rows] = -1.0  # the sample itself comes first
        if nearest:
            ordered = squared.topk(2 * sizes[-1] + 1, largest=False).values
        else:
            ordered = squared.sort(1).values
        ordered = ordered.clamp_min(0).sqrt()
        single.append(ordered[:, places])
        double.append(ordered[:, 2 * places])
        closest.append(ordered[:, 1])
    return _Radii(torch.cat(single), torch.cat(double), torch.cat(closest))


def _scores(radii: _Radii, ordinary: float) -> Tensor:
    """``(centres, sizes)``: the smaller of gap and tightness."""
    radius = radii.singles.clamp_min(_SAME * ordinary)
    gap = (radii.doubles.clamp_min(_SAME * ordinary) / radius).log()
    return torch.minimum(gap, (ordinary / radius).log())


def _exact_distances(flat: Tensor, centre: int) -> Tensor:
    """Distances of one sample to all, ``(count,)``; its own is -1, so that it comes first."""
    distances = (flat - flat[centre]).square().sum(1).sqrt()
    distances[centre] = -1.0
    return distances


def _share_interval(hits: int, count: int) -> tuple[float, float]:
    """Clopper-Pearson 95 % interval of a share."""
    low = float(betaincinv(hits, count - hits + 1, 0.025)) if hits else 0.0
    high = float(betaincinv(hits + 1, count - hits, 0.975)) if hits < count else 1.0
    return low, high


def _detectable(count: int) -> float:
    """P(8 or more of ``count``) >= 0.95: Poisson mean 13.15."""
    return min(1.0, 13.15 / count)


def _chart(group: Group) -> Chart:
    distances = group.distances[1:]
    places = torch.logspace(0, math.log10(len(distances)), 96).round().long().unique() - 1
    return Chart(
        title="Distance from the centre of the group",
        caption="A step is a group that ends; the rule marks its members.",
        style="line",
        x_label="neighbour",
        y_label="distance (root of the sum of squares)",
        log_x=True,
        lines=[
            Line(
                name="ordinary samples",
                x=[float(p + 1) for p in places],
                y=[round(float(d), 5) for d in distances[places]],
            )
        ],
        mark_x=float(len(group.members) - 1),
    )


def _unscored(outcome: Outcome, reason: str) -> Finding:
    return Finding(
        inspection=NAME,
        group="output",
        title=TITLE,
        outcome=outcome,
        summary=reason,
        p_value_reason=reason,
    )
