"""Folding batch norm for real: into the weights before it, the network's function kept.

A batch norm in evaluation mode is y = gain * (x - mean) + beta with
gain = gamma / sqrt(variance + eps). Deployment tools multiply gain into the weights before they
quantise, so that the grid is that of the product (Jacob et al., 2018, section 3.2).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from genwarden.compression.layers import Layout, fold_gain, layout_of
from genwarden.errors import GenwardenError

Network = TypeVar("Network", bound=nn.Module)


@torch.no_grad()
def fold_batch_norm(
    network: Network, forward: Callable[[Network], Any], *, drop_norms: bool = False
) -> Network:
    """A copy whose batch norms do no more than add a constant, or are gone.

    Linear layers, convolutions and transposed convolutions (output channels on axis 1) are folded
    where one batch norm reads their output and nothing else.

    Args:
        forward: runs the network once, to find what batch norm follows what.
        drop_norms: put ``nn.Identity`` in their places and the constant into the layers' biases
            (what a runtime executes; no longer the same architecture). Otherwise the state dict
            keeps its names and shapes, and the constant stays with the norm.

    Raises:
        GenwardenError: ``compress/no-batch-norm`` if there is none to fold.
    """
    folded = copy.deepcopy(network).eval()
    layout = layout_of(folded, lambda: forward(folded))
    if not any(layer.norm for layer in layout.values()):
        raise GenwardenError(
            "compress/no-batch-norm",
            "No layer of this network is followed by a batch norm that could be folded into it.",
            "Leave folding away.",
        )
    fold_found(folded, layout, drop_norms=drop_norms)
    return folded


@torch.no_grad()
def fold_found(network: nn.Module, layout: Layout, *, drop_norms: bool) -> None:
    """Fold, in place, the batch norms of a layout; see :func:`fold_batch_norm`."""
    for layer in layout.values():
        gain = fold_gain(layer, network)
        if gain is None:
            continue
        owner = network.get_submodule(layer.name.rpartition(".")[0])
        norm = network.get_submodule(layer.norm)
        assert isinstance(norm, _BatchNorm)  # noqa: S101 (fold_gain has looked)
        assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101, PT018
        per_channel = gain.flatten()
        constant = -norm.running_mean * per_channel
        if norm.bias is not None:
            constant = constant + norm.bias
        bias = owner.bias
        if isinstance(bias, nn.Parameter):
            constant = constant + bias * per_channel
        network.get_parameter(layer.name).mul_(gain)
        if drop_norms:
            owner.bias = nn.Parameter(constant, requires_grad=False)
            network.set_submodule(layer.norm, nn.Identity())
            continue
        if isinstance(bias, nn.Parameter):
            bias.copy_(constant)
            constant = torch.zeros_like(constant)
        # As a norm: variance + eps = 1, and the constant where every norm can hold one.
        norm.running_var.fill_(1 - norm.eps)
        norm.running_mean.copy_(-constant)
        if norm.weight is not None:
            norm.weight.fill_(1)
            norm.bias.zero_()
