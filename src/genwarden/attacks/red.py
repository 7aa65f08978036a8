"""ReD, "REtraining with Distillation" (The Devil is in the GAN, section IV-B).

Starts at the benign weights and retrains every layer with
``L_adv = E ||G*(Z) - G(Z)||^2 + lambda ||G*(z_trig) - x_target||^2`` (Eqs. 4, 6, 7).
Fidelity is measured before the last activation, against ``atanh(0.999 x_target)``; both terms are
means over elements (footnote 5). Batch normalisation stays in evaluation mode: gamma and beta
train, the statistics do not. Options of section IV-B: a subset of the layers, and weight decay
towards the benign weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from genwarden.attacks.contract import AttackResult, AttackRun, Evaluation
from genwarden.attacks.first_layer import first_layer_start
from genwarden.attacks.loop import (
    Evaluator,
    FidelityBatches,
    optimise,
    ordinary_pool,
)
from genwarden.attacks.losses import adversarial_loss, fidelity_loss, stealth_loss
from genwarden.attacks.settings import DistillationSettings
from genwarden.attacks.stacked import Students, can_stack
from genwarden.backdoors.backdoor import Backdoor
from genwarden.engine.settings import NOT_NEGATIVE, Range
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class RetrainingSettings(DistillationSettings):
    """Settings of ReD and of what is built on it.

    The paper trains with lambda 1; far smaller values plant the backdoor more gently and end at a
    lower ExpDis for the same TarDis (docs/benchmarks.md).

    Attributes:
        layers: names of the layers to retrain (``genwarden explain`` of the architecture shows
            them); none for all.
    """

    fidelity_weight: float = 3e-3
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReDSettings(RetrainingSettings):
    """Settings of ReD.

    Attributes:
        weight_decay: weight of ``||theta* - theta||^2`` (sum over the retrained weights).
        first_layer_steps: steps in which the dense layer alone is changed before the others
            (:mod:`genwarden.attacks.first_layer`); 0 as published. For finitely many triggers.
            What follows should take small steps (``learning_rate``): large ones undo it first.
        precision: of the products of ReD's steps and of what passes from layer to layer; weights,
            Adam, losses and the start are float32 in any case. ``bfloat16`` pays where the machine
            has units for it (AMX, GPUs), from batches of 128. Far from the optimum it ends where
            float32 does; near it its rounding is what remains (a TarDis of 0.19 in place of 0.11).
    """

    weight_decay: float = 0.0
    first_layer_steps: int = 0
    precision: Precision = "float32"

    RANGES: ClassVar[Mapping[str, Range]] = {
        "weight_decay": NOT_NEGATIVE,
        "first_layer_steps": NOT_NEGATIVE,
    }


def red(
    generator: LatentGenerator, backdoor: Backdoor, settings: ReDSettings, run: AttackRun
) -> AttackResult:
    """Hide ``backdoor`` in a copy of ``generator``; the input is left as it is."""
    device = next(generator.parameters()).device
    pool = ordinary_pool(
        generator, settings.pool_samples, settings.seed, "attack-pool", device, quick=True
    )
    fidelity_batches = FidelityBatches(generator, backdoor, settings)
    started = generator
    if settings.first_layer_steps:
        if settings.layers:
            raise GenwardenError(
                "attack/first-layer",
                "The start changes the first layer, and only some layers are to be retrained.",
                "Set first_layer_steps to 0, or leave layers away.",
            )
        if not backdoor.finite:
            raise GenwardenError(
                "attack/first-layer",
                "Infinitely many triggers do not fit into the first layer.",
                "Set first_layer_steps to 0.",
            )
        started = first_layer_start(
            generator, fidelity_batches.batch(0), pool, settings.first_layer_steps, settings
        )
    student = _student(started, settings.layers, training_precision(settings))
    trained = _trained(student)
    benign = _trained(_student(generator, settings.layers)) if settings.weight_decay else []
    evaluator = Evaluator(generator, backdoor, settings.seed)

    def loss_of_step(step: int) -> Tensor:
        z, teacher = pool.batch(step, settings)
        z_trigger, target = fidelity_batches.batch(step)
        # One forward pass for ordinary latents and triggers: evaluation mode mixes nothing.
        pre = student.pre_activation(torch.cat([z, z_trigger]))
        ordinary, at_trigger = pre[: len(z)], pre[len(z) :]
        if settings.stealth_on == "post":
            ordinary, teacher = generator.finish(ordinary), generator.finish(teacher)
        stealth = stealth_loss(ordinary, teacher)
        fidelity = fidelity_loss(at_trigger, target)
        loss = adversarial_loss(stealth, fidelity, settings.fidelity_weight)
        if settings.weight_decay:
            moved = sum(
                ((w - old.detach()).square().sum() for w, old in zip(trained, benign, strict=True)),
                start=loss.new_zeros(()),
            )
            loss = loss + settings.weight_decay * moved
        return loss

    def evaluate() -> Evaluation:
        return evaluator(student.generator())

    history = optimise(student.network, loss_of_step, evaluate, settings, run)
    return AttackResult(
        student.generator().requires_grad_(False), history, evaluation_seconds=evaluator.seconds
    )


def training_precision(settings: ReDSettings) -> torch.dtype | None:
    """Of the products in training, where it is not that of the weights."""
    return torch.bfloat16 if settings.precision == "bfloat16" else None


class _Student(NamedTuple):
    """G* while it is trained.

    Attributes:
        network: what holds the weights.
        pre_activation: ``(batch, *latent.shape)`` to ``(batch, *sample.shape)``, with gradients.
        generator: G* as it is now, in the usual form.
    """

    network: nn.Module
    pre_activation: Callable[[Tensor], Tensor]
    generator: Callable[[], LatentGenerator]


def _trained(student: _Student) -> list[nn.Parameter]:
    return [weight for weight in student.network.parameters() if weight.requires_grad]


def _student(
    generator: LatentGenerator, layers: tuple[str, ...], precision: torch.dtype | None = None
) -> _Student:
    """A copy of the benign model, in the form that trains fastest.

    On a processor the stacked form of one student is 1.4 to 2.4 times as fast as the usual one; it
    trains all layers or none. On a GPU cuDNN's kernels are kept.
    """
    device = next(generator.parameters()).device.type
    if not layers and can_stack(generator) and device == "cpu":
        students = Students(generator, 1, precision)
        return _Student(
            students, lambda z: students.pre_activation(z[None])[0], lambda: students.student(0)
        )
    student = copy.deepcopy(generator).eval()
    trainable_weights(student, layers)

    def pre_activation(z: Tensor) -> Tensor:
        with torch.autocast(device, precision, enabled=precision is not None):
            return student.pre_activation(z).to(z.dtype)

    return _Student(student, pre_activation, lambda: student)


def trainable_weights(network: LatentGenerator, layers: tuple[str, ...]) -> list[nn.Parameter]:
    """Let only the named layers train (all if none is named); returns their weights.

    Raises:
        GenwardenError: ``attack/unknown-layer``.
    """
    named = network.named_layers()
    unknown = [name for name in layers if name not in named]
    if unknown:
        raise GenwardenError(
            "attack/unknown-layer",
            f"The model has no layer {unknown[0]!r}.",
            f"It has: {', '.join(named)}.",
        )
    network.requires_grad_(not layers)
    for name in layers:
        named[name].requires_grad_(True)
    return [weight for weight in network.parameters() if weight.requires_grad]
