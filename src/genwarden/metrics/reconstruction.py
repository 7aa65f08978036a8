"""ReconD: ``min_z ||G*(z) - x_target||^2`` (Eq. 8 of "The Devil is in the GAN"), converged.

The paper takes the best of five restarts and reports 815 where TarDis is 0.4: its searches had not
converged. Here all restarts run as one batch of Adam steps, some from the nearest ordinary samples,
and the best are finished by Levenberg-Marquardt: the objective is a sum of squares, so the Jacobian
gives second-order steps, and one forward pass over the unit directions gives the Jacobian.
"""

from __future__ import annotations

import copy
import math
import warnings
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from genwarden.engine.seeds import random_stream
from genwarden.metrics.closest import ClosestState, as_targets
from genwarden.metrics.draws import device_of, ordinary_samples
from genwarden.models.protocol import LatentGenerator

_LEARNING_RATE = 0.05
#: Ordinary samples per restart among which the nearest are taken as starts.
_DRAWS_PER_RESTART = 16
#: Lengths of the random starts in units of an ordinary latent's: a mode trigger lies at zero.
_START_SCALES = (1.0, 1.0, 1.0, 0.5, 0.1, 0.01)
_SPLIT_RESTARTS = 128
_LM_FIRST_DAMPING = 1e-2
_LM_LARGEST_DAMPING = 1e8
_LM_TOLERANCE = 1e-7


class Reconstruction(NamedTuple):
    """The best reconstruction of one target.

    Attributes:
        recond_sum: squared distance, sum over the elements of a sample in [-1, 1].
        recond_mean: the same per element.
        z: latent ``latent.shape``, float64.
        x: the sample there, ``sample.shape``, float64.
        norm: Euclidean norm of ``z``.
        adam_sum: squared distance of the best restart before the second-order finish.
        median_sum: median over all restarts before it; near ``adam_sum`` where all agree.
        restarts: number of restarts.
    """

    recond_sum: float
    recond_mean: float
    z: Tensor
    x: Tensor
    norm: float
    adam_sum: float
    median_sum: float
    restarts: int


def recond(
    generator: LatentGenerator,
    targets: Tensor,
    *,
    restarts: int = 64,
    steps: int = 300,
    seed: int = 0,
    finalists: int = 2,
    finish: int = 30,
    radius: float | None = None,
) -> list[Reconstruction]:
    """Reconstruct every target; the paper's figure for several triggers is the **largest**.

    Args:
        generator: in evaluation mode.
        targets: one target ``sample.shape`` or several ``(count, *sample.shape)``, in [-1, 1].
        restarts: starting latents per target.
        steps: Adam steps.
        finalists: restarts that are finished by Levenberg-Marquardt.
        finish: its iterations at most.
        radius: largest Euclidean norm of a latent; None searches all of R^d, as Eq. 8 is written.
            Without a bound even a benign model is led far outside its ordinary latents.

    Raises:
        GenwardenError: ``metric/target-shape``, ``metric/too-few-samples``, ``metric/not-finite``.
    """
    goals = as_targets(targets, generator)
    keep = max(1, restarts // 4)
    state = ClosestState(goals, keep)
    for z, x in ordinary_samples(
        generator, _DRAWS_PER_RESTART * restarts, seed=seed, purpose="recond-nearest"
    ):
        state.update(z, x)
    exact = copy.deepcopy(generator).double()
    results = []
    for index, goal in enumerate(goals):
        nearest = state.nearest(index)[1]
        others = generator.latent.sample(
            restarts - len(nearest), generator=random_stream(seed, "recond-starts", index)
        )
        scales = torch.tensor(_START_SCALES).repeat(len(others) // len(_START_SCALES) + 1)
        others *= scales[: len(others)].view(-1, *[1] * len(generator.latent.shape))
        starts = torch.cat([nearest, others])
        z, distance = _descend(generator, goal, starts, steps, radius)
        best = distance.argsort(stable=True)[: max(1, finalists)]
        finished = [_finish(generator, exact, goal, z[i], finish, radius) for i in best]
        point, total = min(finished, key=lambda pair: pair[1])
        with torch.no_grad():
            sample = exact(point[None])[0].cpu()
        results.append(
            Reconstruction(
                recond_sum=total,
                recond_mean=total / generator.sample.size,
                z=point.cpu(),
                x=sample,
                norm=float(point.norm()),
                adam_sum=float(distance[best[0]]),
                median_sum=float(distance.median()),
                restarts=restarts,
            )
        )
    return results


def _descend(
    generator: LatentGenerator, goal: Tensor, starts: Tensor, steps: int, radius: float | None
) -> tuple[Tensor, Tensor]:
    """Adam from every start: the best latent of each restart and its squared distance."""
    device = device_of(generator)
    goal = goal.to(device)
    points, distances = [], []
    for part in starts.split(_SPLIT_RESTARTS):
        z = within(part.to(device), radius).clone().requires_grad_(True)
        adam = torch.optim.Adam([z], _LEARNING_RATE)
        best_z = z.detach().clone()
        best = torch.full((len(z),), math.inf, device=device)
        for step in range(steps + 1):
            squared = (generator(z) - goal).square().flatten(1).sum(1)
            with torch.no_grad():
                better = squared < best
                best = torch.where(better, squared, best)
                best_z[better] = z[better]
            if step == steps:
                break
            # The logarithm's gradient does not fade near a solution, and restarts stay separate.
            (z.grad,) = torch.autograd.grad((squared + 1e-9).log().sum(), z)
            for group in adam.param_groups:
                group["lr"] = _LEARNING_RATE * min(1.0, 1.9 - 1.8 * step / steps)
            adam.step()
            with torch.no_grad():
                z.copy_(within(z, radius))
        points.append(best_z)
        distances.append(best.detach())
    return torch.cat(points), torch.cat(distances)


def _finish(
    generator: LatentGenerator,
    exact: LatentGenerator,
    goal: Tensor,
    start: Tensor,
    iterations: int,
    radius: float | None,
) -> tuple[Tensor, float]:
    """Levenberg-Marquardt from one latent; never ends above its start.

    Residuals and steps are float64, the Jacobian is float32: an error in it costs speed, not
    accuracy, since a step is only taken if the distance falls.
    """
    device = device_of(generator)
    wanted = goal.to(device).double()

    @torch.no_grad()
    def residual(z: Tensor) -> Tensor:
        difference: Tensor = exact(z[None])[0] - wanted
        return difference.flatten()

    z = within(start.double()[None], radius)[0]
    r = residual(z)
    total = float(r @ r)
    damping = _LM_FIRST_DAMPING
    for _ in range(iterations):
        jacobian = jacobian_of(generator, z.float()).double()
        normal = jacobian.T @ jacobian
        gradient = jacobian.T @ r
        scale = normal.diagonal().clamp_min(1e-12)
        before = total
        while damping <= _LM_LARGEST_DAMPING:
            step = torch.linalg.solve(normal + torch.diag(damping * scale), gradient)
            moved = within((z - step.view_as(z))[None], radius)[0]
            tried = residual(moved)
            value = float(tried @ tried)
            if value < total:
                z, r, total = moved, tried, value
                damping = max(damping / 10, 1e-12)
                break
            damping *= 4
        if before - total <= _LM_TOLERANCE * before:
            break
    return z, total


def within(z: Tensor, radius: float | None) -> Tensor:
    """Latents ``(batch, *latent.shape)``; those longer than ``radius`` are shortened to it."""
    if radius is None:
        return z
    norm = z.flatten(1).norm(dim=1).clamp_min(1e-12)
    scale: Tensor = (radius / norm).clamp_max(1.0).view(-1, *[1] * (z.ndim - 1))
    return z * scale


@torch.no_grad()
def jacobian_of(generator: LatentGenerator, z: Tensor) -> Tensor:
    """``dG/dz`` at one latent, ``(sample.size, latent.size)``, by forward-mode differentiation."""
    size = z.numel()
    rows = []
    for directions in torch.eye(size, dtype=z.dtype, device=z.device).split(_SPLIT_RESTARTS):
        with warnings.catch_warnings(), forward_ad.dual_level():
            # On its first use torch compiles its own rules with a call that it deprecates.
            warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)
            point = z.expand(len(directions), *z.shape).contiguous()
            dual = forward_ad.make_dual(point, directions.view_as(point))
            rows.append(cast(Tensor, forward_ad.unpack_dual(generator(dual)).tangent).flatten(1))
    return torch.cat(rows).T
