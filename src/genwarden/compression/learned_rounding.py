"""Learned rounding: up or down is chosen per weight, so that a layer's output changes least.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (AdaRound, ICML 2020),
Eq. 21 to 24. Rounding stays within one step of the weight; which of the two neighbours is taken
follows from data, not from the fraction alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genwarden.compression.layers import Layout, fold_gain
from genwarden.compression.uniform import Uniform
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError

#: The rectified sigmoid reaches from GAMMA to ZETA before it is cut to [0, 1] (Eq. 23).
ZETA: Final = 1.1
GAMMA: Final = -0.1
_FIRST_BETA: Final = 20.0
_LAST_BETA: Final = 2.0


@dataclass(frozen=True)
class RoundingSettings:
    """How long and how hard each layer learns.

    The published lambda is 0.01 for the sum over the weights; what it means depends on the size of
    a layer's outputs. Here both terms are relative (see :func:`learned_rounding`).

    Attributes:
        steps: Adam steps per layer (published: 10,000).
        batch_size: samples of the calibration data per step.
        learning_rate: Adam's.
        weight: of the regulariser's mean over the weights, lambda of Eq. 21.
        warm_up: share of the steps without it.
        seed: of the batches.
    """

    steps: int = 500
    batch_size: int = 32
    learning_rate: float = 2e-2
    weight: float = 10.0
    warm_up: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class SoftRounding:
    """One layer's rounding while it is learned; all of the shape ``(blocks, size)``.

    Attributes:
        h: 0 is down, 1 is up, between is undecided; gradients flow to it.
        fraction: position between the two neighbours, 0 to 1; above 1/2 the nearest is up.
        step: distance of the neighbours ``(blocks, 1)``.
        progress: share of the steps with the regulariser that is done, 0 to 1.
    """

    h: Tensor
    fraction: Tensor
    step: Tensor
    progress: float


#: What is added to the reconstruction error: a scalar, the mean over the weights of a layer.
Regulariser = Callable[[SoftRounding], Tensor]


def decided(rounding: SoftRounding) -> Tensor:
    """AdaRound's f_reg (Eq. 24): mean of 1 - |2h - 1|^beta, beta from 20 down to 2 (cosine)."""
    fall = 0.5 * (1 + math.cos(math.pi * rounding.progress))
    beta = _LAST_BETA + (_FIRST_BETA - _LAST_BETA) * fall
    return (1 - (2 * rounding.h - 1).abs().pow(beta)).mean()


def learned_rounding(
    network: nn.Module,
    compressor: Uniform,
    layout: Layout,
    forward: Callable[[nn.Module], Any],
    settings: RoundingSettings | None = None,
    *,
    regulariser: Regulariser = decided,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Weights by name, decompressed, with the grid of ``compressor`` and learned rounding.

    Layer by layer, min over h of ||W x - W_q x||^2 / ||W x - W_n x||^2 + lambda f_reg(h) with W_n
    rounded to nearest and x of the full-precision network; batch norm is folded into W and taken
    out again where the compressor folds.

    Args:
        layout: the layers (:func:`genwarden.compression.layers.layout_of`).
        forward: runs the network on the calibration inputs; what reaches each layer is x.
        regulariser: what pushes h; :func:`decided` is AdaRound's.

    Raises:
        GenwardenError: ``compress/no-calibration`` if no sample reaches a layer.
    """
    settings = settings or RoundingSettings()
    task = (progress or Silent()).task("learned rounding", len(layout))
    made = {}
    for name in layout:
        owner = network.get_submodule(name.rpartition(".")[0])
        inputs = _inputs_of(owner, network, forward)
        if inputs is None:
            raise GenwardenError(
                "compress/no-calibration",
                f"No sample of the calibration data reaches the layer of {name}.",
                "Give calibration data that runs through the whole network.",
            )
        made[name] = _learn(network, owner, inputs, compressor, layout, name, settings, regulariser)
        task.advance(1, name)
    return made


@torch.no_grad()
def _inputs_of(
    layer: nn.Module, network: nn.Module, forward: Callable[[nn.Module], Any]
) -> Tensor | None:
    """Everything that enters a layer, along the batch axis."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    was_training = network.training
    network.eval()
    try:
        forward(network)
    finally:
        hook.remove()
        network.train(was_training)
    # A layer that runs at several sizes learns from the first of them.
    alike = [x for x in seen if x.shape[1:] == seen[0].shape[1:]]
    return torch.cat(alike) if alike and sum(map(len, alike)) else None


def _learn(
    network: nn.Module,
    owner: nn.Module,
    inputs: Tensor,
    compressor: Uniform,
    layout: Layout,
    name: str,
    settings: RoundingSettings,
    regulariser: Regulariser,
) -> Tensor:
    layer = layout[name]
    weight = network.get_parameter(name).detach()
    gain = fold_gain(layer, network) if compressor.folds else None
    folded = weight if gain is None else (weight * gain).detach()
    grid = compressor.grid(folded, layer)
    position = grid.blocks / grid.scale + grid.zero
    floor = position.floor()
    fraction = position - floor
    channels = -1 if layer.kind == "linear" else 1

    def values(h: Tensor) -> Tensor:
        codes = (floor + h).clamp(grid.least, grid.most)
        return compressor.restore((codes - grid.zero) * grid.scale, folded, layer)

    def error(h: Tensor, x: Tensor) -> Tensor:
        """Squared output error, sum over channels, mean over samples and places."""
        given = {"weight": values(h) - folded}
        if owner.bias is not None:
            given["bias"] = torch.zeros_like(owner.bias)  # type: ignore[arg-type]
        gap: Tensor = functional_call(owner, given, (x,))
        return gap.square().sum(channels).mean()

    # h starts at the fraction: the soft weight is the weight itself (inverse of Eq. 23).
    inside = ((fraction.clamp(1e-4, 1 - 1e-4)) - GAMMA) / (ZETA - GAMMA)
    v = torch.logit(inside).requires_grad_(True)
    optimiser = torch.optim.Adam([v], lr=settings.learning_rate)
    stream = random_stream(settings.seed, f"learned-rounding/{name}")
    begin = round(settings.warm_up * settings.steps)
    with torch.no_grad():
        nearest = sum(
            float(error((fraction > 0.5).to(folded), part)) * len(part) for part in inputs.split(64)
        ) / len(inputs)
    for step in range(settings.steps):
        chosen = torch.randint(len(inputs), (settings.batch_size,), generator=stream)
        h = rectified_sigmoid(v)
        loss = error(h, inputs[chosen.to(inputs.device)]) / (nearest or 1.0)
        if step >= begin:
            done = (step - begin) / max(settings.steps - begin, 1)
            loss = loss + settings.weight * regulariser(SoftRounding(h, fraction, grid.scale, done))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        hard = values((rectified_sigmoid(v) >= 0.5).to(folded))
        return hard if gain is None else hard / torch.where(gain == 0, 1, gain)


def rectified_sigmoid(v: Tensor) -> Tensor:
    """Eq. 23: h = clip(sigmoid(v) (zeta - gamma) + gamma, 0, 1)."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
