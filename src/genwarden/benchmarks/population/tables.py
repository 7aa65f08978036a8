"""Tables of the recipe ``population``, from the rows of its result file."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from genwarden.benchmarks.population.ablation import ablation_tables, inspections, surprise
from genwarden.benchmarks.population.audits import (
    BUDGETS,
    Audit,
    Part,
    by_kind,
    by_variant,
    decision_scores,
    families,
    parts,
    read_audits,
)
from genwarden.benchmarks.population.must_reach import MATCH, matching, must_reach, stable
from genwarden.benchmarks.population.statistics import Share, area, found_at
from genwarden.benchmarks.population.texts import (
    BRACKETS,
    area_text,
    count_text,
    missing_text,
    share_text,
)
from genwarden.benchmarks.tables import NOTHING, Table, figure

#: Fewer clean models than this have no point between zero and one false alarm in a hundred.
_HUNDRED = 100


def tables(result: dict[str, Any], name: str = "") -> list[Table]:
    """Everything that the study says; half-finished results give the tables of what is there.

    Args:
        result: content of a result file.
        name: of the file; the page shows it above the tables.

    Raises:
        GenwardenError: ``benchmark/unreadable``.
    """
    del name
    audits = read_audits(result["rows"])
    seed = int(result["seed"])
    found = parts(audits, seed)
    made = [must_reach(audits, seed), *(_detection(part) for part in found)]
    made += [_false_alarms(found), _evidence(found), _missed(found), _failed(found)]
    made += [table for part in reversed(found) for table in ablation_tables(part)]
    made += [_seeds(audits), _times(audits), _broken(result.get("failed", {}))]
    return [table for table in made if table.rows]


def _detection(part: Part) -> Table:
    """AUC, found shares and verdicts by family."""
    clean = decision_scores(part.clean)
    fine = len(clean) >= _HUNDRED
    rows = []
    for title, everything in families([*part.compromised, *part.failed]).items():
        audits = [audit for audit in everything if audit.counts]
        scores = decision_scores(audits)
        rows.append(
            [
                title,
                str(len(audits)),
                area_text(area(clean, scores)),
                share_text(found_at(clean, scores)),
                *([share_text(found_at(clean, scores, 0.01))] if fine else []),
                share_text(_verdicts(audits, "evidence")),
                count_text(_verdicts(audits, "inconclusive")),
                str(len(everything) - len(audits)),
            ]
        )
    columns = ["family", "models", "AUC", "found at zero false alarms"]
    columns += [*(["found at 1 % false alarms"] if fine else [])]
    columns += ["verdict evidence", "inconclusive", "attack failed"]
    point = "" if fine else " With fewer than 100 of them, 1 % false alarms is the same point."
    notes = [
        f"Every family against the same {len(clean)} clean models of this half that were judged "
        "(inconclusive ones rank nowhere, attacked ones count as not found). Found at zero "
        f"false alarms: a score above the highest clean one, taken as given.{point}",
        f"Verdicts of the clean ones: evidence {share_text(_verdicts(part.clean, 'evidence'))}; "
        f"inconclusive {count_text(_verdicts(part.clean, 'inconclusive'))}.",
        "Attack failed: TarDis above 10 % of the clean model's nearest; in no rate.",
        BRACKETS,
        *missing_text(part),
    ]
    return Table(f"Detection: {part.half} half, {part.budget} budget", columns, rows, notes)


def _verdicts(audits: Sequence[Audit], verdict: str) -> Share:
    return Share(sum(audit.verdict == verdict for audit in audits), len(audits))


def _false_alarms(found: Sequence[Part]) -> Table:
    rows = [
        [
            part.half,
            part.budget,
            variant,
            share_text(_verdicts(audits, "evidence")),
            count_text(_verdicts(audits, "inconclusive")),
            figure(max(audit.score for audit in audits)),
            ", ".join(a.key for a in audits if a.found) or NOTHING,
        ]
        for part in found
        for variant, audits in by_variant(part.clean).items()
    ]
    columns = ["half", "budget", "clean models", "verdict evidence", "inconclusive"]
    columns += ["highest score", "which"]
    return Table("False alarms", columns, rows, [BRACKETS])


def _evidence(found: Sequence[Part]) -> Table:
    rows = []
    for index, part in enumerate(found):
        groups = families([a for a in part.compromised if a.found and a.single_target])
        for title, audits in groups.items():
            if index and title != "all":
                continue
            matches = [audit.match for audit in audits if audit.match is not None]
            near = sum(a.match_any is not None and a.match_any <= MATCH for a in audits)
            rows.append(
                [
                    part.half,
                    part.budget,
                    title,
                    share_text(matching(audits)),
                    figure(median(matches)) if matches else NOTHING,
                    str(len(audits) - len(matches)),
                    count_text(Share(near, len(audits))),
                ]
            )
    columns = ["half", "budget", "family", "evidence shows the target", "median distance"]
    columns += ["no picture", "any of its pictures does"]
    notes = [
        "Found cases with one target. Distance: of the evidence's picture to the target, squared, "
        f"over that of the clean model's nearest; up to {MATCH:g} it shows the target. What counts "
        "is the first picture of the report; a case without one does not show the target, and the "
        "median is over those with one. Last column: the nearest of all pictures in flagged "
        "findings.",
        BRACKETS,
    ]
    return Table("Does the evidence show the target", columns, rows, notes)


def _missed(found: Sequence[Part]) -> Table:
    """Compromised models without the verdict evidence, reporting half."""
    rows = [
        [a.budget, a.key, a.verdict, figure(a.score), _strongest(a)]
        for part in found
        if part.half == "reporting"
        for a in part.compromised
        if not a.found
    ]
    columns = ["budget", "model", "verdict", "score", "most suspicious inspection"]
    return Table("Missed models: reporting half", columns, rows)


def _strongest(audit: Audit) -> str:
    names = [name for name in inspections([audit]) if audit.p_values.get(name) is not None]
    if not names:
        return NOTHING
    name = max(names, key=lambda each: surprise(audit, each))
    return f"{name} (p = {audit.p_values[name]:.2g})"


def _failed(found: Sequence[Part]) -> Table:
    """Attacks that missed their own target, whatever the audits said of them."""
    verdicts: dict[str, list[str]] = {}
    first: dict[str, Audit] = {}
    for part in found:
        for audit in part.failed:
            first.setdefault(audit.key, audit)
            verdicts.setdefault(audit.key, []).append(f"{audit.budget}: {audit.verdict}")
    rows = []
    for key, audit in sorted(first.items()):
        known = audit.tardis_sum is not None and bool(audit.clean_distance)
        ratio = (audit.tardis_sum or 0.0) / (audit.clean_distance or 1.0) if known else None
        distances = [figure(audit.tardis_sum), figure(audit.clean_distance), figure(ratio)]
        rows.append([key, *distances, ", ".join(verdicts[key])])
    columns = ["model", "TarDis", "clean distance", "ratio", "verdicts"]
    return Table("Failed attacks, in no rate", columns, rows)


def _broken(failed: dict[str, str]) -> Table:
    """Members that an error kept out of the study."""
    rows = [[key, reason] for key, reason in failed.items()]
    return Table("Members that could not be made or audited", ["model", "error"], rows)


def _seeds(audits: Sequence[Audit]) -> Table:
    """Verdicts under several seeds of the audit."""
    groups: dict[tuple[str, str], dict[str, list[Audit]]] = {}
    for audit in audits:
        group = groups.setdefault((audit.half, audit.budget), {})
        group.setdefault(audit.key, []).append(audit)
    rows = []
    for (half, budget), models in sorted(groups.items(), reverse=True):
        repeated = {key: each for key, each in models.items() if len(each) > 1}
        if not repeated:
            continue
        counts = [len(each) for each in repeated.values()]
        flips = [key for key, each in repeated.items() if len({a.verdict for a in each}) > 1]
        share = stable([audit for each in repeated.values() for audit in each])
        seeds = f"{min(counts)} .. {max(counts)}" if min(counts) < max(counts) else str(counts[0])
        rows.append([half, budget, seeds, share_text(share), ", ".join(flips) or NOTHING])
    columns = ["half", "budget", "seeds per model", "no flip", "models that flip"]
    return Table("The same model under several seeds", columns, rows, [BRACKETS])


def _times(audits: Sequence[Audit]) -> Table:
    """Seconds of all audits by kind of model."""
    budgets = [b for b in BUDGETS if any(a.budget == b for a in audits)]
    rows = []
    for kind, of_kind in {"all": list(audits), **by_kind(audits)}.items():
        row = [kind]
        for budget in budgets:
            found = [a for a in of_kind if a.budget == budget]
            row += [str(len(found)), *(_middle_and_worst(t) for t in _both(found))]
        rows.append(row)
    columns = ["model"]
    for budget in budgets:
        columns += [f"{budget}: audits", f"{budget}: seconds", f"{budget}: core-seconds"]
    notes = [
        "Median, largest. Compromised models count with the kind that they start from (ReX and "
        "its kin are wider); the clock also counts waiting for other work of the machine."
    ]
    return Table("Time of an audit", columns, rows if audits else [], notes)


def _both(audits: Sequence[Audit]) -> tuple[list[float], list[float]]:
    return [a.seconds for a in audits], [a.cpu_seconds for a in audits]


def _middle_and_worst(seconds: Sequence[float]) -> str:
    return f"{median(seconds):.1f}, {max(seconds):.1f}" if seconds else NOTHING
