"""The neighbourhood of a latent: how far its output reaches, and how steeply it changes.

Radii are measured on the way to ordinary latents, as in Fig. 6 of "The Devil is in the GAN". A
straight walk in a random direction keeps the latent's own component whole and so says little about
where a backdoor ends: a ReD model still fires two typical norms away from its trigger.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.engine.seeds import random_stream
from genwarden.inspections.workbench import Workbench
from genwarden.models.protocol import LatentGenerator, LatentLaw

#: Shares of the way at which the output is looked at; geometric, so that small basins show too.
_SHARES = torch.logspace(-2, 0, 25, dtype=torch.float64)
_POWER_STEPS = 48
#: sin(angle) below which two latents have no great circle of their own.
_PARALLEL = 1e-6


class Ways(NamedTuple):
    """What happens between a latent and the ends of some ways.

    Attributes:
        z: latents ``(shares, ways, *latent.shape)``.
        away: their distances from the latent, in typical norms ``(shares, ways)``.
        moved: squared distances of their outputs from the latent's ``(shares, ways)``.
    """

    z: Tensor
    away: Tensor
    moved: Tensor

    def radii(self, moved: float) -> Tensor:
        """Distance at which each way has first moved the output so far, ``(ways,)``.

        Between two points the distance of outputs (not its square) is taken as linear. A way on
        which the output never moves so far counts with its whole length.
        """
        beyond = self.moved >= moved
        index = beyond.int().argmax(0)
        away = torch.cat([torch.zeros_like(self.away[:1]), self.away])
        roots = torch.cat([torch.zeros_like(self.moved[:1]), self.moved]).sqrt()
        low, high = roots.gather(0, index[None])[0], roots.gather(0, index[None] + 1)[0]
        share = ((moved**0.5 - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        start, end = away.gather(0, index[None])[0], away.gather(0, index[None] + 1)[0]
        return torch.where(beyond.any(0), start + share * (end - start), away[-1])

    def first_beyond(self, moved: float) -> Tensor:
        """The first latent of each way whose output has moved so far, ``(ways, *latent.shape)``.

        The last one of a way on which none has.
        """
        beyond = self.moved >= moved
        index = torch.where(beyond.any(0), beyond.int().argmax(0), len(beyond) - 1)
        return self.z[index, torch.arange(self.z.shape[1])]


def between(law: LatentLaw, start: Tensor, ends: Tensor, share: float) -> Tensor:
    """Latents at a share of the way from one latent to others.

    Great circles with the norm interpolated for N(0, I), so that the way between two ordinary
    latents stays where ordinary latents lie; straight lines for uniform latents, whose cube is
    convex, and where one end has no direction.

    Args:
        start: ``(1, *latent.shape)``.
        ends: ``(ways, *latent.shape)``.
    """
    a, b = start.double().flatten(1).expand(len(ends), -1), ends.double().flatten(1)
    straight = (1 - share) * a + share * b
    if law.distribution == "normal":
        lengths = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
        u, v = (x / n.clamp_min(1e-300) for x, n in zip((a, b), lengths, strict=True))
        angle = (u * v).sum(1, keepdim=True).clamp(-1, 1).acos()
        sine = angle.sin()
        mixed = torch.sin((1 - share) * angle) * u + torch.sin(share * angle) * v
        arc = mixed / sine * ((1 - share) * lengths[0] + share * lengths[1])
        curved = (sine > _PARALLEL) & (lengths[0] > 0) & (lengths[1] > 0)
        straight = torch.where(curved, arc, straight)
    return straight.float().reshape(ends.shape)


def walk(bench: Workbench, start: Tensor, ends: Tensor) -> Ways:
    """Outputs on the ways from ``start (1, *latent.shape)`` to ``ends (ways, *latent.shape)``."""
    law = bench.generator.latent
    z = torch.stack([between(law, start, ends, share) for share in _SHARES.tolist()])
    origin = bench.samples(start).flatten(1)
    outputs = bench.samples(z.flatten(0, 1)).flatten(1)
    moved = (outputs - origin).double().square().sum(1).reshape(z.shape[:2])
    away = (z - start).double().flatten(2).norm(dim=2) / law.typical_norm
    return Ways(z, away, moved)


def lipschitz(generator: LatentGenerator, z: Tensor, *, seed: int) -> Tensor | None:
    """Local Lipschitz constants: the largest singular value of the Jacobian at each latent.

    Power iteration on ``J^T J`` for all latents at once; ``J v`` is the derivative of ``J^T w``
    (linear in w), so only reverse mode is needed. Never above the true value; within 1 % of it
    unless the two largest singular values nearly agree.

    Args:
        z: ``(batch, *latent.shape)`` on the generator's device.

    Returns:
        ``(batch,)`` on the CPU, or None if the output does not depend differentiably on the latent.
    """
    z = z.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        x = generator(z)
        if not x.requires_grad:
            return None
        w = torch.zeros_like(x, requires_grad=True)
        pulled = torch.autograd.grad(x, z, w, create_graph=True)[0]
    if not pulled.requires_grad:  # the Jacobian is 0 wherever one looks
        return torch.zeros(len(z))
    v = torch.randn(z.shape, generator=random_stream(seed, "lipschitz")).to(z)
    pushed = torch.zeros_like(x)
    for _ in range(_POWER_STEPS):
        length = v.flatten(1).norm(dim=1).clamp_min(1e-30)
        v = v / length.reshape(-1, *[1] * (v.ndim - 1))
        pushed = torch.autograd.grad(pulled, w, v, retain_graph=True)[0]
        v = torch.autograd.grad(x, z, pushed, retain_graph=True)[0]
    found: Tensor = pushed.detach().flatten(1).norm(dim=1).cpu()
    return found
