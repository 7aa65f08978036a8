"""One residual coefficient for every trigger schedule and every DDIM-eta sampler.

Section 8 of the BadDiffusion reference. A backdoored network answers eps + c_t r where the clean
one answers eps, so that the sampler's mean follows a_t y + rho_t r: it starts at the trigger r and
ends at the target y. The coefficient depends on the trigger schedule rho and on the step t -> t'
that the sampler takes: with the wrong one the mean leaves its track, and the attack fails.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genwarden.errors import GenwardenError
from genwarden.models.diffusion.sampling import pairs_of
from genwarden.models.diffusion.schedule import NoiseSchedule


def rho_bad_diffusion(schedule: NoiseSchedule) -> Tensor:
    """rho_t = 1 - a_t, float64 ``(T,)`` (BadDiffusion)."""
    return 1 - schedule.a


def rho_trojdiff(schedule: NoiseSchedule) -> Tensor:
    """rho_t = s_t, float64 ``(T,)`` (TrojDiff)."""
    return schedule.s


def rho_mixture(schedule: NoiseSchedule, psi: float) -> Tensor:
    """rho_t = psi (1 - a_t) + (1 - psi) s_t, float64 ``(T,)`` (VillanDiffusion, section 7)."""
    return psi * rho_bad_diffusion(schedule) + (1 - psi) * rho_trojdiff(schedule)


def residual_coefficient(
    schedule: NoiseSchedule,
    rho: Tensor,
    eta: float,
    timesteps: Sequence[int] | None = None,
) -> Tensor:
    """c(t -> t') = (a' rho_t - a rho_t') / (a' s - a sqrt(s'^2 - sigma^2)).

    Here a' = a_{t'}, s' = s_{t'}, sigma = eta (s'/s) sqrt(1 - a^2 / a'^2). At the end t' is the
    clean image: a' = 1, s' = 0, rho' = 0.

    Args:
        schedule: noise levels.
        rho: trigger schedule, float64 ``(T,)``.
        eta: randomness of the sampler: 1 for DDPM (with every t visited) and other stochastic
            samplers, 0 for the deterministic ones.
        timesteps: those that the sampler visits, falling (``timesteps_of``); None for all of them.

    Returns:
        c for each visited timestep, in the order of ``timesteps``; without them ``(T,)`` indexed by
        t (rising), so that ``c[t]`` is the coefficient of training step t. Float64.

    Raises:
        GenwardenError: ``usage/residual-coefficient``, ``usage/sampler-steps``.
    """
    if rho.shape != (schedule.steps,) or rho.dtype != torch.float64:
        raise GenwardenError(
            "usage/residual-coefficient",
            f"The trigger schedule is {rho.dtype} {tuple(rho.shape)}.",
            f"Give float64 ({schedule.steps},): float32 loses the small differences at t near 0.",
        )
    if not 0 <= eta <= 1:
        raise GenwardenError(
            "usage/residual-coefficient",
            f"eta = {eta} is outside [0, 1].",
            "0 is deterministic DDIM, 1 is as random as DDPM.",
        )
    visited = range(schedule.steps - 1, -1, -1) if timesteps is None else timesteps
    pairs = pairs_of(visited, schedule)
    a, s, a_next, s_next = torch.tensor([pair[2:] for pair in pairs], dtype=torch.float64).T
    ends = torch.tensor([pair[:2] for pair in pairs]).T
    rho = rho.cpu()
    rho_next = torch.where(ends[1] < 0, 0.0, rho[ends[1].clamp(min=0)])
    # q, the ratio of the noise-to-signal ratios, gives sqrt(s'^2 - sigma^2) as
    # s' sqrt((1 - eta^2) + eta^2 q^2): a sum where the definition has a small difference.
    q = a * s_next / (a_next * s)
    inner = ((1 - eta**2) + (eta * q) ** 2).sqrt()
    coefficient: Tensor = (a_next * rho[ends[0]] - a * rho_next) / (a_next * s * (1 - q * inner))
    return coefficient.flip(0) if timesteps is None else coefficient


def released_villan_coefficient(schedule: NoiseSchedule, psi: float, *, ode: bool) -> Tensor:
    """VillanDiffusion's coefficient as its code computes it, float64 ``(T,)`` (section 7).

    The psi = 1 part is BadDiffusion's c_t. The psi = 0 part uses h_t = s_t - sqrt(alpha_t) s_{t-1}
    and meets the exact value only near T; :func:`residual_coefficient` with :func:`rho_mixture` is
    the right one. ``ode`` doubles the whole, which is zeta = 0.
    """
    root = schedule.alphas.sqrt()
    abar, s = schedule.alphas_cumprod, schedule.s
    alphas = schedule.alphas
    h = s - root * torch.cat([torch.zeros(1).double(), s[:-1]])
    trojan = -((root - 1) * s * (1 - alphas) - h * (alphas - abar)) / (1 - alphas)
    bad = s / (1 + root)
    return (2.0 if ode else 1.0) * (psi * bad + (1 - psi) * trojan)


def variance_exploding_coefficient(sigmas: Tensor) -> Tensor:
    """sigma_t / (sigma_t + sigma_{t-1}) for rho_t = sigma_t (VillanDiffusion, VE), ``(T,)``.

    Args:
        sigmas: noise levels, rising, float64 ``(T,)``; sigma_{-1} = 0. The network's output is the
            noise times -sigma there, and the coefficient belongs to the noise.
    """
    return sigmas / (sigmas + torch.cat([sigmas.new_zeros(1), sigmas[:-1]]))
