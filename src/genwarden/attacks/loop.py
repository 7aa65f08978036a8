"""The optimisation that ReD and ReX share: Adam on Eq. 4, stopping rule, resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from genwarden.engine.checkpoint import Trainable, load_checkpoint, save_checkpoint
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator

_FORWARD_BATCH = 256


@dataclass(frozen=True)
class AttackSettings:
    """How an attack is trained.

    The paper trains with Adam at 1e-4 and batches of 32 for an unstated number of iterations; the
    defaults here reach its figures sooner: a larger step that decays to zero along a cosine.

    Attributes:
        steps: optimiser steps.
        batch_size: ordinary latents per step in the stealth term.
        learning_rate: Adam's at the start; it falls to zero along a half cosine.
        fidelity_weight: lambda of Eq. 4.
        stealth_on: compare outputs before or after the last activation in the stealth term.
        pool_samples: ordinary latents whose benign outputs are computed once and reused; the
            stealth term draws its batches from them.
        seed: run seed.
        evaluate_every: steps between two evaluations (TarDis, ExpDis) and checkpoints.
        stop_tardis_sum: stopping rule, together with ``stop_expdis_sum``: stop at an evaluation
            where all limits above 0 are reached. With both at 0 all steps are trained.
        stop_expdis_sum: see above.
    """

    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 5e-4
    fidelity_weight: float = 1.0
    stealth_on: Literal["pre", "post"] = "post"
    pool_samples: int = 32768
    seed: int = 0
    evaluate_every: int = 100
    stop_tardis_sum: float = 0.0
    stop_expdis_sum: float = 0.0


class Evaluation(NamedTuple):
    """Figures of one evaluation: sums of squares per sample."""

    tardis_sum: float
    expdis_sum: float


def optimise(
    network: nn.Module,
    loss_of_step: Callable[[int], Tensor],
    evaluate: Callable[[], Evaluation],
    settings: AttackSettings,
    *,
    work: Path | None,
    run_id: str,
    progress: Progress,
) -> list[dict[str, float]]:
    """Train ``network`` in place and return the history of evaluations.

    Args:
        loss_of_step: Eq. 4 for a given step number; all randomness must follow from that number.
        work: folder of the checkpoint, or None to keep none.
        run_id: identity of the run; a checkpoint of another run is refused.
    """
    trainable = [p for p in network.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trainable, settings.learning_rate)
    parts: dict[str, Trainable] = {"network": network, "adam": adam}
    checkpoint = work / "attack.safetensors" if work else None
    restored = load_checkpoint(checkpoint, run_id=run_id, parts=parts) if checkpoint else None
    start = restored.step if restored else 0
    history: list[dict[str, float]] = restored.record["history"] if restored else []
    bar = progress.task("attack", settings.steps, start)
    note = ""
    if restored and _reached(history[-1], settings):
        return history  # interrupted between the last evaluation and the writing of the model
    for step in range(start, settings.steps):
        for group in adam.param_groups:
            group["lr"] = settings.learning_rate * _cosine(step / settings.steps)
        adam.zero_grad(set_to_none=True)
        loss_of_step(step).backward()
        adam.step()
        done = step + 1
        if done % settings.evaluate_every == 0 or done == settings.steps:
            figures = evaluate()
            if not all(math.isfinite(figure) for figure in figures):
                raise GenwardenError(
                    "attack/diverged",
                    f"The training diverged before step {done} (TarDis or ExpDis is not finite).",
                    "Repeat with a smaller --learning-rate or --lambda and --restart.",
                )
            history.append({"step": done, **figures._asdict()})
            note = f"TarDis {figures.tardis_sum:.4f}  ExpDis {figures.expdis_sum:.4f}"
            if checkpoint and done < settings.steps:
                save_checkpoint(
                    checkpoint, run_id=run_id, step=done, parts=parts, record={"history": history}
                )
            if _reached(history[-1], settings):
                bar.advance(settings.steps - step, note)
                break
        bar.advance(1, note)
    return history


def _cosine(fraction: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * fraction))


def _reached(figures: Mapping[str, float], settings: AttackSettings) -> bool:
    limits = {"tardis_sum": settings.stop_tardis_sum, "expdis_sum": settings.stop_expdis_sum}
    given = {name: limit for name, limit in limits.items() if limit > 0}
    return bool(given) and all(figures[name] <= limit for name, limit in given.items())


class Pool(NamedTuple):
    """Ordinary latents and the benign model's outputs before the last activation."""

    z: Tensor
    pre: Tensor

    def batch(self, step: int, settings: AttackSettings) -> Pool:
        """The batch of one step, from (seed, step) alone."""
        stream = random_stream(settings.seed, "attack-batch", step)
        chosen = torch.randint(len(self.z), (settings.batch_size,), generator=stream)
        chosen = chosen.to(self.z.device)
        return Pool(self.z[chosen], self.pre[chosen])


@torch.no_grad()
def ordinary_pool(
    generator: LatentGenerator, count: int, seed: int, purpose: str, device: torch.device
) -> Pool:
    """Draw ``count`` ordinary latents and run the benign model on them once."""
    z = generator.latent.sample(count, generator=random_stream(seed, purpose)).to(device)
    return Pool(z, torch.cat([generator.pre_activation(part) for part in z.split(_FORWARD_BATCH)]))


def mean_square(difference: Tensor) -> Tensor:
    """Mean of squares over all elements (footnote 5: so that lambda is free of dimensions)."""
    return difference.square().mean()
