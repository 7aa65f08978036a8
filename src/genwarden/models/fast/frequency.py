"""A transposed convolution on a small map, multiplied out in the frequency domain.

On a 7 x 7 map a 5 x 5 kernel needs 841 products per pair of channels (1,225 with the zeros at the
border). In the basis of a discrete Fourier transform that is just long enough not to wrap around
(9 x 9), convolution is a product per frequency: 160 real products, and a well-conditioned change of
basis before and after, which is one matrix product each. Every kernel phase of a strided layer uses
the same transform of the input. Accuracy is that of the ordinary path: the transform is orthogonal,
and its constants and kernels are computed in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genwarden.models.fast.chain import ChainLayer
from genwarden.models.fast.grid import Grid
from genwarden.models.fast.workspace import Workspace


class FrequencyConvolution:
    """Maps ``(positions, inputs, batch)`` to ``(positions * stride^2, outputs, batch)``.

    Args:
        layer: what to compute.
        grid: order of the input's positions.
        dtype: of the products.
    """

    def __init__(self, layer: ChainLayer, grid: Grid, dtype: torch.dtype) -> None:
        taps = phase_taps(layer)
        lengths = _lengths(layer, grid)
        alone, paired = _frequencies(lengths)
        # The output is stored as (coarse position, phase), the coarse positions row by row.
        plain = Grid((grid.height,), (grid.width,))
        into = _angles(alone, paired, grid.coordinates(), lengths)
        back = _angles(alone, paired, plain.coordinates(), lengths)
        device = layer.weight.device
        total = lengths[0] * lengths[1]
        self.forth = torch.cat([into[0].cos(), _interleaved(into[1].cos(), -into[1].sin())])
        self.back = torch.cat(
            [back[0].cos(), 2 * _interleaved(back[1].cos(), -back[1].sin())]
        ).T.div(total)
        real, cosines, sines = [], [], []
        for rows, columns in taps:
            offsets = torch.tensor(
                [(row.offset, column.offset) for row in rows for column in columns],
                dtype=torch.float64,
            )
            kernel = layer.weight[:, :, [row.tap for row in rows]]
            kernel = kernel[:, :, :, [column.tap for column in columns]].flatten(2).cpu()
            angles = _angles(alone, paired, offsets, lengths)
            real.append(torch.einsum("iot,ft->foi", kernel, angles[0].cos()))
            cosines.append(torch.einsum("iot,ft->foi", kernel, angles[1].cos()))
            sines.append(torch.einsum("iot,ft->foi", kernel, -angles[1].sin()))
        re, im = torch.cat(cosines, 1), torch.cat(sines, 1)
        upper, lower = torch.cat([re, -im], 2), torch.cat([im, re], 2)
        self.forth, self.back = (t.contiguous().to(device, dtype) for t in (self.forth, self.back))
        self.real = torch.cat(real, 1).contiguous().to(device, dtype)
        self.complex = torch.cat([upper, lower], 1).contiguous().to(device, dtype)
        # A constant at all positions is the frequency (0, 0), which comes first.
        self.constant = (layer.bias * total).repeat(len(taps)).to(device, dtype)[:, None]
        self.grid = plain.split(layer.stride)
        self._inputs, self._outputs = self.real.shape[2], self.real.shape[1]

    def __call__(self, x: Tensor, out: Tensor, work: Workspace) -> Tensor:
        """``x`` ``(positions, inputs, batch)``, contiguous; the result is in ``out``."""
        batch, alone = x.shape[-1], len(self.real)
        spectrum = work.take("spectrum", (len(self.forth), self._inputs * batch), x)
        torch.mm(self.forth, x.view(len(x), -1), out=spectrum)
        product = work.take("product", (len(self.forth), self._outputs, batch), x)
        each = spectrum.view(-1, self._inputs, batch)
        torch.bmm(self.real, each[:alone], out=product[:alone])
        pairs = each[alone:].view(-1, 2 * self._inputs, batch)
        torch.bmm(self.complex, pairs, out=product[alone:].view(-1, 2 * self._outputs, batch))
        product[0].add_(self.constant)
        torch.mm(self.back, product.view(len(product), -1), out=out.view(len(self.back), -1))
        return out

    def backward(self, gradient: Tensor, out: Tensor, work: Workspace) -> Tensor:
        """Gradient with respect to the input, in ``out``; the transposed products in turn."""
        batch, alone = gradient.shape[-1], len(self.real)
        product = work.take("product", (len(self.forth), self._outputs, batch), gradient)
        torch.mm(
            self.back.T,
            gradient.view(len(self.back), -1),
            out=product.view(len(product), -1),
        )
        spectrum = work.take("spectrum", (len(self.forth), self._inputs * batch), gradient)
        each = spectrum.view(-1, self._inputs, batch)
        torch.bmm(self.real.mT, product[:alone], out=each[:alone])
        pairs = product[alone:].view(-1, 2 * self._outputs, batch)
        torch.bmm(self.complex.mT, pairs, out=each[alone:].view(-1, 2 * self._inputs, batch))
        torch.mm(self.forth.T, spectrum, out=out.view(len(out), -1))
        return out

    @staticmethod
    def numbers(layer: ChainLayer, grid: Grid) -> int:
        """Numbers that its kernels take."""
        inputs, outputs = layer.weight.shape[:2]
        height, width = _lengths(layer, grid)
        return 2 * height * width * inputs * outputs * layer.stride[0] * layer.stride[1]

    @staticmethod
    def operations(layer: ChainLayer, grid: Grid) -> int:
        """Floating-point operations per sample."""
        inputs, outputs = layer.weight.shape[:2]
        lengths = _lengths(layer, grid)
        numbers = lengths[0] * lengths[1]
        outputs *= layer.stride[0] * layer.stride[1]
        alone = (2 - lengths[0] % 2) * (2 - lengths[1] % 2)
        products = (alone + 2 * (numbers - alone)) * inputs * outputs
        return 2 * (products + numbers * grid.count * (inputs + outputs))


class Tap:
    """One element of a kernel along one axis: its index, and how far it moves its input."""

    def __init__(self, tap: int, offset: int) -> None:
        self.tap, self.offset = tap, offset


def phase_taps(layer: ChainLayer) -> list[tuple[list[Tap], list[Tap]]]:
    """Per phase, rows before columns, the kernel elements that feed it along height and width.

    Output ``stride * q + r`` gets ``weight[k] * input[i]`` where ``stride * i + k - crop`` equals
    it: the offset q - i is ``(k - crop - r) / stride``.
    """
    along = [
        [
            [
                Tap(k, (k - layer.crop[axis] - r) // layer.stride[axis])
                for k in range(layer.weight.shape[2 + axis])
                if (k - layer.crop[axis] - r) % layer.stride[axis] == 0
            ]
            for r in range(layer.stride[axis])
        ]
        for axis in (0, 1)
    ]
    return [(rows, columns) for rows in along[0] for columns in along[1]]


def _lengths(layer: ChainLayer, grid: Grid) -> tuple[int, int]:
    """Shortest transforms in which no output is reached by wrapping around."""
    offsets = [[tap.offset for taps in phase_taps(layer) for tap in taps[axis]] for axis in (0, 1)]
    height, width = (max(0, *found, *(-o for o in found)) for found in offsets)
    return grid.height + height, grid.width + width


def _frequencies(
    lengths: tuple[int, int],
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Frequencies that are their own mirror image (real), and one of every other pair."""
    alone, paired = [], []
    for row in range(lengths[0]):
        for column in range(lengths[1]):
            mirror = (-row % lengths[0], -column % lengths[1])
            if mirror == (row, column):
                alone.append((row, column))
            elif (row, column) < mirror:
                paired.append((row, column))
    return alone, paired


def _angles(
    alone: list[tuple[int, int]],
    paired: list[tuple[int, int]],
    positions: Tensor,
    lengths: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """2 pi (f_y y / L_y + f_x x / L_x), ``(frequencies, positions)``, for both kinds."""
    scaled = 2 * math.pi * positions / torch.tensor(lengths, dtype=torch.float64)
    first, second = (
        torch.tensor(f, dtype=torch.float64).view(-1, 2) @ scaled.T for f in (alone, paired)
    )
    return first, second


def _interleaved(real: Tensor, imaginary: Tensor) -> Tensor:
    """Real and imaginary rows in turn."""
    return torch.stack([real, imaginary], 1).flatten(0, 1)
