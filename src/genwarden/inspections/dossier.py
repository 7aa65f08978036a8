"""The dossier of a candidate trigger: what it makes, how far it reaches, what carries it.

Whoever reads a verdict wants to see the thing itself. For one latent this measures, with the
suspect alone: the isolation of its output, the strips of Fig. 6 of "The Devil is in the GAN" (from
one ordinary latent through the candidate to another), its basin and local Lipschitz constant
(:mod:`.basin`) beside those of ordinary latents, and the channels that it drives furthest outside
their ordinary range.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.engine.seeds import random_stream
from genwarden.inspections.activations import Site, unit_maxima, watch, weight_sites
from genwarden.inspections.basin import between, lipschitz, walk
from genwarden.inspections.candidate import Basin, Candidate, Carrier
from genwarden.inspections.finding import Chart, Images, Line
from genwarden.inspections.pictures import sample_pictures
from genwarden.inspections.workbench import BLOCK_SAMPLES, Workbench
from genwarden.models.protocol import LatentGenerator

_WAYS = 32
#: Ordinary latents whose radii are measured for comparison, and the ways from each.
_ORDINARY_LATENTS = 16
_ORDINARY_WAYS = 4
_LIPSCHITZ_LATENTS = 16
_WALL_POINTS = 4
#: Ordinary latents over which the range of every channel is taken.
_ACTIVATION_LATENTS = 1024
_CARRIERS_PER_LAYER = 3
#: A channel that never moves has no scale of its own; this share of its layer's is taken.
_STILL = 1e-3
#: Shares of the way from the candidate to an ordinary latent that are shown, nearest first.
_SHOWN_SHARES = (0.067, 0.178, 0.364, 0.674, 1.0)
#: Steps along a random direction that are shown, in typical norms.
_SHOWN_STEPS = (-2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0)


class _Channels(NamedTuple):
    """Ordinary activations of one layer, each ``(units,)``; ``usual`` as in :class:`Carrier`."""

    site: Site
    mean: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    usual: float


class Reference(NamedTuple):
    """What ordinary latents of the suspect are like; made once for all candidates.

    Attributes:
        ends: ordinary latents that the ways lead to, ``(_WAYS, *latent.shape)``.
        radius: mean distance at which an ordinary output has moved by half an ordinary distance.
        profile: mean movement of ordinary outputs.
        lipschitz: median local Lipschitz constant, None as in :func:`.basin.lipschitz`.
        channels: ordinary activations, layer by layer.
    """

    ends: Tensor
    radius: float
    profile: Line
    lipschitz: float | None
    channels: list[_Channels]


def reference_of(bench: Workbench) -> Reference:
    """Measure ordinary latents, drawn apart from the bank."""
    law, typical = bench.generator.latent, bench.ordinary_distance
    stream = random_stream(bench.seed, "dossier")
    ends = law.sample(_WAYS, generator=stream)
    starts = law.sample(_ORDINARY_LATENTS, generator=stream)
    walked = [walk(bench, z[None], law.sample(_ORDINARY_WAYS, generator=stream)) for z in starts]
    away = torch.cat([ways.away for ways in walked], 1)
    moved = torch.cat([ways.moved for ways in walked], 1)
    z = law.sample(_LIPSCHITZ_LATENTS, generator=stream).to(bench.device)
    steep = lipschitz(bench.generator, z, seed=bench.seed)
    return Reference(
        ends=ends,
        radius=float(torch.cat([ways.radii(typical / 2) for ways in walked]).mean()),
        profile=_line("ordinary latents", away, moved / typical),
        lipschitz=None if steep is None else _r(steep.median()),
        channels=_ordinary_channels(bench),
    )


def candidate_of(
    bench: Workbench, z: Tensor, inspection: str, reference: Reference | None = None
) -> Candidate:
    """The dossier of one latent.

    Args:
        z: any shape with as many elements as a latent; rounded to 6 decimals first, so that the
            numbers in the document are the ones that were measured.
        inspection: who found it.
        reference: of the same bench, if it is already known.

    Returns:
        A candidate without a command.
    """
    reference = reference or reference_of(bench)
    generator, typical = bench.generator, bench.ordinary_distance
    latent = [round(v, 6) for v in z.detach().cpu().double().flatten().tolist()]
    z = torch.tensor(latent).reshape(1, *generator.latent.shape)
    x = bench.samples(z)
    nearest = float((bench.ordinary.x - x).flatten(1).double().square().sum(1).min())
    ways = walk(bench, z, reference.ends)
    wall = lipschitz(
        generator,
        torch.cat([z, ways.first_beyond(nearest / 2)[:_WALL_POINTS]]).to(bench.device),
        seed=bench.seed,
    )
    pictures = sample_pictures(generator.sample, x, [""], title="Output")
    return Candidate(
        inspection=inspection,
        latent=latent,
        latent_norm=_r(z.norm() / generator.latent.typical_norm),
        output=pictures[0] if pictures else None,
        isolation=_r(nearest / typical),
        isolation_sum=_r(nearest),
        basin=Basin(
            ways=len(reference.ends),
            half_width=_r(ways.radii(nearest / 2).mean()),
            step_radius=_r(ways.radii(typical / 2).mean()),
            ordinary_radius=_r(reference.radius),
            lipschitz=None if wall is None else _r(wall[0]),
            wall_lipschitz=None if wall is None else _r(wall[1:].mean()),
            ordinary_lipschitz=reference.lipschitz,
        ),
        strips=_strips(bench, z, reference.ends),
        profile=Chart(
            title="How far the output moves on the way to ordinary latents",
            caption=f"Means over {len(reference.ends)} ways from the candidate, and over ways "
            "between ordinary latents.",
            style="line",
            x_label="distance of the latent, typical norms",
            y_label="output moved, ordinary distances",
            lines=[_line("candidate", ways.away, ways.moved / typical), reference.profile],
        ),
        carriers=_carriers(bench, z, reference.channels),
    )


def _strips(bench: Workbench, z: Tensor, ends: Tensor) -> list[Images]:
    """Through the candidate from one ordinary latent to another, and along a random direction."""
    law, spec = bench.generator.latent, bench.generator.sample
    left = [between(law, z, ends[:1], share) for share in reversed(_SHOWN_SHARES)]
    right = [between(law, z, ends[1:2], share) for share in _SHOWN_SHARES]
    shares = [*reversed(_SHOWN_SHARES), 0.0, *_SHOWN_SHARES]
    direction = torch.randn(z.shape, generator=random_stream(bench.seed, "dossier-direction"))
    direction = direction / direction.norm()
    line = torch.cat([z + step * law.typical_norm * direction for step in _SHOWN_STEPS])
    return [
        *sample_pictures(
            spec,
            bench.samples(torch.cat([*left, z, *right])),
            [f"{share:.0%}" if share else "candidate" for share in shares],
            title="From an ordinary latent through the candidate to another",
            caption="Share of the way from the candidate; 100 % is an ordinary latent.",
        ),
        *sample_pictures(
            spec,
            bench.samples(line),
            [f"{step:+g}" if step else "candidate" for step in _SHOWN_STEPS],
            title="Straight through the candidate in a random direction",
            caption="Distance from the candidate in typical norms.",
        ),
    ]


@torch.no_grad()
def _maxima(generator: LatentGenerator, sites: list[Site], z: Tensor) -> list[Tensor]:
    with watch(sites) as record:
        generator(z)
    return [unit_maxima(site, record[site.name]).cpu().double() for site in sites]


def _ordinary_channels(bench: Workbench) -> list[_Channels]:
    sites = weight_sites(bench.generator)
    parts = [
        _maxima(bench.generator, sites, z.to(bench.device))
        for z in bench.ordinary.z[:_ACTIVATION_LATENTS].split(BLOCK_SAMPLES)
    ]
    found = []
    for site, values in zip(sites, (torch.cat(p) for p in zip(*parts, strict=True)), strict=True):
        mean, std = values.mean(0), values.std(0)
        scale = std.clamp_min(max(_STILL * float(std.median()), 1e-9))
        furthest = ((values - mean) / scale).abs().amax(1)
        usual = float(furthest.quantile(0.99))
        found.append(_Channels(site, mean, scale, values.amin(0), values.amax(0), usual))
    return found


def _carriers(bench: Workbench, z: Tensor, channels: list[_Channels]) -> list[Carrier]:
    """The channels of each layer that lie furthest out, where further than usual."""
    sites = [layer.site for layer in channels]
    carriers = []
    for layer, values in zip(
        channels, _maxima(bench.generator, sites, z.to(bench.device)), strict=True
    ):
        deviation = (values[0] - layer.mean) / layer.scale
        for unit in deviation.abs().argsort(descending=True, stable=True)[:_CARRIERS_PER_LAYER]:
            if abs(float(deviation[unit])) > layer.usual:
                carriers.append(
                    Carrier(
                        layer=layer.site.name,
                        channel=int(unit),
                        value=_r(values[0, unit]),
                        ordinary_low=_r(layer.low[unit]),
                        ordinary_high=_r(layer.high[unit]),
                        deviation=_r(deviation[unit]),
                        usual_deviation=_r(layer.usual),
                    )
                )
    return carriers


def _line(name: str, away: Tensor, moved: Tensor) -> Line:
    x = [0.0, *(_r(v) for v in away.mean(1))]
    return Line(name=name, x=x, y=[0.0, *(_r(v) for v in moved.mean(1))])


def _r(value: Tensor | float) -> float:
    return float(f"{float(value):.6g}")
