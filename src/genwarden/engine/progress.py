"""Progress as an interface: the engine reports, only the console draws."""

from __future__ import annotations

from typing import Protocol


class Task(Protocol):
    """One bar: how far a piece of work has come."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report ``steps`` more units done; ``note`` is a short current figure."""
        ...


class Progress(Protocol):
    """Receives the progress of long work."""

    def task(self, title: str, total: int, done: int = 0) -> Task:
        """Open a bar of ``total`` units of which ``done`` are finished already (resume)."""
        ...

    def message(self, text: str) -> None:
        """A line that stays on the screen."""
        ...


class _SilentTask:
    def advance(self, steps: int = 1, note: str = "") -> None:
        del steps, note


class Silent:
    """Progress that shows nothing (library use and tests)."""

    def task(self, title: str, total: int, done: int = 0) -> Task:
        """A bar that nobody sees."""
        del title, total, done
        return _SilentTask()

    def message(self, text: str) -> None:
        """Dropped."""
        del text
