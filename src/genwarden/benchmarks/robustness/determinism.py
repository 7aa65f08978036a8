"""Recipe ``determinism``: the same command, the same ``audit.json``, whatever the machine is doing.

    genwarden benchmark run determinism --out OUT --option repeats=10

Audits are repeated, run under ``OMP_NUM_THREADS`` 1, 2 and 4, on 1, 2 and 4 workers, and with the
blocks of their streams and the pieces of their scans in another order, in one process and over
several; a benchmark of cells is run with 1, 2 and 4 workers. Compared is all that they leave, but
for seconds and the machine. The audits have the smallest budgets (see :mod:`.nursery`), as equal
bits do not depend on how many there are, and streams of several pieces. One network, whose layers
are large enough to be shared out, is computed with as many threads as large networks are.

Cost: some minutes on an idle core.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import torch

from genwarden.auditing.audit import environment
from genwarden.auditing.scanning import scan_pieces
from genwarden.benchmarks.robustness.commands import COMMANDS, OUT, WIDE, make_inputs, make_wide
from genwarden.benchmarks.robustness.snapshots import code_digest, digests
from genwarden.benchmarks.store import write_result
from genwarden.benchmarks.tables import Table
from genwarden.engine.files import require_writable_folder, sha256_bytes
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress
from genwarden.engine.threads import LARGE_THREADS
from genwarden.errors import GenwardenError

RECIPE: Final = "determinism"
#: Audits, and the samples of their streams, which make three pieces: fewer would be split among
#: two workers only, or not at all. None where there is no stream to share out.
AUDITS: Final[dict[str, tuple[tuple[str, ...], int | None]]] = {
    "audit": (COMMANDS["audit"], 24_576),
    "audit-threads": (
        ("audit", WIDE, "--budget", "quick", "--threads", str(LARGE_THREADS), "--out", OUT),
        24_576,
    ),
    "audit-diffusion": (COMMANDS["audit-diffusion"], None),
    "audit-classifier": (COMMANDS["audit-classifier"], None),
}
THREADS: Final = (1, 2, 4)
WORKERS: Final = (1, 2, 4)
_FEW: Final = 3
_LEAST_PIECES: Final = 3


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    repeats: int = 10,
) -> Path:
    """Run and compare.

    Args:
        data: not used.
        seed: not used by the commands, which have their own.
        repeats: of the first audit under one thread; of the others three at most.

    Raises:
        GenwardenError: ``benchmark/command-failed``, ``ledger/other-run`` (code that has changed).
    """
    del data
    out = out.resolve()
    require_writable_folder(out)
    make_inputs(out / "inputs")
    make_wide(out / "inputs")
    code = code_digest()
    ledger = Ledger(out / "ways", {"commands": COMMANDS, "audits": AUDITS, "genwarden_code": code})
    rows = []
    for name, (words, stream) in AUDITS.items():
        require_several_pieces(name, stream)
        ways = _ways(repeats if name == "audit" else min(repeats, _FEW), stream)
        rows.append(_row(name, words, ways, out, ledger, progress))
    cells: list[_Way] = [(f"{n} workers", {}, ("--workers", str(n))) for n in WORKERS]
    rows.append(_row("benchmark", COMMANDS["benchmark"], cells, out, ledger, progress))
    return write_result(
        out / "result.json",
        {
            "recipe": RECIPE,
            "command": f"genwarden benchmark run {RECIPE} --option repeats={repeats} --out DIR",
            "seed": seed,
            "genwarden_code": code,
            "rows": rows,
            "environment": environment(device),
        },
    )


def require_several_pieces(name: str, stream: int | None) -> None:
    """Where a scan is one piece, workers and orders of pieces would all be the same way.

    Raises:
        GenwardenError: ``benchmark/one-piece``.
    """
    if stream is not None and len(scan_pieces(stream)) < _LEAST_PIECES:
        raise GenwardenError(
            "benchmark/one-piece",
            f"The scan of {name}, {stream} samples, is {len(scan_pieces(stream))} pieces: there is "
            "nothing to share out or to shuffle.",
            f"Lengthen its stream in {__name__}.AUDITS.",
        )


_Way = tuple[str, dict[str, str], tuple[str, ...]]


def _ways(repeats: int, stream: int | None) -> list[_Way]:
    """Name, variables of the environment and further words of each way to run an audit."""
    more = () if stream is None else ("--stream", str(stream))
    ways: list[_Way] = [(f"repeat {n}", {"OMP_NUM_THREADS": "1"}, more) for n in range(repeats)]
    ways += [(f"{n} threads", {"OMP_NUM_THREADS": str(n)}, more) for n in THREADS]
    if stream is not None:
        ways += [(f"{n} workers", {}, (*more, "--workers", str(n))) for n in WORKERS]
        ways += [(f"shuffled {n}", {}, (*more, "--shuffle", str(n))) for n in (1, 2)]
        ways += [
            (f"shuffled {n}, {n} workers", {}, (*more, "--shuffle", str(n), "--workers", str(n)))
            for n in (2, 4)
        ]
    return ways


def _row(
    name: str,
    words: tuple[str, ...],
    ways: list[_Way],
    out: Path,
    ledger: Ledger,
    progress: Progress,
) -> dict[str, Any]:
    """One command in every way; the hash that each gave."""
    bar = progress.task(f"ways to run {name}", len(ways))
    found: dict[str, str] = {}
    for way, variables, more in ways:
        key = f"{name}.{way.replace(',', '').replace(' ', '-')}"
        kept = ledger.get(key)
        if kept is None:
            kept = {"sha256": _hash(name, words, variables, more, out)}
            ledger.put(key, kept)
        found[way] = kept["sha256"]
        bar.advance(1, way)
    return {
        "command": name,
        "words": " ".join(("genwarden", *words)),
        "ways": list(found),
        "different_results": len(set(found.values())),
        "sha256": found,
    }


def _hash(
    name: str,
    words: tuple[str, ...],
    variables: dict[str, str],
    more: tuple[str, ...],
    out: Path,
) -> str:
    """Run the command in a process of its own; the hash of what it leaves."""
    place = out / "runs" / name
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)
    done = subprocess.run(  # noqa: S603 (our own words)
        [sys.executable, "-m", "genwarden.benchmarks.robustness.one_run", *words, *more],
        cwd=place,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in {0, 1, 3}:
        raise GenwardenError(
            "benchmark/command-failed",
            f"{name} {' '.join(more)} ends with {done.returncode}: {done.stderr[-300:]}",
            "Run the command by hand; the words are in genwarden.benchmarks.robustness.commands.",
        )
    found = digests(place / OUT)
    shutil.rmtree(place)
    return sha256_bytes(json.dumps(found, sort_keys=True).encode())


def tables(result: dict[str, Any], name: str) -> list[Table]:
    """The table of a result file."""
    del name
    rows = [
        [
            row["command"],
            str(len(row["ways"])),
            ", ".join(_kinds(row)),
            str(row["different_results"]),
        ]
        for row in result["rows"]
    ]
    columns = ["command", "runs", "ways", "different results"]
    notes = ["1 different result: all runs left the same bytes, apart from seconds and machine."]
    return [Table("The same command again", columns, rows, notes)]


def _kinds(row: dict[str, Any]) -> list[str]:
    repeats = sum(way.startswith("repeat") for way in row["ways"])
    others = [way for way in row["ways"] if not way.startswith("repeat")]
    return [*([f"{repeats} repeats"] if repeats else []), *others]
