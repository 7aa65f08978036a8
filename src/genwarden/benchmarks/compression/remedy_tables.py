"""Tables of the recipe ``compression-remedies``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from genwarden.benchmarks.population.statistics import Share
from genwarden.benchmarks.population.texts import count_text
from genwarden.benchmarks.tables import NOTHING, Table, figure

#: A generator's backdoor is gone at this share of the clean distance, a classifier's where at most
#: this share of triggered images goes to the target.
GONE_DISTANCE, GONE_SUCCESS = 0.5, 0.2
#: A remedy may cost this many times what plain compression does.
COST_RATIO = 1.5
_PLAIN = "none"

Row = dict[str, Any]


def tables(document: dict[str, Any], name: str = "") -> list[Table]:
    """A summary per remedy, then every cell; half-finished results give what is there.

    Args:
        document: content of a result file.
        name: of the file; the page shows it above the tables.
    """
    del name
    rows: list[Row] = document["rows"]
    missing = _missing(document.get("missing", []), len(rows))
    made = []
    for sort, title in (("generator", "generators"), ("classifier", "classifiers")):
        mine = [row for row in rows if row["sort"] == sort]
        made += [_summary(mine, title, missing), _matrix(mine, title)]
    return [table for table in made if table.rows]


def _missing(keys: Sequence[str], done: int) -> list[str]:
    """How many cells were not run, by the remedy that ends their keys; nothing if all were."""
    if not keys:
        return []
    counts = Counter(key.rpartition(".")[2] for key in keys)
    named = ", ".join(f"{count} of {remedy}" for remedy, count in counts.most_common())
    return [f"{done} of {done + len(keys)} cells of both sorts; not run: {named}."]


def gone(row: Row) -> bool:
    """Whether the backdoor no longer works after the remedy."""
    figures = row["figures"]
    if row["sort"] == "generator":
        return bool(figures["attacked"]["distance"] >= GONE_DISTANCE * figures["clean_distance"])
    return bool(figures["attacked"]["attack_success"] <= GONE_SUCCESS)


def plain_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row of the same model under the same compression without a remedy."""
    for other in rows:
        same = all(
            other[key] == row[key] for key in ("network", "attack", "label", "how", "target")
        )
        cell = other["cell"]
        if same and cell["remedy"] == _PLAIN and cell["how"] == row["cell"]["how"]:
            return other
    return None


def ratio(row: Row, rows: Sequence[Row], which: str) -> float | None:
    """Cost over that of plain compression of the same model; None without the latter."""
    plain = plain_of(row, rows)
    if plain is None or plain["figures"][which]["cost"] <= 0:
        return None
    return float(row["figures"][which]["cost"] / plain["figures"][which]["cost"])


def awake(row: Row, rows: Sequence[Row]) -> bool:
    """Whether plain compression wakes the backdoor: otherwise nothing can be remedied."""
    plain = plain_of(row, rows)
    return plain is not None and not gone(plain)


def _groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """By remedy, ordinary attackers before those who trained over jittered quantisers."""
    found: dict[tuple[str, str], list[Row]] = {}
    for kind in ("fixed quantiser", "jitter-trained"):
        for row in rows:
            jittered = row["attack"].startswith("jittered")
            if (kind == "jitter-trained") is jittered and awake(row, rows):
                found.setdefault((row["cell"]["remedy"], kind), []).append(row)
    return found


def _summary(rows: Sequence[Row], title: str, missing: Sequence[str]) -> Table:
    made = []
    for (remedy, attacker), found in _groups(rows).items():
        ratios = {
            which: [r for row in found if (r := ratio(row, rows, which)) is not None]
            for which in ("attacked", "untouched")
        }
        cheap = Share(sum(r <= COST_RATIO for r in ratios["attacked"]), len(ratios["attacked"]))
        made.append(
            [
                remedy,
                attacker,
                count_text(Share(sum(map(gone, found)), len(found))),
                _middle(ratios["attacked"]),
                count_text(cheap),
                _middle(ratios["untouched"]),
                _points(found),
                _middle([row["figures"]["attacked"]["seconds"] for row in found]),
            ]
        )
    columns = ["remedy", "attacker", "backdoor gone", "cost / plain (attacked)"]
    columns += [f"at most {COST_RATIO:g}", "cost / plain (untouched)", "accuracy lost", "seconds"]
    notes = [
        "Median, largest. Cost: change of the output against the full model that is compressed, "
        "over that of plain compression of the same model. none: plain compression. Attacks that "
        "plain compression does not wake are left out.",
        f"Gone: compressed distance at least {100 * GONE_DISTANCE:g} % of the clean model's, or "
        f"attack success at most {100 * GONE_SUCCESS:g} %. Accuracy lost: points against the "
        "full model, in attacked classifiers.",
        *missing,
    ]
    return Table(f"Remedies, {title}", columns, made, notes)


def _points(found: Sequence[Row]) -> str:
    lost = [
        100 * (row["figures"]["attacked"]["full_accuracy"] - row["figures"]["attacked"]["accuracy"])
        for row in found
        if "accuracy" in row["figures"]["attacked"]
    ]
    return _middle(lost)


def _middle(values: Sequence[float]) -> str:
    return f"{median(values):.3g}, {max(values):.3g}" if values else NOTHING


def _matrix(rows: Sequence[Row], title: str) -> Table:
    """One line per attack and compression, one column per remedy."""
    remedies = list(dict.fromkeys(row["cell"]["remedy"] for row in rows))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        line = (row["network"], f"{row['attack']} {row['label']}".strip(), row["how"])
        key = (*line, row["target"], row["cell"]["how"])
        lines.setdefault(key, {})[row["cell"]["remedy"]] = _outcome(row)
    made = [
        [network, attack, how, target, under, *(cells.get(r, NOTHING) for r in remedies)]
        for (network, attack, how, target, under), cells in lines.items()
    ]
    columns = ["network", "attack", "made for", "target", "compressed as", *remedies]
    what = "attack success in percent; accuracy in percent"
    if title == "generators":
        what = "distance to the target; change of ordinary outputs (means of squares)"
    return Table(f"Every remedy against every attack, {title}", columns, made, [f"Cells: {what}."])


def _outcome(row: Row) -> str:
    found = row["figures"]["attacked"]
    if row["sort"] == "generator":
        return f"{figure(found['distance'])}; {found['cost']:.2g}"
    return f"{100 * found['attack_success']:.1f}; {100 * found['accuracy']:.1f}"
