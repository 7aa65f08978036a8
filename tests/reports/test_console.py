"""Progress where no bar can be drawn: a line now and then, and one at the end."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from genwarden.reports import console as module
from genwarden.reports.console import ConsoleProgress, PlainProgress, console_progress


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def plain(clock: Clock) -> tuple[PlainProgress, io.StringIO]:
    out = io.StringIO()
    return PlainProgress(Console(file=out, width=40), clock=clock), out


def test_a_task_says_where_it_stands_at_most_every_thirty_seconds() -> None:
    clock = Clock()
    progress, out = plain(clock)
    task = progress.task("training", total=1000)
    for step in range(100):
        clock.now += 1.0
        task.advance(1, note=f"loss {step}")
    assert out.getvalue().splitlines() == [
        "training  30/1000  0:30  loss 29",
        "training  60/1000  1:00  loss 59",
        "training  90/1000  1:30  loss 89",
    ]


def test_a_finished_task_says_so_once_however_short_it_was() -> None:
    progress, out = plain(Clock())
    task = progress.task("search", total=3)
    for _ in range(3):
        task.advance()
    task.advance()
    assert out.getvalue() == "search  3/3  0:00\n"


def test_a_resumed_task_counts_on_from_where_it_was() -> None:
    clock = Clock()
    progress, out = plain(clock)
    task = progress.task("stream", total=10, done=7)
    clock.now += 31
    task.advance(2)
    assert out.getvalue() == "stream  9/10  0:31\n"


def test_lines_are_not_wrapped_and_markup_is_not_read() -> None:
    progress, out = plain(Clock())
    progress.message("[bold]" + "x" * 100)
    assert out.getvalue() == "[bold]" + "x" * 100 + "\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_drawn_on_a_terminal_and_lines_elsewhere(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(module, "ERR", Console(file=out, force_terminal=terminal, width=120))
    with console_progress() as progress:
        assert isinstance(progress, ConsoleProgress if terminal else PlainProgress)
        progress.task("search", total=2).advance(2, "done")
    assert "search" in out.getvalue()
    assert ("\x1b[" in out.getvalue()) is terminal
