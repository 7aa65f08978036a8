"""Shares, areas and their intervals as text for the tables."""

from __future__ import annotations

from genwarden.benchmarks.population.audits import Part
from genwarden.benchmarks.population.statistics import Area, Share
from genwarden.benchmarks.tables import NOTHING

#: What the brackets are.
INTERVALS = (
    "Brackets: 95 % intervals, of shares by Clopper and Pearson, of AUC by Newcombe's method 5 "
    "(a score interval on Hanley and McNeil's variance, which keeps a width at an AUC of 1). They "
    "take the models as independent; compromised ones of one base share its weights."
)
#: The same below the tables after the first.
BRACKETS = "Brackets: 95 % intervals (see the table Must reach)."


def share_text(share: Share | None) -> str:
    """``18 of 20: 90.0 % [68.3, 98.8]``."""
    if share is None or share.value is None:
        return NOTHING
    low, high = share.interval
    percent = f"{100 * share.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{share.found} of {share.of}: {percent}"


def count_text(share: Share) -> str:
    """``18 of 20``."""
    return f"{share.found} of {share.of}" if share.of else NOTHING


def area_text(area: Area | None) -> str:
    """Four digits: a pair of a few dozen models each is seen in them."""
    if area is None:
        return NOTHING
    return f"{area.value:.4f} [{area.interval.low:.3f}, {area.interval.high:.3f}]"


def missing_text(part: Part) -> list[str]:
    """A note where planned members were not audited."""
    if part.complete:
        return []
    clean, compromised = part.missing
    return [
        f"Not audited yet ({part.half} half, {part.budget}): {clean} clean and {compromised} "
        "compromised models of the plan."
    ]
