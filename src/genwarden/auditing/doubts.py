"""What speaks against models that a user calls clean: their own audits, and that they disagree.

A compromised model among references hides others like it, and so does one whose training failed:
it widens the spread. Both can be seen only as far as the model is unlike the others, or as its own
audit finds something without references.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from genwarden.auditing.agreement import standing_out
from genwarden.auditing.calibration import (
    MIN_REFERENCES,
    on_scale,
    predicted,
    reference_key,
)
from genwarden.auditing.own_references import ReferenceModel, Score, scores_by_key
from genwarden.auditing.verdict import ALPHA


class Apart(NamedTuple):
    """A score by which a model stands out from the others.

    Attributes:
        key: inspection and condition.
        others: smallest and largest score of those that do not.
    """

    key: str
    score: float
    others: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.others
        return f"{self.key} {self.score:.4g}, the others {low:.4g} to {high:.4g}"

    @property
    def distance(self) -> float:
        """From the others, in units of their range."""
        low, high = self.others
        return max(self.score - high, low - self.score) / max(high - low, 1e-9)


def disagreement(models: Sequence[ReferenceModel]) -> dict[str, list[Apart]]:
    """Models that are alike but stand out from the others: where they do, the farthest first.

    Among clean models, a set of references in which any does comes about with probability
    :data:`genwarden.auditing.verdict.ALPHA`, as far as scores are normally distributed.
    """
    inspections = {
        reference_key(one.inspection, one.condition): one.inspection
        for model in models
        for one in model.scores
    }
    tried = {key: s for key, s in scores_by_key(models).items() if len(s) >= MIN_REFERENCES}
    found: dict[str, list[Apart]] = {}
    for key, scores in tried.items():
        scale = on_scale(inspections[key], list(scores.values()))
        names = list(scores)
        far = standing_out(scale.values, ALPHA / len(tried), scale.least_spread)
        rest = [score for i, score in enumerate(scores.values()) if i not in far]
        for position in far:
            name = names[position]
            apart = Apart(key, scores[name], (min(rest), max(rest)))
            found.setdefault(name, []).append(apart)
    return {n: sorted(where, key=lambda one: -one.distance) for n, where in found.items()}


def doubts(models: Sequence[ReferenceModel]) -> dict[str, list[str]]:
    """Why a model is in doubt, by its name; nothing of the others.

    A score that the shipped references flagged counts where the other models given flag it, too:
    the shipped ones may fit none of them, which is why others are given.
    """
    found: dict[str, list[str]] = {}
    for model in models:
        if model.found:
            found[model.name] = [f"its own audit found: {', '.join(model.found)}"]
    apart = disagreement(models)
    for name, where in apart.items():
        found.setdefault(name, []).extend(f"stands out: {one}" for one in where)
    for model in models:
        named = {one.key for one in apart.get(model.name, [])}
        for one in model.scores:
            key = reference_key(one.inspection, one.condition)
            if key in model.suspected and key not in named:
                p_value = _beside_the_others(model, one, models)
                if p_value < ALPHA:
                    found.setdefault(model.name, []).append(
                        f"its own audit found: {key}, which is high beside the others, too "
                        f"(p = {p_value:.2g})"
                    )
    return found


def _beside_the_others(
    model: ReferenceModel, score: Score, models: Sequence[ReferenceModel]
) -> float:
    """p-value of a score by the models that are left without its own; 0 if they are too few."""
    key = reference_key(score.inspection, score.condition)
    others = [s for name, s in scores_by_key(models)[key].items() if name != model.name]
    if len(others) < MIN_REFERENCES - 1:
        return 0.0
    return predicted(score.inspection, score.score, others).p_value


def too_few(models: Sequence[ReferenceModel]) -> list[str]:
    """Inspections, with their condition, that too few of the models have a score of."""
    return [
        f"{key} ({len(scores)} of {len(models)} models)"
        for key, scores in scores_by_key(models).items()
        if len(scores) < MIN_REFERENCES
    ]
