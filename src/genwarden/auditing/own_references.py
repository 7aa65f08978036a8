"""Clean models of the user's own as references: the file, and the table that it gives a suspect.

The shipped references stand for small networks of a few sample shapes
(:mod:`genwarden.auditing.fit`). Who has clean models like the suspect, trained by themselves or
trusted for another reason, audits those with ``genwarden calibrate`` and judges the suspect against
them. Nothing checks that they are clean: the user vouches for it, and the report says so. What can
be seen is in :mod:`genwarden.auditing.doubts`.

No model is judged by itself: the file names each by its weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from torch import nn

from genwarden import __version__
from genwarden.artifacts.json_object import load_json
from genwarden.artifacts.read_once import read_once
from genwarden.auditing.budgets import (
    budget,
    classifier_budget,
    compression_budget,
    diffusion_budget,
    diffusion_variant_budget,
)
from genwarden.auditing.calibration import reference_key
from genwarden.engine.files import sha256_bytes, write_json
from genwarden.errors import GenwardenError
from genwarden.inspections.diffusion.timesteps import SPREAD
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
        further: what else tells scores apart, such as the noise schedule of a diffusion model.
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
        found: titles of what its own audit flagged by itself, without clean models.
        suspected: scores that the shipped references flagged, as
            :func:`genwarden.auditing.calibration.reference_key` names them.
    """

    name: str
    weights: str
    likeness: Likeness
    scores: list[Score]
    found: list[str] = Field(default_factory=list)
    suspected: list[str] = Field(default_factory=list)


class OwnReferences(_Strict):
    """A file of references.

    Attributes:
        genwarden: version whose inspections scored.
        budget: quick, standard or thorough.
        seed: of the audits: all models are looked at with the same draws, whose luck is in every
            score and not in their spread.
        effort: hash of what that budget was, by kind of model (:func:`effort_hash`).
    """

    format: Literal["genwarden-references-2"] = "genwarden-references-2"
    genwarden: str
    budget: Literal["quick", "standard", "thorough"]
    seed: int
    effort: dict[Kind, str]
    models: list[ReferenceModel]


class Suspected(NamedTuple):
    """What decides which references suit a model; ``finite`` unless a weight is NaN or infinite."""

    weights: str
    likeness: Likeness
    finite: bool = True


def weights_hash(network: nn.Module) -> str:
    """Hash of the signs of a network's weights: the same however many bits store each of them.

    Two trainings have other signs; a copy in half precision has the same (a weight too small for
    it becomes a zero with its sign), and mostly one that is rounded or pruned, which is no
    independent draw, either. Counters, such as those of batch norms, are left out.

    Args:
        network: built by its reader, so that one architecture has one order of tensors.
    """
    content = b""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            signs = torch.signbit(tensor.detach().cpu()).numpy().tobytes()
            content += f"{name} {tuple(tensor.shape)} {sha256_bytes(signs)}\n".encode()
    return sha256_bytes(content)


def hash_of(plain: Any) -> str:
    """A short hash of plain data, for what two models must share."""
    return sha256_bytes(json.dumps(plain, sort_keys=True).encode())[:12]


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
    finite = all(bool(torch.isfinite(t).all()) for t in network.state_dict().values())
    return Suspected(weights_hash(network), likeness, finite)


def effort_hash(kind: Kind, name: str) -> str:
    """Hash of what a budget stands for today: scores of another effort are no references."""
    efforts: dict[Kind, list[Any]] = {
        "generator": [budget(name), compression_budget(name)],
        "diffusion": [diffusion_budget(name), diffusion_variant_budget(name)],
        "classifier": [classifier_budget(name)],
    }
    # Of denoisers also where they are looked at: scores of fixed timesteps are no references.
    looked = [SPREAD] if kind == "diffusion" else []
    return hash_of([*(asdict(one) for one in efforts[kind]), *looked])


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
    for key, found in scores_by_key(models).items():
        scores[key] = list(found.values())
    names = ", ".join(model.name for model in models)
    return {"descriptions": {name: f"that you gave: {names}"}, "scores": {name: scores}}


def scores_by_key(models: Sequence[ReferenceModel]) -> dict[str, dict[str, float]]:
    """Scores by inspection and condition, then by model."""
    found: dict[str, dict[str, float]] = {}
    for model in models:
        for one in model.scores:
            key = reference_key(one.inspection, one.condition)
            found.setdefault(key, {})[model.name] = one.score
    return found


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


def write_references(
    path: Path, models: Sequence[ReferenceModel], name: str, seed: int
) -> OwnReferences:
    """Write what audits of a budget scored.

    Args:
        name: of the budget.
        seed: of the audits.
    """
    kinds = {model.likeness.kind for model in models}
    own = OwnReferences.model_validate(
        {
            "genwarden": __version__,
            "budget": name,
            "seed": seed,
            "effort": {kind: effort_hash(kind, name) for kind in sorted(kinds)},
            "models": list(models),
        }
    )
    write_json(path, own.model_dump(mode="json"))
    return own
