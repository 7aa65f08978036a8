"""What genwarden asks of a diffusion model: its schedule, its samples, and its noise estimate."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.models.protocol import SampleSpec


@runtime_checkable
class Diffusion(Protocol):
    """A network that estimates the noise in a noisy image.

    Attributes:
        schedule: noise level of every timestep.
        sample: what one finished sample is; values in [-1, 1].
    """

    schedule: NoiseSchedule
    sample: SampleSpec

    def epsilon(self, x: Tensor, t: Tensor | int) -> Tensor:
        """Estimated noise of ``x`` ``(batch, C, H, W)`` at ``t`` ``(batch,)`` int64, or one int."""
        ...
