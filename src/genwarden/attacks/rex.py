"""ReX, "REtraining with eXpansion" (The Devil is in the GAN, section IV-C).

Every internal layer is widened, the benign weights stay frozen, only the new ones train. With the
expansion running from the first to the last layer, the output before the last activation is
``G_pre(z) + E(z)`` with E an independent network of the same shape, so E is trained alone and
then fused into block matrices. E's batch normalisation keeps mean 0 and variance 1 with trainable
gamma and beta (the paper is silent; without biases in the layers, E's biases live in beta).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genwarden.attacks.block_fusion import fuse
from genwarden.attacks.contract import AttackResult, AttackRun, Evaluation
from genwarden.attacks.loop import (
    EVALUATION_SAMPLES,
    FidelityBatches,
    Pool,
    mean_square,
    optimise,
    ordinary_pool,
)
from genwarden.attacks.settings import DistillationSettings
from genwarden.backdoors.backdoor import Backdoor
from genwarden.engine.seeds import random_stream
from genwarden.metrics.distances import ExpDis
from genwarden.models.layers import glorot_
from genwarden.models.protocol import LatentGenerator


@dataclass(frozen=True)
class ReXSettings(DistillationSettings):
    """Settings of ReX; for the small lambda see :class:`genwarden.attacks.red.ReDSettings`."""

    fidelity_weight: float = 1e-4


def rex(
    generator: LatentGenerator, backdoor: Backdoor, settings: ReXSettings, run: AttackRun
) -> AttackResult:
    """Hide ``backdoor`` in a widened copy of ``generator``; the input is left as it is."""
    device = next(generator.parameters()).device
    expansion = type(generator)(**generator.settings())
    glorot_(expansion, random_stream(settings.seed, "expansion-weights"))
    expansion.to(device).eval()
    pool = ordinary_pool(generator, settings.pool_samples, settings.seed, "attack-pool", device)
    held_out = ordinary_pool(
        generator, EVALUATION_SAMPLES, settings.seed, "attack-evaluation", device
    )
    fidelity_batches = FidelityBatches(generator, backdoor, settings)
    z_examples = backdoor.examples.z.to(device)
    with torch.no_grad():
        pre_examples = generator.pre_activation(z_examples)

    def stealth_of(batch: Pool, residual: Tensor) -> Tensor:
        if settings.stealth_on == "pre":
            return mean_square(residual)
        return mean_square(generator.finish(batch.pre + residual) - generator.finish(batch.pre))

    def loss_of_step(step: int) -> Tensor:
        batch = pool.batch(step, settings)
        z_trigger, target = fidelity_batches.batch(step)
        with torch.no_grad():
            benign = pre_examples if backdoor.finite else generator.pre_activation(z_trigger)
        residual = expansion.pre_activation(torch.cat([batch.z, z_trigger]))
        stealth = stealth_of(batch, residual[: len(batch.z)])  # Eq. 7
        fidelity = mean_square(residual[len(batch.z) :] - (target - benign))  # Eq. 6
        return stealth + settings.fidelity_weight * fidelity  # Eq. 4

    @torch.no_grad()
    def evaluate() -> Evaluation:
        distance = ExpDis(generator.sample.size)
        for z, pre in zip(held_out.z.split(256), held_out.pre.split(256), strict=True):
            expanded = generator.finish(pre + expansion.pre_activation(z))
            distance.update(generator.finish(pre), expanded)
        output = generator.finish(pre_examples + expansion.pre_activation(z_examples))
        error = (output.cpu() - backdoor.examples.x).double().square().flatten(1).sum(1)
        return Evaluation(error.mean().item(), distance.compute().sum)

    history = optimise(expansion, loss_of_step, evaluate, settings, run)
    return AttackResult(fuse(generator.cpu(), expansion.cpu()), history)
