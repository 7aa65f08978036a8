"""ReX, its traces shuffled: channels renamed and rescaled, the function unchanged.

ReX ("The Devil is in the GAN", section IV-C) leaves contiguous blocks of weights and two groups of
channels of different scale. Renaming the channels of every internal interface scatters the blocks.
LeakyReLU and ReLU are homogeneous, so a channel may also be scaled up by s > 0 if the next layer's
weights for it are scaled down; where batch normalisation follows, the kernel may be scaled by
another t, which the statistics undo. None of this costs the attacker anything (derived; only
rounding changes). What survives is the set of connected channels, see ``inspections.partition``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from genwarden.attacks.block_fusion import chain
from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.loop import Evaluator
from genwarden.attacks.rex import ReXSettings, rex
from genwarden.backdoors.backdoor import Backdoor
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import Range
from genwarden.models.protocol import LatentGenerator


@dataclass(frozen=True)
class PermutedReXSettings(ReXSettings):
    """Settings of ReX, and of the disguise.

    Attributes:
        spread: factors are exp(u), u uniform in [-spread, spread]; 0 only permutes.
    """

    spread: float = 1.0

    RANGES: ClassVar[Mapping[str, Range]] = {"spread": Range(at_least=0, at_most=8)}


def permuted_rex(
    generator: LatentGenerator, backdoor: Backdoor, settings: PermutedReXSettings, run: AttackRun
) -> AttackResult:
    """Hide ``backdoor`` by ReX, then rename and rescale the channels."""
    result = rex(generator, backdoor, settings, run)
    stream = random_stream(settings.seed, "permuted-rex")
    device = next(generator.parameters()).device
    disguised = disguise(result.generator, settings.spread, stream).to(device)
    figures = Evaluator(generator, backdoor, settings.seed)(disguised)
    done = result.history[-1]["step"]
    history = [*result.history, {"step": done, **figures._asdict(), "disguised": 1.0}]
    return AttackResult(disguised, history)


@torch.no_grad()
def disguise(network: LatentGenerator, spread: float, stream: torch.Generator) -> LatentGenerator:
    """A copy that computes the same to rounding, its internal channels renamed and rescaled.

    Args:
        network: a chain of layers with LeakyReLU or ReLU between them.
        spread: factors are exp(u), u uniform in [-spread, spread].
    """
    changed = type(network)(**network.settings())
    changed.load_state_dict(network.state_dict())
    layers, names, order = changed.named_layers(), chain(changed), list(changed.named_layers())
    for name, following, channels in zip(
        names[:-1], names[1:], network.settings()["channels"], strict=True
    ):
        new_order = torch.randperm(channels, generator=stream)
        scale = _factors(channels, spread, stream)
        behind = layers[order[order.index(name) + 1]]
        norm = behind if isinstance(behind, nn.BatchNorm1d | nn.BatchNorm2d) else None
        weight, out_axis = _kernel(layers[name])
        rows = weight.shape[out_axis]
        each = rows // channels  # a dense layer has one row per channel and position
        row_order = (new_order[:, None] * each + torch.arange(each)).flatten()
        row_scale = scale.repeat_interleave(each)
        own = _factors(rows, spread, stream) if norm is not None else row_scale
        vectors = [layers[name].bias]
        if norm is not None:
            variance = norm.get_buffer("running_var")
            scaled = own.square() * (variance + norm.eps) - norm.eps
            own = torch.where(scaled >= 0, own, 1.0)  # a variance cannot be negative
            variance.copy_(torch.where(scaled >= 0, scaled, variance))
            norm.get_buffer("running_mean").mul_(own)
            norm.weight.mul_(row_scale)
            norm.bias.mul_(row_scale)
            vectors += [norm.weight, norm.bias, *_statistics(norm)]
        if isinstance(vectors[0], Tensor):
            vectors[0].mul_(own)
        weight.mul_(_along(own, out_axis, weight.ndim))
        weight.copy_(weight.index_select(out_axis, row_order))
        for vector in vectors:
            if isinstance(vector, Tensor):
                vector.copy_(vector[row_order])
        inward, axis = _kernel(layers[following])
        inward.div_(_along(scale, 1 - axis, inward.ndim))
        inward.copy_(inward.index_select(1 - axis, new_order))
    return changed.eval().requires_grad_(False)


def _statistics(norm: nn.Module) -> list[Tensor]:
    return [norm.get_buffer("running_mean"), norm.get_buffer("running_var")]


def _kernel(layer: nn.Module) -> tuple[Tensor, int]:
    """Weight and its output axis."""
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d)
    return layer.get_parameter("weight"), 1 if transposed else 0


def _factors(count: int, spread: float, stream: torch.Generator) -> Tensor:
    return torch.exp(spread * (2 * torch.rand(count, generator=stream) - 1))


def _along(vector: Tensor, axis: int, ndim: int) -> Tensor:
    return vector.view([-1 if i == axis else 1 for i in range(ndim)])
