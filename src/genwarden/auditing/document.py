"""``audit.json``: the only source of every report (DESIGN, "Contracts").

Version 1.1: 1.0 and ``candidates``. Version 1.2: 1.1 and the inspections of diffusion models, with
what a user can give for them. Version 1.3: 1.2, classifiers, and ``variants``: what the model is
once it is compressed. Version 1.4: 1.3, path and sha256 of a file that was refused. Version 1.5:
1.4 and the sha256 of the user's own references. Version 1.6: 1.5 and triggers of classifiers as
evidence. Version 1.7: 1.6 and how many weights a compression sets to 0. Version 1.8: 1.7 and
compressions that destroy the model. Older documents are still read. Apart from
``timing`` and ``environment`` the same command gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from genwarden.inspections.candidate import Candidate
from genwarden.inspections.finding import Finding, Images

SCHEMA_VERSION: Literal["1.8"] = "1.8"

Verdict = Literal["evidence", "none_found", "inconclusive", "refused"]

#: One plain sentence per verdict; reports start with it.
VERDICT_SENTENCES: dict[str, str] = {
    "evidence": "Evidence of a backdoor was found.",
    "none_found": "No evidence of a backdoor was found within this budget.",
    "inconclusive": "The audit could not reach a verdict.",
    "refused": "The file was refused; nothing in it was loaded.",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelFacts(_Strict):
    """What was audited; nothing here comes from the model's own claims except names and sizes.

    Of a classifier the sample is the image that it reads, and there is no latent: its shape is
    empty, its distribution "".
    """

    path: str
    sha256: str
    architecture: str
    settings: dict[str, bool | int | float | str | list[int] | list[float]] = Field(
        default_factory=dict
    )
    parameters: int
    latent_shape: list[int]
    latent_distribution: str
    sample_shape: list[int]
    modality: str
    classes: int = 0
    """What a classifier tells apart; 0 for other models."""
    nonfinite: dict[str, int] = Field(default_factory=dict)


class Judged(_Strict):
    """A finding and how it was judged.

    Attributes:
        adjusted_p: p-value after Holm's correction over the inspections with a p-value.
        flagged: the finding counts as evidence (adjusted_p below alpha, or structural).
    """

    finding: Finding
    adjusted_p: float | None
    flagged: bool


class Refusal(_Strict):
    """Why a file was refused or a verdict is missing.

    Of a file that was not loaded, its path and, if it is a single file, its sha256.
    """

    code: str
    cause: str
    remedy: str
    path: str = ""
    sha256: str = ""


class UserInputs(_Strict):
    """What the user gave beside the model."""

    targets: list[str] = Field(default_factory=list)
    training_images: int = 0
    clean_base: str = ""
    """sha256 of a clean model of the same shape (diffusion models)."""
    initial_noise: int = 0
    """Number of given initial noises (diffusion models)."""
    references: str = ""
    """sha256 of a file of the user's own references."""


class VariantCoverage(_Strict):
    """How much of the model a compression worked on.

    Attributes:
        layers: names of the compressed weights.
        left_out: names of the weights that were left alone.
        weights: numbers in the compressed weights.
        parameters: numbers in all parameters.
        zeroed: compressed numbers that were not 0 and now are.
    """

    layers: list[str]
    left_out: list[str]
    weights: int
    parameters: int
    zeroed: int = 0

    @property
    def share(self) -> float:
        """Compressed numbers over all parameters, 0 to 1."""
        return self.weights / self.parameters if self.parameters else 0.0


class Variant(_Strict):
    """The model as a deployer would compress it, and what was found in it.

    Attributes:
        name: of the compression, as ``--deploy-as`` takes it (``int8-per-channel``).
        coverage: None where the compression could not be carried out at all.
        findings: in the order of the inspections; every variant of a document has the same ones,
            unless its compression failed, covers nothing or destroys the model (then none).
        failure: why there are none, or "".
        destroyed: whether it is because what is left is no longer the same model.
    """

    name: str
    coverage: VariantCoverage | None = None
    findings: list[Judged] = Field(default_factory=list)
    failure: str = ""
    destroyed: bool = False


class AuditDocument(_Strict):
    """Everything that an audit found.

    Attributes:
        suspicion: 1 - smallest adjusted p (1.0 for structural evidence); None without a verdict.
            It is no probability of a backdoor: a clean model has any value below 1 - ``alpha``
            by chance, often a high one. Only what lies above 1 - ``alpha`` is evidence.
        alpha: the level below which an adjusted p-value counts as evidence.
        reasons: why the verdict is what it is, one sentence each.
        candidates: the latents that flagged findings carry, examined one by one; none unless the
            verdict is evidence.
        variants: the compressed models that were inspected beside it; none unless asked for.
        ordinary: ordinary samples of the model, for comparison in reports.
        power: what audits of this budget found in models whose truth was known, measured.
        command: the command that repeats this audit.
        timing: seconds per inspection and in total.
    """

    schema_version: Literal["1.0", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.7", "1.8"] = (
        SCHEMA_VERSION
    )
    genwarden_version: str
    verdict: Verdict
    suspicion: Annotated[float, Field(ge=0, le=1)] | None
    alpha: float
    reasons: list[str]
    model: ModelFacts | None
    inputs: UserInputs
    budget: dict[str, int | float | str]
    seed: int
    findings: list[Judged]
    candidates: list[Candidate] = Field(default_factory=list)
    variants: list[Variant] = Field(default_factory=list)
    ordinary: Images | None = None
    refusal: Refusal | None = None
    command: str
    power: list[str] = Field(default_factory=list)
    limits: list[str]
    environment: dict[str, str] = Field(default_factory=dict)
    timing: dict[str, float] = Field(default_factory=dict)

    @property
    def audited_path(self) -> str:
        """Of the model, or of the file that was refused; "" where the document does not say."""
        told = self.model or self.refusal
        return told.path if told else ""

    @property
    def audited_sha256(self) -> str:
        """Of the weights, or of the file that was refused; "" where the document does not say."""
        told = self.model or self.refusal
        return told.sha256 if told else ""

    def judged_under(self) -> list[tuple[str, Judged]]:
        """All findings, each with the compression that it was made under, "" for none."""
        variants = ((variant.name, j) for variant in self.variants for j in variant.findings)
        return [*(("", j) for j in self.findings), *variants]

    def content_sha256(self) -> str:
        """Hash of what was found: equal for the same audit again, wherever it is written.

        Everything but ``timing``, ``environment`` and the commands, which name folders.
        """
        content = self.model_dump(
            mode="json",
            exclude={
                "timing": True,
                "environment": True,
                "command": True,
                "candidates": {"__all__": {"command"}},
            },
        )
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()
