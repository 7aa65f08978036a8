"""Where the inspections of one generator are carried out: here, or in a worker.

A room has the workbench of the model as it is and those of its compressed variants. Every
inspection depends on the model, the request and the run seed alone, so that any room comes to the
same findings, in any order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from genwarden.artifacts.packed import PackedGenerator
from genwarden.auditing.budgets import budget as budget_named
from genwarden.auditing.budgets import compression_budget
from genwarden.auditing.running import BREAKDOWNS, guarded, record_of, seeded
from genwarden.compression.contract import Compressor
from genwarden.engine.device import pick_device
from genwarden.engine.executor import Executor, Lost
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.threads import threads
from genwarden.inspections.compression.bench import CompressionBench, CompressionEffort
from genwarden.inspections.compression.rerun import workbench_of
from genwarden.inspections.finding import Finding
from genwarden.inspections.workbench import Effort, Workbench
from genwarden.registry import COMPRESSION_INSPECTIONS, Row

if TYPE_CHECKING:
    from genwarden.auditing.audit import Request, Suspect

#: The inspection that takes longest by far.
_LONGEST: Final = "novelty-search"


class Room:
    """The benches of one audit.

    Args:
        suspect: with its generator on the device of the request.
        spending: what the budget stands for, where that is known already.
    """

    def __init__(
        self,
        suspect: Suspect,
        request: Request,
        progress: Progress,
        spending: tuple[Effort, CompressionEffort] | None = None,
    ) -> None:
        self.suspect, self.request, self.progress = suspect, request, progress
        named = request.budget
        self.effort, self.spent = spending or (budget_named(named), compression_budget(named))
        self.bench = Workbench(
            generator=suspect.generator,
            effort=self.effort,
            seed=request.seed,
            device=request.device,
            architecture=suspect.architecture,
            targets=request.targets,
            training=request.training,
            progress=progress,
            scan_precision=request.scan_precision,
        )
        self._variant: CompressionBench | None = None
        self._compressed: Workbench | None = None

    def inspect(self, row: Row) -> Finding:
        """One inspection of the model as it is."""
        return _inspect(row, self.bench)

    def variant(self, compressor: Compressor) -> CompressionBench:
        """The bench of a compressed variant; that of the one before is dropped."""
        if self._variant is None or self._variant.compressor.name != compressor.name:
            self._variant = CompressionBench(
                generator=self.suspect.generator,
                compressor=compressor,
                effort=self.spent,
                seed=self.request.seed,
                device=self.request.device,
                progress=self.progress,
            )
            self._compressed = None
        return self._variant

    def inspect_variant(self, row: Row, bench: CompressionBench) -> Finding:
        """One inspection of a compressed variant."""
        if row.name in COMPRESSION_INSPECTIONS:
            return seeded(row, bench, self.request.seed)
        if self._compressed is None:
            self._compressed = workbench_of(
                bench,
                self.effort,
                architecture=self.suspect.architecture,
                targets=self.request.targets,
                training=self.request.training,
            )
        return _inspect(row, self._compressed)


def _inspect(row: Row, bench: Workbench) -> Finding:
    return seeded(row, bench, bench.seed)


class Part(NamedTuple):
    """One inspection, of the model as it is or of a compressed variant."""

    row: Row
    compressor: Compressor | None

    @property
    def key(self) -> str:
        """In the ledger, as :func:`genwarden.auditing.running.run_all` looks for it."""
        return f"{self.compressor.name}.{self.row.name}" if self.compressor else self.row.name


def spread(
    rows: Mapping[str, Row],
    compressed: Mapping[str, Row],
    room: Room,
    executor: Executor,
    ledger: Ledger,
) -> None:
    """Give inspections to workers and record what they find; the audit then finds them done.

    Where pieces are done in this process there is nothing to gain.

    Args:
        rows: of the model as it is.
        compressed: of each variant of the request.

    Raises:
        GenwardenError: ``engine/...``.
    """
    if executor.here:
        return
    parts = [Part(row, None) for row in rows.values()]
    parts += [Part(row, c) for c in room.request.deploy_as for row in compressed.values()]
    # The longest first, so that nobody waits for it alone in the end; of a variant's inspections
    # none is drawn ahead, as a room keeps one variant at a time.
    parts.sort(key=lambda part: part.compressor is not None or part.row.name != _LONGEST)
    left = [part for part in parts if ledger.get(part.key) is None]
    if not left:
        return
    bar = room.progress.task(f"inspections, {executor.workers} at a time", len(left))
    for part, record in executor.each(inspect_part, left, _RoomCommon(room)):
        if isinstance(record, Lost):
            raise record.error(f"The inspection {part.key}")
        if record is not None:
            ledger.put(part.key, record)
        bar.advance(1, part.key)


def inspect_part(at_work: tuple[Room, int], part: Part) -> dict[str, Any] | None:
    """The record of a part; None for a variant that has nothing to inspect, which the audit says.

    Args:
        at_work: the room, and the threads to compute with.
    """
    room, count = at_work
    started = time.perf_counter()
    with threads(count):
        if part.compressor is None:
            finding = guarded(part.row, partial(room.inspect, part.row))
        else:
            try:
                bench = room.variant(part.compressor)
                if not bench.coverage.weights:
                    return None
            except BREAKDOWNS:
                return None
            finding = guarded(part.row, partial(room.inspect_variant, part.row, bench))
    return record_of(finding, time.perf_counter() - started)


@dataclass
class _RoomCommon:
    """The room here, and the data that another process makes one from."""

    room: Room

    def here(self) -> tuple[Room, int]:
        return self.room, torch.get_num_threads()

    def packed(self) -> Callable[[], tuple[Room, int]]:
        suspect, request = self.room.suspect, self.room.request
        return _PackedRoom(
            PackedGenerator.of(suspect.generator, suspect.architecture, suspect.settings),
            facts={"sha256": suspect.sha256, "nonfinite": suspect.nonfinite, "path": suspect.path},
            request=request,
            spending=(self.room.effort, self.room.spent),
            threads=torch.get_num_threads(),
        )


@dataclass(frozen=True)
class _PackedRoom:
    """Plain data that a :class:`Room` is made from."""

    generator: PackedGenerator
    facts: dict[str, Any]
    request: Request
    spending: tuple[Effort, CompressionEffort]
    threads: int

    def __call__(self) -> tuple[Room, int]:
        from genwarden.auditing.audit import Suspect

        device = pick_device(str(self.request.device))
        suspect = Suspect(
            generator=self.generator.unpack().to(device),
            architecture=self.generator.architecture,
            settings=self.generator.settings,
            **self.facts,
        )
        request = replace(self.request, device=device)
        return Room(suspect, request, Silent(), self.spending), self.threads
