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
from genwarden.auditing.verdict import ALPHA
from genwarden.engine.files import sha256_bytes, write_json
from genwarden.errors import GenwardenError
from genwarden.models.protocol import parameter_count
from genwarden.registry import all_inspections

Kind = Literal["generator", "diffusion", "classifier"]
FILE_NAME: Final = "references.json"
#: Far above what thousands of models need; a larger file is not read.
_MAX_BYTES = 50_000_000
_MAX_VALUES = 1_000_000
_ADVICE = "Make it with `genwarden calibrate MODEL MODEL ... --out FOLDER`."


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


def suspected_of(
    kind: Kind,
    network: nn.Module,
    family: str,
    sample_shape: Sequence[int],
    **further: int | str,
) -> Suspected:
    """An opened network as references are chosen for it; arguments as in :class:`Likeness`."""
    likeness = Likeness(
        kind=kind,
        family=family,
        sample_shape=list(sample_shape),
        parameters=parameter_count(network),
        further=further,
    )
    return Suspected(weights_hash(network), likeness)


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


class Apart(NamedTuple):
    """A score by which a model stands out above the others.

    Attributes:
        key: inspection and condition.
        others: smallest and largest score of those that do not.
    """

    key: str
    score: float
    others: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.others
        return f"{self.key} {self.score:.3g}, the others {low:.3g} to {high:.3g}"

    @property
    def distance(self) -> float:
        """Above the others, in units of their range."""
        low, high = self.others
        return (self.score - high) / max(high - low, 1e-9)


def disagreement(models: Sequence[ReferenceModel]) -> dict[str, list[Apart]]:
    """Models that are alike but stand out above the others: where they do, the farthest first.

    Among clean models, a set of references in which any does comes about with probability
    :data:`genwarden.auditing.verdict.ALPHA`, as far as scores are normally distributed.
    """
    inspections = {
        reference_key(one.inspection, one.condition): one.inspection
        for model in models
        for one in model.scores
    }
    tried = {key: s for key, s in _by_key(models).items() if len(s) >= MIN_REFERENCES}
    found: dict[str, list[Apart]] = {}
    for key, scores in tried.items():
        scale = on_scale(inspections[key], list(scores.values()))
        names = list(scores)
        high = standing_out(scale.values, ALPHA / len(tried), scale.least_spread)
        rest = [score for i, score in enumerate(scores.values()) if i not in high]
        for position in high:
            name = names[position]
            apart = Apart(key, scores[name], (min(rest), max(rest)))
            found.setdefault(name, []).append(apart)
    return {n: sorted(where, key=lambda one: -one.distance) for n, where in found.items()}


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
    try:
        path = path / FILE_NAME if path.is_dir() else path
        content = read_once(path, limit_bytes=_MAX_BYTES)
        load_json(content, most_bytes=_MAX_BYTES, most_values=_MAX_VALUES)
        found = OwnReferences.model_validate_json(content)
    except GenwardenError as error:
        if error.code not in {"artifact/not-found", "artifact/unreadable"}:
            raise
        raise GenwardenError("usage/references-file", error.cause, _ADVICE) from error
    except OSError as error:  # a name that no file can have
        raise GenwardenError(
            "usage/references-file", f"{path} cannot be read: {error.strerror}.", _ADVICE
        ) from error
    except ValueError as error:  # pydantic's is one, too
        first = error.errors()[0] if isinstance(error, ValidationError) else {"msg": str(error)}
        where = ".".join(map(str, first.get("loc", ())))
        problem = f"{where}: {first['msg']}" if where else str(first["msg"])
        raise _no_references(path, problem) from error
    known = all_inspections()
    unknown = {s.inspection for m in found.models for s in m.scores if s.inspection not in known}
    twice = any(
        len(set(each)) < len(found.models)
        for each in ([m.weights for m in found.models], [m.name for m in found.models])
    )
    if unknown or twice:
        problem = (
            f"no inspection is called {min(unknown)!r}" if unknown else "a model is there twice"
        )
        raise _no_references(path, problem)
    if found.genwarden != __version__:
        raise GenwardenError(
            "usage/references-file",
            f"{path} was made by genwarden {found.genwarden}, this is {__version__}.",
            "Calibrate again: other versions may score otherwise.",
        )
    return ReadReferences(found, sha256_bytes(content))


def _no_references(path: Path, problem: str) -> GenwardenError:
    return GenwardenError(
        "usage/references-file", f"{path} is no file of references: {problem}.", _ADVICE
    )


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
    write_json(path, own.model_dump(mode="json"))
    return own
