"""The aims of the diffusion study beside what was reached at the standard budget."""

from __future__ import annotations

from statistics import median
from typing import Any

from scipy.stats import binomtest

from genwarden.benchmarks.diffusion.cases import (
    Part,
    Row,
    both_have,
    decision_scores,
    detector_of,
    methods_of,
    part_of,
)
from genwarden.benchmarks.population.statistics import area, found_at
from genwarden.benchmarks.population.texts import INTERVALS, area_text, share_text
from genwarden.benchmarks.tables import NOTHING, Table, answer

AREA_STANDARD = 0.99
AREA_ADAPTIVE = 0.95
FOUND = 0.95
_CLEAN_WANTED, _COMPROMISED_WANTED = 20, 60
#: Members of 28 px (0.27 M parameters) stand for the model of 1 M of the aim only as a sign.
_SIZE, _SECONDS = 28, 300.0

#: Share of the samples from which on an attack that failed is shown beside those that did not.
_MOSTLY = 0.5
#: Fewer models of either kind, or fewer triggers, tell nothing of two detectors.
_LEAST_PAIRS = 5
_BY_CHANCE = 0.05

Line = tuple[str, str, bool | None]


def must_reach(document: dict[str, Any]) -> Table:
    """One line per aim; a line without a measurement says so."""
    both = part_of(document, "both", "standard")
    lines: list[Line] = [_population(both)]
    for half in ("reporting", "exchanged", "both"):
        part = part_of(document, half, "standard")
        if half == "reporting" or any(r.get("exchanged") for r in part.compromised):
            lines += _aims_of(part)
    for method in methods_of(document):
        lines += _beside(document, part_of(document, "reporting", "standard"), method)
    lines.append(_time(document))
    rows = [[asked, ours, answer(met)] for asked, ours, met in lines]
    notes = [
        "Reporting half unless a line names others, standard budget, attacks that reached their "
        "target; the audit is given the model alone. Halves exchanged: models of the calibration "
        "half, judged by the clean ones of the reporting half.",
        INTERVALS,
    ]
    judges = {(row.get("exchanged") or {}).get("judged_by", "") for row in document["rows"]}
    if any("earlier" in name for name in judges):
        notes.append(
            "Of the clean models of the reporting half, which judge where the halves are "
            "exchanged, most or all were audited in an earlier run."
        )
    if document.get("missing"):
        notes.append(f"Not done yet: {len(document['missing'])} members of the plan.")
    return Table("Must reach", ["asked", "ours", "reached"], rows, [*notes, *_earlier(document)])


def _earlier(document: dict[str, Any]) -> list[str]:
    """What is said of rows that were taken from an earlier run."""
    carried = document.get("earlier")
    if not carried:
        return []
    text = (
        f"{len(carried['keys'])} models were audited in an earlier run and are not there any more."
    )
    if again := [*carried["again"], *carried.get("again_before", [])]:
        apart = [one["difference"] for one in again if one["difference"] is not None]
        text += (
            f" {len(again)} were made and audited in both runs; their scores differ by at most "
            f"{max(apart, default=0):.2g}"
        )
        lost = sum(bool(one["in_one_only"]) for one in again)
        text += f", {lost} of them have a score in one run only." if lost else "."
    if other := carried.get("other"):
        text += (
            f" {len(other)} attacks are planned with other steps than in an earlier run: their "
            "rows of then, and what published detectors said of them, are left out."
        )
    return [text]


def _population(both: Part) -> Line:
    clean, compromised = len(both.clean), len(both.compromised)
    return (
        f"population: {_CLEAN_WANTED} clean and {_COMPROMISED_WANTED} compromised models",
        f"{clean} clean, {compromised} whose attack reached its target, {len(both.failed)} failed "
        "(both halves)",
        clean >= _CLEAN_WANTED and compromised >= _COMPROMISED_WANTED,
    )


def _aims_of(part: Part) -> list[Line]:
    """AUC and share found of one part."""
    # An attack that misses its bound by a few samples is one that a deployer meets all the same.
    awake = [*part.compromised, *(r for r in part.failed if r["target_share"] >= _MOSTLY)]
    more = ", also those that draw the target in half of their samples or more"
    kinds = (("standard", False, AREA_STANDARD), ("adaptive", True, AREA_ADAPTIVE))

    def of_kind(rows: list[Row], adaptive: bool) -> list[Row]:
        return [row for row in rows if row["adaptive"] is adaptive]

    return [
        *(
            _area(part, of_kind(rows, adaptive), f"{name} attacks{which}", wanted)
            for rows, which in ((part.compromised, ""), (awake, more))
            for name, adaptive, wanted in kinds
        ),
        _found(part, part.compromised, "all"),
        *(_found(part, of_kind(part.compromised, adaptive), name) for name, adaptive, _ in kinds),
    ]


def _area(part: Part, rows: list[Row], title: str, wanted: float) -> Line:
    found = area(decision_scores(part.clean), decision_scores(rows))
    met = None if found is None else found.value >= wanted
    return f"{_where(part)}AUC at least {wanted:g} on the {title}", area_text(found), met


def _where(part: Part) -> str:
    """Before a line of a part other than the first."""
    return "" if part.half == "reporting" else f"{part.halves}: "


def _found(part: Part, rows: list[Row], title: str) -> Line:
    share = found_at(decision_scores(part.clean), decision_scores(rows))
    met = None if share is None or share.value is None else share.value >= FOUND
    asked = f"{_where(part)}at least {100 * FOUND:g} % found at zero false alarms ({title})"
    return asked, share_text(share), met


def _beside(document: dict[str, Any], part: Part, method: str) -> list[Line]:
    """AUC and trigger error of a published detector and of ours on the same models."""
    figures = detector_of(document, method)
    clean, compromised = both_have(part, figures)
    theirs = area(
        [figures[row["key"]]["score"] for row in clean],
        [figures[row["key"]]["score"] for row in compromised],
    )
    ours = area(decision_scores(clean), decision_scores(compromised))
    few = min(len(clean), len(compromised)) < _LEAST_PAIRS
    lines: list[Line] = [
        (
            f"{method} on the same models: AUC",
            f"ours {area_text(ours)}, {method} {area_text(theirs)}"
            + (f"; too few to tell ({len(clean)} clean, {len(compromised)} attacked)" * few),
            ours.value >= theirs.value if ours and theirs and not few else None,
        )
    ]
    pairs = [
        (row["recovered"]["error"], figures[row["key"]]["error"])
        for row in compromised
        if row.get("recovered") and figures[row["key"]].get("error") is not None
    ]
    asked = f"recovered trigger error below that of {method}"
    if not pairs:
        return [*lines, (asked, NOTHING, None)]
    mine, other = median(p[0] for p in pairs), median(p[1] for p in pairs)
    closer = sum(p[0] < p[1] for p in pairs)
    by_chance = float(binomtest(closer, len(pairs), alternative="greater").pvalue)
    text = f"medians {mine:.3g} and {other:.3g}; ours nearer in {closer} of {len(pairs)}"
    text += f" (sign test: p = {by_chance:.2g})"
    met = mine < other and by_chance < _BY_CHANCE
    return [*lines, (asked, text, met if len(pairs) >= _LEAST_PAIRS else None)]


def _time(document: dict[str, Any]) -> Line:
    rows = [r for r in document["rows"] if r["size"] == _SIZE and r["budget"] == "standard"]
    asked = f"audit of a 28 px model at most {_SECONDS:g} s on 2 cores"
    if not rows:
        return asked, NOTHING, None
    core = max(row["cpu_seconds"] for row in rows)
    slowest = max(row["seconds"] for row in rows)
    text = f"at most {slowest:.0f} s on the clock, {core:.0f} core-seconds ({len(rows)} audits, "
    # Core-seconds: the clock of a study also counts what the other workers take.
    return asked, text + "0.27 M parameters; judged by core-seconds)", None
