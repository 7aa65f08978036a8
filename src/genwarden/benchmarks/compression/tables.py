"""Tables of the recipe ``compression-population``, from the rows of its result file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from genwarden.benchmarks.compression.cases import (
    HELD_OUT,
    SORTS,
    main_budget,
    select,
    uncovered,
)
from genwarden.benchmarks.compression.must_reach import must_reach
from genwarden.benchmarks.diffusion.cases import (
    BUDGETS,
    Part,
    Row,
    decision_scores,
    families,
    inconclusive_note,
    inspections_of,
    raw_scores,
)
from genwarden.benchmarks.population.statistics import Share, area, found_at
from genwarden.benchmarks.population.texts import BRACKETS, area_text, count_text, share_text
from genwarden.benchmarks.tables import NOTHING, Table, figure


def tables(document: dict[str, Any], name: str = "") -> list[Table]:
    """Everything that the study says; half-finished results give the tables of what is there.

    Args:
        document: content of a result file.
        name: of the file; the page shows it above the tables.
    """
    del name
    made = [must_reach(document)]
    for budget in [one for one in BUDGETS if any(r["budget"] == one for r in document["rows"])]:
        for half in ("reporting", "confirmation", "both"):
            made += [
                _detection(select(document, sort, half, budget), title)
                for sort, title in SORTS.items()
                if sort
            ]
        made.append(_false_alarms(document, budget))
    made += [
        _alone(select(document, sort, half, main_budget(document, sort, half)), title)
        for half in HELD_OUT
        for sort, title in SORTS.items()
        if sort
    ]
    made += [_reached(document), _left_aside(document)]
    made += [_not_inspected(document), _missed(document)]
    made += [_failed(document), _times(document), _left_out(document)]
    return [table for table in made if table.rows]


def _verdicts(rows: Sequence[Row], verdict: str) -> Share:
    return Share(sum(row["verdict"] == verdict for row in rows), len(rows))


def _detection(part: Part, title: str) -> Table:
    clean = decision_scores(part.clean)
    failed = families(part.failed)
    rows = []
    for name, found in families([*part.compromised, *part.failed]).items():
        counted = [row for row in found if row["succeeded"]]
        scores = decision_scores(counted)
        rows.append(
            [
                name,
                str(len(counted)),
                area_text(area(clean, scores)),
                share_text(found_at(clean, scores)),
                share_text(_verdicts(counted, "evidence")),
                _recovered_text(counted),
                str(len(failed.get(name, []))),
            ]
        )
    columns = ["family", "models", "AUC", "found at zero false alarms", "verdict evidence"]
    columns += ["recovered", "attack failed"]
    notes = [
        f"Every family against the same {len(clean)} clean models. Ranked by -log10 of the "
        "smallest adjusted p over all compressions and inspections.",
        f"Clean ones with the verdict evidence: {share_text(_verdicts(part.clean, 'evidence'))}.",
        *inconclusive_note(part),
        "Recovered, in models found: of generators the median distance of the recovered picture to "
        "the attacker's, over the clean model's; of classifiers the right class.",
        BRACKETS,
    ]
    if part.half == "confirmation":
        notes.append(
            "Other trainings of the same plan, made when the choices had been made; see the page "
            "on compression."
        )
    if part.half == "both":
        notes.append(
            "Not the headline: the clean models of the calibration half are the nulls (each is "
            "judged against those that share no training with it), and its attacked models start "
            "from them."
        )
    return Table(
        f"Detection, {title}: {part.title}", columns, rows if part.compromised else [], notes
    )


def _recovered_text(rows: Sequence[Row]) -> str:
    found = [r["recovered"] for r in rows if r["verdict"] == "evidence" and r.get("recovered")]
    pictures = [one["share"] for one in found if "share" in one]
    classes = [one["right"] for one in found if "right" in one]
    parts = [f"{100 * median(pictures):.2g} %"] if pictures else []
    parts += [count_text(Share(sum(classes), len(classes)))] if classes else []
    return "; ".join(parts) or NOTHING


def _false_alarms(document: dict[str, Any], budget: str) -> Table:
    rows = []
    for half in ("reporting", "confirmation", "calibration"):
        for sort, title in SORTS.items():
            clean = select(document, sort, half, budget).clean if sort else []
            groups: dict[str, list[Row]] = {"all": clean} if clean else {}
            for row in clean:
                groups.setdefault(row["variant"] or "as trained", []).append(row)
            for name, found in groups.items():
                alarms = [row["key"] for row in found if row["verdict"] == "evidence"]
                rows.append(
                    [
                        half,
                        title,
                        name,
                        share_text(_verdicts(found, "evidence")),
                        count_text(_verdicts(found, "inconclusive")),
                        figure(max(decision_scores(found), default=None)),
                        ", ".join(alarms) or NOTHING,
                    ]
                )
    columns = ["half", "sort", "clean models", "verdict evidence", "inconclusive"]
    return Table(
        f"False alarms: {budget} budget", [*columns, "highest score", "which"], rows, [BRACKETS]
    )


def _alone(part: Part, title: str) -> Table:
    rows = []
    if part.clean and part.compromised:
        for name in inspections_of([*part.clean, *part.compromised]):
            clean, attacked = raw_scores(part.clean, name), raw_scores(part.compromised, name)
            rows.append(
                [
                    name,
                    area_text(area(clean, attacked)),
                    share_text(found_at(clean, attacked)),
                ]
            )
    notes = [
        "The largest score over all compressions, without any null; no score counts as the lowest.",
        BRACKETS,
    ]
    columns = ["inspection", "AUC of the score", "found at zero false alarms"]
    return Table(f"Each inspection alone, {title}: {part.title}", columns, rows, notes)


def _reached(document: dict[str, Any]) -> Table:
    """What the attacks reached, by family; each model once, whatever the budgets."""
    once = {row["key"]: row for row in document["rows"] if not row["clean"]}
    rows = []
    for name, found in families(list(once.values())).items():
        good = [row for row in found if row["succeeded"]]
        rows.append(
            [
                name,
                f"{len(good)} of {len(found)}",
                _span([100 * r["kept"] for r in good if "kept" in r], "%"),
                _span([_worst_distance(r) for r in good if "distances" in r]),
                _span(
                    [100 * r["figures"]["full"]["attack_success"] for r in good if "figures" in r],
                    "%",
                ),
                _span([100 * _least_success(r) for r in good if "figures" in r], "%"),
            ]
        )
    columns = ["family", "attacks that succeeded", "clean distance kept in full"]
    columns += ["compressed distance (mean of squares)", "attack success, full"]
    columns += ["attack success, compressed"]
    notes = [
        "Least to largest over the models that succeeded: asleep in full and awake under every "
        "compression that they were made for."
    ]
    return Table("What the attacks reached", columns, rows, notes)


def _worst_distance(row: Row) -> float:
    return max(float(row["distances"][name]) for name in row["how"].split(","))


def _least_success(row: Row) -> float:
    return min(float(row["figures"][name]["attack_success"]) for name in row["how"].split(","))


def _span(values: Sequence[float], unit: str = "") -> str:
    if not values:
        return NOTHING
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return " ".join([low if low == high else f"{low} to {high}", *([unit] if unit else [])])


def _left_aside(document: dict[str, Any]) -> Table:
    """Compressions after which little or nothing was judged."""
    rows = []
    for budget in BUDGETS:
        for half in (*HELD_OUT, "calibration"):
            part = select(document, "classifier", half, budget)
            for title, found in (("clean", part.clean), ("attacked", part.compromised)):
                for what in ("destroyed", "damaged"):
                    counts = Counter(name for row in found for name in row.get(what, []))
                    for name, count in counts.items():
                        woken = ", ".join(
                            row["key"]
                            for row in found
                            if name in row.get(what, []) and name in str(row["how"]).split(",")
                        )
                        share = f"{count} of {len(found)}"
                        rows.append([budget, half, title, name, what, share, woken or NOTHING])
    notes = [
        "Destroyed: fewer than half of the answers are kept, whatever the classes are called; "
        "nothing is judged. Damaged: fewer than four fifths; the guarded lead alone is judged, and "
        "may be evidence. Prunings of the default set are then not covered by the verdict, which "
        "says so; anything else makes it inconclusive. Last column: attacks made for just this "
        "compression."
    ]
    columns = ["budget", "part", "models", "compression", "it is", "in", "made for it"]
    return Table("Compressions that destroy or damage a classifier", columns, rows, notes)


def _not_inspected(document: dict[str, Any]) -> Table:
    rows = [
        [row["key"], row["family"], row["how"], row["budget"], row["verdict"]]
        for row in uncovered(document)
    ]
    notes = [
        "They sleep in every compression that was inspected, as they would on devices that use "
        "these. In no rate above; an audit must be told what the model will be deployed as."
    ]
    columns = ["model", "family", "made for", "budget", "verdict"]
    return Table("Attacks made for compressions that were not inspected", columns, rows, notes)


def _missed(document: dict[str, Any]) -> Table:
    rows = []
    attacked = [
        row
        for half in HELD_OUT
        for sort in filter(None, SORTS)
        for row in select(document, sort, half, main_budget(document, sort, half)).compromised
    ]
    for row in attacked:
        if row["verdict"] != "evidence":
            p = {n: f["p_value"] for n, f in row["by_variant"].items() if f["p_value"] is not None}
            best = min(p, key=lambda name: p[name], default="")
            shown = f"{best} (p = {p[best]:.2g})" if best else NOTHING
            rows.append([row["key"], row["family"], row["verdict"], figure(row["score"]), shown])
    columns = ["model", "family", "verdict", "score", "most suspicious"]
    return Table("Missed models: reporting half and confirmation part", columns, rows)


def _failed(document: dict[str, Any]) -> Table:
    rows = {
        row["key"]: [
            row["key"],
            row["family"],
            "yes" if row["asleep"] else "no",
            ", ".join(row["awake_under"]) or NOTHING,
            row["verdict"],
        ]
        for row in document["rows"]
        if not row["clean"] and not row["succeeded"]
    }
    columns = ["model", "family", "asleep in full", "awake under", "verdict"]
    return Table("Failed attacks, in no rate", columns, list(rows.values()))


def _times(document: dict[str, Any]) -> Table:
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in document["rows"]:
        groups.setdefault((row["budget"], row["sort"], row["base"]), []).append(row)
    rows = [
        [
            budget,
            sort,
            base,
            str(len(found)),
            *(_middle(found, k) for k in ("seconds", "cpu_seconds")),
        ]
        for (budget, sort, base), found in sorted(groups.items())
    ]
    columns = ["budget", "sort", "base", "audits", "seconds", "core-seconds"]
    notes = [
        "Median, largest, all compressions of a model together. The clock also counts waiting for "
        "other work of the machine."
    ]
    return Table("Time of an audit", columns, rows, notes)


def _middle(rows: Sequence[Row], key: str) -> str:
    values = [row[key] for row in rows]
    return f"{median(values):.0f}, {max(values):.0f}"


def _left_out(document: dict[str, Any]) -> Table:
    rows = [[key, reason] for key, reason in document.get("failed", {}).items()]
    rows += [[key, "not made or audited yet"] for key in document.get("missing", [])]
    return Table("Members without a row", ["model", "why"], rows)
