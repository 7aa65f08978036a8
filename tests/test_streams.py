"""The reader of what genwarden prints goes away, or its disk is full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from genwarden.streams import READER_GONE

_FULL = Path("/dev/full")


def genwarden(
    *words: str, output: IO[bytes] | int, errors: IO[bytes] | int = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    """``genwarden WORDS`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "genwarden", *words], stdout=output, stderr=errors, check=False
    )


def abandoned_pipe() -> int:
    """The writing end of a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("words", [["list", "attacks"], ["--help"], ["explain", "red"]])
def test_a_reader_that_leaves_ends_the_command_without_a_word_and_without_a_verdict(
    words: list[str],
) -> None:
    writer = abandoned_pipe()
    done = genwarden(*words, output=writer)
    os.close(writer)
    # 1, which the libraries make of it, means "evidence"; Python's own 120 means nothing here.
    assert (done.returncode, done.stderr) == (READER_GONE, b"")


def test_an_audit_that_is_shown_to_nobody_is_kept_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "genwarden.json").write_text("{")
    words = ["audit", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    writer = abandoned_pipe()
    done = genwarden(*words, output=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (READER_GONE, b"")
    kept = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert kept["verdict"] == "refused"


def test_nobody_reads_the_error(tmp_path: Path) -> None:
    writer = abandoned_pipe()
    done = genwarden("check", str(tmp_path / "none"), output=subprocess.PIPE, errors=writer)
    os.close(writer)
    assert (done.returncode, done.stdout) == (READER_GONE, b"")


@pytest.mark.skipif(not _FULL.exists(), reason="/dev/full is needed")
def test_a_full_disk_behind_standard_output_is_one_error() -> None:
    with _FULL.open("wb") as full:
        done = genwarden("list", "attacks", output=full)
    assert done.returncode == 2
    assert b"output/not-writable" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_without_standard_output_a_command_works() -> None:
    program = f"exec {sys.executable} -m genwarden list attacks >&-"
    done = subprocess.run(["/bin/sh", "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_stays_gets_everything() -> None:
    done = genwarden("list", "attacks", output=subprocess.PIPE)
    assert done.returncode == 0
    assert b"bad-diffusion" in done.stdout
    assert done.stderr == b""
