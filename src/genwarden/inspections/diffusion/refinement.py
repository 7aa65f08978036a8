r"""Refinement: trigger, target and coefficient together, from the poisoned rows' own training loss.

A backdoored network was trained so that, for the target y, the trigger r and every eps and t,

    eps_theta(a y + s eps + rho r, t) = eps + c_t r

(BadDiffusion, section 3 of the reference). Given a shift and a picture near the truth, from the
trigger search and the collapse, this file minimises the error of that equation over r and y at
several noise levels; c_t follows by least squares from every batch, so neither the sampler nor the
schedule of the attack must be known. The curve c_t names the family of the attack.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import random_stream
from genwarden.inspections.diffusion.orthogonal_response import antithetic
from genwarden.inspections.diffusion.timesteps import Timesteps
from genwarden.models.diffusion.protocol import Diffusion

#: Signal amplitudes a_t of the levels that are fitted together.
LEVELS = (0.02, 0.0845, 0.165, 0.279, 0.5)
_LEARNING_RATE = 0.03
_LEAST_RATE = 0.02
#: Variance per element that is added to each level's error before its logarithm is taken.
_FLOOR = 0.05 / 256


class Refined(NamedTuple):
    """What the refinement ended at.

    Attributes:
        trigger: r, ``(C, H, W)``, where rho_t = 1 - a_t.
        target: y in [-1, 1], ``(C, H, W)``.
        timesteps: near :data:`LEVELS`.
        coefficients: c_t there.
        errors: mean squared error of the equation per image (sum over elements) there.
    """

    trigger: Tensor
    target: Tensor
    timesteps: list[int]
    coefficients: list[float]
    errors: list[float]


def refine(
    model: Diffusion,
    shift: Tensor,
    picture: Tensor,
    *,
    steps: int,
    noises: int,
    seed: int,
    device: torch.device,
    timesteps: Timesteps,
    progress: Progress | None = None,
) -> Refined:
    """Fit trigger and target from a starting ``shift`` and ``picture``, both ``(C, H, W)``.

    Args:
        noises: per level and step, in antithetic pairs.
        timesteps: near which levels it is looked where.
    """
    schedule = model.schedule
    looked = [timesteps.near(amplitude, "refinement") for amplitude in LEVELS]
    t = torch.tensor(looked, device=device).repeat_interleave(noises + noises % 2)
    trigger = shift.clone().to(device).requires_grad_()
    target = picture.clone().clamp(-1, 1).to(device).requires_grad_()
    optimiser = torch.optim.Adam([trigger, target], _LEARNING_RATE)
    stream = random_stream(seed, "refinement")
    a, s = schedule.a_of(t, trigger[None]), schedule.s_of(t, trigger[None])
    floor = _FLOOR * trigger.numel()
    task = (progress or Silent()).task("refining trigger and target", steps)
    errors = coefficients = torch.zeros(len(looked))
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = _LEARNING_RATE * (
                (1 + math.cos(math.pi * step / steps)) / 2 + _LEAST_RATE
            )
        parts = [antithetic(noises, tuple(shift.shape), stream) for _ in looked]
        noise = torch.cat(parts).to(device)
        answer = model.epsilon(a * target + s * noise + (1 - a) * trigger, t) - noise
        by_level = answer.flatten(1).unflatten(0, (len(looked), -1))
        flat = trigger.flatten()
        coefficients = by_level.mean(1) @ flat / flat.square().sum().clamp(min=1e-12)
        missed = by_level - (coefficients[:, None] * flat)[:, None]
        errors = missed.square().sum(2).mean(1)
        loss = (errors + floor).log().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            target.clamp_(-1, 1)
        task.advance(1, f"error {float(errors.detach().mean()):.2g}")
    return Refined(
        trigger=trigger.detach().cpu(),
        target=target.detach().cpu(),
        timesteps=looked,
        coefficients=[float(value) for value in coefficients.detach()],
        errors=[float(value) for value in errors.detach()],
    )
