"""Auditing what a model becomes: the inspections on every compressed variant, judged with the rest.

A compression that works on no weight, or cannot be carried out, leaves its variant untested; that
is never "nothing found".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from genwarden.auditing.calibration import carries, shipped, shipped_compression
from genwarden.auditing.document import Judged, Variant, VariantCoverage
from genwarden.auditing.judging import Calibrated, calibrated, calibrated_under
from genwarden.auditing.running import BREAKDOWNS, guarded, run_all
from genwarden.auditing.verdict import Decision, decide
from genwarden.compression.apply import Coverage
from genwarden.compression.contract import Compressor
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress, Task
from genwarden.inspections.compression.variant import UNCHANGED, VariantBase
from genwarden.inspections.finding import Finding
from genwarden.registry import COMPRESSION_INSPECTIONS, Row

NOT_AS_DEPLOYED = (
    "The model was inspected as it is. A backdoor that only wakes when the weights are pruned or "
    "quantised was not looked for; name what the model will be deployed as (--deploy-as)."
)
VARIANT_LIMITS = (
    "Compressed variants are weights rounded or pruned as named, nothing else: activations are "
    "not quantised, and other grids, rates or tools may wake what these do not.",
)
VARIANTS_ONLY = "Only the compressed variants were inspected, not the model as it is."


B = TypeVar("B", bound=VariantBase[Any])


class RanVariant(NamedTuple):
    """One variant before it is judged.

    Fields as in :class:`genwarden.auditing.document.Variant`.
    """

    name: str
    coverage: Coverage | None
    findings: list[Finding]
    failure: str = ""
    destroyed: bool = False


class Judgement(NamedTuple):
    """The decision on all findings; its ``judged`` are those on the model as it is."""

    decision: Decision
    variants: list[Variant]


def run_variants(
    compressors: Sequence[Compressor],
    bench_of: Callable[[Compressor], B],
    rows: Mapping[str, Row],
    inspect: Callable[[Row, B], Finding],
    ledger: Ledger,
    progress: Progress,
    *,
    whole: Task,
    untestable: str = "",
) -> tuple[list[RanVariant], dict[str, float]]:
    """Run all rows on every variant that the ledger does not hold yet.

    Args:
        bench_of: the bench of one variant; it is dropped when the next one is made.
        inspect: one row on one bench.
        whole: the bar of the whole audit, which counts every row of every variant.
        untestable: why no variant can be inspected at all, or "".

    Returns:
        The variants, and seconds per variant and inspection.
    """
    ran: list[RanVariant] = []
    timing: dict[str, float] = {}
    for number, compressor in enumerate(compressors, start=1):
        name = compressor.name
        part = f"variant {number}/{len(compressors)}"
        if untestable:
            ran.append(RanVariant(name, None, [], untestable))
            _skip(whole, rows, part)
            continue
        bench = bench_of(compressor)
        try:
            coverage, idle = bench.coverage, bench.idle_stage
            destroyed = "" if idle or not coverage.weights else _destroyed(bench, ledger, timing)
        except BREAKDOWNS as error:
            text = (str(error).strip().splitlines() or ["no message"])[0][:200]
            ran.append(RanVariant(name, None, [], f"{type(error).__name__}: {text}"))
            _skip(whole, rows, part)
            continue
        if idle or not coverage.weights:
            whose = f"its stage {idle}" if idle else "it"
            ran.append(RanVariant(name, coverage, [], f"{whose} covers nothing: {coverage}."))
            _skip(whole, rows, part)
            continue
        if destroyed:
            ran.append(RanVariant(name, coverage, [], destroyed, destroyed=True))
            _skip(whole, rows, part)
            continue

        def run(row: Row, bench: B = bench) -> dict[str, Finding]:
            return {row.name: guarded(row, lambda: inspect(row, bench))}

        done = run_all(rows, run, ledger, progress, under=name, whole=whole, part=part)
        ran.append(RanVariant(name, coverage, done.findings))
        timing |= {f"{name}: {key}": seconds for key, seconds in done.timing.items()}
    return ran, timing


def _destroyed(bench: VariantBase[Any], ledger: Ledger, timing: dict[str, float]) -> str:
    """Why nothing can be said of a variant; the ledger holds it, as images may have to be made."""
    key = f"{bench.compressor.name}.destroyed"
    recorded = ledger.get(key)
    if recorded is None:
        started = time.perf_counter()
        try:
            why = bench.destroyed
        except BREAKDOWNS:
            why = ""  # its inspections break likewise, and say so
        recorded = {"why": why, "seconds": round(time.perf_counter() - started, 3)}
        ledger.put(key, recorded)
    if recorded["seconds"]:
        timing[f"{bench.compressor.name}: answers kept"] = float(recorded["seconds"])
    return str(recorded["why"])


def _skip(whole: Task, rows: Mapping[str, Row], part: str) -> None:
    whole.advance(len(rows), f"{part} is not tested")


def calibrated_variant(
    compression: str,
    findings: Sequence[Finding],
    architecture: str,
    sample_shape: Sequence[int],
    *,
    budget: str,
    table: dict[str, Any] | None = None,
    own: dict[str, Any] | None = None,
) -> Calibrated:
    """p-values for what was found in a compressed generator.

    Repeated inspections are judged like the full model's. Those of this room are judged against
    clean models under the same compression, where these were published; else the ones that bring
    no null of their own are shown.

    Args:
        compression: name of the variant.
        table: references of compressed generators in place of the shipped ones.
        own: as in :func:`genwarden.auditing.judging.calibrated`.
    """
    table = shipped_compression() if table is None else table
    found: list[Finding] = []
    unfit: set[str] = set()
    by_own: set[str] = set()
    model = (architecture, sample_shape)
    for finding in findings:
        if finding.inspection in COMPRESSION_INSPECTIONS:
            one = calibrated_under(
                compression, [finding], *model, budget=budget, table=table, own=own
            )
        else:
            # The shipped ones judge what is repeated as in the full model; the user's own models
            # were compressed, too.
            one = calibrated(
                [finding],
                *model,
                budget=budget,
                table=shipped(),
                own=own,
                own_condition=compression,
            )
        found += one.findings
        unfit |= one.unfit
        by_own |= one.own
    return Calibrated(found, frozenset(unfit), frozenset(by_own))


def used_by_own(
    base: Calibrated, variants: Sequence[RanVariant], judged: Sequence[Calibrated]
) -> dict[str, bool]:
    """By compression, "" for the model as it is: whether references of the user's own judged a
    score there; parts in which nothing was inspected are left out."""
    parts = {"": base, **{v.name: one for v, one in zip(variants, judged, strict=True)}}
    return {name: bool(one.own) for name, one in parts.items() if one.findings}


def judge_variants(
    base: Calibrated,
    variants: Sequence[RanVariant],
    judged: Sequence[Calibrated],
    nonfinite: dict[str, int],
    *,
    where_usable: Collection[str] = (),
) -> Judgement:
    """Decide on the model and its variants together: Holm's correction goes over everything.

    Args:
        base: what was found in the model as it is.
        judged: the calibrated findings of each of ``variants``.
        where_usable: variants that were asked for only where they neither destroy nor damage the
            model: beside others, one that does is said not to be covered, and makes nothing
            inconclusive.
    """
    pairs = list(zip(variants, judged, strict=True))
    every = [*base.findings, *(f for one in judged for f in one.findings)]
    under = [""] * len(base.findings)
    unfit = {("", name) for name in base.unfit}
    aside: set[tuple[str, str]] = set()
    for variant, one in pairs:
        under += [variant.name] * len(one.findings)
        unfit |= {(variant.name, name) for name in one.unfit}
        aside |= {(variant.name, name) for name in one.aside}
    spared, untested = _not_covered(base, pairs, where_usable)
    decision = decide(every, nonfinite, unfit, under=under, untested=untested, aside=aside)
    if decision.verdict == "none_found":
        decision = decision._replace(reasons=[*decision.reasons, *spared])
    rest = iter(decision.judged[len(base.findings) :])
    documented = [
        Variant(
            name=variant.name,
            coverage=_documented(variant.coverage),
            findings=[next(rest) for _ in one.findings],
            failure=variant.failure,
            destroyed=variant.destroyed,
        )
        for variant, one in pairs
    ]
    return Judgement(decision._replace(judged=decision.judged[: len(base.findings)]), documented)


class _NotCovered(NamedTuple):
    """Sentences about what a verdict does not cover: that is told, or makes it inconclusive."""

    told: list[str]
    untested: list[str]


def _not_covered(
    base: Calibrated,
    pairs: Sequence[tuple[RanVariant, Calibrated]],
    where_usable: Collection[str],
) -> _NotCovered:
    hurt = {v.name: why for v, one in pairs if (why := _damage_to(one.findings))}
    ruined = {v.name: v.failure for v, _ in pairs if v.destroyed}
    whole = any(not v.failure and v.name not in hurt for v, _ in pairs)
    spared = set(where_usable) if whole else set()
    told = [
        f"Not covered is {name}: {why}"
        for name, why in {**ruined, **hurt}.items()
        if name in spared
    ]
    untested = [
        f"Too little is known of {name}: {why}" for name, why in hurt.items() if name not in spared
    ]
    untested += [
        f"Nothing is known of {v.name}: {v.failure}"
        for v, _ in pairs
        if v.failure and not (v.destroyed and v.name in spared)
    ]
    if base.findings and not _says_something(base.findings):
        untested.append("Nothing is known of the model as it is: no inspection could judge it.")
    for variant, one in pairs:
        if variant.failure or variant.name in hurt:
            continue
        unjudged = _unjudged(one.findings)
        if _says_something(one.findings, one.aside):
            untested += [
                f"Under {variant.name}: {f.title} is shown and not judged ({f.p_value_reason})."
                for f in unjudged
            ]
        elif not (base.findings and any(map(unchanged, one.findings))):
            untested.append(
                f"Nothing is known of {variant.name}: no inspection could judge what it makes of "
                f"the model{''.join(f' ({f.p_value_reason})' for f in unjudged)}."
            )
    return _NotCovered(told, untested)


def _damage_to(findings: Sequence[Finding]) -> str:
    return next((f.summary for f in findings if damage(f)), "")


def _says_something(findings: Sequence[Finding], aside: frozenset[str] = frozenset()) -> bool:
    return any(
        f.structural or (f.p_value is not None and f.inspection not in aside) for f in findings
    )


def _unjudged(findings: Sequence[Finding]) -> list[Finding]:
    """What was scored and not judged, though a variant is untested without it."""
    return [
        f for f in findings if f.outcome == "scored" and f.p_value is None and carries(f.inspection)
    ]


def damaged(variant: Variant) -> bool:
    """Whether any finding says :func:`damage` of it."""
    return any(damage(j.finding) for j in variant.findings)


def damage(finding: Finding) -> bool:
    """Whether it says that compression damaged the model too much for what has to carry a verdict.

    What else is judged there may be evidence; that nothing was found clears nothing.
    """
    left_out = finding.outcome == "not_applicable" and not unchanged(finding)
    return left_out and carries(finding.inspection)


def unchanged(finding: Finding) -> bool:
    """Whether it says that the variant is the model as it is, which its own inspections then
    speak for."""
    return finding.outcome == "not_applicable" and finding.summary == UNCHANGED


def limits(limits_of_kind: Sequence[str], *, variants: bool, base: bool) -> list[str]:
    """The limits of an audit with or without variants, with or without the model as it is."""
    more = VARIANT_LIMITS if variants else (NOT_AS_DEPLOYED,)
    return [*limits_of_kind, *more, *(() if base else (VARIANTS_ONLY,))]


def flagged_of(variants: Sequence[Variant]) -> list[tuple[str, Judged]]:
    """Flagged findings with the names of their variants."""
    return [(v.name, j) for v in variants for j in v.findings if j.flagged]


def _documented(coverage: Coverage | None) -> VariantCoverage | None:
    if coverage is None:
        return None
    return VariantCoverage(
        layers=list(coverage.layers),
        left_out=list(coverage.left_out),
        weights=coverage.weights,
        parameters=coverage.parameters,
        zeroed=coverage.zeroed,
    )
