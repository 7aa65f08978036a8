"""Canaries: what would show that something from a file ran, whatever the exit code says.

Audit events of Python itself: files opened for writing, sockets, processes, code, unpickling.
Traces outside, a file among them that holds a secret of the environment, are the runner's to look
for. :mod:`test_hostile_factory` shows that every one of them fires when a payload does run.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import genwarden

_WATCHED = (
    "socket.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.putenv",
    "os.startfile", "pty.spawn", "subprocess.Popen", "pickle.find_class", "ctypes.dlopen",
    "webbrowser.open", "urllib.Request", "os.symlink", "os.remove", "os.rename", "shutil.",
    "code.__new__", "marshal.",
)  # fmt: skip
#: Where modules come from: Python, its packages, genwarden itself.
_INSTALLED = tuple(
    os.path.join(os.path.realpath(folder), "")
    for folder in (sys.prefix, sys.base_prefix, os.path.dirname(genwarden.__file__))
)
_OWN_PROGRAM = "genwarden.artifacts.child_main"


class Watch:
    """The audit events of one stretch of code."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Record what reading a file never needs."""
        if event == "open":
            path, mode, flags = arguments
            writing = isinstance(mode, str) and bool(set(mode) & set("wax+"))
            writing |= isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
            # Our own private copy is opened by its descriptor, a child's errors go nowhere.
            if writing and not isinstance(path, int) and path != os.devnull:
                self.events.append(f"open {path!r}")
        elif event == "subprocess.Popen":
            if not any(_OWN_PROGRAM in str(part) for part in arguments[1]):
                self.events.append(f"{event} {arguments[1]!r}")
        elif event == "marshal.loads" and _imports_installed():
            pass
        elif event.startswith(_WATCHED):
            self.events.append(f"{event} {arguments!r}"[:200])


def _imports_installed() -> bool:
    """Whether Python is loading the bytecode of an installed module, as at any first import."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") == __name__ and frame.f_back is not None:
        frame = frame.f_back
    name, file = frame.f_code.co_name, frame.f_code.co_filename
    if name != "_compile_bytecode" or not file.startswith("<frozen importlib"):
        return False
    path = os.path.realpath(str(frame.f_locals.get("bytecode_path")))
    return path.startswith(_INSTALLED)


_active: list[Watch] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _active:
        _active[-1](event, arguments)


_installed: list[bool] = []


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Audit events while the block runs. Hooks cannot be removed, so there is one for all."""
    if not _installed:
        sys.addaudithook(_hook)
        _installed.append(True)
    watch = Watch()
    _active.append(watch)
    try:
        yield watch
    finally:
        _active.remove(watch)
