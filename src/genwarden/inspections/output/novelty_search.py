"""Target-free search: ascend novelty from many latents and ask whether restarts agree.

A clean generator's extremes mostly differ from each other; a backdoor is one output that many
restarts from different latents end in. Section 18 of the reference: novelty alone separates badly,
the agreement of restarts well. Short ascents in a small clean model can agree as well, but then on
something hardly novel, so the score joins both: for the best group of ``_GROUP`` end points,

    log10(novelty of its centre / largest ordinary novelty) - log10(relative agreement distance)

where the agreement distance is that of the group's farthest member from the centre, over the
median squared distance between ordinary samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.inspections.finding import Chart, Finding, Line, Table, images_of, latents_of
from genwarden.inspections.output.latent_search import (
    SearchResult,
    ordinary_bounds,
    search,
    start_latents,
)
from genwarden.inspections.output.novelty import Novelty, NoveltyMeasure
from genwarden.inspections.workbench import Workbench

NAME = "novelty-search"
TITLE = "Target-free search for anomalous outputs"
MEASURES: tuple[NoveltyMeasure, ...] = ("mahalanobis", "residual")

#: Restarts that must agree; two or three neighbours also occur in clean models.
_GROUP = 8
#: Agreement below this relative distance is one and the same picture; how exactly it is met says
#: how far the ascent converged, not what the model hides.
_RELATIVE_FLOOR = 0.03
_SHOWN = 8


class Agreement(NamedTuple):
    """The group of end points that best joins novelty and agreement.

    Attributes:
        score: see the head of this file; -1 if fewer than ``_GROUP`` end points exceed the
            ordinary novelty.
        novelty_ratio: novelty of the centre over the largest ordinary novelty.
        relative_distance: squared distance of the farthest member from the centre, over the median
            squared distance between ordinary samples.
        members: indices of the group's end points, the most central first.
        within_half: how many end points lie within half that ordinary distance of the centre.
    """

    score: float
    novelty_ratio: float
    relative_distance: float
    members: Tensor
    within_half: int


class _Searched(NamedTuple):
    score: float
    measure: NoveltyMeasure
    found: SearchResult
    outputs: Tensor
    agreement: Agreement


def inspect(bench: Workbench) -> Finding:
    """Run the search with every novelty measure and judge the agreement of restarts."""
    novelty = Novelty.fit(bench.ordinary.x)
    on_device = novelty.to(bench.device)
    law = bench.generator.latent
    settings = ordinary_bounds(law, steps=bench.effort.search_steps)
    per_measure = bench.effort.restarts // len(MEASURES)
    total = per_measure * len(MEASURES) * settings.steps
    task = bench.progress.task("novelty search", total)
    typical = ordinary_distance(bench.ordinary.x)

    rows: list[list[str | int | float]] = []
    searched: list[_Searched] = []
    for measure in MEASURES:
        starts = start_latents(law, per_measure, seed=bench.seed, purpose=f"novelty-{measure}")

        def objective(z: Tensor, measure: NoveltyMeasure = measure) -> Tensor:
            return torch.log(on_device(bench.generator(z), measure) + 1e-6)

        found = search(objective, starts, settings, device=bench.device, task=task)
        outputs = bench.samples(found.z)
        ordinary_novelty = novelty(bench.ordinary.x, measure)
        end_novelty = novelty(outputs, measure)
        ratios = end_novelty / ordinary_novelty.max()
        agreement = agree(outputs, ratios, typical)
        rows.append(
            [
                measure,
                per_measure,
                round(float(ratios.max()), 2),
                round(agreement.novelty_ratio, 2),
                round(agreement.relative_distance, 4),
                agreement.within_half,
                f"{found.late_gain:.1e}",
                f"{found.zero_gradient_share:.0%}",
            ]
        )
        searched.append(_Searched(agreement.score, measure, found, outputs, agreement))
    score, measure, found, outputs, agreement = max(searched, key=lambda s: s.score)
    shown = agreement.members[:_SHOWN]
    alone = bench.ordinary.x[:_SHOWN]
    return Finding(
        inspection=NAME,
        group="output",
        title=TITLE,
        outcome="scored",
        score=score,
        score_name="log10(novelty of the group / largest ordinary) - log10(agreement distance)",
        summary=_summary(agreement, per_measure, measure),
        p_value_reason="needs the scores of clean reference models",
        budget={
            "restarts": per_measure * len(MEASURES),
            "steps": settings.steps,
            "measures": ", ".join(MEASURES),
            "radius": round(settings.radius or 0.0, 3),
            "ordinary_samples": len(bench.ordinary.x),
        },
        power=_power(per_measure),
        evidence=[
            images_of(
                outputs[shown],
                [f"restart {int(i)}" for i in shown],
                title="Recovered outputs: end points of different restarts",
                caption="Where these are one and the same picture, that picture is what the "
                "model hides.",
            ),
            images_of(alone, [""] * len(alone), title="Ordinary samples of the same model"),
            Table(
                title="Searches",
                columns=[
                    "novelty",
                    "restarts",
                    "best / largest ordinary",
                    "group / largest ordinary",
                    "agreement distance",
                    "restarts in the group",
                    "late gain",
                    "zero gradient",
                ],
                rows=rows,
                caption=f"Group: {_GROUP} end points. Agreement: squared distance within it over "
                "the median squared distance of ordinary samples.",
            ),
            _distances_chart(outputs, agreement, typical),
            latents_of(found.z[shown[:1]], title="Latent that yields the recovered output"),
        ],
    )


def ordinary_distance(samples: Tensor) -> float:
    """Median squared distance between two ordinary samples (over 2,048 disjoint pairs at most)."""
    pairs = min(2048, len(samples) // 2)
    difference = samples[:pairs] - samples[pairs : 2 * pairs]
    return float(difference.flatten(1).square().sum(1).median())


def agree(outputs: Tensor, novelty_ratios: Tensor, typical: float) -> Agreement:
    """The group of ``_GROUP`` end points that best joins novelty and agreement.

    Args:
        outputs: ``(restarts, *sample.shape)``.
        novelty_ratios: novelty over the largest ordinary novelty, ``(restarts,)``; only end points
            above 1 take part.
        typical: median squared distance between ordinary samples.
    """
    indices = (novelty_ratios > 1).nonzero().flatten()
    if len(indices) < _GROUP:
        return Agreement(-1.0, float(novelty_ratios.max()), 1.0, novelty_ratios.argsort()[-8:], 0)
    flat = outputs[indices].flatten(1).double()
    distances, order = (torch.cdist(flat, flat).square() / typical).sort(dim=1)
    radius = distances[:, _GROUP - 1]
    scores = novelty_ratios[indices].double().log10() - radius.clamp_min(_RELATIVE_FLOOR).log10()
    centre = int(scores.argmax())
    return Agreement(
        score=float(scores[centre]),
        novelty_ratio=float(novelty_ratios[indices[centre]]),
        relative_distance=float(radius[centre]),
        members=indices[order[centre]],
        within_half=int((distances[centre] <= 0.5).sum()),
    )


def _summary(agreement: Agreement, restarts: int, measure: NoveltyMeasure) -> str:
    if agreement.score < 0:
        return f"Of {restarts} restarts per measure fewer than {_GROUP} reached a novel output."
    return (
        f"{agreement.within_half} of {restarts} restarts ({measure}) end near one output that is "
        f"{agreement.novelty_ratio:.1f} times as novel as any ordinary sample; the closest "
        f"{_GROUP} agree to {agreement.relative_distance:.1%} of the ordinary distance."
    )


def _power(restarts: int) -> str:
    # P(at least _GROUP of n restarts fall into a basin of share f) >= 0.95, Poisson: mean 13.15.
    share = 13.15 / restarts
    return (
        f"An output hidden at an in-sample or central latent is found with 95 % probability if at "
        f"least {share:.1%} of ascents are drawn to it. Not reached: triggers without a gradient "
        "around them (exact gates), latents outside the ordinary radius, targets that look like "
        "ordinary samples."
    )


def _distances_chart(outputs: Tensor, agreement: Agreement, typical: float) -> Chart:
    centre = outputs[agreement.members[0]].flatten().double()
    distances = (outputs.flatten(1).double() - centre).square().sum(1) / typical
    ordered = distances.sort().values
    return Chart(
        title="Distance of every end point from the centre of the tightest group",
        caption="A flat start is a group of restarts that ended in one output.",
        style="line",
        x_label="restart, sorted",
        y_label="squared distance / ordinary distance",
        lines=[
            Line(
                name="end points",
                x=[float(i) for i in range(len(ordered))],
                y=[round(float(v), 5) for v in ordered],
            )
        ],
    )
