"""How many processor threads a result is computed with: part of the arithmetic, not of the machine.

Sums that are shared among threads are added in another order and have other last bits (1 and 2
threads differ). So a command whose results must repeat fixes the number by the size of the network,
whatever the machine has; ``OMP_NUM_THREADS`` changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

#: Below this a second thread costs more than it saves.
SMALL_PARAMETERS: Final = 4_000_000
#: For larger networks; processors that are missing cost time, not bits.
LARGE_THREADS: Final = 4
#: A denoiser applies every weight at every pixel, mostly at full size, so that two threads pay
#: sooner: of 1.1 M parameters at 28 pixels an audit computes on both nearly all the time.
SMALL_DENOISER: Final = 1_000_000
DENOISER_THREADS: Final = 2


def fixed_threads(parameters: int, *, denoiser: bool = False) -> int:
    """Threads for a network of this size, the same on every machine.

    Args:
        parameters: how many it has.
        denoiser: it is a diffusion model's.
    """
    if parameters >= SMALL_PARAMETERS:
        return LARGE_THREADS
    return DENOISER_THREADS if denoiser and parameters >= SMALL_DENOISER else 1


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
