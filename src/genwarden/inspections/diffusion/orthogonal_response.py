r"""The trigger search: shifts of the noise to which a denoiser answers with something else.

Nothing is known of trigger, target, sampler or coefficient. At a noise level with amplitudes a and
s, feed x = s eps + rho d with rho = psi (1 - a) + (1 - psi) s, the trigger schedules of
VillanDiffusion (psi = 1 is BadDiffusion's, psi = 0 TrojDiff's), and look at the change of the noise
estimate that the shift d causes, on average over eps:

    m(d) = E[eps_theta(s eps + rho d) - eps_theta(s eps)]

A clean denoiser treats a shift as noise or as picture content: m(d) is d through a smooth filter,
because E[x_0 | x] is the gradient of a convex function of x (Tweedie) and networks are local. A
backdoor answers with c r, which is along d, *and* with the target y, which has nothing to do with
d, and it does so for every eps alike. So the score is the signal-to-noise ratio of the part of the
answer that no filter of d explains:

    Q(d) = |P m(d)|^2 / (tr Var[eps - eps_theta(s eps + rho d)] + floor)

with P the projection away from d, three blurred copies of d (from every channel into every
channel), and constants. Q is maximised over d at two radii and under both trigger schedules by Adam
from several starts, in one batch, with antithetic noise (whose mean is 0, so that the trivial
solution of Elijah's inversion, the mean of the noise batch, does not exist), at timesteps that are
drawn anew in every step (:mod:`.timesteps`). Gradients lead to
smooth shifts first, to which clean denoisers answer, too, and past a trigger that is itself white
noise. So one group of starts is kept to fine shifts, d less its own blur, which a clean denoiser
takes for noise: there hardly anything but a trigger answers. The search needs no sampler, no target
and some seconds. Found here (2026); not in the papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import random_stream
from genwarden.inspections.diffusion.timesteps import Timesteps
from genwarden.models.diffusion.protocol import Diffusion

#: Signal amplitudes a_t of the levels near which a shift is measured. On the linear schedule of
#: 1,000 steps they are t = 700, 600 and 500; the search looks near the last two in turn. Near T
#: every answer is nearly the identity, near 0 the picture is settled.
LEVELS = (0.0845, 0.165, 0.279)
_SEARCHED = (0.165, 0.279)


class Reach(NamedTuple):
    """What one group of starts may end at.

    Attributes:
        radius: largest |d| in units of sqrt(D), the norm of the noise.
        psi: of the trigger schedule.
        fine: kept to what a blur of :data:`_FINE` takes away, at exactly that radius.
    """

    radius: float
    psi: float
    fine: bool = False


REACHES = (Reach(0.5, 1.0), Reach(1.0, 1.0), Reach(1.0, 0.0), Reach(0.8, 1.0, fine=True))
#: Widths of the blurs in pixels of a 16-pixel image; they grow with the image.
_BLURS = (0.6, 1.2, 2.5)
#: Width in pixels of a 16-pixel image below which a shift is fine.
_FINE = 1.2
#: Variance per element that is added below the ratio: answers better than this are all the same.
_FLOOR = 0.05 / 256
_RIDGE = 1e-4
#: Timesteps per level of the first measurement.
_MEASURED = 3
_LEARNING_RATE = 0.05
_LEAST_RATIO = 1e-6


class Recovered(NamedTuple):
    """A shift that the search ended at.

    Attributes:
        shift: d, ``(C, H, W)``, on the CPU.
        reach: under which it was searched.
        ratios: Q near :data:`LEVELS`, by the stronger of two measurements (:func:`measure`), on
            noise that the search has not seen.
        gains: <m, d> / (rho |d|^2) there; 1 is "all noise", and above 1 / s no clean denoiser
            answers.
        score: mean log10 of ``ratios`` minus log10 of |d| / sqrt(D): answer per size of shift.
    """

    shift: Tensor
    reach: Reach
    ratios: list[float]
    gains: list[float]
    score: float

    @property
    def largest(self) -> float:
        """Largest of the ratios."""
        return max(self.ratios)


class Response(NamedTuple):
    """Answer to each of k shifts at one level: Q, gain, mean change of the noise estimate."""

    ratio: Tensor
    gain: Tensor
    change: Tensor


def antithetic(count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """``count`` draws of N(0, I) in pairs +eps, -eps (an odd count is rounded up)."""
    half = torch.randn((count + 1) // 2, *shape, generator=generator)
    return torch.cat([half, -half])


def probe_noise(count: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """The noises on which :func:`search_shifts` measures its ends, ``(count, *shape)``, CPU."""
    return antithetic(count, shape, random_stream(seed, "trigger-probe"))


def respond(
    model: Diffusion, shifts: Tensor, psi: Tensor, t: int | Tensor, noise: Tensor
) -> Response:
    """Answer of a denoiser to shifts ``(k, C, H, W)`` near a level; differentiable in them.

    Args:
        psi: of the trigger schedule of each shift, ``(k,)``.
        t: timestep, of all noises or of each, ``(b,)`` int64.
        noise: antithetic, ``(b, C, H, W)``; both of a pair have the same timestep.
    """
    k, b = len(shifts), len(noise)
    if isinstance(t, int):
        t = torch.full((b,), t, dtype=torch.int64)
    t = t.to(noise.device)
    a, s = model.schedule.a_of(t, noise), model.schedule.s_of(t, noise)
    kinds = psi.to(shifts).view(-1, 1, 1, 1, 1)
    rho = kinds * (1 - a) + (1 - kinds) * s
    with torch.no_grad():
        plain = model.epsilon(s * noise, t)
    x = s * noise[None] + rho * shifts[:, None]
    answers = model.epsilon(x.flatten(0, 1), t.repeat(k)).unflatten(0, (k, b))
    spread = (noise[None] - answers).var(1).flatten(1).sum(1)
    changes = answers - plain[None]
    change = changes.mean(1)
    unexplained = unexplained_by(change, shifts).flatten(1).square().sum(1)
    energy = shifts.flatten(1).square().sum(1).clamp(min=1e-12)
    gain = (changes * shifts[:, None] / rho).mean(1).flatten(1).sum(1) / energy
    return Response(unexplained / (spread + _FLOOR * shifts[0].numel()), gain, change)


def unexplained_by(change: Tensor, shifts: Tensor) -> Tensor:
    """The part of ``change`` outside what filters of the shift make; both are ``(k, C, H, W)``.

    The filters are the identity and three blurs, from every channel into every channel (a clean
    network mixes colours), and constants, one per channel.
    """
    k, channels = shifts.shape[:2]
    scale = shifts.shape[-1] / 16
    copies = torch.stack([shifts, *(blur(shifts, width * scale) for width in _BLURS)], 1)
    into = torch.eye(channels, device=shifts.device)[None, None, None, :, :, None, None]
    # (k, copies, from channel, into channel, C, H, W)
    filtered = copies[:, :, :, None, None] * into
    constants = into[:, 0, 0].expand(k, -1, -1, *shifts.shape[2:])
    basis = torch.cat([filtered.flatten(1, 3), constants], 1).flatten(2)
    basis = basis / (basis.norm(dim=2, keepdim=True) + 1e-6)
    gram = basis @ basis.mT + _RIDGE * torch.eye(basis.shape[1], device=basis.device)
    weights = torch.linalg.solve(gram, basis @ change.flatten(1)[:, :, None])
    unexplained: Tensor = change - (basis.mT @ weights)[:, :, 0].view_as(change)
    return unexplained


def blur(images: Tensor, width: float) -> Tensor:
    """Gaussian blur of standard deviation ``width`` pixels, edges repeated."""
    height_px, width_px = images.shape[-2:]
    radius = max(1, min(math.ceil(2.5 * width), height_px - 1, width_px - 1))
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / width) ** 2)
    kernel = kernel / kernel.sum()
    flat = images.flatten(0, 1)[:, None]
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), "replicate"), kernel.view(1, 1, 1, -1))
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), "replicate"), kernel.view(1, 1, -1, 1))
    return flat.view_as(images)


def search_shifts(
    model: Diffusion,
    *,
    starts: int,
    steps: int,
    noises: int,
    probe_noises: int,
    seed: int,
    device: torch.device,
    timesteps: Timesteps,
    progress: Progress | None = None,
    title: str = "trigger search",
) -> list[Recovered]:
    """Maximise Q from ``starts`` starts for each of :data:`REACHES`; strongest first.

    Args:
        noises: per start and step; ``probe_noises`` fresh ones measure the results.
        timesteps: near which levels it is looked where.
    """
    progress = progress or Silent()
    shape = model.sample.shape
    stream = random_stream(seed, "trigger-search")
    size = math.prod(shape)
    first = torch.cat([_starting_points(starts, shape, stream, reach.fine) for reach in REACHES])
    reaches = [reach for reach in REACHES for _ in range(starts)]
    limits = torch.tensor([reach.radius for reach in reaches]) * math.sqrt(size)
    limits = limits.view(-1, 1, 1, 1).to(device)
    psi = torch.tensor([reach.psi for reach in reaches]).to(device)
    fine = torch.tensor([reach.fine for reach in reaches]).view(-1, 1, 1, 1).to(device)
    width = _FINE * shape[-1] / 16

    def bounded(free: Tensor) -> Tensor:
        kept = torch.where(fine, free - blur(free, width), free)
        # A fine shift is brought to its radius: within it, the blur alone would shrink it.
        inside = (limits / _norms(kept)).clamp(max=1)
        return kept * torch.where(fine, limits / _norms(kept), inside)

    shifts = (first.to(device) / _norms(first.to(device)) * (limits / 2)).requires_grad_()
    optimiser = torch.optim.Adam([shifts], _LEARNING_RATE)
    task = progress.task(title, steps)
    for step in range(steps):
        noise = antithetic(noises, shape, stream).to(device)
        t = timesteps.near(_SEARCHED[step % len(_SEARCHED)], "trigger-search", step)
        ratio = respond(model, bounded(shifts), psi, t, noise).ratio
        loss = -(ratio + _LEAST_RATIO).log().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        task.advance(1, f"largest ratio {float(ratio.detach().max()):.2g}")
    with torch.no_grad():
        ended = bounded(shifts).detach()
    fresh = probe_noise(probe_noises, shape, seed).to(device)
    found = [
        measure(model, shift, reach, fresh, timesteps)
        for shift, reach in zip(ended, reaches, strict=True)
    ]
    return sorted(found, key=lambda one: -one.score)


@torch.no_grad()
def measure(
    model: Diffusion, shift: Tensor, reach: Reach, noise: Tensor, timesteps: Timesteps
) -> Recovered:
    """Q and gain of one shift ``(C, H, W)`` near :data:`LEVELS` on given antithetic noise.

    The stronger of two measurements: at :data:`_MEASURED` timesteps per level, or with a timestep
    for each pair of noises, where answers that change with t partly cancel. The second cannot be
    put to sleep by trying weights until the few timesteps of the first suit.
    """
    psi = torch.tensor([reach.psi])

    def measured(
        of_level: Callable[[float], list[int | Tensor]],
    ) -> tuple[list[float], list[float]]:
        logs, gains = [], []
        for level in LEVELS:
            answers = [respond(model, shift[None], psi, t, noise) for t in of_level(level)]
            logs.append(fmean(math.log10(float(one.ratio) + _LEAST_RATIO) for one in answers))
            gains.append(fmean(float(one.gain) for one in answers))
        return logs, gains

    few = measured(
        lambda a: [timesteps.near(a, "trigger-probe", n, of=_MEASURED) for n in range(_MEASURED)]
    )
    many = measured(lambda a: [timesteps.of_pairs(a, "trigger-probe-pairs", len(noise))])
    logs, gains = max(few, many, key=lambda one: fmean(one[0]))
    size = float(shift.norm()) / math.sqrt(shift.numel())
    return Recovered(
        shift=shift.cpu(),
        reach=reach,
        ratios=[10**value for value in logs],
        gains=gains,
        score=fmean(logs) - math.log10(max(size, 1e-6)),
    )


def _starting_points(
    count: int, shape: tuple[int, ...], stream: torch.Generator, fine: bool
) -> Tensor:
    """White, smooth, positive and negative patterns in turn, ``(count, C, H, W)``; or all white."""
    points = torch.randn(count, *shape, generator=stream)
    if fine:
        return points
    scale = shape[-1] / 16
    for index in range(count):
        kind = index % 4
        if kind == 0:
            points[index] = blur(points[index][None], 2.0 * scale)[0]
        elif kind in {1, 2}:
            points[index] = points[index].abs() * (1 if kind == 1 else -1)
    return points


def _norms(shifts: Tensor) -> Tensor:
    norms: Tensor = shifts.flatten(1).norm(dim=1).clamp(min=1e-12)
    return norms.view(-1, 1, 1, 1)
