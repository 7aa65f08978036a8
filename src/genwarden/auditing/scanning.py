"""The brute-force scan: one stream of samples for all its inspections, in pieces that may travel.

A piece is a range of blocks. Whoever does it draws its samples, feeds collectors that have seen
nothing else, and hands back their state; the states are merged in the order of the pieces. What a
collector fits beforehand (clusters) is fitted once, here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from genwarden.artifacts.packed import PackedGenerator
from genwarden.auditing.running import BREAKDOWNS, failed_finding, guarded, reason_of
from genwarden.data.images import NamedImages
from genwarden.engine.blocks import block_at
from genwarden.engine.device import pick_device
from genwarden.engine.executor import Executor
from genwarden.engine.gathering import gather
from genwarden.engine.ledger import Ledger
from genwarden.engine.parts import named, owned
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import noise_fixed
from genwarden.engine.threads import threads
from genwarden.inspections.finding import Finding
from genwarden.inspections.output.collector import Collector
from genwarden.inspections.workbench import BLOCK_SAMPLES, Effort, Workbench
from genwarden.registry import Row

PURPOSE: Final = "brute-force"
#: A piece has as many blocks as make this many pieces, within the bounds: long enough that sending
#: it costs nothing, short enough that little is lost with a worker. It follows from the number of
#: samples alone, so that any engine can go on with what another began.
_PIECES = 256
_LEAST_BLOCKS, _MOST_BLOCKS = 32, 1024
_BROKEN = "broken"


class ScanPiece(NamedTuple):
    """Blocks ``first`` to ``last`` - 1 of the stream."""

    number: int
    first: int
    last: int
    samples: int


def scan_pieces(total: int) -> list[ScanPiece]:
    """The pieces of a scan of ``total`` samples."""
    every = -(-total // BLOCK_SAMPLES)
    size = min(max(-(-every // _PIECES), _LEAST_BLOCKS), _MOST_BLOCKS)
    starts = range(0, every, size)
    return [
        ScanPiece(
            number,
            first,
            last := min(first + size, every),
            min(last * BLOCK_SAMPLES, total) - first * BLOCK_SAMPLES,
        )
        for number, first in enumerate(starts)
    ]


def scan(
    rows: Mapping[str, Row],
    bench: Workbench,
    settings: dict[str, Any],
    executor: Executor,
    ledger: Ledger,
    progress: Progress,
) -> dict[str, Finding]:
    """Feed the collectors of ``rows`` from one stream of samples; one may break for itself.

    Args:
        settings: of the architecture, to build the network elsewhere.

    Raises:
        GenwardenError: ``engine/...``; what broke inside an inspection is its finding.
    """
    collectors: dict[str, Collector] = {}
    broken: dict[str, str] = {}
    for name, row in rows.items():
        try:
            collectors[name] = _collector(row, bench)
        except BREAKDOWNS as error:
            broken[name] = reason_of(error)
    common = _ScanCommon(bench, {n: rows[n] for n in collectors}, collectors, settings)
    merged = ScanState(collectors, broken)
    total = bench.effort.stream_samples
    bar = progress.task("brute-force sampling", total)
    gather(
        executor,
        scan_piece,
        scan_pieces(total),
        common,
        merged,
        ledger,
        name=PURPOSE,
        advance=lambda piece: bar.advance(piece.samples),
        enough=lambda: merged.hopeless,
    )
    findings: dict[str, Finding] = {}
    for name, row in rows.items():
        if name in merged.broken:
            findings[name] = failed_finding(row, merged.broken[name])
        else:
            # What is kept of the stream is computed again.
            with noise_fixed(bench.device, bench.seed, name):
                findings[name] = guarded(row, collectors[name].finish)
    return findings


def _collector(row: Row, bench: Workbench, **fitted: dict[str, Tensor]) -> Collector:
    """A collector that has seen nothing; what it fits does not depend on who asked before."""
    with noise_fixed(bench.device, bench.seed, f"{row.name}/fit"):
        made: Collector = row.load()(bench, **fitted)
    return made


@dataclass
class ScanState:
    """What collectors have seen, and why some of them broke: merged, sent and recorded."""

    collectors: dict[str, Collector]
    broken: dict[str, str]

    @property
    def hopeless(self) -> bool:
        """Whether no collector is left."""
        return not set(self.collectors) - set(self.broken)

    def take(self, part: bytes) -> None:
        """Merge; of two reasons why a collector broke the earlier one stays."""
        tensors = load(part)
        told = json.loads(bytes(tensors.pop(_BROKEN).tolist()))
        self.broken = told | self.broken
        for name, collector in self.collectors.items():
            if name not in self.broken:
                collector.absorb(owned(name, tensors))

    def state(self) -> bytes:
        """Everything, as safetensors."""
        told = json.dumps(self.broken).encode()
        tensors = {_BROKEN: torch.tensor(list(told), dtype=torch.uint8)}
        for name, collector in self.collectors.items():
            if name not in self.broken:
                tensors |= named(name, collector.state())
        return save(tensors)


class Scanner(NamedTuple):
    """What does a piece: the network on a bench, and collectors to take fresh ones from."""

    bench: Workbench
    collectors: dict[str, Collector]
    threads: int


def scan_piece(scanner: Scanner, piece: ScanPiece) -> bytes:
    """The state of fresh collectors after the blocks of a piece."""
    seen = ScanState({name: c.fresh() for name, c in scanner.collectors.items()}, {})
    total = scanner.bench.effort.stream_samples
    chosen = (block_at(number, total, BLOCK_SAMPLES) for number in range(piece.first, piece.last))
    try:
        with threads(scanner.threads):
            for part in scanner.bench.stream_part(PURPOSE, chosen, scan=True):
                _feed(seen, part.block.start, part.z, part.x)
    except BREAKDOWNS as error:  # the network itself: no collector has seen the whole stream
        for name in seen.collectors:
            seen.broken.setdefault(name, reason_of(error))
    return seen.state()


def _feed(seen: ScanState, start: int, z: Tensor, x: Tensor) -> None:
    for name, collector in seen.collectors.items():
        if name not in seen.broken:
            try:
                collector.update(start, z, x)
            except BREAKDOWNS as error:
                seen.broken[name] = reason_of(error)


@dataclass
class _ScanCommon:
    """The scanner here, and the data that another process makes one from."""

    bench: Workbench
    rows: dict[str, Row]
    collectors: dict[str, Collector]
    settings: dict[str, Any]

    def here(self) -> Scanner:
        return Scanner(self.bench, self.collectors, torch.get_num_threads())

    def packed(self) -> Callable[[], Scanner]:
        bench = self.bench
        tensors: dict[str, Tensor] = {}
        if bench.targets is not None:
            tensors["targets"] = bench.targets.images.contiguous()
        if bench.training is not None:
            tensors["training"] = bench.training.contiguous()
        for name, collector in self.collectors.items():
            tensors |= named(name, collector.fitted())
        return _PackedScan(
            PackedGenerator.of(bench.generator, bench.architecture, self.settings),
            effort=bench.effort,
            seed=bench.seed,
            fast=bench.fast,
            scan_precision=bench.scan_precision,
            device=str(bench.device),
            threads=torch.get_num_threads(),
            rows=self.rows,
            target_names=tuple(bench.targets.names) if bench.targets is not None else (),
            tensors=save(tensors),
        )


@dataclass(frozen=True)
class _PackedScan:
    """Plain data that a :class:`Scanner` is made from."""

    generator: PackedGenerator
    effort: Effort
    seed: int
    fast: bool
    scan_precision: str
    device: str
    threads: int
    rows: dict[str, Row]
    target_names: tuple[str, ...]
    tensors: bytes

    def __call__(self) -> Scanner:
        device = pick_device(self.device)
        tensors = load(self.tensors)
        bench = Workbench(
            generator=self.generator.unpack().to(device),
            effort=self.effort,
            seed=self.seed,
            fast=self.fast,
            scan_precision=self.scan_precision,
            device=device,
            architecture=self.generator.architecture,
            targets=(
                NamedImages(tensors["targets"], list(self.target_names))
                if "targets" in tensors
                else None
            ),
            training=tensors.get("training"),
        )
        with threads(self.threads):
            collectors = {
                name: _collector(row, bench, fitted=owned(name, tensors))
                for name, row in self.rows.items()
            }
        return Scanner(bench, collectors, self.threads)
