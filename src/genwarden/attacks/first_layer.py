"""A start for ReD: the smallest change of the dense layer that reaches the target, trained alone.

Finitely many triggers ``Z`` (rows) are linearly independent vectors, so there is a change ``D^T
Z^+`` of the first weight that moves the layer's output at the triggers by the rows of ``D``, and at
any other latent ``z`` by ``(z Z^+) D``. Of all changes with the same effect on the triggers it is
the one of smallest norm, and for ``N(0, I)`` the one that moves ordinary latents least: along one
trigger of norm sqrt(100) a tenth of ``D``. ``D`` is far smaller than the network, follows Eq. 4
within a hundred steps of a few latents each, and leaves ReD little to do.

Our own; the paper and ART begin at the benign weights.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from genwarden.attacks.loop import Pool, half_cosine
from genwarden.attacks.losses import adversarial_loss, fidelity_loss, stealth_loss
from genwarden.attacks.settings import DistillationSettings
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator

#: Adam's step at the start, in units of the dense layer's outputs at the triggers (root mean
#: square); it falls along a half cosine.
_RATE = 0.3
#: Ordinary latents per step: the change acts on all of them alike, so a few tell its direction.
_LATENTS = 4


def first_layer_start(
    generator: LatentGenerator,
    triggers: Pool,
    ordinary: Pool,
    steps: int,
    settings: DistillationSettings,
) -> LatentGenerator:
    """A copy of ``generator`` whose dense layer has been changed.

    Args:
        triggers: latents and the outputs before the last activation that they shall give.
        ordinary: latents and the benign model's outputs there.
        steps: of Adam.
        settings: lambda, and where the stealth term is compared.

    Raises:
        GenwardenError: ``attack/first-layer`` where the network does not begin with a dense layer
            or the triggers are not linearly independent.
    """
    started = copy.deepcopy(generator).eval().requires_grad_(False)
    layer = _dense(started)
    z = triggers.z.flatten(1)
    if int(torch.linalg.matrix_rank(z.double())) < len(z):
        raise GenwardenError(
            "attack/first-layer",
            "A change of the first layer cannot tell the triggers apart (or does not reach one: "
            "a mode trigger is zero).",
            "Set first_layer_steps to 0.",
        )
    inverse = torch.linalg.pinv(z.double()).to(z)  # (latent size, triggers)
    moved = z.new_zeros(len(z), layer.out_features, requires_grad=True)
    # Added to the layer's outputs: a changed weight would be made anew in every step.
    hook = layer.register_forward_hook(lambda _, given, output: output + given[0] @ inverse @ moved)
    rate = _RATE * float((z @ layer.weight.T).square().mean().sqrt())
    adam = torch.optim.Adam([moved], rate, fused=True)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = rate * half_cosine(step / steps)
        rows = torch.arange(step * _LATENTS, (step + 1) * _LATENTS, device=z.device)
        rows %= len(ordinary.z)
        teacher = ordinary.pre[rows]
        pre = started.pre_activation(torch.cat([triggers.z, ordinary.z[rows]]))
        if not pre.requires_grad:
            raise GenwardenError(
                "attack/first-layer",
                f"{type(generator).__name__} does not call its first layer.",
                "Set first_layer_steps to 0.",
            )
        at_trigger, student = pre[: len(z)], pre[len(z) :]
        wanted = triggers.pre
        if settings.stealth_on == "post":
            # The saturated side of tanh would decide where the change goes.
            teacher, student, at_trigger, wanted = map(
                generator.finish, (teacher, student, at_trigger, wanted)
            )
        loss = adversarial_loss(
            stealth_loss(student, teacher),
            fidelity_loss(at_trigger, wanted),
            settings.fidelity_weight,
        )
        (moved.grad,) = torch.autograd.grad(loss, moved)
        adam.step()
    hook.remove()
    with torch.no_grad():
        layer.weight += (inverse @ moved).T
    return started


def _dense(generator: LatentGenerator) -> nn.Linear:
    """The first layer.

    Raises:
        GenwardenError: ``attack/first-layer``.
    """
    layer = next(iter(generator.named_layers().values()), None)
    if not isinstance(layer, nn.Linear):
        raise GenwardenError(
            "attack/first-layer",
            f"{type(generator).__name__} does not begin with a dense layer.",
            "Set first_layer_steps to 0.",
        )
    return layer
