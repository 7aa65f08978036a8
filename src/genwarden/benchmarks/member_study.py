"""What the studies of diffusion models and of compressed models share: members made, audited, told.

Each member is made by whichever process takes its lock first, after the base that it starts from;
then it is audited, and what its attack reached is measured. Nothing that is there is done again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from genwarden.auditing.document import AuditDocument
from genwarden.benchmarks.choosing import Keyed
from genwarden.benchmarks.locks import claimed
from genwarden.benchmarks.member_files import (
    document_path,
    facts_path,
    once,
    require_audits_of,
    write_audit,
)
from genwarden.benchmarks.repairs.jobs import Failure, do_all
from genwarden.benchmarks.repairs.run import raise_failures
from genwarden.benchmarks.store import write_result
from genwarden.engine.files import write_atomic, write_json
from genwarden.engine.progress import Progress


class StudyMember(Keyed, Protocol):
    """One model of a study."""

    @property
    def base_key(self) -> str:
        """Folder of what it starts from (its own for a base)."""
        ...


M = TypeVar("M", bound=StudyMember)


class MemberJob(ABC, Generic[M]):
    """One member: made if need be, then audited and measured."""

    #: The file of a member's folder that is written last.
    last_file: str

    def __init__(
        self, member: M, *, models: Path, out: Path, budgets: tuple[str, ...], seed: int
    ) -> None:
        self.member, self.models, self.out = member, models, out
        self.budgets, self.seed = budgets, seed

    @property
    def name(self) -> str:
        """The member's key."""
        return self.member.key

    @property
    def folder(self) -> Path:
        """Where the member lies."""
        return self.models / self.member.key

    @abstractmethod
    def base(self) -> M:
        """What the member starts from; itself for a base."""

    @abstractmethod
    def make(self, member: M) -> None:
        """Train or attack one member; only called if :attr:`may_make`."""

    @property
    @abstractmethod
    def may_make(self) -> bool:
        """Whether members that are missing are made."""

    @abstractmethod
    def audit(self, budget: str, work: Path) -> AuditDocument:
        """Audit the member; ``work`` keeps what an interrupted audit had done."""

    @abstractmethod
    def facts(self) -> dict[str, Any] | None:
        """What the member's attack reached; None for a clean one."""

    def require_own_audits(self, sha256: Callable[[], str]) -> None:
        """Refuse stored audits of another model than the one of this hash.

        Raises:
            GenwardenError: ``benchmark/other-orders``.
        """
        stored = [document_path(self.out, self.name, b, self.seed) for b in self.budgets]
        if there := [path for path in stored if path.exists()]:
            require_audits_of(sha256(), there)

    def require_fitting(self) -> None:
        """Refuse a member, or an audit of it, that is there but is not what the plan asks for.

        Raises:
            GenwardenError: ``benchmark/other-orders``.
        """

    def do(self) -> None:
        """Everything that is not on disk yet; nothing where another process is at it."""
        if not self._present(self.member, wait=False):
            return
        self.require_fitting()
        for budget in self.budgets:
            path = document_path(self.out, self.name, budget, self.seed)
            audit = partial(self.audit, budget, path.with_suffix(".work"))
            once(self.out, path, partial(write_audit, path, audit))
        path = facts_path(self.out, self.name)
        once(self.out, path, partial(self._write_facts, path))

    def _present(self, member: M, *, wait: bool) -> bool:
        finished = self.models / member.key / self.last_file
        if finished.exists():
            return True
        if not self.may_make:
            return False
        if member.base_key != member.key:
            self._present(self.base(), wait=True)
        lock = self.models / ".locks" / f"{member.key}.lock"
        with claimed(lock, wait=wait) as mine:
            if mine and not finished.exists():
                self.make(member)
        return finished.exists()

    def _write_facts(self, path: Path) -> None:
        found = self.facts()
        if found is not None:
            write_json(path, found)


def do_members(
    jobs: Sequence[MemberJob[Any]], workers: int, progress: Progress
) -> dict[str, Failure]:
    """All jobs, those of bases first; returns what failed, by key."""
    failed: dict[str, Failure] = {}
    for title, stage in (
        ("bases", [j for j in jobs if j.member.base_key == j.member.key]),
        ("the others", [j for j in jobs if j.member.base_key != j.member.key]),
    ):
        failed.update({job.name: f for job, f in do_all(stage, workers, progress, title)})
    return failed


def write_study(
    out: Path,
    recipe: str,
    plan: Sequence[Keyed],
    document: dict[str, Any],
    failed: Mapping[str, Failure],
    pictures: Mapping[str, bytes],
) -> Path:
    """Write ``result.json`` and its pictures, with what is missing and what failed.

    Args:
        document: with ``rows``, each with its member's ``key``.
        pictures: contents by file name, which the recipe's name is put before.

    Raises:
        GenwardenError: ``benchmark/cells-failed`` after all is written.
    """
    audited = {row["key"] for row in document["rows"]}
    named = {f"{recipe}-{name}": content for name, content in pictures.items()}
    for name, content in named.items():
        write_atomic(out / name, content)
    path = write_result(
        out / "result.json",
        {
            **document,
            "missing": [m.key for m in plan if m.key not in audited],
            "failed": {key: f"{f.code}: {f.cause}" for key, f in failed.items()},
            "pictures": sorted(named),
        },
    )
    raise_failures(dict(failed))
    return path
