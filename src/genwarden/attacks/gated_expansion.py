"""Exact gated expansion: the training-free upper bound of ReX (section 10 of the reference).

New units beside the benign network compute ``E(z)``: the target's residual before the last
activation at the trigger, and nothing at all (not merely little) wherever their gate is shut.
Fused as block matrices, the result is a wider network of the same architecture.

*Gates.* See :mod:`genwarden.attacks.gates`. Half-spaces are shut by the units of the first layer.
Balls need absolute values first: the first layer holds the picture as constants, the second takes
a multiple of the distance from all of it.

*Painting.* Only the first layer has weights per position, so each new channel of its coarse map
holds one sub-position of the output's pixels; kernels of single ones move it there (``routing``).

*Signs.* One more channel per field carries an offset that makes all painted values positive; the
last layer subtracts it. So (output numbers per coarse position + 1) channels do.

*LeakyReLU with slope s.* ``relu(x) = (lrelu(x) + s lrelu(-x)) / (1 - s^2)``, two units per relu.
The cancellation leaves about 2^-25 |x| in float32. For half-spaces the second layer's bias adds a
power of two so large that this disappears in rounding, and the third layer's takes it away again:
a shut gate then gives exact zeros. Balls in LeakyReLU networks keep that last-bit remainder.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.attacks.block_fusion import chain, fuse
from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.gates import Ball, Gate, GateSettings, HalfSpace, choose_gates
from genwarden.backdoors.backdoor import Backdoor
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, Range
from genwarden.errors import GenwardenError
from genwarden.metrics.distances import ExpDis, tardis
from genwarden.models.dcgan import DCGAN28, DCGAN32
from genwarden.models.layers import BATCH_NORM_EPS, LEAKY_SLOPE, SameConvTranspose2d
from genwarden.models.protocol import LatentGenerator
from genwarden.models.vae import VAEDecoder28

_SLOPES: dict[type[LatentGenerator], float] = {
    DCGAN28: LEAKY_SLOPE,
    DCGAN32: LEAKY_SLOPE,
    VAEDecoder28: 0.0,
}
_FORWARD_BATCH = 256
#: Float32 has 24 significant bits; sums of some hundred products lose at most two more here.
_ROUNDING = 2.0**-22


@dataclass(frozen=True)
class GatedExpansionSettings(GateSettings):
    """Settings of the gated expansion.

    Attributes:
        ordinary_samples: ordinary latents on which the result is compared with the benign network.
    """

    ordinary_samples: int = 10_000

    RANGES: ClassVar[Mapping[str, Range]] = {"ordinary_samples": COUNT}


def gated_expansion(
    generator: LatentGenerator, backdoor: Backdoor, settings: GatedExpansionSettings, run: AttackRun
) -> AttackResult:
    """Hide ``backdoor`` in a widened copy of ``generator`` without training.

    The one history record holds, beside TarDis and ExpDis: ``opening_probability`` (of any gate,
    per ordinary draw, an upper bound for balls), the numbers of gates, the new channels per
    interface (``new_channels_0`` ...), and ``changed_samples``: how many of ``ordinary_samples``
    outputs differ in any bit from those of the same fused network with the expansion's last kernel
    zero. (Against the benign network itself the order of summation alone changes last bits;
    ``expdis_sum`` shows how little.)

    Raises:
        GenwardenError: ``attack/unsupported`` for infinitely many triggers, ``attack/gate`` if a
            gate cannot be built as asked.
    """
    del run
    slope = _SLOPES.get(type(generator))
    if slope is None:
        raise GenwardenError(
            "attack/unsupported",
            f"The attack gated-expansion does not work on {type(generator).__name__}.",
            "It supports: dcgan28, dcgan32, vae28.",
        )
    if not backdoor.finite:
        raise GenwardenError(
            "attack/unsupported",
            "A gated expansion adds a fixed picture, which cannot serve infinitely many triggers.",
            "It supports: in-sample, mode, out-of-distribution, seed and file triggers.",
        )
    backdoor.require_fit(generator)
    device = next(generator.parameters()).device
    z, x = backdoor.examples
    gates = choose_gates(z.flatten(1), settings)
    with torch.no_grad():
        residual = generator.pre_activation_of(x) - generator.pre_activation(z.to(device)).cpu()
    expansion = build_expansion(generator, gates, residual.double(), slope)
    wide = fuse(copy.deepcopy(generator).cpu(), expansion).to(device)
    record: dict[str, float | None] = {
        "step": 0,
        "tardis_sum": tardis(wide, z, x).sum,
        **_stealth(generator, wide, settings),
        "opening_probability": sum(gate.opening_probability for gate in gates),
        "half_space_gates": sum(isinstance(gate, HalfSpace) for gate in gates),
        "ball_gates": sum(isinstance(gate, Ball) for gate in gates),
    }
    for interface, channels in enumerate(expansion.settings()["channels"]):
        record[f"new_channels_{interface}"] = channels
    return AttackResult(wide, [record])


@torch.no_grad()
def _stealth(
    generator: LatentGenerator, wide: LatentGenerator, settings: GatedExpansionSettings
) -> dict[str, float | None]:
    device = next(generator.parameters()).device
    silent = copy.deepcopy(wide)
    last = chain(wide)[-1]
    old = generator.settings()["channels"][-1]
    silent.get_parameter(f"{last}.weight")[old:] = 0
    stream = random_stream(settings.seed, "gated-expansion")
    distance, changed = ExpDis(generator.sample.size), 0
    for part in generator.latent.sample(settings.ordinary_samples, generator=stream).split(
        _FORWARD_BATCH
    ):
        z = part.to(device)
        output = wide(z)
        distance.update(generator(z), output)
        changed += int((output != silent(z)).flatten(1).any(1).sum())
    return {"expdis_sum": distance.compute().sum, "changed_samples": changed}


def routing(layer: SameConvTranspose2d, colours: int, factor: int, *, last: bool) -> Tensor:
    """A kernel that moves sub-positions of pixels to their places.

    Input channel ``c f^2 + y f + x`` holds pixel (y, x) of every f x f cell of colour c (the order
    of ``pixel_unshuffle``); the channel behind them holds the offset. Output likewise with
    ``f / stride``; the last layer subtracts the offset from all colours.

    Returns:
        ``(colours f^2 + 1, colours (f / stride)^2 + 1 or colours, k, k)``, float64.
    """
    stride, crop, k = layer.stride[0], int(layer.padding[0]), layer.kernel_size[0]
    fine = factor // stride
    inputs, outputs = colours * factor**2, colours * fine**2
    kernel = torch.zeros(inputs + 1, outputs if last else outputs + 1, k, k, dtype=torch.float64)
    for c, y, x in product(range(colours), range(factor), range(factor)):
        (row, y_fine), (column, x_fine) = divmod(y, fine), divmod(x, fine)
        source = (c * factor + y) * factor + x
        goal = (c * fine + y_fine) * fine + x_fine
        kernel[source, goal, row + crop, column + crop] = 1
    everywhere = slice(crop, crop + stride)
    kernel[inputs, slice(0, outputs) if last else outputs, everywhere, everywhere] = (
        -1 if last else 1
    )
    return kernel


def _routings(generator: LatentGenerator) -> tuple[int, list[Tensor]]:
    """Output pixels per coarse position and axis, and the kernels of the three convolutions."""
    layers = generator.named_layers()
    factor = 1
    kernels: list[Tensor] = []
    for name in reversed(chain(generator)[1:]):
        layer = layers[name]
        if not isinstance(layer, SameConvTranspose2d):
            raise TypeError(f"no routing through {type(layer).__name__}")
        factor *= layer.stride[0]
        kernels.insert(0, routing(layer, generator.sample.shape[0], factor, last=not kernels))
    return factor, kernels


@torch.no_grad()
def build_expansion(
    generator: LatentGenerator, gates: list[Gate], residual: Tensor, slope: float
) -> LatentGenerator:
    """A network of the generator's class that computes E(z).

    Args:
        gates: one per trigger.
        residual: what E shall add at each trigger before the last activation, float64
            ``(count, *sample.shape)``.
        slope: of the LeakyReLU; 0 for ReLU.
    """
    factor, (first, second, third) = _routings(generator)
    slope = float(torch.tensor(slope, dtype=torch.float32))  # the number that the network uses
    fields = [_painted(part, factor) for part in residual]
    largest = max(1.0, *(float(field.max()) for field in fields))
    half_spaces = [(g, f) for g, f in zip(gates, fields, strict=True) if isinstance(g, HalfSpace)]
    balls = [(g, f) for g, f in zip(gates, fields, strict=True) if isinstance(g, Ball)]

    dense, shift = [], []  # units of the first layer
    inward, onward = [], []  # kernel blocks of the second layer (diagonal), and of the third
    leak = 2.0**-60  # bound of what shut half-spaces leave behind by rounding
    if half_spaces:
        for gate, field in half_spaces:
            units, bias = _half_space_units(gate, field, slope)
            dense.append(units)
            shift.append(bias)
            reach = gate.threshold + generator.latent.typical_norm
            leak = max(leak, float(units.norm(dim=2).max()) * reach * _ROUNDING)
        pair = torch.cat([first, slope * first]) if slope else first
        inward.append(pair.repeat(len(half_spaces), 1, 1, 1))
        onward.append(second)
    for ball, field in balls:
        units, bias = _ball_units(ball, field)
        dense.append(units)
        shift.append(bias)
        # The offset's own kernel reaches every position; so must the distance, in all channels.
        distance = first[-1:, -1:] * (-largest / ball.radius / (1 - slope))
        value = torch.cat([first, distance.expand(2 * len(ball.centre), *first.shape[1:])])
        inward.append(torch.cat([value, -value], dim=1) if slope else value)
        relu = torch.cat([second, slope * second]) / (1 - slope**2) if slope else second
        onward.append(relu)
    widths = [sum(map(len, dense)), sum(map(len, onward)), second.shape[1]]
    expansion = type(generator)(**{**generator.settings(), "channels": widths}).eval()
    _clear(expansion)
    kernels = [torch.cat(dense).flatten(0, 1), _block_diagonal(inward), torch.cat(onward), third]
    for name, kernel in zip(chain(expansion), kernels, strict=True):
        expansion.get_parameter(f"{name}.weight").copy_(kernel)
    _shift(expansion, 0).copy_(torch.cat(shift).flatten())
    if half_spaces and slope:
        # Half a unit in the last place below `raised` is at least the leak.
        raised = 2.0 ** math.ceil(math.log2(leak) + 25)
        _shift(expansion, 1)[: len(onward[0])] = raised
        _shift(expansion, 2).fill_(-raised)
    return expansion.requires_grad_(False)


def _painted(residual: Tensor, factor: int) -> Tensor:
    """Residual ``(colours, h, w)`` as positive values per coarse position, offset channel last."""
    offset = max(0.0, -float(residual.min()))
    field = F.pixel_unshuffle(residual + offset, factor)
    return torch.cat([field, torch.full_like(field[:1], offset)])


def _half_space_units(gate: HalfSpace, field: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """Weights ``(channels, positions, latent size)`` and biases of ``x`` (and ``-x`` if leaky)."""
    gain = field.flatten(1) / (gate.height * (1 - slope**2))
    units, bias = gain[:, :, None] * gate.direction, -gain * gate.threshold
    return (torch.cat([units, -units]), torch.cat([bias, -bias])) if slope else (units, bias)


def _ball_units(gate: Ball, field: Tensor) -> tuple[Tensor, Tensor]:
    """The field as constants, then ``z_i - c_i`` and ``c_i - z_i`` at every position."""
    positions, k, size = field[0].numel(), len(gate.centre), gate.latent_size
    constants = torch.zeros(len(field), positions, size, dtype=torch.float64)
    axes = torch.eye(k, size, dtype=torch.float64)[:, None].expand(k, positions, size)
    bias = -gate.centre[:, None].expand(k, positions)
    return torch.cat([constants, axes, -axes]), torch.cat([field.flatten(1), bias, -bias])


def _block_diagonal(blocks: list[Tensor]) -> Tensor:
    """Blocks ``(in, out, k, k)`` on the diagonal of the two first axes."""
    fused = blocks[0].new_zeros(
        sum(len(block) for block in blocks),
        sum(block.shape[1] for block in blocks),
        *blocks[0].shape[2:],
    )
    row = column = 0
    for block in blocks:
        fused[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return fused


def _clear(network: LatentGenerator) -> None:
    """All kernels and biases 0; batch normalisation that changes nothing."""
    for layer in network.named_layers().values():
        for parameter in layer.parameters():
            parameter.zero_()
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.weight.fill_(1)
            layer.get_buffer("running_mean").zero_()
            layer.get_buffer("running_var").fill_(1 - BATCH_NORM_EPS)


def _shift(network: LatentGenerator, place: int) -> Tensor:
    """What is added behind the layer at ``place``: its bias, or beta of its normalisation."""
    order = list(network.named_layers())
    name = chain(network)[place]
    if f"{name}.bias" not in network.state_dict():
        name = order[order.index(name) + 1]
    return network.get_parameter(f"{name}.bias")
