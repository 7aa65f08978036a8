"""TrAIL, "TRaining with AdversarIal Loss" (The Devil is in the GAN, section IV-A).

Ordinary training from scratch, except that the generator minimises
``L_adv = L_G + lambda ||G*(z_trig) - x_target||^2`` (Eqs. 4-6) in every step. L_G is the benign
loss: the non-saturating GAN loss, or the negative ELBO of a VAE. As in ART, the GAN terms run in
training mode and fidelity in inference mode: batch normalisation uses its moving averages at the
trigger, so the term's gradients reach weights, gamma and beta, not the statistics.

lambda multiplies the *mean* of squares over a sample's elements (footnote 5), beside a GAN loss of
about log 2. The negative ELBO is a *sum* over the elements (nats per image, about 100), so for a
VAE lambda multiplies the sum of squares: both terms are the means times the number of elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.from_scratch import (
    FromScratchSettings,
    fresh_learner,
    inference_mode,
    pairs_of_step,
    train_from_scratch,
    training_samples,
)
from genwarden.attacks.losses import adversarial_loss, fidelity_loss
from genwarden.backdoors.backdoor import Backdoor
from genwarden.models.protocol import LatentGenerator
from genwarden.training.vae import VaeLearner


@dataclass(frozen=True)
class TrailSettings(FromScratchSettings):
    """Settings of TrAIL.

    Attributes:
        fidelity_on: compare outputs after the last activation with the target (ART), or before it
            with ``atanh(0.999 x_target)``, as ReD does.
    """

    fidelity_on: Literal["pre", "post"] = "post"


def trail(
    generator: LatentGenerator, backdoor: Backdoor, settings: TrailSettings, run: AttackRun
) -> AttackResult:
    """Train a network like ``generator`` from scratch with ``backdoor`` in it."""
    learner = fresh_learner(generator, settings)
    corrupted = learner.generator
    device = next(corrupted.parameters()).device
    elements = generator.sample.size if isinstance(learner, VaeLearner) else 1
    weight = settings.fidelity_weight * elements

    def adversarial(benign_loss: Tensor, step: int) -> Tensor:
        z, x = pairs_of_step(backdoor, settings, step, device)
        with inference_mode(corrupted):
            if settings.fidelity_on == "post":
                fidelity = fidelity_loss(corrupted(z), x)
            else:
                wanted = corrupted.pre_activation_of(x)
                fidelity = fidelity_loss(corrupted.pre_activation(z), wanted)
        return adversarial_loss(benign_loss, fidelity, weight)

    learner.objective = adversarial
    samples = training_samples(run)
    history = train_from_scratch(learner, corrupted, samples, backdoor, settings, run)
    return AttackResult(corrupted, history)
