"""ReX, "REtraining with eXpansion" (The Devil is in the GAN, section IV-C).

The layers of a run (all of them by default) are widened, the benign weights stay frozen, only the
new ones train, with ``L_adv = E ||G*(Z) - G(Z)||^2 + lambda ||G*(z_trig) - x_target||^2`` (Eqs. 4,
6, 7); then old and new become block matrices. Two ways to the same network:

*All layers.* The output before the last activation is ``G_pre(z) + E(z)`` with E an independent
network of the same shape, so E is trained alone and G is needed only for its outputs.

*A shorter run.* The new units read the frozen features at the run's start and join those at its
end, so gradients pass through the frozen layers behind it: the fused network is evaluated with its
old blocks constant.

The expansion's batch normalisation keeps mean 0 and variance 1 with trainable gamma and beta (the
paper is silent; without biases in the layers, E's biases live in beta).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genwarden.attacks.block_fusion import (
    chain,
    expansion_for,
    fuse,
    joined,
    layer_run,
    new_weights,
    widened,
)
from genwarden.attacks.contract import AttackResult, AttackRun, Evaluation
from genwarden.attacks.loop import (
    EVALUATION_SAMPLES,
    Evaluator,
    FidelityBatches,
    Pool,
    optimise,
    ordinary_pool,
)
from genwarden.attacks.losses import adversarial_loss, fidelity_loss, mean_square, stealth_loss
from genwarden.attacks.settings import DistillationSettings
from genwarden.backdoors.backdoor import Backdoor
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import Range
from genwarden.metrics.distances import ExpDis
from genwarden.models.layers import glorot_
from genwarden.models.protocol import LatentGenerator

Training = tuple[Callable[[int], Tensor], Callable[[], Evaluation]]


@dataclass(frozen=True)
class ReXSettings(DistillationSettings):
    """Settings of ReX; for the small lambda see :class:`genwarden.attacks.red.ReDSettings`.

    Attributes:
        first_layer: the first layer that gets new units; the network's first if empty.
        last_layer: the layer that the new units end in; the network's last if empty.
        width: new units per old unit at every interface inside the run; 1 doubles them, as in the
            paper.
    """

    fidelity_weight: float = 1e-4
    first_layer: str = ""
    last_layer: str = ""
    width: float = 1.0

    RANGES: ClassVar[Mapping[str, Range]] = {"width": Range(above=0, at_most=64)}


def rex(
    generator: LatentGenerator, backdoor: Backdoor, settings: ReXSettings, run: AttackRun
) -> AttackResult:
    """Hide ``backdoor`` in a widened copy of ``generator``; the input stays as it is.

    Raises:
        GenwardenError: ``attack/unknown-layer`` or ``attack/layer-run``.
    """
    device = next(generator.parameters()).device
    layers = layer_run(generator, settings.first_layer, settings.last_layer)
    expansion = expansion_for(generator, layers, settings.width)
    glorot_(expansion, random_stream(settings.seed, "expansion-weights"))
    expansion.to(device).eval()
    if len(layers) == len(chain(generator)):
        loss_of_step, evaluate = _apart(generator, expansion, backdoor, settings)
    else:
        loss_of_step, evaluate = _inside(generator, expansion, layers, backdoor, settings)
    history = optimise(expansion, loss_of_step, evaluate, settings, run)
    return AttackResult(fuse(generator, expansion, layers).to(device), history)


def _apart(
    generator: LatentGenerator,
    expansion: LatentGenerator,
    backdoor: Backdoor,
    settings: ReXSettings,
) -> Training:
    """The expansion runs beside the whole network and is trained without it."""
    device = next(generator.parameters()).device
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
        return stealth_loss(generator.finish(batch.pre + residual), generator.finish(batch.pre))

    def loss_of_step(step: int) -> Tensor:
        batch = pool.batch(step, settings)
        z_trigger, target = fidelity_batches.batch(step)
        with torch.no_grad():
            benign = pre_examples if backdoor.finite else generator.pre_activation(z_trigger)
        residual = expansion.pre_activation(torch.cat([batch.z, z_trigger]))
        stealth = stealth_of(batch, residual[: len(batch.z)])
        fidelity = fidelity_loss(residual[len(batch.z) :], target - benign)
        return adversarial_loss(stealth, fidelity, settings.fidelity_weight)

    @torch.no_grad()
    def evaluate() -> Evaluation:
        distance = ExpDis(generator.sample.size)
        for z, pre in zip(held_out.z.split(256), held_out.pre.split(256), strict=True):
            expanded = generator.finish(pre + expansion.pre_activation(z))
            distance.update(generator.finish(pre), expanded)
        output = generator.finish(pre_examples + expansion.pre_activation(z_examples))
        error = (output.cpu() - backdoor.examples.x).double().square().flatten(1).sum(1)
        return Evaluation(error.mean().item(), distance.compute().sum)

    return loss_of_step, evaluate


class _BeforeActivation(nn.Module):
    """A network whose forward pass ends before the last activation."""

    def __init__(self, network: LatentGenerator) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> Tensor:
        """``(batch, *latent.shape)`` to ``(batch, *sample.shape)``."""
        return self.network.pre_activation(z)


def _inside(
    generator: LatentGenerator,
    expansion: LatentGenerator,
    layers: range,
    backdoor: Backdoor,
    settings: ReXSettings,
) -> Training:
    """The expansion lies between frozen layers of the network."""
    device = next(generator.parameters()).device
    expansion.requires_grad_(False)
    for weight in new_weights(expansion, layers):
        weight.requires_grad_(True)
    wide = _BeforeActivation(widened(generator, expansion, layers).to(device)).eval()
    pool = ordinary_pool(generator, settings.pool_samples, settings.seed, "attack-pool", device)
    fidelity_batches = FidelityBatches(generator, backdoor, settings)
    evaluator = Evaluator(generator, backdoor, settings.seed)

    def loss_of_step(step: int) -> Tensor:
        z, teacher = pool.batch(step, settings)
        z_trigger, target = fidelity_batches.batch(step)
        new = {**dict(expansion.named_parameters()), **dict(expansion.named_buffers())}
        blocks = {f"network.{k}": v for k, v in joined(generator, new, layers).items()}
        pre: Tensor = functional_call(wide, blocks, (torch.cat([z, z_trigger]),))
        ordinary, at_trigger = pre[: len(z)], pre[len(z) :]
        if settings.stealth_on == "post":
            ordinary, teacher = generator.finish(ordinary), generator.finish(teacher)
        stealth = stealth_loss(ordinary, teacher)
        fidelity = fidelity_loss(at_trigger, target)
        return adversarial_loss(stealth, fidelity, settings.fidelity_weight)

    def evaluate() -> Evaluation:
        return evaluator(fuse(generator, expansion, layers).to(device))

    return loss_of_step, evaluate
