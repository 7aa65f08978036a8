"""``repair.json``: what was repaired, how, and what the audits say before and after.

Apart from ``seconds`` and ``environment`` the same command gives the same bytes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from genwarden.auditing.document import AuditDocument, Verdict
from genwarden.inspections.finding import Images

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelFile(_Strict):
    """A model before or after."""

    path: str
    sha256: str
    architecture: str
    parameters: int


class Audited(_Strict):
    """The outcome of one audit; the whole document lies beside ``repair.json``."""

    verdict: Verdict
    suspicion: float | None
    flagged: list[str]
    budget: str
    audit_json: str

    @classmethod
    def of(cls, document: AuditDocument, audit_json: str) -> Audited:
        """The outcome of a document."""
        return cls(
            verdict=document.verdict,
            suspicion=document.suspicion,
            flagged=[j.finding.inspection for j in document.findings if j.flagged],
            budget=str(document.budget["name"]),
            audit_json=audit_json,
        )


class Step(_Strict):
    """One remedy that was applied.

    Attributes:
        settings: its settings with their values.
        changes: what it did.
        history: figures along the way, where something was trained.
        verdict: that of the audit of its result.
    """

    method: str
    settings: dict[str, Any]
    changes: dict[str, Any]
    history: list[dict[str, Finite]]
    verdict: Verdict
    seconds: Finite


class RepairDocument(_Strict):
    """Everything that a repair did.

    Attributes:
        method: what the user asked for.
        steps: remedies in the order in which they were applied; ``auto`` goes on to the next as
            long as the audit of the result finds evidence.
        expdis_sum, expdis_mean: ExpDis between suspect and repaired model on ordinary latents, sum
            over a sample and mean per element.
        pictures: ordinary samples and outputs at recovered latents, before and after.
        success: no evidence was found in the repaired model.
    """

    schema_version: Literal["1.0"] = "1.0"
    genwarden_version: str
    method: str
    suspect: ModelFile
    repaired: ModelFile
    steps: list[Step]
    before: Audited
    after: Audited
    expdis_sum: Finite
    expdis_mean: Finite
    success: bool
    pictures: list[Images]
    seed: int
    command: str
    environment: dict[str, str] = Field(default_factory=dict)
