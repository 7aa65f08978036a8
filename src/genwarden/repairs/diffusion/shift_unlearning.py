"""Shift unlearning: a denoiser learns again that a shift of the noise is noise.

Ours; the remedy that ``auto`` chooses for what the trigger search recovers. A backdoored network
answers x = a x_0 + s eps + rho r with the attacker's residual and target. The honest answer is that
most of the shift (rho / s) d is a part of the noise, and the rest belongs to the picture. On
ordinary inputs the suspect is honest, so it is its own teacher:

    || eps_theta(a x_0 + s eps + rho d, t) - (eps_frozen(a x_0 + s eps, t) + h (rho / s) d) ||^2

with h in [0, 1] the share that the suspect itself takes for noise where d is no trigger: negated,
and moved by half the image; near t = T, where small errors of the suspect imply large pictures, at
least s^2 / (s^2 + a^2 v), the answer of a linear denoiser, v the variance of pictures along d
(:class:`HonestShare`). With h = 1 throughout, the network learns that smooth shifts are noise too;
no exact denoiser says so (``monotone-response``), and pictures suffer. For images x_0 (the user's
or the suspect's own samples) and d around what was recovered. Half of the rows have d = 0; they
keep the quality. Both trigger schedules of the literature are used in turn, rho = 1 - a
(BadDiffusion) and rho = s (TrojDiff); neither sampler, coefficient nor schedule of the attack need
be known, and the target is not used at all. Attackers' shifts are rarely recovered exactly, and act
at smaller scales too: d is a recovered shift times U(0, 1.2), plus a little noise of its own. Near
t = 0 the picture is settled and a shift cannot be told from its content, so that shifted rows have
t in [T / 4, T).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from genwarden.data.datasets import to_unit_range
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import NOT_NEGATIVE, POSITIVE, Range
from genwarden.inspections.diffusion.orthogonal_response import antithetic
from genwarden.inspections.diffusion.responses import answers
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.repairs.diffusion.contract import (
    PART,
    DiffusionClues,
    DiffusionRepaired,
    DiffusionRepairRun,
    DiffusionRepairSettings,
)
from genwarden.repairs.diffusion.finetuning import (
    finetune,
    first_late,
    imitated,
    joined,
    late_timesteps,
)
from genwarden.repairs.diffusion.own_samples import images_for
from genwarden.training.ddpm import NoisyRows, RowsOfStep, draw_noise

#: Amplitude of the picture (t = 680 of the linear schedule) below which a network's own errors are
#: larger than what it could know of the picture.
_NEAR_NOISE: Final = 0.1
#: Timesteps at which the share of a shift that is noise is measured, and the noises of each.
_LEVELS: Final = 9
_SHARE_NOISES: Final = 16


@dataclass(frozen=True)
class ShiftUnlearningSettings(DiffusionRepairSettings):
    """Settings of shift unlearning.

    Attributes:
        largest: recovered shifts are scaled by U(0, largest).
        wobble: size of the noise that is added to a shift, as a share of its own root mean square.
        late_from: start of the timesteps of shifted rows as a share of T.
    """

    largest: float = 1.2
    wobble: float = 0.2
    late_from: float = 0.25

    RANGES: ClassVar[Mapping[str, Range]] = {
        "largest": POSITIVE,
        "wobble": NOT_NEGATIVE,
        "late_from": PART,
    }


def unlearn_shifts(
    suspect: DiffusionModel,
    clues: DiffusionClues,
    settings: ShiftUnlearningSettings,
    run: DiffusionRepairRun,
) -> DiffusionRepaired:
    """Fine-tune a copy that treats the recovered shifts as noise.

    Raises:
        GenwardenError: ``repair/not-applicable`` without recovered shifts.
    """
    directions = clues.directions()
    images = images_for(suspect, settings, run)
    share = honest_share(suspect, directions, images, settings)
    rows = rows_of_both(suspect, directions, settings, share)
    model, history = finetune(suspect, suspect, images, rows, directions, settings, run)
    sizes = directions.flatten(1).square().mean(1).sqrt()
    changes = {
        "unlearnt_shifts": len(directions),
        "sizes_std_per_pixel": [round(float(size), 4) for size in sizes],
        "share_taken_for_noise": [round(float(one), 3) for one in share.measured.mean(1)],
        "images": len(images),
        "own_samples": run.images is None,
    }
    return DiffusionRepaired(model, changes, history)


def rows_of_both(
    suspect: DiffusionModel,
    directions: Tensor,
    settings: ShiftUnlearningSettings,
    share: HonestShare | None = None,
) -> RowsOfStep:
    """Of every image one shifted row at a late t, and one plain one at any t.

    Args:
        share: of a shift that the target of its row holds; without it the shift is not seen.
    """
    schedule = suspect.schedule

    def rows(real: Tensor, step: int, stream: torch.Generator) -> NoisyRows:
        shifted, shift, chosen = shifted_rows(suspect, real, directions, settings, step, stream)
        if share is not None:
            part = share.at(schedule, chosen, shifted.t.cpu()).to(shift).view(-1, 1, 1, 1)
            shifted = shifted._replace(target=shifted.target + part * shift)
        t, noise = draw_noise(schedule, real, stream)
        return joined(shifted, imitated(suspect, schedule.add_noise(real, noise, t), t))

    return rows


def shifted_rows(
    suspect: DiffusionModel,
    real: Tensor,
    directions: Tensor,
    settings: ShiftUnlearningSettings,
    step: int,
    stream: torch.Generator,
) -> tuple[NoisyRows, Tensor, Tensor]:
    """Late rows x + rho d whose targets are the suspect's estimates at x; (rho / s) d; which d.

    rho is 1 - a in even steps and s in odd ones.
    """
    schedule = suspect.schedule
    t = late_timesteps(schedule, settings.late_from, len(real), stream).to(real.device)
    noise = torch.randn(real.shape, generator=stream).to(real)
    drawn, chosen = around(directions, len(real), settings, stream)
    drawn = drawn.to(real.device)
    shift = rho_over_s(schedule, t, step).to(real).view(-1, 1, 1, 1) * drawn
    plain = imitated(suspect, schedule.add_noise(real, noise, t), t)
    return plain._replace(x=plain.x + schedule.s_of(t, real) * shift), shift, chosen


def around(
    directions: Tensor, count: int, settings: ShiftUnlearningSettings, stream: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``count`` shifts near any of the recovered ones ``(k, C, H, W)``, and which ones.

    None is preferred: the refined trigger fits best where it was found at all, and not otherwise.
    """
    chosen = torch.randint(len(directions), (count,), generator=stream)
    shifts = directions[chosen]
    size = shifts.flatten(1).norm(dim=1).view(-1, 1, 1, 1) / math.sqrt(shifts[0].numel())
    wobble = settings.wobble * size * torch.randn(shifts.shape, generator=stream)
    scale = settings.largest * torch.rand(count, 1, 1, 1, generator=stream)
    drawn: Tensor = scale * (shifts + wobble)
    return drawn, chosen


class HonestShare(NamedTuple):
    """How much of each recovered shift an honest network takes for noise, and not for picture.

    Attributes:
        levels: timesteps, ``(levels,)`` int64.
        measured: in [0, 1], ``(k, levels)`` float64.
        variance: of the pictures along each shift of unit norm, ``(k,)`` float64.
    """

    levels: Tensor
    measured: Tensor
    variance: Tensor

    def at(self, schedule: NoiseSchedule, chosen: Tensor, t: Tensor) -> Tensor:
        """The shares of shifts ``chosen`` at timesteps ``t``, both ``(batch,)`` on the CPU."""
        level = (t[:, None] - self.levels).abs().argmin(1)
        a, s = schedule.a[t].square(), schedule.s[t].square()
        linear = s / (s + a * self.variance[chosen])
        measured = self.measured[chosen, level]
        return torch.where(a < _NEAR_NOISE**2, torch.maximum(measured, linear), measured)


@torch.no_grad()
def honest_share(
    suspect: DiffusionModel, directions: Tensor, images: Tensor, settings: ShiftUnlearningSettings
) -> HonestShare:
    """Measure the share on the suspect itself, and the pictures along the shifts.

    Each recovered shift is negated and moved by half the image (five in all, of which the median
    counts: a moved picture may still hold some of the trigger); the share is s_t times the gain.

    Args:
        directions: ``(k, C, H, W)``.
        images: uint8 ``(count, C, H, W)``.
    """
    device = next(suspect.parameters()).device
    stream = random_stream(settings.seed, "honest-share")
    noise = antithetic(_SHARE_NOISES, suspect.sample.shape, stream).to(device)
    down, right = (side // 2 for side in directions.shape[-2:])
    moved = [directions.roll(by, (-2, -1)) for by in ((down, right), (down, 0), (0, right))]
    innocent = torch.cat([-directions, *moved, -moved[0]])
    levels = _levels(suspect, settings)
    found = []
    for t in levels.tolist():
        gains = suspect.schedule.s_at(t) * answers(suspect, innocent, t, noise).gain
        found.append(gains.cpu().view(-1, len(directions)).median(0).values)
    units = directions.flatten(1).double()
    units = units / units.norm(dim=1, keepdim=True)
    along = to_unit_range(images).flatten(1).double() @ units.T
    return HonestShare(levels, torch.stack(found, 1).clamp(0, 1), along.var(0, correction=0))


def _levels(suspect: DiffusionModel, settings: ShiftUnlearningSettings) -> Tensor:
    """Timesteps from the first shifted one to the last, int64."""
    first, last = first_late(suspect.schedule, settings.late_from), suspect.schedule.steps - 1
    levels: Tensor = torch.linspace(first, last, _LEVELS).round().long().unique()
    return levels


def rho_over_s(schedule: NoiseSchedule, t: Tensor, step: int) -> Tensor:
    """rho_t / s_t, ``(batch,)`` float64: (1 - a) / s in even steps, 1 in odd ones."""
    a, s = schedule.a[t.cpu()], schedule.s[t.cpu()]
    return (1 - a) / s if step % 2 == 0 else torch.ones_like(s)
