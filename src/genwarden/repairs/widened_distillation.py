"""Widened distillation: self-distillation under a prior that is wider than the model's own.

What ordinary sampling never visits is where a backdoor survives every training on ordinary
samples. So in every step, beside ordinary latents that keep the suspect's samples, latents of a
widened prior (shells of other radii, latents with blocks of zeros, long components along the
directions that the weights are most sensitive to) learn what a twin makes there, a model that knows
ordinary samples only (reference, section 17.13). No clues are needed.

A trigger lies mostly in the span of those directions, seldom along one of them (measured on the
shipped models: cosine 0.95, 0.99 and 0.61 with the span of eight). So many random latents of the
span are tried once, and components are lengthened along those where suspect and twin differ most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, Range
from genwarden.inspections.principal import principal_directions, principal_latents
from genwarden.models.protocol import LatentGenerator, LatentLaw
from genwarden.repairs.contract import Clues, Repaired, RepairRun
from genwarden.repairs.latent_regions import around, shells, zero_blocks
from genwarden.repairs.second_teacher import (
    SecondTeacher,
    TwoTeacherSettings,
    distil_from_two,
    second_teacher,
)

_KEPT_ONE_IN = 32


@dataclass(frozen=True)
class WidenedSettings(TwoTeacherSettings):
    """How wide the prior is.

    Attributes:
        directions: principal directions of the latent whose span is searched.
        candidates: random latents of that span, of which one in 32 is kept.
        farthest: radius of the outermost shell, in typical norms of a latent.
    """

    directions: int = 8
    candidates: int = 8192
    farthest: float = 10.0

    RANGES: ClassVar[Mapping[str, Range]] = {
        "directions": COUNT,
        "candidates": COUNT,
        "farthest": Range(above=1.1, at_most=1e4),
    }


def distil_widened(
    suspect: LatentGenerator, clues: Clues, settings: WidenedSettings, run: RepairRun
) -> Repaired:
    """Distil a copy that keeps ordinary samples and forgets all other latents; no clues needed."""
    del clues
    law = suspect.latent
    teacher = second_teacher(suspect, settings, run)
    directions = principal_directions(suspect, seed=settings.seed)[: settings.directions]
    points = torch.cat(
        [principal_latents(directions, law), suspicious(teacher, directions, settings)]
    )

    def elsewhere(count: int, stream: torch.Generator) -> Tensor:
        return widened(law, points, count, settings.farthest, stream)

    repaired = distil_from_two(suspect, teacher, elsewhere, settings, run)
    repaired.changes["directions"] = len(directions)
    repaired.changes["farthest_typical_norms"] = settings.farthest
    return repaired


def suspicious(teacher: SecondTeacher, directions: Tensor, settings: WidenedSettings) -> Tensor:
    """Latents of typical norm in the span where suspect and twin differ most.

    Args:
        directions: orthonormal, ``(directions, latent elements)``.
    """
    law = teacher.suspect.latent
    stream = random_stream(settings.seed, "repair-candidates")
    mixture = torch.randn(settings.candidates, len(directions), generator=stream)
    mixture /= mixture.norm(dim=1, keepdim=True)
    z = mixture @ directions * law.typical_norm
    if law.distribution == "uniform":
        z = z.clamp(-1, 1)
    z = z.reshape(-1, *law.shape)
    difference = teacher.disagreement(z.to(next(teacher.suspect.parameters()).device)).cpu()
    kept = max(1, settings.candidates // _KEPT_ONE_IN)
    return z[difference.argsort(descending=True, stable=True)[:kept]]


def widened(
    law: LatentLaw, points: Tensor, count: int, farthest: float, stream: torch.Generator
) -> Tensor:
    """Half long components, a quarter each shells and blocks of zeros, ``(count, *law.shape)``.

    Long components have the largest part, since there are many directions to meet.

    Args:
        points: latents along which components are lengthened, ``(points, *law.shape)``.
    """
    quarter = count // 4
    return torch.cat(
        [
            shells(law, quarter, farthest, stream),
            zero_blocks(law, quarter, stream),
            around(law, points, count - 2 * quarter, stream),
        ]
    )
