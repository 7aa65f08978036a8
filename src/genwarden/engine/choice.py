"""Which engine a user chose, and opening it. Nothing here imports torch or Ray before that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genwarden.errors import GenwardenError

if TYPE_CHECKING:
    from genwarden.engine.executor import Executor

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class EngineChoice:
    """Where pieces of work are computed.

    Attributes:
        name: ``local`` (this process, or processes beside it) or ``ray``.
        workers: pieces at a time; None: one of the local engine, as many as fit of Ray's.
        address: of a Ray cluster, as HOST:PORT or ``auto``; None: Ray on this machine alone.
        gpus_per_worker: share of a GPU that a worker of Ray claims.

    Raises:
        GenwardenError: ``usage/engine``.
    """

    name: str = "local"
    workers: int | None = None
    address: str | None = None
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise _wrong(f"There is no engine {self.name!r}.", f"Choose {' or '.join(ENGINES)}.")
        if self.workers is not None and self.workers < 1:
            raise _wrong("At least one worker is needed.", "Give --workers 1 or more.")
        if self.name == "local" and (self.address is not None or self.gpus_per_worker):
            flag = "--gpus-per-worker" if self.address is None else "--address"
            raise _wrong(f"{flag} is for the engine ray.", "Add --engine ray, or leave it away.")
        if self.address is not None and not _is_address(self.address):
            raise _wrong(
                f"{self.address!r} is no address of a cluster's head.",
                "Give HOST:PORT as `ray start --head` prints it, on a machine of the cluster, or "
                "auto.",
            )
        if self.gpus_per_worker < 0 or (self.gpus_per_worker > 1 and self.gpus_per_worker % 1):
            raise _wrong(
                f"A worker cannot have {self.gpus_per_worker:g} GPUs.",
                "Give a share of one (0.25), or a whole number.",
            )


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return text == "auto" or (bool(host) and "/" not in host and port.isdecimal())


def _wrong(cause: str, remedy: str) -> GenwardenError:
    return GenwardenError("usage/engine", cause, remedy)


@contextmanager
def open_executor(
    choice: EngineChoice, *, cpus: int = 1, folder: Path | None = None
) -> Iterator[Executor]:
    """The executor of a choice, for as long as the block lasts.

    Args:
        cpus: threads that a piece computes with.
        folder: one that every machine of a cluster must see, or None.

    Raises:
        GenwardenError: ``engine/...``.
    """
    if choice.name == "ray":
        from genwarden.engine.ray_executor import ray_executor

        with ray_executor(choice, cpus=cpus, folder=folder) as executor:
            yield executor
        return
    yield local_executor(choice.workers or 1)


def local_executor(workers: int) -> Executor:
    """This process, or ``workers`` beside it."""
    from genwarden.engine.executor import InProcess, Processes

    return InProcess() if workers == 1 else Processes(workers)


_IN_USE: ContextVar[Executor | None] = ContextVar("executor", default=None)


@contextmanager
def in_use(executor: Executor) -> Iterator[None]:
    """Give all pieces of the block's work to an executor, however deep they arise."""
    token = _IN_USE.set(executor)
    try:
        yield
    finally:
        _IN_USE.reset(token)


def executor_for(workers: int) -> Executor:
    """The executor :func:`in_use`; where there is none, the local one with so many workers."""
    return _IN_USE.get() or local_executor(workers)
