"""What the population study's audit of a suspect hands to a repair.

The study keeps one audit per member, budget and seed (``<audits>/<key>.<budget>.<seed>.json``);
what a stored audit flags is judged anew against the references that this installation ships.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from genwarden.artifacts.model_folder import LoadedModel
from genwarden.auditing import calibration
from genwarden.auditing.document import AuditDocument
from genwarden.auditing.fit import fits
from genwarden.auditing.verdict import Decision, decide
from genwarden.benchmarks.results import read_document
from genwarden.engine.files import sha256_file
from genwarden.errors import GenwardenError
from genwarden.inspections.finding import Latents
from genwarden.repairs.contract import Clues, no_clues

#: Which of a member's audits is read: the first of these budgets that it was audited at.
BUDGETS, SEED = ("standard", "quick"), 0
#: The study shows some clean models a target; repairs get none.
_WITH_TARGET = ("nearest-target", "reconstruct-target")


class Known(NamedTuple):
    """What is known of a suspect before its repair.

    Attributes:
        verdict: of the audit; None where there is none.
        sha256: of the audit's file; "" where there is none.
    """

    clues: Clues
    verdict: str | None
    sha256: str


def known_of(model: LoadedModel, key: str, audits: Path | None) -> Known:
    """The clues in the audit of a member, none where it was not audited.

    Raises:
        GenwardenError: ``benchmark/unreadable``, ``benchmark/other-audit``.
    """
    path = _stored(key, audits)
    if path is None:
        return Known(no_clues(model.generator), None, "")
    document = AuditDocument.model_validate(read_document(path)["document"])
    if document.model is None or document.model.sha256 != model.sha256:
        raise GenwardenError(
            "benchmark/other-audit",
            f"{path.name} is the audit of another model (the sha256 of the weights differs).",
            "Name the audits of these models with --option audits=FOLDER, or leave it away.",
        )
    decision = _judged(document)
    flagged = tuple(j.finding.inspection for j in decision.judged if j.flagged)
    law = model.generator.latent
    values = [candidate.latent for candidate in document.candidates]
    for judged in decision.judged:
        if judged.flagged or judged.finding.follows_from in flagged:
            for evidence in judged.finding.evidence:
                values += evidence.values if isinstance(evidence, Latents) else []
    fitting = list(dict.fromkeys(tuple(v) for v in values if len(v) == law.size))
    latents = torch.tensor(fitting).reshape(len(fitting), *law.shape)
    return Known(Clues(latents, flagged), decision.verdict, sha256_file(path))


def _stored(key: str, audits: Path | None) -> Path | None:
    paths = [audits / f"{key}.{budget}.{SEED}.json" for budget in BUDGETS] if audits else []
    return next((path for path in paths if path.exists()), None)


def _judged(document: AuditDocument) -> Decision:
    """Findings may be older than the shipped references, as in the study's own judging."""
    model, budget = document.model, str(document.budget["name"])
    plain = [
        calibration.uncalibrated(j.finding)
        for j in document.findings
        if j.finding.inspection not in _WITH_TARGET
    ]
    shipped = calibration.shipped()
    unfit = {
        f.inspection
        for f in plain
        if model and not fits(f.inspection, model.architecture, model.sample_shape, shipped)
    }
    findings = [
        calibration.unjudged(f) if f.inspection in unfit else calibration.calibrate(f, budget)
        for f in plain
    ]
    return decide(findings, model.nonfinite if model else {}, unfit)
