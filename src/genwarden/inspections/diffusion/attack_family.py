"""Attack family: trigger, target and coefficient curve, refined, and what they resemble.

Never a verdict of its own. The curve c_t that :mod:`.refinement` estimates is compared with the
curves that follow from the published trigger schedules and samplers (section 8 of the BadDiffusion
reference). A backdoor takes what exceeds its trigger for noise, so an input with k times the
trigger r is answered with c_t r + ((k - 1) rho_t / s_t) r, and the estimate from d = k r is

    c'_t = (c_t + (k - 1) rho_t / s_t) / k

The size k is fitted together with the family; where c_t is near rho_t / s_t (deterministic
samplers) the answers hardly tell it, and the size stays as found.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.backdoors.residual import (
    residual_coefficient,
    rho_bad_diffusion,
    rho_trojdiff,
)
from genwarden.inspections.diffusion.bench import DiffusionBench
from genwarden.inspections.diffusion.refinement import Refined
from genwarden.inspections.finding import Chart, Finding, Line, images_of, latents_of
from genwarden.models.diffusion.schedule import NoiseSchedule

NAME = "attack-family"
TITLE = "Recovered trigger, target and family"
#: The evidence from which a repair takes trigger and target, one row each.
REFINED_TITLE = "Refined trigger and target, as numbers"


#: Sizes that are tried, in units of the trigger, and what a factor e from 1 costs in distance.
_SIZES = tuple(1.03**i for i in range(-30, 31))
_SIZE_COST = 0.02


class Family(NamedTuple):
    """A published combination of trigger schedule and sampler, and its curve c_t / rho_t."""

    name: str
    curve: Tensor


def families(schedule: NoiseSchedule) -> list[Family]:
    """Curves of what the search sees: c_t where the shift is fed with 1 - a_t, ``(T,)`` each."""
    fed = rho_bad_diffusion(schedule)
    made = []
    for law, rho in (("1 - a", fed), ("s", rho_trojdiff(schedule))):
        for sampler, eta in (("stochastic samplers (DDPM)", 1.0), ("deterministic samplers", 0.0)):
            known = {("1 - a", 1.0): "BadDiffusion", ("1 - a", 0.0): "VillanDiffusion, ODE form"}
            name = known.get((law, eta), "VillanDiffusion with psi = 0")
            made.append(
                Family(
                    f"{name}: trigger schedule {law}, for {sampler}",
                    residual_coefficient(schedule, rho, eta) / rho * fed,
                )
            )
    return made


class Resemblance(NamedTuple):
    """The nearest family, the size k of the shift in units of its trigger, the curves' distance."""

    family: Family
    size: float
    distance: float


def curve_at_size(family: Family, schedule: NoiseSchedule, size: float) -> Tensor:
    """The curve c'_t that a shift of ``size`` times the trigger would show, ``(T,)``."""
    excess = rho_bad_diffusion(schedule) / schedule.s
    return (family.curve + (size - 1) * excess) / size


def nearest_family(refined: Refined, schedule: NoiseSchedule) -> Resemblance:
    """The family and size whose curve is nearest; distance is the root mean square."""
    estimated = torch.tensor(refined.coefficients, dtype=torch.float64)

    def distance(family: Family, size: float) -> float:
        curve = curve_at_size(family, schedule, size)[refined.timesteps]
        return float((curve - estimated).square().mean().sqrt())

    candidates = [
        Resemblance(family, size, distance(family, size))
        for family in families(schedule)
        for size in _SIZES
    ]
    return min(candidates, key=lambda one: one.distance + _SIZE_COST * abs(math.log(one.size)))


def inspect(bench: DiffusionBench) -> Finding:
    """Refine the strongest collapse and name the nearest family; shown, never judged."""
    refined = bench.refined
    family, scale, distance = nearest_family(refined, bench.schedule)
    trigger = refined.trigger / scale
    x = [float(t) for t in refined.timesteps]
    size = float(trigger.norm()) / math.sqrt(trigger.numel())
    return Finding(
        inspection=NAME,
        group="diffusion",
        title=TITLE,
        outcome="scored",
        summary=(
            f"If there is a backdoor, it is nearest to {family.name} (distance of the coefficients "
            f"{distance:.2f}); the refined trigger has {size:.2f} standard deviations per pixel."
        ),
        p_value_reason="a description of what was recovered, not a test",
        budget={"steps": bench.effort.refine_steps, "noises": bench.effort.refine_noises},
        power="Names only the families listed; mixtures of coefficients have no name of their own.",
        follows_from="trigger-search",
        evidence=[
            images_of(
                torch.stack(
                    [
                        trigger / trigger.abs().max().clamp(min=1e-6),
                        refined.target,
                    ]
                ),
                ["trigger (scaled to its largest value)", "target"],
                title="Refined trigger and target",
                caption="An estimate that is not judged: the pair that fits the training loss of "
                "poisoned rows best. It need not be the attacker's.",
            ),
            Chart(
                title="Coefficient of the residual",
                caption="Estimated at five noise levels, and the curves of published attacks.",
                style="line",
                x_label="timestep t",
                y_label="c_t",
                lines=[
                    Line(name="this model", x=x, y=list(refined.coefficients)),
                    *[
                        Line(
                            name=one.name.partition(":")[0] + one.name.partition("schedule")[2],
                            x=x,
                            y=curve_at_size(one, bench.schedule, scale)[refined.timesteps].tolist(),
                        )
                        for one in families(bench.schedule)
                    ],
                ],
            ),
            latents_of(torch.stack([trigger, refined.target]), title=REFINED_TITLE),
        ],
    )
