"""Independent pieces of work, side by side where there are workers, with an error for each."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from genwarden.engine.choice import executor_for
from genwarden.engine.executor import Lost, Nothing
from genwarden.engine.progress import Progress
from genwarden.engine.threads import threads
from genwarden.errors import GenwardenError

#: Code of a job that its worker process died of.
WORKER_DIED = "cell/worker-died"


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
    for job, failure in executor_for(workers).each(attempt, jobs, Nothing()):
        yield job, Failure(WORKER_DIED, failure.cause) if isinstance(failure, Lost) else failure


def attempt(_: None, job: Job) -> Failure | None:
    """Do a job with one thread; what went wrong, or None."""
    try:
        with threads(1):
            job.do()
    except GenwardenError as error:
        return Failure(error.code, error.cause)
    except Exception as error:  # one job's defect must not cost the others
        traceback.print_exc()
        return Failure(type(error).__name__, str(error) or "no message")
    return None
