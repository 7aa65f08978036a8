"""Pruning: the smallest weights, filters, or two of every four become zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.compression.chain import stages_of
from genwarden.compression.contract import Box, Compressor, Weights, in_name
from genwarden.compression.layers import Layout, WeightLayer
from genwarden.compression.spelling import check_rate

#: What is pruned may grow up to this share of the smallest that is kept.
_CAP: Final = 1 - 1e-3


@dataclass(frozen=True)
class Pruning:
    """What all prunings share: a mask, and boxes that freeze what is kept.

    Attributes:
        rate: share that becomes zero, above 0 and below 1.
    """

    rate: float = 0.3
    folds: bool = False

    def __post_init__(self) -> None:
        check_rate(self.rate)

    def masks(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        """1 where a weight is kept, 0 where it goes, of the weight's shape and type."""
        raise NotImplementedError

    def caps(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        """How large each pruned weight may become before the mask could change."""
        raise NotImplementedError

    def __call__(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        """See :class:`genwarden.compression.contract.Compressor`.

        A layer that loses nothing (a small rate of few filters rounds to none) is not worked on.
        """
        masks = self.masks(weights, layout)
        return {n: weights[n] * mask for n, mask in masks.items() if not bool(mask.all())}

    @torch.no_grad()
    def box(self, weights: Weights, layout: Layout) -> dict[str, Box]:
        """What is kept is frozen; what goes may move as long as it still goes."""
        masks, caps = self.masks(weights, layout), self.caps(weights, layout)
        boxes = {}
        for name, mask in masks.items():
            reach = torch.maximum(caps[name] * _CAP, weights[name].abs())
            boxes[name] = Box(
                torch.where(mask > 0, weights[name], -reach),
                torch.where(mask > 0, weights[name], reach),
            )
        return boxes


@dataclass(frozen=True)
class MagnitudePruning(Pruning):
    """The smallest weights of each layer (``torch.nn.utils.prune.l1_unstructured``).

    Attributes:
        across: the smallest of all layers together (``global_unstructured``).
    """

    across: bool = False

    @property
    def name(self) -> str:
        """``prune-0.3`` or ``prune-global-0.3``."""
        return f"prune-{'global-' * self.across}{in_name(self.rate)}"

    def masks(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        """See the base."""
        chosen = {n: weights[n].detach() for n in layout if n in weights}
        if not self.across:
            return {n: _keep_largest(w.abs(), self.rate) for n, w in chosen.items()}
        everything = torch.cat([w.abs().flatten() for w in chosen.values()])
        parts = _keep_largest(everything, self.rate).split([w.numel() for w in chosen.values()])
        return {
            n: part.reshape(w.shape) for (n, w), part in zip(chosen.items(), parts, strict=True)
        }

    def caps(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        """The smallest kept magnitude, of the layer or of all."""
        least = {n: weights[n].abs()[mask > 0] for n, mask in self.masks(weights, layout).items()}
        if self.across:
            smallest = torch.cat([kept.flatten() for kept in least.values()]).min()
            return {n: smallest.expand_as(weights[n]) for n in least}
        return {n: kept.min().expand_as(weights[n]) for n, kept in least.items()}


@dataclass(frozen=True)
class FilterPruning(Pruning):
    """Output filters of convolutions with the smallest L1 norms (NNI's L1 filter pruner).

    Linear layers are left alone. At least one filter stays. Biases stay, too: what follows may
    still read a constant.
    """

    @property
    def name(self) -> str:
        """``prune-filters-0.3``."""
        return f"prune-filters-{in_name(self.rate)}"

    def masks(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        """See the base."""
        return {
            n: _along(
                _keep_largest(_norms(weights[n].detach(), layer), self.rate), weights[n], layer
            )
            for n, layer in layout.items()
            if n in weights and layer.kind != "linear"
        }

    def caps(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        """What a filter lacks of the smallest kept norm, shared out evenly over its weights."""
        caps = {}
        for name, mask in self.masks(weights, layout).items():
            layer, weight = layout[name], weights[name]
            norms = _norms(weight, layer)
            kept = norms[mask.movedim(layer.out_axis, 0).flatten(1)[:, 0] > 0]
            share = (kept.min() - norms).clamp(min=0) / weight.movedim(layer.out_axis, 0)[0].numel()
            caps[name] = weight.abs() + _along(share, weight, layer)
        return caps


@dataclass(frozen=True)
class TwoOfFour(Pruning):
    """2:4 sparsity: of every four weights in a row of inputs the two largest stay.

    Rows are those of the weight as a matrix (output channel by inputs), as NVIDIA's tools take it.
    """

    rate: float = 0.5

    @property
    def name(self) -> str:
        """``prune-2:4``."""
        return "prune-2:4"

    def masks(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        """See the base."""
        return {
            n: self._by_four(weights[n].detach(), layer)[0]
            for n, layer in layout.items()
            if n in weights
        }

    def caps(self, weights: Weights, layout: Layout) -> dict[str, Tensor]:
        """The second largest magnitude of the four."""
        return {
            n: self._by_four(weights[n], layer)[1] for n, layer in layout.items() if n in weights
        }

    @staticmethod
    def _by_four(weight: Tensor, layer: WeightLayer) -> tuple[Tensor, Tensor]:
        turned = weight.movedim(layer.out_axis, 0)
        rows = turned.flatten(1)
        width = rows.shape[1]
        # Padding sorts behind everything: a rest of three keeps two, a rest of two both.
        fours = F.pad(rows.abs(), (0, -width % 4), value=-1.0).reshape(len(rows), -1, 4)
        order = fours.argsort(dim=2, descending=True, stable=True)
        mask = torch.zeros_like(fours).scatter_(2, order[..., :2], 1.0)
        cap = fours.gather(2, order[..., 1:2]).expand_as(fours)

        def back(values: Tensor) -> Tensor:
            return (
                values.reshape(len(rows), -1)[:, :width]
                .reshape(turned.shape)
                .movedim(0, layer.out_axis)
            )

        return back(mask), back(cap)


def _keep_largest(magnitudes: Tensor, rate: float) -> Tensor:
    """1 for all but the ``rate`` smallest (as many as torch prunes), at least one.

    Of equal ones the first go, so that a mask stays what it is while what it takes only shrinks.
    """
    flat = magnitudes.flatten()
    gone = min(round(rate * flat.numel()), flat.numel() - 1)
    if not gone:
        return torch.ones_like(magnitudes)
    threshold = flat.kthvalue(gone).values
    below, tied = flat < threshold, flat == threshold
    goes = below | (tied & (tied.cumsum(0) <= gone - below.sum()))
    return (~goes).to(flat).reshape(magnitudes.shape)


def _norms(weight: Tensor, layer: WeightLayer) -> Tensor:
    return weight.movedim(layer.out_axis, 0).flatten(1).abs().sum(1)


def _along(values: Tensor, weight: Tensor, layer: WeightLayer) -> Tensor:
    shape = [1] * weight.dim()
    shape[layer.out_axis] = -1
    return values.reshape(shape).expand_as(weight)


def prunes_only(compressor: Compressor) -> bool:
    """Whether every stage of it does, so that there is no grid."""
    return all(isinstance(stage, Pruning) for stage in stages_of(compressor))
