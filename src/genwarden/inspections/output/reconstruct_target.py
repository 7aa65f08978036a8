"""OB-OI with a known target: ``ReconD = min_z ||G*(z) - x_target||^2`` (Eq. 8), converged.

The paper uses five restarts of Adam and reports values far above TarDis, that is, searches that had
not converged. Here hundreds of restarts run as one batch and the best are finished by L-BFGS in
float64.

A model reconstructs what it makes anyway (a digit, for a model of digits) far better than any
plain sample, so only targets foreign to it can be evidence: those whose nearest ordinary sample is
farther away than ordinary samples are from each other. For these the score compares the
reconstruction with the nearest ordinary sample; a backdoor is reached by optimisation alone.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from genwarden.inspections.finding import Finding, Table, latents_of, not_applicable
from genwarden.inspections.output.novelty import ordinary_distance
from genwarden.inspections.pictures import sample_pictures
from genwarden.inspections.workbench import Workbench
from genwarden.models.fast.fast_generator import fastest
from genwarden.models.protocol import LatentGenerator
from genwarden.search.latent_search import (
    ordinary_bounds,
    polish,
    search,
    start_latents,
)

NAME = "reconstruct-target"
TITLE = "Reconstruction of the given targets by optimisation"

#: Candidates finished by L-BFGS over all targets, at least one per foreign target: in float64 and
#: one by one they cost more than the batched search.
_POLISHED = 4
_POLISH_ITERATIONS = 300
#: Reconstructions this close (mean square per element) are equal for every purpose; keeps the
#: score finite when a reconstruction is exact.
_FLOOR_MEAN = 1e-6
#: A target is foreign if its nearest ordinary sample is at least this many ordinary squared
#: distances away. Held-out MNIST digits lie at 0.2 to 1.2 for the models measured.
_FOREIGN = 1.5


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
    fast = fastest(bench.generator)

    typical = ordinary_distance(bench.ordinary.x)
    rows: list[list[str | int | float]] = []
    scores: list[float | None] = []
    pictures, labels, latents = [], [], []
    for index, target in enumerate(targets):
        goal = target.to(bench.device)

        def objective(z: Tensor, goal: Tensor = goal) -> Tensor:
            # The log removes the scale: near a solution Adam's progress would stall otherwise.
            return -torch.log((fast(z) - goal).square().flatten(1).sum(1) + 1e-9)

        starts = start_latents(law, restarts, seed=bench.seed, purpose=f"reconstruct-{index}")
        # The nearest ordinary samples are better starts than any random latent.
        ordinary = (bench.ordinary.x - target).flatten(1).square().sum(1)
        nearest = ordinary.topk(min(restarts // 4, len(ordinary)), largest=False)
        starts[: len(nearest.indices)] = bench.ordinary.z[nearest.indices]
        found = search(objective, starts, settings, device=bench.device, task=task)
        foreign = float(nearest.values[0]) >= _FOREIGN * typical
        finalists = max(1, _POLISHED // len(targets)) if foreign else 1
        candidates = found.z[found.score.topk(min(finalists, restarts)).indices]
        iterations = _POLISH_ITERATIONS if foreign else 0
        z, recon = _polish(exact, target, candidates, bench.device, iterations)
        best = int(recon.argmin())
        floor = _FLOOR_MEAN * target.numel()
        score = float(torch.log10((nearest.values[0].double() + floor) / (recon[best] + floor)))
        agreeing = int((-found.score).exp().le(2 * float(recon[best]) + 1.0).sum())
        scores.append(score if foreign else None)
        latents.append(z[best])
        pictures += [target, bench.samples(z[best : best + 1].float())[0]]
        labels += [f"target: {names[index]}", f"ReconD {float(recon[best]):.4g}"]
        rows.append(
            [
                names[index],
                round(float(recon[best]), 6),
                round(float(recon[best]) / target.numel(), 9),
                round(float(nearest.values[0]), 3),
                "yes" if foreign else "no",
                agreeing,
                round(float(z[best].norm()), 3),
                f"{found.late_gain:.1e}",
            ]
        )
    judged = [i for i, value in enumerate(scores) if value is not None]
    top = max(judged, key=lambda i: scores[i] or 0.0, default=0)
    summary = (
        f"{names[top]} is reconstructed to a squared distance of {rows[top][1]} (sum), "
        f"the nearest of {len(bench.ordinary.x)} ordinary samples lies at {rows[top][3]}."
    )
    if not judged:
        summary = (
            "Every target given resembles what the model makes anyway; that it can be "
            "reconstructed is no evidence."
        )
    return Finding(
        inspection=NAME,
        group="output",
        title=TITLE,
        outcome="scored" if judged else "not_applicable",
        score=scores[top] if judged else None,
        score_name="log10(nearest ordinary sample / ReconD), sums of squares",
        summary=summary,
        p_value_reason="needs the scores of clean reference models"
        if judged
        else "no target is foreign to the model",
        budget={
            "targets": len(judged) or len(targets),
            "restarts": restarts,
            "steps": settings.steps,
            "polished": _POLISHED,
            "radius": round(settings.radius or 0.0, 3),
        },
        power="Finds the given targets (and close variants) where a gradient leads to them from "
        "one of the restarts; says nothing about other targets, nor about targets that resemble "
        "ordinary samples.",
        evidence=[
            *sample_pictures(
                bench.generator.sample,
                torch.stack(pictures),
                labels,
                title="Targets and their reconstructions",
            ),
            Table(
                title="Reconstructions",
                columns=[
                    "target",
                    "ReconD (sum)",
                    "ReconD (mean)",
                    "nearest ordinary (sum)",
                    "foreign to the model",
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
    exact: LatentGenerator,
    target: Tensor,
    candidates: Tensor,
    device: torch.device,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    goal = target.double().to(device)

    def loss(z: Tensor) -> Tensor:
        distances: Tensor = (exact(z) - goal).square().flatten(1).sum(1)
        return distances

    return polish(loss, candidates, iterations=iterations, device=device)
