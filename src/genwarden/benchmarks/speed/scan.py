"""The scan of a generator by stages, beside plain eager PyTorch and the arithmetic floor."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from genwarden.auditing.budgets import budget
from genwarden.benchmarks.speed.clocks import Work, rates
from genwarden.data.images import NamedImages
from genwarden.engine.blocks import blocks
from genwarden.engine.seeds import random_stream
from genwarden.inspections.output.cluster_outliers import ClusterOutliers
from genwarden.inspections.output.nearest_target import NearestTarget
from genwarden.inspections.workbench import BLOCK_SAMPLES, SCAN_PRECISIONS, Workbench
from genwarden.models.protocol import LatentGenerator

_CLUSTERED = 2048
_TARGETS = 2
#: Of a scan; the last is all of it.
STAGES = ("latents", "forward", "distances and top-k", "clusters", "scan")


def measure_scan(
    generator: LatentGenerator, batches: list[int], device: torch.device, *, rounds: int, seed: int
) -> dict[str, Any]:
    """All rates of one generator; ``operations`` are those that the ordinary path counts."""
    works = _floor(device) | _eager(generator, batches, device)
    benches = {name: _bench(generator, device, seed, name) for name in SCAN_PRECISIONS}
    for name, bench in benches.items():
        works |= {f"{name} {stage}": work for stage, work in _stages(bench).items()}
    measured = rates(works, rounds)
    return {
        "samples_per_block": BLOCK_SAMPLES,
        "computed": {name: bench.computed for name, bench in benches.items()},
        "operations_per_sample": operations_per_sample(generator, device),
        "floor_operations_per_s": {
            precision: {
                kind: measured[f"floor {precision} {kind}"]
                for kind in ("matrix product", "convolution")
            }
            for precision in SCAN_PRECISIONS
        },
        "eager_samples_per_s": {
            precision: {str(n): measured[f"eager {precision} {n}"] for n in batches}
            for precision in SCAN_PRECISIONS
        },
        "stages_samples_per_s": {
            precision: {stage: measured[f"{precision} {stage}"] for stage in STAGES}
            for precision in SCAN_PRECISIONS
        },
    }


def operations_per_sample(generator: LatentGenerator, device: torch.device) -> float:
    """Counted on the ordinary path: a product and a sum are two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        generator(_latents(generator, 4, device))
    return float(counter.get_total_flops()) / 4


def _latents(generator: LatentGenerator, number: int, device: torch.device) -> Tensor:
    return generator.latent.sample(number, generator=random_stream(0, "speed")).to(device)


def _floor(device: torch.device) -> dict[str, Work]:
    works = {}
    for name, dtype in SCAN_PRECISIONS.items():
        stream = random_stream(0, "floor")
        a, x, kernel = (
            torch.randn(shape, generator=stream).to(device, dtype)
            for shape in ((1024, 1024), (16, 128, 28, 28), (128, 128, 3, 3))
        )
        x, kernel = (t.contiguous(memory_format=torch.channels_last) for t in (x, kernel))
        out = torch.empty_like(a)

        def product(a: Tensor = a, out: Tensor = out) -> None:
            torch.mm(a, a, out=out)

        def convolution(x: Tensor = x, kernel: Tensor = kernel) -> None:
            F.conv2d(x, kernel)

        works[f"floor {name} matrix product"] = Work(product, 2 * 1024**3)
        works[f"floor {name} convolution"] = Work(convolution, 2 * 16 * 26**2 * 128**2 * 9)
    return works


def _eager(generator: LatentGenerator, batches: list[int], device: torch.device) -> dict[str, Work]:
    works = {}
    for name, dtype in SCAN_PRECISIONS.items():
        network = copy.deepcopy(generator).to(dtype)
        for number in batches:
            z = _latents(generator, number, device).to(dtype)
            works[f"eager {name} {number}"] = Work(_forward(network, z), number)
    return works


def _forward(network: LatentGenerator, z: Tensor) -> Any:
    @torch.no_grad()
    def forward() -> None:
        network(z)

    return forward


def _bench(
    generator: LatentGenerator, device: torch.device, seed: int, precision: str
) -> Workbench:
    effort = replace(budget("standard"), ordinary_samples=_CLUSTERED)
    shown = torch.rand(_TARGETS, *generator.sample.shape, generator=random_stream(0, "targets"))
    targets = NamedImages(2 * shown - 1, [str(i) for i in range(_TARGETS)])
    return Workbench(generator, effort, seed, device, targets=targets, scan_precision=precision)


def _stages(bench: Workbench) -> dict[str, Work]:
    """One block through every stage, and through all of the scan."""
    places = count()
    nearest, clusters = NearestTarget(bench), ClusterOutliers(bench)
    (first,) = blocks(BLOCK_SAMPLES, BLOCK_SAMPLES)
    _, z, x = next(bench.stream_part("speed", [first], scan=True))

    def latents() -> None:
        number = next(places)
        bench.generator.latent.sample(
            BLOCK_SAMPLES, generator=random_stream(bench.seed, "speed", number)
        )

    def distances() -> None:
        nearest.update(next(places) * BLOCK_SAMPLES, z, x)

    def clustering() -> None:
        clusters.update(next(places) * BLOCK_SAMPLES, z, x)

    whole = (NearestTarget(bench), ClusterOutliers(bench))
    # A stream without end; collectors keep what the first blocks could not fill.
    parts = bench.stream_part("scan", blocks(10**12, BLOCK_SAMPLES), scan=True)

    def scan() -> None:
        part = next(parts)
        for collector in whole:
            collector.update(part.block.start, part.z, part.x)

    forward = _forward(bench.scanned, z.to(bench.device))
    does = dict(zip(STAGES, (latents, forward, distances, clustering, scan), strict=True))
    return {name: Work(do, BLOCK_SAMPLES) for name, do in does.items()}
