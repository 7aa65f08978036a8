"""What the population study's audit of a suspect hands to a repair.

The study keeps one audit per member, budget and seed (``<audits>/<key>.<budget>.<seed>.json``);
what a stored audit flags is judged anew against the references that this installation ships.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from genwarden.artifacts.model_folder import LoadedModel
from genwarden.auditing.document import AuditDocument
from genwarden.auditing.judging import judge
from genwarden.benchmarks.population.judging import without_target
from genwarden.benchmarks.results import read_document
from genwarden.engine.files import sha256_file
from genwarden.errors import GenwardenError
from genwarden.repairs.clues import clues_of
from genwarden.repairs.contract import Clues, no_clues

#: Which of a member's audits is read: the first of these budgets that it was audited at.
BUDGETS, SEED = ("standard", "quick"), 0


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
    # Findings may be older than the shipped references: judged anew, as in the study.
    decision = judge(
        without_target(document),
        document.model.architecture,
        document.model.sample_shape,
        budget=str(document.budget["name"]),
        nonfinite=document.model.nonfinite,
    )
    judged = document.model_copy(update={"findings": decision.judged})
    clues = clues_of(judged, model.generator.latent)
    return Known(clues, decision.verdict, sha256_file(path))


def _stored(key: str, audits: Path | None) -> Path | None:
    paths = [audits / f"{key}.{budget}.{SEED}.json" for budget in BUDGETS] if audits else []
    return next((path for path in paths if path.exists()), None)
