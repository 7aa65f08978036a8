"""The rows of the diffusion study, selected and grouped; what the tables and the figure share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]

#: The one that counts first.
BUDGETS = ("standard", "quick", "thorough")
_TITLES = {"both": "both halves", "exchanged": "halves exchanged"}
#: Of a study that has a third part.
_PARTS = {"confirmation": "confirmation part"}


class Part(NamedTuple):
    """The rows of one half (or of both) at one budget.

    Attributes:
        compromised: those whose attack reached its target.
        failed: those whose attack did not; in no rate.
    """

    half: str
    budget: str
    clean: list[Row]
    compromised: list[Row]
    failed: list[Row]

    @property
    def halves(self) -> str:
        """Which models, in words."""
        return {**_TITLES, **_PARTS}.get(self.half, f"{self.half} half")

    @property
    def title(self) -> str:
        """Of a table."""
        return f"{self.halves}, {self.budget} budget"


def swapped(row: Row) -> Row:
    """A row with the verdict of the half that it does not belong to, where that has judged it."""
    return {**row, **(row.get("exchanged") or {})}


def part_of(document: dict[str, Any], half: str, budget: str) -> Part:
    """Select.

    Args:
        half: of the plan; ``exchanged`` for the calibration half, judged by the clean models of the
            reporting half; ``both`` for each half judged by the other as far as that was done.
    """
    rows = [r for r in document["rows"] if r["budget"] == budget]
    if half in _TITLES:
        rows = [swapped(r) for r in rows if half == "both" or r.get("exchanged")]
    else:
        rows = [r for r in rows if r["half"] == half]
    return Part(
        half,
        budget,
        [r for r in rows if r["clean"]],
        [r for r in rows if not r["clean"] and r["succeeded"]],
        [r for r in rows if not r["clean"] and not r["succeeded"]],
    )


def parts_of(document: dict[str, Any]) -> list[Part]:
    """Reporting half first, then the other one, then both together; those with any row."""
    made = [
        part_of(document, half, budget)
        for budget in BUDGETS
        for half in ("reporting", "exchanged", "both", "calibration")
    ]
    return [part for part in made if part.clean or part.compromised or part.failed]


def families(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """All, standard, adaptive, then each family in the order of the plan; by title."""
    groups = {
        "all": list(rows),
        "standard attacks": [r for r in rows if not r["adaptive"]],
        "adaptive attacks": [r for r in rows if r["adaptive"]],
    }
    for row in rows:
        name = f"{row['family']} (adaptive)" if row["adaptive"] else row["family"]
        groups.setdefault(name, []).append(row)
    return {name: found for name, found in groups.items() if found}


def decision_scores(rows: Sequence[Row]) -> list[float]:
    """-log10 of the smallest adjusted p: the order of suspicion, without its rounding at 1.

    Inconclusive audits have no score. A clean model's ranks nowhere, since counted as unsuspicious
    it would make others look found; an attacked one's ranks lowest: it was not found.
    """
    return [
        -math.inf if row["score"] is None else float(row["score"])
        for row in rows
        if row["score"] is not None or not row["clean"]
    ]


def inconclusive_note(part: Part) -> list[str]:
    """How many of the rows have no score, for the notes of a table; nothing if all have one."""
    clean, found = (
        sum(row["score"] is None for row in rows) for rows in (part.clean, part.compromised)
    )
    if not clean + found:
        return []
    return [
        f"Inconclusive, so without a score: {clean} of {len(part.clean)} clean ones (they rank "
        f"nowhere) and {found} of {len(part.compromised)} attacked ones (they count as not found)."
    ]


def raw_scores(rows: Sequence[Row], inspection: str) -> list[float]:
    """Of one inspection; below all others where it gave none."""
    return [float(row["scores"].get(inspection, -math.inf)) for row in rows]


def inspections_of(rows: Sequence[Row]) -> list[str]:
    """Names of all inspections with a score, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row["scores"]))


def methods_of(document: dict[str, Any]) -> list[str]:
    """Published detectors whose figures stand beside ours."""
    return list(dict.fromkeys(row["cell"]["method"] for row in document.get("detectors", [])))


def detector_of(document: dict[str, Any], method: str) -> dict[str, dict[str, Any]]:
    """Figures of one published detector, by member."""
    return {
        row["cell"]["member"]: row["figures"]
        for row in document.get("detectors", [])
        if row["cell"]["method"] == method
    }


def both_have(
    part: Part, figures: dict[str, dict[str, Any]], pick: Callable[[Row], bool] = lambda _: True
) -> tuple[list[Row], list[Row]]:
    """Clean and compromised rows of a part on which a published detector was run, too."""
    clean = [r for r in part.clean if r["key"] in figures]
    return clean, [r for r in part.compromised if r["key"] in figures and pick(r)]
