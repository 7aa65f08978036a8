"""Children that are commands of genwarden, to be killed: forked from one process that has torch.

A fresh interpreter needs seconds before it does anything that a kill could disturb; a fork needs
none. Run as ``python -m genwarden.benchmarks.robustness.nursery``; it speaks JSON, one object per
line, and is driven by :class:`Nursery`. The commands run with the smallest budgets, which are set
here: what is tested is how a command ends, not what it finds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn

from genwarden.errors import GenwardenError

_POLL_S: Final = 0.002
_STOPS: Final = {signal.SIGINT, signal.SIGTERM}


class Nursery:
    """Drives the process that forks; use it in a ``with`` block."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 (ourselves)
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._ask({"ready": True})

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def start(self, words: list[str], *, cwd: Path, log: Path) -> int:
        """Begin ``genwarden WORDS``; what it prints goes into ``log``. Returns its process id."""
        asked = {"words": words, "cwd": str(cwd), "log": str(log)}
        return int(self._ask(asked)["process"])

    def wait(self, process: int, seconds: float) -> int | None:
        """The exit code (negative: the signal that ended it), or None if it still runs by then."""
        code = self._ask({"wait": process, "seconds": seconds})["code"]
        return None if code is None else int(code)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None  # noqa: S101 (both are pipes)
        assert self._process.stdout is not None  # noqa: S101
        with suppress(BrokenPipeError):  # then there is no answer, either
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise GenwardenError(
                "benchmark/nursery-died",
                "The process that starts the commands was ended from outside.",
                "Repeat the command; finished trials are kept.",
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


def _serve() -> None:
    smallest_budgets(threads=1)
    _imports()
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        if "words" in asked:
            answer: dict[str, Any] = {"process": _forked(asked)}
        elif "wait" in asked:
            answer = {"code": _waited(asked["wait"], asked["seconds"])}
        else:
            answer = {}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def _imports() -> None:
    """What the commands would import first: seconds in which no kill could disturb anything."""
    import diffusers.models.unets.unet_2d  # noqa: F401
    import scipy.signal  # noqa: F401

    import genwarden.attacks.diffusion.run
    import genwarden.training.train  # noqa: F401


def _forked(asked: dict[str, Any]) -> int:
    # Until the child is the command, what is sent to it waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    process = os.fork()
    if process == 0:
        _become(asked["words"], asked["cwd"], asked["log"])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    return process


def _become(words: list[str], cwd: str, log: str) -> NoReturn:
    """In the child: the command, as its own session with its own output, and then the end."""
    from genwarden.start import main

    code: Any = 0
    try:
        os.setsid()
        os.chdir(cwd)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for wanted, given in ((0, nothing), (1, output), (2, output)):
            os.dup2(given, wanted)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["genwarden", *words]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
        main()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:  # before the command had begun, or after its end
        code = 130
    except BaseException:  # whatever else reaches here is what the benchmark looks for
        import traceback

        traceback.print_exc()
        code = 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _waited(process: int, seconds: float) -> int | None:
    ends = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= ends:
            return None
        time.sleep(_POLL_S)


def smallest_budgets(threads: int | None) -> None:
    """The quick budget of every kind of model, made as small as the inspections can work with.

    Args:
        threads: processor threads of the process; None to leave them as they are.
    """
    import torch

    import genwarden.cli  # noqa: F401 (before there are children)
    from genwarden.auditing import budgets
    from genwarden.commands import audit, compress, repair, repair_classifier  # noqa: F401 (torch)

    if threads is not None:
        torch.set_num_threads(threads)
    quick = replace(
        budgets.BUDGETS["quick"],
        ordinary_samples=256,
        stream_samples=512,
        restarts=8,
        search_steps=2,
        probe_latents=8,
        twin_steps=2,
        guessed_seeds=1,
        draws_per_seed=1,
    )
    budgets.BUDGETS["quick"] = quick
    budgets.CLASSIFIER_BUDGETS["quick"] = replace(
        budgets.CLASSIFIER_BUDGETS["quick"],
        images=12,
        synthesis_steps=2,
        inversion_steps=3,
        shift_placebos=2,
        guards=2,
        blends=2,
    )
    budgets.DIFFUSION_BUDGETS["quick"] = replace(
        budgets.DIFFUSION_BUDGETS["quick"],
        search_starts=1,
        search_steps=2,
        search_noises=2,
        probe_noises=4,
        screen_noises=2,
        refine_steps=2,
        refine_noises=2,
        samples=4,
        sampler_steps=2,
    )


if __name__ == "__main__":
    _serve()
