"""Repairs with two teachers: the suspect on ordinary latents, a twin where nobody samples.

A twin (:mod:`genwarden.inspections.twins`) knows the suspect's ordinary samples and nothing else,
so what it makes of any latent is what an honest model of this kind would. It is a poorer model,
though, and its errors are nothing to learn: where suspect and twin agree as well as they do on
ordinary latents, there is nothing to forget, and the suspect's own sample is wanted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, POSITIVE, SHARE, Range
from genwarden.inspections.twins import Twin
from genwarden.models.protocol import LatentGenerator
from genwarden.repairs.contract import Repaired, RepairRun
from genwarden.repairs.distilling import Batch, DistillingSettings, distil, squared_distance
from genwarden.repairs.kept_twin import kept_twins

_COMPARED = 512
_BLOCK = 128


@dataclass(frozen=True)
class TwoTeacherSettings(DistillingSettings):
    """How much the twin's lessons count.

    Attributes:
        weight: weight of the term outside ordinary sampling; it has half a batch per step.
        twin_steps: distillation steps of the twin.
        agreement: suspect and twin agree at a latent if they differ by no more than they do at this
            share of ordinary latents; 0 wants the twin's sample practically everywhere.
    """

    weight: float = 0.2
    twin_steps: int = 500
    agreement: float = 0.99

    RANGES: ClassVar[Mapping[str, Range]] = {
        "weight": POSITIVE,
        "twin_steps": COUNT,
        "agreement": SHARE,
    }


class SecondTeacher:
    """What is wanted outside ordinary sampling.

    Args:
        twin: a copy that knows the suspect's ordinary samples only.
        agreement: as in the settings.
        z: ordinary latents from which the twin's usual error is taken.
    """

    def __init__(self, suspect: LatentGenerator, twin: Twin, agreement: float, z: Tensor) -> None:
        self.suspect, self.twin = suspect, twin
        self.usual = float(self.disagreement(z).quantile(agreement))

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """Samples for latents ``(batch, *latent.shape)``."""
        own, expected = self.suspect(z), self.twin.generator(z)
        agree = _squared(own, expected) <= self.usual
        return torch.where(agree.view(-1, *[1] * (own.ndim - 1)), own, expected)

    @torch.no_grad()
    def disagreement(self, z: Tensor) -> Tensor:
        """Squared difference between suspect and twin, ``(batch,)``, sum over a sample."""
        expected = self.twin.generator
        return torch.cat([_squared(self.suspect(p), expected(p)) for p in z.split(_BLOCK)])


def second_teacher(
    suspect: LatentGenerator, settings: TwoTeacherSettings, run: RepairRun
) -> SecondTeacher:
    """The suspect's second teacher; its twin is kept beside the run's checkpoint.

    An unfair twin is told of, not refused: its usual error is large, so that little is forgotten,
    and the audit of the result shows whether it was enough.
    """
    (twin,) = kept_twins(suspect, settings.twin_steps, count=1, seed=settings.seed, run=run)
    if not twin.fair:
        run.progress.message(
            f"The twin imitates the model poorly (loss {twin.loss:.2f}): little will be forgotten. "
            f"Distil it longer: --option twin_steps={4 * settings.twin_steps}"
        )
    stream = random_stream(settings.seed, "repair-agreement")
    z = suspect.latent.sample(_COMPARED, generator=stream)
    device = next(suspect.parameters()).device
    return SecondTeacher(suspect, twin, settings.agreement, z.to(device))


def distil_from_two(
    suspect: LatentGenerator,
    teacher: SecondTeacher,
    elsewhere: Callable[[int, torch.Generator], Tensor],
    settings: TwoTeacherSettings,
    run: RepairRun,
) -> Repaired:
    """Train a copy: the suspect's samples on ordinary latents, the teacher's ``elsewhere``.

    Normalisations keep their statistics (gamma and beta train), so that unusual latents in the
    batch do not shift ordinary ones.

    Args:
        elsewhere: latents ``(count, *latent.shape)`` for a count and a stream.
    """
    device = next(suspect.parameters()).device
    student = copy.deepcopy(suspect).eval().requires_grad_(True)
    count = max(1, settings.batch_size // 2)

    def loss_of_step(step: int) -> Tensor:
        batch = Batch(suspect, settings, step)
        z = elsewhere(count, random_stream(settings.seed, "repair-elsewhere", step)).to(device)
        x = student(torch.cat([batch.z, z]))
        loss = squared_distance(x[: len(batch.z)], batch.x)
        return loss + settings.weight * squared_distance(x[len(batch.z) :], teacher(z))

    def distance() -> float:
        stream = random_stream(settings.seed, "repair-elsewhere-evaluation")
        return _distance(student, teacher, elsewhere(_COMPARED, stream).to(device))

    before = distance()
    history = distil(student, suspect, loss_of_step, settings, run)
    changes: dict[str, Any] = {
        "steps": settings.steps,
        "weight": settings.weight,
        "twin_steps": settings.twin_steps,
        "twin_loss": round(teacher.twin.loss, 5),
        "twin_is_fair": teacher.twin.fair,
        "twin_usual_error_sum": teacher.usual,
        "elsewhere_before_sum": before,
        "elsewhere_after_sum": distance(),
        "expdis_sum": history[-1]["expdis_sum"],
    }
    return Repaired(student, changes, history)


@torch.no_grad()
def _distance(student: LatentGenerator, teacher: SecondTeacher, z: Tensor) -> float:
    """Mean squared distance of a student from what is wanted (sum over a sample)."""
    return float(torch.cat([_squared(student(p), teacher(p)) for p in z.split(_BLOCK)]).mean())


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """Sum of squares over a sample, ``(batch,)``."""
    return (x - y).square().flatten(1).sum(1)
