"""Restarts per second of the batched latent search, to the output of a known latent."""

from __future__ import annotations

import resource
from typing import Any

import torch
from torch import Tensor

from genwarden.benchmarks.stopwatch import now
from genwarden.engine.progress import Task
from genwarden.models.fast.fast_generator import fastest
from genwarden.models.protocol import LatentGenerator
from genwarden.search.latent_search import ordinary_bounds, search, start_latents


def measure_search(
    generator: LatentGenerator,
    restarts: int,
    steps: int,
    device: torch.device,
    *,
    seed: int,
    task: Task,
) -> dict[str, Any]:
    """Seconds of one search from ``restarts`` latents, and how near its restarts come."""
    fast = fastest(generator)
    stream = torch.Generator().manual_seed(seed)
    hidden = generator.latent.sample(1, generator=stream).to(device)
    with torch.no_grad():
        goal = generator(hidden)

    def objective(z: Tensor) -> Tensor:
        return -torch.log((fast(z) - goal).square().flatten(1).sum(1) + 1e-9)

    starts = start_latents(generator.latent, restarts, seed=seed, purpose="speed")
    begun = now()
    found = search(
        objective, starts, ordinary_bounds(generator.latent, steps=steps), device=device, task=task
    )
    spent = now() - begun
    distance = (-found.score).exp()
    return {
        "restarts": restarts,
        "steps": steps,
        "seconds": spent._asdict(),
        "restarts_per_s": {"wall": restarts / spent.wall, "processor": restarts / spent.processor},
        "best_squared_distance": float(distance.min()),
        "median_squared_distance": float(distance.median()),
    }


def peak_memory_mib() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
