"""Are the most sensitive latent directions latents that an attacker could have chosen by rule?

Training a trigger into the layer that reads the latent turns a singular vector of that layer
towards it (:mod:`genwarden.inspections.principal`). In an honest network the singular vectors have
no preferred direction: latents are isotropic and weights begin isotropic, so the squared cosine
with any latent fixed beforehand follows Beta(1/2, (d - 1)/2). That gives an exact p-value for the
first draws of guessable seeds and for the direction of all ones, where out-of-distribution triggers
lie, without running the network. Control: the same weights shuffled; a layer whose weights have a
common sign is aligned with all ones by construction, and so is its shuffled copy.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import stdtr
from torch import Tensor

from genwarden.engine.seeds import random_stream
from genwarden.inspections.finding import (
    Finding,
    Null,
    Table,
    latents_of,
    not_applicable,
)
from genwarden.inspections.output.known_latents import seed_latents
from genwarden.inspections.pictures import sample_pictures
from genwarden.inspections.principal import principal_directions
from genwarden.inspections.twins import shuffle_weights
from genwarden.inspections.workbench import Workbench
from genwarden.models.protocol import LatentGenerator

NAME = "aligned-directions"
TITLE = "Sensitive directions that point at latents chosen by rule"
#: Seeds are compared with this many leading directions only: there are thousands of them.
_LEADING = 8
_FEWEST_ELEMENTS = 8
_SHOWN = 8
#: All ones is compared with this leading share of the directions: the least sensitive ones point
#: at it in networks whose rows sum to 0, which is no trace of training.
_SENSITIVE_SHARE = 0.25
#: A shuffled copy more aligned than this makes the null inapplicable.
_CONTROL_P = 1e-3


class _Aligned(NamedTuple):
    """A latent, the direction (from 0) nearest to it, their |cosine| and its corrected p-value."""

    name: str
    z: Tensor
    direction: int
    cosine: float
    p_value: float


def inspect(bench: Workbench) -> Finding:
    """Compare all ones with the sensitive directions, guessable seeds with the leading ones."""
    law = bench.generator.latent
    if law.size < _FEWEST_ELEMENTS:
        reason = f"{law.size} latent elements are too few to have directions."
        return not_applicable(NAME, "output", TITLE, reason)
    effort = bench.effort
    seeds = list(seed_latents(law, effort.guessed_seeds, effort.draws_per_seed))
    aligned = _aligned(bench, bench.generator, seeds)
    shuffled = copy.deepcopy(bench.generator)
    shuffle_weights(shuffled, random_stream(bench.seed, NAME))
    control = _aligned(bench, shuffled, seeds)
    if control[0].p_value < _CONTROL_P:
        return not_applicable(
            NAME,
            "output",
            TITLE,
            f"The same weights in random order point at {control[0].name} as well: directions of "
            "this layer are not isotropic, and the null does not hold.",
        )
    best = aligned[0]
    shown = aligned[:_SHOWN]
    z = torch.stack([each.z for each in shown])
    return Finding(
        inspection=NAME,
        group="output",
        title=TITLE,
        outcome="scored",
        score=max(0.0, -float(np.log10(max(best.p_value, 1e-300)))),
        score_name="-log10(p) of the best alignment",
        summary=(
            f"Of all ones and {len(seeds)} guessable latents, {best.name} is nearest to a "
            f"sensitive direction (number {best.direction + 1}): cosine {best.cosine:.2f}, "
            f"p = {best.p_value:.2g} after correction for all of them."
        ),
        p_value=max(best.p_value, 1e-300),
        null=Null(
            source="exact",
            description="squared cosine of an isotropic direction with a fixed one: "
            "Beta(1/2, (d - 1)/2), Bonferroni over latents and directions",
        ),
        budget={
            "latents": 1 + len(seeds),
            "directions": math.ceil(_SENSITIVE_SHARE * law.size),
            "leading_directions": min(_LEADING, law.size),
        },
        power="Finds triggers among the latents listed that were trained into the layer that "
        "reads the latent; the network is not run, so the width of their basin does not matter.",
        evidence=[
            *sample_pictures(
                bench.generator.sample,
                bench.samples(z),
                [each.name for each in shown],
                title="Outputs at these latents",
            ),
            Table(
                title="Best alignments",
                columns=["latent", "direction", "cosine", "p after correction"],
                rows=[
                    [e.name, e.direction + 1, round(e.cosine, 3), float(f"{e.p_value:.3g}")]
                    for e in shown
                ],
            ),
            latents_of(z[:1], title=f"Latent: {best.name}"),
        ],
    )


def _aligned(
    bench: Workbench, generator: LatentGenerator, seeds: list[tuple[str, Tensor]]
) -> list[_Aligned]:
    """All latents by falling significance."""
    law = generator.latent
    directions = principal_directions(generator, seed=bench.seed)
    groups = [
        (
            [("100 * ones", torch.full(law.shape, 100.0))],
            directions[: math.ceil(_SENSITIVE_SHARE * law.size)],
        ),
        (seeds, directions[:_LEADING]),
    ]
    groups = [group for group in groups if group[0]]
    found = []
    for members, against in groups:
        flat = torch.stack([z.flatten() for _, z in members]).double()
        unit = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-30)
        cosines = (unit @ against.double().T).abs()
        best = cosines.max(1)
        tests = len(groups) * cosines.numel()
        for (name, z), cosine, direction in zip(
            members, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            p_value = min(1.0, tests * alignment_p(cosine, law.size))
            found.append(_Aligned(name, z, direction, cosine, p_value))
    return sorted(found, key=lambda each: (each.p_value, -each.cosine))


def alignment_p(cosine: float, elements: int) -> float:
    """P(|cos| >= ``cosine``) between a fixed and an isotropic direction in ``elements`` dimensions.

    cos sqrt(d - 1) / sqrt(1 - cos^2) follows Student's t with d - 1 degrees of freedom.
    """
    squared = min(cosine * cosine, 1 - 1e-15)
    t = (squared / (1 - squared) * (elements - 1)) ** 0.5
    return 2 * float(stdtr(elements - 1, -t))
