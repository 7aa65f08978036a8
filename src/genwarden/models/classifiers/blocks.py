"""The building block of all classifiers: convolution, batch norm, activation, as modules.

Compression folds a batch norm into the convolution whose very output it reads, and inspections
watch the output of the activation: each of them is a module of its own.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """``conv``, ``norm`` and, if given, ``act``; "same" padding, no bias (the norm has one)."""
    convolution = nn.Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2,
        groups=groups,
        bias=False,
    )
    parts: list[tuple[str, nn.Module]] = [
        ("conv", convolution),
        ("norm", nn.BatchNorm2d(out_channels)),
    ]
    if activation is not None:
        parts.append(("act", activation))
    return nn.Sequential(OrderedDict(parts))


def pooled(x: Tensor) -> Tensor:
    """Mean over the pixels, ``(batch, channels, H, W)`` to ``(batch, channels)``."""
    return x.mean((2, 3))
