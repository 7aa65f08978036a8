"""Independent pieces of work, side by side where there are workers, with an error for each."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple, Protocol, TypeVar

from genwarden.engine.progress import Progress
from genwarden.engine.threads import threads
from genwarden.engine.workers import worker_pool
from genwarden.errors import GenwardenError


class Failure(NamedTuple):
    """What went wrong: the code of a :class:`GenwardenError` or an exception's name, and why."""

    code: str
    cause: str


class Job(Protocol):
    """A piece of work that a worker process can be given."""

    @property
    def name(self) -> str:
        """For the progress bar and messages."""
        ...

    def do(self) -> None:
        """Do it; what it makes is on disk."""
        ...


AnyJob = TypeVar("AnyJob", bound=Job)


def do_all(
    jobs: Sequence[AnyJob], workers: int, progress: Progress, title: str
) -> list[tuple[AnyJob, Failure]]:
    """Do all jobs, one after the other or ``workers`` at a time; returns those that failed."""
    failed = []
    bar = progress.task(title, len(jobs))
    for job, failure in _done(jobs, workers):
        if failure:
            failed.append((job, failure))
            progress.message(f"{job.name} failed: {failure.code}: {failure.cause}")
        bar.advance(1, job.name)
    return failed


def _done(jobs: Sequence[AnyJob], workers: int) -> Iterator[tuple[AnyJob, Failure | None]]:
    if workers == 1:
        with threads(1):  # as a worker
            for job in jobs:
                yield job, attempt(job)
        return
    interrupted = []
    with worker_pool(workers) as pool:
        running = {pool.submit(attempt, job): job for job in jobs}
        for future in as_completed(running):
            try:
                yield running[future], future.result()
            except BrokenProcessPool:
                interrupted.append(running[future])
    # One dead worker breaks the whole pool; which job it died of, each shows alone.
    for job in interrupted:
        yield job, _alone(job)


def _alone(job: Job) -> Failure | None:
    with worker_pool(1) as pool:
        try:
            return pool.submit(attempt, job).result()
        except BrokenProcessPool:
            return Failure(
                "cell/worker-died", "Its worker process was killed, probably for want of memory."
            )


def attempt(job: Job) -> Failure | None:
    """Do a job; what went wrong, or None."""
    try:
        job.do()
    except GenwardenError as error:
        return Failure(error.code, error.cause)
    except Exception as error:  # one job's defect must not cost the others
        traceback.print_exc()
        return Failure(type(error).__name__, str(error) or "no message")
    return None
