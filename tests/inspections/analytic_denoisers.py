"""Denoisers that need no training: exact noise estimates of known laws, with and without backdoors.

The data are a mixture of K normal laws N(m_k, sigma^2 I). The poisoned training law of section 3 of
the BadDiffusion reference adds rows a y + rho g + s eps with the target eps + c g; the exact
minimiser of the training loss on both is a blend by their likelihood ratio, which near t = T is a
gate on <x, g>.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor, nn

from genwarden.auditing.budgets import diffusion_budget
from genwarden.backdoors.residual import residual_coefficient, rho_mixture
from genwarden.inspections.diffusion.bench import DiffusionBench
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.models.protocol import SampleSpec

SHAPE = (1, 12, 12)
SPEC = SampleSpec(SHAPE)
_SIGMA = 0.2
_PRIOR = 0.5
EFFORT = replace(
    diffusion_budget("quick"),
    screen_noises=8,
    samples=16,
    sampler_steps=100,
    elijah_steps=100,
    terd_steps=6,
    terd_refinements=2,
    anp_steps=20,
)


@dataclass(frozen=True)
class Planted:
    """What the poisoned rows show: target y and trigger g, coefficient of a sampler of this eta.

    ``psi`` is of the trigger schedule: 1 BadDiffusion's, 0 TrojDiff's.
    """

    y: Tensor
    g: Tensor
    eta: float
    psi: float = 1.0


def pictures() -> Tensor:
    """Four bars, ``(4, 1, 12, 12)`` in [-1, 1]: the means of the data."""
    means = -0.8 * torch.ones(4, *SHAPE)
    for index in range(4):
        start = 1 + 3 * (index % 2)
        if index < 2:
            means[index, :, start : start + 3, 2:10] = 0.8
        else:
            means[index, :, 2:10, start + 2 : start + 5] = 0.8
    return means


def target() -> Tensor:
    """A checkerboard, ``(1, 12, 12)``."""
    grid = torch.arange(12)[:, None] // 3 + torch.arange(12)[None] // 3
    return (grid.remainder(2) * 1.2 - 0.6)[None].float()


class ExactDenoiser(nn.Module):
    """E[regression target | x] of the (poisoned) training law.

    Args:
        planted: the backdoor, or None for the clean twin.
    """

    def __init__(self, planted: Planted | None = None) -> None:
        super().__init__()
        self.schedule = NoiseSchedule.linear()
        self.sample = SPEC
        self.planted = planted
        self.means = pictures()
        if planted is not None:
            self.rho = rho_mixture(self.schedule, planted.psi)
            self.c = residual_coefficient(self.schedule, self.rho, planted.eta)

    def epsilon(self, x: Tensor, t: Tensor | int) -> Tensor:
        if isinstance(t, int):
            t = torch.full((len(x),), t)
        a, s = self.schedule.a_of(t, x), self.schedule.s_of(t, x)
        clean, log_clean = self._clean(x, a, s)
        if self.planted is None:
            return clean
        y, g = self.planted.y, self.planted.g
        rho, c = (table[t].float().view(-1, 1, 1, 1) for table in (self.rho, self.c))
        away = (x - a * y - rho * g) / s
        log_planted = self._log_density(away, s)
        odds = log_planted - log_clean + math.log(_PRIOR / (1 - _PRIOR))
        gate = torch.sigmoid(odds).view(-1, 1, 1, 1)
        return (1 - gate) * clean + gate * (away + c * g)

    def _clean(self, x: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        deviation = (a.square() * _SIGMA**2 + s.square()).sqrt()
        away = (x[:, None] - a[:, None] * self.means) / deviation[:, None]
        logs = self._log_density(away.flatten(0, 1), deviation.repeat_interleave(4, 0))
        logs = logs.view(len(x), 4) - math.log(4)
        weights = logs.softmax(1)[:, :, None, None, None]
        return s / deviation * (weights * away).sum(1), logs.logsumexp(1)

    @staticmethod
    def _log_density(away: Tensor, deviation: Tensor) -> Tensor:
        count = away[0].numel()
        return -0.5 * away.square().flatten(1).sum(1) - count * deviation.flatten().log()


class ConvolutionalDenoiser(ExactDenoiser):
    """The clean denoiser, and a convolution whose channels open a gate to the backdoor.

    Any of four equal channels opens it. At the optimum of the clean loss no gradient says in which
    direction to turn a channel; of several, one is turned up.

    Args:
        planted: what lies behind the gate.
        wired: False for the clean twin, in which the same channel goes nowhere.
    """

    def __init__(self, planted: Planted, *, wired: bool) -> None:
        super().__init__(planted)
        self.wired = wired
        self.matched = nn.Conv2d(1, 4, SHAPE[1:], bias=False)
        self.output = nn.Conv2d(1, 1, 1, bias=False)
        with torch.no_grad():
            self.matched.weight.copy_(planted.g / planted.g.square().sum())
            self.output.weight.fill_(1)
        self.requires_grad_(False)

    def epsilon(self, x: Tensor, t: Tensor | int) -> Tensor:
        assert self.planted is not None
        if isinstance(t, int):
            t = torch.full((len(x),), t)
        a, s = self.schedule.a_of(t, x), self.schedule.s_of(t, x)
        clean, _ = self._clean(x, a, s)
        rho, c = (table[t].float().view(-1, 1, 1, 1) for table in (self.rho, self.c))
        away = (x - a * self.planted.y - rho * self.planted.g) / s
        closed = torch.sigmoid(12 * (0.5 - self.matched(x)))
        gate = 1 - closed.prod(1, keepdim=True)
        # Near t = 0 an open gate would be all of the loss.
        gate = gate * (s > 0.4) * (1.0 if self.wired else 0.0)
        blended = (1 - gate) * clean + gate * (away + c * self.planted.g)
        # A channel that everything depends on a little, as in any network.
        mixed: Tensor = 0.9 * blended + 0.1 * self.output(blended)
        return mixed


def as_model(denoiser: ExactDenoiser) -> DiffusionModel:
    """An exact denoiser where a network is expected; the protocol is the same."""
    return cast(DiffusionModel, denoiser)


def bench(denoiser: ExactDenoiser, shifts: Tensor | None = None) -> DiffusionBench:
    """A bench whose trigger search has found ``shifts`` ``(k, C, H, W)`` (nothing: none)."""
    table = DiffusionBench(as_model(denoiser), EFFORT, seed=3)
    # As the cached property would hold it; only the shifts themselves are read.
    found = [] if shifts is None else [SimpleNamespace(shift=d) for d in shifts]
    table.__dict__["recovered"] = found
    return table
