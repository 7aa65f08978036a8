"""From findings to a decision: each is judged against references that fit the model, or not at all.

Used by an audit, and wherever stored findings are judged anew against other references.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from genwarden.auditing.calibration import (
    calibrate,
    needs_population,
    references,
    shipped,
    shown_without_references,
    unjudged,
)
from genwarden.auditing.fit import CARRYING, fits
from genwarden.auditing.verdict import Decision, decide, unless
from genwarden.inspections.finding import Finding


class Calibrated(NamedTuple):
    """Findings with the p-values that references give them.

    Attributes:
        unfit: inspections that no reference models suit.
        own: inspections that references of the user's own judge.
        aside: inspections that are shown, by choice, and not tested.
    """

    findings: list[Finding]
    unfit: frozenset[str]
    own: frozenset[str] = frozenset()
    aside: frozenset[str] = frozenset()


def calibrated(
    findings: Sequence[Finding],
    architecture: str,
    sample_shape: Sequence[int],
    *,
    budget: str,
    table: dict[str, Any],
    condition: str = "",
    own: dict[str, Any] | None = None,
    own_condition: str | None = None,
    alike: str = "architecture and sample shape",
) -> Calibrated:
    """Calibrate the findings on a model, where references fit it; arguments as in :func:`judge`.

    Args:
        condition: under which the model was inspected, as in
            :func:`genwarden.auditing.calibration.references`.
        own: references of the user's own for this model
            (:func:`genwarden.auditing.own_references.table_of`); where they have enough scores they
            judge instead of ``table``.
        own_condition: under which those are looked up, if it is another.
        alike: what references must share with the model, in words.
    """
    judged: list[Finding] = []
    unfit: set[str] = set()
    by_own: set[str] = set()
    mine = condition if own_condition is None else own_condition
    for finding in findings:
        name = finding.inspection
        if finding.outcome == "scored" and own_judge(name, budget, own, mine):
            judged.append(calibrate(finding, budget, own, condition=mine))
            by_own.add(name)
        elif shown_without_references(name) and not references(name, budget, table).values:
            judged.append(unjudged(finding, "no clean reference model was scored by it"))
            unfit.add(name)
        elif fits(name, architecture, sample_shape, table):
            judged.append(
                calibrate(finding, budget, table, condition=condition, sample_shape=sample_shape)
            )
        else:
            judged.append(unjudged(finding, f"no clean reference models of this {alike}"))
            unfit.add(name)
    return Calibrated(judged, frozenset(unfit), frozenset(by_own))


def own_judge(inspection: str, budget: str, own: dict[str, Any] | None, condition: str) -> bool:
    """Whether references of the user's own have enough scores of an inspection."""
    if own is None or not needs_population(inspection):
        return False
    return bool(references(inspection, budget, own, condition=condition).values)


def calibrated_under(
    condition: str,
    findings: Sequence[Finding],
    architecture: str,
    sample_shape: Sequence[int],
    *,
    budget: str,
    table: dict[str, Any],
    own: dict[str, Any] | None = None,
) -> Calibrated:
    """The same where the table tells conditions apart; one that it lacks is unfit, not an error.

    A user may deploy a model in ways that no study inspected. What brings a null of its own then
    carries the verdict; the rest is shown.
    """
    found = calibrated(
        findings,
        architecture,
        sample_shape,
        budget=budget,
        table=table,
        condition=condition,
        own=own,
    )
    unknown = {
        f.inspection
        for f in found.findings
        if f.outcome == "scored"
        and needs_population(f.inspection)
        and f.inspection not in found.own
        and not references(f.inspection, budget, table, condition=condition).values
    }
    shown = [
        f.model_copy(update={"p_value_reason": f"no clean reference models under: {condition}"})
        if f.inspection in unknown - found.unfit
        else f
        for f in found.findings
    ]
    return Calibrated(shown, found.unfit | unknown, found.own)


def judge(
    findings: Sequence[Finding],
    architecture: str,
    sample_shape: Sequence[int],
    *,
    budget: str,
    nonfinite: dict[str, int],
    table: dict[str, Any] | None = None,
) -> Decision:
    """Calibrate the findings on a model and decide.

    Args:
        findings: without p-values from clean models; see
            :func:`genwarden.auditing.calibration.uncalibrated`.
        architecture: of the model, as in :func:`genwarden.auditing.fit.fits`.
        sample_shape: likewise.
        nonfinite: NaN and infinite weights, by tensor.
        table: references in place of the shipped ones.
    """
    table = shipped() if table is None else table
    found = calibrated(findings, architecture, sample_shape, budget=budget, table=table)
    decision = decide(found.findings, nonfinite, {("", name) for name in found.unfit})
    return carried(decision, found.unfit, sample_shape)


def carried(
    decision: Decision, unfit: frozenset[str], sample_shape: Sequence[int], unlike: str = ""
) -> Decision:
    """The decision, or ``inconclusive`` where nothing was found and no references carry that.

    Args:
        unfit: inspections that no reference models suit.
        sample_shape: of one sample, without the batch axis.
        unlike: what else no reference has, in words.
    """
    missing = sorted(CARRYING & unfit)
    shape = "x".join(map(str, sample_shape))
    lacking = f"of this architecture make samples of shape {shape}"
    reason = (
        f"No clean reference models {f'are like this one ({unlike})' if unlike else lacking}: "
        f"{', '.join(missing)} is shown and not judged, and the rest does not carry a verdict."
    )
    return unless(decision, [reason] if missing else [])
