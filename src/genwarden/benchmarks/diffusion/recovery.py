"""How near the trigger and target that an audit recovered come to the true ones."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.auditing.document import AuditDocument
from genwarden.backdoors.image_backdoor import ImageBackdoor
from genwarden.inspections.diffusion.attack_family import REFINED_TITLE
from genwarden.inspections.finding import Latents
from genwarden.metrics.target_match import target_match


class Recovery(NamedTuple):
    """How near a recovered trigger comes to the true shift g.

    Attributes:
        error: |found - g| / |g|.
        error_scaled: the smallest of |k found - g| / |g| over positive k: the shape alone.
        cosine: between them.
        distance: |found - g|, as TERD reports it.
    """

    error: float
    error_scaled: float
    cosine: float
    distance: float


def recovery(found: Tensor, truth: Tensor) -> Recovery:
    """Compare two shifts ``(C, H, W)``; a found shift of zero has cosine 0 and error 1."""
    a, b = found.double().flatten(), truth.double().flatten()
    size = float(b.norm())
    lengths = float(a.norm()) * size
    cosine = float(a @ b) / lengths if lengths > 0 else 0.0
    shape = math.sqrt(max(0.0, 1 - cosine**2)) if cosine > 0 else 1.0
    distance = float((a - b).norm())
    return Recovery(distance / size, shape, cosine, distance)


def recovered_of(document: AuditDocument, backdoor: ImageBackdoor) -> dict[str, float] | None:
    """The refined trigger and target of an audit beside the true ones; None without them."""
    for judged in document.findings:
        for shown in judged.finding.evidence:
            if isinstance(shown, Latents) and shown.title == REFINED_TITLE:
                trigger, target = torch.tensor(shown.values, dtype=torch.float64).unflatten(
                    1, backdoor.trigger.g.shape
                )
                match = target_match(target[None], backdoor.targets)
                near = recovery(trigger, backdoor.trigger.g)
                return {**near._asdict(), "target_mse": match.mse}
    return None
