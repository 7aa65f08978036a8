"""Mutants without end: ``make fuzz``, or ``python tests/artifacts/fuzz.py --mutants 1000000``.

Blocks of mutants run in child processes with limits on memory and time. A mutant that ends in
another exception than ours, in a signal, or takes too long is kept as a file in OUT/crashers with a
note beside it. Stop it at any time: the same command continues. Exit code 1 if there are crashers.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mutants import ACCEPTED, CrasherError, Fuzzer

from genwarden.engine.files import write_atomic, write_json

_BLOCK = 20_000
_BLOCK_SECONDS = 900
_MEMORY_BYTES = 6 << 30  # torch alone reserves gigabytes of addresses


def main(arguments: list[str] | None = None) -> int:
    """Run, or continue, until so many mutants are judged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    parser.add_argument("--block", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.block:
        return _block(given.seed, given.out, *given.block)
    ledger_path = given.out / f"seed-{given.seed}.json"
    ledger = _read(ledger_path)
    while ledger["done"] < given.mutants:
        first = ledger["done"]
        last = min(first + _BLOCK, given.mutants)
        begun = time.monotonic()
        found = _run_block(given.seed, given.out, first, last)
        outcomes = Counter(ledger["outcomes"])
        outcomes.update(found["outcomes"])
        ledger["outcomes"] = dict(sorted(outcomes.items()))
        ledger["crashers"] += found["crashers"]
        ledger["seconds"] += time.monotonic() - begun
        ledger["done"] = found["next"]
        write_json(ledger_path, ledger)
        rate = ledger["done"] / max(ledger["seconds"], 1e-9)
        print(
            f"{ledger['done']:,} mutants, {ledger['crashers']} crashers, {rate:,.0f}/s", flush=True
        )
    return 1 if ledger["crashers"] else 0


def _read(path: Path) -> dict[str, Any]:
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    return {"done": 0, "seconds": 0.0, "outcomes": {}, "crashers": 0}


def _run_block(seed: int, out: Path, first: int, last: int) -> dict[str, Any]:
    """A block in a child process; one that dies is continued behind the mutant it died of."""
    out.mkdir(parents=True, exist_ok=True)
    place = out / "block.json"
    place.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--seed", str(seed), "--out", str(out)]
    command += ["--block", str(first), str(last)]
    try:
        done = subprocess.run(command, check=False, timeout=_BLOCK_SECONDS)
        status = done.returncode
    except subprocess.TimeoutExpired:
        status = -int(signal.SIGKILL)
    found: dict[str, Any] = {"next": first, "outcomes": {}, "crashers": 0}
    if place.exists():
        found = _read(place)
    if status:
        number = (
            int((out / "current").read_text() or first) if (out / "current").exists() else first
        )
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        with tempfile.TemporaryDirectory() as folder:
            mutant = Fuzzer(seed, Path(folder)).mutant(number)
        _keep(out, CrasherError(number, mutant, f"the process ended with {how}"))
        found["crashers"] += 1
        found["next"] = number + 1
    return found


def _block(seed: int, out: Path, first: int, last: int) -> int:
    """The child's side: judge ``first`` to ``last``, keep crashers, report."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    outcomes: Counter[str] = Counter()
    crashers = 0
    with tempfile.TemporaryDirectory() as folder, (out / "current").open("w") as current:
        fuzzer = Fuzzer(seed, Path(folder))
        for number in range(first, last):
            current.seek(0)
            current.write(f"{number:<12}")
            current.flush()
            try:
                outcomes[": ".join(fuzzer.run(number))] += 1
            except CrasherError as crasher:
                _keep(out, crasher)
                crashers += 1
    write_json(out / "block.json", {"next": last, "outcomes": outcomes, "crashers": crashers})
    return 0


def _keep(out: Path, crasher: CrasherError) -> None:
    stem = out / "crashers" / f"{crasher.mutant.form.replace(' ', '-')}-{crasher.number}"
    write_atomic(stem.with_suffix(".bin"), crasher.mutant.content)
    write_json(stem.with_suffix(".json"), {"number": crasher.number, "what": crasher.what})


__all__ = ["ACCEPTED", "main"]

if __name__ == "__main__":
    sys.exit(main())
