"""Commands that are stopped from outside: what they say, what they leave, how they go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from genwarden.benchmarks.robustness import crash_safety
from genwarden.benchmarks.robustness.commands import COMMANDS, OUT, make_inputs
from genwarden.benchmarks.robustness.nursery import Nursery
from genwarden.benchmarks.robustness.snapshots import differing, digests
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError

_ENOUGH_S = 120.0


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory of a command, with the inputs where it expects them."""
    make_inputs(tmp_path / "inputs")
    folder = tmp_path / "runs" / "attack"
    folder.mkdir(parents=True)
    return folder


def test_a_stopped_command_ends_in_words_and_goes_on_to_the_same_end(
    nursery: Nursery, place: Path
) -> None:
    words, log = list(COMMANDS["attack"]), place / "log"
    assert nursery.wait(nursery.start(words, cwd=place, log=log), _ENOUGH_S) == 0
    whole = digests(place / OUT)
    (place / OUT).rename(place / "whole")
    for stop, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)):
        log.unlink()
        process = nursery.start(words, cwd=place, log=log)
        checkpoint = place / OUT / ".work" / "attack.safetensors"
        began = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        ends = time.monotonic() + _ENOUGH_S
        while time.monotonic() < ends:  # until it has got on
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns > began:
                break
            time.sleep(0.001)
        os.kill(process, stop)
        assert nursery.wait(process, _ENOUGH_S) == code
        said = log.read_text()
        assert "Traceback" not in said
        assert ("repeat the command to continue" in said) is (stop != signal.SIGKILL)
        assert not (place / OUT / "genwarden.json").exists()
    assert nursery.wait(nursery.start(words, cwd=place, log=log), _ENOUGH_S) == 0
    assert differing(whole, digests(place / OUT)) == []


#: A command whose body is in the place of ours; it says "ready" when it may be struck.
_BODY = """
import signal, sys, time
from genwarden import cli, start
def ready():
    print("ready", flush=True)
def body():
{body}
cli.app = body
start.main()
"""
_SWALLOWS = """
try:
    ready()
    time.sleep(60)
except BaseException:
    pass  # as some libraries do while they are imported
time.sleep(60)
"""
_SLOW_CLEANUP = """
try:
    ready()
    time.sleep(60)
finally:
    print("cleaning", flush=True)
    for _ in range(25):
        time.sleep(0.1)
    print("clean", flush=True)
"""


_AT_EXIT = """
import atexit
def clean():
    print("cleaning", flush=True)
    for _ in range(15):
        time.sleep(0.1)
    print("clean", flush=True)
atexit.register(clean)
ready()
time.sleep(60)
"""


def _struck(body: str, strikes: int) -> tuple[int, str]:
    """Exit code and output of a body that gets SIGTERM ``strikes`` times, 0.3 s apart."""
    text = _BODY.replace("{body}", textwrap.indent(body, "    "))
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for _ in range(strikes):
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
        try:
            said, _ = process.communicate(timeout=20)
        finally:
            process.kill()
        return process.returncode, said.decode()


def test_a_stop_that_a_library_swallows_is_repeated() -> None:
    assert _struck(_SWALLOWS, 1) == (143, "")


def test_neither_a_second_stop_nor_the_repetition_disturbs_the_cleanup() -> None:
    assert _struck(_SLOW_CLEANUP, 3) == (143, "cleaning\nclean\n")
    assert _struck(_AT_EXIT, 3) == (143, "cleaning\nclean\n")


@pytest.mark.slow
def test_the_recipe_counts_kills_and_compares_ends(tmp_path: Path) -> None:
    def run() -> dict[str, object]:
        path = crash_safety.run(
            tmp_path,
            data=None,
            seed=0,
            device=torch.device("cpu"),
            progress=Silent(),
            kills=2,
            chain=2,
            commands="attack",
        )
        (row,) = json.loads(path.read_text())["rows"]
        assert isinstance(row, dict)
        return row

    row = run()
    assert row["identical"] == row["trials"]
    assert isinstance(row["kills"], int)
    assert row["kills"] >= 2
    assert (row["tracebacks"], row["wrong_ends"], row["differences"]) == (0, 0, [])
    began = time.monotonic()
    assert run() == row  # nothing is done again
    assert time.monotonic() - began < _ENOUGH_S
    with pytest.raises(GenwardenError, match="benchmark/option"):
        crash_safety.run(
            tmp_path,
            data=None,
            seed=0,
            device=torch.device("cpu"),
            progress=Silent(),
            commands="no-such",
        )


@pytest.mark.slow
def test_kills_of_other_code_are_shown_but_never_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(commands: str, kills: int) -> list[dict[str, object]]:
        path = crash_safety.run(
            tmp_path,
            data=None,
            seed=0,
            device=torch.device("cpu"),
            progress=Silent(),
            kills=kills,
            chain=1,
            commands=commands,
        )
        rows: list[dict[str, object]] = json.loads(path.read_text())["rows"]
        return rows

    (first,) = run("compress", 1)
    monkeypatch.setattr(crash_safety, "code_digest", lambda: "another")
    kept, added = run("compress,train-diffusion", 1)
    assert kept == first
    assert (added["command"], added["genwarden_code"]) == ("train-diffusion", "another")
    assert added["identical"] == added["trials"]
    with pytest.raises(GenwardenError, match="ledger/other-run"):
        run("compress", 5)


def test_a_difference_is_seen() -> None:
    whole = {"a": "1", "b": "2"}
    assert differing(whole, {"a": "1", "b": "3", "c": "4"}) == ["b", "c"]
    assert differing(whole, {"a": "1"}) == ["b"]
