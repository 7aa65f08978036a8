"""One brute-force scan as a process of its own, so that it can be killed and begun again.

python -m genwarden.benchmarks.ray_scaling.scan_once MODEL OUT SAMPLES SEED [WORKERS ADDRESS]

OUT/ledger keeps what came back; OUT/done.json is written last. Without an address, the scan runs in
this process.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from genwarden.artifacts.model_folder import read_model
from genwarden.auditing.budgets import budget
from genwarden.auditing.scanning import PURPOSE, scan, scan_pieces
from genwarden.engine.choice import EngineChoice, open_executor
from genwarden.engine.files import json_bytes, sha256_bytes, write_json
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Silent, Task
from genwarden.engine.threads import fixed_threads, threads
from genwarden.inspections.workbench import Workbench
from genwarden.models.protocol import parameter_count
from genwarden.registry import INSPECTIONS


class _Clock(Silent):
    """Notes when samples are merged."""

    def __init__(self) -> None:
        self.merged: list[tuple[float, int]] = []

    def task(self, title: str, total: int, done: int = 0) -> Task:
        """The one bar of a scan."""
        del title, total, done
        return self

    def advance(self, steps: int = 1, note: str = "") -> None:
        """So many samples are merged."""
        del note
        self.merged.append((time.perf_counter(), steps))

    def rate(self, workers: int) -> float | None:
        """Samples per second once every worker has done a piece (they begin at the same time)."""
        if len(self.merged) <= workers:
            return None
        (begun, _), (ended, _) = self.merged[workers - 1], self.merged[-1]
        return sum(samples for _, samples in self.merged[workers:]) / (ended - begun)


def pieces_kept(ledger: Path) -> int:
    """How many pieces a ledger holds, merged or waiting; 0 if there is none yet."""
    merged = ledger / f"{PURPOSE}.bin"
    if not merged.exists():
        return 0
    _, _, content = merged.read_bytes().partition(b"\n")
    done = int.from_bytes(content[:8])
    numbers = (path.stem.rpartition(".")[2] for path in ledger.glob(f"{PURPOSE}.*.bin"))
    return done + sum(1 for number in numbers if number.isdecimal() and int(number) >= done)


def run(model: Path, out: Path, samples: int, seed: int, choice: EngineChoice) -> dict[str, Any]:
    """Scan, or go on with a scan, and say what it found and took."""
    began = time.perf_counter()
    loaded = read_model(model)
    count = fixed_threads(parameter_count(loaded.generator))
    effort = replace(budget("quick"), stream_samples=samples)
    bench = Workbench(
        generator=loaded.generator,
        effort=effort,
        seed=seed,
        device=torch.device("cpu"),
        architecture=loaded.architecture,
    )
    ledger = out / "ledger"
    identity = {"model": loaded.sha256, "effort": asdict(effort), "seed": seed}
    rows = {name: row for name, row in INSPECTIONS.items() if row.options.get("stream")}
    kept, clock = pieces_kept(ledger), _Clock()
    with threads(count), open_executor(choice, cpus=count) as executor:
        findings = scan(rows, bench, loaded.settings, executor, Ledger(ledger, identity), clock)
    document = {name: finding.model_dump(mode="json") for name, finding in findings.items()}
    return {
        "sha256": sha256_bytes(json_bytes(document)),
        "seconds": time.perf_counter() - began,
        "pieces": len(scan_pieces(samples)),
        "pieces_kept": kept,
        "samples_per_s": None if kept else clock.rate(choice.workers or 1),
    }


def main() -> None:
    """The command line."""
    model, out, samples, seed, *engine = sys.argv[1:]
    choice = EngineChoice()
    if engine:
        workers, address = engine
        choice = EngineChoice("ray", int(workers), address)
    done = run(Path(model), Path(out), int(samples), int(seed), choice)
    write_json(Path(out) / "done.json", done)


if __name__ == "__main__":
    main()
