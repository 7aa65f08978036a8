"""Clean models of the user's own as references: the file, and the table that it gives a suspect.

The shipped references stand for small networks of a few sample shapes
(:mod:`genwarden.auditing.fit`). Who has clean models like the suspect, trained by themselves or
trusted for another reason, audits those with ``genwarden calibrate`` and judges the suspect against
them. Nothing checks that they are clean: the user vouches for it, and the report says so. What can
be seen is whether they agree (:mod:`genwarden.auditing.agreement`).

No model is judged by itself: the file names each by its weights.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from torch import nn

from genwarden import __version__
from genwarden.artifacts.json_object import load_json
from genwarden.artifacts.read_once import read_once
from genwarden.auditing.agreement import standing_out
from genwarden.auditing.budgets import (
    budget,
    classifier_budget,
    compression_budget,
    diffusion_budget,
    diffusion_variant_budget,
)
from genwarden.auditing.calibration import MIN_REFERENCES, on_scale, reference_key
from genwarden.auditing.verdict import ALPHA, Decision
from genwarden.engine.files import json_bytes, sha256_bytes, write_atomic
from genwarden.errors import GenwardenError

Kind = Literal["generator", "diffusion", "classifier"]
FILE_NAME: Final = "references.json"
#: Far above what thousands of models need; a larger file is not read.
_MAX_BYTES = 50_000_000
_MAX_VALUES = 1_000_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Likeness(_Strict):
    """What two models must share for one to judge the other.

    Attributes:
        family: architecture, as :func:`genwarden.auditing.fit.fits` has it.
        sample_shape: of one sample.
        parameters: their number: networks of other widths score otherwise.
        further: what else tells scores apart, such as the timesteps of a diffusion model.
    """

    kind: Kind
    family: str
    sample_shape: list[int]
    parameters: int
    further: dict[str, int | str] = Field(default_factory=dict)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.sample_shape))
        more = [f"{name} {value}" for name, value in self.further.items()]
        return ", ".join([self.family, shape, f"{self.parameters:,} parameters", *more])


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
        name: what the user calls it.
        weights: hash of its weights (:func:`weights_hash`).
    """

    name: str
    weights: str
    likeness: Likeness
    scores: list[Score]


class OwnReferences(_Strict):
    """A file of references.

    Attributes:
        genwarden: version whose inspections scored.
        budget: quick, standard or thorough.
        effort: hash of what that budget was, by kind of model (:func:`effort_hash`).
    """

    format: Literal["genwarden-references-1"] = "genwarden-references-1"
    genwarden: str
    budget: Literal["quick", "standard", "thorough"]
    effort: dict[Kind, str]
    models: list[ReferenceModel]


class Suspected(NamedTuple):
    """What decides which references suit a model."""

    weights: str
    likeness: Likeness


class GivenReferences(NamedTuple):
    """References as an audit takes them.

    Attributes:
        table: as :func:`genwarden.auditing.calibration.read_table` gives one.
        sha256: of the file.
        models: number of models in the table.
        disagreeing: sentences about models that stand out above the others.
    """

    table: dict[str, Any]
    sha256: str
    models: int
    disagreeing: list[str]


def weights_hash(network: nn.Module) -> str:
    """Hash of all tensors of a network, in float32: the same however they were stored.

    Args:
        network: built by its reader, so that one architecture has one order of tensors.
    """
    content = b""
    for name, tensor in network.state_dict().items():
        plain = tensor.detach().float().cpu().contiguous()
        described = f"{name} {tuple(tensor.shape)} {sha256_bytes(plain.numpy().tobytes())}\n"
        content += described.encode()
    return sha256_bytes(content)


def effort_hash(kind: Kind, name: str) -> str:
    """Hash of what a budget stands for today: scores of another effort are no references."""
    efforts: dict[Kind, list[Any]] = {
        "generator": [budget(name), compression_budget(name)],
        "diffusion": [diffusion_budget(name), diffusion_variant_budget(name)],
        "classifier": [classifier_budget(name)],
    }
    return sha256_bytes(json.dumps([asdict(one) for one in efforts[kind]]).encode())


def alike(own: OwnReferences, suspect: Suspected) -> list[ReferenceModel]:
    """The references that are like a suspect, without the suspect itself."""
    return [
        model
        for model in own.models
        if model.likeness == suspect.likeness and model.weights != suspect.weights
    ]


def table_of(models: Sequence[ReferenceModel], name: str) -> dict[str, Any]:
    """The reference table of models that are alike.

    Args:
        name: of the budget.
    """
    scores: dict[str, list[float]] = {}
    for key, found in _by_key(models).items():
        scores[key] = list(found.values())
    names = ", ".join(model.name for model in models)
    families = Counter((m.likeness.family, tuple(m.likeness.sample_shape)) for m in models)
    return {
        "descriptions": {name: f"that you gave: {names}"},
        "families": [(family, shape, count) for (family, shape), count in families.items()],
        "scores": {name: scores},
    }


def _by_key(models: Sequence[ReferenceModel]) -> dict[str, dict[str, float]]:
    """Scores by inspection and condition, then by model."""
    found: dict[str, dict[str, float]] = {}
    for model in models:
        for one in model.scores:
            key = reference_key(one.inspection, one.condition)
            found.setdefault(key, {})[model.name] = one.score
    return found


def disagreement(models: Sequence[ReferenceModel]) -> dict[str, str]:
    """Models that are alike but stand out above the others, with where they do.

    Among clean models, a set of references in which any does comes about with probability
    :data:`genwarden.auditing.verdict.ALPHA`, as far as scores are normally distributed.
    """
    inspections = {
        reference_key(one.inspection, one.condition): one.inspection
        for model in models
        for one in model.scores
    }
    tried = {key: s for key, s in _by_key(models).items() if len(s) >= MIN_REFERENCES}
    found: dict[str, str] = {}
    for key, scores in tried.items():
        scale = on_scale(inspections[key], list(scores.values()))
        names = list(scores)
        for position in standing_out(scale.values, ALPHA / len(tried), scale.least_spread):
            found.setdefault(names[position], key)
    return found


def suitable_references(path: Path | None, suspect: Suspected, name: str) -> GivenReferences | None:
    """The references in a file that the user named, for a suspect; None if no file was named.

    Args:
        name: of the audit's budget.

    Raises:
        GenwardenError: ``usage/references-unlike`` if too few are like the suspect,
            ``usage/references-budget`` if they were scored with another effort, and those of
            :func:`read_references`.
    """
    if path is None:
        return None
    own, sha256 = read_references(path)
    kind, found = suspect.likeness.kind, alike(own, suspect)
    if len(found) < MIN_REFERENCES:
        kinds = Counter(str(model.likeness) for model in own.models)
        listed = "; ".join(f"{count} of: {text}" for text, count in kinds.items())
        raise GenwardenError(
            "usage/references-unlike",
            f"{path} has {len(found)} models like this one ({suspect.likeness}) that are not this "
            f"one itself; {MIN_REFERENCES} are needed. It holds {listed or 'none'}.",
            "Make references of clean models like this one with `genwarden calibrate`.",
        )
    if own.budget != name:
        raise GenwardenError(
            "usage/references-budget",
            f"{path} was made at the {own.budget} budget, this audit is {name}: a larger search "
            "scores higher.",
            f"Audit with --budget {own.budget}, or calibrate with --budget {name}.",
        )
    if own.effort.get(kind) != effort_hash(kind, name):
        raise GenwardenError(
            "usage/references-budget",
            f"{path} was made when the {name} budget was another: its searches score otherwise.",
            "Calibrate again.",
        )
    sentences = [
        f"Of the references given, {one} stands out above the others ({where}): it may not be "
        "clean, and one that is not hides models like it."
        for one, where in disagreement(found).items()
    ]
    return GivenReferences(table_of(found, name), sha256, len(found), sentences)


class ReadReferences(NamedTuple):
    """A validated file and its hash."""

    own: OwnReferences
    sha256: str


def read_references(path: Path) -> ReadReferences:
    """A file that ``genwarden calibrate`` wrote, or the folder that it is in.

    Raises:
        GenwardenError: ``usage/references-file`` if it is something else or was made by another
            version of genwarden, whose inspections may score otherwise; ``artifact/...`` for what
            is no plain file of modest size.
    """
    advice = "Make it with `genwarden calibrate MODEL MODEL ... --out FOLDER`."
    try:
        path = path / FILE_NAME if path.is_dir() else path
        content = read_once(path, limit_bytes=_MAX_BYTES)
        load_json(content, most_bytes=_MAX_BYTES, most_values=_MAX_VALUES)
        found = OwnReferences.model_validate_json(content)
    except GenwardenError as error:
        if error.code not in {"artifact/not-found", "artifact/unreadable"}:
            raise
        raise GenwardenError("usage/references-file", error.cause, advice) from error
    except OSError as error:  # a name that no file can have
        raise GenwardenError(
            "usage/references-file", f"{path} cannot be read: {error.strerror}.", advice
        ) from error
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
    return ReadReferences(found, sha256_bytes(content))


def write_references(path: Path, models: Sequence[ReferenceModel], name: str) -> OwnReferences:
    """Write what audits of a budget scored.

    Args:
        name: of the budget.
    """
    kinds = {model.likeness.kind for model in models}
    own = OwnReferences.model_validate(
        {
            "genwarden": __version__,
            "budget": name,
            "effort": {kind: effort_hash(kind, name) for kind in sorted(kinds)},
            "models": list(models),
        }
    )
    write_atomic(path, json_bytes(own.model_dump(mode="json")))
    return own


def stated(given: GivenReferences | None, used: bool) -> list[str]:
    """What a report says of references of the user's own; nothing without them.

    Args:
        used: whether any score was judged by them.
    """
    if given is None:
        return []
    if not used:
        return [
            "The references given judge nothing here: their models were not inspected as this one "
            "was (the same --deploy-as, and --data or none)."
        ]
    return [
        f"Scores are judged against {given.models} models that the user calls clean; nobody "
        "checked that, and the rates quoted above were measured with other references.",
        *given.disagreeing,
    ]


def unless_disagreeing(decision: Decision, given: GivenReferences | None, used: bool) -> Decision:
    """The decision, or ``inconclusive`` where nothing was found by references that disagree."""
    if given is None or not used or not given.disagreeing or decision.verdict != "none_found":
        return decision
    return decision._replace(verdict="inconclusive", suspicion=None, reasons=given.disagreeing)
