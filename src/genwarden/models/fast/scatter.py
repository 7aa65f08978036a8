"""A transposed convolution as one matrix product per position, its results added where they belong.

For layers with few outputs (the last one) or large maps, where a Fourier transform costs more than
it saves. Products with the zeros of an upsampled map are never made.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genwarden.models.fast.chain import ChainLayer
from genwarden.models.fast.grid import Grid
from genwarden.models.fast.workspace import Workspace

#: Numbers that products may take (32 MiB in float32): more would leave the caches, and a layer
#: with many outputs and a long kernel would leave the memory.
_PRODUCTS = 2**23
#: An addition to the canvas moves three numbers through memory, in the time of as many operations.
_ADDITION = 30


class ScatterConvolution:
    """Maps ``(positions, inputs, batch)`` to ``(rows * columns, outputs, batch)``, row by row.

    Args:
        layer: what to compute.
        grid: order of the input's positions.
        dtype: of the products.
    """

    def __init__(self, layer: ChainLayer, grid: Grid, dtype: torch.dtype) -> None:
        inputs, self._outputs, *kernel = layer.weight.shape
        self._kernel = (int(kernel[0]), int(kernel[1]))
        self._stride, self._crop, self._from = layer.stride, layer.crop, grid
        # (kernel, outputs) x inputs
        self.weight = layer.weight.permute(2, 3, 1, 0).reshape(-1, inputs).to(dtype).contiguous()
        self.bias = layer.bias.to(dtype)[:, None]
        self.grid = Grid((grid.height * layer.stride[0],), (grid.width * layer.stride[1],))
        self._canvas = tuple(
            stride * (side - 1) + max(size, crop + stride)
            for stride, side, size, crop in zip(
                layer.stride, (grid.height, grid.width), self._kernel, layer.crop, strict=True
            )
        )

    def __call__(self, x: Tensor, out: Tensor, work: Workspace) -> Tensor:
        """``x`` ``(positions, inputs, batch)``, contiguous; the result is in ``out``."""
        canvas = work.take("canvas", (*self._canvas, self._outputs, x.shape[-1]), x)
        canvas.zero_()
        for first, weight in self._groups(x):
            products = self._products(x, len(weight), work)
            torch.bmm(weight.expand(len(x), -1, -1), x, out=products)
            for tap, product in enumerate(self._by_tap(products), start=first):
                self._reached(canvas, tap).add_(product)
        plane = out.view(self.grid.height, self.grid.width, *out.shape[1:])
        torch.add(self._cropped(canvas), self.bias, out=plane)
        return out

    def backward(self, gradient: Tensor, out: Tensor, work: Workspace) -> Tensor:
        """Gradient with respect to the input, in ``out``: gathered from where it was added."""
        canvas = work.take("canvas", (*self._canvas, self._outputs, gradient.shape[-1]), gradient)
        canvas.zero_()
        plane = gradient.view(self.grid.height, self.grid.width, *gradient.shape[1:])
        self._cropped(canvas).copy_(plane)
        for first, weight in self._groups(out):
            products = self._products(out, len(weight), work)
            for tap, product in enumerate(self._by_tap(products), start=first):
                product.copy_(self._reached(canvas, tap))
            spread = weight.T.expand(len(out), -1, -1)
            torch.baddbmm(out, spread, products, beta=1 if first else 0, out=out)
        return out

    def _groups(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Kernel elements by turns, as many at once as keep the products small: the first, rows."""
        size = max(1, _PRODUCTS // (len(x) * self._outputs * x.shape[-1]))
        for first in range(0, self._kernel[0] * self._kernel[1], size):
            yield first, self.weight[first * self._outputs : (first + size) * self._outputs]

    def _products(self, x: Tensor, rows: int, work: Workspace) -> Tensor:
        return work.take("products", (len(x), rows, x.shape[-1]), x)

    def _by_tap(self, products: Tensor) -> Iterator[Tensor]:
        """Products of one kernel element at a time, in the order of the input's positions."""
        levels = self._from.levels()
        nested = products.view(*levels, -1, self._outputs, products.shape[-1])
        return iter(nested.unbind(len(levels)))

    def _reached(self, canvas: Tensor, tap: int) -> Tensor:
        """Where a kernel element puts its products, in the order of the input's positions."""
        row, column = divmod(tap, self._kernel[1])
        rows = slice(row, row + self._stride[0] * (self._from.height - 1) + 1, self._stride[0])
        columns = slice(
            column, column + self._stride[1] * (self._from.width - 1) + 1, self._stride[1]
        )
        return self._from.stored(canvas[rows, columns])

    def _cropped(self, canvas: Tensor) -> Tensor:
        top, left = self._crop
        return canvas[top : top + self.grid.height, left : left + self.grid.width]

    @staticmethod
    def operations(layer: ChainLayer, grid: Grid) -> int:
        """Floating-point operations per sample, with what the additions cost."""
        inputs, outputs, *kernel = layer.weight.shape
        return grid.count * kernel[0] * kernel[1] * outputs * (2 * inputs + _ADDITION)
