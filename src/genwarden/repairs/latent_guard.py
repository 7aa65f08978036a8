"""Latent guard: find where the model leaves what its samples suggest, and turn such latents back.

Two twins that know only ordinary samples (:mod:`genwarden.inspections.twins`) say what is to be
expected anywhere. Latents where the suspect differs from a twin by more than the other twin ever
does under the same search lie in or near something that ordinary sampling never shows. An in-sample
trigger is a latent of ordinary length (about 10 for 100 elements), so its component along a nearby
direction is 7 to 10, where an ordinary latent's is a standard normal number: folding components
beyond about 3 back to 0 takes trigger and basin away and moves few ordinary latents (2 % with
eight directions and a limit of 2.75).
The search is repeated behind the guard, for what the first finds hid. Mode, subspace and
out-of-distribution triggers are met by the guard's shells and radius, units that the latent cannot
bound by unit clips.

Nothing is retrained: on ordinary latents the model stays what it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from genwarden.engine.progress import Task
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, NOT_NEGATIVE, POSITIVE, Range
from genwarden.errors import GenwardenError
from genwarden.inspections.principal import principal_directions, principal_latents
from genwarden.inspections.twins import Twin, log_difference
from genwarden.inspections.workbench import samples_of
from genwarden.models.guarded import NAME as GUARDED
from genwarden.models.guarded import Guarded, LatentGuard
from genwarden.models.protocol import LatentGenerator
from genwarden.repairs.clipping import (
    clip_ranges,
    fill_guard,
    guarded_copy,
    set_limit,
    shell_blocks,
)
from genwarden.repairs.contract import Clues, Repaired, RepairRun, RepairSettings
from genwarden.repairs.distilling import expdis
from genwarden.repairs.kept_twin import kept_twins
from genwarden.search.latent_search import ordinary_bounds, search, start_latents

_PRINCIPAL = 16
#: Ends are one find if their directions have at least the first cosine, or at least the second and
#: outputs that differ by at most this share of their difference from the twin.
_SAME_DIRECTION = 0.7
_NEAR_DIRECTION = 0.3
_SAME_OUTPUT = 0.25
#: Ends count from this multiple of the largest difference between two twins.
_BEYOND = 1.1
#: Ends shorter than this share of the typical norm have no direction worth folding; the guard's
#: shells meet them.
_SHORT = 0.5
#: Limits that are tried, the strictest first, in standard deviations of a latent's component.
_LIMITS = (2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0)
#: Limit of the guards behind which later rounds search.
_SEARCH_LIMIT = 2.5
#: Latents that are drawn where a piece of the latent, or all but a piece, is zero.
_SUBSPACE_LATENTS = 64
#: Difference there, over that where zeros are scattered, from which on pieces get shells.
_SUBSPACE_FACTOR = 3.0


@dataclass(frozen=True)
class LatentGuardSettings(RepairSettings):
    """How far is searched and how much ordinary samples may change.

    Attributes:
        twin_steps: distillation steps of each of the two twins.
        restarts: random latents that a search starts from, beside principal ones and clues.
        search_steps: steps of a search.
        rounds: searches, each behind the guard of those before.
        directions: finds kept per round, the largest differences first.
        clip: unit clips at this many standard deviations; 0 for none.
        most_expdis_mean: the strictest limit is taken whose ExpDis to the suspect, mean per element
            of a sample, stays below this (1e-3 is a sum of 0.78 for 28x28).
    """

    twin_steps: int = 500
    restarts: int = 96
    search_steps: int = 80
    rounds: int = 3
    directions: int = 12
    clip: float = 4.0
    most_expdis_mean: float = 1e-3

    RANGES: ClassVar[Mapping[str, Range]] = {
        "twin_steps": COUNT,
        "restarts": COUNT,
        "search_steps": COUNT,
        "rounds": COUNT,
        "directions": COUNT,
        "clip": NOT_NEGATIVE,
        "most_expdis_mean": POSITIVE,
    }


def guard(
    suspect: LatentGenerator, clues: Clues, settings: LatentGuardSettings, run: RepairRun
) -> Repaired:
    """Put a guard in front of the suspect; latents among the clues are searched from too.

    Raises:
        GenwardenError: ``repair/not-applicable`` if no twin imitates the suspect well enough to say
            what is to be expected, or its architecture is not of our own table.
    """
    seed = settings.seed
    guarded_copy(suspect, directions=0, shells=0, clips=0, seed=seed)  # refuse before the search
    twin, other = _twins(suspect, settings, run)
    starts = _starts(suspect, clues, settings)
    steps = len(starts) * settings.search_steps
    task = run.progress.task("searching for deviations", steps * (1 + settings.rounds))
    nothing = LatentGuard(suspect.latent.size, 0, 0).to(next(suspect.parameters()).device)
    honest = _deviations(other.generator, twin.generator, nothing, starts, settings, task)
    threshold = _BEYOND * float(honest.difference.max())
    found = torch.zeros(0, suspect.latent.size)
    rounds: list[dict[str, Any]] = []
    shells = _shells(suspect, twin.generator, settings)
    ranges = clip_ranges(suspect, seed) if settings.clip > 0 else None

    def built() -> Guarded:
        made = guarded_copy(
            suspect,
            directions=len(found),
            shells=shells,
            clips=settings.clip,
            seed=seed,
            ranges=ranges,
        )
        fill_guard(made.guard, found, _SEARCH_LIMIT, suspect, seed)
        return made

    result = built()
    for _ in range(settings.rounds):
        ends = _deviations(result, twin.generator, result.guard, starts, settings, task)
        fresh = _directions(ends, threshold, suspect.latent.typical_norm)[: settings.directions]
        rounds.append(
            {
                "largest_difference_sum": float(ends.difference.max()),
                "directions_found": len(fresh),
            }
        )
        if not len(fresh):
            break
        found = torch.cat([found, fresh])
        result = built()
    most = settings.most_expdis_mean * suspect.sample.size
    for limit in _LIMITS:
        set_limit(result.guard, limit, suspect.latent)
        distance = expdis(suspect, result, seed)
        if distance <= most:
            break
    else:
        raise GenwardenError(
            "repair/not-applicable",
            f"Even the mildest guard changes ordinary samples by {distance:.3f} (ExpDis, sum); "
            f"{most:.3f} is allowed.",
            "Allow more (--option most_expdis_mean=...), clip less (--option clip=5), or use "
            "--method widened-distillation.",
        )
    changes = {
        "directions": len(found),
        "shells": shells,
        "limit_standard_deviations": limit,
        "unit_clip_standard_deviations": settings.clip,
        "twin_loss": round(twin.loss, 5),
        "threshold_sum": threshold,
        "rounds": rounds,
        "expdis_sum": distance,
    }
    return Repaired(result, changes, [], architecture=GUARDED)


def _twins(
    suspect: LatentGenerator, settings: LatentGuardSettings, run: RepairRun
) -> tuple[Twin, Twin]:
    """The better twin first."""
    twins = kept_twins(suspect, settings.twin_steps, count=2, seed=settings.seed, run=run)
    better, worse = sorted(twins, key=lambda t: t.loss)
    if not worse.fair:
        raise GenwardenError(
            "repair/not-applicable",
            "No twin imitates the model well enough to say what is to be expected of it "
            f"(loss {worse.loss:.2f} of the usual distance between two samples).",
            f"Distil longer: --option twin_steps={4 * settings.twin_steps}, or use --method "
            "unit-clipping.",
        )
    return better, worse


def _starts(suspect: LatentGenerator, clues: Clues, settings: LatentGuardSettings) -> Tensor:
    law = suspect.latent
    directions = principal_directions(suspect, seed=settings.seed)[:_PRINCIPAL]
    random = start_latents(law, settings.restarts, seed=settings.seed, purpose="guard-starts")
    return torch.cat([random, principal_latents(directions, law), clues.latents])


def _shells(suspect: LatentGenerator, twin: LatentGenerator, settings: LatentGuardSettings) -> int:
    """Shells that are called for: around the whole latent, or around its pieces too.

    Where a prefix or suffix is zero, the suspect must not differ from its twin by far more than
    where as many zeros are scattered: nothing but a backdoor knows where a latent begins.
    """
    law, device = suspect.latent, next(suspect.parameters()).device
    pieces = shell_blocks(law.size)
    if len(pieces) == 1:
        return 1
    stream = random_stream(settings.seed, "guard-subspaces")
    half = pieces[1 : 1 + len(pieces) // 2].sum(0)
    for mask in (pieces[1], pieces[-1], half, 1 - half):
        scattered = mask[torch.randperm(law.size, generator=stream)]
        usual = []
        for zeros in (mask, scattered):
            z = law.sample(_SUBSPACE_LATENTS, generator=stream).flatten(1) * (1 - zeros)
            z = z.view(-1, *law.shape)
            gap = samples_of(suspect, z, device) - samples_of(twin, z, device)
            usual.append(float(gap.flatten(1).square().sum(1).mean()))
        if usual[0] > _SUBSPACE_FACTOR * usual[1]:
            return len(pieces)
    return 1


class _Ends(NamedTuple):
    """Where searches ended.

    Attributes:
        z: latents that come out of the guard ``(count, latent elements)``, CPU.
        x: the model's outputs there, flattened, CPU.
        difference: squared difference from the twin (sum).
    """

    z: Tensor
    x: Tensor
    difference: Tensor


def _deviations(
    model: LatentGenerator,
    twin: LatentGenerator,
    before: LatentGuard,
    starts: Tensor,
    settings: LatentGuardSettings,
    task: Task,
) -> _Ends:
    """Ascend the squared difference between a model and a twin behind the model's own guard.

    Without the guard in front, the twin would differ wherever the guard does its work.
    """
    device = next(twin.parameters()).device
    bounds = ordinary_bounds(twin.latent, steps=settings.search_steps)
    objective = partial(log_difference, model, nn.Sequential(before, twin))
    ends = search(objective, starts, bounds, device=device, task=task)
    with torch.no_grad():
        z = before(ends.z.to(device)).cpu()
    return _Ends(z.flatten(1), samples_of(model, ends.z, device).flatten(1), ends.score.exp())


def _directions(ends: _Ends, threshold: float, typical_norm: float) -> Tensor:
    """Unit directions of the finds beyond the threshold, largest difference first.

    A find is all ends that show one output in one region; the mean of their directions lies nearer
    to the middle of a basin than any of them, since a search stops at a basin's rim.
    """
    norm = ends.z.norm(dim=1)
    unit = ends.z / norm.clamp_min(1e-12)[:, None]
    left = (ends.difference > threshold) & (norm >= _SHORT * typical_norm)
    found: list[Tensor] = []
    for index in ends.difference.argsort(descending=True).tolist():
        if left[index]:
            cosine = unit @ unit[index]
            apart = (ends.x - ends.x[index]).square().sum(1)
            alike = apart <= _SAME_OUTPUT * ends.difference[index]
            members = left & ((cosine >= _SAME_DIRECTION) | (alike & (cosine >= _NEAR_DIRECTION)))
            left = left & ~members
            found.append(torch.nn.functional.normalize(unit[members].mean(0), dim=0))
    return torch.stack(found) if found else torch.zeros(0, ends.z.shape[1])
