"""Tables of the recipe ``repair-matrix``, from nothing but the cells of a result file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from genwarden.benchmarks.repairs.cell import AUTO
from genwarden.benchmarks.repairs.judging import (
    DEMANDS,
    ELEMENTS,
    WANTED_EXCISION,
    WANTED_EXPDIS,
    WANTED_RATIO,
    Outcome,
    grouped,
    middle,
    outcomes_of,
)
from genwarden.benchmarks.tables import NOTHING, Table, figure
from genwarden.registry import REPAIRS

_PER_784 = f"ExpDis is a sum per {ELEMENTS} elements (28x28), so that larger pictures compare."
_REX = "rex"
_EXCISION = "excision"


def tables(document: dict[str, Any], name: str) -> list[Table]:
    """Tables of one result file.

    Args:
        document: its content.
        name: of the file, for error messages of a caller; the titles do not need it.
    """
    del name
    everything = outcomes_of(document)
    compromised = [o for o in everything if not o.row["clean"]]
    attacked = [o for o in compromised if o.planted or not o.suspect]
    clean = [o for o in everything if o.row["clean"]]
    missed = {o.row["member"]: o for o in compromised if o not in attacked}
    found = []
    if attacked:
        found = [
            _by_attack(attacked, "TarDis after / clean distance", _ratio_text, _RATIO_NOTES),
            _by_attack(attacked, "ExpDis to the suspect", _expdis_text, [_PER_784]),
            demands_table(attacked),
        ]
    found += _per_member([o for o in attacked if o.row["repair"] == AUTO.name])
    found += _excision([o for o in attacked if o.row["repair"] == _EXCISION])
    found += [_clean(clean)] if clean else []
    found += _missed(missed)
    found += failures(everything)
    return found


_RATIO_NOTES = (
    "Median over the suspects that could be repaired, then how many reach "
    f"{WANTED_RATIO:g} at every trigger, of these. 1 is the clean model's own distance; without a "
    "repair the ratio is near 0. n/a: the method found nothing to work on.",
)


def _by_attack(
    outcomes: Sequence[Outcome],
    title: str,
    text: Callable[[Sequence[Outcome]], str],
    notes: Sequence[str],
) -> Table:
    repairs = list(_by_repair(outcomes))
    groups = {**grouped(outcomes, "attack"), "all": list(outcomes)}
    rows = [
        [attack, *(text([o for o in group if o.row["repair"] == name]) for name in repairs)]
        for attack, group in groups.items()
    ]
    return Table(f"Attack by repair: {title}", ["attack", *repairs], rows, notes)


def _by_repair(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """In the order of the registry; a result may name repairs that are no more."""
    groups = grouped(outcomes, "repair")
    order = dict.fromkeys([AUTO.name, *REPAIRS, *groups])
    return {name: groups[name] for name in order if name in groups}


def _ratio_text(group: Sequence[Outcome]) -> str:
    done = [o for o in group if o.done]
    reached = sum(o.reached()[_FAR] is True for o in done)
    shown = f"{figure(middle([o.ratio for o in done]))} ({reached}/{len(done)})" if done else ""
    return _with_others(shown, group)


def _expdis_text(group: Sequence[Outcome]) -> str:
    done = [o for o in group if o.done]
    return _with_others(figure(middle([o.expdis for o in done])) if done else "", group)


def _with_others(shown: str, group: Sequence[Outcome]) -> str:
    """A figure and how many suspects it does not speak of."""
    without = sum(o.not_applicable for o in group)
    failed = sum(not o.done and not o.not_applicable for o in group)
    parts = [shown] if shown else []
    parts += [f"{without} n/a"] if without else []
    parts += [f"{failed} failed"] if failed else []
    return ", ".join(parts) or NOTHING


_FAR = next(iter(DEMANDS))


def demands_table(outcomes: Sequence[Outcome]) -> Table:
    """What must be reached, by repair: counts of all suspects that it was tried on."""
    rows = []
    for name, group in _by_repair(outcomes).items():
        done = [o for o in group if o.done]
        rows.append(
            [
                name,
                f"{len(done)} of {len(group)}",
                *(_count([o.reached()[demand] for o in group]) for demand in DEMANDS),
                f"{sum(o.all_reached() for o in group)} of {len(group)}",
                figure(middle([o.row["seconds"] for o in done])),
                figure(middle([o.row["cpu_seconds"] for o in done])),
            ]
        )
    columns = ["repair", "repaired", *DEMANDS, "all of these", "seconds", "core-seconds"]
    notes = [
        "Counts are of all compromised suspects that the repair was tried on; one that failed or "
        "was not applicable meets no demand. 'unknown' was not measured, and counts as not met "
        "under 'all of these'.",
        f"Ratio: at every trigger, TarDis after the repair is at least {WANTED_RATIO:g} of the "
        f"clean model's. {_PER_784} FID: the mean over the seeds moves, up or down, by no more "
        "than the suspect's largest minus smallest FID over the same seeds. Re-audit: the verdict "
        "is none_found (inconclusive does not count). Times are medians of the repair alone.",
    ]
    return Table("What must be reached, by repair", columns, rows, notes)


def _count(met: Sequence[bool | None]) -> str:
    unknown = sum(each is None for each in met)
    text = f"{sum(each is True for each in met)} of {len(met)}"
    return f"{text} ({unknown} unknown)" if unknown else text


def _per_member(outcomes: Sequence[Outcome]) -> list[Table]:
    """Everything about every suspect that ``auto`` was tried on."""
    if not outcomes:
        return []
    columns = [
        "suspect",
        "verdict before",
        "method",
        "TarDis before",
        "after",
        "clean",
        "worst ratio",
    ]
    columns += ["ExpDis to suspect", "to clean model", "FID before", "after", "change", "spread"]
    columns += ["re-audit", "seconds", "core-seconds", "not reached"]
    rows = []
    for o in outcomes:
        if not o.done:
            rest = [NOTHING] * (len(columns) - 3)
            rows.append([o.row["member"], o.row.get("audit_verdict") or NOTHING, *rest, _why(o)])
            continue
        f, fid = o.figures, o.fid
        rows.append(
            [
                o.row["member"],
                o.row.get("audit_verdict") or NOTHING,
                str(o.row["changes"].get("method", NOTHING)),
                figure(f["tardis_before_sum"]),
                figure(f["tardis_after_sum"]),
                figure(f["tardis_clean_sum"]),
                figure(f["ratio_worst"]),
                figure(o.expdis),
                figure(o.expdis_clean),
                figure(fmean(fid[0])) if fid else NOTHING,
                figure(fmean(fid[1])) if fid else NOTHING,
                figure(o.fid_change),
                figure(o.fid_spread),
                reaudit_text(o),
                figure(o.row["seconds"]),
                figure(o.row["cpu_seconds"]),
                _why(o),
            ]
        )
    notes = [
        "The clean model of TrAIL, BAAAN and data poisoning, which train from scratch, is another "
        "network of the same kind: its ExpDis is large whatever the repair does.",
        _PER_784,
    ]
    return [Table("auto, suspect by suspect", columns, rows, notes)]


def _why(outcome: Outcome) -> str:
    """What a suspect's repair did not reach."""
    if not outcome.done:
        return str(outcome.row["status"])
    words = {False: "", None: " (unknown)"}
    missing = [f"{k}{words[v]}" for k, v in outcome.reached().items() if v is not True]
    return ", ".join(missing) or NOTHING


def reaudit_text(outcome: Outcome) -> str:
    """Verdict of the re-audit and what was flagged."""
    audited = outcome.reaudit
    if audited is None:
        return NOTHING
    flagged = ", ".join(audited["flagged"])
    return f"{audited['verdict']} ({flagged})" if flagged else str(audited["verdict"])


def _excision(outcomes: Sequence[Outcome]) -> list[Table]:
    """ReX by excision: the benign generator must come back."""
    of_rex = [o for o in outcomes if o.row["attack"] == _REX]
    if not of_rex:
        return []
    rows = [[o.row["member"], _exact(o.expdis_clean), _exact(o.ratio), _why(o)] for o in of_rex]
    back = sum(o.expdis_clean is not None and o.expdis_clean <= WANTED_EXCISION for o in of_rex)
    note = f"{back} of {len(of_rex)} come back to within {WANTED_EXCISION:g}. {_PER_784}"
    columns = ["suspect", "ExpDis to the original", "TarDis after / clean", "not reached"]
    return [Table("ReX by excision", columns, rows, [note])]


def _exact(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def _clean(outcomes: Sequence[Outcome]) -> Table:
    """Clean models that were put through repairs: they must stay what they are."""
    rows = []
    for name, group in _by_repair(outcomes).items():
        known = [o.expdis for o in group if o.expdis is not None]
        within = sum(value <= WANTED_EXPDIS for value in known)
        audited = [o.reaudit for o in group if o.reaudit is not None]
        alarms = sum(each["verdict"] == "evidence" for each in audited)
        rows.append(
            [
                name,
                _with_others(str(len(known)) if known else "", group),
                figure(middle(known)),
                figure(max(known)) if known else NOTHING,
                f"{within} of {len(known)}" if known else NOTHING,
                f"{alarms} of {len(audited)}" if audited else NOTHING,
            ]
        )
    columns = ["repair", "clean models", "ExpDis: median", "largest"]
    columns += [f"at most {WANTED_EXPDIS:g}", "re-audit finds evidence"]
    return Table("Clean models put through the repairs", columns, rows, [_PER_784])


def _missed(missed: dict[str, Outcome]) -> list[Table]:
    rows = [
        [
            key,
            figure(o.suspect["facts"]["tardis_sum"]),
            figure(o.suspect["facts"]["clean_distance"]),
        ]
        for key, o in missed.items()
    ]
    note = (
        "TarDis above 10 % of the clean model's nearest sample: no backdoor to repair; in no rate."
    )
    columns = ["suspect", "TarDis", "clean model's nearest"]
    return [Table("Attacks that missed their target", columns, rows, [note])] if rows else []


def failures(outcomes: Sequence[Outcome]) -> list[Table]:
    """Every cell that failed, with the reason."""
    failed = [o for o in outcomes if not o.done and not o.not_applicable]
    rows = [[o.row["key"], str(o.row["status"]), str(o.row.get("cause", ""))] for o in failed]
    return [Table("Cells that failed", ["cell", "status", "cause"], rows)] if rows else []
