"""One larger weight per tensor, so that a quantiser with one scale per tensor takes wider steps.

Section 4.2 of the compression reference ("one weight per tensor inflated x6"). The weight is chosen
so that outputs on ordinary inputs change least: candidates by ``|dw|^2 E ||d output / d w||^2``,
the best of them by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from genwarden.compression.chain import stages_of
from genwarden.compression.contract import Compressor, Weights
from genwarden.compression.layers import Layout, fold_gain
from genwarden.compression.uniform import Uniform
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError

#: Outputs on a fixed batch of ordinary inputs, ``(batch, ...)``, with the given weights.
Outputs = Callable[[Weights], Tensor]

_PROBES: Final = 8
_TRIED: Final = 16
#: A layer where even the best choice changes outputs by more than this share of their variance is
#: left as it is.
_TOLERABLE: Final = 0.01
#: What ``inflate = 0`` stands for where boxes are small.
_USUAL: Final = 6.0
_SMALL_STEPS_BITS: Final = 7


def inflation_factor(asked: float, compressors: Sequence[Compressor]) -> float:
    """The factor for what a user asked: 0 chooses.

    Raises:
        GenwardenError: ``attack/inflate`` where no scale belongs to a whole tensor.
    """
    wide = _one_scale(compressors)
    if asked > 1 and not wide:
        raise GenwardenError(
            "attack/inflate",
            f"One larger weight widens no step of {', '.join(c.name for c in compressors)}: "
            "no scale belongs to a whole tensor.",
            "Use --option inflate=1.",
        )
    if asked:
        return max(asked, 1.0)
    return _USUAL if any(stage.bits >= _SMALL_STEPS_BITS for stage in wide) else 1.0


def _one_scale(compressors: Sequence[Compressor]) -> list[Uniform]:
    """The stages that quantise with one scale per tensor."""
    stages = [stage for c in compressors for stage in stages_of(c)]
    return [s for s in stages if isinstance(s, Uniform) and s.granularity == "tensor"]


def inflated(
    network: nn.Module,
    layout: Layout,
    compressors: Sequence[Compressor],
    factor: float,
    outputs: Outputs,
    seed: int,
) -> dict[str, Tensor]:
    """The weights with one of each tensor raised to ``factor`` times the largest.

    Largest in the form that is quantised: where batch norm is folded first, after it.

    Returns:
        All weights of the layout; those of spared layers as they are.
    """
    weights = {name: network.get_parameter(name).detach().clone() for name in layout}
    if factor == 1:
        return weights
    folds = any(stage.folds for stage in _one_scale(compressors))
    with torch.no_grad():
        ordinary = outputs(weights)
    limit = _TOLERABLE * float((ordinary - ordinary.mean(0)).square().mean())
    sensitivity = _sensitivity(weights, outputs, seed)
    for name, layer in layout.items():
        gain = fold_gain(layer, network) if folds else None
        size = (
            torch.ones_like(weights[name])
            if gain is None
            else gain.abs().expand_as(sensitivity[name])
        )
        chosen = _best(weights, name, size, factor, sensitivity[name], outputs, ordinary, limit)
        if chosen is not None:
            weights[name] = chosen
    return weights


@torch.no_grad()
def _best(
    weights: Mapping[str, Tensor],
    name: str,
    size: Tensor,
    factor: float,
    sensitivity: Tensor,
    outputs: Outputs,
    ordinary: Tensor,
    limit: float,
) -> Tensor | None:
    """The tensor with its one larger weight, or None if every candidate shows."""
    weight = weights[name]
    wanted = factor * (weight * size).abs().max() / size.clamp(min=torch.finfo(size.dtype).tiny)
    wanted = torch.where(weight < 0, -wanted, wanted)
    cost = torch.where(size > 0, sensitivity * (wanted - weight).square(), torch.inf).flatten()
    before = float((outputs(weights) - ordinary).square().mean())
    best, least = None, before + limit
    for index in cost.topk(min(_TRIED, len(cost)), largest=False).indices.tolist():
        tried = weight.clone()
        tried.view(-1)[index] = wanted.flatten()[index]
        change = float((outputs({**weights, name: tried}) - ordinary).square().mean())
        if change < least:
            best, least = tried, change
    return best


def _sensitivity(weights: Weights, outputs: Outputs, seed: int) -> dict[str, Tensor]:
    """``sum ||d output / d w||^2`` per weight, by random signs (Hutchinson)."""
    leaves = {name: w.clone().requires_grad_(True) for name, w in weights.items()}
    made = outputs(leaves)
    found = {name: torch.zeros_like(w) for name, w in weights.items()}
    stream = random_stream(seed, "inflation-probes")
    for probe in range(_PROBES):
        signs = torch.randint(0, 2, made.shape, generator=stream).to(made) * 2 - 1
        gradients = torch.autograd.grad(
            made, list(leaves.values()), signs, retain_graph=probe + 1 < _PROBES
        )
        for name, gradient in zip(found, gradients, strict=True):
            found[name] += gradient.square()
    return found
