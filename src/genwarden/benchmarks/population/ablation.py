"""What each inspection finds on its own: the tables that decide which of them earn their cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from genwarden.benchmarks.population.audits import Audit, Part, by_attack
from genwarden.benchmarks.population.statistics import Share, area
from genwarden.benchmarks.population.texts import area_text, count_text, missing_text, share_text
from genwarden.benchmarks.tables import Table
from genwarden.registry import INSPECTIONS

#: Level of one inspection alone, without correction for the others.
ALONE = 0.01


def ablation_tables(part: Part) -> list[Table]:
    """One table of rates per inspection, one of what it finds by attack."""
    names = inspections([*part.clean, *part.compromised])
    if not names:
        return []
    return [_rates(part, names), _by_attack(part, names)]


def inspections(audits: Sequence[Audit]) -> list[str]:
    """Names of all inspections in the audits, in the order of the registry."""
    names = {name for a in audits for name in [*a.p_values, *a.scores, *a.flagged]}
    return [*(n for n in INSPECTIONS if n in names), *sorted(names - set(INSPECTIONS))]


def fires(audit: Audit, inspection: str) -> bool:
    """Whether the inspection alone points at the model: p below the level, or its flag.

    The flag counts for findings of structure, which have no p-value.
    """
    p = audit.p_values.get(inspection)
    return (p is not None and p < ALONE) or inspection in audit.flagged


def surprise(audit: Audit, inspection: str) -> float:
    """-log10 p; 0 where the inspection gave none, infinite where structure alone was flagged."""
    p = audit.p_values.get(inspection)
    if p is None:
        return math.inf if inspection in audit.flagged else 0.0
    return math.inf if p <= 0 else -math.log10(p)


def raw_score(audit: Audit, inspection: str) -> float:
    """The inspection's score, below all others where it gave none."""
    score = audit.scores.get(inspection)
    return -math.inf if score is None or math.isnan(score) else score


def _share(audits: Sequence[Audit], inspection: str) -> Share:
    return Share(sum(fires(audit, inspection) for audit in audits), len(audits))


def _rates(part: Part, names: Sequence[str]) -> Table:
    rows = []
    for name in names:
        judged = [a for a in (*part.clean, *part.compromised) if name in {*a.p_values, *a.scores}]
        by_p = area(
            [surprise(a, name) for a in part.clean], [surprise(a, name) for a in part.compromised]
        )
        by_score = area(
            [raw_score(a, name) for a in part.clean], [raw_score(a, name) for a in part.compromised]
        )
        only = sum(audit.flagged == [name] for audit in part.compromised)
        rows.append(
            [
                name,
                str(len(judged)),
                share_text(_share(part.clean, name)),
                share_text(_share(part.compromised, name)),
                area_text(by_p),
                area_text(by_score),
                str(sum(name in audit.flagged for audit in part.compromised)),
                str(only),
                str(sum(name in audit.flagged for audit in part.clean)),
            ]
        )
    columns = ["inspection", "models", f"clean, p < {ALONE:g}", f"compromised, p < {ALONE:g}"]
    columns += ["AUC of p", "AUC of score", "flagged by it", "only by it", "clean flagged by it"]
    notes = [
        f"Each inspection alone: its own p below {ALONE:g} without correction, or a flagged "
        "structure. No p counts as p = 1, no score as the lowest.",
        "What is kept and what is deleted was decided on the calibration half.",
        *missing_text(part),
    ]
    return Table(f"Each inspection alone: {part.half} half, {part.budget}", columns, rows, notes)


def _by_attack(part: Part, names: Sequence[str]) -> Table:
    groups = {"clean": list(part.clean), **by_attack(part.compromised)}
    rows = [[n, *(count_text(_share(audits, n)) for audits in groups.values())] for n in names]
    title = f"Which inspection alone finds which attack: {part.half} half, {part.budget}"
    return Table(title, ["inspection", *groups], rows, missing_text(part))
