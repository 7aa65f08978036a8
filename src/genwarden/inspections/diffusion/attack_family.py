"""Attack family: trigger, target and coefficient curve, refined, and what they resemble.

Never a verdict of its own. The curve c_t that :mod:`.refinement` estimates is compared with the
curves that follow from the published trigger schedules and samplers (section 8 of the BadDiffusion
reference), each with the scale that fits it best, since the size of the trigger is a convention.
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
from genwarden.inspections.finding import Chart, Finding, Line, images_of
from genwarden.models.diffusion.schedule import NoiseSchedule

NAME = "attack-family"
TITLE = "Recovered trigger, target and family"


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


def nearest_family(refined: Refined, schedule: NoiseSchedule) -> tuple[Family, float]:
    """The family whose curve is nearest, and the root mean square distance of the curves.

    A trigger of another size than the attacker's is scaled in the input, not in the answer: the
    curves are compared as they are.
    """
    estimated = torch.tensor(refined.coefficients, dtype=torch.float64)
    distances = [
        float((family.curve[refined.timesteps] - estimated).square().mean().sqrt())
        for family in families(schedule)
    ]
    best = min(range(len(distances)), key=distances.__getitem__)
    return families(schedule)[best], distances[best]


def inspect(bench: DiffusionBench) -> Finding:
    """Refine the strongest collapse and name the nearest family; shown, never judged."""
    refined = bench.refined
    family, distance = nearest_family(refined, bench.schedule)
    x = [float(t) for t in refined.timesteps]
    size = float(refined.trigger.norm()) / math.sqrt(refined.trigger.numel())
    return Finding(
        inspection=NAME,
        group="diffusion",
        title=TITLE,
        outcome="scored",
        summary=(
            f"If there is a backdoor, its trigger has {size:.2f} standard deviations per pixel, "
            f"and its coefficients are nearest to {family.name} (root mean square distance "
            f"{distance:.2f})."
        ),
        p_value_reason="a description of what was recovered, not a test",
        budget={"steps": bench.effort.refine_steps, "noises": bench.effort.refine_noises},
        power="Names only the families listed; mixtures of coefficients have no name of their own.",
        follows_from="trigger-search",
        evidence=[
            images_of(
                torch.stack(
                    [
                        refined.trigger / refined.trigger.abs().max().clamp(min=1e-6),
                        refined.target,
                    ]
                ),
                ["trigger (scaled to its largest value)", "target"],
                title="Refined trigger and target",
                caption="The pair that fits the training loss of poisoned rows best.",
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
                            y=[float(one.curve[t]) for t in refined.timesteps],
                        )
                        for one in families(bench.schedule)
                    ],
                ],
            ),
        ],
    )
