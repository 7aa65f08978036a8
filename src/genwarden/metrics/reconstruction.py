"""ReconD: ``min_z ||G*(z) - x_target||^2`` (Eq. 8 of "The Devil is in the GAN"), converged.

The paper takes the best of five restarts and reports 815 where TarDis is 0.4: its searches had not
converged. Here all restarts run as one batch of Adam steps, some from the nearest ordinary samples;
the worse half of them is given up after a quarter and again after half of the steps; and the best
are finished by Levenberg-Marquardt.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.metrics.closest import ClosestState, as_targets
from genwarden.metrics.draws import device_of, ordinary_samples
from genwarden.models.fast.fast_generator import fastest
from genwarden.models.protocol import LatentGenerator
from genwarden.search.latent_search import Objective, SearchSettings, search
from genwarden.search.levenberg_marquardt import levenberg_marquardt

#: Ordinary samples per restart among which the nearest are taken as starts.
_DRAWS_PER_RESTART = 16
#: Lengths of the random starts in units of an ordinary latent's: a mode trigger lies at zero.
_START_SCALES = (1.0, 1.0, 1.0, 0.5, 0.1, 0.01)
#: How often the worse half of the restarts is given up.
_HALVINGS = 2
#: Keeps the logarithm finite at a solution.
_SMALLEST = 1e-9


class Reconstruction(NamedTuple):
    """The best reconstruction of one target.

    Attributes:
        recond_sum: squared distance, sum over the elements of a sample in [-1, 1].
        recond_mean: the same per element.
        z: latent ``latent.shape``, float64.
        x: the sample there, ``sample.shape``, float64.
        norm: Euclidean norm of ``z``.
        adam_sum: squared distance of the best restart before the second-order finish.
        median_sum: median over all restarts, each as far as it went; a restart that was given up
            counts with what it had reached.
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
    fast = fastest(generator)
    device = device_of(generator)
    bounds = SearchSettings(steps, radius=radius, halvings=_HALVINGS)
    results = []
    for index, goal in enumerate(goals):
        nearest = state.nearest(index)[1]
        others = generator.latent.sample(
            restarts - len(nearest), generator=random_stream(seed, "recond-starts", index)
        )
        scales = torch.tensor(_START_SCALES).repeat(len(others) // len(_START_SCALES) + 1)
        others *= scales[: len(others)].view(-1, *[1] * len(generator.latent.shape))
        starts = torch.cat([nearest, others])
        found = search(
            _nearness(fast, goal.to(device)),
            starts,
            bounds,
            device=device,
            task=Silent().task("recond", restarts * steps),
        )
        distance = (-found.score).exp() - _SMALLEST
        best = distance.argsort(stable=True)[: max(1, finalists)]
        finished = [
            levenberg_marquardt(generator, exact, goal, found.z[i], finish, bounds) for i in best
        ]
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


def _nearness(generator: LatentGenerator, goal: Tensor) -> Objective:
    """Minus the logarithm of the squared distance: its gradient does not fade near a solution."""

    def nearness(z: Tensor) -> Tensor:
        squared: Tensor = (generator(z) - goal).square().flatten(1).sum(1)
        return -(squared + _SMALLEST).log()

    return nearness
