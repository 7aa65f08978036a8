r"""Defences while sampling: the weights stay as they are, the noise or the sampler does not.

A trigger sits in the initial noise, and an attack is made for one sampler (sections 2 and 8 of the
BadDiffusion reference). So a user can replace part of the noise, or follow no sampler that an
attacker could have trained for:

- both clipping rules (``clip`` of :class:`SamplerSettings`; section 6);
- laundering: x_T <- sqrt(1 - k^2) x_T + k z with fresh z, and whitening. Both leave N(0, I) exactly
  as it is, so that they cost nothing on ordinary noise but its repeatability;
- random eta: DDIM with an eta drawn anew from U[0, 1] at every step. The residual coefficient
  differs between eta = 0 and 1 by a factor of two, and the error adds up (section 8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genwarden.errors import GenwardenError
from genwarden.models.diffusion.ancestral import ddim
from genwarden.models.diffusion.protocol import Diffusion
from genwarden.models.diffusion.samplers import sample
from genwarden.models.diffusion.sampling import (
    Hook,
    SamplerSettings,
    Step,
    pairs_of,
    timesteps_of,
)

#: Whitening draws the lowest side / 4 frequencies of each axis anew: patches of half the side have
#: most of their energy there.
_LOW = 4


@dataclass(frozen=True)
class Defence:
    """What is done against a trigger in the noise.

    Attributes:
        launder: k in [0, 1], the amplitude of fresh noise; 1 replaces it whole.
        whiten: see :func:`whiten`.
        random_eta: draw eta anew at every step; for ``ddim`` alone.
    """

    launder: float = 0.0
    whiten: bool = False
    random_eta: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.launder <= 1:
            raise GenwardenError(
                "usage/launder",
                f"The strength of laundering, {self.launder}, is outside [0, 1].",
                "0 keeps the noise, 1 replaces it.",
            )


def sample_defended(
    model: Diffusion,
    noise: Tensor,
    settings: SamplerSettings,
    generator: torch.Generator,
    defence: Defence,
    *,
    hook: Hook | None = None,
) -> Tensor:
    """Like :func:`genwarden.models.diffusion.samplers.sample`, under a defence.

    Args:
        noise: x_T as it was given, ``(batch, C, H, W)``.
        generator: CPU stream of fresh noise, etas and the noise of the steps, in this order.
        hook: as there.

    Raises:
        GenwardenError: ``usage/random-eta`` for another sampler than ddim, ``usage/sampler-...``.
    """
    start = noise_laundering(noise, defence.launder, generator, whitened=defence.whiten)
    if defence.random_eta:
        return random_eta(model, start, settings, generator, hook=hook)
    return sample(model, start, settings, generator, hook=hook)


def noise_laundering(
    noise: Tensor, strength: float, generator: torch.Generator, *, whitened: bool = False
) -> Tensor:
    """sqrt(1 - k^2) x_T + k z with fresh z ~ N(0, I), k the strength in [0, 1]; N(0, I) stays so.

    A shift of the noise is left with sqrt(1 - k^2) of its size.

    Args:
        noise: ``(batch, C, H, W)``.
        whitened: apply :func:`whiten` afterwards.
    """
    laundered = noise
    if strength > 0:
        fresh = _fresh(noise, generator)
        laundered = math.sqrt(1 - strength**2) * noise + strength * fresh
    return whiten(laundered, generator) if whitened else laundered


def whiten(noise: Tensor, generator: torch.Generator) -> Tensor:
    """Take out of the noise what a trigger is made of, and nothing of N(0, I) itself.

    1. The mean over the batch is replaced by that of fresh noise: the same trigger in many noises
       vanishes. Of i.i.d. normal rows, mean and deviations are independent, so this is exact.
    2. The lowest quarter of the frequencies per axis (orthonormal cosine transform) is replaced by
       that of fresh noise: exact too, since the projections of N(0, I) are independent.
    3. The values of every image are replaced by the normal quantiles of their ranks: no value is
       an outlier. This keeps their order, and N(0, I) up to the spread of its mean and variance.
    """
    kept = noise
    if len(noise) > 1:
        kept = kept - kept.mean(0) + _fresh(noise, generator).mean(0)
    rows, columns = (_low_frequencies(side).to(noise) for side in noise.shape[-2:])
    change = _fresh(noise, generator) - kept
    low: Tensor = rows @ (rows.mT @ change @ columns) @ columns.mT
    return normal_quantiles(kept + low)


def normal_quantiles(noise: Tensor) -> Tensor:
    """Every value as the N(0, 1) quantile of (rank + 1/2) / count in its own image."""
    flat = noise.flatten(1)
    ranks = flat.argsort(1).argsort(1)
    levels = (ranks.to(torch.float64) + 0.5) / flat.shape[1]
    quantiles: Tensor = torch.special.ndtri(levels)
    return quantiles.to(noise).view_as(noise)


def random_eta(
    model: Diffusion,
    noise: Tensor,
    settings: SamplerSettings,
    generator: torch.Generator,
    *,
    hook: Hook | None = None,
) -> Tensor:
    """DDIM whose eta is drawn from U[0, 1] at every step; ``settings.eta`` is not read.

    Raises:
        GenwardenError: ``usage/random-eta`` for another sampler, ``usage/sampler-...``.
    """
    if settings.name != "ddim":
        raise GenwardenError(
            "usage/random-eta",
            f"The sampler {settings.name} has no eta.",
            "Use a random eta with ddim.",
        )
    pairs = pairs_of(timesteps_of(model.schedule, settings), model.schedule)
    etas = torch.rand(len(pairs), generator=generator).tolist()
    x = noise
    for number, (pair, eta) in enumerate(zip(pairs, etas, strict=True)):
        one = replace(settings, eta=eta)
        x = ddim(model, x, [pair], one, generator, _numbered(hook, number))
    return x


def _numbered(hook: Hook | None, number: int) -> Hook | None:
    """A hook that sees a step under its number in the whole schedule."""
    if hook is None:
        return None

    def numbered(step: Step) -> Tensor | None:
        return hook(step._replace(number=number))

    return numbered


def _low_frequencies(side: int) -> Tensor:
    """The first ``side / 4`` cosines, orthonormal, float64 ``(side, side / 4)`` (DCT-II)."""
    count = max(1, side // _LOW)
    place = torch.arange(side, dtype=torch.float64)[:, None] + 0.5
    waves = torch.cos(math.pi / side * place * torch.arange(count, dtype=torch.float64))
    normed: Tensor = waves / waves.norm(dim=0)
    return normed


def _fresh(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like)
