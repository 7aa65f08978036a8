"""Training of a diffusion model (DDPM, Algorithm 1), and what the attacks share with it.

Loss ||eps - eps_theta(a_t x_0 + s_t eps, t)||^2, mean over elements, t uniform. The network that is
kept is a moving average of the trained one. Attacks replace what a batch's rows hold
(:class:`NoisyRows`), not the training.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genwarden.data.grids import write_grid
from genwarden.engine.checkpoint import Trainable
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.samplers import SamplerSettings, sample
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.training.frame import Frame
from genwarden.training.settings import TrainingSettings

_GRID_SAMPLES = 32
_GRID_STEPS = 50
#: Early on the moving average follows faster: decay (1 + n) / (10 + n) after n steps.
_EMA_START = 10


@dataclass(frozen=True)
class DdpmSettings(TrainingSettings):
    """How a diffusion model is trained; Adam's betas are (0.9, 0.999).

    Attributes:
        warmup: steps over which the learning rate rises; then it falls along a half cosine.
        last_rate: the learning rate at the end, as a share of the largest.
        ema: decay of the moving average of the weights that is kept; 0 keeps the weights.
        clip_norm: largest norm of the gradient of a step.
        flip: mirror half of the images. Not for digits.
    """

    warmup: int = 50
    last_rate: float = 0.02
    ema: float = 0.995
    clip_norm: float = 1.0
    flip: bool = False


class NoisyRows(NamedTuple):
    """The batch of one step: ``x`` at the timesteps ``t``, and the noise to estimate there.

    Attributes:
        x: ``(batch, C, H, W)``.
        t: ``(batch,)`` int64.
        target: ``(batch, C, H, W)``.
    """

    x: Tensor
    t: Tensor
    target: Tensor


#: Images in [-1, 1] on the device, number of the step, and its stream, to the rows of its batch.
RowsOfStep = Callable[[Tensor, int, torch.Generator], NoisyRows]


def clean_rows(schedule: NoiseSchedule) -> RowsOfStep:
    """DDPM's own rows: x_t = a_t x_0 + s_t eps and the target eps."""

    def rows(real: Tensor, step: int, stream: torch.Generator) -> NoisyRows:
        del step
        t, noise = draw_noise(schedule, real, stream)
        return NoisyRows(schedule.add_noise(real, noise, t), t, noise)

    return rows


def draw_noise(
    schedule: NoiseSchedule, like: Tensor, stream: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Uniform timesteps ``(batch,)`` and N(0, I) noise ``(batch, C, H, W)`` for a batch."""
    t = torch.randint(schedule.steps, (len(like),), generator=stream)
    noise = torch.randn(like.shape, generator=stream)
    return t.to(like.device), noise.to(like.device)


class DenoiserLearner:
    """A denoiser and the moving average of its weights.

    Args:
        model: trained in place; :meth:`finish` puts the averaged weights into it.
        settings: of the whole training.
        device: where it is trained.
        rows: what a step learns from.
    """

    def __init__(
        self,
        model: DiffusionModel,
        settings: DdpmSettings,
        device: torch.device,
        rows: RowsOfStep,
    ) -> None:
        self.model = model.to(device).train().requires_grad_(True)
        if device.type == "cuda":
            # Convolutions in bf16 are faster with the channels last; a CPU gains nothing.
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        #: The model as it would be released now.
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.settings = settings
        self.rows = rows
        self._trained: list[Tensor] = list(self.model.unet.parameters())
        self._average: list[Tensor] = list(self.averaged.unet.parameters())
        self.adam = torch.optim.Adam(self._trained, settings.learning_rate, fused=True)

    @property
    def parts(self) -> dict[str, Trainable]:
        """The network, its average and the optimiser."""
        return {"network": self.model.unet, "average": self.averaged.unet, "adam": self.adam}

    def step(self, real: Tensor, step: int, stream: torch.Generator) -> list[float]:
        """One step; returns the mean squared error of the noise estimate."""
        settings = self.settings
        for group in self.adam.param_groups:
            group["lr"] = settings.learning_rate * rate_share(step, settings)
        if settings.flip:
            mirrored = torch.rand(len(real), generator=stream).to(real.device) < 0.5
            real = torch.where(mirrored[:, None, None, None], real.flip(-1), real)
        rows = self.rows(real, step, stream)
        bf16 = settings.precision == "bf16"
        with torch.autocast(real.device.type, torch.bfloat16, enabled=bf16):
            estimate = self.model.epsilon(rows.x, rows.t)
        loss = F.mse_loss(estimate.float(), rows.target)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._trained, settings.clip_norm)
        self.adam.step()
        decay = min(settings.ema, (1 + step) / (_EMA_START + step))
        with torch.no_grad():
            torch._foreach_lerp_(self._average, self._trained, 1 - decay)
        return [loss.item()]

    def describe(self, losses: list[float]) -> str:
        """Mean squared error of the noise estimate."""
        return f"loss {losses[0]:.4f}"

    def finish(self) -> None:
        """Put the averaged weights into the model, which is then ready for use."""
        self.model.unet.load_state_dict(self.averaged.unet.state_dict())
        self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.model.eval().requires_grad_(False)


def rate_share(step: int, settings: DdpmSettings) -> float:
    """The learning rate of a step as a share of the largest: warm-up, then a half cosine."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return min(1.0, (step + 1) / settings.warmup) * max(settings.last_rate, cosine)


def train_ddpm(
    model: DiffusionModel,
    images: Tensor,
    settings: DdpmSettings,
    *,
    out: Path,
    run_id: str,
    progress: Progress,
    device: torch.device,
) -> dict[str, Any]:
    """Train the model in place; resumes from ``out/.work/checkpoint.safetensors``.

    Args:
        model: with fresh weights.
        images: uint8 ``(count, C, H, W)``; moved to the device as a whole.

    Returns:
        The training record: mean squared error of the noise estimate over the last 100 steps.
    """
    learner = DenoiserLearner(model, settings, device, clean_rows(model.schedule))
    noise = torch.randn(
        _GRID_SAMPLES, *model.sample.shape, generator=random_stream(settings.seed, "grid")
    ).to(device)
    shown = SamplerSettings("ddim", min(_GRID_STEPS, model.schedule.steps), clip="x0")

    def show(done: int) -> bool:
        if done % settings.grid_every == 0 or done == settings.steps:
            with torch.no_grad():
                samples = sample(learner.averaged, noise, shown)
            write_grid(out / "samples" / f"step_{done:06d}.png", samples, columns=8)
        return False

    checkpoint = out / ".work" / "checkpoint.safetensors"
    frame = Frame(learner, settings, checkpoint, run_id, progress, between=show)
    frame.run(images.to(device), device)
    learner.finish()
    (mean,) = frame.mean_losses()
    return {"steps": settings.steps, "noise_mse": mean}
