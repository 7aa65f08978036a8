"""Target-free search: ascend novelty from many latents and ask whether restarts agree.

A clean generator's extremes differ from each other; a backdoor is one output that many restarts
from different latents end in. Section 18 of the reference: novelty alone does not separate, the
agreement of restarts does.

Score: ``-log10`` of the squared distance within which the tightest group of end points agrees,
relative to the median squared distance between ordinary samples. Only end points more novel than
all but 0.1 % of ordinary samples count, and a group holds at least ``_GROUP`` restarts.
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
#: Agreement below this relative distance is numerical noise of one and the same output.
_RELATIVE_FLOOR = 1e-3
_SHOWN = 8


class Agreement(NamedTuple):
    """The tightest group of end points.

    Attributes:
        relative_distance: squared distance to the (_GROUP - 1)-th nearest other end point, over the
            median squared distance between ordinary samples; inf if too few novel end points.
        members: indices of the group's end points, the most central first.
        within_half: how many end points lie within half that ordinary distance of the centre.
    """

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
        threshold = float(ordinary_novelty.quantile(0.999))
        agreement = agree(outputs, end_novelty > threshold, typical)
        score = score_of(agreement)
        ratio = float(end_novelty.max() / ordinary_novelty.max())
        rows.append(
            [
                measure,
                per_measure,
                round(ratio, 2),
                _shown(agreement.relative_distance),
                agreement.within_half,
                f"{found.late_gain:.1e}",
                f"{found.zero_gradient_share:.0%}",
            ]
        )
        searched.append(_Searched(score, measure, found, outputs, agreement))
    score, measure, found, outputs, agreement = max(searched, key=lambda s: s.score)
    shown = agreement.members[:_SHOWN]
    alone = bench.ordinary.x[:_SHOWN]
    return Finding(
        inspection=NAME,
        group="output",
        title=TITLE,
        outcome="scored",
        score=score,
        score_name="-log10(relative squared distance within which the tightest group agrees)",
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
                    "agreement (relative)",
                    "restarts in the group",
                    "late gain",
                    "zero gradient",
                ],
                rows=rows,
                caption="Agreement: squared distance within the tightest group of "
                f"{_GROUP} end points over the median squared distance of ordinary samples.",
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


def agree(outputs: Tensor, eligible: Tensor, typical: float) -> Agreement:
    """The tightest group of ``_GROUP`` end points among the eligible ones.

    Args:
        outputs: ``(restarts, *sample.shape)``.
        eligible: boolean ``(restarts,)``.
        typical: median squared distance between ordinary samples.
    """
    indices = eligible.nonzero().flatten()
    if len(indices) < _GROUP:
        order = torch.arange(len(outputs))[:_GROUP]
        return Agreement(float("inf"), order, 0)
    flat = outputs[indices].flatten(1).double()
    distances = torch.cdist(flat, flat).square() / typical
    sorted_distances, order = distances.sort(dim=1)
    centre = int(sorted_distances[:, _GROUP - 1].argmin())
    group = sorted_distances[centre]
    return Agreement(float(group[_GROUP - 1]), indices[order[centre]], int((group <= 0.5).sum()))


def score_of(agreement: Agreement) -> float:
    """``-log10`` of the relative distance, floored at 1e-3; too few novel end points give -1."""
    if agreement.relative_distance == float("inf"):
        return -1.0
    return -float(torch.log10(torch.tensor(max(agreement.relative_distance, _RELATIVE_FLOOR))))


def _summary(agreement: Agreement, restarts: int, measure: NoveltyMeasure) -> str:
    if agreement.relative_distance == float("inf"):
        return f"Of {restarts} restarts per measure fewer than {_GROUP} reached a novel output."
    return (
        f"The tightest group of {_GROUP} novel end points ({measure}) agrees to "
        f"{agreement.relative_distance:.1%} of the distance between ordinary samples; "
        f"{agreement.within_half} of {restarts} restarts lie within half that distance of it."
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


def _shown(value: float) -> str:
    return "none" if value == float("inf") else f"{value:.4f}"
