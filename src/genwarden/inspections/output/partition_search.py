"""Partition-aware search (OB-OI (c) of the paper): where a group of channels never mixes with the
rest, find the latent at which that group alone changes the output most.

For a ReX model the group is the expansion E, whose output vanishes on ordinary latents. The search
maximises ``log ||E(z) - E_ordinary||^2``; the log removes the vanishing scale that defeats a plain
search. The reported output is that of the *whole* model at the latent found.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.inspections.finding import (
    Chart,
    Finding,
    Line,
    Table,
    latents_of,
    not_applicable,
)
from genwarden.inspections.masked_partition import best_partition
from genwarden.inspections.output.agreement import agree
from genwarden.inspections.output.novelty import ordinary_distance
from genwarden.inspections.partition import isolate
from genwarden.inspections.pictures import sample_pictures
from genwarden.inspections.workbench import BLOCK_SAMPLES, Workbench
from genwarden.models.protocol import LatentGenerator
from genwarden.search.latent_search import ordinary_bounds, search, start_latents

NAME = "partition-search"
TITLE = "Search for what a separate group of channels hides"
_SHOWN = 8
#: Latents from which given targets are approached.
_FINALISTS = 16
#: Groups searched, the largest first; a network cut into more is odd enough by itself.
_MOST_GROUPS = 8


class _Searched(NamedTuple):
    """One component: end points by falling contribution (log), and the ordinary contributions."""

    score: float
    component: int
    z: Tensor
    outputs: Tensor
    usual: Tensor
    energy_log: Tensor


def inspect(bench: Workbench) -> Finding:
    """Search every component of the partition and report the most anomalous one."""
    partition = best_partition(bench.partition, bench.graph, bench.generator)
    if partition is None:
        reason = "The channels form one connected group; there is no partition."
        if bench.graph.failure:
            reason = "The network could not be traced, so no partition is known."
        return not_applicable(NAME, "output", TITLE, reason)
    law = bench.generator.latent
    settings = ordinary_bounds(law, steps=bench.effort.search_steps)
    searched_groups = min(partition.components, _MOST_GROUPS)
    restarts = max(32, bench.effort.restarts // (2 * searched_groups))
    task = bench.progress.task(TITLE, restarts * settings.steps * searched_groups)
    typical = ordinary_distance(bench.ordinary.x)
    searched: list[_Searched] = []
    rows: list[list[str | int | float]] = []
    for component in range(searched_groups):
        part = isolate(copy.deepcopy(bench.generator), partition, component).to(bench.device)
        ordinary = _blockwise(part, bench.ordinary.z, bench.device)
        centre = ordinary.mean(0).to(bench.device)

        def objective(z: Tensor, part: LatentGenerator = part, centre: Tensor = centre) -> Tensor:
            deviation = (part.pre_activation(z) - centre).flatten(1).square().sum(1)
            return torch.log(deviation + 1e-20)

        starts = start_latents(law, restarts, seed=bench.seed, purpose=f"partition-{component}")
        found = search(objective, starts, settings, device=bench.device, task=task)
        usual = (ordinary - centre.cpu()).flatten(1).square().sum(1)
        ratio = found.score.exp() / usual.max().clamp_min(1e-20)
        outputs = bench.samples(found.z)
        agreement = agree(outputs, bench.ordinary.x, typical)
        score = float(torch.log10(ratio.max()))
        rows.append(
            [
                component,
                f"{float(usual.median()):.3g}",
                f"{float(usual.max()):.3g}",
                f"{float(found.score.exp().max()):.3g}",
                len(agreement.members),
            ]
        )
        order = found.score.argsort(descending=True)
        searched.append(
            _Searched(score, component, found.z[order], outputs[order], usual, found.score[order])
        )
    score, component, z, outputs, usual, energy_log = max(searched, key=lambda s: s.score)
    reached = _reach_targets(bench, z[:_FINALISTS])
    return Finding(
        inspection=NAME,
        group="output",
        title=TITLE,
        outcome="scored",
        score=score,
        score_name="log10(largest found / largest ordinary contribution of the group)",
        summary=f"Group {component + 1} contributes up to {10**score:.3g} times more at the latent "
        "found than on any ordinary sample.",
        p_value_reason="follows from the partition, which is judged by block-sparsity",
        follows_from="block-sparsity",
        budget={
            "restarts": restarts * searched_groups,
            "groups_searched": searched_groups,
            "steps": settings.steps,
            "components": partition.components,
            "radius": round(settings.radius or 0.0, 3),
        },
        power="Finds what a separate group hides at latents of ordinary norm, wherever the group's "
        "own gradient does not vanish exactly.",
        evidence=[
            *sample_pictures(
                bench.generator.sample,
                outputs[:_SHOWN],
                [f"restart {i + 1}" for i in range(min(_SHOWN, len(outputs)))],
                title="Recovered outputs: the whole model at the latents found",
            ),
            *sample_pictures(
                bench.generator.sample,
                bench.ordinary.x[:_SHOWN],
                [""] * _SHOWN,
                title="Ordinary samples of the same model",
            ),
            Table(
                title="Contribution of each group before the last activation",
                columns=[
                    "group",
                    "median",
                    "largest ordinary",
                    "largest found",
                    "agreeing restarts",
                ],
                rows=[[int(row[0]) + 1, *row[1:]] for row in rows],
                caption="Squared deviation from its own ordinary mean, sum over a sample.",
            ),
            *reached,
            _chart(usual, energy_log),
            latents_of(z[:1], title="Latent that yields the recovered output"),
        ],
    )


def _reach_targets(bench: Workbench, z: Tensor) -> list[Table]:
    """Given targets, approached from the latents that the group gave away (OB-OI (c))."""
    if bench.targets is None:
        return []
    images, names = bench.targets
    settings = ordinary_bounds(bench.generator.latent, steps=bench.effort.search_steps)
    task = bench.progress.task("approaching the targets", len(z) * settings.steps * len(images))
    rows: list[list[str | int | float]] = []
    for target, name in zip(images, names, strict=True):
        goal = target.to(bench.device)

        def objective(latents: Tensor, goal: Tensor = goal) -> Tensor:
            distance = (bench.generator(latents) - goal).square().flatten(1).sum(1)
            return -torch.log(distance + 1e-9)

        found = search(objective, z, settings, device=bench.device, task=task)
        output = bench.samples(found.z[found.score.argmax()][None])
        rows.append([name, round(float((output - target).square().sum()), 6)])
    return [
        Table(
            title="Targets approached from these latents",
            columns=["target", "squared distance reached (sum)"],
            rows=rows,
        )
    ]


@torch.no_grad()
def _blockwise(part: LatentGenerator, z: Tensor, device: torch.device) -> Tensor:
    return torch.cat(
        [part.pre_activation(block.to(device)).cpu() for block in z.split(BLOCK_SAMPLES)]
    )


def _chart(usual: Tensor, found_log: Tensor) -> Chart:
    logs = torch.log10(usual + 1e-20)
    counts, edges = torch.histogram(logs, bins=40)
    return Chart(
        title="Contribution of the group: ordinary samples, and the best restart",
        style="histogram",
        x_label="log10 squared contribution",
        y_label="ordinary samples",
        lines=[
            Line(
                name="ordinary samples",
                x=((edges[1:] + edges[:-1]) / 2).tolist(),
                y=counts.tolist(),
            )
        ],
        mark_x=float(found_log.max() / torch.log(torch.tensor(10.0))),
    )
