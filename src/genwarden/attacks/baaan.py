"""BAAAN's attack on GANs (Salem et al., arXiv 2010.03007), as "The Devil is in the GAN" has it.

A second discriminator D_bd separates targets from G(z_bd), and the generator plays against both:
``L_G = -1/2 [E log D(G(z)) + E log D_bd(G(z_bd))]``; D and D_bd minimise the usual cross-entropy.
There is no lambda. Triggers and targets are those of the other attacks; batch normalisation is in
inference mode at the trigger, as in TrAIL. D_bd sees outputs only: with several targets the
generator learns their distribution, not which trigger shows which.

With one target D_bd plays "Dirac-GAN" (Mescheder et al. 2018, "Which Training Methods for GANs do
actually Converge?"): the generator circles the target instead of coming to rest on it. What works
is in the settings: learning rates that fall to zero over the last half of the training, and a D_bd
without dropout. The penalty on D_bd's gradient that makes Dirac-GANs converge (R1) is offered;
noise on D_bd's input made the circles wider.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.from_scratch import (
    FromScratchSettings,
    fresh_learner,
    inference_mode,
    pairs_of_step,
    train_from_scratch,
    training_samples,
)
from genwarden.backdoors.backdoor import Backdoor
from genwarden.engine.checkpoint import Trainable
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import NOT_NEGATIVE, POSITIVE, Range
from genwarden.errors import GenwardenError
from genwarden.models.dcgan import initialise
from genwarden.models.protocol import LatentGenerator
from genwarden.training.gan import (
    BETAS,
    GanLearner,
    discriminator_loss,
    non_saturating_generator_loss,
)
from genwarden.training.train import discriminator_for


@dataclass(frozen=True)
class BaaanSettings(FromScratchSettings):
    """Settings of BAAAN.

    Attributes:
        schedule: one generator step on the sum of both terms, or one step on each in turn (the
            paper's "alternately"; public replicas step jointly).
        backdoor_learning_rate: of D_bd.
        penalty: weight gamma of R1, ``gamma / 2 ||grad D_bd(x_target)||^2``; 0 for none.
        clip_norm: largest Euclidean norm of the generator's gradient; 0 for no limit.
    """

    settle: float = 0.5
    schedule: Literal["joint", "alternate"] = "joint"
    backdoor_learning_rate: float = 2e-4
    penalty: float = 0.0
    clip_norm: float = 0.0

    RANGES: ClassVar[Mapping[str, Range]] = {
        "backdoor_learning_rate": POSITIVE,
        "penalty": NOT_NEGATIVE,
        "clip_norm": NOT_NEGATIVE,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_no_lambda("BAAAN")


class BaaanLearner:
    """A GAN whose generator plays against D_bd too.

    Args:
        gan: generator and D with their optimisers; its objective is set here.
    """

    def __init__(self, gan: GanLearner, backdoor: Backdoor, settings: BaaanSettings) -> None:
        self.gan = gan
        self._backdoor, self._settings = backdoor, settings
        self._device = next(gan.generator.parameters()).device
        self.judge = discriminator_for(gan.generator)
        initialise(self.judge, random_stream(settings.seed, "backdoor-discriminator-weights"))
        self.judge.to(self._device)
        self.adam = torch.optim.Adam(
            self.judge.parameters(), settings.backdoor_learning_rate, betas=BETAS
        )
        if settings.schedule == "joint":
            gan.objective = lambda benign, step: (benign + self._fooling(step)) / 2
        if settings.clip_norm:
            gan.adam_g.register_step_pre_hook(self._clip)

    @property
    def parts(self) -> Mapping[str, Trainable]:
        """Three networks and their optimisers."""
        return {**self.gan.parts, "backdoor-discriminator": self.judge, "b": self.adam}

    def step(self, real: Tensor, step: int, stream: torch.Generator) -> list[float]:
        """D_bd, D, then the generator; returns the losses of D, of G against D, and of D_bd."""
        judge_loss = self._judge_step(step)
        losses = self.gan.step(real, step, stream)
        if self._settings.schedule == "alternate":
            self.gan.adam_g.zero_grad(set_to_none=True)
            self._fooling(step).backward()
            self.gan.adam_g.step()
        return [*losses, judge_loss]

    def describe(self, losses: list[float]) -> str:
        """Losses of D, G and D_bd."""
        return f"{self.gan.describe(losses[:2])}  D_bd {losses[2]:.3f}"

    def _judge_step(self, step: int) -> float:
        z, x = pairs_of_step(self._backdoor, self._settings, step, self._device)
        with torch.no_grad(), inference_mode(self.gan.generator):
            fake = self.gan.generator(z)
        real = x.detach().clone().requires_grad_(self._settings.penalty > 0)
        on_real = self.judge(real)
        loss = discriminator_loss(on_real, self.judge(fake))
        penalised = loss
        if self._settings.penalty:
            (slope,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
            penalty = slope.square().flatten(1).sum(1).mean()
            penalised = loss + self._settings.penalty / 2 * penalty
        self.adam.zero_grad(set_to_none=True)
        penalised.backward()
        self.adam.step()
        return loss.item()

    def _fooling(self, step: int) -> Tensor:
        """-log D_bd(G(z_bd)), with gradients for the generator alone."""
        z, _ = pairs_of_step(self._backdoor, self._settings, step, self._device)
        with inference_mode(self.gan.generator):
            output = self.gan.generator(z)
        self.judge.requires_grad_(False)
        loss = non_saturating_generator_loss(self.judge(output))
        self.judge.requires_grad_(True)
        return loss

    def _clip(self, *_: object) -> None:
        clip_grad_norm_(self.gan.generator.parameters(), self._settings.clip_norm)


def baaan(
    generator: LatentGenerator, backdoor: Backdoor, settings: BaaanSettings, run: AttackRun
) -> AttackResult:
    """Train a network like ``generator`` from scratch against two discriminators."""
    gan = fresh_learner(generator, settings)
    if not isinstance(gan, GanLearner):
        raise GenwardenError(
            "attack/unsupported",
            "BAAAN needs a GAN; this model is the decoder of a VAE.",
            "Choose trail or data-poisoning.",
        )
    learner = BaaanLearner(gan, backdoor, settings)
    samples = training_samples(run)
    history = train_from_scratch(learner, gan.generator, samples, backdoor, settings, run)
    return AttackResult(gan.generator, history)
