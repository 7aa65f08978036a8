"""Fixed blocks: the unit in which samples are drawn, recorded and repeated after a crash."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Block(NamedTuple):
    """``size`` samples that start at position ``start`` of the whole run."""

    number: int
    start: int
    size: int


def blocks(total: int, size: int) -> Iterator[Block]:
    """Cut ``total`` samples into blocks of ``size``; only the last one may be shorter."""
    if size < 1:
        raise ValueError(f"block size must be positive, got {size}")
    for number in range(-(-total // size)):
        yield block_at(number, total, size)


def block_at(number: int, total: int, size: int) -> Block:
    """One of the :func:`blocks`."""
    start = number * size
    return Block(number, start, min(size, total - start))
