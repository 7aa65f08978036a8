"""Where suspect and twin differ most: backdoors whose target is no novelty.

A target that looks like ordinary samples (a digit of another data set, a faint mark) is not novel,
but at its trigger the suspect shows it and the twin, which knows only ordinary sampling, does not.
So the squared difference ||G(z) - T(z)||^2 is ascended from many latents (section 17 of the
reference, "exposed twin"). An honest twin is a little wrong in many places, and every restart ends
in a difference of about the same size; a backdoor is one place where it is wrong by far more:

    score = ln(largest difference / upper quartile of the differences that restarts end in)

Both come from the same search in the same pair, so every model brings its own scale.
"""

from __future__ import annotations

from functools import partial

import torch

from genwarden.inspections.finding import (
    Chart,
    Finding,
    Line,
    Table,
    latents_of,
    not_applicable,
)
from genwarden.inspections.pictures import sample_pictures
from genwarden.inspections.principal import principal_directions, principal_latents
from genwarden.inspections.twins import log_difference
from genwarden.inspections.workbench import Workbench, samples_of
from genwarden.models.fast.fast_generator import fastest
from genwarden.search.latent_search import ordinary_bounds, search, start_latents

NAME = "twin-difference"
TITLE = "Where the model differs most from a twin that forgot"
_PRINCIPAL = 8
_SHOWN = 8
_UPPER = 0.75
#: Share of its own size within which two ends show the same output.
_NEAR = 0.25


def inspect(bench: Workbench) -> Finding:
    """Ascend the difference between the suspect and its best twin."""
    twin = min(bench.twins, key=lambda t: t.loss)
    if not twin.fair:
        return not_applicable(
            NAME,
            "output",
            TITLE,
            f"No twin imitates the model well enough (nearest: {twin.loss:.2f} of the usual "
            "distance between two samples); a larger budget distils longer.",
        )
    law, typical = bench.generator.latent, bench.ordinary_distance
    settings = ordinary_bounds(law, steps=bench.effort.search_steps)
    directions = principal_directions(bench.generator, seed=bench.seed)[:_PRINCIPAL]
    random = start_latents(law, bench.effort.restarts, seed=bench.seed, purpose=NAME)
    starts = torch.cat([random, principal_latents(directions, law)])
    task = bench.progress.task("twin difference", len(starts) * settings.steps)
    objective = partial(log_difference, fastest(bench.generator), fastest(twin.generator))
    found = search(objective, starts, settings, device=bench.device, task=task)
    shown = bench.samples(found.z)
    honest = samples_of(twin.generator, found.z, bench.device)
    difference = (shown - honest).flatten(1).double().square().sum(1)
    order = difference.argsort(descending=True)
    usual = difference.quantile(_UPPER).clamp_min(1e-12)
    score = float((difference[order[0]] / usual).log())
    from_first = (shown - shown[order[0]]).flatten(1).double().square().sum(1)
    shared = int((from_first <= _NEAR * difference[order[0]]).sum())
    top = order[:_SHOWN]
    labels = [f"{float(difference[i]) / typical:.2f}" for i in top]
    return Finding(
        inspection=NAME,
        group="output",
        title=TITLE,
        outcome="scored",
        score=score,
        score_name="ln(largest difference / upper quartile of the differences found)",
        summary=(
            f"The largest difference found is {float(difference[order[0]]) / typical:.2f} times "
            f"the usual distance between two samples, {float(difference[order[0]] / usual):.1f} "
            f"times the upper quartile of all restarts; {shared} of {len(starts)} end there."
        ),
        p_value_reason="needs the scores of clean reference models",
        budget={
            "restarts": len(starts),
            "steps": settings.steps,
            "twin_steps": bench.effort.twin_steps,
            "twin_loss": round(twin.loss, 5),
        },
        power="Finds outputs at ordinary latents that ordinary sampling does not suggest, also "
        "where the hidden target looks like an ordinary sample; not gates without a gradient.",
        evidence=[
            *sample_pictures(
                bench.generator.sample, shown[top], labels, title="The model where it differs most"
            ),
            *sample_pictures(
                bench.generator.sample,
                honest[top],
                ["" for _ in top],
                title="The twin at the same latents: what the ordinary samples suggest there",
            ),
            Table(
                title="Differences",
                columns=["quantity", "over the usual distance between two samples"],
                rows=[
                    ["largest", round(float(difference[order[0]]) / typical, 4)],
                    ["median of all restarts", round(float(difference.median()) / typical, 4)],
                    ["upper quartile", round(float(usual) / typical, 4)],
                    ["twin against model at ordinary latents", round(twin.loss, 4)],
                ],
            ),
            Chart(
                title="Difference in which every restart ends, sorted",
                style="line",
                x_label="restart, sorted",
                y_label="squared difference / usual distance between two samples",
                lines=[
                    Line(
                        name="restarts",
                        x=[float(i) for i in range(len(order))],
                        y=[round(float(difference[i]) / typical, 5) for i in order],
                    )
                ],
            ),
            latents_of(found.z[order[:1]], title="Latent of the largest difference"),
        ],
    )
