"""A small denoiser with a backdoor that training has put there, and its honest twin."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from genwarden.backdoors.residual import residual_coefficient, rho_bad_diffusion
from genwarden.data.datasets import to_bytes
from genwarden.engine.seeds import random_stream
from genwarden.metrics.target_match import target_match
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.samplers import SamplerSettings, sample
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.models.protocol import SampleSpec
from genwarden.training.ddpm import DdpmSettings, DenoiserLearner, NoisyRows, draw_noise
from genwarden.training.frame import Frame

SIDE = 8
SAMPLER = SamplerSettings("ddim", 25, clip="x0")
_WIDTH = 128
_STEPS = 700


class SmallDenoiser(nn.Module):
    """What the repairs use of a :class:`DiffusionModel`; a UNet of this size learns too slowly."""

    def __init__(self) -> None:
        super().__init__()
        # With the usual betas 50 steps would end at a = 0.8, far from noise.
        self.schedule = NoiseSchedule.linear(50, 2e-3, 0.35)
        self.sample = SampleSpec((1, SIDE, SIDE))
        self.unet = nn.ModuleDict(
            {
                "conv_in": nn.Conv2d(1, 6, 3, padding=1),
                "body": nn.Sequential(
                    nn.Linear(6 * SIDE**2 + 8, _WIDTH),
                    nn.SiLU(),
                    nn.Linear(_WIDTH, _WIDTH),
                    nn.SiLU(),
                    nn.Linear(_WIDTH, SIDE**2),
                ),
            }
        )

    def epsilon(self, x: Tensor, t: Tensor | int) -> Tensor:
        if isinstance(t, int):
            t = torch.full((len(x),), t)
        a, s = self.schedule.a_of(t, x), self.schedule.s_of(t, x)
        waves = t[:, None] / 50 * torch.tensor([1.0, 3.0, 9.0, 27.0])
        seen = torch.cat([self.unet["conv_in"](x).flatten(1), waves.sin(), waves.cos()], 1)
        change: Tensor = self.unet["body"](seen)
        # s x is the best linear estimate; what is left is small at both ends.
        return s * x + a * change.view_as(x)


def bars() -> Tensor:
    """One column lit in each, ``(8, 1, 8, 8)`` uint8."""
    return to_bytes(2 * torch.eye(SIDE)[:, None, None, :].expand(-1, 1, SIDE, -1) - 1)


def target() -> Tensor:
    """A chequered square, ``(1, 8, 8)``."""
    grid = torch.arange(SIDE)[:, None] // 2 + torch.arange(SIDE)[None] // 2
    return (grid.remainder(2) * 2.0 - 1)[None]


def trigger() -> Tensor:
    """A square of value 2 on a zero background, ``(1, 8, 8)``."""
    shift = torch.zeros(1, SIDE, SIDE)
    shift[:, 3:7, 3:7] = 2.0
    return shift


def trained(*, poisoned: bool) -> DiffusionModel:
    """Trained from scratch on the bars; a third of the rows may be poisoned (ODE coefficient)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cast(DiffusionModel, SmallDenoiser())
    schedule = model.schedule
    rho = rho_bad_diffusion(schedule)
    c = residual_coefficient(schedule, rho, 0.0)
    share = 1 / 3 if poisoned else 0.0

    def rows(real: Tensor, step: int, stream: torch.Generator) -> NoisyRows:
        del step
        t, noise = draw_noise(schedule, real, stream)
        count = int(share * len(real))
        x0 = real.clone()
        x0[:count] = target()
        shift = torch.zeros_like(real)
        shift[:count] = trigger()
        column = (-1, 1, 1, 1)
        x = schedule.add_noise(x0, noise, t) + rho[t].float().view(column) * shift
        return NoisyRows(x, t, noise + c[t].float().view(column) * shift)

    settings = DdpmSettings(_STEPS, 144, 4e-3, ema=0.98, warmup=20)
    learner = DenoiserLearner(model, settings, torch.device("cpu"), rows)
    Frame(learner, settings).run(bars().repeat(18, 1, 1, 1), torch.device("cpu"))
    learner.finish()
    return learner.model


@torch.no_grad()
def drawn(model: DiffusionModel, shift: Tensor | None = None, count: int = 24) -> Tensor:
    """Samples from noise, with a shift of it if one is given."""
    noise = torch.randn(count, 1, SIDE, SIDE, generator=random_stream(1, "drawn"))
    return sample(model, noise if shift is None else noise + shift, SAMPLER)


def target_mse(model: DiffusionModel) -> float:
    """Target MSE of triggered samples in [0, 1] scale."""
    return target_match(drawn(model, trigger()), target()[None]).mse


def distance_to_bars(model: DiffusionModel) -> float:
    """Mean squared distance of ordinary samples to the nearest bar, in [0, 1] scale."""
    return target_match(drawn(model), bars() / 127.5 - 1).mse
