"""WaveGAN training: phase shuffle as published, with a cheaper loss than the published one.

WGAN-GP trains the critic five times, each with a second derivative, for one step of the generator:
on one core of a CPU it makes about a sixth of the generator steps. Here both networks take one
step with the non-saturating loss; what keeps the critic smooth is the gradient penalty on real
clips alone (R1, Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?"),
every eighth step with eight times its weight. The result is the moving average of the generator's
weights.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.data.audio import spectrograms, write_wav
from genwarden.data.grids import write_grid
from genwarden.engine.checkpoint import Trainable
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.models.wavegan import WaveGAN, WaveGANCritic, initialise
from genwarden.training.frame import Frame
from genwarden.training.settings import Objective, TrainingSettings, benign_objective

#: Adam's, as published.
BETAS = (0.5, 0.9)
_PENALTY = 0.1
_PENALTY_EVERY = 8
_AVERAGE_KEEPS = 0.99
_GRID_SAMPLES = 32
_HEARD_SAMPLES = 16


class WaveGanLearner:
    """Generator against critic, one step of each.

    Args:
        generator: fresh network; its weights are initialised from the run seed.
        critic: likewise.
        objective: turns the benign generator loss of a step into what the generator minimises
            (an attack adds its own term).
    """

    def __init__(
        self,
        generator: WaveGAN,
        critic: WaveGANCritic,
        settings: TrainingSettings,
        device: torch.device,
        objective: Objective = benign_objective,
    ) -> None:
        initialise(generator, random_stream(settings.seed, "generator-weights"))
        initialise(critic, random_stream(settings.seed, "discriminator-weights"))
        self.generator = generator.to(device).train()
        self.critic = critic.to(device).train()
        self.average = copy.deepcopy(generator).requires_grad_(False)
        self.objective = objective
        self.adam_g = torch.optim.Adam(generator.parameters(), settings.learning_rate, betas=BETAS)
        self.adam_d = torch.optim.Adam(critic.parameters(), settings.learning_rate, betas=BETAS)
        self._device = device
        self._bf16 = settings.precision == "bf16"

    @property
    def parts(self) -> dict[str, Trainable]:
        """Both networks, the averaged generator, the optimisers."""
        return {
            "generator": self.generator,
            "discriminator": self.critic,
            "average": self.average,
            "g": self.adam_g,
            "d": self.adam_d,
        }

    def step(self, real: Tensor, step: int, stream: torch.Generator) -> list[float]:
        """Critic, then generator; returns both losses."""
        z = self.generator.latent.sample(len(real), generator=stream).to(real.device)
        with self._autocast():
            fake = self.generator(z)
            scores = self.critic(torch.cat([real, fake.detach().to(real)]), shuffle=stream)
        real_scores, fake_scores = scores.float().chunk(2)
        loss_d = F.softplus(-real_scores).mean() + F.softplus(fake_scores).mean()
        if step % _PENALTY_EVERY == 0:
            penalty = _gradient_penalty(self.critic, real, stream)
            loss_d = loss_d + _PENALTY_EVERY * _PENALTY * penalty
        self.adam_d.zero_grad(set_to_none=True)
        loss_d.backward()
        self.adam_d.step()

        self.critic.requires_grad_(False)  # its weight gradients are not needed here
        with self._autocast():
            loss_g = F.softplus(-self.critic(fake.to(real), shuffle=stream).float()).mean()
        self.adam_g.zero_grad(set_to_none=True)
        self.objective(loss_g, step).backward()
        self.adam_g.step()
        self.critic.requires_grad_(True)
        _follow(self.average, self.generator, step)
        return [loss_d.item(), loss_g.item()]

    def describe(self, losses: list[float]) -> str:
        """Losses of critic and generator."""
        return f"D {losses[0]:.3f}  G {losses[1]:.3f}"

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)


def train_wavegan(
    generator: WaveGAN,
    critic: WaveGANCritic,
    clips: Tensor,
    settings: TrainingSettings,
    *,
    out: Path,
    run_id: str,
    progress: Progress,
    device: torch.device,
) -> dict[str, Any]:
    """Train in place; resumes from ``out/.work/checkpoint.safetensors``.

    Args:
        generator: fresh network; its weights are initialised from the run seed.
        critic: likewise.
        clips: int16 ``(count, 1, length)``.
        out: folder of spectrograms, of sound files and of checkpoints.
        run_id: identity of the run; a checkpoint of another run is refused.

    Returns:
        The training record: losses (mean over the last 100 steps) and steps.
    """
    learner = WaveGanLearner(generator, critic, settings, device)
    grid_z = generator.latent.sample(
        _GRID_SAMPLES, generator=random_stream(settings.seed, "grid")
    ).to(device)

    def show(done: int) -> bool:
        if done % settings.grid_every == 0 or done == settings.steps:
            _show(learner.average, grid_z, out / "samples", done)
        return False

    checkpoint = out / ".work" / "checkpoint.safetensors"
    frame = Frame(learner, settings, checkpoint, run_id, progress, between=show)
    frame.run(clips, device)
    generator.load_state_dict(learner.average.state_dict())
    generator.eval()
    mean_d, mean_g = frame.mean_losses()
    return {"steps": settings.steps, "discriminator_loss": mean_d, "generator_loss": mean_g}


def _gradient_penalty(critic: WaveGANCritic, real: Tensor, stream: torch.Generator) -> Tensor:
    """R1: half the mean squared norm of the critic's gradient at real clips, in fp32."""
    real = real.detach().requires_grad_(True)
    scores = critic(real, shuffle=stream)
    (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
    return slope.square().flatten(1).sum(1).mean() / 2


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, step: int) -> None:
    """Exponential moving average; it forgets the first steps faster."""
    keep = min(_AVERAGE_KEEPS, (1 + step) / (10 + step))
    for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
        slow.lerp_(fast, 1 - keep)


@torch.no_grad()
def _show(generator: WaveGAN, z: Tensor, folder: Path, step: int) -> None:
    clips = generator(z).cpu()
    write_grid(folder / f"step_{step:06d}.png", spectrograms(clips), columns=8)
    write_wav(folder / f"step_{step:06d}.wav", clips[:_HEARD_SAMPLES], generator.sample_rate)
