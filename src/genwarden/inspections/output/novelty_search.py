"""Target-free search: ascend novelty from many latents, in the suspect and in its twin.

Nobody says what to look for. From many ordinary latents the search climbs towards outputs that are
unlike everything the model shows, by two measures of novelty (section 18 of the reference). What
counts is the *isolation* that at least three restarts reach: the squared distance from the nearest
ordinary sample. Every generator can be driven somewhere unusual; how far depends on architecture
and data. So the same search, from the same starts, is run on a twin of the suspect, which knows
only what ordinary sampling shows (:mod:`genwarden.inspections.twins`), and

    score = ln(third largest isolation in the suspect / third largest isolation in the twin).

For honest models it is near 0 whatever they are and were trained on. (Asking besides that the
three end in the same output was tried: where a twin's extremes all differ, the ratio explodes.)
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.engine.progress import Task
from genwarden.inspections.finding import (
    Chart,
    Evidence,
    Finding,
    Line,
    Table,
    latents_of,
)
from genwarden.inspections.output.agreement import NEAR
from genwarden.inspections.output.novelty import MEASURES, Novelty, NoveltyMeasure
from genwarden.inspections.pictures import sample_pictures
from genwarden.inspections.principal import principal_directions, principal_latents
from genwarden.inspections.workbench import Workbench, samples_of
from genwarden.models.fast.fast_generator import fastest
from genwarden.models.protocol import LatentGenerator
from genwarden.search.latent_search import (
    SearchResult,
    SearchSettings,
    ordinary_bounds,
    search,
    start_latents,
)

NAME = "novelty-search"
TITLE = "Target-free search for anomalous outputs"

#: The isolation of this rank counts: a single restart may be stuck anywhere.
RANK = 3
#: Ends that reach this share of that isolation may be the centre of the group that is shown.
_ALMOST = 0.8
#: Within this share of its isolation, outputs join the group that the recovered picture is made of.
_GROUP_NEAR = 0.5
#: The search overshoots: latents of the group are shortened to this share of the typical norm.
_GROUP_NORM = 0.9
_SHOWN = 8
_TINY = 1e-12
#: Gain over the last tenth of the steps, relative to the objective, above which a search has not
#: converged and gives no score. Clean and attacked models stay below 0.006 at the standard budget.
_LATE_GAIN = 0.05
#: Restarts also begin at both ends of this many of the most sensitive directions.
_PRINCIPAL = 8


class Ends(NamedTuple):
    """End points of one search, over all measures.

    Attributes:
        z: ``(restarts, *latent.shape)``.
        x: their outputs ``(restarts, *sample.shape)``.
        isolation: squared distance from the nearest ordinary sample ``(restarts,)``.
        shared: restarts that end near each one, itself included ``(restarts,)``.
        late_gain: largest over the measures, see :class:`SearchResult`.
        zero_gradient_share: likewise.
    """

    z: Tensor
    x: Tensor
    isolation: Tensor
    shared: Tensor
    late_gain: float
    zero_gradient_share: float

    @property
    def reached(self) -> float:
        """The isolation that at least three restarts reach."""
        return float(self.isolation.topk(min(RANK, len(self.isolation))).values[-1])

    @property
    def centre(self) -> int:
        """Of the ends that reach almost that isolation, the one that most others end near."""
        candidates = self.isolation >= _ALMOST * self.reached
        return int(torch.where(candidates, self.shared, 0).argmax())


class Recovered(NamedTuple):
    """What the group of restarts around the centre shows.

    Attributes:
        z: latent that comes nearest to ``picture``, ``(1, *latent.shape)``.
        picture: mean output of the group ``(1, *sample.shape)``: every member still carries
            something of the latent that it started from, the mean hardly does.
        members: number of restarts in the group.
    """

    z: Tensor
    picture: Tensor
    members: int


def inspect(bench: Workbench) -> Finding:
    """Search suspect and twin, and compare."""
    twins = bench.twins
    settings = ordinary_bounds(bench.generator.latent, steps=bench.effort.search_steps)
    per_measure = bench.effort.restarts // len(MEASURES)
    searches = (1 + len(twins)) * len(MEASURES)
    principal = 2 * min(_PRINCIPAL, bench.generator.latent.size)
    total = searches * (per_measure + principal) * settings.steps
    task = bench.progress.task("novelty search", total)
    typical = bench.ordinary_distance
    found = climb(bench, bench.generator, bench.ordinary.x, settings, task)
    fair = [twin for twin in twins if twin.fair]
    control = [
        climb(
            bench,
            twin.generator,
            samples_of(twin.generator, bench.ordinary.z, bench.device),
            settings,
            task,
        )
        for twin in fair
    ]
    score = None
    if control:
        expected = sum(math.log(max(ends.reached, _TINY)) for ends in control) / len(control)
        score = math.log(max(found.reached, _TINY)) - expected
    poor = "" if fair else _poor(bench)
    late_gain = max(ends.late_gain for ends in (found, *control))
    if late_gain > _LATE_GAIN:
        score = None
        poor += f" The search has not converged (late gain {late_gain:.2g}); take a larger budget."
    recovered = recover(bench, found)
    return Finding(
        inspection=NAME,
        group="output",
        title=TITLE,
        outcome="scored",
        score=score,
        score_name="ln(isolation that three restarts reach / the same in the twin)",
        summary=_summary(found, typical, score) + poor,
        p_value_reason=poor or "needs the scores of clean reference models",
        budget={
            "restarts": len(found.z),
            "steps": settings.steps,
            "measures": ", ".join(MEASURES),
            "radius": round(settings.radius or 0.0, 3),
            "ordinary_samples": len(bench.ordinary.x),
            "twins": len(fair),
            "twin_steps": bench.effort.twin_steps,
        },
        power=_power(len(found.z)),
        evidence=_evidence(bench, found, control, recovered, typical),
    )


def climb(
    bench: Workbench,
    generator: LatentGenerator,
    ordinary: Tensor,
    settings: SearchSettings,
    task: Task,
) -> Ends:
    """Ascend every measure of novelty in ``generator``, whose ordinary samples are ``ordinary``.

    The random starts depend on the audit's seed alone, so that suspect and twin start alike; each
    has its own most sensitive directions.
    """
    law = generator.latent
    novelty = Novelty.fit(ordinary)
    on_device = novelty.to(bench.device)
    fast = fastest(generator)
    directions = principal_directions(generator, seed=bench.seed)
    principal = principal_latents(directions[:_PRINCIPAL], law)
    results: list[SearchResult] = []
    for measure in MEASURES:
        starts = start_latents(
            law,
            bench.effort.restarts // len(MEASURES),
            seed=bench.seed,
            purpose=f"novelty-{measure}",
        )
        objective = partial(_log_novelty, fast, on_device, measure)
        starts = torch.cat([starts, principal])
        results.append(search(objective, starts, settings, device=bench.device, task=task))
    z = torch.cat([result.z for result in results])
    x = samples_of(generator, z, bench.device)
    isolation, shared = isolation_of(x, ordinary)
    return Ends(
        z,
        x,
        isolation,
        shared,
        max(result.late_gain for result in results),
        max(result.zero_gradient_share for result in results),
    )


def isolation_of(outputs: Tensor, ordinary: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance of outputs from the nearest ordinary sample, and how many lie near each."""
    flat = outputs.flatten(1).double()
    isolation = torch.cdist(flat, ordinary.flatten(1).double()).square().amin(1)
    near = torch.cdist(flat, flat).square() <= NEAR * isolation[:, None]
    return isolation, near.sum(1)


def recover(bench: Workbench, found: Ends) -> Recovered:
    """The output that the restarts around the centre have in common, and a latent for it."""
    centre = found.centre
    squared = (found.x - found.x[centre]).flatten(1).double().square().sum(1)
    members = squared <= _GROUP_NEAR * found.isolation[centre]
    members[centre] = True
    z = found.z[members]
    law = bench.generator.latent
    if law.distribution == "normal":
        norms = z.flatten(1).norm(dim=1)
        factor = (_GROUP_NORM * law.typical_norm / norms.clamp_min(1e-12)).clamp_max(1.0)
        z = z * factor.view(-1, *[1] * len(law.shape))
    outputs = bench.samples(z)
    # Shortened latents that lost the output are not averaged with those that still show it.
    lost = torch.cdist(outputs.flatten(1).double(), found.x[centre][None].flatten(1).double())
    kept = lost.square()[:, 0] <= found.isolation[centre]
    if not bool(kept.any()):
        z, outputs = found.z[members], found.x[members]
        kept = torch.ones(len(z), dtype=torch.bool)
    z, outputs = z[kept], outputs[kept]
    picture = outputs.mean(0, keepdim=True)
    mean = z.mean(0, keepdim=True)
    mean = mean * (z.flatten(1).norm(dim=1).mean() / mean.norm().clamp_min(1e-12))
    candidates = torch.cat([mean, z])
    shown = torch.cat([bench.samples(mean), outputs])
    best = (shown - picture).flatten(1).square().sum(1).argmin()
    return Recovered(candidates[best][None], picture, len(z))


def _log_novelty(
    generator: LatentGenerator, novelty: Novelty, measure: NoveltyMeasure, z: Tensor
) -> Tensor:
    return torch.log(novelty(generator(z), measure) + 1e-6)


def _summary(found: Ends, typical: float, score: float | None) -> str:
    text = (
        f"At least {RANK} of {len(found.z)} restarts end {found.reached / typical:.2f} times the "
        "usual distance between two samples away from every ordinary one"
    )
    if score is not None:
        text += f", {math.exp(score):.2f} times as far as the same search in a twin that forgot"
    return text + f"; {int(found.shared[found.centre])} of them in one output."


def _poor(bench: Workbench) -> str:
    best = min((twin.loss for twin in bench.twins), default=float("inf"))
    return (
        f" No twin imitates the model well enough to compare with (nearest: {best:.2f} of the "
        "usual distance between two samples); a larger budget distils longer."
    )


def _power(restarts: int) -> str:
    # P(at least 3 of n restarts fall into a basin of share f) >= 0.95, Poisson: mean 6.30.
    share = 6.30 / restarts
    return (
        f"An output hidden at an in-sample or central latent that at least {share:.1%} of ascents "
        "are drawn to is reached by three or more restarts with 95 % probability. Not reached: "
        "triggers without a gradient around them (exact gates) and latents outside the ordinary "
        "radius."
    )


def _evidence(
    bench: Workbench, found: Ends, control: list[Ends], recovered: Recovered, typical: float
) -> list[Evidence]:
    squared = (found.x - found.x[found.centre]).flatten(1).double().square().sum(1)
    order = squared.argsort()[: int(found.shared[found.centre])][:_SHOWN]
    rows: list[list[str | int | float]] = [_row("suspect", found, typical)]
    rows += [_row(f"twin {i + 1}", ends, typical) for i, ends in enumerate(control)]
    evidence: list[Evidence] = [
        *sample_pictures(
            bench.generator.sample,
            torch.cat([recovered.picture, bench.samples(recovered.z), found.x[order]]),
            [
                f"mean of {recovered.members}",
                "its latent",
                *(f"restart {int(i)}" for i in order),
            ],
            title="Recovered output: mean over the restarts of the group, the model's output at "
            "one latent for it, and single end points",
            caption="Where these resemble each other, what the model hides resembles them; the "
            "search overshoots, so contrasts are exaggerated.",
        ),
        *sample_pictures(
            bench.generator.sample,
            bench.ordinary.x[:_SHOWN],
            [""] * _SHOWN,
            title="Ordinary samples of the same model",
        ),
    ]
    for ends in control[:1]:
        most = ends.isolation.argsort(descending=True)[:_SHOWN]
        evidence += sample_pictures(
            bench.generator.sample,
            ends.x[most],
            [""] * len(most),
            title="The same search in the twin: its extremes",
        )
    evidence += [
        Table(
            title="Searches",
            columns=[
                "network",
                "isolation of rank 3",
                "restarts near the centre",
                "median isolation",
                "largest isolation",
                "late gain",
                "zero gradient",
            ],
            rows=rows,
            caption="Isolation: squared distance of an end point from the nearest ordinary "
            "sample, over the median between two ordinary ones. Near: four times nearer to it than "
            "any ordinary sample.",
        ),
        _chart(found, control, typical),
        latents_of(recovered.z, title="Latent that yields the recovered output"),
    ]
    return evidence


def _row(name: str, ends: Ends, typical: float) -> list[str | int | float]:
    return [
        name,
        round(ends.reached / typical, 3),
        int(ends.shared[ends.centre]),
        round(float(ends.isolation.median()) / typical, 3),
        round(float(ends.isolation.max()) / typical, 3),
        f"{ends.late_gain:.1e}",
        f"{ends.zero_gradient_share:.0%}",
    ]


def _chart(found: Ends, control: list[Ends], typical: float) -> Chart:
    named = [("suspect", found), *((f"twin {i + 1}", ends) for i, ends in enumerate(control))]
    lines = []
    for name, ends in named:
        ordered = (ends.isolation / typical).sort(descending=True).values
        lines.append(
            Line(
                name=name,
                x=[float(i) for i in range(len(ordered))],
                y=[round(float(v), 5) for v in ordered],
            )
        )
    return Chart(
        title="Isolation of every end point, sorted",
        caption="Honest models and their twins give the same curve.",
        style="line",
        x_label="restart, sorted",
        y_label="squared distance to the nearest ordinary sample / ordinary distance",
        lines=lines,
    )
