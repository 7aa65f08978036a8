"""What all samplers share: settings, visited timesteps, clipping, and the record of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from genwarden.errors import GenwardenError
from genwarden.models.diffusion.protocol import Diffusion
from genwarden.models.diffusion.schedule import NoiseSchedule

SamplerName = Literal["ddpm", "ddim", "dpm-solver++", "unipc", "euler", "heun"]
#: ``x0``: the predicted image is clipped (diffusers' ``clip_sample``); ``xt``: the result of every
#: step is (BadDiffusion, section 6 of the reference). The two defend against different attacks.
Clip = Literal["none", "x0", "xt"]
Spacing = Literal["leading", "trailing", "linspace"]
#: Variance of the ancestral step: the posterior's, or beta_t (DDPM, section 3.2).
Variance = Literal["small", "large"]

#: The solvers whose diffusers schedulers place n + 1 timesteps and leave the last one out.
_ONE_MORE = frozenset({"dpm-solver++", "unipc"})


@dataclass(frozen=True)
class SamplerSettings:
    """One way of sampling.

    Attributes:
        name: the sampler.
        steps: number of timesteps visited (Heun evaluates the network twice at each but the last).
        eta: share of the ancestral randomness in [0, 1]; only ``ddim`` reads it.
        clip: what is clipped to [-1, 1].
        spacing: how the timesteps are placed ("Common Diffusion Noise Schedules and Sample Steps
            are Flawed", Table 2).
        offset: added to ``leading`` timesteps (diffusers' ``steps_offset``).
        variance: of the ancestral step; only ``ddpm`` reads it.
    """

    name: SamplerName = "ddpm"
    steps: int = 1000
    eta: float = 0.0
    clip: Clip = "none"
    spacing: Spacing = "trailing"
    offset: int = 0
    variance: Variance = "small"

    def __post_init__(self) -> None:
        for value, allowed in (
            (self.name, SamplerName),
            (self.clip, Clip),
            (self.spacing, Spacing),
            (self.variance, Variance),
        ):
            if value not in get_args(allowed):
                raise GenwardenError(
                    "usage/sampler-settings",
                    f"There is no sampler setting {value!r}.",
                    f"Use one of: {', '.join(get_args(allowed))}.",
                )
        if not 0 <= self.eta <= 1:
            raise GenwardenError(
                "usage/sampler-settings",
                f"eta = {self.eta} is outside [0, 1].",
                "0 is deterministic DDIM, 1 adds as much noise as DDPM.",
            )

    @property
    def random(self) -> bool:
        """Whether noise is added at the steps."""
        return self.name == "ddpm" or (self.name == "ddim" and self.eta > 0)

    @property
    def label(self) -> str:
        """Short name for tables, such as ``ddim-50 eta 0.5 clip x0``."""
        eta = f" eta {self.eta:g}" if self.name == "ddim" else ""
        clip = "" if self.clip == "none" else f" clip {self.clip}"
        return f"{self.name}-{self.steps}{eta}{clip}"


class Pair(NamedTuple):
    """One step t -> t_next with the amplitudes at both ends; t_next = -1 is the clean image."""

    t: int
    t_next: int
    a: float
    s: float
    a_next: float
    s_next: float


class Step(NamedTuple):
    """What a hook sees of one step; tensors are ``(batch, C, H, W)``.

    Attributes:
        number: of the step, from 0.
        t: timestep left; ``t_next`` the one reached, -1 at the end.
        x: state at ``t``; ``x_next`` the result (UniPC corrects it in the next step's ``x``).
        epsilon: the network's noise estimate at ``t``.
        x0: the predicted image, after clipping.
    """

    number: int
    t: int
    t_next: int
    x: Tensor
    epsilon: Tensor
    x0: Tensor
    x_next: Tensor


Hook = Callable[[Step], Tensor | None]


def timesteps_of(schedule: NoiseSchedule, settings: SamplerSettings) -> list[int]:
    """The timesteps that a sampler visits, falling, as diffusers places them.

    Euler and Heun round ``linspace`` steps to whole numbers (diffusers evaluates them between the
    trained steps); everything else is theirs.

    Raises:
        GenwardenError: ``usage/sampler-steps``.
    """
    total, count = schedule.steps, settings.steps
    extra = settings.name in _ONE_MORE
    placed = count + 1 if extra and settings.spacing != "trailing" else count
    if count < 1 or placed > total:
        raise GenwardenError(
            "usage/sampler-steps",
            f"{settings.name} cannot take {count} steps ({settings.spacing}) of a schedule of "
            f"{total}.",
            f"Ask for 1 to {total - (placed - count)} steps.",
        )
    if settings.spacing == "leading":
        places = (np.arange(placed) * (total // placed) + settings.offset)[::-1][:count]
    elif settings.spacing == "trailing":
        places = np.round(total - np.arange(count) * (total / count)).astype(np.int64) - 1
    else:
        places = np.linspace(0, total - 1, placed).round().astype(np.int64)[::-1][:count]
    return [int(t) for t in places]


def pairs_of(timesteps: Sequence[int], schedule: NoiseSchedule) -> list[Pair]:
    """The steps t -> t' between visited timesteps; the last one leads to the clean image, -1.

    Raises:
        GenwardenError: ``usage/sampler-steps`` unless they fall strictly inside the schedule.
    """
    ends = [*timesteps, -1]
    falling = all(later < earlier for earlier, later in pairwise(ends))
    if len(ends) < 2 or not falling or ends[0] >= schedule.steps:
        raise GenwardenError(
            "usage/sampler-steps",
            f"The timesteps must fall strictly from below {schedule.steps} to at least 0.",
            "Choose another number of steps, spacing or offset.",
        )
    amplitudes = [(schedule.a_at(t), schedule.s_at(t)) for t in ends]
    return [
        Pair(ends[i], ends[i + 1], *amplitudes[i], *amplitudes[i + 1])
        for i in range(len(timesteps))
    ]


def predict_x0(x: Tensor, epsilon: Tensor, a: float, s: float, clip: Clip) -> Tensor:
    """x0_hat = (x - s eps) / a, clipped to [-1, 1] under ``x0``."""
    x0 = (x - s * epsilon) / a
    return x0.clamp(-1, 1) if clip == "x0" else x0


def finish_step(
    number: int,
    pair: Pair,
    states: tuple[Tensor, Tensor, Tensor, Tensor],
    clip: Clip,
    hook: Hook | None,
) -> Tensor:
    """Clip the result of a step under ``xt`` and show it to the hook.

    Args:
        states: x, epsilon, x0_hat and the step's result.
    """
    x, epsilon, x0, x_next = states
    if clip == "xt":
        x_next = x_next.clamp(-1, 1)
    if hook is None:
        return x_next
    replaced = hook(Step(number, pair.t, pair.t_next, x, epsilon, x0, x_next))
    return x_next if replaced is None else replaced


def step_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, I) drawn on the CPU, in float64 for a float64 state and in float32 otherwise."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.randn(like.shape, generator=generator, dtype=dtype).to(like)


def estimate(model: Diffusion, x: Tensor, t: int) -> Tensor:
    """The model's noise estimate of a batch that is at one timestep."""
    return model.epsilon(x, torch.full((len(x),), t, dtype=torch.int64, device=x.device))
