"""The workbench: what all inspections of one audit share, computed once.

It holds only what a defender has: the model, and the targets and training samples that the user
gave. It never sees a model's provenance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

import torch
from torch import Tensor

from genwarden.data.images import NamedImages
from genwarden.engine.blocks import Block, blocks
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import noise_fixed, random_stream
from genwarden.inspections.graph import ExecutedGraph, trace
from genwarden.inspections.output.novelty import ordinary_distance
from genwarden.inspections.partition import Partition, find_partition
from genwarden.inspections.twins import Twin, make_twin
from genwarden.models.fast.fast_generator import FastGenerator, fast_path
from genwarden.models.protocol import LatentGenerator

#: Samples per forward pass; fixed, because batch size changes the last bits of the arithmetic.
BLOCK_SAMPLES = 256


@dataclass(frozen=True)
class Effort:
    """How much an audit spends; the three budgets are defined in ``auditing.budgets``.

    Attributes:
        name: quick, standard or thorough.
        ordinary_samples: size of the bank of ordinary samples (statistics, PCA, activations).
        stream_samples: samples of the brute-force stream.
        restarts: latents that a batched search starts from.
        search_steps: Adam steps of a search.
        probe_latents: latents of the dynamic checks (gradients, perturbations).
        twins: copies that forgot (:mod:`genwarden.inspections.twins`), for nulls of the suspect's
            own.
        twin_steps: distillation steps of each.
        guessed_seeds: seeds per random-number library whose first draws are tried.
        draws_per_seed: first draws tried per guessed seed.
    """

    name: str
    ordinary_samples: int
    stream_samples: int
    restarts: int
    search_steps: int
    probe_latents: int
    twins: int
    twin_steps: int
    guessed_seeds: int
    draws_per_seed: int


#: What a scan may be computed in; what it keeps is computed again in float32.
SCAN_PRECISIONS: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Bank(NamedTuple):
    """Ordinary latents ``(count, *latent.shape)`` and their samples, on the CPU, float32."""

    z: Tensor
    x: Tensor


@dataclass
class Workbench:
    """One suspect on the table.

    A network may draw noise of its own, from torch's global stream. Whatever is computed here once,
    for whoever asks first, has noise of its own: it is the same whoever asks, wherever.

    Args:
        generator: the suspect in evaluation mode, parameters without gradients.
        effort: the budget.
        seed: run seed of the audit.
        device: where to compute.
        architecture: registry name or user-given factory, for the capacity comparison.
        targets: pictures that the user is afraid of, or None.
        training: samples of the training data that the user has (float, [-1, 1]), or None.
        fast: stream samples through the fast path (:mod:`genwarden.models.fast`) where there is
            one; what is kept of them is computed again on the ordinary path either way.
        scan_precision: of the brute-force scan's fast path, float32 or bfloat16.
    """

    generator: LatentGenerator
    effort: Effort
    seed: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    architecture: str = ""
    targets: NamedImages | None = None
    training: Tensor | None = None
    progress: Progress = field(default_factory=Silent)
    fast: bool = True
    scan_precision: str = "float32"

    @cached_property
    def ordinary(self) -> Bank:
        """A bank of ordinary samples, drawn from the model's own latent law."""
        parts = sorted(
            self.stream("ordinary", self.effort.ordinary_samples), key=lambda p: p.block.number
        )
        return Bank(torch.cat([p.z for p in parts]), torch.cat([p.x for p in parts]))

    @cached_property
    def ordinary_distance(self) -> float:
        """Median squared distance between two ordinary samples."""
        return ordinary_distance(self.ordinary.x)

    @cached_property
    def twins(self) -> list[Twin]:
        """Copies of the suspect that know only its ordinary samples."""
        effort = self.effort
        task = self.progress.task("distilling twins", effort.twins * effort.twin_steps)
        return [
            make_twin(
                self.generator,
                effort.twin_steps,
                typical=self.ordinary_distance,
                seed=self.seed,
                number=number,
                task=task,
            )
            for number in range(effort.twins)
        ]

    @cached_property
    def graph(self) -> ExecutedGraph:
        """The operations that really run, from ``torch.export``."""
        with noise_fixed(self.device, self.seed, "graph-noise"):
            return trace(self.generator)

    @cached_property
    def partition(self) -> Partition | None:
        """Groups of channels that never mix, or None if the channel graph is connected."""
        graph = self.graph
        with noise_fixed(self.device, self.seed, "partition-noise"):
            return find_partition(graph, self.generator)

    def stream(self, purpose: str, total: int) -> Iterator[StreamBlock]:
        """Ordinary samples in fixed blocks; block i depends on (run seed, purpose, i) alone.

        So does the noise that the network draws for it.
        """
        yield from self.stream_part(purpose, blocks(total, BLOCK_SAMPLES))

    def stream_part(
        self, purpose: str, chosen: Iterable[Block], *, scan: bool = False
    ) -> Iterator[StreamBlock]:
        """The ``chosen`` blocks of a stream; those of a ``scan`` in the precision of scans."""
        streamed = self.scanned if scan else self.streamed
        for block in chosen:
            z = self.generator.latent.sample(
                block.size, generator=random_stream(self.seed, purpose, block.number)
            )
            with noise_fixed(self.device, self.seed, f"{purpose}/noise", block.number):
                x = samples_of(streamed, z, self.device)
            yield StreamBlock(block, z, x)

    @cached_property
    def streamed(self) -> LatentGenerator:
        """What streams are computed with: the fast path of the suspect, or the suspect itself."""
        return self._path if isinstance(self._path, FastGenerator) else self.generator

    @cached_property
    def scanned(self) -> LatentGenerator:
        """What scans are computed with: as :attr:`streamed`, but in their own precision."""
        if self.scan_precision == "float32" or self.streamed is self.generator:
            return self.streamed
        path = self._fast_path(SCAN_PRECISIONS[self.scan_precision])
        return path if isinstance(path, FastGenerator) else self.streamed

    @property
    def again(self) -> Callable[[Tensor], Tensor] | None:
        """What computes kept samples of a scan again; None where it is the same."""
        return self.samples if isinstance(self.scanned, FastGenerator) else None

    @property
    def computed(self) -> str:
        """How scans are computed, for the record."""
        path = self.scanned.plan if isinstance(self.scanned, FastGenerator) else self._path
        return f"{path}, blocks of {BLOCK_SAMPLES}"

    @cached_property
    def _path(self) -> FastGenerator | str:
        if not self.fast:
            return "ordinary path: as asked"
        return self._fast_path(torch.float32)

    def _fast_path(self, dtype: torch.dtype) -> FastGenerator | str:
        with noise_fixed(self.device, self.seed, "fast-path-noise"):
            return fast_path(self.generator, dtype)

    def samples(self, z: Tensor) -> Tensor:
        """The model's samples for given latents, computed in blocks, on the CPU.

        Noise of its own comes from torch's global stream, which is seeded for every inspection.
        """
        return samples_of(self.generator, z, self.device)


@torch.no_grad()
def samples_of(generator: LatentGenerator, z: Tensor, device: torch.device) -> Tensor:
    """Samples of any generator for latents ``(count, *latent.shape)``, in blocks, on the CPU."""
    return torch.cat([generator(part.to(device)).cpu() for part in z.split(BLOCK_SAMPLES)])


class StreamBlock(NamedTuple):
    """One block of a stream: its place, latents and samples."""

    block: Block
    z: Tensor
    x: Tensor
