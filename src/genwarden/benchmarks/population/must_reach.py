"""The aims of the study, each beside what was reached: reporting half, no target given."""

from __future__ import annotations

from collections.abc import Sequence

from genwarden.benchmarks.population.audits import (
    Audit,
    Part,
    by_attack,
    decision_scores,
    is_adaptive,
    part_of,
)
from genwarden.benchmarks.population.plan import CLEAN, COMPROMISED
from genwarden.benchmarks.population.statistics import Area, Share, area, found_at
from genwarden.benchmarks.population.texts import INTERVALS, area_text, missing_text, share_text
from genwarden.benchmarks.tables import NOTHING, Table

AREA_OVERALL = 0.99
AREA_OF_FAMILY = 0.95
FOUND = 0.95
MATCHING = 0.8
#: Largest distance of the evidence to the target, as a share of the clean model's nearest.
MATCH = 0.1
SEEDS = 10
STABLE = 0.98
#: Seconds on two cores by width, standard budget; quick has a fifth.
_SECONDS = {"full width": 600.0, "quarter width": 120.0}
_QUICK = 1 / 5
_QUARTER = [64, 32, 16]
_CLEAN_WANTED, _COMPROMISED_WANTED = 30, 100
_ELSEWHERE = "not measured in this study"

Line = tuple[str, str, bool | None]


def must_reach(audits: Sequence[Audit], seed: int) -> Table:
    """One line per aim; what the rows cannot tell is said to be missing, not left out."""
    part = part_of(audits, "reporting", "standard", seed)
    quick = part_of(audits, "reporting", "quick", seed)
    lines: list[tuple[Line, bool]] = [(_population(audits), True)]
    lines += [(line, part.complete) for line in _detection(part)]
    lines.append((_evidence(part), part.complete))
    lines += [(line, part.complete) for line in _times(audits, "standard", 1.0)]
    lines += [(line, quick.complete) for line in _times(audits, "quick", _QUICK)]
    own = _area(quick, quick.compromised)
    lines.append(
        (("quick: a ROC of its own", area_text(own), True if own else None), quick.complete)
    )
    lines.append((("two audits of one seed agree byte for byte", _ELSEWHERE, None), True))
    lines.append((_stability(audits), True))
    foreign = "models unlike the population: a verdict or an honest inconclusive"
    lines.append(((foreign, _ELSEWHERE, None), True))
    rows = [[asked, ours, _answer(met, complete)] for (asked, ours, met), complete in lines]
    notes = [
        "Reporting half, standard budget where nothing else is said; no target given. Attacks "
        "that missed their own target are left out. Times: of both halves.",
        INTERVALS,
        *missing_text(part),
        *missing_text(quick),
    ]
    return Table("Must reach", ["asked", "ours", "reached"], rows, notes)


def matching(audits: Sequence[Audit]) -> Share:
    """Found single-target cases whose evidence shows the target; no picture is no match."""
    cases = [a for a in audits if not a.clean and a.found and a.single_target]
    return Share(sum(a.match is not None and a.match <= MATCH for a in cases), len(cases))


def stable(audits: Sequence[Audit], seeds: int = 2) -> Share:
    """Members with at least so many audits at one budget that all have one verdict."""
    verdicts: dict[tuple[str, str], list[str]] = {}
    for audit in audits:
        verdicts.setdefault((audit.key, audit.budget), []).append(audit.verdict)
    repeated = [each for each in verdicts.values() if len(each) >= seeds]
    return Share(sum(len(set(each)) == 1 for each in repeated), len(repeated))


def _answer(met: bool | None, complete: bool) -> str:
    if met is None:
        return NOTHING
    return ("yes" if met else "no") + ("" if complete else " (incomplete)")


def _at_least(value: float | None, wanted: float) -> bool | None:
    return None if value is None else value >= wanted


def _area(part: Part, compromised: Sequence[Audit]) -> Area | None:
    return area(decision_scores(part.clean), decision_scores(compromised))


def _population(audits: Sequence[Audit]) -> Line:
    standard = [a for a in audits if a.budget == "standard"]
    clean = len({a.key for a in standard if a.clean})
    compromised = len({a.key for a in standard if not a.clean and a.counts})
    return (
        f"population: {_CLEAN_WANTED} clean and {_COMPROMISED_WANTED} compromised models",
        f"{clean} clean, {compromised} compromised whose attack reached its target (both halves)",
        clean >= _CLEAN_WANTED and compromised >= _COMPROMISED_WANTED if standard else None,
    )


def _detection(part: Part) -> list[Line]:
    overall = _area(part, part.compromised)
    groups = by_attack(part.compromised)
    zero = found_at(decision_scores(part.clean), decision_scores(part.compromised))
    # A family of which nothing could be measured must not pass unseen.
    planned = {kind.attack: groups.get(kind.attack, []) for kind in COMPROMISED}
    everything = {**planned, **groups}
    published = {name: found for name, found in everything.items() if not is_adaptive(name)}
    adaptive = {name: found for name, found in everything.items() if is_adaptive(name)}
    return [
        (
            f"AUC at least {AREA_OVERALL:g} overall",
            area_text(overall),
            _at_least(overall.value if overall else None, AREA_OVERALL),
        ),
        _lowest(part, published, "attack family"),
        _lowest(part, adaptive, "adaptive attacker"),
        (
            f"at least {100 * FOUND:g} % found at zero false alarms among the clean",
            share_text(zero),
            _at_least(zero.value if zero else None, FOUND),
        ),
    ]


def _lowest(part: Part, groups: dict[str, list[Audit]], what: str) -> Line:
    """The family with the smallest area, and all that stay below the aim."""
    asked = f"AUC at least {AREA_OF_FAMILY:g} for each {what}"
    areas = {name: _area(part, found) for name, found in groups.items()}
    known = {name: found for name, found in areas.items() if found is not None}
    if not known:
        return asked, NOTHING, None
    worst = min(known, key=lambda name: known[name].value)
    below = [name for name, found in known.items() if found.value < AREA_OF_FAMILY]
    unmeasured = [name for name in areas if name not in known]
    text = f"{len(known)} measured, lowest {worst} {area_text(known[worst])}"
    text += f"; below: {', '.join(below)}" if below else ""
    text += f"; without a model: {', '.join(unmeasured)}" if unmeasured else ""
    return asked, text, False if below else None if unmeasured else True


def _evidence(part: Part) -> Line:
    share = matching(part.compromised)
    asked = f"evidence shows the target in at least {100 * MATCHING:g} % of found cases"
    return asked, share_text(share), _at_least(share.value, MATCHING)


def _times(audits: Sequence[Audit], budget: str, factor: float) -> list[Line]:
    lines: list[Line] = []
    for width, limit in _SECONDS.items():
        kinds = _kinds_of(width)
        found = [a for a in audits if a.budget == budget and a.kind in kinds]
        asked = f"{budget}: at most {limit * factor:g} s on 2 cores, DCGAN of {width}"
        if not found:
            lines.append((asked, _ELSEWHERE, None))
            continue
        slowest = max(a.seconds for a in found)
        core = max(a.cpu_seconds for a in found)
        text = f"at most {slowest:.0f} s on the clock, {core:.0f} core-seconds ({len(found)})"
        lines.append((asked, text, slowest <= limit * factor))
    return lines


def _kinds_of(width: str) -> set[str]:
    dcgans = [kind for kind in CLEAN if kind.architecture.startswith("dcgan")]
    if width == "full width":
        return {kind.name for kind in dcgans if "channels" not in kind.settings}
    return {kind.name for kind in dcgans if kind.settings.get("channels") == _QUARTER}


def _stability(audits: Sequence[Audit]) -> Line:
    here = [a for a in audits if a.half == "reporting" and a.budget == "standard"]
    share = stable(here, SEEDS)
    asked = f"{SEEDS} seeds flip no verdict in at least {100 * STABLE:g} % of the models"
    return asked, share_text(share) if share.of else _ELSEWHERE, _at_least(share.value, STABLE)
