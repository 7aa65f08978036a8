"""Many copies of one generator as one network with a leading model axis.

Vectorised training of students that differ in their weights alone (section 17 of the reference: "5
triggers x 7 lambdas vectorised give Fig. 5 in one run"). A transposed convolution over a map of 7x7
positions is a bilinear map ``y = C ((G w) * (B x))``: with B, G, C from the discrete Fourier
transform it needs 121 channel products per 5x5 kernel where the sum over taps needs 1225. These
products are matrix products over (student, frequency), and so the arithmetic of all students
becomes a few batched products. Activations are held as ``(students, positions, batch, channels)``;
batch normalisation, in evaluation mode, is folded into the weights in every step.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.errors import GenwardenError
from genwarden.models.dcgan import DCGAN28, DCGAN32
from genwarden.models.layers import LEAKY_SLOPE, SameConvTranspose2d
from genwarden.models.protocol import LatentGenerator
from genwarden.models.vae import VAEDecoder28

_SLOPES = {DCGAN28: LEAKY_SLOPE, DCGAN32: LEAKY_SLOPE, VAEDecoder28: 0.0}
#: The Fourier form is used where it needs at most this multiple of the products of the sum over
#: taps: matrix products are faster than sums of shifted maps.
_WORTH_IT = 1.1


def can_stack(generator: LatentGenerator) -> bool:
    """Whether :class:`Students` knows the architecture; a subclass may compute anything."""
    return type(generator) in _SLOPES


class Bilinear(NamedTuple):
    """``y = C ((G w) * (B x))`` for one kernel size, stride, crop and map size.

    Attributes:
        taps: G, ``(rank, offsets)``: kernel taps of one sub-pixel phase, by offset.
        inputs: B, ``(rank, size * size)``.
        outputs: C, ``(size * size, rank)``.
        source: tap of the stored kernel behind each offset of each phase, ``(offsets, phases)``;
            ``kernel * kernel`` stands for none.
    """

    taps: Tensor
    inputs: Tensor
    outputs: Tensor
    source: Tensor


def fourier_form(size: int, kernel: int, stride: int, crop: int) -> Bilinear:
    """The transposed convolution of a ``size`` x ``size`` map, its output cut to stride * size.

    Output ``stride q + phase`` is the sum over inputs i of tap ``stride (q - i) + phase + crop``: a
    cyclic convolution per phase, of a period just long enough that what wraps around is cut off. A
    complex product takes three real ones (Gauss).
    """
    low = -((stride - 1 + crop) // stride)
    high = (kernel - 1 - crop) // stride
    period = size + max(-low, high)
    offset = torch.arange(low, high + 1)
    phase = torch.arange(stride)
    tap = stride * offset[:, None] + phase + crop
    tap = torch.where((tap >= 0) & (tap < kernel), tap, -1)
    row, column = tap[:, None, :, None], tap[None, :, None, :]
    source = torch.where((row >= 0) & (column >= 0), kernel * row + column, kernel**2)

    frequencies = [
        (k, m)
        for k in range(period)
        for m in range(period)
        if (k, m) <= (-k % period, -m % period)  # a real signal's others are conjugates
    ]
    wave = torch.tensor(frequencies, dtype=torch.float64) * (2 * math.pi / period)
    real = torch.tensor([(k, m) == (-k % period, -m % period) for k, m in frequencies])
    position = torch.cartesian_prod(torch.arange(size), torch.arange(size)).double()
    at_input, at_tap = wave @ position.T, wave @ torch.cartesian_prod(offset, offset).double().T
    a, b = at_input.cos(), -at_input.sin()
    c, d = at_tap.cos(), -at_tap.sin()
    weight = torch.where(real, 1.0, 2.0)[:, None] / period**2
    cosine, sine = weight * at_input.cos(), weight * at_input.sin()
    # (a + ib)(c + id) by k1 = c (a + b), k2 = a (d - c), k3 = b (c + d): k1 - k3 + i (k1 + k2).
    both = torch.cat([torch.ones(len(real)), (~real).float(), (~real).float()]) > 0
    inputs = torch.cat([torch.where(real[:, None], a, a + b), a, b])[both]
    taps = torch.cat([c, d - c, c + d])[both]
    outputs = torch.cat([torch.where(real[:, None], cosine, cosine - sine), -sine, -cosine])[both]
    return Bilinear(
        taps.float(), inputs.float(), outputs.T.float().contiguous(), source.reshape(-1, stride**2)
    )


class Students(nn.Module):
    """``count`` copies of a generator that share nothing but the shape.

    Args:
        generator: a DCGAN or the VAE's decoder, in evaluation mode; every copy starts from it.
        count: number of copies.
        precision: of the products and of what is passed from layer to layer; None for that of the
            latents. Weights keep theirs.

    Raises:
        GenwardenError: ``sweep/unsupported`` for another architecture.
    """

    def __init__(
        self, generator: LatentGenerator, count: int, precision: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if not can_stack(generator):
            raise GenwardenError(
                "sweep/unsupported",
                f"The vectorised sweep does not work on {type(generator).__name__}.",
                "It supports: dcgan28, dcgan32, vae28.",
            )
        self.count, self.precision = count, precision
        self._like = (generator,)  # in a tuple: it is not one of this network's parts
        slope = _SLOPES[type(generator)]
        modules = list(generator.named_layers().values())
        self.layers = nn.ModuleList()
        positions = 1
        for index, module in enumerate(modules):
            norm = modules[index + 1] if index + 1 < len(modules) else None
            if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                norm = None
            if isinstance(module, nn.Linear):
                first = next(m for m in modules if isinstance(m, SameConvTranspose2d))
                layer: _Layer = _Dense(module, norm, first.in_channels, count, slope)
            elif isinstance(module, SameConvTranspose2d):
                last = index == len(modules) - 1
                layer = _convolution(module, norm, positions, count, None if last else slope)
            else:
                continue
            positions = layer.positions_out
            self.layers.append(layer)

    def pre_activation(self, z: Tensor) -> Tensor:
        """``(students or 1, batch, latent)`` to ``(students, batch, *sample.shape)``."""
        h = z if self.precision is None else z.to(self.precision)
        for layer in self.layers:
            h = layer(h)
        side = math.isqrt(h.shape[1])
        return h.permute(0, 2, 3, 1).reshape(self.count, -1, h.shape[3], side, side).to(z.dtype)

    @torch.no_grad()
    def student(self, index: int) -> LatentGenerator:
        """One copy as a generator of the usual form."""
        network = copy.deepcopy(self._like[0])
        modules = iter(m for m in network.named_layers().values())
        layers = iter(self.layers)
        for module in modules:
            if isinstance(module, nn.Linear | SameConvTranspose2d):
                layer: _Layer = next(layers)  # type: ignore[assignment]
                layer.write(index, module)
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.write_norm(index, module)
        return network.eval().requires_grad_(False)


class _Layer(nn.Module):
    """Weights, bias or batch normalisation in evaluation mode, and LeakyReLU."""

    positions_out: int

    def __init__(self, count: int, slope: float | None) -> None:
        super().__init__()
        self.count, self.slope = count, slope
        self.weight: nn.Parameter
        self.scale: nn.Parameter | None = None
        self.shift: nn.Parameter | None = None

    def _repeated(self, tensor: Tensor) -> nn.Parameter:
        return nn.Parameter(tensor.detach()[None].repeat(self.count, *[1] * tensor.ndim))

    def _take(
        self, norm: nn.BatchNorm1d | nn.BatchNorm2d | None, bias: Tensor | None, shape: list[int]
    ) -> None:
        """gamma and beta, or the bias, each as ``(count, *shape)``; ``shape`` ends in channels."""
        if norm is not None:
            self.scale = self._repeated(self._ordered(norm.weight, shape))
            self.shift = self._repeated(self._ordered(norm.bias, shape))
            self.register_buffer("mean", self._ordered(norm.get_buffer("running_mean"), shape))
            root = torch.rsqrt(norm.get_buffer("running_var") + norm.eps)
            self.register_buffer("inverse_deviation", self._ordered(root, shape))
        elif bias is not None:
            self.shift = self._repeated(self._ordered(bias, shape))

    def _folded(self, precision: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The weight with batch normalisation inside, and what is added to its products.

        In evaluation mode normalisation is an affine map of its own parameters. On a weight it
        costs the same for every batch; on maps it would grow with them, and keep them in memory.
        """
        weight: Tensor = self.weight
        shift: Tensor | None = self.shift
        if self.scale is not None:
            scale = self.scale * self.get_buffer("inverse_deviation")
            shift = self.get_parameter("shift") - scale * self.get_buffer("mean")
            weight = weight * scale
        return weight.to(precision), None if shift is None else shift.to(precision)

    def _activated(self, h: Tensor) -> Tensor:
        """LeakyReLU in place: ``h`` is this layer's own product, and nobody keeps it."""
        return h if self.slope is None else F.leaky_relu_(h, self.slope)

    def _ordered(self, vector: Tensor, shape: list[int]) -> Tensor:
        """A vector of the usual form in this layer's order."""
        return vector.detach().reshape(shape[-1], -1).T.reshape(shape).clone()

    def _usual(self, vector: Tensor) -> Tensor:
        """Back from :meth:`_ordered`."""
        return vector.reshape(-1, vector.shape[-1]).T.flatten()

    def write(self, index: int, module: nn.Linear | SameConvTranspose2d) -> None:
        """Copy one student's weights into a module of the usual form."""
        module.weight.copy_(self._kernel(self.weight[index]).reshape(module.weight.shape))
        if module.bias is not None and self.shift is not None:
            module.bias.copy_(self._usual(self.shift[index]))

    def write_norm(self, index: int, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        """Copy one student's gamma and beta."""
        norm.weight.copy_(self._usual(self.get_parameter("scale")[index]))
        norm.bias.copy_(self._usual(self.get_parameter("shift")[index]))

    def _kernel(self, weight: Tensor) -> Tensor:
        raise NotImplementedError


class _Dense(_Layer):
    """Latents to the first map; the weight is ``(count, positions, latent, channels)``."""

    def __init__(
        self,
        module: nn.Linear,
        norm: nn.BatchNorm1d | nn.BatchNorm2d | None,
        channels: int,
        count: int,
        slope: float | None,
    ) -> None:
        super().__init__(count, slope)
        self.positions_out = module.out_features // channels
        weight = module.weight.reshape(channels, self.positions_out, -1).permute(1, 2, 0)
        self.weight = self._repeated(weight.contiguous())
        self._take(norm, module.bias, [self.positions_out, 1, channels])

    def forward(self, z: Tensor) -> Tensor:
        """``(count or 1, batch, latent)`` to ``(count, positions, batch, channels)``."""
        z = z[:, None].expand(self.count, self.positions_out, *z.shape[1:])
        weight, shift = self._folded(z.dtype)
        z, weight = z.flatten(0, 1), weight.flatten(0, 1)
        h = torch.bmm(z, weight) if shift is None else torch.baddbmm(shift.flatten(0, 1), z, weight)
        return self._activated(h.view(self.count, self.positions_out, *h.shape[1:]))

    def _kernel(self, weight: Tensor) -> Tensor:
        return weight.permute(2, 0, 1)


def _convolution(
    module: SameConvTranspose2d,
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None,
    positions: int,
    count: int,
    slope: float | None,
) -> _Layer:
    size = math.isqrt(positions)
    kernel, stride = module.kernel_size[0], module.stride[0]
    form = fourier_form(size, kernel, stride, int(module.padding[0]))
    depth, width = module.in_channels, module.out_channels * stride**2
    rank = len(form.taps)
    fourier = rank * (positions * depth + depth * width + positions * width)
    if fourier <= _WORTH_IT * kernel**2 * positions * depth * module.out_channels:
        return _FourierConvolution(module, norm, form, size, count, slope)
    return _TapConvolution(module, norm, size, count, slope)


class _Convolution(_Layer):
    """The weight is ``(count, kernel * kernel, in, out)``."""

    def __init__(
        self,
        module: SameConvTranspose2d,
        norm: nn.BatchNorm1d | nn.BatchNorm2d | None,
        size: int,
        count: int,
        slope: float | None,
    ) -> None:
        super().__init__(count, slope)
        self.size, self.stride = size, module.stride[0]
        self.positions_out = (size * self.stride) ** 2
        self.weight = self._repeated(module.weight.flatten(2).permute(2, 0, 1).contiguous())
        self._take(norm, module.bias, [1, 1, module.out_channels])

    def _kernel(self, weight: Tensor) -> Tensor:
        return weight.permute(1, 2, 0)


class _FourierConvolution(_Convolution):
    """Batched matrix products over (student, frequency)."""

    def __init__(
        self,
        module: SameConvTranspose2d,
        norm: nn.BatchNorm1d | nn.BatchNorm2d | None,
        form: Bilinear,
        size: int,
        count: int,
        slope: float | None,
    ) -> None:
        super().__init__(module, norm, size, count, slope)
        self.form = form

    def forward(self, h: Tensor) -> Tensor:
        """``(count, positions, batch, in)`` to ``(count, positions_out, batch, out)``."""
        weight, shift = self._folded(h.dtype)
        if self.stride > 1:
            weight = _ByOffset.apply(weight, self.form.source)  # type: ignore[no-untyped-call]
        else:
            weight = weight[:, :, :, None]
        y: Tensor = _BilinearProduct.apply(h, weight, shift, self.form)  # type: ignore[no-untyped-call]
        y = self._activated(y).view(*y.shape[:2], h.shape[2], self.stride**2, -1)
        return _interleaved(y, self.size, self.stride)


class _ByOffset(torch.autograd.Function):
    """Taps ``(count, taps, in, out)`` to ``(count, offsets, in, phases, out)``, gaps zero."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, source: Tensor) -> Tensor:
        ctx.source, ctx.shape = source, weight.shape
        count, taps, depth, width = weight.shape
        placed = weight.new_zeros(count, source.shape[0], depth, source.shape[1], width)
        for offset, phase in (source < taps).nonzero().tolist():
            placed[:, offset, :, phase] = weight[:, source[offset, phase]]
        return placed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight = gradient.new_empty(ctx.shape)
        for offset, phase in (ctx.source < ctx.shape[1]).nonzero().tolist():
            weight[:, ctx.source[offset, phase]] = gradient[:, offset, :, phase]
        return weight, None


class _BilinearProduct(torch.autograd.Function):
    """``C ((G w) * (B x)) + shift`` and its derivatives, which are of the same form.

    ``x`` is ``(count, positions, batch, in)``, ``w`` ``(count, offsets, in, phases, out)``, the
    shift ``(count, 1, 1, out)``; back comes ``(count, positions, batch * phases * out)``. A
    constant map is a single frequency, the first: the shift is added there.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, shift: Tensor | None, form: Bilinear) -> Tensor:
        count, _, batch, depth = x.shape
        phases, width = w.shape[3:]
        x = _left(form.inputs, x.flatten(2)).view(-1, batch, depth)
        w = _left(form.taps, w.flatten(2)).view(-1, depth, phases * width)
        ctx.save_for_backward(x, w)
        ctx.form, ctx.phases = form, phases
        y = torch.bmm(x, w).view(count, len(form.taps), batch, phases, width)
        if shift is not None:
            y[:, 0] += shift / form.outputs[0, 0]
        return _left(form.outputs, y.flatten(2))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        x, w = ctx.saved_tensors
        form, count, width = ctx.form, len(gradient), w.shape[2] // ctx.phases
        rank, batch, depth = len(form.taps), x.shape[1], x.shape[2]
        y = _left(form.outputs.T, gradient).view(count * rank, batch, -1)
        by_x = torch.bmm(y, w.transpose(1, 2)).view(count, rank, -1)
        by_x = _left(form.inputs.T, by_x).view(count, -1, batch, depth)
        by_w = _left(form.taps.T, torch.bmm(x.transpose(1, 2), y).view(count, rank, -1))
        by_w = by_w.view(count, -1, depth, ctx.phases, width)
        by_shift = None
        if ctx.needs_input_grad[2]:
            constant = y.view(count, rank, -1, width)[:, 0].sum(1)
            by_shift = (constant / form.outputs[0, 0])[:, None, None]
        return by_x, by_w, by_shift, None


class _TapConvolution(_Convolution):
    """One matrix product for all taps, then the sum over shifted maps."""

    def __init__(
        self,
        module: SameConvTranspose2d,
        norm: nn.BatchNorm1d | nn.BatchNorm2d | None,
        size: int,
        count: int,
        slope: float | None,
    ) -> None:
        super().__init__(module, norm, size, count, slope)
        self.shifts = Shifts(size, module.kernel_size[0], self.stride, int(module.padding[0]))

    def forward(self, h: Tensor) -> Tensor:
        """``(count, positions, batch, in)`` to ``(count, positions_out, batch, out)``."""
        weight, shift = self._folded(h.dtype)
        y: Tensor = _ShiftedSum.apply(h, weight, self.shifts)  # type: ignore[no-untyped-call]
        return self._activated(y if shift is None else y + shift)


class Shifts(NamedTuple):
    """Geometry of a transposed convolution whose output is cut to ``stride * size``."""

    size: int
    kernel: int
    stride: int
    crop: int

    def maps(self, whole: Tensor) -> list[Tensor]:
        """Per tap, the view ``(..., size, size, batch)`` of the uncut output that it adds to."""
        reach = self.stride * (self.size - 1) + 1
        return [
            whole[..., y : y + reach : self.stride, x : x + reach : self.stride, :]
            for y in range(self.kernel)
            for x in range(self.kernel)
        ]

    def whole(self, like: Tensor, width: int, batch: int) -> Tensor:
        """Zeros in the shape of the uncut output, ``(count, width, side, side, batch)``."""
        side = self.stride * self.size + max(self.crop, self.kernel)
        return like.new_zeros(len(like), width, side, side, batch)

    def kept(self, whole: Tensor) -> Tensor:
        """The part of it that remains."""
        inside = slice(self.crop, self.crop + self.stride * self.size)
        return whole[:, :, inside, inside]


class _ShiftedSum(torch.autograd.Function):
    """Sum over taps of shifted maps, and its derivatives."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, shifts: Shifts) -> Tensor:
        count, taps, _, width = weight.shape
        size, batch = shifts.size, h.shape[2]
        h, w = h.flatten(1, 2), weight.transpose(2, 3).flatten(1, 2)
        ctx.save_for_backward(h, w)
        ctx.shifts, ctx.width, ctx.batch = shifts, width, batch
        products = torch.bmm(w, h.transpose(1, 2)).view(count, taps, width, size, size, batch)
        whole = shifts.whole(h, width, batch)
        for tap, view in enumerate(shifts.maps(whole)):
            view += products[:, tap]
        return shifts.kept(whole).permute(0, 2, 3, 4, 1).reshape(count, -1, batch, width)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        h, w = ctx.saved_tensors
        shifts, width, batch = ctx.shifts, ctx.width, ctx.batch
        count, side, size = len(h), shifts.stride * shifts.size, shifts.size
        whole = shifts.whole(h, width, batch)
        gradient = gradient.reshape(count, side, side, batch, width)
        shifts.kept(whole).copy_(gradient.permute(0, 4, 1, 2, 3))
        taps = shifts.kernel**2
        # A product per row of the map: one with so long a sum and so few results runs on one core.
        by_product = h.new_empty(count, size, taps, width, size, batch)
        for tap, view in enumerate(shifts.maps(whole)):
            by_product[:, :, tap] = view.transpose(1, 2)
        rows = by_product.view(count * size, taps * width, size * batch)
        by_h = torch.bmm(rows.transpose(1, 2), w.repeat_interleave(size, 0))
        by_w = torch.bmm(rows, h.view(count * size, size * batch, -1))
        by_w = by_w.view(count, size, taps, width, -1).sum(1).transpose(2, 3)
        return by_h.view(count, size**2, batch, -1), by_w, None


def _left(matrix: Tensor, x: Tensor) -> Tensor:
    """``matrix @ x`` for every student: ``(rows, k)`` and ``(students, k, n)``."""
    return torch.bmm(matrix.to(x.dtype).expand(len(x), *matrix.shape), x)


def _interleaved(y: Tensor, size: int, stride: int) -> Tensor:
    """``(count, positions, batch, phases, out)`` to ``(count, positions_out, batch, out)``."""
    count, _, batch, _, width = y.shape
    if stride == 1:
        return y[:, :, :, 0]
    y = y.view(count, size, size, batch, stride, stride, width).permute(0, 1, 4, 2, 5, 3, 6)
    return y.reshape(count, (size * stride) ** 2, batch, width)
