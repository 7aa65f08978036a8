"""One command with the smallest budgets, and its blocks in another order.

    python -m genwarden.benchmarks.robustness.one_run audit MODEL --out OUT [--shuffle N]
        [--stream SAMPLES]

With ``--shuffle`` streams of samples are handed out in a random order, and so are the pieces of a
scan to the processes that do them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from genwarden.benchmarks.robustness.nursery import smallest_budgets
from genwarden.engine.blocks import Block
from genwarden.engine.executor import InProcess, Processes
from genwarden.engine.seeds import random_stream
from genwarden.inspections.workbench import StreamBlock, Workbench


def shuffle_streams(seed: int) -> None:
    """From here on every stream of samples hands out its blocks in a random order."""
    ordered: Any = Workbench.stream_part

    def stream_part(
        self: Workbench, purpose: str, chosen: Iterable[Block], *, scan: bool = False
    ) -> Iterator[StreamBlock]:
        parts = list(ordered(self, purpose, chosen, scan=scan))
        order = torch.randperm(len(parts), generator=random_stream(seed, f"shuffle/{purpose}"))
        return iter([parts[index] for index in order.tolist()])

    Workbench.stream_part = stream_part  # type: ignore[method-assign]


def shuffle_pieces(seed: int) -> None:
    """From here on pieces of work are begun in a random order, here and in other processes."""
    kinds: tuple[type[Any], ...] = (InProcess, Processes)
    for kind in kinds:
        kind.each = _shuffled(kind.each, seed)


def _shuffled(ordered: Callable[..., Any], seed: int) -> Callable[..., Any]:
    def each(self: Any, do: Any, pieces: Sequence[Any], common: Any) -> Any:
        order = torch.randperm(len(pieces), generator=random_stream(seed, "shuffle-pieces"))
        return ordered(self, do, [pieces[index] for index in order.tolist()], common)

    return each


def main() -> None:
    """Take our own options away, then be the command."""
    from genwarden.auditing import budgets
    from genwarden.start import main as command

    words = sys.argv[1:]
    smallest_budgets(threads=None)
    shuffle = _take(words, "--shuffle")
    if shuffle is not None:
        shuffle_streams(shuffle)
        shuffle_pieces(shuffle)
    samples = _take(words, "--stream")
    if samples is not None:
        quick = budgets.BUDGETS["quick"]
        budgets.BUDGETS["quick"] = replace(quick, stream_samples=samples)
    sys.argv = ["genwarden", *words]
    command()


def _take(words: list[str], name: str) -> int | None:
    if name not in words:
        return None
    place = words.index(name)
    value = int(words[place + 1])
    del words[place : place + 2]
    return value


if __name__ == "__main__":
    main()
