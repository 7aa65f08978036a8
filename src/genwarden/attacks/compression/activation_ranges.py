"""Activations that stay inside the ranges that a deployer will calibrate on ordinary inputs.

Static quantisation clips what a calibration set did not show. The codes of the weights are the
attacker's, the ranges are not: a backdoor whose activations leave them is cut off on the device
though the simulated weights wake it. Calibration itself is unknown (section 1.4 of the compression
reference), so the ordinary ranges stand for it, a little narrower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from genwarden.compression.layers import Layout

#: Share of the ordinary range that is used: another calibration set may show less.
_MARGIN: Final = 0.85

Range = tuple[float, float]


class ActivationRanges:
    """What the layers of a network give on ordinary inputs, and how far they leave that.

    Args:
        network: in evaluation mode.
        layout: its layers; where batch norm follows, its output counts, as after folding.
        forward: runs it on ordinary inputs.
    """

    def __init__(self, network: nn.Module, layout: Layout, forward: Callable[[], Any]) -> None:
        self._modules = {
            name: network.get_submodule(layer.norm or name.removesuffix("weight").rstrip("."))
            for name, layer in layout.items()
        }
        self._ranges: dict[str, Range] = {}
        self._left: list[Tensor] = []
        with torch.no_grad(), self._watching(self._note):
            forward()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside it, :meth:`excess` knows about every forward pass."""
        with self._watching(self._judge):
            yield

    def excess(self) -> Tensor:
        """Squared excess over the widths of the ranges since the last call.

        A sum over all elements, layers and the batch: a single trigger counts in full, and few of
        its elements leave their range.
        """
        found = torch.stack(self._left).sum()
        self._left.clear()
        return found

    @contextmanager
    def _watching(self, hook: Callable[[str, Tensor], None]) -> Iterator[None]:
        def bound(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda module, inputs, output: hook(name, output)  # noqa: ARG005

        handles = [m.register_forward_hook(bound(n)) for n, m in self._modules.items()]
        self._left.clear()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, name: str, output: Tensor) -> None:
        least, most = self._ranges.get(name, (0.0, 0.0))
        self._ranges[name] = (min(least, float(output.min())), max(most, float(output.max())))

    def _judge(self, name: str, output: Tensor) -> None:
        least, most = (_MARGIN * end for end in self._ranges[name])
        width = max(most - least, torch.finfo(output.dtype).tiny)
        outside = (output - output.clamp(least, most)) / width
        self._left.append(outside.square().sum())
