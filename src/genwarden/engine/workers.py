"""Worker processes for independent pieces of work, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

#: In a worker: makes what the work of its pool shares, and what it has made.
_GIVEN: list[Callable[[], Any]] = []
_MADE: list[Any] = []


@contextmanager
def worker_pool(
    workers: int, common: Callable[[], Any] | None = None
) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes; what has not begun when the block is left is dropped.

    Args:
        workers: how many.
        common: makes what the work shares, once in each worker that asks (:func:`common_part`).

    Where the command is stopped, its workers are, too: what they were at is done again, whole, by
    the same command. They end with their parent however that ends.
    """
    # Forked children would inherit torch's locks and CUDA state.
    context = multiprocessing.get_context("spawn")
    others = {process.pid for process in multiprocessing.active_children()}
    pool = ProcessPoolExecutor(workers, context, _begin, (common,))
    try:
        yield pool
    except (KeyboardInterrupt, SystemExit):
        for process in multiprocessing.active_children():
            if process.pid not in others:
                process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def common_part() -> Any:
    """In a worker: what the work of its pool shares."""
    if not _MADE:
        _MADE.append(_GIVEN[0]())
    return _MADE[0]


def _begin(common: Callable[[], Any] | None) -> None:
    if common is not None:
        _GIVEN.append(common)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would write into the folders of the next start."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
