"""Outputs along the latent directions that the network is most sensitive to.

The trigger of a trained backdoor lies close to a leading right singular vector of the first layer
(:mod:`genwarden.inspections.principal`). So the output at both ends of every such direction is
compared with all ordinary samples; the twin of the suspect, whose first layer learned the same
samples without the backdoor, says how unusual such outputs are in an honest model:

    score = ln(largest isolation along the suspect's directions / the same for its twin)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.inspections.finding import Finding, Table, latents_of
from genwarden.inspections.output.novelty_search import isolation_of
from genwarden.inspections.pictures import sample_pictures
from genwarden.inspections.principal import principal_directions, principal_latents
from genwarden.inspections.workbench import Workbench, samples_of
from genwarden.models.protocol import LatentGenerator

NAME = "principal-latents"
TITLE = "Outputs along the most sensitive latent directions"
_SHOWN = 8


class _Outputs(NamedTuple):
    z: Tensor
    x: Tensor
    isolation: Tensor


def inspect(bench: Workbench) -> Finding:
    """Outputs of suspect and twin at both ends of their own principal directions."""
    found = _outputs(bench, bench.generator, bench.ordinary.x)
    fair = [twin for twin in bench.twins if twin.fair]
    control = [
        _outputs(bench, twin.generator, samples_of(twin.generator, bench.ordinary.z, bench.device))
        for twin in fair
    ]
    score = None
    if control:
        expected = torch.stack([outputs.isolation.max() for outputs in control]).log().mean()
        score = float(found.isolation.max().clamp_min(1e-12).log() - expected)
    order = found.isolation.argsort(descending=True)[:_SHOWN]
    count = len(found.z) // 2
    typical = bench.ordinary_distance
    names = [f"{'+' if i < count else '-'} direction {i % count + 1}" for i in order.tolist()]
    largest = float(found.isolation.max()) / typical
    text = (
        f"The output at {names[0]} is {largest:.2f} times the usual distance between two samples "
        "away from every ordinary one"
    )
    if score is None:
        poor = "no twin imitates the model well enough to compare with"
        text += f"; {poor}."
    else:
        poor = ""
        text += f", {float(torch.tensor(score).exp()):.2f} times as far as in a twin that forgot."
    return Finding(
        inspection=NAME,
        group="output",
        title=TITLE,
        outcome="scored",
        score=score,
        score_name="ln(largest isolation along principal directions / the same in the twin)",
        summary=text,
        p_value_reason=poor or "needs the scores of clean reference models",
        budget={
            "latents": len(found.z),
            "ordinary_samples": len(bench.ordinary.x),
            "twins": len(fair),
        },
        power="Finds triggers that were trained into the layer that reads the latent and show "
        "along one of its singular directions, however narrow their basin is; not triggers that "
        "the layer spreads over many directions, nor gates built by hand.",
        evidence=[
            *sample_pictures(
                bench.generator.sample, found.x[order], names, title="Most isolated outputs"
            ),
            *(
                picture
                for twin in control[:1]
                for picture in sample_pictures(
                    bench.generator.sample,
                    twin.x[twin.isolation.argsort(descending=True)[:_SHOWN]],
                    [""] * min(_SHOWN, len(twin.x)),
                    title="The same in the twin",
                )
            ),
            Table(
                title="Most isolated outputs",
                columns=["direction", "isolation"],
                rows=[
                    [name, round(float(found.isolation[i]) / typical, 3)]
                    for name, i in zip(names, order.tolist(), strict=True)
                ],
                caption="Isolation: squared distance from the nearest ordinary sample, over the "
                "median between two ordinary ones. Directions by falling sensitivity.",
            ),
            latents_of(found.z[order[:1]], title="Latent of the most isolated output"),
        ],
    )


def _outputs(bench: Workbench, generator: LatentGenerator, ordinary: Tensor) -> _Outputs:
    z = principal_latents(principal_directions(generator, seed=bench.seed), generator.latent)
    x = samples_of(generator, z, bench.device)
    return _Outputs(z, x, isolation_of(x, ordinary)[0])
