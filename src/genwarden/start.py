"""The entry point: errors as sentences, exit codes, and what stops a command from outside."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from types import FrameType

from genwarden.errors import ExitCode, GenwardenError
from genwarden.reports.escaping import visible
from genwarden.streams import watched_streams

#: Seconds after which a SIGTERM is raised again where something has swallowed it.
_LOOK_AGAIN_S = 1.0
#: What a shell expects of a command that was stopped with Ctrl-C, or with SIGTERM.
_INTERRUPTED = 130
_TERMINATED = 143
_STOPPED = "Interrupted. Nothing half-written remains; repeat the command to continue.\n"


def main() -> None:
    """Entry point: every foreseen failure is one sentence, one remedy and an exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    # torch, once imported, then backs large tensors with huge pages: a step of ReD on a full-width
    # DCGAN spends an eighth of its time on page faults otherwise. A user's own setting stays.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        from genwarden.cli import app  # takes a moment, in which Ctrl-C shall read like any other

        with watched_streams():
            app()
    except GenwardenError as error:
        # Causes name what is in files of others.
        sys.stderr.write(visible(f"error [{error.code}]: {error.cause}\n  -> {error.remedy}\n"))
        sys.exit(int(error.exit_code))
    except SystemExit as end:
        if end.code in {_INTERRUPTED, _TERMINATED}:  # typer has made an exit of Ctrl-C already
            sys.stderr.write(_STOPPED)
        raise
    except KeyboardInterrupt:  # outside of what typer watches
        sys.stderr.write(_STOPPED)
        sys.exit(_INTERRUPTED)
    except Exception:
        # Python's own status for an unforeseen error is 1, which here means "evidence".
        sys.stderr.write(visible(traceback.format_exc()))
        sys.stderr.write(
            "error [internal/unforeseen]: This is a defect of genwarden; nothing was decided.\n"
            "  -> Report it with the lines above and the output of `genwarden doctor`.\n"
        )
        sys.exit(int(ExitCode.ERROR))
    finally:
        if hasattr(signal, "setitimer"):  # not on Windows
            signal.setitimer(signal.ITIMER_REAL, 0)
        if _ending(sys.exception()):  # what is done at the exit must not be disturbed, either
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _terminated(number: int, frame: FrameType | None) -> None:
    """End as with Ctrl-C: temporary files go, workers end, what is finished is kept.

    Raised while a library is being imported, the exception may be swallowed there; so an alarm
    looks whether it is still on its way, and raises it again where it is not.
    """
    del number, frame
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _terminated)
        signal.setitimer(signal.ITIMER_REAL, _LOOK_AGAIN_S)
    if not _ending(sys.exception()):
        raise SystemExit(_TERMINATED)


def _ending(error: BaseException | None) -> bool:
    """Whether what is being handled is our end, or happened while that was being handled."""
    while error is not None:
        if isinstance(error, SystemExit) and error.code == _TERMINATED:
            return True
        error = error.__context__
    return False
