"""Rates that are compared with each other: measured in turns, in one run, the median over rounds.

Wall time is what a user waits for; processor time is what it costs, and all that can be measured
while the machine has other work to do.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from genwarden.benchmarks.stopwatch import Seconds, now

#: A round repeats short work until this much wall time has passed.
_ROUND_S = 1.0


class Work(NamedTuple):
    """Something to time.

    Attributes:
        do: one repeat.
        units: samples (or operations) of a repeat.
    """

    do: Callable[[], Any]
    units: float


def rates(works: Mapping[str, Work], rounds: int) -> dict[str, dict[str, float]]:
    """Units per second on the wall and of the processor, by name; all take turns.

    The first repeat of each is not counted.
    """
    for work in works.values():
        work.do()
    found: dict[str, list[Seconds]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(_one(work))
    return {
        name: {
            "wall": works[name].units / statistics.median(s.wall for s in times),
            "processor": works[name].units / statistics.median(s.processor for s in times),
        }
        for name, times in found.items()
    }


def _one(work: Work) -> Seconds:
    """Mean time of a repeat in one round."""
    begun, repeats = now(), 0
    while repeats == 0 or (now() - begun).wall < _ROUND_S:
        work.do()
        repeats += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return (now() - begun) * (1 / repeats)
