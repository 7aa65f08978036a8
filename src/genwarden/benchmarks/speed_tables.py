"""Tables of the recipes ``sweep`` and ``red-throughput``, from what their result files hold."""

from __future__ import annotations

from typing import Any

from genwarden.benchmarks.tables import NOTHING, Table, figure, mean_of

_TIMES = {
    "step_alone": "one step, alone",
    "step_per_student": "one step per student, together",
    "fixed_part_alone": "fixed part of a single run",
    "one_after_the_other_projected": "all students one after the other (projected)",
    "sweep": "the whole sweep",
}
_RATIOS = {"steps_ratio": "steps: alone / together", "ratio": "sweep: projected / measured"}


def sweep_tables(document: dict[str, Any], name: str) -> list[Table]:
    """TarDis and ExpDis by lambda, and times together and alone.

    Args:
        document: content of a result file.
        name: of the file, for the titles.
    """
    of_lambda = Table(
        f"ReD at several triggers and lambdas ({name})",
        ["lambda", "TarDis", "ExpDis", "triggers"],
        [
            [
                weight,
                mean_of(figures, "tardis_sum"),
                mean_of(figures, "expdis_sum"),
                str(figures["tardis_sum"]["repeats"]),
            ]
            for weight, figures in document["summary"].items()
        ],
        [_model(document), f"{document['settings']['steps']} steps; target {document['target']}."],
    )
    seconds = document.get("seconds") or {}
    rows = [
        [title, _of(seconds.get(key), "wall"), _of(seconds.get(key), "processor")]
        for key, title in {**_TIMES, **_RATIOS}.items()
    ]
    note = "Seconds on the clock and of the processor; ratios above 1: together is faster."
    columns = ["time", "wall", "processor"]
    times = Table(f"What the sweep saves ({name})", columns, rows, [note, _machine(document)])
    return [of_lambda, times]


def throughput_tables(document: dict[str, Any], name: str) -> list[Table]:
    """Speed of a step and its distance from the arithmetic floor.

    Args:
        document: content of a result file.
        name: of the file, for the titles.
    """
    rows = [
        [
            row["method"],
            str(row["batch_size"]),
            str(row["students"]),
            figure(row["student_steps_per_s"]),
            figure(row["operations_per_s"] / 1e9),
            figure(row["step_over_floor"]),
            _of(row.get("speedup"), "wall"),
        ]
        for row in document["rows"]
    ]
    columns = ["method", "batch", "students", "steps per second and student"]
    columns += ["10^9 operations per second", "step / floor", "speed-up (wall)"]
    best = max(document["peak_operations_per_s"].values())
    notes = [
        f"Floor: the counted operations at {figure(best / 1e9)} * 10^9 per second, the best rate "
        f"of a matrix product or a convolution in the same run, {document['precision']}.",
        _model(document),
        _machine(document),
    ]
    return [Table(f"Speed of ReD ({name})", columns, rows, notes)]


def _of(times: dict[str, float] | None, key: str) -> str:
    return NOTHING if times is None else figure(times.get(key))


def _model(document: dict[str, Any]) -> str:
    settings = ", ".join(f"{k} {v}" for k, v in document["architecture_settings"].items())
    return f"Model: {document['architecture']}, {settings}."


def _machine(document: dict[str, Any]) -> str:
    environment = document["environment"]
    threads = f", {environment['threads']} threads" if "threads" in environment else ""
    return f"Device: {environment['device']}{threads}."
