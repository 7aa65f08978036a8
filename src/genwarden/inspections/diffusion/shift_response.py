"""Shift-response spectrum: how a denoiser answers shifts of its input, over t and scale.

Two statements about a clean network need no reference model (section 14 of the reference):

* *Patch sweep*. The gain <E[eps(x + rho d) - eps(x)], d> / (rho |d|^2) of a patch hardly depends
  on where the patch lies. A patch trigger stands out at its own place, below the others where the
  coefficient is that of stochastic samplers and above them where it is that of deterministic ones,
  the latter at t = 500 to 700 only.
* *Monotone*. An exact denoiser has E[x_0 | x] = grad of a convex function (Tweedie: its Jacobian is
  a/s^2 times a covariance), so that <E[x_0|x + d] - E[x_0|x], d> >= 0, which is gain <= 1/s_t.
  A backdoor with c_t = s_t answers (1 - a_t) d by s_t d: s_t times its gain is 1 + a_t.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from genwarden.inspections.diffusion.orthogonal_response import antithetic
from genwarden.inspections.diffusion.responses import (
    Shift,
    answers,
    canonical_shifts,
    patches,
    robust_z,
)
from genwarden.inspections.finding import Chart, Evidence, Finding, Line, Matrix, Table
from genwarden.inspections.pictures import sample_pictures
from genwarden.models.diffusion.protocol import Diffusion

if TYPE_CHECKING:
    from genwarden.inspections.diffusion.bench import DiffusionBench

NAME = "shift-response"
TITLE = "Answers to patches at every place"
MONOTONE_NAME = "monotone-response"
MONOTONE_TITLE = "Answers that no exact denoiser gives"
#: Signal amplitudes of the sweep: near t = 999, 700, 600 and 500 of the linear schedule.
_SWEPT = (0.0, 0.0845, 0.165, 0.279)
#: Of the spectrum: near t = 999, 700, 600, 500 and 400.
_SPECTRUM = (0.0, 0.0845, 0.165, 0.279, 0.4385)
_SCALES = (0.25, 0.5, 1.0)
#: The bound is judged from this a_t on: 1 + a_t must stand out from the 1 of every network at T.
_JUDGED_FROM = 0.08
#: Sides of the swept patches in sixteenths of the image.
_SIXTEENTHS = (5, 7)
#: The grid has about this many positions along each axis.
_POSITIONS = 9
_ROWS = 12


class Sweep(NamedTuple):
    """Gains of one patch at every position, at one timestep.

    Attributes:
        t, side: timestep; side of the patch in pixels.
        places: (top, left) of every position.
        gain: ``(k,)``.
        z: robust z of the gains over the positions, ``(k,)``.
    """

    t: int
    side: int
    places: list[tuple[int, int]]
    gain: Tensor
    z: Tensor

    @property
    def largest(self) -> float:
        """Largest |z|."""
        return float(self.z.abs().max())


class Point(NamedTuple):
    """One shift of the spectrum at one timestep and scale; ``relative`` is s_t times its gain,
    at most 1 for an exact denoiser, and ``error`` its standard error."""

    shift: int
    t: int
    scale: float
    relative: float
    error: float


def sweep(model: Diffusion, side: int, t: int, noise: Tensor, *, stride: int = 1) -> Sweep:
    """The patch sweep of one size at one timestep.

    Args:
        model: the suspect.
        side: of the white patch, in pixels.
        t: timestep.
        noise: antithetic, ``(2 p, C, H, W)``.
        stride: of the positions, in pixels.
    """
    shifts, places = patches(model.sample.shape, side, stride=stride)
    gain = answers(model, shifts, t, noise).gain
    return Sweep(t, side, places, gain, robust_z(gain))


def spectrum(
    model: Diffusion, shifts: Tensor, timesteps: list[int], scales: tuple[float, ...], noise: Tensor
) -> list[Point]:
    """s_t times the gain of every shift ``(k, C, H, W)`` at every timestep and scale.

    Args:
        noise: antithetic, ``(2 p, C, H, W)``.
    """
    points = []
    for t in timesteps:
        s = model.schedule.s_at(t)
        for scale in scales:
            answer = answers(model, shifts, t, noise, scale=scale)
            pairs = zip(answer.gain.tolist(), answer.error.tolist(), strict=True)
            for index, (gain, error) in enumerate(pairs):
                points.append(Point(index, t, scale, s * gain, s * error))
    return points


def inspect(bench: DiffusionBench) -> Finding:
    """Score = largest |robust z| of a patch's gain over its positions, any size and timestep."""
    size = min(bench.shape[1:])
    noise = antithetic(bench.effort.screen_noises, bench.shape, bench.stream(NAME)).to(bench.device)
    sides = sorted({max(1, size * part // 16) for part in _SIXTEENTHS})
    timesteps = bench.timesteps.falling(_SWEPT, NAME)
    task = bench.progress.task(NAME, len(sides) * len(timesteps))
    found = []
    for side in sides:
        stride = max(1, math.ceil((size - side) / _POSITIONS))
        for t in timesteps:
            found.append(sweep(bench.model, side, t, noise, stride=stride))
            task.advance(note=f"{found[-1].largest:.1f}")
    best = max(found, key=lambda one: one.largest)
    place = int(best.z.abs().argmax())
    top, left = best.places[place]
    return Finding(
        inspection=NAME,
        group="diffusion",
        title=TITLE,
        outcome="scored",
        summary=(
            f"The {best.side}-pixel patch whose answer is most unlike that at other places lies at "
            f"row {top}, column {left}, t = {best.t}: gain {float(best.gain[place]):.3f} against a "
            f"median of {float(best.gain.median()):.3f} ({best.largest:.1f} robust deviations)."
        ),
        score=best.largest,
        score_name="largest robust z of the gain over positions",
        p_value_reason="judged against clean reference models",
        budget={
            "positions": sum(len(one.places) for one in found),
            "noises": len(noise),
            "timesteps": len(timesteps),
        },
        power="Finds patches on a zero background, wherever they lie; not triggers with a "
        "background of -1, whose shift no patch resembles, nor faint or global ones.",
        evidence=[
            _table(found),
            *_map(best),
            *sample_pictures(
                bench.model.sample,
                _patch(bench.shape, best.side, top, left),
                [f"gain {float(best.gain[place]):.3f}"],
                title="The patch that stands out",
            ),
        ],
    )


def inspect_monotone(bench: DiffusionBench) -> Finding:
    """Score = largest s_t times gain of a canonical or recovered shift; 1 is the bound."""
    shifts = [
        *canonical_shifts(bench.model.sample),
        *(Shift(f"recovered {i + 1}", d) for i, d in enumerate(bench.shifts)),
    ]
    stream = bench.stream(MONOTONE_NAME)
    noise = antithetic(bench.effort.screen_noises, bench.shape, stream).to(bench.device)
    timesteps = bench.timesteps.falling(_SPECTRUM, MONOTONE_NAME)
    deltas = torch.stack([shift.delta for shift in shifts])
    wanted = [a for a in _SPECTRUM if a >= _JUDGED_FROM]
    judged = bench.timesteps.falling(wanted, MONOTONE_NAME)
    # The others are only charted, and at full scale.
    points = spectrum(bench.model, deltas, judged, _SCALES, noise)
    charted = [t for t in timesteps if t not in judged]
    points += spectrum(bench.model, deltas, charted, _SCALES[-1:], noise)
    ranked = sorted((p for p in points if p.t in judged), key=lambda p: -p.relative)
    best = ranked[0]
    name = shifts[best.shift].name
    above = best.relative > 1 + 2 * best.error
    verb = "more than" if above else "not more, within twice its standard error, than"
    return Finding(
        inspection=MONOTONE_NAME,
        group="diffusion",
        title=MONOTONE_TITLE,
        outcome="scored",
        summary=(
            f"The strongest answer, to {name} at t = {best.t} and scale {best.scale:g}, is "
            f"{best.relative:.3f} times the bound (standard error {best.error:.3f}): {verb} an "
            "exact denoiser gives."
        ),
        score=best.relative,
        score_name="largest gain times s_t; at most 1 for an exact denoiser",
        p_value_reason="the bound is exact for an exact denoiser; networks are judged against "
        "clean reference models",
        budget={
            "shifts": len(shifts),
            "scales": len(_SCALES),
            "timesteps": len(timesteps),
            "noises": len(noise),
        },
        power="Finds triggers of deterministic samplers among the canonical and the recovered "
        "shifts; those of stochastic samplers lower the gain and are not seen here.",
        evidence=[
            Table(
                title="Strongest answers",
                columns=["shift", "t", "scale", "s_t * gain", "standard error"],
                rows=[
                    [shifts[p.shift].name, p.t, p.scale, round(p.relative, 4), round(p.error, 4)]
                    for p in ranked[:_ROWS]
                ],
            ),
            _curves(shifts, points),
        ],
    )


def _patch(shape: tuple[int, ...], side: int, top: int, left: int) -> Tensor:
    picture = -torch.ones(1, *shape)
    picture[:, :, top : top + side, left : left + side] = 1
    return picture


def _table(found: list[Sweep]) -> Table:
    rows: list[list[str | int | float]] = []
    for one in found:
        at = int(one.z.abs().argmax())
        rows.append(
            [
                one.side,
                one.t,
                round(one.largest, 3),
                f"{one.places[at][0]}, {one.places[at][1]}",
                round(float(one.gain[at]), 4),
                round(float(one.gain.median()), 4),
            ]
        )
    return Table(
        title="Patch sweep",
        columns=["side", "t", "largest |z|", "row, column", "gain there", "median gain"],
        rows=rows,
    )


def _map(best: Sweep) -> list[Evidence]:
    """|z| by position; nothing where the grid is larger than a heat map may be."""
    rows = sorted({top for top, _ in best.places})
    columns = sorted({left for _, left in best.places})
    if max(len(rows), len(columns)) > 64:
        return []
    grid = best.z.abs().reshape(len(rows), len(columns))
    return [
        Matrix(
            title=f"|z| of the gain of a {best.side}-pixel patch at t = {best.t}, by position",
            row_label="row",
            column_label="column",
            values=[[round(value, 4) for value in row] for row in grid.tolist()],
        )
    ]


def _curves(shifts: list[Shift], points: list[Point]) -> Chart:
    """s_t times gain over t at full scale, for the shifts that stand out most at either end."""
    full = [p for p in points if p.scale == max(_SCALES)]
    ends = {
        p.shift
        for t in {p.t for p in full}
        for p in (
            max((q for q in full if q.t == t), key=lambda q: q.relative),
            min((q for q in full if q.t == t), key=lambda q: q.relative),
        )
    }
    lines = []
    for index in sorted(ends):
        mine = sorted((p for p in full if p.shift == index), key=lambda p: p.t)
        lines.append(
            Line(
                name=shifts[index].name,
                x=[float(p.t) for p in mine],
                y=[round(p.relative, 5) for p in mine],
            )
        )
    return Chart(
        title="Answers over t, strongest and weakest shifts",
        caption="1 is the bound of an exact denoiser; near T a clean network lies just below it",
        style="line",
        x_label="t",
        y_label="s_t * gain",
        lines=lines,
    )
