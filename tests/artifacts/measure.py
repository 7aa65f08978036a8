"""Figures of the gate: ``make hostile-figures`` writes results/hostile-files.json and the page.

Every hostile and honest file is opened as a command would open it, torch files in the confined
child process; seconds are of a core, with that process, and of the clock. Flipped bits are counted
by the same code as in the tests; the run of mutants comes from the ledger of ``make fuzz``.

Cost: ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from benign_catalogue import benign_cases
from canaries import watching
from catalogue import hostile_cases
from hostile_folders import fresh
from hostile_pickles import TRAP
from openers import checked, open_case

from genwarden.artifacts.limits import CHILD_MEMORY_BYTES, in_words
from genwarden.artifacts.manifest import WEIGHTS_NAME
from genwarden.artifacts.model_folder import read_model
from genwarden.benchmarks.store import write_result
from genwarden.benchmarks.tables import Table
from genwarden.engine.files import write_atomic
from genwarden.errors import GenwardenError

_PAGE = Path("docs/hostile_files.md")
_RESULT = Path("results/hostile-files.json")


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the result, write the page; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fuzz", type=Path, help="ledger that `make fuzz` wrote")
    parser.add_argument("--out", type=Path, default=_RESULT)
    parser.add_argument("--page", type=Path, default=_PAGE)
    parser.add_argument(
        "--page-only",
        action="store_true",
        help="from the result as it is; with --fuzz its mutants anew",
    )
    given = parser.parse_args(arguments)
    if not given.page_only:
        with tempfile.TemporaryDirectory() as folder:
            result = {
                "recipe": "hostile-files",
                "command": "make hostile-figures",
                "hostile": hostile_figures(Path(folder)),
                "honest": honest_figures(Path(folder)),
                "flipped_bits": flip_figures(Path(folder)),
                "mutants": mutant_figures(given.fuzz),
                "limits": in_words(),
                "environment": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
                },
            }
        write_result(given.out, result)
    result = json.loads(given.out.read_text(encoding="utf-8"))
    if given.page_only and given.fuzz:
        result["mutants"] = mutant_figures(given.fuzz)
        write_result(given.out, result)
    write_atomic(given.page, page(result).encode())
    return 0 if all(reached for _, _, reached in goals(result)) else 1


def megabytes() -> float:
    """Largest memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def core_seconds() -> float:
    """Processor time so far of this process and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def hostile_figures(folder: Path) -> dict[str, Any]:
    """Open every hostile file; rows by class and form."""
    fresh("diffusers folder", folder)
    before = megabytes()
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    wrong: list[str] = []
    events = largest = 0
    for case in hostile_cases():
        path = case.write(folder)
        if case.form == "torch zip":
            largest = max(largest, path.stat().st_size)
        code, exit_code = "", 0
        with watching() as watch:
            begun, worked = time.perf_counter(), core_seconds()
            try:
                open_case(case, path, confined=True)
            except GenwardenError as error:
                code, exit_code = error.code, int(error.exit_code)
            seconds, worked = time.perf_counter() - begun, core_seconds() - worked
        events += len(watch.events)
        if (code, exit_code) != (case.code, case.exit_code):
            wrong.append(f"{case.name}: {code or 'accepted'}")
        row = rows.setdefault(
            (case.attack, case.form),
            {"attack": case.attack, "form": case.form, "files": 0, "codes": {}}
            | {"most_core_s": 0.0, "most_clock_s": 0.0},
        )
        row["files"] += 1
        row["most_core_s"] = max(row["most_core_s"], worked)
        row["most_clock_s"] = max(row["most_clock_s"], seconds)
        row["codes"][code] = row["codes"].get(code, 0) + 1
    return {
        "files": sum(row["files"] for row in rows.values()),
        "wrong": wrong,
        "audit_events": events,
        "trap_sprung": os.path.exists(TRAP),
        "most_core_s": max(row["most_core_s"] for row in rows.values()),
        "most_clock_s": max(row["most_clock_s"] for row in rows.values()),
        "memory_mb": megabytes() - before,
        # What the kernel counts for a child begins with the size of its parent, so its limit.
        "child_limit_mb": (CHILD_MEMORY_BYTES + largest) / (1 << 20),
        "rows": sorted(rows.values(), key=lambda r: (int(r["attack"][2:]), r["form"])),
    }


def honest_figures(folder: Path) -> dict[str, Any]:
    """Open every honest file, and check every one that is a file."""
    files: Counter[str] = Counter()
    refused: list[str] = []
    for case in benign_cases():
        path = case.write(folder)
        files[case.form] += 1
        try:
            open_case(case, path, confined=True)  # type: ignore[arg-type]
        except GenwardenError as error:
            refused.append(f"{case.name}: {error.code}")
        if path.is_file() and checked(path)[0]:
            refused.append(f"{case.name}: check")
    return {"files": files.total(), "by_form": dict(files), "refused": refused}


def flip_figures(folder: Path, flips: int = 10_000) -> dict[str, Any]:
    """Single bits of the weights flipped after the manifest was written."""
    dice = random.Random(0)
    model = fresh("generator folder", folder)
    content = (model / WEIGHTS_NAME).read_bytes()
    reported = 0
    with (model / WEIGHTS_NAME).open("r+b", buffering=0) as handle:
        for _ in range(flips):
            place = dice.randrange(len(content))
            handle.seek(place)
            handle.write(bytes([content[place] ^ 1 << dice.randrange(8)]))
            try:
                read_model(model)
            except GenwardenError as error:
                reported += error.code == "artifact/hash-mismatch"
            handle.seek(place)
            handle.write(content[place : place + 1])
    return {"flips": flips, "reported": reported}


def mutant_figures(ledger: Path | None) -> dict[str, Any]:
    """Of the long run; nothing if there was none."""
    if ledger is None:
        return {}
    found: dict[str, Any] = json.loads(ledger.read_text(encoding="utf-8"))
    by_form: dict[str, Counter[str]] = {}
    for outcome, count in found["outcomes"].items():
        form, _, code = outcome.partition(": ")
        by_form.setdefault(form, Counter())[code] += count
    return {
        "mutants": found["done"],
        "crashers": found["crashers"],
        "seconds": found["seconds"],
        "by_form": {form: dict(codes.most_common()) for form, codes in by_form.items()},
    }


def goals(result: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """What was asked, what was measured, whether it is reached."""
    hostile, honest = result["hostile"], result["honest"]
    flips, mutants = result["flipped_bits"], result["mutants"]
    right = hostile["files"] - len(hostile["wrong"])
    memory = max(hostile["memory_mb"], hostile["child_limit_mb"])
    found = [
        (
            "at least 2,000 hostile files refused with the right code",
            f"{right:,} of {hostile['files']:,}",
            right == hostile["files"] >= 2000,
        ),
        (
            "no canary fired",
            f"{hostile['audit_events']} audit events, {int(hostile['trap_sprung'])} traps sprung",
            not hostile["audit_events"] and not hostile["trap_sprung"],
        ),
        (
            "each within 2 s",
            f"at most {hostile['most_core_s']:.2f} core-seconds, {hostile['most_clock_s']:.2f} s "
            "on the clock of a machine busy with other work (judged by core-seconds)",
            hostile["most_core_s"] <= 2,
        ),
        (
            "each within 512 MB",
            f"this process grew by {hostile['memory_mb']:.0f} MB over all files, no child was "
            f"allowed more than {hostile['child_limit_mb']:.0f} MB",
            memory <= 512,
        ),
        (
            "at least 300 honest files accepted",
            f"{honest['files'] - len(honest['refused'])} of {honest['files']}",
            not honest["refused"] and honest["files"] >= 300,
        ),
        (
            "10,000 flipped bits after the manifest all reported",
            f"{flips['reported']:,} of {flips['flips']:,}",
            flips["reported"] == flips["flips"] >= 10_000,
        ),
    ]
    if mutants:
        found.append(
            (
                "1,000,000 mutants without a signal, hang or traceback",
                f"{mutants['crashers']} crashers in {mutants['mutants']:,}",
                not mutants["crashers"] and mutants["mutants"] >= 1_000_000,
            )
        )
    return found


def page(result: dict[str, Any]) -> str:
    """docs/hostile_files.md; its numbers come from the result file alone."""
    hostile, honest, mutants = result["hostile"], result["honest"], result["mutants"]
    tables = [
        Table(
            "Must reach",
            ["asked", "measured", "reached"],
            [
                [asked, measured, "yes" if reached else "no"]
                for asked, measured, reached in goals(result)
            ],
        ),
        Table(
            "Hostile files by class and form",
            ["class", "form", "files", "at most", "codes"],
            [
                [
                    row["attack"], row["form"], f"{row['files']:,}", f"{row['most_core_s']:.2f} s",
                    ", ".join(f"{code} {n}" for code, n in sorted(row["codes"].items())),
                ]
                for row in hostile["rows"]
            ],
            ["Seconds of a core; they include the child process that reads torch files."],
        ),
        Table(
            "Honest files",
            ["form", "files"],
            [[form, str(count)] for form, count in honest["by_form"].items()],
        ),
    ]  # fmt: skip
    if mutants:
        tables.append(
            Table(
                "Mutants",
                ["form", "mutants", "accepted", "refused with"],
                [
                    [
                        form, f"{sum(codes.values()):,}", f"{codes.get('accepted', 0):,}",
                        ", ".join(f"{c} {n:,}" for c, n in codes.items() if c != "accepted"),
                    ]
                    for form, codes in mutants["by_form"].items()
                ],
                [f"{mutants['seconds']:,.0f} s on one core."],
            )
        )  # fmt: skip
    named = {"python": "Python ", "torch": "torch "}
    environment = ", ".join(
        f"{named.get(key, '')}{value}" for key, value in result["environment"].items()
    )
    text = _TEXT.format(limits=result["limits"], command=result["command"], environment=environment)
    parts = [text]
    return "\n".join([*parts, *(table.markdown(2) for table in tables)])


_TEXT = """# Hostile files

What genwarden does with files that nobody should trust, and how that is measured. Generated by
`{command}` ({environment}).

- **The type is decided by content.** safetensors, or the zip that `torch.save` writes; everything
  else is refused with a code, one sentence of cause and one of remedy. ONNX files are written by
  genwarden and never read: `check` says that nothing was examined, exit code 3.
- **Nothing is unpickled, by nobody.** A torch file's pickle is read as a description of tensors: 29
  operations over texts, numbers and tables, a list of 26 names that are compared and never looked
  up. Whatever this reader accepts, torch's restricted loader accepts with the same numbers; tests
  hold the two against each other.
- **It is read in a child process** that has a private copy of the file and nothing else: no
  environment, no network, no files, no processes, limits on memory and time, a seccomp filter on
  Linux. Back comes safetensors with a small JSON document, which is checked like any other file.
- **Archives are stricter than any reader's**: stored members, back to back, equal in both
  directories, right checksums, every byte accounted for, no member that no tensor uses.
- **JSON has one meaning or none**: UTF-8, no key twice, no half characters, no numbers that parsers
  read differently, bounded depth and size.
- **Limits**: {limits}.

Classes C-1 to C-17: 1 deny-lists and their gaps, 2 inexact names, 3 tricks with operations, 4 file
types in disguise, 5 zip and JSON readers that disagree, 6 broken streams, 7 nested objects, 8 other
containers, 9 memory and time, 10 harm without code, 11 attacks on scanners, 12 changes after the
check, 14 torch's own loader, 15 configurations that name code, 16 paths, 17 what is not examined
(exit code 3). Classes 13 (no second, less safe attempt) is a rule about the source, 18 (hostile
names) is part of the honest files: names are data.
"""

if __name__ == "__main__":
    sys.exit(main())
