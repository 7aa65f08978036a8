"""A stock diffusers ``UNet2DModel`` with its noise schedule, as the ``Diffusion`` protocol asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from genwarden.models.diffusion.sampling import SamplerSettings
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.models.diffusion.unet_config import config_of
from genwarden.models.protocol import SampleSpec

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel


class DiffusionModel(nn.Module):
    """A denoiser: network, schedule, and how its owner would sample it.

    Args:
        unet: the network; ``(batch, C, H, W)`` and ``(batch,)`` steps in, C channels out, or 2 C
            where it also estimates the variance (the second half is not used).
        schedule: noise levels, and what the network returns.
        defaults: sampler of an ordinary user; DDPM over all steps unless stated.
    """

    def __init__(
        self, unet: UNet2DModel, schedule: NoiseSchedule, defaults: SamplerSettings | None = None
    ) -> None:
        super().__init__()
        config = config_of(unet)
        self.unet: nn.Module = unet
        self.schedule = schedule
        self.sample = SampleSpec((config.in_channels, *config.sides))
        self.defaults = defaults or SamplerSettings("ddpm", schedule.steps)
        self._settings = config.plain()

    def epsilon(self, x: Tensor, t: Tensor | int) -> Tensor:
        """Estimated noise, ``(batch, C, H, W)``.

        Args:
            x: noisy images ``(batch, C, H, W)``.
            t: timestep of each, ``(batch,)`` int64 in [0, T), or one int for all.

        From v = a eps - s x_0 follows eps = a v + s x; from x_0, eps = (x - a x_0) / s.
        """
        if isinstance(t, int):
            t = torch.full((len(x),), t, dtype=torch.int64, device=x.device)
        output: Tensor = self.unet(x, t, return_dict=False)[0][:, : self.sample.shape[0]]
        if self.schedule.prediction == "epsilon":
            return output
        a, s = self.schedule.a_of(t, x), self.schedule.s_of(t, x)
        if self.schedule.prediction == "v_prediction":
            return a * output + s * x
        return (x - a * output) / s

    def forward(self, x: Tensor, t: Tensor | int) -> Tensor:
        """The same as :meth:`epsilon`."""
        return self.epsilon(x, t)

    def settings(self) -> dict[str, Any]:
        """The network's validated configuration, as written to ``unet/config.json``."""
        return dict(self._settings)
