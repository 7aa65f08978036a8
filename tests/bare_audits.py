"""Audit documents with nothing in them but what a test is about."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from genwarden.auditing.document import AuditDocument, Judged, ModelFacts, UserInputs
from genwarden.inspections.diffusion.trigger_search import SHIFTS_TITLE
from genwarden.inspections.finding import Finding, latents_of


def bare_facts(**changes: Any) -> ModelFacts:
    """A diffusion model of 16 pixels; ``changes`` replace fields."""
    facts: dict[str, Any] = {
        "path": "model",
        "sha256": "",
        "architecture": "unet2d",
        "parameters": 1,
        "latent_shape": [1, 16, 16],
        "latent_distribution": "normal",
        "sample_shape": [1, 16, 16],
        "modality": "image",
    }
    return ModelFacts(**(facts | changes))


def bare_audit(**changes: Any) -> AuditDocument:
    """An audit that found nothing out; ``changes`` replace fields."""
    fields: dict[str, Any] = {
        "genwarden_version": "0",
        "verdict": "inconclusive",
        "suspicion": None,
        "alpha": 0.01,
        "reasons": [],
        "model": bare_facts(),
        "inputs": UserInputs(),
        "budget": {"name": "quick"},
        "seed": 0,
        "findings": [],
        "command": "",
        "limits": [],
    }
    return AuditDocument(**(fields | changes))


def shift_found(inspection: str, shift: Tensor) -> Judged:
    """A search for shifts ``(C, H, W)`` that ended at one and was flagged."""
    finding = Finding(
        inspection=inspection,
        group="diffusion",
        title="",
        outcome="scored",
        summary="",
        evidence=[latents_of(shift[None], title=SHIFTS_TITLE)],
    )
    return Judged(finding=finding, adjusted_p=0.0, flagged=True)
