"""Clues: what a repair may use of the audit of a diffusion model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genwarden.auditing.document import AuditDocument, Judged
from genwarden.inspections.compression import differential_trigger_search
from genwarden.inspections.diffusion import attack_family, trigger_search
from genwarden.inspections.finding import Finding, Latents
from genwarden.models.protocol import SampleSpec
from genwarden.repairs.diffusion.contract import DiffusionClues

#: More shifts than this are not taken from one audit.
_MOST_SHIFTS = 16
#: Nobody's trigger is larger than this per pixel; an edited file may hold anything.
_LARGEST = 1e3


def diffusion_clues_of(document: AuditDocument, spec: SampleSpec) -> DiffusionClues:
    """Refined trigger and target, and the shifts of the trigger search, flagged or not.

    They are a description of the strongest answer, whatever the verdict; unlearning a shift that
    means nothing changes little. Rows of another length than the model's samples, or with absurd
    numbers, are passed over: an audit file is untrusted.
    """
    found = _by_inspection(document.findings)
    pair = _rows(found.get(attack_family.NAME), attack_family.REFINED_TITLE, spec)
    shifts = _rows(found.get(trigger_search.NAME), trigger_search.SHIFTS_TITLE, spec)
    whole = len(pair) == 2  # trigger and target
    return DiffusionClues(
        trigger=pair[0] if whole else None,
        target=pair[1].clamp(-1, 1) if whole else None,
        shifts=shifts[:_MOST_SHIFTS],
        flagged=tuple(j.finding.inspection for j in document.findings if j.flagged),
    )


def shifts_under(document: AuditDocument, compression: str, spec: SampleSpec) -> Tensor:
    """The shifts that were recovered under a compression, flagged or not, ``(k, C, H, W)``."""
    under = [j for v in document.variants if v.name == compression for j in v.findings]
    named = _by_inspection(under).get(differential_trigger_search.NAME)
    return _rows(named, trigger_search.SHIFTS_TITLE, spec)[:_MOST_SHIFTS]


def _by_inspection(judged: list[Judged]) -> dict[str, Finding]:
    return {one.finding.inspection: one.finding for one in judged}


def _rows(finding: Finding | None, title: str, spec: SampleSpec) -> Tensor:
    """The fitting rows of an evidence by its title, ``(k, C, H, W)``."""
    rows: list[list[float]] = []
    for evidence in finding.evidence if finding else []:
        if isinstance(evidence, Latents) and evidence.title == title:
            rows += [row for row in evidence.values if sound(row, math.prod(spec.shape))]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, *spec.shape)


def sound(row: list[float], size: int) -> bool:
    """Whether numbers of an audit, which may have been edited, are ``size`` believable ones."""
    return len(row) == size and all(math.isfinite(v) and abs(v) <= _LARGEST for v in row)
