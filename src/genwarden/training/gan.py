"""GAN training for the reference DCGANs.

Per step: the discriminator on real and generated images, then the generator with the
non-saturating loss, as the authors' scripts and ART do (the paper writes the saturating form).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.data.grids import write_grid
from genwarden.engine.checkpoint import Trainable
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.models.dcgan import Discriminator, initialise
from genwarden.models.protocol import LatentGenerator
from genwarden.models.stylegan import StyleGAN
from genwarden.training.frame import Frame
from genwarden.training.settings import Objective, TrainingSettings, benign_objective

#: Adam's, of generator and discriminator.
BETAS = (0.5, 0.999)
_GRID_SAMPLES = 64


@dataclass(frozen=True)
class GanRecipe:
    """How a kind of GAN is trained; the defaults are DCGAN's.

    Attributes:
        betas: Adam's.
        dropout: whether the discriminator drops features.
        r1: weight gamma of ``gamma / 2 E ||grad D(x)||^2`` on real images (Mescheder et al., 2018).
        r1_every: steps between two such penalties, each weighted by this number.
        slow: prefix of the generator's parameters that learn slowly; empty for none.
        slow_share: their learning rate, as a share of the others'.
    """

    betas: tuple[float, float] = BETAS
    dropout: bool = True
    r1: float = 0.0
    r1_every: int = 8
    slow: str = ""
    slow_share: float = 1.0


_DCGAN = GanRecipe()
# Under DCGAN's recipe the small StyleGAN soon gives one picture for all latents.
_STYLEGAN = GanRecipe(betas=(0.0, 0.999), dropout=False, r1=1.0, slow="mapper.", slow_share=0.01)


def recipe_for(generator: LatentGenerator) -> GanRecipe:
    """The recipe of a generator's kind; StyleGAN's goes with --learning-rate 1e-3."""
    return _STYLEGAN if isinstance(generator, StyleGAN) else _DCGAN


def non_saturating_generator_loss(fake_logits: Tensor) -> Tensor:
    """L_G: ``-E log D(G(Z))``, BCE with label 1 for fakes, mean over the batch.

    The paper writes the saturating ``E log(1 - D(G(Z)))`` (Eq. 2); ART and the authors' scripts
    train with this form.

    Args:
        fake_logits: the discriminator's logits of generated samples, any shape.
    """
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """L_D: ``-E log D(X) - E log(1 - D(G(Z)))``, each a mean over its batch (the sum of both BCEs).

    Args:
        real_logits: the discriminator's logits of training samples, any shape.
        fake_logits: those of generated samples.
    """
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


class GanLearner:
    """Generator against discriminator, one step of each.

    Args:
        generator: fresh network; its weights are initialised from the run seed.
        discriminator: likewise.
        objective: turns the benign generator loss of a step into what the generator minimises
            (an attack adds its own term).
    """

    def __init__(
        self,
        generator: LatentGenerator,
        discriminator: Discriminator,
        settings: TrainingSettings,
        device: torch.device,
        objective: Objective = benign_objective,
    ) -> None:
        initialise(generator, random_stream(settings.seed, "generator-weights"))
        initialise(discriminator, random_stream(settings.seed, "discriminator-weights"))
        self.generator = generator.to(device).train()
        self.discriminator = discriminator.to(device).train()
        self.objective = objective
        self.recipe = recipe_for(generator)
        rate, betas = settings.learning_rate, self.recipe.betas
        self.adam_g = torch.optim.Adam(_groups(generator, rate, self.recipe), betas=betas)
        self.adam_d = torch.optim.Adam(discriminator.parameters(), rate, betas=betas)
        self._device = device
        self._bf16 = settings.precision == "bf16"

    @property
    def parts(self) -> dict[str, Trainable]:
        """Both networks and their optimisers."""
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "g": self.adam_g,
            "d": self.adam_d,
        }

    def step(self, real: Tensor, step: int, stream: torch.Generator) -> list[float]:
        """Discriminator, then generator; returns both losses."""
        generator, discriminator, recipe = self.generator, self.discriminator, self.recipe
        dropout = stream if recipe.dropout else None
        z = generator.latent.sample(len(real), generator=stream).to(real.device)
        with self._autocast():
            fake = generator(z)
            # One pass over both halves: the discriminator has no batch statistics.
            verdicts = discriminator(torch.cat([real, fake.detach().to(real)]), dropout=dropout)
        real_logits, fake_logits = verdicts.float().chunk(2)
        loss_d = discriminator_loss(real_logits, fake_logits)
        if recipe.r1 and step % recipe.r1_every == 0:
            loss_d = loss_d + recipe.r1_every * recipe.r1 / 2 * _gradient_norm(discriminator, real)
        self.adam_d.zero_grad(set_to_none=True)
        loss_d.backward()
        self.adam_d.step()

        discriminator.requires_grad_(False)  # its weight gradients are not needed here
        with self._autocast():
            on_fake = discriminator(fake.to(real), dropout=dropout)
            loss_g = non_saturating_generator_loss(on_fake.float())
        self.adam_g.zero_grad(set_to_none=True)
        self.objective(loss_g, step).backward()
        self.adam_g.step()
        discriminator.requires_grad_(True)
        return [loss_d.item(), loss_g.item()]

    def describe(self, losses: list[float]) -> str:
        """Losses of discriminator and generator."""
        return f"D {losses[0]:.3f}  G {losses[1]:.3f}"

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)


def train_gan(
    generator: LatentGenerator,
    discriminator: Discriminator,
    images: Tensor,
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
        discriminator: likewise.
        images: uint8 ``(count, channels, height, width)``.
        out: folder of sample grids and checkpoints.
        run_id: identity of the run; a checkpoint of another run is refused.

    Returns:
        The training record: losses (mean over the last 100 steps) and steps.
    """
    learner = GanLearner(generator, discriminator, settings, device)
    grid_z = generator.latent.sample(
        _GRID_SAMPLES, generator=random_stream(settings.seed, "grid")
    ).to(device)

    def show(done: int) -> bool:
        if done % settings.grid_every == 0 or done == settings.steps:
            picture = out / "samples" / f"step_{done:06d}.png"
            write_grid(picture, _preview(generator, grid_z), columns=8)
        return False

    checkpoint = out / ".work" / "checkpoint.safetensors"
    frame = Frame(learner, settings, checkpoint, run_id, progress, between=show)
    frame.run(images, device)
    generator.eval()
    mean_d, mean_g = frame.mean_losses()
    return {"steps": settings.steps, "discriminator_loss": mean_d, "generator_loss": mean_g}


@torch.no_grad()
def _preview(generator: LatentGenerator, z: Tensor) -> Tensor:
    generator.eval()
    samples: Tensor = generator(z)
    generator.train()
    return samples


def _groups(generator: LatentGenerator, rate: float, recipe: GanRecipe) -> list[dict[str, Any]]:
    """The generator's parameters by learning rate; an empty group is left out."""
    slow: list[Tensor] = []
    usual: list[Tensor] = []
    for name, parameter in generator.named_parameters():
        chosen = slow if recipe.slow and name.startswith(recipe.slow) else usual
        chosen.append(parameter)
    groups = [{"params": usual, "lr": rate}, {"params": slow, "lr": rate * recipe.slow_share}]
    return [group for group in groups if group["params"]]


def _gradient_norm(discriminator: Discriminator, real: Tensor) -> Tensor:
    """``E ||grad D(x)||^2``, a sum over each sample, differentiable in the weights."""
    x = real.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()
