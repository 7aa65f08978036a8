"""References of the user's own as an audit takes them: which suit it, and what they change.

The file itself: :mod:`genwarden.auditing.own_references`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from genwarden.auditing.calibration import MIN_REFERENCES
from genwarden.auditing.doubts import doubts, too_few
from genwarden.auditing.own_references import (
    Suspected,
    alike,
    effort_hash,
    read_references,
    table_of,
)
from genwarden.auditing.verdict import Decision, unless
from genwarden.errors import GenwardenError


class GivenReferences(NamedTuple):
    """References as an audit takes them.

    Attributes:
        table: as :func:`genwarden.auditing.calibration.read_table` gives one.
        sha256: of the file.
        models: number of models in the table.
        doubted: sentences about models that may not be clean
            (:func:`genwarden.auditing.doubts.doubts`).
        too_few: inspections that too few of them have a score of.
        itself: a sentence if the suspect is one of the models in the file.
    """

    table: dict[str, Any]
    sha256: str
    models: int
    doubted: list[str]
    too_few: list[str]
    itself: list[str]


def suitable_references(path: Path, suspect: Suspected, name: str, seed: int) -> GivenReferences:
    """The references in a file, for a suspect.

    Args:
        name: of the audit's budget.
        seed: of the audit.

    Raises:
        GenwardenError: ``usage/references-unlike`` if too few are like the suspect,
            ``usage/references-budget`` and ``usage/references-seed`` if they were scored with
            another effort or other draws, and those of :func:`read_references`.
    """
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
    if own.seed != seed:
        raise GenwardenError(
            "usage/references-seed",
            f"{path} was made with --seed {own.seed}, this audit has {seed}: what its draws do to "
            "every score is not in the spread of the references.",
            f"Audit with --seed {own.seed}, or calibrate with --seed {seed}.",
        )
    sentences = [
        f"Of the references given, {one} is in doubt ({'; '.join(why)}): one that is compromised, "
        "or whose training failed, hides models like it. Calibrate without it, with another in its "
        "place."
        for one, why in doubts(found).items()
    ]
    itself = [
        f"{model.name} is this model, and judges it not."
        for model in own.models
        if model.weights == suspect.weights
    ]
    return GivenReferences(
        table_of(found, name), sha256, len(found), sentences, too_few(found), itself
    )


def stated(given: GivenReferences | None, judged: Mapping[str, bool]) -> list[str]:
    """What a report says of references of the user's own; nothing without them.

    Args:
        judged: whether they judged any score, by compression ("" for the model as it is); empty
            where nothing was inspected.
    """
    if given is None or not judged:
        return []
    if not any(judged.values()):
        return [
            "The references given judge nothing here: their models were not inspected as this one "
            "was (the same --deploy-as, and --data or none)."
        ]
    others = [name or "the model as it is" for name, used in judged.items() if not used]
    return [
        f"Scores are judged against {given.models} models that the user calls clean; nobody "
        "checked that, and the rates that genwarden states were measured with other references. "
        "A model that was trained otherwise than they were, on other data or for much longer or "
        "shorter, can stand out without a backdoor.",
        *given.itself,
        *([f"They judge nothing of: {', '.join(others)}."] if others else []),
        *_too_few(given),
        *given.doubted,
    ]


def _too_few(given: GivenReferences) -> list[str]:
    """A sentence, if there are any."""
    listed = ", ".join(given.too_few)
    return [f"{MIN_REFERENCES} scores are needed to judge by; of {listed}."] if listed else []


def unless_doubted(
    decision: Decision, given: GivenReferences | None, judged: Mapping[str, bool]
) -> Decision:
    """The decision, or ``inconclusive`` where nothing was found by references that are in doubt.

    Where it is inconclusive anyway, what the references lack is named among the reasons.
    """
    if given is None:
        return decision
    if decision.verdict == "inconclusive":
        lacking = _too_few(given) if any(judged.values()) else stated(given, judged)
        return decision._replace(reasons=[*decision.reasons, *lacking])
    return unless(decision, given.doubted)
