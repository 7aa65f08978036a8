"""Brute-force inspections share one stream of samples: each is a collector fed block by block."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from genwarden.inspections.finding import Finding


class Collector(Protocol):
    """State of one brute-force inspection; constructed with the workbench."""

    def update(self, start: int, z: Tensor, x: Tensor) -> None:
        """Take a block: position of its first sample, latents and samples (CPU, float32)."""
        ...

    def finish(self) -> Finding:
        """The finding after the last block."""
        ...
