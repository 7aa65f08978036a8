"""How a denoiser answers shifts of its input: what several inspections of diffusion models measure.

A backdoor of the BadDiffusion family changes E[eps(x + rho d) - eps(x)] for one direction d, the
trigger (sections 3, 7 and 8 of the reference). The expectation is taken over x = s_t n, the noise
part of a noisy image: no data are needed, and n comes in pairs +-n so that its mean is exactly 0.
Unlike ``orthogonal_response.respond`` nothing here is differentiated, so that thousands of shifts
fit into memory, and every gain has a standard error.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.backdoors.image_trigger import make_image_trigger
from genwarden.models.diffusion.protocol import Diffusion
from genwarden.models.protocol import SampleSpec

#: Most images per forward pass. Fixed, as batch size changes the last bits of the arithmetic.
_IMAGES = 256
#: And most pixels on a CPU, whose caches hold 64 images of 28 pixels: 1.1 M parameters are a
#: quarter faster than with 256.
_CPU_PIXELS = 64 * 28 * 28
#: Sides of canonical boxes in sixteenths of the image: 11, 14 and 18 px at 32 px.
_BOX_SIXTEENTHS = (5, 7, 9)
#: Images below this side have no room for the outline of glasses.
_GLASSES_FIT = 12


class Shift(NamedTuple):
    """A named shift of the noise.

    Attributes:
        name: for tables and labels.
        delta: ``(C, H, W)``, in units of the noise's standard deviation at t = T.
    """

    name: str
    delta: Tensor


class Answer(NamedTuple):
    """Answers to k shifts at one timestep.

    Attributes:
        t: the timestep.
        change: E[eps(s n + rho d) - eps(s n)], ``(k, C, H, W)``.
        gain: <change, d> / (rho |d|^2), ``(k,)``; 1/s_t where the network takes the whole shift
            for noise, and never more if it is exact (section "monotone" of ``shift_response``).
        error: standard error of the gain over the antithetic pairs, ``(k,)``.
    """

    t: int
    change: Tensor
    gain: Tensor
    error: Tensor


def _parts(x: Tensor, images: int) -> tuple[Tensor, ...]:
    """``x`` in blocks along its first axis; each of its elements stands for ``images`` images.

    They are as even as can be: a short last one would be slower and have other last bits.
    """
    block = _IMAGES
    if x.device.type == "cpu":
        block = min(block, _CPU_PIXELS // math.prod(x.shape[2:]))
    return x.tensor_split(math.ceil(len(x) / max(1, block // images)))


@torch.no_grad()
def epsilons(model: Diffusion, x: Tensor, t: int) -> Tensor:
    """The model's noise estimate ``(batch, C, H, W)``, computed in blocks."""
    return torch.cat([model.epsilon(part, t) for part in _parts(x, 1)])


def answers(
    model: Diffusion, shifts: Tensor, t: int, noise: Tensor, *, scale: float = 1.0
) -> Answer:
    """Gains of k shifts at timestep t.

    Args:
        model: the denoiser.
        shifts: ``(k, C, H, W)``, none of them zero.
        t: timestep.
        noise: antithetic, ``(2 p, C, H, W)``: p draws of N(0, I), then their negatives.
        scale: the shift added is ``scale * (1 - a_t) * d``, BadDiffusion's schedule rho_t.
    """
    rho = scale * (1 - model.schedule.a_at(t))
    pairs, shifts = len(noise) // 2, shifts.to(noise)
    x = model.schedule.s_at(t) * noise
    plain = epsilons(model, x, t)
    changes, gains, errors = [], [], []
    # Every block holds whole shifts, so that memory does not grow with their number.
    for part in _parts(shifts, len(x)):
        shifted = (x[None] + rho * part[:, None]).flatten(0, 1)
        change = epsilons(model, shifted, t).reshape(len(part), *x.shape) - plain
        along = (change * part[:, None]).flatten(2).sum(2).double()
        gain = along / (rho * part.flatten(1).double().square().sum(1))[:, None]
        paired = (gain[:, :pairs] + gain[:, pairs:]) / 2
        changes.append(change.mean(1))
        gains.append(paired.mean(1))
        deviation = paired.std(1) if pairs > 1 else torch.full_like(paired[:, 0], torch.nan)
        errors.append(deviation / pairs**0.5)
    return Answer(t, torch.cat(changes), torch.cat(gains), torch.cat(errors))


def robust_z(values: Tensor) -> Tensor:
    """(v - median) / (1.4826 median absolute deviation), the same shape; 0 where all are equal."""
    deviation = values - values.median()
    spread = 1.4826 * deviation.abs().median()
    return deviation / spread.clamp_min(1e-12) if float(deviation.abs().max()) > 0 else deviation


def patch_positions(side: int, size: int, stride: int) -> list[int]:
    """Offsets of a patch along one axis, the last one flush with the edge."""
    last = size - side
    return sorted({*range(0, last + 1, stride), last})


def patches(
    shape: tuple[int, ...], side: int, *, value: float = 1.0, stride: int = 1
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Square patches on a zero background at every position of a grid.

    Args:
        shape: (C, H, W) of the model's samples.
        side: of the patch, in pixels.
        value: of its pixels, all channels.
        stride: of the grid, in pixels.

    Returns:
        Shifts ``(k, C, H, W)`` and their (top, left) in pixels.
    """
    _, height, width = shape
    places = [
        (top, left)
        for top in patch_positions(side, height, stride)
        for left in patch_positions(side, width, stride)
    ]
    shifts = torch.zeros(len(places), *shape)
    for shift, (top, left) in zip(shifts, places, strict=True):
        shift[:, top : top + side, left : left + side] = value
    return shifts, places


def canonical_shifts(sample: SampleSpec) -> list[Shift]:
    """Shifts that published attacks use and that need no search (section 4 of the reference).

    Constants; grey and white boxes on the released background of -1, at the sizes of the BOX_n and
    the white boxes scaled to the image; stop sign and glasses on both backgrounds; patches of both
    signs on a zero background.
    """
    channels, height, width = sample.shape
    small = min(height, width)
    found = [
        Shift(f"constant {value:+g}", torch.full((channels, height, width), value))
        for value in (1.0, -1.0, 0.3)
    ]
    sides = [max(1, small * part // 16) for part in _BOX_SIXTEENTHS]
    names = [f"box:{side}:{value}" for side in sides for value in (0, 1)]
    signs = [f"box:{side}:{value},zero" for side in sides for value in (1, -1)]
    drawn = []
    if small >= _GLASSES_FIT:  # strokes of one pixel at least
        sign = f"stop-sign:{small * 7 // 16}"
        drawn = [sign, f"{sign},zero", "glasses", "glasses,zero"]
    # Drawn in grey and repeated where the model has neither one channel nor three.
    spec = sample if channels in (1, 3) else SampleSpec((1, height, width))
    for name in [*names, *signs, *drawn]:
        shift = make_image_trigger(name, spec).g
        found.append(Shift(name, shift.expand(channels, -1, -1).clone()))
    return found
