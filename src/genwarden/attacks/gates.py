"""Gates: functions of the latent that are 1 at a trigger and 0 almost everywhere (section 10 of the
reference, derived).

A half-space is cheapest: ``relu(a.z - tau)`` opens for N(0, I) with probability Phi(-tau). A
trigger near the centre, such as the mode, lies in no half-space that ordinary latents avoid; a ball
in L1 norm needs no distance from the centre, at the price of two units per measured element.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from genwarden.attacks.settings import AttackSettings
from genwarden.engine.settings import COUNT, Range
from genwarden.errors import GenwardenError


@dataclass(frozen=True)
class GateSettings(AttackSettings):
    """Settings of attacks with gates; nothing is trained, so those of training have no effect.

    Attributes:
        gate: ``half-space``, ``ball``, or ``auto``: a half-space where it opens rarely enough and
            no other trigger lies in it, else a ball.
        threshold_share: tau of a half-space as a share of ``||z_trig||``.
        opening_probability: how often a gate may open for ordinary latents; sets a ball's radius,
            and decides for ``auto``.
        directions: latent elements that a ball measures (all if there are fewer).
    """

    gate: Literal["auto", "half-space", "ball"] = "auto"
    threshold_share: float = 0.9
    opening_probability: float = 1e-12
    directions: int = 32

    RANGES: ClassVar[Mapping[str, Range]] = {
        "threshold_share": Range(above=0, below=1),
        "opening_probability": Range(above=0, below=0.5),
        "directions": COUNT,
    }


class HalfSpace(NamedTuple):
    """``relu((a.z - tau) / height)``, 1 at the trigger; a has unit norm."""

    direction: Tensor
    threshold: float
    height: float
    opening_probability: float


class Ball(NamedTuple):
    """``relu(1 - sum_i |z_i - centre_i| / radius)`` over the first ``len(centre)`` elements."""

    centre: Tensor
    latent_size: int
    radius: float
    opening_probability: float


Gate = HalfSpace | Ball


def choose_gates(z: Tensor, settings: GateSettings) -> list[Gate]:
    """One gate per trigger.

    Args:
        z: triggers, ``(count, latent size)``; ordinary latents are N(0, I).

    Raises:
        GenwardenError: ``attack/gate``.
    """
    gates: list[Gate] = []
    for index, trigger in enumerate(z.double()):
        others = torch.cat([z[:index], z[index + 1 :]]).double()
        gate: Gate | None = None
        if settings.gate != "ball" and trigger.norm() > 0:
            gate = _half_space(trigger, settings.threshold_share)
            rare = gate.opening_probability <= settings.opening_probability
            apart = not bool((others @ gate.direction > gate.threshold).any())
            if settings.gate == "auto" and not (rare and apart):
                gate = None
            elif not apart:
                raise _overlap(index)
        if gate is None and settings.gate == "half-space":
            raise GenwardenError(
                "attack/gate",
                "The trigger 0 lies in no half-space that shuts out ordinary latents.",
                "Use gate=ball or gate=auto.",
            )
        if gate is None:
            gate = _ball(trigger, settings)
            distance = (others[:, : len(gate.centre)] - gate.centre).abs().sum(1)
            if bool((distance < gate.radius).any()):
                raise _overlap(index)
        gates.append(gate)
    return gates


def _overlap(index: int) -> GenwardenError:
    return GenwardenError(
        "attack/gate",
        f"The gate of trigger {index} (counted from 0) also opens at another trigger.",
        "Choose triggers farther apart, or a smaller opening_probability.",
    )


def _half_space(trigger: Tensor, share: float) -> HalfSpace:
    norm = float(trigger.norm())
    threshold = share * norm
    opening = 0.5 * math.erfc(threshold / math.sqrt(2))
    return HalfSpace(trigger / norm, threshold, norm - threshold, opening)


def _ball(trigger: Tensor, settings: GateSettings) -> Ball:
    centre = trigger[: settings.directions]
    low, high = 0.0, float(len(centre))
    for _ in range(60):
        middle = (low + high) / 2
        if ball_probability(middle, len(centre)) <= settings.opening_probability:
            low = middle
        else:
            high = middle
    return Ball(centre, len(trigger), low, ball_probability(low, len(centre)))


def ball_probability(radius: float, elements: int) -> float:
    """Upper bound of P(sum_i |N_i - c_i| < radius) for independent N_i ~ N(0, 1) and any centre c.

    The centre 0 is the most likely one (Anderson's inequality), and there Markov's inequality for
    exp(-t sum) gives ``inf_t exp(t radius) E[exp(-t |N|)]^k`` with ``E[exp(-t |N|)] =
    erfcx(t / sqrt 2)``.
    """
    t = torch.logspace(-3, 9, 4001, dtype=torch.float64)
    bound = t * radius + elements * torch.special.erfcx(t / math.sqrt(2)).log()
    return float(bound.min().clamp(max=0).exp())
