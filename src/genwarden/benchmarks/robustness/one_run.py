"""One command with the smallest budgets, and with ``--shuffle N`` streams in another order.

python -m genwarden.benchmarks.robustness.one_run audit MODEL --out OUT [--shuffle N]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

from genwarden.benchmarks.robustness.nursery import smallest_budgets
from genwarden.engine.seeds import random_stream
from genwarden.inspections.workbench import StreamBlock, Workbench


def shuffle_streams(seed: int) -> None:
    """From here on every stream of samples hands out its blocks in a random order."""
    ordered: Any = Workbench.stream

    def stream(self: Workbench, purpose: str, total: int) -> Iterator[StreamBlock]:
        parts = list(ordered(self, purpose, total))
        order = torch.randperm(len(parts), generator=random_stream(seed, f"shuffle/{purpose}"))
        return iter([parts[index] for index in order.tolist()])

    Workbench.stream = stream  # type: ignore[method-assign]


def main() -> None:
    """Take our own option away, then be the command."""
    from genwarden.cli import main as command

    words = sys.argv[1:]
    if "--shuffle" in words:
        place = words.index("--shuffle")
        shuffle_streams(int(words[place + 1]))
        del words[place : place + 2]
    smallest_budgets(threads=None)
    sys.argv = ["genwarden", *words]
    command()


if __name__ == "__main__":
    main()
