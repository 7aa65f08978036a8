"""The process that reads torch files: what it may do, and every way it may die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_files import state_dict, torch_file

from genwarden.artifacts import reading_child
from genwarden.artifacts.reading_child import read_in_child
from genwarden.errors import GenwardenError

ROOT = str(Path(reading_child.__file__).resolve().parents[2])
_ABOUT = {"tensors": [["a", "0", "float32", 0, [2], [1]]], "confined": []}


def answering(header: object, data: bytes = b"") -> str:
    """A child that answers with a header of our choosing."""
    text = header if isinstance(header, str) else json.dumps(header)
    return (
        "import os, struct; t = " + repr(text.encode()) + "; "
        f"os.write(1, struct.pack('<Q', len(t)) + t + {data!r})"
    )


def about(**changes: object) -> dict[str, object]:
    return {
        "__metadata__": {"about": json.dumps(_ABOUT | changes)},
        "0": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    }


DEATHS: dict[str, tuple[str, str]] = {
    "a signal": ("import os; os.abort()", "artifact/reader-died"),
    "a segmentation fault": ("import os; os.kill(os.getpid(), 11)", "artifact/reader-died"),
    "being killed": ("import os; os.kill(os.getpid(), 9)", "artifact/reader-died"),
    "an exception": ("raise ValueError", "artifact/reader-died"),
    "an exit status": ("import os; os._exit(3)", "artifact/reader-died"),
    "too much memory": (
        f"import sys; sys.path.append({ROOT!r}); from genwarden.artifacts import child_main\n"
        "def hungry(*_): bytearray(1 << 40)\n"
        "child_main._answer = hungry; child_main.main()",
        "artifact/reader-memory",
    ),
    "too much memory in small steps": (
        f"import sys; sys.path.append({ROOT!r}); from genwarden.artifacts import child_main\n"
        "def hungry(*_):\n kept = []\n while True: kept.append(bytearray(1 << 20))\n"
        "child_main._answer = hungry; child_main.main()",
        "artifact/reader-memory",
    ),
    "no answer": ("import os; os._exit(0)", "artifact/reader-garbled"),
    "a short answer": ("import os; os.write(1, b'abc')", "artifact/reader-garbled"),
    "an answer that is no safetensors": ("print('{}' * 100)", "artifact/reader-garbled"),
    "a pickle": (r"import os; os.write(1, b'\x80\x02}.' * 9)", "artifact/reader-garbled"),
    "an endless answer": (
        "import os\nwhile True: os.write(1, bytes(1 << 20))", "artifact/reader-garbled",
    ),
    "no word about the tensors": (answering({}), "artifact/reader-garbled"),
    "no tensors": (answering(about(tensors=[]), bytes(8)), "artifact/reader-garbled"),
    "a tensor twice": (
        answering(about(tensors=_ABOUT["tensors"] * 2), bytes(8)), "artifact/reader-garbled",
    ),
    "a window beyond the numbers": (
        answering(about(tensors=[["a", "0", "float32", 0, [3], [1]]]), bytes(8)),
        "artifact/reader-garbled",
    ),
    "a window of 2^62 numbers": (
        answering(about(tensors=[["a", "0", "float32", 0, [1 << 62], [1]]]), bytes(8)),
        "artifact/reader-garbled",
    ),
    "a window with an offset": (
        answering(about(tensors=[["a", "0", "float32", 1, [2], [1]]]), bytes(8)),
        "artifact/reader-garbled",
    ),
    "a negative stride": (
        answering(about(tensors=[["a", "0", "float32", 1, [2], [-1]]]), bytes(8)),
        "artifact/reader-garbled",
    ),
    "another type": (
        answering(about(tensors=[["a", "0", "int32", 0, [2], [1]]]), bytes(8)),
        "artifact/reader-garbled",
    ),
    "an unknown type": (
        answering(about(tensors=[["a", "0", "os.system", 0, [2], [1]]]), bytes(8)),
        "artifact/reader-garbled",
    ),
    "a storage that is not there": (
        answering(about(tensors=[["a", "7", "float32", 0, [2], [1]]]), bytes(8)),
        "artifact/reader-garbled",
    ),
    "an unknown reason": (
        answering(about(refused=["artifact/fine", "x", "y"]), bytes(8)), "artifact/reader-garbled",
    ),
    "a reason that is no text": (
        answering(about(refused=["artifact/corrupt", {}, "y"]), bytes(8)),
        "artifact/reader-garbled",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", DEATHS)
def test_however_the_child_ends_there_is_one_code(how: str) -> None:
    program, code = DEATHS[how]
    with pytest.raises(GenwardenError) as caught:
        read_in_child(torch_file(), "it", "numbers", start=program)
    assert caught.value.code == code
    assert caught.value.exit_code == 2
    assert caught.value.cause.isprintable()


def test_the_answers_that_are_refused_above_have_a_sound_twin() -> None:
    reading = read_in_child(torch_file(), "it", "numbers", start=answering(about(), bytes(8)))
    assert [window.name for window in reading.windows] == ["a"]


def test_a_child_that_never_answers_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_child, "child_seconds", lambda size: 0.5 + 0 * size)
    for program in ("import time; time.sleep(60)", "import os\nos.close(1)\nwhile True: pass"):
        with pytest.raises(GenwardenError) as caught:
            read_in_child(torch_file(), "it", "numbers", start=program)
        assert caught.value.code == "artifact/reader-timeout"


def test_a_reason_of_the_child_is_shown_as_text() -> None:
    reason = ["artifact/corrupt", "\x1b[2J<script>" + "x" * 5000, "\x1b[31m"]
    program = answering(about(refused=reason), bytes(8))
    with pytest.raises(GenwardenError) as caught:
        read_in_child(torch_file(), "it", "numbers", start=program)
    assert caught.value.cause.isprintable()
    assert caught.value.remedy.isprintable()
    assert len(caught.value.cause) < 400


def test_the_child_reads_what_torch_wrote_and_says_how_it_was_confined() -> None:
    for wanted in ("facts", "numbers"):
        reading = read_in_child(torch_file(), "it", wanted)
        assert {window.name: window.shape for window in reading.windows} == {
            name: tuple(tensor.shape) for name, tensor in state_dict().items()
        }
        assert "limits" in reading.confined
        if sys.platform == "linux" and os.uname().machine in {"x86_64", "aarch64"}:
            assert "seccomp" in reading.confined


ATTEMPTS: dict[str, str] = {
    "make a file": "open({folder!r} + '/file', 'w').close()",
    "make a file without Python's help": "os.close(os.open({folder!r} + '/file', os.O_CREAT | 2))",
    "make a folder": "os.mkdir({folder!r} + '/made')",
    "read a file": "open('/etc/passwd').read()",
    "read the environment of a process": "open('/proc/self/environ', 'rb').read()",
    "run a command": "assert os.system('touch {folder}/file') == 0",
    "become another program": "os.execv('/bin/sh', ['sh', '-c', 'touch {folder}/file'])",
    "start a process": "os._exit(0) if os.fork() == 0 else None",
    "open a socket": "socket.socket()",
    "open a local socket": "socket.socket(socket.AF_UNIX)",
    "make a pipe": "os.pipe()",
    "raise its limits": "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
    "raise its memory": "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    "become root again": "os.setuid(0) or os.setgid(0)",
    "send a signal": "os.kill(os.getppid(), 0)",
    "remove a file": "os.unlink({folder!r} + '/there')",
    "rename a file": "os.rename({folder!r} + '/there', {folder!r} + '/elsewhere')",
    "take a secret from the environment": "assert 'GENWARDEN_CANARY' in os.environ",
    "take much memory": "bytearray(1 << 29)",
}


@pytest.mark.parametrize("what", ATTEMPTS)
def test_planted_code_in_the_child_can_do_nothing(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal 12; the same program without confinement is the control."""
    monkeypatch.setenv("GENWARDEN_CANARY", "secret")
    folder = tmp_path / "open-to-all"
    for confined in (True, False):
        if confined is False and what in _ROOT_ONLY and os.getuid():
            continue
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
        tmp_path.chmod(0o755)
        (folder / "there").touch()
        attempt = ATTEMPTS[what].format(folder=str(folder))
        confine = f"confine({256 << 20}, 5)" if confined else "None"
        program = (
            f"import sys; sys.path.append({ROOT!r}); import os, socket, resource\n"
            f"from genwarden.artifacts.confinement import confine\n{confine}\n"
            f"try:\n {attempt}\n"
            "except (OSError, MemoryError, AssertionError, ValueError):\n os._exit(7)\nos._exit(8)"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-B", "-c", program],
            env={} if confined else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
        if confined:
            assert done.returncode == 7, done.stderr
            assert sorted(os.listdir(folder)) == ["there"]
        else:
            assert done.returncode in {0, 8}, done.stderr


#: Without confinement these work for root alone.
_ROOT_ONLY = {"raise its limits", "raise its memory", "become root again", "send a signal"}
