"""Where pieces of work are computed: this process, processes beside it, or a cluster.

One contract for all: ``each`` computes a function of independent pieces and hands the results back
as they come. What the pieces share (a network) is a :class:`Common`: used as it is in this process,
and made anew, once, in every other one. A worker that dies costs the pieces that it was at; they
are done again elsewhere. An error of the work itself is not retried: it would come again.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar

from genwarden.engine.workers import common_part, worker_pool
from genwarden.errors import ExitCode, GenwardenError

P = TypeVar("P")
S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)
R = TypeVar("R")

#: What a :class:`GenwardenError` is made from: an exception itself does not travel whole.
ErrorParts = tuple[str, str, str, ExitCode]


class Common(Protocol[S_co]):
    """What all pieces share."""

    def here(self) -> S_co:
        """As it is used in this process."""
        ...

    def packed(self) -> Callable[[], S_co]:
        """What another process makes it from. It is pickled: plain data of ours, no file's."""
        ...


class Nothing:
    """The common part of pieces that share nothing."""

    def here(self) -> None:
        """Nothing."""

    def packed(self) -> Callable[[], None]:
        """Makes nothing."""
        return _nothing


def _nothing() -> None:
    return None


class Lost(NamedTuple):
    """In place of a result: the worker died of this piece, every time; ``cause`` says how."""

    cause: str

    def error(self, what: str) -> GenwardenError:
        """Where nothing can go on without ``what`` was given up."""
        return GenwardenError(
            "engine/worker-lost",
            f"{what} was given up: {self.cause}",
            "Give the workers more memory, or fewer of them to a machine; the same command "
            "then continues.",
        )


class Executor(Protocol):
    """Computes independent pieces."""

    @property
    def workers(self) -> int:
        """Pieces at a time."""
        ...

    @property
    def here(self) -> bool:
        """Whether they are done in this process."""
        ...

    def each(
        self, do: Callable[[S, P], R], pieces: Sequence[P], common: Common[S]
    ) -> Iterator[tuple[P, R | Lost]]:
        """``do(common, piece)`` of every piece, as they come; begun in the order of the pieces.

        Args:
            do: a function of a module, so that another process finds it.
            pieces: plain data, pickled where they are done in another process.

        Raises:
            GenwardenError: one that ``do`` raised, as it is; ``engine/piece-failed`` for any other
                exception of another process.
        """
        ...


class InProcess:
    """One piece after the other, here."""

    workers = 1
    here = True

    def each(
        self, do: Callable[[S, P], R], pieces: Sequence[P], common: Common[S]
    ) -> Iterator[tuple[P, R | Lost]]:
        """See :class:`Executor`."""
        state = common.here() if pieces else None
        for piece in pieces:
            yield piece, do(state, piece)  # type: ignore[arg-type]  # there are pieces


@dataclass(frozen=True)
class Processes:
    """``workers`` processes on this machine."""

    workers: int
    here: ClassVar[bool] = False

    def each(
        self, do: Callable[[S, P], R], pieces: Sequence[P], common: Common[S]
    ) -> Iterator[tuple[P, R | Lost]]:
        """See :class:`Executor`.

        One dead worker breaks its whole pool. Which piece it died of, each that was in flight shows
        alone; the rest goes to a new pool.
        """
        left = list(pieces)
        packed = common.packed()
        while left:
            suspects: list[P] = []
            with worker_pool(min(self.workers, len(left)), packed) as pool:
                yield from self._until_broken(pool, do, left, suspects)
            for piece in suspects:
                yield piece, _alone(do, piece, packed)

    def _until_broken(
        self, pool: ProcessPoolExecutor, do: Callable[[S, P], R], left: list[P], suspects: list[P]
    ) -> Iterator[tuple[P, R]]:
        """Take pieces off ``left``; those in flight when the pool breaks go to ``suspects``."""
        running: dict[Future[Told[R]], P] = {}
        broken = False
        while running or (left and not broken):
            # As many as there are workers: those behind would be suspects without having begun.
            while left and len(running) < self.workers and not broken:
                piece = left.pop(0)
                try:
                    running[pool.submit(_in_worker, do, piece)] = piece
                except BrokenProcessPool:
                    left.insert(0, piece)
                    broken = True
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                piece = running.pop(future)
                try:
                    told = future.result()
                except BrokenProcessPool:
                    broken = True
                    suspects.append(piece)
                    continue
                yield piece, told.result()


def _alone(do: Callable[[S, P], R], piece: P, packed: Callable[[], S]) -> R | Lost:
    with worker_pool(1, packed) as pool:
        try:
            return pool.submit(_in_worker, do, piece).result().result()
        except BrokenProcessPool:
            return Lost("Its worker process was killed, probably for want of memory.")


@dataclass(frozen=True)
class Told(Generic[R]):
    """What a piece came to, as it travels between processes: errors as their texts."""

    value: R | None = None
    error: ErrorParts | None = None

    def result(self) -> R:
        """The value, or the error, raised."""
        if self.error is not None:
            raise GenwardenError(*self.error)
        return self.value  # type: ignore[return-value]  # None is a value, too


def parts_of(error: GenwardenError) -> ErrorParts:
    """How an error travels between processes."""
    return (error.code, error.cause, error.remedy, error.exit_code)


def _in_worker(do: Callable[[S, P], R], piece: P) -> Told[R]:
    return told(do, common_part, piece)


def told(do: Callable[[S, P], R], state: Callable[[], S], piece: P) -> Told[R]:
    """Do a piece in a worker; whatever goes wrong becomes texts, which any process can read."""
    try:
        return Told(do(state(), piece))
    except GenwardenError as error:
        return Told(error=parts_of(error))
    except Exception as error:
        traceback.print_exc()
        return Told(
            error=(
                "engine/piece-failed",
                f"A worker failed with {type(error).__name__}: {error}.",
                "Repeat the command without --engine and --workers; if it fails there, too, "
                "this is a defect of genwarden: report it.",
                ExitCode.ERROR,
            )
        )
