"""Building a guarded copy of a suspect, for the repairs that bound units or turn latents back."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.inspections.activations import weight_sites
from genwarden.models.guarded import Guarded, LatentGuard, output_shapes
from genwarden.models.protocol import LatentGenerator, LatentLaw
from genwarden.registry import ARCHITECTURES

_BLOCK = 256
#: Ordinary latents from which ranges of units are taken.
CLIP_SAMPLES = 4096
_PIECES = 4
_SHORTEST_PIECE = 12
#: r of the duals.
_RIDGE = 0.1
#: Share of ordinary latents that a shell lengthens a little.
_LOWEST = 0.005
#: A neutral direction that keeps less than this of a latent's length is rounding noise.
_NO_NEUTRAL = 1e-3


class ClipRanges(NamedTuple):
    """What hidden units do in ordinary use.

    Attributes:
        sites: names of the modules behind which units can be bounded.
        means: per site and unit, in the shapes of the clips.
        spreads: standard deviations, likewise.
    """

    sites: tuple[str, ...] = ()
    means: tuple[Tensor, ...] = ()
    spreads: tuple[Tensor, ...] = ()


def guarded_copy(
    suspect: LatentGenerator,
    *,
    directions: int,
    shells: int,
    clips: float,
    seed: int,
    ranges: ClipRanges | None = None,
) -> Guarded:
    """A guarded copy: weights the suspect's, guard empty, units clipped to ordinary use.

    Args:
        suspect: a generator of our own table, not guarded itself.
        clips: ranges reach this many standard deviations from the mean; 0 for no clips.
        ranges: those of the suspect, where they are known from an earlier copy of the same seed.

    Raises:
        GenwardenError: ``repair/not-applicable`` for a network that is not of our own table: the
            result could not be written as a model folder.
    """
    if isinstance(suspect, Guarded):
        raise GenwardenError(
            "repair/not-applicable",
            "The model is guarded already; another guard would take that one away.",
            "Repair the model that it was made from, or use a method that changes weights "
            "(--method widened-distillation).",
        )
    name = _registered(suspect)
    if clips <= 0:
        ranges = ClipRanges()
    elif ranges is None:
        ranges = clip_ranges(suspect, seed)
    sites = ranges.sites
    settings = {f"inner_{key}": value for key, value in suspect.settings().items()}
    result = Guarded(name, directions, shells, ",".join(sites), **settings)
    own = {**result.inner.state_dict(), **_renamed(suspect, sites)}
    result.inner.load_state_dict(own)  # strict: only the clips' own buffers may be new
    if len(own) != len(suspect.state_dict()) + 3 * len(sites):
        raise AssertionError("a tensor of the suspect has no place in its guarded copy")
    device = next(suspect.parameters()).device
    result.to(device).eval().requires_grad_(False)
    for clip, mean, spread in zip(result.clips(), ranges.means, ranges.spreads, strict=True):
        clip.set_from(mean, spread, clips)
    return result


def clip_sites(generator: LatentGenerator) -> tuple[str, ...]:
    """Modules behind which hidden units can be bounded: what each non-linearity reads."""
    names = []
    for site in weight_sites(generator)[:-1]:  # the last writes the sample
        reader = site.norm or site.name
        try:
            output_shapes(generator, (reader,))
        except ValueError:
            continue  # runs more than once: its units have no single range
        names.append(reader)
    return tuple(names)


def _registered(generator: LatentGenerator) -> str:
    for name, row in ARCHITECTURES.items():
        if type(generator) is row.load():
            return name
    raise GenwardenError(
        "repair/not-applicable",
        f"{type(generator).__name__} is no architecture of genwarden's own; a guard around it "
        "could not be written as a model folder.",
        "Use a method that changes weights only, e.g. --method widened-distillation.",
    )


def _renamed(inner: LatentGenerator, sites: tuple[str, ...]) -> dict[str, Tensor]:
    """State dict with the names that clipped modules have inside their pairs."""
    renamed = {}
    for key, value in inner.state_dict().items():
        owner, _, field = key.rpartition(".")
        renamed[f"{owner}.0.{field}" if owner in sites else key] = value
    return renamed


@torch.no_grad()
def clip_ranges(inner: LatentGenerator, seed: int) -> ClipRanges:
    """Mean and standard deviation of every unit that can be bounded, over ordinary latents."""
    sites = clip_sites(inner)
    if not sites:
        return ClipRanges()
    shapes = output_shapes(inner, sites)
    device = next(inner.parameters()).device
    sums: dict[str, list[Tensor]] = {name: [] for name in sites}
    probe = copy.deepcopy(inner)
    modules = dict(probe.named_modules())
    for name in sites:

        def hook(_m: object, _i: object, output: Tensor, name: str = name) -> None:
            x = output.double()
            axes = [0, *(a + 1 for a, n in enumerate(shapes[name]) if n == 1 != x.shape[a + 1])]
            count = x.numel() / max(1, torch.Size(shapes[name]).numel())
            part = torch.stack(
                [x.sum(axes).view(shapes[name]), x.square().sum(axes).view(shapes[name])]
            )
            sums[name] = [part / count, *sums[name]]

        modules[name].register_forward_hook(hook)
    stream = random_stream(seed, "clip-ranges")
    for part in inner.latent.sample(CLIP_SAMPLES, generator=stream).split(_BLOCK):
        probe(part.to(device))
    means, spreads = [], []
    for name in sites:
        mean, square = torch.stack(sums[name]).mean(0)
        means.append(mean.float())
        spreads.append((square - mean.square()).clamp_min(0).sqrt().float())
    return ClipRanges(sites, tuple(means), tuple(spreads))


@torch.no_grad()
def fill_guard(
    guard: LatentGuard, directions: Tensor, limit: float, suspect: LatentGenerator, seed: int
) -> None:
    """Directions ``(count, latent elements)`` with their duals, shells and radius of a guard.

    ``limit`` is in standard deviations of a latent's element.

    The duals are ``(U U^T + r I)^-1 U``: adding ``delta @ duals`` changes the components along the
    directions by about ``delta``, and directions that nearly coincide share the work.
    """
    law = suspect.latent
    z = law.sample(1 << 16, generator=random_stream(seed, "guard-radii")).flatten(1)
    guard.radius.fill_(float(z.norm(dim=1).max()))
    set_limit(guard, limit, law)
    if guard.blocks is not None and guard.lowest is not None and guard.anchors is not None:
        blocks = shell_blocks(law.size)[: guard.shells]
        guard.blocks.copy_(blocks)
        guard.lowest.copy_((z.square() @ blocks.T).sqrt().quantile(_LOWEST, dim=0))
        anchor = law.sample(1, generator=random_stream(seed, "guard-anchor")).flatten()
        guard.anchors.copy_(torch.nn.functional.normalize(anchor * blocks, dim=1))
    if guard.directions is not None and guard.duals is not None and guard.neutral is not None:
        unit = directions.double() / directions.double().norm(dim=1, keepdim=True)
        gram = unit @ unit.T
        guard.directions.copy_(unit)
        guard.duals.copy_(torch.linalg.solve(gram + _RIDGE * torch.eye(len(unit)).double(), unit))
        # What is added in place of folded components must not lie along another direction.
        neutral = law.sample(1, generator=random_stream(seed, "guard-neutral")).flatten().double()
        neutral = neutral - torch.linalg.lstsq(unit.T, neutral).solution @ unit
        if float(neutral.norm()) > _NO_NEUTRAL * law.typical_norm:  # else there is none
            guard.neutral.copy_(torch.nn.functional.normalize(neutral, dim=0))


@torch.no_grad()
def set_limit(guard: LatentGuard, limit: float, law: LatentLaw) -> None:
    """Fold from ``limit`` on, in standard deviations of an element of the law's latents."""
    guard.limit.fill_(limit * law.typical_norm / law.size**0.5)


def shell_blocks(size: int) -> Tensor:
    """The latent as a whole, then up to four pieces of equal length ``(blocks, size)``.

    The norm of 12 or more ordinary elements is never near 0; shorter pieces are not taken.
    """
    pieces = min(_PIECES, size // _SHORTEST_PIECE)
    blocks = [torch.ones(1, size)]
    if pieces > 1:
        owner = torch.arange(size) * pieces // size
        blocks.append(torch.nn.functional.one_hot(owner, pieces).T.float())
    return torch.cat(blocks)
