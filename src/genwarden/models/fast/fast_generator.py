"""The fast path of a generator: same latents, same samples, fewer and larger operations.

How much faster is on ``docs/performance.md``; the distance from float64 is that of the network
itself. What the path does not know stays on the ordinary one, with the reason as a sentence for the
record.

Every sample is a column of the products, but its last bits may depend on the number of columns, as
on the ordinary path: blocks have a fixed size.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import torch
from torch import Tensor, nn

from genwarden.engine.seeds import random_stream
from genwarden.models.fast.chain import Chain, ChainLayer, chain_of
from genwarden.models.fast.frequency import FrequencyConvolution
from genwarden.models.fast.grid import Grid
from genwarden.models.fast.scatter import ScatterConvolution
from genwarden.models.fast.workspace import Workspace
from genwarden.models.protocol import LatentGenerator

#: Latents on which a fast path is compared with the ordinary one before it is used.
_CHECKED = 32
#: Numbers that the kernels of a layer may take in the frequency domain (128 MiB in float32).
_KERNEL_NUMBERS = 2**25
#: Largest difference of an element in [-1, 1] that is rounding, by precision.
TOLERANCE: Final = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.3}

_Layer = FrequencyConvolution | ScatterConvolution


class FastGenerator(LatentGenerator):
    """A generator with the outputs of another; gradients flow to latents, not to weights.

    Args:
        ordinary: the network.
        chain: what it computes.
        dtype: of the products: float32, float64 or bfloat16.
    """

    def __init__(self, ordinary: LatentGenerator, chain: Chain, dtype: torch.dtype) -> None:
        super().__init__()
        self.latent, self.sample = ordinary.latent, ordinary.sample
        self.final_activation = ordinary.final_activation
        self._ordinary = (ordinary,)  # not a submodule: its weights are not ours
        self.dtype = dtype
        channels, height, width = chain.shape
        self.grid = Grid((height,), (width,))
        self._channels, self._slope = channels, chain.slope

        def by_position(t: Tensor) -> Tensor:
            """Rows (channel, position) become (position, channel)."""
            return t.view(channels, height * width, -1).transpose(0, 1).flatten(0, 1)

        self._weight = by_position(chain.weight).to(dtype).contiguous()
        self._bias = by_position(chain.bias[:, None]).to(dtype).contiguous()
        self._layers: list[_Layer] = []
        self._widths, self._slopes = [], []
        grid = self.grid
        for layer in chain.layers:
            made = _cheapest(layer, grid)(layer, grid, dtype)
            self._layers.append(made)
            self._widths.append(len(layer.bias))
            self._slopes.append(layer.slope)
            grid = made.grid
        self._last = grid
        self._threads = threading.local()

    def settings(self) -> dict[str, Any]:
        """Those of the ordinary network."""
        return self._ordinary[0].settings()

    def named_layers(self) -> dict[str, nn.Module]:
        """Those of the ordinary network."""
        return self._ordinary[0].named_layers()

    def finish(self, pre: Tensor) -> Tensor:
        """As the ordinary network."""
        return self._ordinary[0].finish(pre)

    def pre_activation_of(self, sample: Tensor) -> Tensor:
        """As the ordinary network."""
        return self._ordinary[0].pre_activation_of(sample)

    @property
    def plan(self) -> str:
        """How the layers are computed, for the record."""
        kinds = {FrequencyConvolution: "frequency", ScatterConvolution: "scatter"}
        names = ", ".join(kinds[type(layer)] for layer in self._layers)
        return f"fast path ({names}), {str(self.dtype).removeprefix('torch.')}"

    def pre_activation(self, z: Tensor) -> Tensor:
        """``(batch, *latent.shape)`` to ``(batch, *sample.shape)``, in the precision of ``z``."""
        flat = z.reshape(len(z), -1)
        if torch.is_grad_enabled() and z.requires_grad:
            pre: Tensor = _Differentiable.apply(flat, self)  # type: ignore[no-untyped-call]
        else:
            pre = self._run(flat, None)
        return pre.view(len(z), *self.sample.shape)

    def forward(self, z: Tensor) -> Tensor:
        """Samples; a batch with a value that is not finite is computed on the ordinary path."""
        x = super().forward(z)
        if not torch.is_grad_enabled() and not bool(x.sum().isfinite()):
            x = self._ordinary[0](z)
        return x

    def _run(self, z: Tensor, kept: list[Tensor] | None) -> Tensor:
        """Outputs ``(batch, numbers)``; ``kept`` receives what the backward pass needs."""
        work, batch = self._workspace(), len(z)

        def room(index: int, positions: int, channels: int) -> Tensor:
            # A search keeps its activations until it goes back; a scan uses the memory again.
            shape = (positions, channels, batch)
            if kept is not None:
                return self._weight.new_empty(shape)
            return work.take(f"layer {index % 2}", shape, self._weight)

        x = room(0, self.grid.count, self._channels)
        flat = x.view(-1, batch)
        torch.mm(self._weight, z.T.to(self.dtype), out=flat)
        flat.add_(self._bias)
        nn.functional.leaky_relu_(flat, self._slope)
        for index, (layer, width, slope) in enumerate(
            zip(self._layers, self._widths, self._slopes, strict=True)
        ):
            if kept is not None:
                kept.append(x)
            # A frequency layer stores width maps per phase: the same numbers, another view.
            made = layer(x, room(index + 1, layer.grid.count, width), work)
            x = made if slope is None else nn.functional.leaky_relu_(made, slope)
        plane = x.new_empty(self._last.height, self._last.width, *x.shape[1:])
        self._last.stored(plane).copy_(x.view(*self._last.levels(), *x.shape[1:]))
        return plane.permute(3, 2, 0, 1).reshape(batch, -1).to(z.dtype)

    def _back(self, gradient: Tensor, kept: list[Tensor]) -> Tensor:
        """Gradient of latents ``(batch, size)`` from that of outputs ``(batch, numbers)``."""
        work, batch = self._workspace(), len(gradient)
        last = self._last
        planes = gradient.to(self.dtype).view(batch, -1, last.height, last.width)
        upper = last.stored(planes.permute(2, 3, 1, 0)).reshape(last.count, -1, batch)
        slopes = [self._slope, *(s for s in self._slopes if s is not None)]
        for number in range(len(self._layers) - 1, -1, -1):
            x = kept[number]
            lower = work.take(f"gradient {number % 2}", tuple(x.shape), x)
            self._layers[number].backward(upper, lower, work)
            # From the output: a leaky rectifier keeps the sign.
            torch.ops.aten.leaky_relu_backward.grad_input(
                lower, x, slopes[number], True, grad_input=lower
            )
            upper = lower
        return (upper.view(-1, batch).T @ self._weight).to(gradient.dtype)

    def _workspace(self) -> Workspace:
        work: Workspace | None = getattr(self._threads, "work", None)
        if work is None:
            work = self._threads.work = Workspace()
        return work


class _Differentiable(torch.autograd.Function):
    """The pass over all layers, with its own way back."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, fast: FastGenerator) -> Tensor:
        kept: list[Tensor] = []
        pre = fast._run(z, kept)
        ctx.fast, ctx.kept = fast, kept
        return pre

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.fast._back(gradient, ctx.kept), None


def _cheapest(layer: ChainLayer, grid: Grid) -> type[_Layer]:
    """By operations, so that every machine takes the same way."""
    kinds: list[type[_Layer]] = [ScatterConvolution]
    if FrequencyConvolution.numbers(layer, grid) <= _KERNEL_NUMBERS:
        kinds.append(FrequencyConvolution)
    return min(kinds, key=lambda kind: kind.operations(layer, grid))


def fastest(generator: LatentGenerator) -> LatentGenerator:
    """The fast path in float32 if there is one, else the generator: for searches over latents."""
    path = fast_path(generator)
    return path if isinstance(path, FastGenerator) else generator


@torch.no_grad()
def fast_path(
    generator: LatentGenerator, dtype: torch.dtype = torch.float32
) -> FastGenerator | str:
    """The fast path of a generator, or a sentence that says why it has none.

    The path is tried on a few latents against the network itself: what a file has made of a known
    class may be anything.
    """
    chain = chain_of(generator)
    if isinstance(chain, str):
        return f"ordinary path: {chain}"
    own = next(generator.parameters()).dtype
    if own != (torch.float64 if dtype == torch.float64 else torch.float32):
        return f"ordinary path: its weights are {str(own).removeprefix('torch.')}"
    fast = FastGenerator(generator, chain, dtype).eval()
    stream = random_stream(0, "fast-path-check")
    z = generator.latent.sample(_CHECKED, generator=stream)
    z = z.to(chain.weight.device, own)
    expected, found = generator(z), fast(z)
    difference = float((expected - found).abs().max())
    if not difference <= TOLERANCE[dtype]:
        return f"ordinary path: the fast one is off by {difference:.2g}"
    return fast
