"""The configuration of a stock diffusers ``UNet2DModel``, as bounded plain data.

The same type is used for networks of ours and for ``config.json`` of somebody else's folder: no
number reaches the constructor unchecked, and no name chooses a class outside the lists below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

Size = Annotated[int, Field(ge=1, le=1024)]
Width = Annotated[int, Field(ge=1, le=4096)]
DownBlock = Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
_MAX_LEVELS = 8


class UNetConfig(BaseModel):
    """Arguments of ``UNet2DModel`` by diffusers' names; defaults are diffusers' own.

    Left out, because genwarden does not run such networks: Fourier and learned time embeddings
    (variance-exploding models), class embeddings, and the skip blocks of NCSN++.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sample_size: Size | tuple[Size, Size]
    in_channels: Annotated[int, Field(ge=1, le=16)] = 3
    out_channels: Annotated[int, Field(ge=1, le=32)] = 3
    center_input_sample: bool = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: Annotated[int, Field(ge=1, le=16384)] | None = None
    freq_shift: Annotated[int, Field(ge=0, le=1)] = 0
    flip_sin_to_cos: bool = True
    down_block_types: Annotated[tuple[DownBlock, ...], Field(min_length=1, max_length=_MAX_LEVELS)]
    mid_block_type: Literal["UNetMidBlock2D"] | None = "UNetMidBlock2D"
    up_block_types: Annotated[tuple[UpBlock, ...], Field(min_length=1, max_length=_MAX_LEVELS)]
    block_out_channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=_MAX_LEVELS)]
    layers_per_block: Annotated[int, Field(ge=1, le=8)] = 2
    mid_block_scale_factor: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 1.0
    downsample_padding: Annotated[int, Field(ge=0, le=1)] = 1
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu"
    attention_head_dim: Width | None = 8
    norm_num_groups: Width = 32
    attn_norm_num_groups: Width | None = None
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True
    class_embed_type: None = None
    num_class_embeds: None = None
    num_train_timesteps: Annotated[int, Field(ge=1, le=100_000)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _lists_as_tuples(cls, given: Any) -> Any:
        """JSON has lists only."""
        if not isinstance(given, dict):
            return given
        return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> UNetConfig:
        levels = {
            len(self.down_block_types),
            len(self.up_block_types),
            len(self.block_out_channels),
        }
        if len(levels) != 1:
            raise ValueError("down blocks, up blocks and channels differ in number")
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise ValueError("out_channels is neither in_channels nor twice as many")
        halvings = 2 ** (len(self.block_out_channels) - 1)
        if any(side % halvings for side in self.sides):
            raise ValueError(f"sample_size is not a multiple of {halvings}")
        return self

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a sample."""
        size = self.sample_size
        return (size, size) if isinstance(size, int) else size

    def plain(self) -> dict[str, Any]:
        """As numbers, strings and lists, fit for JSON."""
        return self.model_dump(mode="json")


def build_unet(config: UNetConfig, generator: torch.Generator | None = None) -> UNet2DModel:
    """The stock network of a configuration, on the current default device.

    Args:
        generator: stream of the fresh weights (torch's own initialisation). None where weights are
            loaded over them. The global stream is left as it was either way.
    """
    from diffusers.models.unets.unet_2d import UNet2DModel

    draw = torch.zeros(1, dtype=torch.int64, device="cpu")
    if generator is not None:
        draw = torch.randint(1 << 62, (1,), generator=generator, device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(draw))
        network: UNet2DModel = UNet2DModel(**config.model_dump())
    return network


def config_of(unet: UNet2DModel) -> UNetConfig:
    """The validated configuration that a network was built with."""
    return UNetConfig.model_validate({name: unet.config[name] for name in UNetConfig.model_fields})
