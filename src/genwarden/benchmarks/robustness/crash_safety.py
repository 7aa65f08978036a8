"""Recipe ``crash-safety``: commands killed at random moments end as if nothing had happened.

    genwarden benchmark run crash-safety --out OUT --option kills=200

Every command runs once undisturbed. Then it is begun, killed at a random moment by SIGKILL, SIGTERM
or SIGINT, begun again with the same words, killed again, ... and after ``chain`` kills left to end.
What it leaves must be what the undisturbed run left: the same files with the same content, apart
from seconds and the description of the machine, and nothing else. A kill counts if the command was
still running. Trials that are done are kept in OUT: the same command continues, and one that names
more commands adds them. What was measured with other code is never continued; a command that has
had all its kills keeps its row, which names the code.

Cost: one to five seconds per kill on an idle core; 200 kills of ten commands two hours.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Final

import torch

from genwarden import __version__
from genwarden.auditing.audit import environment
from genwarden.benchmarks.robustness.commands import COMMANDS, OUT, make_inputs
from genwarden.benchmarks.robustness.nursery import Nursery
from genwarden.benchmarks.robustness.snapshots import code_digest, differing, digests
from genwarden.benchmarks.store import write_result
from genwarden.benchmarks.tables import Table
from genwarden.engine.files import require_writable_folder
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError

RECIPE: Final = "crash-safety"
_SIGNALS: Final = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
#: What a shell expects of each way to end; SIGKILL leaves no choice.
_ENDS: Final = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
_LONGEST_S: Final = 900.0


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    kills: int = 200,
    chain: int = 4,
    commands: str = ",".join(COMMANDS),
) -> Path:
    """Kill commands.

    Args:
        data: not used; the commands run on models made here.
        kills: per command, at least.
        chain: kills in a row before the command may end.
        commands: which, joined by commas.

    Raises:
        GenwardenError: ``benchmark/option``, ``ledger/other-run``.
    """
    del data
    names = [part.strip() for part in commands.split(",") if part.strip()]
    unknown = sorted(set(names) - set(COMMANDS))
    if unknown or kills < 1 or chain < 1:
        raise GenwardenError(
            "benchmark/option",
            f"There is no command {unknown[0]!r} here." if unknown else "Nothing would be killed.",
            f"Choose from {', '.join(COMMANDS)}; kills and chain from 1.",
        )
    out = out.resolve()
    require_writable_folder(out)
    make_inputs(out / "inputs")
    rows = []
    code = code_digest()
    with Nursery() as nursery:
        for name in names:
            ledger = Ledger(
                out / "trials" / name,
                {"command": COMMANDS[name], "seed": seed, "chain": chain, "version": __version__},
            )
            rows.append(_killed(name, out, nursery, ledger, seed, kills, chain, code, progress))
    return write_result(
        out / "result.json",
        {
            "recipe": RECIPE,
            "command": f"genwarden benchmark run {RECIPE} --option kills={kills} --option "
            f"chain={chain} --seed {seed} --out DIR",
            "chain": chain,
            "rows": rows,
            "environment": environment(device),
        },
    )


def _killed(
    name: str,
    out: Path,
    nursery: Nursery,
    ledger: Ledger,
    seed: int,
    kills: int,
    chain: int,
    code: str,
    progress: Progress,
) -> dict[str, Any]:
    """All trials of one command, and what they amount to."""
    whole = ledger.get("undisturbed")
    if whole is None:
        whole = {**_undisturbed(name, out, nursery), "genwarden_code": code}
        ledger.put("undisturbed", whole)
    bar = progress.task(f"kills of {name}", kills)
    trials: list[dict[str, Any]] = []
    counted, pace = 0, whole["seconds"]
    while counted < kills and len(trials) < 20 + 4 * kills // chain:
        key = f"trial-{len(trials)}"
        trial = ledger.get(key)
        if trial is None:
            if whole["genwarden_code"] != code:
                raise GenwardenError(
                    "ledger/other-run",
                    f"The first {counted} kills of {name} were measured with other code.",
                    f"Finish them with that code, or remove {ledger.folder} to begin {name} anew.",
                )
            trial = _trial(name, out, nursery, whole, seed, len(trials), chain, pace)
            ledger.put(key, trial)
        trials.append(trial)
        counted += len(trial["kills"])
        pace = trial.get("pace_s", pace)
        bar.advance(len(trial["kills"]), "" if trial["identical"] else "DIFFERENT")
    struck = [kill for trial in trials for kill in trial["kills"]]
    return {
        "command": name,
        "words": " ".join(("genwarden", *COMMANDS[name])),
        "genwarden_code": whole["genwarden_code"],
        "undisturbed_seconds": whole["seconds"],
        "trials": len(trials),
        "kills": len(struck),
        "by_signal": {s.name: sum(k["signal"] == s.name for k in struck) for s in _SIGNALS},
        "identical": sum(trial["identical"] for trial in trials),
        "wrong_ends": sum(not kill["ended_rightly"] for kill in struck),
        "tracebacks": sum(trial["traceback"] for trial in trials),
        "differences": sorted({path for trial in trials for path in trial["differences"]})[:20],
    }


def _undisturbed(name: str, out: Path, nursery: Nursery) -> dict[str, Any]:
    place = _place(out, name)
    began = time.monotonic()
    process = nursery.start(list(COMMANDS[name]), cwd=place, log=place / "log")
    code = nursery.wait(process, _LONGEST_S)
    seconds = time.monotonic() - began
    if code not in {0, 1, 3}:
        told = (place / "log").read_text("utf-8", "replace")[-300:]
        raise GenwardenError(
            "benchmark/command-failed",
            f"{name} ends with {code} when nobody disturbs it: {told}",
            "Run the command by hand; the words are in genwarden.benchmarks.robustness.commands.",
        )
    found = digests(place / OUT)
    shutil.rmtree(place)
    return {"seconds": round(seconds, 3), "code": code, "files": found}


def _trial(
    name: str,
    out: Path,
    nursery: Nursery,
    whole: dict[str, Any],
    seed: int,
    number: int,
    chain: int,
    pace: float,
) -> dict[str, Any]:
    """One chain of kills within ``pace`` seconds of each start, and the end.

    A machine that has become faster since the undisturbed run would be struck too late, so the pace
    follows: down to what a start took that was not struck, up again while all are.
    """
    stream = random_stream(seed, f"crash-safety/{name}", number)
    place = _place(out, name)
    struck: list[dict[str, Any]] = []
    followed = min(1.25 * pace, whole["seconds"])
    for _ in range(chain):
        moment = float(torch.rand(1, generator=stream)) * pace
        chosen = _SIGNALS[int(torch.randint(len(_SIGNALS), (1,), generator=stream))]
        process = nursery.start(list(COMMANDS[name]), cwd=place, log=place / "log")
        began = time.monotonic()
        if nursery.wait(process, moment) is not None:
            followed = min(pace, time.monotonic() - began) if not struck else pace
            break  # it was quicker
        os.kill(process, chosen)
        code = nursery.wait(process, _LONGEST_S)
        # Stopped while it was ending, a command may still have ended as it would have.
        rightly = code in {_ENDS[chosen], whole["code"], -int(chosen)}
        struck.append(
            {"signal": chosen.name, "after_s": round(moment, 3), "code": code}
            | {"ended_rightly": rightly}
        )
    process = nursery.start(list(COMMANDS[name]), cwd=place, log=place / "log")
    code = nursery.wait(process, _LONGEST_S)
    log = (place / "log").read_text("utf-8", "replace")
    finished = code == 2 and "/finished]" in log
    found = digests(place / OUT)
    different = differing(whole["files"], found)
    trial = {
        "kills": struck,
        "last_code": code,
        "identical": not different and (finished or code == whole["code"]),
        "differences": different,
        "traceback": "Traceback" in log,
        "pace_s": round(followed, 3),
    }
    if trial["identical"]:
        shutil.rmtree(place)
    else:  # kept to be looked at
        place.rename(place.with_name(f"{place.name}-{number}"))
    return trial


def _place(out: Path, name: str) -> Path:
    """An empty working directory, two levels below ``out``, as the commands expect."""
    place = out / "runs" / name
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)
    return place


def tables(result: dict[str, Any], name: str) -> list[Table]:
    """The table of a result file."""
    del name
    rows = [
        [
            row["command"],
            f"{row['undisturbed_seconds']:.2g}",
            f"{row['kills']}",
            ", ".join(f"{count} {signal}" for signal, count in row["by_signal"].items()),
            f"{row['identical']} of {row['trials']}",
            str(row["tracebacks"]),
            str(row["wrong_ends"]),
        ]
        for row in result["rows"]
    ]
    columns = ["command", "seconds", "kills", "signals", "identical ends", "tracebacks"]
    return [
        Table(
            f"Killed at random moments, {result['chain']} times in a row",
            [*columns, "wrong exit codes"],
            rows,
            [
                "identical: every file as the undisturbed run left it, apart from seconds.",
                *_codes(result),
            ],
        )
    ]


def _codes(result: dict[str, Any]) -> list[str]:
    """Which commands were killed with which code, where there was more than one."""
    by_code: dict[str, list[str]] = {}
    for row in result["rows"]:
        by_code.setdefault(row["genwarden_code"], []).append(row["command"])
    if len(by_code) == 1:
        return []
    return [f"Code {code}: {', '.join(names)}." for code, names in by_code.items()]
