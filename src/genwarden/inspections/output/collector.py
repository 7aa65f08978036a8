"""Brute-force inspections share one stream of samples: each is a collector fed block by block.

Parts of a stream may be collected in different places and merged; the methods for that are those of
:class:`genwarden.inspections.output.brute_force.Mergeable`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self

from torch import Tensor

from genwarden.inspections.finding import Finding


class Collector(Protocol):
    """State of one brute-force inspection; constructed with the workbench (and ``fitted``)."""

    def update(self, start: int, z: Tensor, x: Tensor) -> None:
        """Take a block: position of its first sample, latents and samples (CPU, float32)."""
        ...

    def finish(self) -> Finding:
        """The finding after the last block."""
        ...

    def fitted(self) -> dict[str, Tensor]:
        """What the constructor's argument ``fitted`` takes, to make one without fitting again."""
        ...

    def fresh(self) -> Self:
        """One more of its kind that has seen nothing."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What was seen."""
        ...

    def absorb(self, state: Mapping[str, Tensor]) -> None:
        """Take over what another part of the stream has seen."""
        ...
