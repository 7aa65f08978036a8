"""Clues: what a repair may use of an audit."""

from __future__ import annotations

import torch

from genwarden.auditing.document import AuditDocument
from genwarden.inspections.finding import Latents
from genwarden.models.protocol import LatentLaw
from genwarden.repairs.contract import Clues

#: More latents than this are not taken from one audit.
_MOST_LATENTS = 64


def clues_of(document: AuditDocument, law: LatentLaw) -> Clues:
    """Candidates and latents of flagged findings, and of findings that follow from them.

    Latents of another length than the model's are passed over: an audit file is untrusted.
    """
    rows = [candidate.latent for candidate in document.candidates]
    flagged = [j.finding.inspection for j in document.findings if j.flagged]
    for judged in document.findings:
        finding = judged.finding
        if judged.flagged or finding.follows_from in flagged:
            for evidence in finding.evidence:
                if isinstance(evidence, Latents):
                    rows += evidence.values
    # A candidate is usually the latent of a finding too.
    different = dict.fromkeys(tuple(row) for row in rows if len(row) == law.size)
    fitting = list(different)[:_MOST_LATENTS]
    latents = torch.tensor(fitting, dtype=torch.float32).reshape(-1, *law.shape)
    finite = latents.flatten(1).isfinite().all(1)
    return Clues(latents[finite], tuple(flagged))
