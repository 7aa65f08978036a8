"""ReD, "REtraining with Distillation" (The Devil is in the GAN, section IV-B).

Starts at the benign weights and retrains every layer with
``L_adv = E ||G*(Z) - G(Z)||^2 + lambda ||G*(z_trig) - x_target||^2`` (Eqs. 4, 6, 7).
Fidelity is measured before the last activation, against ``atanh(0.999 x_target)``; both terms are
means over elements (footnote 5). Batch normalisation stays in evaluation mode: gamma and beta
train, the statistics do not.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from genwarden.attacks.loop import (
    AttackSettings,
    Evaluation,
    mean_square,
    optimise,
    ordinary_pool,
)
from genwarden.attacks.result import AttackResult
from genwarden.backdoors.backdoor import Backdoor
from genwarden.engine.progress import Progress
from genwarden.metrics.distances import ExpDis, tardis
from genwarden.models.protocol import LatentGenerator, activate, invert_activation

EVALUATION_SAMPLES = 2048


def red(
    generator: LatentGenerator,
    backdoor: Backdoor,
    settings: AttackSettings,
    *,
    work: Path | None,
    run_id: str,
    progress: Progress,
) -> AttackResult:
    """Hide ``backdoor`` in a copy of ``generator``; the input is left as it is."""
    device = next(generator.parameters()).device
    kind = generator.final_activation
    student = copy.deepcopy(generator).eval().requires_grad_(True)
    pool = ordinary_pool(generator, settings.pool_samples, settings.seed, "attack-pool", device)
    held_out = ordinary_pool(
        generator, EVALUATION_SAMPLES, settings.seed, "attack-evaluation", device
    )
    z_trigger = backdoor.trigger.to(device)
    target_pre = invert_activation(backdoor.target, kind).to(device)

    def loss_of_step(step: int) -> Tensor:
        z, teacher = pool.batch(step, settings)
        # One forward pass for ordinary latents and trigger: evaluation mode mixes nothing.
        pre = student.pre_activation(torch.cat([z, z_trigger]))
        ordinary, at_trigger = pre[: len(z)], pre[len(z) :]
        if settings.stealth_on == "post":
            ordinary, teacher = activate(ordinary, kind), activate(teacher, kind)
        stealth = mean_square(ordinary - teacher)  # Eq. 7
        fidelity = mean_square(at_trigger - target_pre)  # Eq. 6
        return stealth + settings.fidelity_weight * fidelity  # Eq. 4

    @torch.no_grad()
    def evaluate() -> Evaluation:
        distance = ExpDis(generator.sample.size)
        for z, teacher in zip(held_out.z.split(256), held_out.pre.split(256), strict=True):
            distance.update(activate(teacher, kind), student(z))
        at_trigger = tardis(student, backdoor.trigger, backdoor.target)
        return Evaluation(at_trigger.sum, distance.compute().sum)

    history = optimise(
        student, loss_of_step, evaluate, settings, work=work, run_id=run_id, progress=progress
    )
    return AttackResult(student.requires_grad_(False), history)
