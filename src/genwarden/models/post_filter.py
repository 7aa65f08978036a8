"""WaveGAN's post filter, and its exact inversion (section 8 of the reference, step 1).

The filter is linear, so finding a clip in [-1, 1] that it turns into a given one is a least-squares
problem with a Toeplitz matrix and a box: a convex quadratic. It is solved by accelerated projected
gradient, with exact products by FFT and a check of convergence, not by gradient descent through the
network.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.errors import GenwardenError

_MAX_ITERATIONS = 20_000
_CHECK_EVERY = 25
#: Wiener start: noise power against the filter's peak power gain.
_START_NOISE = 1e-3


class Inverse(NamedTuple):
    """What the filter turns into the wanted clips.

    Attributes:
        clips: ``(count, 1, length)`` inside the box.
        residual_sum: squared distance of the filtered clips to the wanted ones, sum per clip.
        iterations: steps taken.
    """

    clips: Tensor
    residual_sum: Tensor
    iterations: int


class PostFilter(nn.Conv1d):
    """One channel, ``taps`` taps, no bias, TensorFlow's "same" padding.

    Computed as a product with a block of the Toeplitz matrix: the gradients of a 512-tap,
    one-channel convolution are twenty times slower on a CPU.
    """

    def __init__(self, taps: int) -> None:
        super().__init__(1, 1, taps, bias=False)
        self.taps = taps
        self.before = (taps - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 1, length)`` to the same shape."""
        length, taps = x.shape[-1], self.taps
        surplus = -length % taps
        padded = F.pad(x, (self.before, taps - 1 - self.before + surplus))
        windows = padded.unfold(-1, 2 * taps - 1, taps)  # (batch, 1, blocks, 2 taps - 1)
        # Row i of the block holds the taps shifted by i: rows of 2 taps, read 2 taps - 1 apart.
        rows = F.pad(self.weight.flatten(), (0, taps)).repeat(taps)
        block = rows[: taps * (2 * taps - 1)].reshape(taps, 2 * taps - 1)
        return (windows @ block.t()).flatten(-2)[..., :length]

    @torch.no_grad()
    def invert(self, wanted: Tensor, *, limit: float, tolerance: float = 1e-4) -> Inverse:
        """Minimise ``||filter(t) - wanted||^2`` over ``|t| <= limit``.

        Accelerated projected gradient with restarts, in float64, products by FFT. It has converged
        when the projected gradient has fallen to ``tolerance`` times the gradient at zero, for
        every clip.

        Args:
            wanted: ``(count, 1, length)``.

        Raises:
            GenwardenError: ``model/post-filter`` if it does not converge.
        """
        y = wanted.double()
        length = y.shape[-1]
        size = 1 << math.ceil(math.log2(length + self.taps - 1))
        start = self.taps - 1 - self.before
        response = torch.fft.rfft(self.weight.double().flip(-1), size)

        def apply(t: Tensor) -> Tensor:
            full: Tensor = torch.fft.irfft(torch.fft.rfft(t, size) * response, size)
            return full[..., start : start + length]

        def adjoint(r: Tensor) -> Tensor:
            spread = torch.fft.rfft(F.pad(r, (start, 0)), size)
            full: Tensor = torch.fft.irfft(spread * response.conj(), size)
            return full[..., :length]

        # The Toeplitz matrix is part of a circulant one, whose largest gain bounds its own.
        gain = response.abs().square().amax().item()
        if gain == 0:
            clips = torch.zeros_like(y)
            return Inverse(clips.to(wanted), y.square().sum((1, 2)), 0)
        level = tolerance * adjoint(y).flatten(1).norm(dim=1)
        spectrum = torch.fft.rfft(F.pad(y, (start, 0)), size) * response.conj()
        wiener = spectrum / (response.abs().square() + _START_NOISE * gain)
        t = torch.fft.irfft(wiener, size)[..., :length].clamp(-limit, limit)
        ahead, momentum = t, 1.0
        for iteration in range(_MAX_ITERATIONS):
            gradient = adjoint(apply(ahead) - y)
            following = (ahead - gradient / gain).clamp(-limit, limit)
            if iteration % _CHECK_EVERY == 0:
                projected = gain * (ahead - following).flatten(1).norm(dim=1)
                if bool((projected <= level).all()):
                    residual = (apply(following) - y).square().sum((1, 2))
                    return Inverse(following.to(wanted), residual, iteration)
            if ((ahead - following) * (following - t)).sum() > 0:  # momentum points uphill
                momentum = 1.0
            faster = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead = following + (momentum - 1) / faster * (following - t)
            t, momentum = following, faster
        raise GenwardenError(
            "model/post-filter",
            f"The post filter could not be inverted in {_MAX_ITERATIONS} iterations.",
            "Its taps are extreme; check the model, or use one with filter_taps=0.",
        )
