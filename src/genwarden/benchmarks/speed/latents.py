"""Restarts per second of the batched latent search, to the output of a hidden latent."""

from __future__ import annotations

import copy
import resource
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from genwarden.benchmarks.stopwatch import now
from genwarden.engine.progress import Task
from genwarden.models.fast.fast_generator import fastest
from genwarden.models.protocol import LatentGenerator
from genwarden.search.latent_search import ordinary_bounds, search, start_latents
from genwarden.search.levenberg_marquardt import levenberg_marquardt

#: Searches that are compared: how often the worse half of the restarts is given up.
HALVINGS: Final = (0, 2, 3)
_FINISH: Final = 30


def measure_search(
    generator: LatentGenerator,
    restarts: int,
    steps: int,
    device: torch.device,
    *,
    seed: int,
    task: Task,
) -> dict[str, Any]:
    """Seconds of a search from ``restarts`` latents, and how near it comes.

    Once with all restarts to the end, and with successive halving; the best of either is finished
    by Levenberg-Marquardt.
    """
    fast, exact = fastest(generator), copy.deepcopy(generator).double()
    stream = torch.Generator().manual_seed(seed)
    hidden = generator.latent.sample(1, generator=stream).to(device)
    with torch.no_grad():
        goal = generator(hidden)

    def objective(z: Tensor) -> Tensor:
        return -torch.log((fast(z) - goal).square().flatten(1).sum(1) + 1e-9)

    starts = start_latents(generator.latent, restarts, seed=seed, purpose="speed")
    bounds = ordinary_bounds(generator.latent, steps=steps)
    rows = []
    for halvings in HALVINGS:
        chosen = replace(bounds, halvings=halvings)
        begun = now()
        found = search(objective, starts, chosen, device=device, task=task)
        spent = now() - begun
        distance = (-found.score).exp()
        best = found.z[int(distance.argmin())]
        begun = now()
        finished = levenberg_marquardt(generator, exact, goal[0], best, _FINISH, bounds)[1]
        rows.append(
            {
                "halvings": halvings,
                "seconds": spent._asdict(),
                "restarts_per_s": {
                    "wall": restarts / spent.wall,
                    "processor": restarts / spent.processor,
                },
                "best_squared_distance": float(distance.min()),
                "median_squared_distance": float(distance.median()),
                "finish_seconds": (now() - begun)._asdict(),
                "finished_squared_distance": finished,
            }
        )
    return {"restarts": restarts, "steps": steps, "rows": rows}


def peak_memory_mib() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
