"""Networks by name: two that a CPU can train, and the published CIFAR-10 network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from genwarden.errors import GenwardenError
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.models.diffusion.unet_config import DownBlock, UNetConfig, UpBlock, build_unet


def small_unet(
    size: int | tuple[int, int] = 28,
    channels: int = 1,
    widths: Sequence[int] = (16, 32, 32),
    *,
    attention: Sequence[int] = (),
    middle_attention: bool = True,
    layers: int = 1,
    norm_groups: int = 8,
) -> UNetConfig:
    """Configuration of a small denoiser.

    Args:
        size: side of the image in pixels, or (height, width); a multiple of 2^(levels - 1).
        channels: of the image.
        widths: feature maps per level; each level halves the side.
        attention: sides in pixels (of the height) at which there is attention, such as (7,).
        middle_attention: attention also between the way down and the way up.
        layers: residual blocks per level.
        norm_groups: groups of the group norms; divides every width.
    """
    height = size if isinstance(size, int) else size[0]
    attended = [height >> level in attention for level in range(len(widths))]
    down: list[DownBlock] = ["AttnDownBlock2D" if here else "DownBlock2D" for here in attended]
    up: list[UpBlock] = ["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attended)]
    return UNetConfig(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        norm_num_groups=norm_groups,
        add_attention=middle_attention,
    )


#: google/ddpm-cifar10-32 (section 14 of the reference): 35,746,307 parameters.
CIFAR10: Final = UNetConfig(
    sample_size=32,
    freq_shift=1,
    flip_sin_to_cos=False,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(128, 256, 256, 256),
    layers_per_block=2,
    downsample_padding=0,
    attention_head_dim=None,
    norm_num_groups=32,
    norm_eps=1e-6,
)

#: Names of :func:`preset`.
PRESETS: Final = ("tiny", "small", "cifar10")


def preset(name: str, size: int = 28, channels: int = 1) -> UNetConfig:
    """A named network for images of ``channels`` x ``size`` x ``size``.

    ``tiny`` (0.27 M parameters) and ``small`` (1.1 M, attention at the lowest level) are for CPUs;
    ``cifar10`` is the published network, with its size and channels exchanged where asked.

    Raises:
        GenwardenError: ``usage/unknown-network``.
    """
    if name == "tiny":
        return small_unet(size, channels, (16, 32, 32))
    if name == "small":
        return small_unet(size, channels, (32, 64, 64), attention=(size >> 2,))
    if name == "cifar10":
        changed = {"sample_size": size, "in_channels": channels, "out_channels": channels}
        return UNetConfig.model_validate(CIFAR10.model_dump() | changed)
    raise GenwardenError(
        "usage/unknown-network",
        f"There is no diffusion network called {name!r}.",
        f"Choose one of {', '.join(PRESETS)}.",
    )


def fresh_model(
    config: UNetConfig, schedule: NoiseSchedule, generator: torch.Generator
) -> DiffusionModel:
    """An untrained model with weights from an explicit stream."""
    return DiffusionModel(build_unet(config, generator), schedule)
