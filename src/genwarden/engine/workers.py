"""Worker processes for independent pieces of work, one thread each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes; what has not begun when the block is left is dropped."""
    # Forked children would inherit torch's locks and CUDA state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _one_thread)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)
