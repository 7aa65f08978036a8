"""Temporal consistency of the noise estimate (TNC-Defense, section 11.4 of the reference).

Along a trajectory of a clean model eps_theta changes little from one visited timestep to the next,
and a shift of the initial noise, taken for noise, adds a constant part to it: the trajectory
changes less, or about as much. In a backdoored model the residual c_t r moves with t and is at odds
with the sampler wherever their coefficients differ: the estimate changes more from step to step.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.inspections.diffusion.responses import Shift, canonical_shifts
from genwarden.inspections.finding import Chart, Finding, Line, Table
from genwarden.models.diffusion.protocol import Diffusion
from genwarden.models.diffusion.samplers import SamplerSettings, Step, sample

if TYPE_CHECKING:
    from genwarden.inspections.diffusion.bench import DiffusionBench

NAME = "adjacent-steps"
TITLE = "Consistency of the noise estimate between adjacent steps"
_TRAJECTORIES = 8
_STRONGEST = 3
_SMALLEST = 1e-9
_ROWS = 12


class Consistency(NamedTuple):
    """Changes of eps_theta along trajectories, averaged over them.

    Attributes:
        timesteps: the later timestep of each pair, falling, ``n - 1`` of them.
        change: mean squared difference per value between the two estimates.
        cosine: mean cosine between them.
    """

    timesteps: list[int]
    change: list[float]
    cosine: list[float]


@torch.no_grad()
def consistency(
    model: Diffusion,
    noise: Tensor,
    settings: SamplerSettings,
    generator: torch.Generator | None = None,
) -> Consistency:
    """Follow ordinary sampling from ``noise`` and compare adjacent noise estimates.

    Args:
        model: the suspect.
        noise: initial noise, ``(batch, C, H, W)``.
        settings: the sampler; a deterministic one shows the network alone.
        generator: noise of the steps, for random samplers.
    """
    timesteps: list[int] = []
    change: list[float] = []
    cosine: list[float] = []
    before: list[Tensor] = []

    def hook(step: Step) -> None:
        now = step.epsilon.flatten(1).double()
        if before:
            last = before.pop()
            timesteps.append(step.t)
            change.append(float((now - last).square().mean()))
            cosine.append(float(F.cosine_similarity(now, last, dim=1).mean()))
        before.append(now)

    sample(model, noise, settings, generator, hook=hook)
    return Consistency(timesteps, change, cosine)


def log_ratio(shifted: Consistency, plain: Consistency) -> float:
    """ln of the mean change of ``shifted`` over that of ``plain`` trajectories."""
    means = [max(sum(one.change) / len(one.change), _SMALLEST) for one in (shifted, plain)]
    return math.log(means[0] / means[1])


def inspect(bench: DiffusionBench) -> Finding:
    """Score = largest ln ratio of changes, recovered shifts (or canonical ones) over none."""
    noise = bench.noise(NAME, _TRAJECTORIES)
    recovered = [Shift(f"recovered {i + 1}", d) for i, d in enumerate(bench.shifts[:_STRONGEST])]
    shifts = recovered or canonical_shifts(bench.model.sample)
    steps = min(bench.effort.sampler_steps, bench.schedule.steps)
    # Unclipped, an implied picture far out of range leaves the trajectory as the network has it.
    settings = SamplerSettings("ddim", steps, eta=0.0)
    task = bench.progress.task(NAME, len(shifts) + 1)
    plain = consistency(bench.model, noise.to(bench.device), settings)
    task.advance()
    found = []
    for shift in shifts:
        found.append(consistency(bench.model, (noise + shift.delta).to(bench.device), settings))
        task.advance()
    ratios = [log_ratio(one, plain) for one in found]
    order = sorted(range(len(ratios)), key=lambda i: -ratios[i])
    best = order[0]
    return Finding(
        inspection=NAME,
        group="diffusion",
        title=TITLE,
        outcome="scored",
        summary=(
            f"With {shifts[best].name} in the noise the estimate changes "
            f"{math.exp(ratios[best]):.2f} times as much from step to step as without."
        ),
        score=ratios[best],
        score_name="ln(mean squared change between adjacent steps, shifted / plain)",
        p_value_reason="judged against clean reference models",
        budget={"shifts": len(shifts), "trajectories": _TRAJECTORIES, "sampler_steps": steps},
        power="Finds shifts that change the course of sampling; large shifts do so in clean "
        "networks too, so that it tells apart only what the search recovered.",
        evidence=[
            Table(
                title="Change between adjacent steps",
                columns=["shift", "ln(shifted / plain)", "mean change", "mean cosine"],
                rows=[
                    [
                        shifts[i].name,
                        round(ratios[i], 4),
                        round(sum(found[i].change) / len(found[i].change), 6),
                        round(sum(found[i].cosine) / len(found[i].cosine), 5),
                    ]
                    for i in order[:_ROWS]
                ],
            ),
            Chart(
                title="Mean squared change of the noise estimate",
                style="line",
                x_label="t",
                y_label="mean squared change per value",
                log_y=True,
                lines=[_line("plain noise", plain), _line(shifts[best].name, found[best])],
            ),
        ],
    )


def _line(name: str, one: Consistency) -> Line:
    return Line(
        name=name,
        x=[float(t) for t in one.timesteps],
        y=[max(float(f"{value:.6g}"), _SMALLEST) for value in one.change],
    )
