"""Results of pieces merged in a fixed order, and recorded as they come.

The driver alone writes: whatever a worker, a node or the driver itself dies of, the same command
goes on with the pieces that had not come back. Pieces that come early wait for those before them,
so that the merged state never depends on who was fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from genwarden.engine.executor import Common, Executor, Lost
from genwarden.engine.ledger import Ledger

S = TypeVar("S")


class Numbered(Protocol):
    """A piece that knows its place: 0, 1, 2, ..."""

    @property
    def number(self) -> int:
        """Its place among the pieces."""
        ...


P = TypeVar("P", bound=Numbered)


class Merged(Protocol):
    """What grows from the results of the pieces."""

    def take(self, part: bytes) -> None:
        """Merge in what a piece, or an earlier state, holds."""
        ...

    def state(self) -> bytes:
        """All that was merged; an empty one that takes it is equal to this."""
        ...


def gather(
    executor: Executor,
    do: Callable[[S, P], bytes],
    pieces: Sequence[P],
    common: Common[S],
    into: Merged,
    ledger: Ledger,
    *,
    name: str,
    advance: Callable[[P], None],
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Do the pieces that the ledger does not hold, and merge all of them in their order.

    Args:
        do: the result of a piece, as ``into`` takes it.
        pieces: in order, numbered from 0; always the same for a run of the ledger.
        into: an empty state.
        name: of this work in the ledger.
        advance: told of each piece that is merged.
        enough: whether the rest need not be done.

    Raises:
        GenwardenError: ``engine/worker-lost`` where a piece kills every worker that it is given to;
            the pieces that came back are recorded.
    """
    done = _merged_before(ledger, into, name)
    for piece in pieces[:done]:
        advance(piece)
    early = {p.number: kept for p in pieces[done:] if (kept := ledger.get_bytes(_key(name, p)))}

    def merge_on(first: bytes | None = None) -> None:
        nonlocal done
        merged: list[P] = []
        part = first if first is not None else early.pop(done, None)
        while part is not None:
            into.take(part)
            merged.append(pieces[done])
            done += 1
            part = early.pop(done, None)
        if merged:
            ledger.put_bytes(name, done.to_bytes(8) + into.state())
        for piece in merged:
            ledger.drop_bytes(_key(name, piece))
            advance(piece)

    merge_on()
    left = [piece for piece in pieces[done:] if piece.number not in early]
    if enough():
        return
    for piece, result in executor.each(do, left, common):
        if isinstance(result, Lost):
            raise result.error(f"Piece {piece.number} of {name}")
        if piece.number == done:
            merge_on(result)
        else:
            ledger.put_bytes(_key(name, piece), result)
            early[piece.number] = result
        if enough():
            return


def _merged_before(ledger: Ledger, into: Merged, name: str) -> int:
    """How many pieces an earlier run has merged; ``into`` takes them."""
    kept = ledger.get_bytes(name)
    if kept is None:
        return 0
    into.take(kept[8:])
    return int.from_bytes(kept[:8])


def _key(name: str, piece: Numbered) -> str:
    return f"{name}.{piece.number}"
