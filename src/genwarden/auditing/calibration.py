"""p-values from clean reference models, for scores that have no exact or self-made null.

The reference files (``auditing/nulls/``) hold the scores of clean models that the population
studies trained and inspected (their calibration halves); attacks never enter them. Where the same
models were scored under several conditions (a compression, the images that were there to look at)
each condition has references of its own: scores of one model are not independent draws, and pruning
half of a network moves it further than rounding to eight bits. With n clean scores the p-value is
that of a new draw from the same normal law (Student-t prediction, n - 1 degrees of freedom), so a
small n makes it more cautious by itself. The law is an assumption: the finding says so and shows
the clean scores. A score that is the gap between the best and the second best of many has an
exponential law instead (a row of the registry says so): gaps pile up at 0 and reach far.

Where a table has ``groups`` (models by sample shape), a score is compared with the mean of its own
group, and the spread within groups is taken to be the same in all (as in a one-way analysis of
variance): clean scores of another size lie elsewhere, and eight models alone would give a spread
too uncertain for small p-values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from scipy.special import stdtr

from genwarden.inspections.finding import Finding, Null
from genwarden.registry import all_inspections

#: Fewer clean scores than this give no p-value at all.
MIN_REFERENCES = 8
#: In a group one may be left out, to be judged by the others.
_MIN_GROUP = MIN_REFERENCES - 1
#: Clean scores that happen to be nearly equal must not make a tiny deviation significant. A row of
#: the registry whose scores have a finer scale says so (``least_spread``).
_LEAST_SPREAD = 0.05
#: Smaller scores are not told apart on a logarithmic scale (0 means "nothing").
_LEAST_LOG_SCORE = 1e-3


class References(NamedTuple):
    """Clean scores of one inspection at one budget and how they were made.

    Attributes:
        elsewhere: of the same inspection, by condition, under all other conditions of the table.
        others: of other models, by group, which share the spread and not the mean.
    """

    values: list[float]
    description: str
    elsewhere: tuple[list[float], ...] = ()
    others: tuple[list[float], ...] = ()


NULLS = Path(__file__).parent / "nulls" / "generators.json"
DIFFUSION_NULLS = Path(__file__).parent / "nulls" / "diffusion.json"
COMPRESSION_NULLS = Path(__file__).parent / "nulls" / "compression.json"
CLASSIFIER_NULLS = Path(__file__).parent / "nulls" / "classifiers.json"


def read_table(path: Path) -> dict[str, Any]:
    """The reference file, or an empty one if it has not been published yet."""
    if not path.exists():
        return {"descriptions": {}, "scores": {}}
    table: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return table


@cache
def shipped() -> dict[str, Any]:
    """The reference file of this installation, for generators."""
    return read_table(NULLS)


@cache
def shipped_diffusion() -> dict[str, Any]:
    """The reference file of this installation, for diffusion models."""
    return read_table(DIFFUSION_NULLS)


@cache
def shipped_compression() -> dict[str, Any]:
    """The reference file of this installation, for what compression makes of generators."""
    return read_table(COMPRESSION_NULLS)


@cache
def shipped_classifiers() -> dict[str, Any]:
    """The reference file of this installation, for classifiers, full-size and compressed."""
    return read_table(CLASSIFIER_NULLS)


def clear_cache() -> None:
    """Read the reference files again at the next use (after they were published anew)."""
    shipped.cache_clear()
    shipped_diffusion.cache_clear()
    shipped_compression.cache_clear()
    shipped_classifiers.cache_clear()


def reference_key(inspection: str, condition: str = "") -> str:
    """Under which name a table holds the clean scores of an inspection under a condition."""
    return f"{condition}: {inspection}" if condition else inspection


def references(
    inspection: str,
    budget: str,
    table: dict[str, Any] | None = None,
    *,
    condition: str = "",
    sample_shape: Sequence[int] = (),
) -> References:
    """Clean scores for an inspection; those of the nearest budget if there are none for this one.

    Args:
        sample_shape: of the model: its group, where the table has any.
        condition: under which the models were inspected, where the table tells conditions apart;
            scores of another condition never stand in.

    A larger search can only raise a clean score. So a larger budget stands in first (cautious);
    where only a smaller one was measured, p-values may come out too small, and the note says so.
    """
    table = shipped() if table is None else table
    order = ["quick", "standard", "thorough"]
    for name in order[order.index(budget) :] + order[: order.index(budget)][::-1]:
        values = table["scores"].get(name, {}).get(reference_key(inspection, condition), [])
        if len(values) >= MIN_REFERENCES:
            described = table["descriptions"].get(name, "not described")
            note = "" if name == budget else f", measured at the {name} budget"
            if order.index(name) < order.index(budget):
                note += " (a smaller search: this p-value may be too small)"
            under = f", {condition}" if condition else ""
            groups = table.get("groups", {}).get(name, {}).get(inspection, {})
            own = groups.get(group_key(sample_shape))
            if own is not None:
                if len(own) < _MIN_GROUP:  # those of other shapes lie elsewhere
                    return References([], "too few clean reference scores of this sample shape")
                others = tuple(g for key, g in groups.items() if key != group_key(sample_shape))
                shared = sum(map(len, others))
                return References(
                    [float(v) for v in own],
                    f"{len(own)} clean reference models of this sample shape; their spread shared "
                    f"with {shared} of other shapes ({described}){note}",
                    others=others,
                )
            return References(
                [float(v) for v in values],
                f"{len(values)} clean reference models ({described}){under}{note}",
                _elsewhere(table["scores"][name], inspection, condition),
            )
    return References([], "no clean reference scores")


def group_key(sample_shape: Sequence[int]) -> str:
    """Under which name ``groups`` of a table has the models of a sample shape."""
    return "x".join(map(str, sample_shape))


def _elsewhere(
    scores: dict[str, list[float]], inspection: str, condition: str
) -> tuple[list[float], ...]:
    own, ending = reference_key(inspection, condition), f": {inspection}"
    return tuple(
        [float(v) for v in values]
        for key, values in scores.items()
        if condition and key != own and key.endswith(ending) and len(values) >= MIN_REFERENCES
    )


def _option(inspection: str, name: str) -> Any:
    """What a row of the registry says; None where there is no such row."""
    row = all_inspections().get(inspection)
    return None if row is None else row.options.get(name)


def needs_population(inspection: str) -> bool:
    """Whether an inspection is judged against clean models (a row of the registry says so).

    Others bring their own null, are exact, or are shown and never judged (capacity).
    """
    return bool(_option(inspection, "null") == "population")


def shown_without_references(inspection: str) -> bool:
    """Whether an inspection for which clean scores may be lacking is shown then, and no gap."""
    return bool(_option(inspection, "shown_without_references"))


def carries(inspection: str) -> bool:
    """Whether a compressed variant is untested without an inspection's judgement."""
    return bool(_option(inspection, "carries"))


def shown_compressed(inspection: str) -> bool:
    """Whether an inspection is judged of models as they are and only shown of compressed ones."""
    return bool(_option(inspection, "shown_compressed"))


def calibrate(
    finding: Finding,
    budget: str,
    table: dict[str, Any] | None = None,
    *,
    condition: str = "",
    sample_shape: Sequence[int] = (),
) -> Finding:
    """Give a scored finding that needs clean models its p-value.

    Args:
        table: clean scores in place of the shipped ones, as :func:`read_table` gives them.
        condition: as in :func:`references`, and ``sample_shape``.

    A score that is the highest over several given targets is corrected for their number
    (Bonferroni), since the references were scored with one target each.
    """
    if not needs_population(finding.inspection) or finding.outcome != "scored":
        return finding
    if finding.p_value is not None or finding.score is None:
        return finding
    targets = int(finding.budget.get("targets", 1))
    found = against_clean(
        finding.inspection,
        finding.score,
        budget,
        table,
        condition=condition,
        sample_shape=sample_shape,
        targets=targets,
    )
    if found is None:
        return finding
    return finding.model_copy(
        update={"p_value": found.p_value, "p_value_reason": None, "null": found.null}
    )


class AgainstClean(NamedTuple):
    """A p-value from clean models, and what it was computed from."""

    p_value: float
    null: Null


def against_clean(
    inspection: str,
    score: float,
    budget: str,
    table: dict[str, Any] | None = None,
    *,
    condition: str = "",
    sample_shape: Sequence[int] = (),
    targets: int = 1,
) -> AgainstClean | None:
    """A score of an inspection beside those of clean models; None without enough of them.

    Args:
        targets: over which the score is the highest; other arguments as in :func:`calibrate`.
    """
    found = references(inspection, budget, table, condition=condition, sample_shape=sample_shape)
    if not found.values:
        return None
    beside = predicted(inspection, score, found.values, found.elsewhere, found.others)
    corrected = f"; Bonferroni over {targets} targets" if targets > 1 else ""
    null = Null(
        source="population",
        description=f"{found.description}; {beside.law}{corrected}",
        values=found.values,
    )
    return AgainstClean(min(1.0, targets * beside.p_value), null)


class Prediction(NamedTuple):
    """Probability of a score as high as one more draw beside clean ones, and by which law."""

    p_value: float
    law: str


def predicted(
    inspection: str,
    score: float,
    clean: Sequence[float],
    elsewhere: Sequence[list[float]] = (),
    others: Sequence[list[float]] = (),
) -> Prediction:
    """A score beside clean ones, by the law that a row of the registry says.

    Args:
        elsewhere, others: as in :class:`References`; gaps need neither.
    """
    if is_gap(inspection):
        return Prediction(exponential_p(score, clean), "exponential prediction")
    mine = on_scale(inspection, [score, *clean])
    spreads = [_variance(on_scale(inspection, values).values) for values in elsewhere]
    p_value = predictive_p(
        mine.values[0],
        mine.values[1:],
        mine.least_spread,
        prior_variance=sum(spreads) / len(spreads) if spreads else None,
        others=[on_scale(inspection, values).values for values in others],
    )
    moderated = ", its spread moderated by that under the other conditions" if spreads else ""
    of_what = " of the logarithm" if mine.logarithmic else ""
    return Prediction(p_value, f"Student-t prediction{of_what}{moderated}")


class OnScale(NamedTuple):
    """Scores of an inspection on the scale on which they are compared.

    Attributes:
        least_spread: smallest standard deviation that clean ones are taken to have there.
    """

    values: list[float]
    least_spread: float
    logarithmic: bool


def on_scale(inspection: str, scores: list[float]) -> OnScale:
    """The scores, or their logarithms where a row of the registry says so; of gaps the cube roots,
    which of an exponential law are nearly normal (Wilson and Hilferty)."""
    options = all_inspections()[inspection].options
    if is_gap(inspection):
        return OnScale([max(score, 0.0) ** (1 / 3) for score in scores], _LEAST_SPREAD, False)
    logarithmic = options.get("scale") == "log"
    values = [_log(score) for score in scores] if logarithmic else scores
    return OnScale(values, options.get("least_spread", _LEAST_SPREAD), logarithmic)


def uncalibrated(finding: Finding) -> Finding:
    """The finding before it was judged against clean models, to judge it against others."""
    if finding.null is None or finding.null.source != "population":
        return finding
    return finding.model_copy(
        update={"p_value": None, "null": None, "p_value_reason": "not judged yet"}
    )


def unjudged(finding: Finding, reason: str) -> Finding:
    """A score for which no fitting clean models exist: shown, not judged."""
    if finding.outcome != "scored":
        return finding
    return finding.model_copy(update={"p_value_reason": reason})


def _log(score: float) -> float:
    return math.log(max(score, _LEAST_LOG_SCORE))


def predictive_p(
    score: float,
    clean: list[float],
    least_spread: float = _LEAST_SPREAD,
    *,
    prior_variance: float | None = None,
    others: Sequence[list[float]] = (),
) -> float:
    """Upper-tail probability of ``score`` as one more draw beside the clean scores.

    Args:
        least_spread: smallest standard deviation that clean scores are taken to have.
        prior_variance: mean variance of clean scores elsewhere. Where it is larger than that of
            these few, which happens to be small now and then, their mean counts; no degrees of
            freedom are claimed for it.
        others: clean scores of other groups, whose means are their own and whose spread is this
            one's: its degrees of freedom are those of all groups. Where this group's own is
            larger, it counts half: not every score spreads alike in all groups.
    """
    n, groups = len(clean), [clean, *(group for group in others if len(group) > 1)]
    freedom = sum(len(group) - 1 for group in groups)
    mean = sum(clean) / n
    variance = sum((len(group) - 1) * _variance(group) for group in groups) / freedom
    variance = max(variance, (variance + _variance(clean)) / 2)
    if prior_variance is not None:
        variance = max(variance, (variance + prior_variance) / 2)
    spread = max(math.sqrt(variance), least_spread)
    t = (score - mean) / (spread * math.sqrt(1 + 1 / n))
    return max(float(stdtr(freedom, -t)), 1e-300)


def is_gap(inspection: str) -> bool:
    """Whether a row of the registry says that clean scores are gaps, which pile up at 0."""
    return bool(_option(inspection, "scale") == "gap")


def exponential_p(score: float, clean: Sequence[float]) -> float:
    """Upper-tail probability of ``score`` as one more draw beside clean ones of exponential law.

    With the mean of n clean scores for that of the law, known as well as n scores tell it: a Lomax
    law, (1 + score / sum)^-n.
    """
    n = len(clean)
    total = max(sum(clean), n * _LEAST_SPREAD)
    return float(min(1.0, max((1 + max(score, 0.0) / total) ** -n, 1e-300)))


def _variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / (len(values) - 1)
