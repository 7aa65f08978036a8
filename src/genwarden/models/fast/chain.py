"""What a reference generator computes, as one chain: a dense layer, then transposed convolutions.

Batch norms are folded into the weights in float64. Audio is an image of height 1. A network is
recognised by what it is made of, never by what its file says: exact classes, no hooks, nothing
replaced, evaluation mode.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from genwarden.models.dcgan import DCGAN28, DCGAN32
from genwarden.models.layers import LEAKY_SLOPE, SameConvTranspose2d
from genwarden.models.protocol import LatentGenerator
from genwarden.models.vae import VAEDecoder28
from genwarden.models.wavegan import SameConvTranspose1d, WaveGAN


@dataclass(frozen=True)
class ChainLayer:
    """A transposed convolution whose output is ``stride`` times as large as its input.

    Attributes:
        weight: ``(inputs, outputs, kernel height, kernel width)``, float64.
        bias: ``(outputs,)``, float64.
        stride: along height and width.
        crop: rows and columns dropped at the start; the end is cut to size.
        slope: of the leaky rectifier behind it (0 is ReLU); None for none.
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int]
    crop: tuple[int, int]
    slope: float | None


@dataclass(frozen=True)
class Chain:
    """A generator up to its last activation.

    Attributes:
        weight: dense layer ``(channels * height * width, latent size)``, float64.
        bias: ``(channels * height * width,)``, float64.
        slope: of the leaky rectifier behind it.
        shape: channels, height and width of its output.
        layers: the transposed convolutions.
    """

    weight: Tensor
    bias: Tensor
    slope: float
    shape: tuple[int, int, int]
    layers: tuple[ChainLayer, ...]


_LAYERS = (
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.ModuleList,
    SameConvTranspose1d,
    SameConvTranspose2d,
)


def chain_of(generator: LatentGenerator) -> Chain | str:
    """The chain, or the reason why there is none."""
    if type(generator) not in (DCGAN28, DCGAN32, VAEDecoder28, WaveGAN):
        return f"{type(generator).__name__} is not a chain of transposed convolutions known here"
    changed = _changed(generator)
    if changed:
        return changed
    if isinstance(generator, DCGAN28 | DCGAN32):
        return _dcgan(generator)
    if isinstance(generator, WaveGAN):
        return _wavegan(generator)
    assert isinstance(generator, VAEDecoder28)  # noqa: S101 (for mypy)
    return _vae(generator)


def _changed(generator: LatentGenerator) -> str:
    """Whether the object does something else than its class: empty, or what was found."""
    for name, module in generator.named_modules():
        behind = name.split(".")[0] in generator.after_activation
        if name and not behind and type(module) not in _LAYERS:
            return f"{name} is a {type(module).__name__}"
        if module.training:
            return "the network is in training mode"
        hooks = (module._forward_hooks, module._forward_pre_hooks)
        if any(hooks) or "forward" in vars(module) or "pre_activation" in vars(module):
            return f"{name or 'the network'} has hooks"
    return ""


def _dcgan(generator: DCGAN28 | DCGAN32) -> Chain:
    side = 7 if isinstance(generator, DCGAN28) else 4
    gain, shift = _norm(generator.project_norm)
    return Chain(
        generator.project.weight.detach().double() * gain[:, None],
        shift,
        LEAKY_SLOPE,
        (generator.channels[0], side, side),
        (
            _layer(generator.up1, LEAKY_SLOPE, generator.up1_norm),
            _layer(generator.up2, LEAKY_SLOPE, generator.up2_norm),
            _layer(generator.to_image, None),
        ),
    )


def _vae(generator: VAEDecoder28) -> Chain:
    return Chain(
        generator.project.weight.detach().double(),
        generator.project.bias.detach().double(),
        0.0,
        (generator.channels[0], 7, 7),
        (
            _layer(generator.up1, 0.0),
            _layer(generator.up2, 0.0),
            _layer(generator.to_image, None),
        ),
    )


def _wavegan(generator: WaveGAN) -> Chain:
    first = generator.channels[0]
    hidden = [layer for layer in generator.up if isinstance(layer, SameConvTranspose1d)]
    return Chain(
        generator.project.weight.detach().double(),
        generator.project.bias.detach().double(),
        0.0,
        (first, 1, generator.project.out_features // first),
        (*(_layer(layer, 0.0) for layer in hidden), _layer(generator.to_audio, None)),
    )


def _layer(
    layer: SameConvTranspose1d | SameConvTranspose2d,
    slope: float | None,
    norm: nn.Module | None = None,
) -> ChainLayer:
    weight = layer.weight.detach().double()
    bias = weight.new_zeros(weight.shape[1])
    if layer.bias is not None:
        bias = layer.bias.detach().double()
    if norm is not None:
        gain, shift = _norm(norm)
        weight = weight * gain.view(1, -1, *[1] * (weight.ndim - 2))
        bias = bias * gain + shift
    if weight.ndim == 3:
        return ChainLayer(
            weight[:, :, None], bias, (1, layer.stride[0]), (0, int(layer.padding[0])), slope
        )
    return ChainLayer(
        weight,
        bias,
        (layer.stride[0], layer.stride[1]),
        (int(layer.padding[0]), int(layer.padding[1])),
        slope,
    )


def _norm(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Gain and shift of a batch norm in evaluation mode, float64."""
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)  # noqa: S101 (classes were checked)
    assert norm.running_var is not None and norm.running_mean is not None  # noqa: S101, PT018
    gain = (norm.running_var.double() + norm.eps).rsqrt() * norm.weight.detach().double()
    return gain, norm.bias.detach().double() - gain * norm.running_mean.double()
