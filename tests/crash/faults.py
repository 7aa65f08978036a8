"""Faults at every write of a command: the process dies, the disk is full, a permission is lost.

Everything that changes a watched folder goes through a handful of functions of ``os``; each call is
one point at which a fault can strike. A death is more than an exception: the dead do not clean up,
so from then on every change raises, and a file that was being flushed stays half written.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

Fault = Literal["death", "full disk", "no permission"]
_ERRORS = {"full disk": errno.ENOSPC, "no permission": errno.EACCES}
#: Beyond the largest number of a process, so that it looks dead to the next start.
_DEAD_PROCESS = 1 << 23


class DeathError(BaseException):
    """The process is no more; nothing may catch this."""


class Watch:
    """Counts the changes of a folder and strikes at one of them.

    Attributes:
        calls: changes so far.
        struck: whether the fault has struck.
    """

    def __init__(self, folder: Path, strike_at: int | None, fault: Fault) -> None:
        self.folder = str(folder.resolve())
        self.strike_at = strike_at
        self.fault = fault
        self.calls = 0
        self.struck = False

    def change(self, path: str, *, descriptor: int | None = None) -> None:
        """Called before a change; raises where the fault strikes."""
        if not os.path.abspath(path).startswith(self.folder):
            return
        if self.struck and self.fault == "death":
            raise DeathError
        self.calls += 1
        if self.strike_at is None or self.calls < self.strike_at:
            return
        if self.calls > self.strike_at and self.fault != "death":
            return  # somebody has made room, or given the permission back
        self.struck = True
        if self.fault == "death":
            if descriptor is not None:  # the second half never reached the disk
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            raise DeathError
        number = _ERRORS[self.fault]
        raise OSError(number, os.strerror(number), path)


def _place(path: Any, dir_fd: int | None) -> str:
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    text = os.fsdecode(path)
    return os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), text) if dir_fd else text


@contextmanager
def watched(folder: Path, strike_at: int | None = None, fault: Fault = "death") -> Iterator[Watch]:
    """Watch ``folder``; with ``strike_at`` the change of that number meets the fault."""
    watch = Watch(folder, strike_at, fault)

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(path: Any, *arguments: Any, **options: Any) -> Any:
            place = _place(path, options.get("dir_fd"))
            watch.change(place, descriptor=path if isinstance(path, int) else None)
            return real(path, *arguments, **options)

        return act

    make = tempfile.mkstemp

    def mkstemp(*arguments: Any, **options: Any) -> Any:
        watch.change(os.path.join(os.fsdecode(options.get("dir") or "/tmp"), "x"))  # noqa: S108
        return make(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "fsync", "chmod"):
            patch.setattr(os, name, before(getattr(os, name)))
        patch.setattr(tempfile, "mkstemp", mkstemp)
        patch.setattr(os, "getpid", lambda: _DEAD_PROCESS)
        yield watch
