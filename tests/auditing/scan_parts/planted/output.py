"""What workers of a scan import: a network that draws noise, and a collector that breaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from genwarden.inspections.finding import Finding
from genwarden.inspections.workbench import BLOCK_SAMPLES, Workbench

#: The first block of the second piece, where pieces are two blocks long.
BREAKS_AT = 2 * BLOCK_SAMPLES


class Noisy(nn.Module):
    """A generator that adds noise of its own to every sample."""

    latent_shape = (8,)
    sample_shape = (1, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        stream = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(8, 36, generator=stream))

    def forward(self, z: Tensor) -> Tensor:
        """Samples ``(batch, 1, 6, 6)``."""
        noise = torch.randn(len(z), 36, device=z.device)
        return (z @ self.weight / 3 + noise).tanh().reshape(-1, 1, 6, 6)


class BreaksLater:
    """A collector that breaks in the second piece and in every later one."""

    def __init__(self, bench: Workbench, *, fitted: Mapping[str, Tensor] | None = None) -> None:
        del bench, fitted

    def update(self, start: int, z: Tensor, x: Tensor) -> None:
        """See :class:`genwarden.inspections.output.collector.Collector`."""
        del z, x
        if start >= BREAKS_AT:
            raise ValueError(f"broken at sample {start}")

    def finish(self) -> Finding:
        """Never reached."""
        raise AssertionError("a broken collector has no finding")

    def fitted(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def fresh(self) -> Self:
        """It keeps nothing."""
        return self

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def absorb(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""
        del state
