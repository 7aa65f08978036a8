"""Times of single steps, taken from what an attack reports as progress."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

from genwarden.engine.progress import Silent, Task


class Seconds(NamedTuple):
    """Wall time, and processor time of all threads: the latter bears other work beside it."""

    wall: float
    processor: float

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall - other.wall, self.processor - other.processor)

    def __mul__(self, factor: object) -> Seconds:
        if not isinstance(factor, int | float):
            return NotImplemented
        return Seconds(self.wall * factor, self.processor * factor)


def now() -> Seconds:
    """Both clocks."""
    return Seconds(time.perf_counter(), time.process_time())


class Stopwatch(Silent):
    """Progress that notes when steps end; begins with its creation."""

    def __init__(self) -> None:
        self.begun = now()
        self.ends: list[Seconds] = []

    def task(self, title: str, total: int, done: int = 0) -> Task:
        """The bar whose steps are timed."""
        del title, total, done
        return self

    def advance(self, steps: int = 1, note: str = "") -> None:
        """The end of a step."""
        del note
        if steps:
            self.ends.append(now())

    def steps(self) -> list[Seconds]:
        """Between two ends, shortest wall time first; a step that also evaluated is the last."""
        return sorted(b - a for a, b in zip(self.ends, self.ends[1:], strict=False))

    def step(self) -> Seconds:
        """Median step."""
        return median(self.steps())

    def total(self) -> Seconds:
        """From the beginning to now."""
        return now() - self.begun


def median(times: list[Seconds]) -> Seconds:
    """Of either clock by itself."""
    return Seconds(
        statistics.median(t.wall for t in times), statistics.median(t.processor for t in times)
    )
