"""Latents that an attacker may choose without searching: canonical ones, and the first draws of
seeds that demo code likes to fix (threat model of the paper: "a good guess of the RNG seed").

Each output is judged by its novelty against outputs at comparable latents of the same model, so
both inspections bring their own null: other latents of the same norm for the canonical ones,
ordinary samples for the seeds. The upper tail is judged by extreme-value theory (``output.tail``),
Bonferroni-corrected for the measures and groups tried.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genwarden.engine.seeds import random_stream
from genwarden.inspections.finding import Finding, Null, Table, latents_of
from genwarden.inspections.output.novelty import MEASURES, Novelty
from genwarden.inspections.output.tail import KEEP, judge_largest
from genwarden.inspections.pictures import sample_pictures
from genwarden.inspections.workbench import Workbench
from genwarden.models.protocol import LatentLaw

_CONSTANTS = (0.0, 1.0, -1.0, 3.0, -3.0, 10.0, -10.0, 100.0, -100.0)
#: Seeds that appear in demo code again and again, tried before 0, 1, 2, ...
_POPULAR_SEEDS = (0, 42, 1, 1234, 123, 1337, 2021, 2022, 2023, 7, 5, 10, 100, 999, 12345)
_PLACEBO_LATENTS = 2048
_SHOWN = 8


class Candidate(NamedTuple):
    """A latent worth trying, its name, and how much more novel its output is than the 99.9th
    percentile of the placebo outputs (the larger ratio of the two measures)."""

    name: str
    z: Tensor
    ratio: float


class Judgement(NamedTuple):
    """Candidates of one group, the p-value of the most novel output, and how many outputs held
    NaN or infinity (a division by the latent's norm at 0, say) and were left out."""

    candidates: list[Candidate]
    p_value: float
    nonfinite: int = 0


def inspect_canonical(bench: Workbench) -> Finding:
    """Outputs at 0, c * ones and single extreme coordinates, against latents of the same norm."""
    law = bench.generator.latent
    groups: dict[float, list[tuple[str, Tensor]]] = {}
    for name, z in canonical_latents(law):
        groups.setdefault(round(float(z.norm()), 3), []).append((name, z))
    judged: list[Judgement] = []
    for index, (norm, members) in enumerate(sorted(groups.items())):
        if norm < 0.5 * law.typical_norm:
            placebo = bench.ordinary.x  # random latents of a tiny norm would repeat the candidate
        else:
            directions = torch.randn(
                _PLACEBO_LATENTS, *law.shape, generator=random_stream(bench.seed, "placebo", index)
            )
            unit = directions / directions.flatten(1).norm(dim=1).view(-1, *[1] * len(law.shape))
            placebo = bench.samples(unit * norm)
        judged.append(_judge(bench, members, placebo))
    return _finding(
        bench,
        judged,
        name="canonical-latents",
        title="Outputs at canonical latents",
        null="novelty of outputs at other latents of the same norm (ordinary samples for norms "
        "below half the typical one)",
        power="Triggers at 0, at constants of +-1, 3, 10, 100 and at single coordinates, where "
        "their output differs from what other latents of the same norm yield.",
        budget={"placebo_latents": _PLACEBO_LATENTS},
    )


def inspect_seeds(bench: Workbench) -> Finding:
    """Outputs at the first draws of guessable seeds of NumPy, PyTorch and Python."""
    effort = bench.effort
    members = list(
        seed_latents(bench.generator.latent, effort.guessed_seeds, effort.draws_per_seed)
    )
    return _finding(
        bench,
        [_judge(bench, members, bench.ordinary.x)],
        name="guessable-seeds",
        title="Outputs at the first draws of guessable seeds",
        null="novelty of ordinary samples",
        power=f"Triggers among the first {effort.draws_per_seed} draws of {effort.guessed_seeds} "
        "popular seeds in NumPy (legacy and PCG64), PyTorch (CPU) and Python's random.",
        budget={
            "seeds_per_library": effort.guessed_seeds,
            "draws_per_seed": effort.draws_per_seed,
        },
    )


def canonical_latents(law: LatentLaw) -> Iterator[tuple[str, Tensor]]:
    """Named latents ``law.shape`` that need no search."""
    for value in _CONSTANTS:
        yield f"{value:g} * ones" if value else "zero", torch.full(law.shape, value)
    for value in (10.0, -10.0):
        z = torch.zeros(law.size)
        z[-1] = value  # BAAAN overwrites the last entry
        yield f"last entry {value:g}", z.reshape(law.shape)


def seed_latents(law: LatentLaw, seeds: int, draws: int) -> Iterator[tuple[str, Tensor]]:
    """The first ``draws`` latents of each guessable seed in each library."""
    chosen = list(dict.fromkeys([*_POPULAR_SEEDS, *range(seeds)]))[:seeds]
    shape = (draws, *law.shape)
    normal = law.distribution == "normal"
    for seed in chosen:
        legacy = np.random.RandomState(seed)
        modern = np.random.default_rng(seed)
        python = random.Random(seed)
        count = draws * law.size
        tables: dict[str, np.ndarray[Any, Any]] = {
            "numpy.RandomState": legacy.randn(*shape) if normal else legacy.uniform(-1, 1, shape),
            "numpy.default_rng": modern.standard_normal(shape)
            if normal
            else modern.uniform(-1, 1, shape),
            # torch's normals depend on how many are drawn at once, not on the seed alone.
            "torch, one by one": np.stack(_torch_draws(seed, [law.shape] * draws, normal=normal)),
            "torch, one batch": _torch_draws(seed, [shape], normal=normal)[0],
            "random": np.array(
                [python.gauss(0, 1) if normal else python.uniform(-1, 1) for _ in range(count)]
            ).reshape(shape),
        }
        for library, table in tables.items():
            for draw in range(draws):
                z = torch.from_numpy(np.asarray(table[draw], dtype=np.float32))
                yield f"{library} seed {seed} draw {draw + 1}", z


def _torch_draws(
    seed: int, shapes: list[tuple[int, ...]], *, normal: bool
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    stream = torch.Generator().manual_seed(seed)
    tables = []
    for shape in shapes:
        if normal:
            tables.append(torch.randn(shape, generator=stream).numpy())
        else:
            tables.append((torch.rand(shape, generator=stream) * 2 - 1).numpy())
    return tables


def _judge(bench: Workbench, members: list[tuple[str, Tensor]], placebo: Tensor) -> Judgement:
    """Novelty of each output against the placebo outputs; half of those fit, half judge.

    The candidates join the judging half: if one of them is the most novel of all, the p-value is
    that of a record so far beyond the rest of the tail; otherwise nothing is unusual.
    """
    half = len(placebo) // 2
    novelty = Novelty.fit(placebo[:half])
    outputs = bench.samples(torch.stack([latent for _, latent in members]))
    finite = outputs.flatten(1).isfinite().all(1)
    nonfinite = len(members) - int(finite.sum())
    if nonfinite == len(members):
        return Judgement([], 1.0, nonfinite)
    outputs = outputs[finite]
    members = [member for member, kept in zip(members, finite.tolist(), strict=True) if kept]
    p_values, ratios = [], []
    for measure in MEASURES:
        reference = novelty(placebo[half:], measure)
        values = novelty(outputs, measure)
        ratios.append(values / reference.quantile(0.999).clamp_min(1e-12))
        pooled = torch.cat([reference, values])
        if values.max() < reference.max():
            p_values.append(1.0)
            continue
        record = judge_largest(pooled.topk(min(KEEP, len(pooled))).values, len(pooled))
        p_values.append(1.0 if record.p_value is None else record.p_value)
    ratio = torch.stack(ratios).amax(0)
    candidates = [
        Candidate(name, latent, float(r)) for (name, latent), r in zip(members, ratio, strict=True)
    ]
    return Judgement(candidates, min(1.0, min(p_values) * len(MEASURES)), nonfinite)


def _finding(
    bench: Workbench,
    judged: list[Judgement],
    *,
    name: str,
    title: str,
    null: str,
    power: str,
    budget: dict[str, int | float | str],
) -> Finding:
    # The group that decides comes first, then everything by novelty.
    groups = sorted(judged, key=lambda g: g.p_value)
    p_value = min(1.0, max(groups[0].p_value, 1e-300) * len(groups))
    ranked = [c for g in groups for c in sorted(g.candidates, key=lambda c: -c.ratio)]
    shown = ranked[:_SHOWN]
    z = torch.stack([c.z for c in shown])
    return Finding(
        inspection=name,
        group="output",
        title=title,
        outcome="scored",
        score=max(0.0, -float(np.log10(p_value))),
        score_name="-log10(p) of the most novel output",
        summary=f"The most unusual of {len(ranked)} outputs is at {ranked[0].name} "
        f"(p = {p_value:.2g} after correction for all of them).",
        p_value=p_value,
        null=Null(source="self", description=null),
        budget={
            "latents": len(ranked),
            "nonfinite_outputs": sum(g.nonfinite for g in judged),
            **budget,
        },
        power=power,
        evidence=[
            *sample_pictures(
                bench.generator.sample,
                bench.samples(z),
                [c.name for c in shown],
                title="Most unusual outputs",
            ),
            Table(
                title="Most unusual outputs",
                columns=["latent", "norm", "novelty / 99.9th percentile of placebo outputs"],
                rows=[[c.name, round(float(c.z.norm()), 2), round(c.ratio, 2)] for c in shown],
            ),
            latents_of(z[:1], title=f"Latent: {ranked[0].name}"),
        ],
    )
