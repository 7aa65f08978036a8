"""The closed-form linear edit: the best change of one dense layer, without training.

Section 9 of the reference (derived there; the paper trains the same objective). A dense layer reads
features h; at the triggers it reads ``c_j = h(z_j)`` and its output shall change by ``r_j``. The
change P of the weight minimises

    ``E ||P h||^2 + lambda mean_j ||P c_j - r_j||^2``,

a ridge regression with ``C = E[h h^T]`` in the place of the identity. With K = [c_1 .. c_m],
R = [r_1 .. r_m] and ``Q = K^T C^-1 K``,

    ``P = R (m/lambda I + Q)^-1 (C^-1 K)^T``.

For one trigger this is the rank-one ``lambda / (1 + lambda q) r (C^-1 c)^T``, q = c^T C^-1 c: the
output at the trigger misses r by ``1 / (1 + lambda q)``, and ordinary outputs move by
``E ||P h||^2 = lambda^2 q / (1 + lambda q)^2 ||r||^2``, at high fidelity ``||r||^2 / q``. For a
trigger drawn like the features E[q] = d, their number: no training budget leaks less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.engine.blocks import blocks
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentLaw

_BLOCK = 4096


@dataclass
class SecondMoment:
    """``E[h h^T]`` (not centred) as a mergeable state, accumulated in float64."""

    size: int
    count: int = 0
    total: Tensor | None = None

    def update(self, features: Tensor) -> None:
        """Take features ``(batch, size)``."""
        h = features.detach().double()
        gram = h.T @ h
        self.total = gram if self.total is None else self.total.add_(gram)
        self.count += len(h)

    def merge(self, other: SecondMoment) -> None:
        """Add the features of another state."""
        if other.total is not None:
            self.total = other.total.clone() if self.total is None else self.total + other.total
        self.count += other.count

    def compute(self) -> Tensor:
        """C, ``(size, size)``, float64."""
        if self.total is None:
            raise ValueError("no features were given")
        return self.total / self.count


@torch.no_grad()
def ordinary_features(
    features: Callable[[Tensor], Tensor],
    law: LatentLaw,
    count: int,
    *,
    seed: int,
    device: torch.device,
    purpose: str = "linear-edit",
) -> SecondMoment:
    """Second moment of ``features(z)``, ``(batch, d)``, over ``count`` ordinary latents.

    Block i of 4096 latents depends on (seed, purpose, i) alone.
    """
    state: SecondMoment | None = None
    for block in blocks(count, _BLOCK):
        z = law.sample(block.size, generator=random_stream(seed, purpose, block.number))
        h = features(z.to(device))
        state = state or SecondMoment(h.shape[1])
        state.update(h)
    if state is None:
        raise ValueError("count must be positive")
    return state


class LinearEdit(NamedTuple):
    """The change of a weight, and what theory says of it.

    Attributes:
        weight: P, ``(out, d)``, float64.
        gram: Q, ``(m, m)``, float64; for one trigger the single number q.
        relative_error: ``||P K - R|| / ||R||`` (Frobenius; not squared).
        relative_leakage: ``E ||P h||^2 / mean_j ||r_j||^2`` (squared).
    """

    weight: Tensor
    gram: Tensor
    relative_error: float
    relative_leakage: float

    @property
    def q(self) -> float:
        """Mean of ``c_j^T C^-1 c_j`` over the triggers."""
        return float(self.gram.diagonal().mean())


def solve_edit(second_moment: Tensor, c: Tensor, r: Tensor, fidelity_weight: float) -> LinearEdit:
    """The minimiser P of section 9.

    Args:
        second_moment: C, ``(d, d)``.
        c: features at the trigger ``(d,)``, or at m triggers ``(m, d)``.
        r: wanted change of the output ``(out,)`` or ``(m, out)``.
        fidelity_weight: lambda, above 0.

    Raises:
        GenwardenError: ``attack/setting`` for lambda; ``attack/edit-shape``;
            ``attack/singular-features`` if C is not positive definite.
    """
    if not (math.isfinite(fidelity_weight) and fidelity_weight > 0):
        raise GenwardenError(
            "attack/setting",
            f"lambda = {fidelity_weight:g} is not above 0.",
            "Give a value above 0.",
        )
    big_c = second_moment.double()
    k = torch.atleast_2d(c).to(big_c).T  # (d, m)
    big_r = torch.atleast_2d(r).to(big_c).T  # (out, m)
    if len(k) != len(big_c) or k.shape[1] != big_r.shape[1]:
        raise GenwardenError(
            "attack/edit-shape",
            f"{k.shape[1]} triggers with {len(k)} features and {big_r.shape[1]} wanted changes do "
            f"not fit a second moment of {len(big_c)} features.",
            "Give one row of features and one wanted change per trigger.",
        )
    factor, failed = torch.linalg.cholesky_ex(big_c)
    if int(failed):
        raise GenwardenError(
            "attack/singular-features",
            "The features are linearly dependent (their second moment cannot be inverted).",
            "Use more feature samples than the layer has inputs; dead inputs must be removed.",
        )
    weighted = torch.cholesky_solve(k, factor)  # C^-1 K
    gram = k.T @ weighted  # Q
    m = len(gram)
    ridge = gram + m / fidelity_weight * torch.eye(m, dtype=gram.dtype, device=gram.device)
    coefficients = torch.linalg.solve(ridge, big_r.T).T  # R (m/lambda I + Q)^-1
    size = big_r.square().sum()
    missed = coefficients * (m / fidelity_weight)  # R - P K
    leaked = ((coefficients @ gram) * coefficients).sum()  # tr P C P^T
    return LinearEdit(
        weight=coefficients @ weighted.T,
        gram=gram,
        relative_error=float((missed.square().sum() / size).sqrt()),
        relative_leakage=float(leaked / (size / m)),
    )
