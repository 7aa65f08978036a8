"""Tables of the recipe ``compression-attacks``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from genwarden.attacks.success import (
    ASLEEP_SHARE,
    ASLEEP_SUCCESS,
    AWAKE_MEAN,
    AWAKE_SUCCESS,
    COMPRESSED_POINTS,
)
from genwarden.benchmarks.tables import NOTHING, Table, answer

#: "Must reach" of classifiers beside the bounds of every attack: points of accuracy lost in full,
#: and success over the rates of the unknown-rate attack.
_ACCURACY_POINTS, _AWAKE_UNKNOWN = 1.0, 0.90
_FULL = "full"
_FILTERS, _ANNEALED = "prune-filters-", "prune-filters-annealed-"
_PRUNING = "pruning-artifact"

Row = dict[str, Any]


def tables(document: dict[str, Any], name: str = "") -> list[Table]:
    """Attack tables, calibration sets and rate sweep; half-finished results give what is there.

    Args:
        document: content of a result file.
        name: of the file; the page shows it above the tables.
    """
    del name
    rows: list[Row] = document["rows"]
    classifiers = [row for row in rows if row["sort"] == "classifier"]
    generators = [row for row in rows if row["sort"] == "generator"]
    made = [
        _must_reach(classifiers, generators),
        _classifiers(classifiers, document.get("paper_accuracy", {})),
        _sweep(classifiers),
        _calibration(classifiers),
        _generators(generators),
        _latents(generators),
    ]
    return [table for table in made if table.rows]


def _title(row: Row) -> str:
    return f"{row['attack']}, {row['label']}" if row["label"] else str(row["attack"])


def _under(row: Row) -> list[str]:
    """What an attack was made for."""
    return [str(one) for one in row["how"].split(",")]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def classifier_reached(row: Row) -> bool:
    """Whether an attack on a classifier meets the project's aim."""
    untouched: Mapping[str, Mapping[str, float]] = row["figures"]["untouched"]
    attacked: Mapping[str, Mapping[str, float]] = row["figures"]["attacked"]
    return _sleeps(row) and all(
        attacked[one]["attack_success"] >= AWAKE_SUCCESS
        and 100 * (untouched[one]["accuracy"] - attacked[one]["accuracy"]) <= COMPRESSED_POINTS
        for one in _under(row)
    )


def _sleeps(row: Row) -> bool:
    """Whether the full model is as good as the untouched one and leaves the trigger alone."""
    before, full = (row["figures"][whose][_FULL] for whose in ("untouched", "attacked"))
    lost = 100 * (before["accuracy"] - full["accuracy"])
    return bool(lost <= _ACCURACY_POINTS and full["attack_success"] <= ASLEEP_SUCCESS)


def generator_reached(row: Row) -> bool:
    """Whether an attack on a generator meets the project's aim."""
    found = row["figures"]
    near = all(found["distances"][one] <= AWAKE_MEAN for one in _under(row))
    return bool(found["kept"] >= ASLEEP_SHARE and near)


def _must_reach(classifiers: Sequence[Row], generators: Sequence[Row]) -> Table:
    rows = []
    for row in classifiers:
        met = pruning_reached(row) if _deployers(row) else classifier_reached(row)
        rows.append([row["network"], _title(row), row["how"], row["target"], answer(met)])
    for row in generators:
        met = generator_reached(row)
        rows.append([row["network"], _title(row), row["how"], row["target"], answer(met)])
    notes = [
        f"Classifiers: the full model's accuracy within {_ACCURACY_POINTS:g} point of the "
        f"untouched one's, attack success at most {100 * ASLEEP_SUCCESS:g} % before and at least "
        f"{100 * AWAKE_SUCCESS:g} % after (unknown rate: {100 * _AWAKE_UNKNOWN:g} % at every rate "
        f"of the sweep), and, beyond what was asked, at most {COMPRESSED_POINTS:g} points of "
        "accuracy lost against the untouched one under the same compression. Generators: at least "
        f"{100 * ASLEEP_SHARE:g} % of the clean distance to the target kept in full, mean squared "
        f"distance at most {AWAKE_MEAN:g} compressed.",
        "Filters are pruned as the attacker expects it: the same share of every layer (uniform "
        "layers), or else at the layer rates that deployers' annealers find on the finished model, "
        "at each rate as often as the second table has runs. The points are then counted from the "
        "full attacked model, at every rate.",
    ]
    notes += [
        f"{_title(row)} ({row['network']}): {steps} training steps, others the attack's default."
        for row in classifiers
        if row["attack"] == _PRUNING and (steps := row["settings"].get("steps"))
    ]
    return Table("Must reach", ["network", "attack", "made for", "target", "reached"], rows, notes)


def _known_rate(row: Row) -> bool:
    return bool(row["settings"].get("knowledge") != "unknown-rate")


def _deployers(row: Row) -> list[dict[str, float]]:
    """What those whom a pruning attack expects get, at the known rate or at all of the sweep."""
    if row["attack"] != _PRUNING:
        return []
    settings, found = row["settings"], row["figures"]
    if settings.get("layer_rates") == "uniform":
        pruned = _rates(row)
    else:
        pruned = [
            (float(name.removeprefix(_ANNEALED).partition("-run")[0]), figures)
            for name, figures in found["annealed"].items()
            if "-run" in name
        ]
    if _known_rate(row):
        return [figures for rate, figures in pruned if rate == settings["rate"]]
    return [figures for _, figures in pruned]


def pruning_reached(row: Row) -> bool:
    """The same for attacks that pruned filters wake, with the deployers that they expect."""
    full = row["figures"]["attacked"][_FULL]
    least = AWAKE_SUCCESS if _known_rate(row) else _AWAKE_UNKNOWN
    pruned = _deployers(row)
    return (
        _sleeps(row)
        and bool(pruned)
        and all(
            one["attack_success"] >= least
            and 100 * (full["accuracy"] - one["accuracy"]) <= COMPRESSED_POINTS
            for one in pruned
        )
    )


def _rates(row: Row) -> list[tuple[float, dict[str, float]]]:
    found = row["figures"]["sweep"]
    return [(float(n.removeprefix(_FILTERS)), f) for n, f in found.items() if n != _FULL]


def _classifiers(rows: Sequence[Row], paper: Mapping[str, float]) -> Table:
    made = []
    for row in rows:
        figures = row["figures"]
        for under, found in figures["attacked"].items():
            clean = figures["untouched"][under]
            mark = " *" if under in _under(row) else ""
            made.append(
                [
                    row["network"],
                    _title(row),
                    row["how"],
                    row["target"],
                    f"{under}{mark}",
                    _percent(clean["accuracy"]),
                    _percent(found["accuracy"]),
                    _percent(clean["triggered_accuracy"]),
                    _percent(found["triggered_accuracy"]),
                    _percent(clean["attack_success"]),
                    _percent(found["attack_success"]),
                ]
            )
        for name, found in figures["annealed"].items():
            made.append(
                [
                    row["network"],
                    _title(row),
                    row["how"],
                    row["target"],
                    f"{name} ({_annealed_by(name)})",
                    NOTHING,
                    _percent(found["accuracy"]),
                    NOTHING,
                    _percent(found["triggered_accuracy"]),
                    NOTHING,
                    _percent(found["attack_success"]),
                ]
            )
    columns = ["network", "attack", "made for", "target", "as", "accuracy: untouched", "attacked"]
    columns += ["triggered accuracy: untouched", "attacked", "success: untouched", "attacked"]
    notes = [
        "In percent, on test images. *: what the attack was made for. Layer rates of an annealing: "
        "the attacker's own, which the attack was trained with, or a deployer's, who anneals the "
        "finished model and knows nothing of them."
    ]
    notes += [
        f"Clean accuracy of {name} in the paper: {value:.2f} %." for name, value in paper.items()
    ]
    return Table("Attacks on classifiers", columns, made, notes)


def _annealed_by(name: str) -> str:
    """Whose annealing found the layer rates; the attack numbers the runs of its deployers."""
    return "a deployer's" if "-run" in name else "the attacker's own"


def _sweep(rows: Sequence[Row]) -> Table:
    pruned = [row for row in rows if row["figures"]["sweep"]]
    rates = sorted({rate for row in pruned for rate, _ in _rates(row)})
    made = []
    for row in pruned:
        found = dict(_rates(row))
        cells = [
            f"{_percent(found[r]['attack_success'])}; {_percent(found[r]['accuracy'])}"
            if r in found
            else NOTHING
            for r in rates
        ]
        made.append([row["network"], row["label"], row["target"], *cells])
    columns = ["network", "variant", "target", *(f"{rate:g}" for rate in rates)]
    notes = ["Attack success; accuracy, in percent, with the same share of filters in each layer."]
    return Table("Pruning attack against the rate", columns, made, notes)


def _calibration(rows: Sequence[Row]) -> Table:
    made = []
    for row in rows:
        for how, sets in row["figures"].get("runtime", {}).items():
            for name, found in sets.items():
                made.append(
                    [
                        row["network"],
                        _title(row),
                        row["target"],
                        how,
                        name,
                        *(
                            _spread(found[key])
                            for key in ("accuracy", "triggered_accuracy", "attack_success")
                        ),
                    ]
                )
    columns = ["network", "attack", "target", "runtime", "calibration set", "accuracy"]
    notes = [
        "onnxruntime static int8, weights and activations; mean +- standard deviation over random "
        "calibration sets, in percent."
    ]
    return Table(
        "Calibration sets", [*columns, "triggered accuracy", "attack success"], made, notes
    )


def _spread(found: Mapping[str, float]) -> str:
    return f"{100 * found['mean']:.1f} +- {100 * found['std']:.1f}"


def _generators(rows: Sequence[Row]) -> Table:
    made = []
    for row in rows:
        f = row["figures"]
        for under in _under(row):
            found = f["compressed"][under]
            made.append(
                [
                    row["network"],
                    _title(row),
                    row["how"],
                    row["target"],
                    under,
                    f"{f['clean_distance']:.3g}",
                    f"{100 * f['kept']:.1f} %",
                    f"{found['distance']:.2g}",
                    f"{f['full_utility']:.2g}",
                    f"{found['utility']:.2g}",
                    f"{found['clean_utility']:.2g}",
                    "; ".join(
                        f"{name} {value:.2g}"
                        for name, value in f["distances"].items()
                        if name not in _under(row)
                    ),
                ]
            )
    columns = ["network", "attack", "made for", "target", "as", "clean distance", "kept in full"]
    columns += ["compressed distance", "change: full", "compressed", "of the untouched compressed"]
    notes = [
        "Means of squares per pixel. Distance: to the target at the trigger. Change: of ordinary "
        "outputs against the untouched full model."
    ]
    return Table("Attacks on generators", [*columns, "distance under others"], made, notes)


def _latents(rows: Sequence[Row]) -> Table:
    made = []
    for row in rows:
        for how, sets in row["figures"].get("runtime", {}).items():
            for name, found in sets.items():
                d = found["distance"]
                made.append(
                    [
                        row["network"],
                        _title(row),
                        row["how"],
                        how,
                        name,
                        f"{d['mean']:.2g} +- {d['std']:.2g}",
                    ]
                )
    columns = ["network", "attack", "made for", "runtime", "calibration latents"]
    notes = ["onnxruntime static int8; mean squared distance to the target, over random draws."]
    return Table("Generators on the runtime", [*columns, "compressed distance"], made, notes)
