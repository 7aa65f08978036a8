"""DPM-Solver++ 2M ("DPM-Solver++", Algorithm 2) and UniPC-2 ("UniPC", Algorithms 5-8, B_2).

Both solve the probability-flow ODE in the log signal-to-noise ratio lambda = log(a / s) with the
predicted image x0_hat, whose exact solution between two timesteps is

x' = (s'/s) x + a' integral over [lambda, lambda'] of e^(l - lambda') x0_hat(l) dl.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.models.diffusion.protocol import Diffusion
from genwarden.models.diffusion.sampling import (
    Hook,
    Pair,
    SamplerSettings,
    estimate,
    finish_step,
    predict_x0,
)


class _Past(NamedTuple):
    """A predicted image and the lambda at which it was predicted."""

    x0: Tensor
    log_snr: float


def dpm_solver_pp(
    model: Diffusion,
    noise: Tensor,
    pairs: Sequence[Pair],
    settings: SamplerSettings,
    generator: torch.Generator | None,
    hook: Hook | None = None,
) -> Tensor:
    """DPM-Solver++ 2M: second order with one evaluation per step, first order at both ends."""
    del generator
    x = noise
    past: _Past | None = None
    for number, pair in enumerate(pairs):
        epsilon = estimate(model, x, pair.t)
        now = _Past(predict_x0(x, epsilon, pair.a, pair.s, settings.clip), _log_snr(pair))
        slope = _backward_slope(pair, now, past)
        x_next = _exponential_step(pair, x, now.x0 if slope is None else now.x0 + slope / 2)
        x = finish_step(number, pair, (x, epsilon, now.x0, x_next), settings.clip, hook)
        past = now
    return x


def unipc(
    model: Diffusion,
    noise: Tensor,
    pairs: Sequence[Pair],
    settings: SamplerSettings,
    generator: torch.Generator | None,
    hook: Hook | None = None,
) -> Tensor:
    """UniPC of order 2: the step of DPM-Solver++ 2M predicts, and once x0_hat at the new point is
    known it corrects the way there, without evaluating again. What a hook has replaced is not
    corrected: the correction would undo it.
    """
    del generator
    x = noise
    before: _Leg | None = None
    for number, pair in enumerate(pairs):
        epsilon = estimate(model, x, pair.t)
        now = _Past(predict_x0(x, epsilon, pair.a, pair.s, settings.clip), _log_snr(pair))
        if before is not None and not before.replaced:
            x = _correct(before, now)
            x = x.clamp(-1, 1) if settings.clip == "xt" else x
        past = None if before is None else before.start
        slope = _backward_slope(pair, now, past)
        x_next = _exponential_step(pair, x, now.x0 if slope is None else now.x0 + slope / 2)
        x_next = x_next.clamp(-1, 1) if settings.clip == "xt" else x_next
        before = _Leg(pair, x, now, past)
        x = finish_step(number, pair, (x, epsilon, now.x0, x_next), "none", hook)
        before = before._replace(replaced=x is not x_next)
    return x


class _Leg(NamedTuple):
    """The step just taken: where it started and the two predictions that it used."""

    pair: Pair
    x: Tensor
    start: _Past
    past: _Past | None
    replaced: bool = False


def _correct(leg: _Leg, now: _Past) -> Tensor:
    """UniC: the end of ``leg`` from the predictions before (D_1), at and after (D_2) its start.

    With h the step in lambda, phi_1 = expm1(-h), and r the place of the earlier prediction in
    units of h, the weights solve [[1, 1], [r, 1]] w = b, b_k = k! phi_{k+1}(-h) / phi_1.
    Of order 1 (the first step) the weight is 1/2.
    """
    h = now.log_snr - leg.start.log_snr
    forward = now.x0 - leg.start.x0
    if leg.past is None:
        return _exponential_step(leg.pair, leg.x, leg.start.x0 + forward / 2)
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / -h - 1
    phi_3 = phi_2 / -h - 0.5
    b1, b2 = phi_2 / phi_1, 2 * phi_3 / phi_1
    r = (leg.past.log_snr - leg.start.log_snr) / h
    backward = (leg.past.x0 - leg.start.x0) / r
    w_backward = (b1 - b2) / (1 - r)
    w_forward = b1 - w_backward
    return _exponential_step(
        leg.pair, leg.x, leg.start.x0 + w_backward * backward + w_forward * forward
    )


def _exponential_step(pair: Pair, x: Tensor, x0: Tensor) -> Tensor:
    """The exact solution for a constant x0_hat: x' = (s'/s) x - a' expm1(-h) x0_hat.

    exp(-h) = (a s') / (a' s), which is 0 at the clean end, where lambda is infinite.
    """
    decay = (pair.a * pair.s_next) / (pair.a_next * pair.s)
    return (pair.s_next / pair.s) * x + (pair.a_next * (1 - decay)) * x0


def _backward_slope(pair: Pair, now: _Past, past: _Past | None) -> Tensor | None:
    """h d x0_hat / d lambda from the last two predictions; None where the step is first order.

    At the clean end h is infinite: only the first-order step is defined there.
    """
    if past is None or pair.s_next == 0:
        return None
    h = math.log(pair.a_next / pair.s_next) - now.log_snr
    slope: Tensor = (h / (now.log_snr - past.log_snr)) * (now.x0 - past.x0)
    return slope


def _log_snr(pair: Pair) -> float:
    return math.log(pair.a / pair.s)
