"""Fusing a parallel expansion into block matrices (ReX, section IV-C; table in 4.1 of the
reference): ``[W ; W*]`` in the first layer, ``blockdiag(W, W*)`` inside, ``[W , W*]`` in the last.

Both networks have the same layers; only their widths may differ. The fused network's output before
the last activation is the sum of the two: ``G_pre(z) + E(z)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genwarden.models.protocol import LatentGenerator

_WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


@torch.no_grad()
def fuse(original: LatentGenerator, expansion: LatentGenerator) -> LatentGenerator:
    """One wider network of the same architecture that computes both and adds them.

    Raises:
        TypeError: the two are of different architectures or hold a layer without a fusion rule.
    """
    if type(original) is not type(expansion):
        raise TypeError("original and expansion must be of one architecture")
    settings = original.settings()
    settings["channels"] = [
        a + b for a, b in zip(settings["channels"], expansion.settings()["channels"], strict=True)
    ]
    wide = type(original)(**settings).eval()
    old, new = original.named_layers(), expansion.named_layers()
    weighted = [name for name, layer in old.items() if isinstance(layer, _WEIGHTED)]
    for name, target in wide.named_layers().items():
        first, last = name == weighted[0], name == weighted[-1]
        _fuse_layer(target, old[name], new[name], first=first, last=last)
    return wide.requires_grad_(False)


def _fuse_layer(
    target: nn.Module, old: nn.Module, new: nn.Module, *, first: bool, last: bool
) -> None:
    if isinstance(target, nn.BatchNorm1d | nn.BatchNorm2d):
        for key, value in target.state_dict().items():
            if value.ndim:
                value.copy_(torch.cat([old.state_dict()[key], new.state_dict()[key]]))
        return
    if not (
        isinstance(target, _WEIGHTED) and isinstance(old, _WEIGHTED) and isinstance(new, _WEIGHTED)
    ):
        raise TypeError(f"no fusion rule for {type(target).__name__}")
    weight_old, weight_new = _out_in(old), _out_in(new)
    if first:
        fused = torch.cat([weight_old, weight_new], dim=0)
    elif last:
        fused = torch.cat([weight_old, weight_new], dim=1)
    else:
        fused = _block_diagonal(weight_old, weight_new)
    _out_in(target).copy_(fused)
    if target.bias is not None and old.bias is not None and new.bias is not None:
        target.bias.copy_(old.bias + new.bias if last else torch.cat([old.bias, new.bias]))


def _out_in(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """The kernel as a view with axes (out, in, ...); transposed convolutions store (in, out)."""
    weight = layer.weight
    return weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight


def _block_diagonal(a: Tensor, b: Tensor) -> Tensor:
    fused = a.new_zeros(a.shape[0] + b.shape[0], a.shape[1] + b.shape[1], *a.shape[2:])
    fused[: a.shape[0], : a.shape[1]] = a
    fused[a.shape[0] :, a.shape[1] :] = b
    return fused
