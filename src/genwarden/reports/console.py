"""The terminal: progress bars, tables and messages. Only this module and the CLI write to it.

Results go to standard output, progress and messages to standard error. What is shown may name
tensors and files of others: no markup is read from it and nothing invisible reaches the terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from genwarden.engine import progress as engine_progress
from genwarden.reports.escaping import visible

OUT = Console(highlight=False)
ERR = Console(stderr=True, highlight=False)
_WIDE = 180


def wide_console() -> Console:
    """For tables with two numbers per cell: unreadable when wrapped, so rather long lines."""
    return Console(highlight=False, width=max(OUT.width, _WIDE))


#: Pause between two lines of one task where no bar can be drawn.
PLAIN_INTERVAL_S = 30.0


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the bar."""
        self._progress.update(self._task, advance=steps, note=escape(visible(note)))


class ConsoleProgress:
    """Bars on standard error."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def task(self, title: str, total: int, done: int = 0) -> _Bar:
        """Open a bar; the previous finished ones stay visible."""
        task = self._progress.add_task(escape(visible(title)), total=total, completed=done, note="")
        return _Bar(self._progress, task)

    def message(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(visible(text), markup=False)


class _PlainTask:
    def __init__(
        self,
        console: Console,
        title: str,
        total: int,
        done: int,
        *,
        interval_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._console = console
        self._title = title
        self._total = total
        self._done = done
        self._interval_s = interval_s
        self._clock = clock
        self._started = self._printed = clock()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count, and print a line when the last one is old enough or the work is done."""
        unfinished = self._done < self._total
        self._done += steps
        now = self._clock()
        finished = unfinished and self._done >= self._total
        if finished or now - self._printed >= self._interval_s:
            self._printed = now
            self._print(now - self._started, note)

    def _print(self, elapsed_s: float, note: str) -> None:
        minutes, rest = divmod(int(elapsed_s), 60)
        line = f"{self._title}  {self._done}/{self._total}  {minutes}:{rest:02d}"
        self._console.print(visible(f"{line}  {note}").rstrip(), markup=False, soft_wrap=True)


class PlainProgress:
    """Lines on standard error where there is no terminal: logs, pipes, CI.

    Each task says where it stands at most every ``interval_s`` seconds, and once when it is done.
    """

    def __init__(
        self,
        console: Console,
        *,
        interval_s: float = PLAIN_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._interval_s = interval_s
        self._clock = clock

    def task(self, title: str, total: int, done: int = 0) -> _PlainTask:
        """Open a task; nothing is printed until it has something to say."""
        return _PlainTask(
            self._console, title, total, done, interval_s=self._interval_s, clock=self._clock
        )

    def message(self, text: str) -> None:
        """Print a line."""
        self._console.print(visible(text), markup=False, soft_wrap=True)


@contextmanager
def console_progress() -> Iterator[engine_progress.Progress]:
    """Bars for the length of a ``with`` block, or plain lines where there is no terminal."""
    if not ERR.is_terminal:
        yield PlainProgress(ERR)
        return
    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=ERR, refresh_per_second=2) as progress:
        yield ConsoleProgress(progress)
