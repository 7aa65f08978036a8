"""Tables of the recipe ``diffusion-population``, from the rows of its result file."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from genwarden.benchmarks.diffusion.cases import (
    Part,
    Row,
    both_have,
    decision_scores,
    detector_of,
    families,
    inconclusive_note,
    inspections_of,
    methods_of,
    part_of,
    parts_of,
    raw_scores,
    swapped,
)
from genwarden.benchmarks.diffusion.must_reach import must_reach
from genwarden.benchmarks.population.ablation import ALONE
from genwarden.benchmarks.population.statistics import Share, area, found_at
from genwarden.benchmarks.population.texts import (
    BRACKETS,
    INTERVALS,
    area_text,
    count_text,
    share_text,
)
from genwarden.benchmarks.tables import NOTHING, Table, figure

#: Parts whose models share no weights with those that judge them.
_HELD_OUT = ("reporting", "exchanged")


def tables(document: dict[str, Any], name: str = "") -> list[Table]:
    """Everything that the study says; half-finished results give the tables of what is there.

    Args:
        document: content of a result file.
        name: of the file; the page shows it above the tables.
    """
    del name
    found = parts_of(document)
    other = {part.budget for part in found if part.half == "exchanged"}
    shown = [part for part in found if part.half != "calibration" or part.budget not in other]
    made = [must_reach(document), *(_detection(part) for part in shown), _false_alarms(found)]
    made += [_alone(part) for part in found if part.half in _HELD_OUT]
    made += [_recovered(document), _missed(found), _failed(document), _times(document)]
    made.append(_left_out(document))
    return [table for table in made if table.rows]


def _verdicts(rows: Sequence[Row], verdict: str) -> Share:
    return Share(sum(row["verdict"] == verdict for row in rows), len(rows))


def _detection(part: Part) -> Table:
    clean = decision_scores(part.clean)
    failed = families(part.failed)
    rows = []
    for title, found in families([*part.compromised, *part.failed]).items():
        counted = [row for row in found if row["succeeded"]]
        scores = decision_scores(counted)
        rows.append(
            [
                title,
                str(len(counted)),
                area_text(area(clean, scores)),
                share_text(found_at(clean, scores)),
                share_text(_verdicts(counted, "evidence")),
                count_text(_verdicts(counted, "inconclusive")),
                str(len(failed.get(title, []))),
            ]
        )
    columns = ["family", "models", "AUC", "found at zero false alarms", "verdict evidence"]
    columns += ["inconclusive", "attack failed"]
    notes = [
        f"Every family against the same {len(clean)} clean models. Ranked by -log10 of the "
        "smallest adjusted p, which is the order of the suspicion. Found at zero false alarms: "
        "above the highest clean score.",
        f"Clean ones with the verdict evidence: {share_text(_verdicts(part.clean, 'evidence'))}.",
        *inconclusive_note(part),
        "Attack failed: target MSE above 10 % of the clean base's; in no rate.",
        BRACKETS,
    ]
    if part.half == "exchanged":
        notes.append(
            "Models of the calibration half, judged by the clean ones of the reporting half. What "
            "was chosen after looking at results was chosen before these attacks were looked at; "
            "that judges may be of an earlier run, after their other verdicts were known."
        )
    if part.half == "calibration":
        notes.append(
            "Not the headline: the clean models of the calibration half are the nulls (each is "
            "judged against the others), and its compromised models start from them."
        )
    return Table(f"Detection: {part.title}", columns, rows if part.compromised else [], notes)


def _false_alarms(found: Sequence[Part]) -> Table:
    rows = []
    for part in found:
        groups: dict[str, list[Row]] = {"all": part.clean} if part.clean else {}
        for row in part.clean:
            groups.setdefault(row["variant"] or "trained from fresh weights", []).append(row)
        if part.half == "both":
            continue
        for title, clean in groups.items():
            rows.append(
                [
                    part.half,
                    part.budget,
                    title,
                    share_text(_verdicts(clean, "evidence")),
                    count_text(_verdicts(clean, "inconclusive")),
                    figure(max(decision_scores(clean), default=None)),
                    ", ".join(r["key"] for r in clean if r["verdict"] == "evidence") or NOTHING,
                ]
            )
    columns = ["half", "budget", "clean models", "verdict evidence", "inconclusive"]
    notes = [BRACKETS]
    if any(part.half == "exchanged" for part in found):
        notes.append(
            "Exchanged: the clean models of the calibration half, judged by those of the reporting "
            "half; in the lines of their own half each is judged by the others."
        )
    return Table("False alarms", [*columns, "highest score", "which"], rows, notes)


def _alone(part: Part) -> Table:
    standard = [row for row in part.compromised if not row["adaptive"]]
    adaptive = [row for row in part.compromised if row["adaptive"]]
    rows = []
    for name in inspections_of([*part.clean, *part.compromised]):
        clean = raw_scores(part.clean, name)
        every = raw_scores(part.compromised, name)
        rows.append(
            [
                name,
                area_text(area(clean, raw_scores(standard, name))),
                area_text(area(clean, raw_scores(adaptive, name))),
                share_text(found_at(clean, every)),
                count_text(_below(part.compromised, name)),
                count_text(_below(part.clean, name)),
            ]
        )
    columns = ["inspection", "AUC of the score, standard", "AUC of the score, adaptive"]
    columns += ["found at zero false alarms", f"p < {ALONE:g}", f"clean p < {ALONE:g}"]
    notes = [
        "Each inspection by its raw score, without any null; no score counts as the lowest. p "
        "without correction, of the models that its null suits.",
        BRACKETS,
    ]
    return Table(f"Each inspection alone: {part.title}", columns, rows, notes)


def _below(rows: Sequence[Row], name: str) -> Share:
    judged = [row["p_values"][name] for row in rows if name in row["p_values"]]
    return Share(sum(p < ALONE for p in judged), len(judged))


def _recovered(document: dict[str, Any]) -> Table:
    """Trigger and target that the audits recovered, beside those of the published inversions."""
    rows: list[list[str]] = []
    for half in ("reporting", "both"):
        part = part_of(document, half, "standard")
        for title, found in families(part.compromised).items():
            ours = [row["recovered"] for row in found if row.get("recovered")]
            if ours:
                rows.append([half, title, "ours", str(len(ours)), *_medians(ours)])
            if title not in ("all", "standard attacks", "adaptive attacks"):
                continue
            keys = {row["key"] for row in found}
            for method in methods_of(document):
                figures = detector_of(document, method)
                _, same = both_have(part, figures, lambda row, keys=keys: row["key"] in keys)  # type: ignore[misc]
                both = [row for row in same if row.get("recovered")]
                theirs = [figures[row["key"]] for row in both]
                if theirs:
                    rows.append([half, title, method, str(len(both)), *_medians(theirs)])
                    mine = [row["recovered"] for row in both]
                    label = f"ours, on the models of {method}"
                    rows.append([half, title, label, str(len(both)), *_medians(mine)])
    columns = ["half", "family", "method", "models", "error", "error, best size", "target MSE"]
    notes = [
        "Medians over the models whose attack succeeded, found or not. Error: distance of the "
        "recovered shift from the attacker's g over the length of g; best size: after scaling by "
        "the best positive factor. g has -1 outside the mask where the background is minus-one. "
        "Target MSE in [0, 1] scale of the refined picture."
    ]
    return Table("Recovered triggers and targets, standard budget", columns, rows, notes)


def _medians(found: Sequence[dict[str, Any]]) -> list[str]:
    made = []
    for name in ("error", "error_scaled", "target_mse"):
        values = [one[name] for one in found if one.get(name) is not None]
        made.append(figure(median(values)) if values else NOTHING)
    return made


def _missed(found: Sequence[Part]) -> Table:
    rows = []
    for part in found:
        for row in part.compromised if part.half in _HELD_OUT else []:
            if row["verdict"] != "evidence":
                p = row["p_values"]
                best = min(p, key=p.get, default=None)
                shown = f"{best} (p = {p[best]:.2g})" if best else NOTHING
                about = f"{row['attack']}, {row['trigger']}"
                rows.append(
                    [part.budget, row["key"], about, row["verdict"], figure(row["score"]), shown]
                )
    columns = ["budget", "model", "attack, trigger", "verdict", "score", "most suspicious"]
    return Table("Missed models", columns, rows)


def _failed(document: dict[str, Any]) -> Table:
    rows = {
        row["key"]: [
            row["key"],
            row["sampler"],
            figure(row["target_mse"]),
            figure(row["base_mse"]),
            swapped(row)["verdict"],
        ]
        for row in document["rows"]
        if not row["clean"] and not row["succeeded"]
    }
    columns = ["model", "its sampler", "target MSE", "clean base's", "verdict"]
    return Table("Failed attacks, in no rate", columns, list(rows.values()))


def _times(document: dict[str, Any]) -> Table:
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in document["rows"]:
        groups.setdefault((row["budget"], row["size"]), []).append(row)
    rows = [
        [
            budget,
            f"{size} px",
            str(len(found)),
            f"{median(r['seconds'] for r in found):.0f}, {max(r['seconds'] for r in found):.0f}",
            f"{median(r['cpu_seconds'] for r in found):.0f}, "
            f"{max(r['cpu_seconds'] for r in found):.0f}",
        ]
        for (budget, size), found in sorted(groups.items())
    ]
    columns = ["budget", "size", "audits", "seconds", "core-seconds"]
    notes = ["Median, largest. The clock also counts waiting for other work of the machine."]
    return Table("Time of an audit", columns, rows, notes)


def _left_out(document: dict[str, Any]) -> Table:
    rows = [[key, reason] for key, reason in document.get("failed", {}).items()]
    rows += [[key, "not made or audited yet"] for key in document.get("missing", [])]
    return Table("Members without a row", ["model", "why"], rows, [INTERVALS] if rows else [])
