"""Results merge in the order of the pieces and survive the driver, whoever came first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from genwarden.engine.executor import InProcess, Lost, Nothing
from genwarden.engine.gathering import gather
from genwarden.engine.ledger import Ledger
from genwarden.errors import GenwardenError


class Letter(NamedTuple):
    number: int
    text: str


LETTERS = [Letter(n, text) for n, text in enumerate("genwarden")]


class Word:
    """A merged state that shows its order."""

    def __init__(self) -> None:
        self.text = b""

    def take(self, part: bytes) -> None:
        self.text += part

    def state(self) -> bytes:
        return self.text


class Elsewhere:
    """Hands pieces back in an order of its own; the driver dies after a few."""

    workers = 4
    here = False

    def __init__(self, order: Sequence[int], dies_after: int = 99, lost: int = -1) -> None:
        self.order, self.dies_after, self.lost = order, dies_after, lost
        self.done: list[int] = []

    def each(self, do: Callable[..., Any], pieces: Sequence[Any], common: Any) -> Iterator[Any]:
        del common
        by_number = {piece.number: piece for piece in pieces}
        for number in (n for n in self.order if n in by_number):
            if len(self.done) == self.dies_after:
                raise KeyboardInterrupt
            self.done.append(number)
            gone = number == self.lost
            yield by_number[number], Lost("died") if gone else do(None, by_number[number])


def write(_: None, letter: Letter) -> bytes:
    return letter.text.encode()


def run(executor: Any, folder: Path, word: Word, **more: Any) -> list[int]:
    seen: list[int] = []
    gather(
        executor,
        write,
        LETTERS,
        Nothing(),
        word,
        Ledger(folder, {"run": 1}),
        name="word",
        advance=lambda letter: seen.append(letter.number),
        **more,
    )
    return seen


@pytest.mark.parametrize("order", [range(9), range(8, -1, -1), [4, 0, 8, 1, 7, 2, 6, 3, 5]])
def test_the_order_of_arrival_changes_nothing(order: Sequence[int], tmp_path: Path) -> None:
    word = Word()
    assert run(Elsewhere(order), tmp_path / "ledger", word) == list(range(9))
    assert word.text == b"genwarden"


@pytest.mark.parametrize("dies_after", range(9))
def test_whatever_came_back_before_the_driver_died_is_not_done_again(
    dies_after: int, tmp_path: Path
) -> None:
    first = Elsewhere([4, 0, 8, 1, 7, 2, 6, 3, 5], dies_after)
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path / "ledger", Word())
    second, word = Elsewhere(range(9)), Word()
    assert run(second, tmp_path / "ledger", word) == list(range(9))
    assert word.text == b"genwarden"
    assert sorted(first.done + second.done) == list(range(9))
    # And a third start has nothing left to do.
    third, again = Elsewhere(range(9)), Word()
    run(third, tmp_path / "ledger", again)
    assert (third.done, again.text) == ([], b"genwarden")


def test_a_damaged_record_is_work_to_be_done_again(tmp_path: Path) -> None:
    run(InProcess(), tmp_path / "ledger", Word())
    path = tmp_path / "ledger" / "word.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    word = Word()
    run(InProcess(), tmp_path / "ledger", word)
    assert word.text == b"genwarden"


def test_a_piece_that_no_worker_survives_ends_the_run_and_keeps_the_others(tmp_path: Path) -> None:
    with pytest.raises(GenwardenError, match=r"engine/worker-lost.*Piece 3 of word"):
        run(Elsewhere(range(9), lost=3), tmp_path / "ledger", Word())
    rest, word = Elsewhere(range(9)), Word()
    run(rest, tmp_path / "ledger", word)
    assert (rest.done, word.text) == (list(range(3, 9)), b"genwarden")


def test_nothing_is_begun_once_it_is_enough(tmp_path: Path) -> None:
    word = Word()
    run(Elsewhere(range(9)), tmp_path / "ledger", word, enough=lambda: len(word.text) >= 3)
    assert word.text == b"gen"
