"""How long a refusal may take here: two seconds (goal 1) of the machine they were asked of."""

from __future__ import annotations

import time
from typing import Final

MOST_SECONDS: Final = 2.0
#: Processor time of the loop below on an idle core of that machine.
_LOOP_SECONDS: Final = 0.2


def too_slow(seconds: float) -> bool:
    """Whether processor time is over the limit, which a slow machine stretches by as much as it
    stretches a loop of plain Python at this moment."""
    return seconds > MOST_SECONDS and seconds > MOST_SECONDS * max(1.0, _slowness())


def _slowness() -> float:
    """Time of a fixed loop, as a multiple of what it takes on an idle core."""
    begun = time.process_time()
    stack = []
    for number in range(1_000_000):
        stack.append((number,))
        stack.pop()
    return (time.process_time() - begun) / _LOOP_SECONDS
