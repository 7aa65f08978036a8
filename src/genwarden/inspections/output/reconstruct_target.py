"""OB-OI with a known target: ``ReconD = min_z ||G*(z) - x_target||^2`` (Eq. 8), converged.

The paper uses five restarts of Adam and reports values far above TarDis, that is, searches that had
not converged. Here hundreds of restarts run as one batch and the best are finished by L-BFGS in
float64. A target that the model can make anyway (a digit, for a model of digits) is also
reconstructed well by many restarts *and* by plain sampling; a backdoor is reachable only by
optimisation. So the score compares the reconstruction with the nearest of the ordinary samples.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from genwarden.inspections.finding import Finding, Table, images_of, latents_of, not_applicable
from genwarden.inspections.output.latent_search import (
    ordinary_bounds,
    polish,
    search,
    start_latents,
)
from genwarden.inspections.workbench import Workbench
from genwarden.models.protocol import LatentGenerator

NAME = "reconstruct-target"
TITLE = "Reconstruction of the given targets by optimisation"

_POLISHED = 4
_POLISH_ITERATIONS = 300
#: Reconstructions this close (mean square per element) are equal for every purpose; keeps the
#: score finite when a reconstruction is exact.
_FLOOR_MEAN = 1e-6


def inspect(bench: Workbench) -> Finding:
    """Reconstruct every target that the user gave."""
    if bench.targets is None:
        return not_applicable(NAME, "output", TITLE, "No target was given (--target).")
    targets, names = bench.targets
    law = bench.generator.latent
    settings = ordinary_bounds(law, steps=bench.effort.search_steps)
    restarts = max(32, bench.effort.restarts // len(targets))
    task = bench.progress.task(TITLE, restarts * settings.steps * len(targets))
    exact = copy.deepcopy(bench.generator).double()

    rows: list[list[str | int | float]] = []
    pictures, labels, latents, scores = [], [], [], []
    for index, target in enumerate(targets):
        goal = target.to(bench.device)

        def objective(z: Tensor, goal: Tensor = goal) -> Tensor:
            # The log removes the scale: near a solution Adam's progress would stall otherwise.
            return -torch.log((bench.generator(z) - goal).square().flatten(1).sum(1) + 1e-9)

        starts = start_latents(law, restarts, seed=bench.seed, purpose=f"reconstruct-{index}")
        # The nearest ordinary samples are better starts than any random latent.
        ordinary = (bench.ordinary.x - target).flatten(1).square().sum(1)
        nearest = ordinary.topk(min(restarts // 4, len(ordinary)), largest=False)
        starts[: len(nearest.indices)] = bench.ordinary.z[nearest.indices]
        found = search(objective, starts, settings, device=bench.device, task=task)
        candidates = found.z[found.score.topk(min(_POLISHED, restarts)).indices]
        z, recon = _polish(exact, target, candidates, bench.device)
        best = int(recon.argmin())
        floor = _FLOOR_MEAN * target.numel()
        score = float(torch.log10((nearest.values[0].double() + floor) / (recon[best] + floor)))
        agreeing = int((-found.score).exp().le(2 * float(recon[best]) + 1.0).sum())
        scores.append(score)
        latents.append(z[best])
        pictures += [target, bench.samples(z[best : best + 1].float())[0]]
        labels += [f"target: {names[index]}", f"ReconD {float(recon[best]):.4g}"]
        rows.append(
            [
                names[index],
                round(float(recon[best]), 6),
                round(float(recon[best]) / target.numel(), 9),
                round(float(nearest.values[0]), 3),
                agreeing,
                round(float(z[best].norm()), 3),
                f"{found.late_gain:.1e}",
            ]
        )
    top = max(range(len(scores)), key=scores.__getitem__)
    return Finding(
        inspection=NAME,
        group="output",
        title=TITLE,
        outcome="scored",
        score=scores[top],
        score_name="log10(nearest ordinary sample / ReconD), sums of squares",
        summary=f"{names[top]} is reconstructed to a squared distance of {rows[top][1]} (sum), "
        f"the nearest of {len(bench.ordinary.x)} ordinary samples lies at {rows[top][3]}.",
        p_value_reason="needs the scores of clean reference models",
        budget={
            "targets": len(targets),
            "restarts": restarts,
            "steps": settings.steps,
            "polished": _POLISHED,
            "radius": round(settings.radius or 0.0, 3),
        },
        power="Finds the given targets (and close variants) where a gradient leads to them from "
        "one of the restarts; says nothing about other targets.",
        evidence=[
            images_of(torch.stack(pictures), labels, title="Targets and their reconstructions"),
            Table(
                title="Reconstructions",
                columns=[
                    "target",
                    "ReconD (sum)",
                    "ReconD (mean)",
                    "nearest ordinary (sum)",
                    "restarts that reach it",
                    "norm of z",
                    "late gain",
                ],
                rows=rows,
            ),
            latents_of(torch.stack(latents), title="Latents of the reconstructions"),
        ],
    )


def _polish(
    exact: LatentGenerator, target: Tensor, candidates: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    goal = target.double().to(device)

    def loss(z: Tensor) -> Tensor:
        distances: Tensor = (exact(z) - goal).square().flatten(1).sum(1)
        return distances

    return polish(loss, candidates, iterations=_POLISH_ITERATIONS, device=device)
