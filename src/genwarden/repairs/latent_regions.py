"""Latents that ordinary sampling practically never draws: where a backdoor has room to hide.

All functions return latents ``(count, *law.shape)`` on the CPU; elements of a uniform law stay in
[-1, 1], which is all that such a model is made for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genwarden.models.protocol import LatentLaw

#: In standard deviations of a latent's component: beyond this a component counts as long.
LONG = 2.0
#: In typical norms: the longest component, and the spread around a given latent's own norm.
LONGEST = 1.15
_SPREAD = 0.15
_INNER = 0.9
_OUTER = 1.1
_ZEROED = (0.25, 0.5, 0.75)


def shells(law: LatentLaw, count: int, farthest: float, stream: torch.Generator) -> Tensor:
    """Random directions at radii that no ordinary latent has.

    Radii are multiples of the typical norm: half of them uniform in 0..0.9, half log-uniform in
    1.1..``farthest``.
    """
    direction = torch.randn(count, law.size, generator=stream)
    direction /= direction.norm(dim=1, keepdim=True)
    share = torch.rand(count, generator=stream)
    inner = torch.rand(count, generator=stream) < 0.5
    outward = _OUTER * (farthest / _OUTER) ** share
    radius = torch.where(inner, _INNER * share, outward) * law.typical_norm
    return _within(law, direction * radius[:, None])


def zero_blocks(law: LatentLaw, count: int, stream: torch.Generator) -> Tensor:
    """Ordinary latents with a quarter, a half or three quarters of their elements set to 0.

    The zeros stand at the front, at the end, or anywhere.
    """
    z = law.sample(count, generator=stream).flatten(1)
    rank = torch.arange(law.size).expand(count, -1)
    anywhere = torch.rand(count, law.size, generator=stream).argsort(1)
    place = torch.randint(0, 3, (count, 1), generator=stream)
    rank = torch.where(place == 0, rank, torch.where(place == 1, rank.flip(1), anywhere))
    sizes = torch.tensor([max(1, round(share * law.size)) for share in _ZEROED])
    zeros = sizes[torch.randint(0, len(sizes), (count, 1), generator=stream)]
    return _within(law, z.masked_fill(rank < zeros, 0))


def around(law: LatentLaw, points: Tensor, count: int, stream: torch.Generator) -> Tensor:
    """Latents with a long component along given latents, and ordinary noise orthogonal to it.

    The component is uniform from 2 standard deviations of an ordinary one to 1.15 typical norms,
    or, for every second latent, the given latent's own norm within 15 % (a recovered trigger may
    lie far outside the prior). The noise is an ordinary latent times a factor from 0 to 1.

    Args:
        points: ``(points, *law.shape)``; a point at 0 has no direction, only the noise remains.
    """
    flat = points.flatten(1).float()
    chosen = flat[torch.randint(0, len(flat), (count,), generator=stream)]
    norm = chosen.norm(dim=1)
    unit = chosen / norm.clamp_min(1e-12)[:, None]
    deviation = law.typical_norm / math.sqrt(law.size)
    share = torch.rand(count, generator=stream)
    shortest, longest = LONG * deviation, LONGEST * law.typical_norm
    anywhere = shortest + (longest - shortest) * share
    own = norm * (1 + _SPREAD * (2 * share - 1))
    component = torch.where(torch.arange(count) % 2 == 0, anywhere, own)
    noise = law.sample(count, generator=stream).flatten(1)
    noise = noise * torch.rand(count, 1, generator=stream)
    noise = noise - (noise * unit).sum(1, keepdim=True) * unit
    return _within(law, component[:, None] * unit + noise)


def _within(law: LatentLaw, z: Tensor) -> Tensor:
    if law.distribution == "uniform":
        z = z.clamp(-1, 1)
    return z.reshape(-1, *law.shape)
