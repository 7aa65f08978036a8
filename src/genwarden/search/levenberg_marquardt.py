"""Levenberg-Marquardt over one latent: the second-order finish of a search for a known output.

``||G(z) - x||^2`` is a sum of squares, so the Jacobian gives second-order steps, and one batched
forward pass over the unit directions gives the Jacobian.
"""

from __future__ import annotations

import warnings
from typing import cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from genwarden.models.protocol import LatentGenerator
from genwarden.search.latent_search import SearchSettings, bounded

_FIRST_DAMPING = 1e-2
_LARGEST_DAMPING = 1e8
_TOLERANCE = 1e-7
_DIRECTIONS_AT_ONCE = 128


def levenberg_marquardt(
    generator: LatentGenerator,
    exact: LatentGenerator,
    goal: Tensor,
    start: Tensor,
    iterations: int,
    bounds: SearchSettings,
) -> tuple[Tensor, float]:
    """Minimise ``||exact(z) - goal||^2`` from one latent; never ends above its start.

    Args:
        generator: in float32, for the Jacobian.
        exact: the same network in float64.
        goal: ``sample.shape``.
        start: ``latent.shape``.
        bounds: where latents may lie; its step settings are not used.

    Returns:
        The latent (float64) and the squared distance there.

    Residuals and steps are float64, the Jacobian is float32: an error in it costs speed, not
    accuracy, since a step is only taken if the distance falls.
    """
    device = next(generator.parameters()).device
    wanted = goal.to(device).double()

    @torch.no_grad()
    def residual(z: Tensor) -> Tensor:
        difference: Tensor = exact(z[None])[0] - wanted
        return difference.flatten()

    z = bounded(start.double().to(device)[None], bounds)[0]
    r = residual(z)
    total = float(r @ r)
    damping = _FIRST_DAMPING
    for _ in range(iterations):
        jacobian = jacobian_of(generator, z.float()).double()
        normal = jacobian.T @ jacobian
        gradient = jacobian.T @ r
        scale = normal.diagonal().clamp_min(1e-12)
        before = total
        while damping <= _LARGEST_DAMPING:
            step = torch.linalg.solve(normal + torch.diag(damping * scale), gradient)
            moved = bounded((z - step.view_as(z))[None], bounds)[0]
            tried = residual(moved)
            value = float(tried @ tried)
            if value < total:
                z, r, total = moved, tried, value
                damping = max(damping / 10, 1e-12)
                break
            damping *= 4
        if before - total <= _TOLERANCE * before:
            break
    return z, total


@torch.no_grad()
def jacobian_of(generator: LatentGenerator, z: Tensor) -> Tensor:
    """``dG/dz`` at one latent, ``(sample.size, latent.size)``, by forward-mode differentiation."""
    size = z.numel()
    rows = []
    for directions in torch.eye(size, dtype=z.dtype, device=z.device).split(_DIRECTIONS_AT_ONCE):
        with warnings.catch_warnings(), forward_ad.dual_level():
            # On its first use torch compiles its own rules with a call that it deprecates.
            warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)
            point = z.expand(len(directions), *z.shape).contiguous()
            dual = forward_ad.make_dual(point, directions.view_as(point))
            rows.append(cast(Tensor, forward_ad.unpack_dual(generator(dual)).tangent).flatten(1))
    return torch.cat(rows).T
