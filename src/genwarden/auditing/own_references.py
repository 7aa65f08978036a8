"""Clean models of the user's own as references: what audits scored in them, and a table of that.

The shipped references stand for small networks of a few image sizes
(:mod:`genwarden.auditing.fit`). Who has clean models like the suspect, trained by themselves or
trusted for another reason, audits those with ``genwarden calibrate`` and judges the suspect against
them. Nothing checks that they are clean: the user vouches for it, and the report says so.

The file names each model by its hash, so that no model is judged by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from genwarden import __version__
from genwarden.artifacts.json_object import load_json
from genwarden.artifacts.read_once import read_once
from genwarden.auditing.budgets import classifier_budget
from genwarden.auditing.calibration import (
    MIN_REFERENCES,
    against_clean,
    needs_population,
    reference_key,
)
from genwarden.auditing.document import AuditDocument, Judged
from genwarden.auditing.fit import classifier_family, condition_of
from genwarden.auditing.verdict import ALPHA
from genwarden.engine.files import write_json
from genwarden.errors import GenwardenError
from genwarden.inspections.multiple_tests import holm

FILE_NAME = "references.json"
#: Far above what thousands of models need; a larger file is not read.
_MAX_BYTES = 50_000_000
_MAX_VALUES = 1_000_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Score(_Strict):
    """One score of a clean model.

    Attributes:
        condition: under which the model was inspected
            (:func:`genwarden.auditing.calibration.references`), or "".
    """

    inspection: str
    condition: str
    score: FiniteFloat


class ReferenceModel(_Strict):
    """What an audit scored in one clean model.

    Attributes:
        family: its architecture, as :func:`genwarden.auditing.fit.fits` has it.
    """

    name: str
    sha256: str
    family: str
    sample_shape: list[int]
    scores: list[Score]


class OwnReferences(_Strict):
    """A file of references: one budget, one version of the inspections.

    Attributes:
        genwarden: version whose inspections scored.
        budget: quick, standard or thorough.
    """

    format: Literal["genwarden-references-1"] = "genwarden-references-1"
    genwarden: str
    budget: Literal["quick", "standard", "thorough"]
    models: list[ReferenceModel] = Field(default_factory=list)


@dataclass(frozen=True)
class Suspected:
    """What decides which references suit a model: its hash, its family and its sample shape."""

    sha256: str
    family: str
    sample_shape: Sequence[int]


def reference_of(name: str, document: AuditDocument) -> ReferenceModel:
    """What a finished audit scored, as a reference.

    Args:
        name: what the user calls the model.

    Raises:
        GenwardenError: ``calibrate/no-scores`` if the model was refused, or if nothing in it could
            be scored against references.
    """
    model = document.model
    scores: list[Score] = []
    if model is not None:
        named = [("", document.findings), *((v.name, v.findings) for v in document.variants)]
        scores = [
            Score(
                inspection=j.finding.inspection,
                condition=_condition(document, variant),
                score=j.finding.score,
            )
            for variant, findings in named
            for j in findings
            if _counts(j) and j.finding.score is not None
        ]
    if model is None or not scores:
        raise GenwardenError(
            "calibrate/no-scores",
            f"{name} gave nothing to compare others with: {' '.join(document.reasons)}",
            "Leave this model out.",
        )
    return ReferenceModel(
        name=name,
        sha256=model.sha256,
        family=_family(document),
        sample_shape=model.sample_shape,
        scores=_without_repeats(scores),
    )


def _counts(judged: Judged) -> bool:
    return judged.finding.outcome == "scored" and needs_population(judged.finding.inspection)


def _condition(document: AuditDocument, variant: str) -> str:
    if document.model is not None and document.model.classes:
        wanted = classifier_budget(str(document.budget["name"])).images
        return condition_of(variant, given=document.inputs.training_images, wanted=wanted)
    return variant


def _family(document: AuditDocument) -> str:
    model = document.model
    if model is None:
        return ""
    if model.classes:
        return classifier_family(model.architecture, model.classes)
    return model.architecture


def _without_repeats(scores: Sequence[Score]) -> list[Score]:
    return list({(one.inspection, one.condition): one for one in scores}.values())


def table_of(own: OwnReferences | None, suspect: Suspected) -> dict[str, Any] | None:
    """The reference table for a suspect, of the models that are like it and are not itself.

    As :func:`genwarden.auditing.calibration.read_table` gives it; None without references.
    """
    if own is None:
        return None
    fitting = like(own, suspect)
    scores: dict[str, list[float]] = {}
    for model in fitting:
        for one in model.scores:
            key = reference_key(one.inspection, one.condition)
            scores.setdefault(key, []).append(one.score)
    names = ", ".join(model.name for model in fitting)
    return {
        "descriptions": {own.budget: f"that you gave: {names}"},
        "families": [(suspect.family, tuple(suspect.sample_shape), len(fitting))],
        "scores": {own.budget: scores},
    }


def stated(table: dict[str, Any] | None) -> list[str]:
    """What a report says of a table of the user's own references; nothing without one."""
    if table is None:
        return []
    ((_, _, count),) = table["families"]
    return [
        f"Scores are judged against {count} models that the user calls clean; nobody checked that, "
        "and the rates quoted above were measured with other references."
    ]


def like(own: OwnReferences, suspect: Suspected) -> list[ReferenceModel]:
    """The references of a suspect's family and sample shape, without the suspect itself."""
    return [
        model
        for model in own.models
        if model.family == suspect.family
        and model.sample_shape == list(suspect.sample_shape)
        and model.sha256 != suspect.sha256
    ]


def require_suitable(own: OwnReferences, suspect: Suspected, budget: str, path: Path) -> None:
    """Refuse references that cannot judge a suspect.

    Raises:
        GenwardenError: ``usage/references-unlike`` if too few are like it,
            ``usage/references-budget`` if they were scored at another budget.
    """
    found = like(own, suspect)
    if len(found) < MIN_REFERENCES:
        kinds = Counter((m.family, tuple(m.sample_shape)) for m in own.models)
        listed = "; ".join(
            f"{count} of {family}, {'x'.join(map(str, shape))}"
            for (family, shape), count in kinds.items()
        )
        shape = "x".join(map(str, suspect.sample_shape))
        raise GenwardenError(
            "usage/references-unlike",
            f"{path} has {len(found)} models like this one ({suspect.family}, {shape}) that are "
            f"not this one itself; {MIN_REFERENCES} are needed. It holds: {listed or 'none'}.",
            "Make references of clean models of this architecture and sample shape with "
            "`genwarden calibrate`.",
        )
    if own.budget != budget:
        raise GenwardenError(
            "usage/references-budget",
            f"{path} was made at the {own.budget} budget, this audit is {budget}: a larger search "
            "scores higher.",
            f"Audit with --budget {own.budget}, or calibrate with --budget {budget}.",
        )


def suitable_references(path: Path | None, suspect: Suspected, budget: str) -> OwnReferences | None:
    """The references in a file that the user named; None if there is none.

    Raises:
        GenwardenError: as :func:`read_references` and :func:`require_suitable`.
    """
    if path is None:
        return None
    own = read_references(path)
    require_suitable(own, suspect, budget, path)
    return own


def read_references(path: Path) -> OwnReferences:
    """A file that ``genwarden calibrate`` wrote, or the folder that it is in.

    Raises:
        GenwardenError: ``usage/references-file`` if it is something else or was made by another
            version of genwarden, whose inspections may score otherwise; ``artifact/...`` for what
            is no plain file of modest size.
    """
    path = path / FILE_NAME if path.is_dir() else path
    advice = "Make it with `genwarden calibrate MODEL MODEL ... --out FOLDER`."
    try:
        content = read_once(path, limit_bytes=_MAX_BYTES)
        load_json(content, most_bytes=_MAX_BYTES, most_values=_MAX_VALUES)
        found = OwnReferences.model_validate_json(content)
    except GenwardenError as error:
        if error.code not in {"artifact/not-found", "artifact/unreadable"}:
            raise
        raise GenwardenError("usage/references-file", error.cause, advice) from error
    except ValueError as error:  # pydantic's is one, too
        count = error.error_count() if isinstance(error, ValidationError) else 1
        raise GenwardenError(
            "usage/references-file", f"{path} is no file of references ({count} problems).", advice
        ) from error
    if found.genwarden != __version__:
        raise GenwardenError(
            "usage/references-file",
            f"{path} was made by genwarden {found.genwarden}, this is {__version__}.",
            "Calibrate again: other versions may score otherwise.",
        )
    return found


def write_references(path: Path, models: Sequence[ReferenceModel], budget: str) -> OwnReferences:
    """Write what audits of a budget scored.

    Raises:
        GenwardenError: ``calibrate/same-model`` if one model is there twice: its scores would
            count twice and narrow the spread.
    """
    seen: dict[str, str] = {}
    for model in models:
        if model.sha256 in seen:
            raise GenwardenError(
                "calibrate/same-model",
                f"{seen[model.sha256]} and {model.name} are the same weights.",
                "Give each model once.",
            )
        seen[model.sha256] = model.name
    own = OwnReferences.model_validate(
        {"genwarden": __version__, "budget": budget, "models": list(models)}
    )
    write_json(path, own.model_dump(mode="json"))
    return own


class Crossed(NamedTuple):
    """One reference model judged by the others.

    Attributes:
        smallest: its smallest p-value after Holm's correction; None if too few others are like it.
        inspection: that has it.
    """

    name: str
    smallest: float | None
    inspection: str

    @property
    def flagged(self) -> bool:
        """Whether the others would have called it compromised."""
        return self.smallest is not None and self.smallest < ALPHA


def crossed(own: OwnReferences) -> list[Crossed]:
    """Judge each model by the others: clean models that agree leave none flagged."""
    return [_by_the_others(own, model) for model in own.models]


def _by_the_others(own: OwnReferences, model: ReferenceModel) -> Crossed:
    table = table_of(own, Suspected(model.sha256, model.family, model.sample_shape))
    tested = [
        (one.inspection, found.p_value)
        for one in model.scores
        if (
            found := against_clean(
                one.inspection, one.score, own.budget, table, condition=one.condition
            )
        )
    ]
    if not tested:
        return Crossed(model.name, None, "")
    adjusted = holm([p for _, p in tested])
    smallest = min(range(len(tested)), key=adjusted.__getitem__)
    return Crossed(model.name, adjusted[smallest], tested[smallest][0])
