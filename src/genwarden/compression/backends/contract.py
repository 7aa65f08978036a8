"""What a runtime must offer to be tested before it is believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from genwarden.compression.uniform import Uniform


@dataclass(frozen=True)
class Steps:
    """A runtime's 8-bit grid of one tensor.

    Attributes:
        scale: width of one step (LSB).
        zero: code of 0.
        least: smallest code.
        most: largest code.
    """

    scale: float
    zero: int
    least: int
    most: int

    def rounded(self, x: Tensor) -> Tensor:
        """``x`` on the grid, as float."""
        codes = torch.round(x / self.scale + self.zero).clamp(self.least, self.most)
        return (codes - self.zero) * self.scale

    def clipped(self, x: Tensor) -> Tensor:
        """``x`` within the ends of the grid."""
        low, high = ((code - self.zero) * self.scale for code in (self.least, self.most))
        return x.clamp(low, high)


@dataclass(frozen=True)
class LayerRun:
    """One layer alone, as a runtime executed it in 8 bits.

    Attributes:
        output: what came out, on the grid ``output_steps``.
        input_steps: grid on which the runtime put the input.
        output_steps: grid on which the runtime put the output.
    """

    output: Tensor
    input_steps: Steps
    output_steps: Steps


class Backend(Protocol):
    """A runtime with static 8-bit quantisation."""

    @property
    def name(self) -> str:
        """With the version, for reports."""
        ...

    def run_layers(
        self, layers: Sequence[nn.Module], inputs: Sequence[Tensor], compressor: Uniform
    ) -> list[LayerRun | None]:
        """Each layer alone, calibrated and run on its input; None if that is not done in 8 bits.

        Args:
            compressor: ``int8`` or ``int8-per-channel``: how the weights are to be quantised.
        """
        ...
