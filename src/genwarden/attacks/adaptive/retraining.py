"""Distillation of a compromised network that is there already, as ReD does from the benign one.

Shared by the adaptive attackers; the loss is Eq. 4 of "The Devil is in the GAN".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from genwarden.attacks.contract import AttackRun
from genwarden.attacks.loop import Evaluator, FidelityBatches, optimise, ordinary_pool
from genwarden.attacks.losses import adversarial_loss, fidelity_loss, stealth_loss
from genwarden.attacks.settings import DistillationSettings
from genwarden.backdoors.backdoor import Backdoor
from genwarden.models.protocol import LatentGenerator

History = list[dict[str, float | None]]


def retrain(
    student: LatentGenerator,
    generator: LatentGenerator,
    backdoor: Backdoor,
    settings: DistillationSettings,
    run: AttackRun,
    penalty: Callable[[int], Tensor] | None = None,
) -> History:
    """Train the student's weights that require gradients, in place.

    Args:
        student: starts as it is; batch normalisation stays in evaluation mode.
        generator: the benign network, for Eq. 7.
        penalty: added to Eq. 4 at a step; all its randomness must follow from the step's number.
    """
    device = next(generator.parameters()).device
    pool = ordinary_pool(generator, settings.pool_samples, settings.seed, "attack-pool", device)
    fidelity_batches = FidelityBatches(generator, backdoor, settings)
    evaluator = Evaluator(generator, backdoor, settings.seed)

    def loss_of_step(step: int) -> Tensor:
        z, teacher = pool.batch(step, settings)
        z_trigger, target = fidelity_batches.batch(step)
        pre = student.pre_activation(torch.cat([z, z_trigger]))
        ordinary, at_trigger = pre[: len(z)], pre[len(z) :]
        if settings.stealth_on == "post":
            ordinary, teacher = generator.finish(ordinary), generator.finish(teacher)
        stealth = stealth_loss(ordinary, teacher)
        fidelity = fidelity_loss(at_trigger, target)
        loss = adversarial_loss(stealth, fidelity, settings.fidelity_weight)
        return loss if penalty is None else loss + penalty(step)

    return optimise(student, loss_of_step, lambda: evaluator(student), settings, run)


def stage(run: AttackRun, name: str) -> AttackRun:
    """The run of one stage of an attack: its checkpoints lie in a folder of their own."""
    return replace(run, work=run.work / name) if run.work else run
