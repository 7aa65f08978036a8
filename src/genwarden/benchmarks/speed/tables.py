"""Tables of recipe ``speed``."""

from __future__ import annotations

from typing import Any

from genwarden.benchmarks.tables import NOTHING, Table, figure

#: "Must reach" on 2 cores.
_OVER_EAGER, _FLOOR_SHARE, _OVERHEAD = 2.0, 0.85, 0.10
_SEARCH_S, _HELP_S, _AUDIT_START_S = 60.0, 1.0, 6.0


def tables(document: dict[str, Any], name: str = "") -> list[Table]:
    """All tables of a result.

    Args:
        document: content of a result file.
        name: of the file; the page shows it above the tables.
    """
    del name
    found = [_must_reach(document), _scan(document), _stages(document), _search(document)]
    return [*found, _audits(document)] if document["audits"] else found


def best_eager(document: dict[str, Any], precision: str, clock: str) -> float:
    """Samples per second of plain eager PyTorch at the batch size that it likes best."""
    rates = document["scan"]["eager_samples_per_s"][precision].values()
    return max(float(rate[clock]) for rate in rates)


def floor(document: dict[str, Any], precision: str, clock: str) -> float:
    """Operations per second: matrix product or convolution, whichever is faster."""
    rates = document["scan"]["floor_operations_per_s"][precision].values()
    return max(float(rate[clock]) for rate in rates)


def faster(document: dict[str, Any]) -> str:
    """The precision in which a scan takes less time on the wall."""
    stages: dict[str, Any] = document["scan"]["stages_samples_per_s"]
    return max(stages, key=lambda name: float(stages[name]["scan"]["wall"]))


def figures(document: dict[str, Any], clock: str) -> dict[str, float]:
    """The asked figures by one clock."""
    scan = document["scan"]
    stages = scan["stages_samples_per_s"]
    rate = float(stages["float32"]["scan"][clock])
    best = float(stages[faster(document)]["scan"][clock])
    operations = float(scan["operations_per_sample"])
    search = document["search"]
    return {
        "over_eager": rate / best_eager(document, "float32", clock),
        "floor_share": best * operations / floor(document, "bfloat16", clock),
        "floor_share_float32": rate * operations / floor(document, "float32", clock),
        **{
            f"overhead_{name}": float(rates["forward"][clock]) / float(rates["scan"][clock]) - 1
            for name, rates in stages.items()
        },
        "search_s": float(search["rows"][0]["seconds"][clock]),
        "help_s": float(document["start_s"]["help"][clock]),
        "audit_start_s": float(document["start_s"]["audit"][clock]),
    }


def _must_reach(document: dict[str, Any]) -> Table:
    wall, processor = figures(document, "wall"), figures(document, "processor")
    search = document["search"]
    lines = [
        ("float32 scan over plain eager at its best batch", "over_eager", _OVER_EAGER, True),
        (f"{faster(document)} scan over the bfloat16 floor", "floor_share", _FLOOR_SHARE, True),
        ("float32 scan over the float32 floor", "floor_share_float32", _FLOOR_SHARE, True),
        ("float32 scan beyond the forward pass", "overhead_float32", _OVERHEAD, False),
        ("bfloat16 scan beyond the forward pass", "overhead_bfloat16", _OVERHEAD, False),
        (
            f"{search['restarts']:,} restarts of {search['steps']} steps, s",
            "search_s",
            _SEARCH_S,
            False,
        ),
        ("start of genwarden --help, s", "help_s", _HELP_S, False),
        ("start of an audit (imports, load), s", "audit_start_s", _AUDIT_START_S, False),
    ]
    rows = []
    for title, key, asked, least in lines:
        met = wall[key] >= asked if least else wall[key] <= asked
        sign = "at least" if least else "at most"
        rows.append(
            [
                title,
                f"{sign} {asked:g}",
                figure(wall[key]),
                figure(processor[key]),
                "yes" if met else "no",
            ]
        )
    notes = [
        "An audit scans in float32 unless told `--scan-precision bfloat16`. The samples that it "
        "shows are then computed again in float32; the other distances of the tail are not.",
        "Scan: sampling, forward pass, distances to two targets with their nearest samples, and "
        "distances to 32 clusters with the farthest samples.",
        "Floor: the operations of the ordinary path at the best rate of a matrix product or a "
        "convolution. The frequency domain needs fewer, so that the share may exceed 1. Asked is "
        "the bfloat16 one; where a processor has no units for it, that of float32 is the higher.",
        "Beyond the forward pass: the time of the whole scan over that of the forward pass alone, "
        "less 1 (not the sum of the stages, which are measured one by one).",
        "Reached: by the wall, which is what a user waits for (on a GPU, processor time is that of "
        "the host).",
    ]
    return Table("Must reach", ["what", "asked", "wall", "processor", "reached"], rows, notes)


def _scan(document: dict[str, Any]) -> Table:
    scan = document["scan"]
    rows = []
    operations = float(scan["operations_per_sample"])

    def row(title: str, rate: dict[str, float]) -> list[str]:
        done = rate["wall"] * operations / 1e9
        return [title, figure(rate["wall"]), figure(rate["processor"]), figure(done)]

    for precision, kinds in scan["floor_operations_per_s"].items():
        for kind, rate in kinds.items():
            as_samples = {clock: value / operations for clock, value in rate.items()}
            rows.append(row(f"floor, {kind}, {precision}", as_samples))
    for precision, sizes in scan["eager_samples_per_s"].items():
        for size, rate in sizes.items():
            rows.append(row(f"eager PyTorch, {precision}, batch {size}", rate))
    for precision, stages in scan["stages_samples_per_s"].items():
        rows.append(row(f"fast path, {precision}", stages["forward"]))
        rows.append(row(f"scan, everything, {precision}", stages["scan"]))
    columns = ["what", "samples/s, wall", "samples/s, processor", "10^9 operations/s"]
    notes = [
        f"{_model(scan)}; {operations / 1e6:.4g} million operations per sample on the ordinary "
        "path, which the last column is counted in.",
        f"Every scan works in blocks of {scan['samples_per_block']}, on every machine: samples "
        "follow from the number of their block, so another size would be another scan.",
        f"Scan: {'; '.join(scan['computed'].values())}. Peak memory of this table's process, with "
        f"PyTorch and every batch size that was tried: {document['peak_memory_mib']:,.0f} MiB.",
    ]
    return Table("Samples per second", columns, rows, notes)


def _stages(document: dict[str, Any]) -> Table:
    rows = []
    for precision, stages in document["scan"]["stages_samples_per_s"].items():
        whole = stages["scan"]["processor"]
        rows += [
            [precision, name, figure(1e6 / rate["processor"]), f"{whole / rate['processor']:.1%}"]
            for name, rate in stages.items()
        ]
    columns = ["precision", "stage", "µs per sample", "share"]
    return Table("Where a scan spends its time", columns, rows)


def _search(document: dict[str, Any]) -> Table:
    search = document["search"]
    rows = [
        [
            str(row["halvings"]) if row["halvings"] else "none",
            figure(row["seconds"]["wall"]),
            figure(row["seconds"]["processor"]),
            figure(row["restarts_per_s"]["processor"]),
            figure(row["best_squared_distance"]),
            figure(row["median_squared_distance"]),
            figure(row["finish_seconds"]["wall"]),
            figure(row["finished_squared_distance"]),
        ]
        for row in search["rows"]
    ]
    columns = ["halvings", "s, wall", "s, processor", "restarts/s, processor"]
    columns += ["best squared distance", "median", "second-order finish, s", "finished at"]
    notes = [
        f"{_model(search)}. {search['restarts']:,} restarts of {search['steps']} steps towards "
        "the output of a hidden ordinary latent.",
        "Halvings: how often the worse half of the restarts is given up (at half of the steps, at "
        "a quarter, ...); the asked time is that without. Finish: Levenberg-Marquardt from the "
        "best restart, in float64.",
    ]
    return Table("Latent search", columns, rows, notes)


def _audits(document: dict[str, Any]) -> Table:
    rows = []
    for row in document["audits"]:
        timing = {k: v for k, v in row["timing"].items() if k != "total"}
        dearest = max(timing, key=lambda name: timing[name]) if timing else NOTHING
        rows.append(
            [
                row["architecture"],
                "x".join(map(str, row["channels"])),
                f"{row['parameters']:,}",
                row["budget"],
                str(row["threads"]),
                figure(row["seconds"]["wall"]),
                figure(row["seconds"]["processor"]),
                dearest,
            ]
        )
    columns = ["network", "channels", "parameters", "budget", "threads", "s, wall"]
    columns += ["s, processor", "dearest inspection"]
    notes = [
        "Untrained networks, in which nothing is found: a flagged finding is looked into further, "
        "which takes longer."
    ]
    return Table("Cost of an audit", columns, rows, notes)


def _model(facts: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in facts["settings"].items())
    return f"{facts['architecture']}, {settings}, {facts['parameters']:,} parameters"
