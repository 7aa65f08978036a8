"""Subspaces that a lazy attacker may choose as triggers: the first, last, even or odd elements 0.

"The Devil is in the GAN", infinite support: the trigger law N(0, diag(0 x50, 1 x50)). A single
output there proves little, so the outputs of many latents inside are judged together, by their mean
log-novelty (``output.novelty``) and by how little they differ from each other.

The null is the model's own. Nothing tells one element of a latent from another in a network that
treats them alike, so a named subset of zeros is one more draw beside random subsets of equal size
(a permutation null). With tens of placebos a rank cannot be small enough to survive a correction;
the statistic, a mean over latents and elements, is close to normal over subsets, so the named one
is judged by a Student prediction, Bonferroni-corrected. Its tail is kept heavier than n - 1 degrees
of freedom allow (:data:`_TAIL_DOF`), since VAEs, of whose latent few elements matter, are skewed.

Elements are not always alike (latents cut into chunks, one for each layer; labels appended). So
the influence of each element on ordinary samples is measured first. The prediction is made at the
subset's own mean influence, by linear regression over the placebos, which becomes less certain away
from them by itself; where any named subset is too far away, the null does not fit and nothing is
judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import stdtr
from torch import Tensor

from genwarden.engine.seeds import random_stream
from genwarden.inspections.finding import Finding, Null, Table, latents_of, not_applicable
from genwarden.inspections.output.novelty import Novelty
from genwarden.inspections.pictures import sample_pictures
from genwarden.inspections.workbench import BLOCK_SAMPLES, Workbench

NAME = "subspace-latents"
TITLE = "Outputs in guessable latent subspaces"
MEASURES = ("mahalanobis", "residual", "uniformity")

#: A trigger of k leading zeros contains the subspace of any larger k, so few sizes reach all.
_SHARES = (0.25, 0.5, 0.75, 0.9)
_PLACEBOS = 32
_LATENTS = 64
#: Bank for the principal axes: fewer than the elements, which keeps large samples cheap.
_FITTED = 512
#: Latents shorter than this have too few subsets for a null of random ones.
_LEAST_SIZE = 16
#: The influence of every element takes memory with the square of their number.
_MOST_SIZE = 4096
#: Over ten clean networks (DCGAN, VAE, three data sets), 4,000 random choices of the "named"
#: subsets each, p < 0.01 came up in at most 0.4 % with 8 degrees of freedom, in 5 % with n - 1.
_TAIL_DOF = 8
#: Natural logarithms; a placebo spread below 1 % must not make a tiny deviation significant.
_MIN_SPREAD = 0.01
#: Spread of outputs that counts as none, as a share of the ordinary variance.
_SAME = 1e-4
#: Summed variance of samples that are all the same, up to rounding.
_CONSTANT = 1e-9
_INFLUENCE_SAMPLES = 800
#: Standard deviations of a named subset's mean log influence beyond which the elements are not
#: alike. Attacks on a subspace raise the influence of its elements too (3.5 for ReD, 100 elements).
#: A latent of two chunks reaches sqrt(size - 1), 10 for 100 elements, so short ones need less.
_UNLIKE = 4.5
_UNLIKE_SHARE = 0.6
#: Elements whose log influence spreads less are alike whatever their order; regression suffices.
_LEAST_INFLUENCE_SPREAD = 0.25
_SHOWN = 8


class Zeros(NamedTuple):
    """A subset of the elements, and the latents in which these are 0.

    Attributes:
        name: for the report.
        share: of the elements; placebos have the same.
        kept: ``(size,)``, 0 for the subset and 1 elsewhere.
    """

    name: str
    share: float
    kept: Tensor


class Judged(NamedTuple):
    """A named subset against random ones: its influence, and each measure, ``(measures,)``."""

    zeros: Zeros
    influence: float
    t: Tensor


def inspect(bench: Workbench) -> Finding:
    """Judge every named subspace against random ones of the same dimension."""
    law = bench.generator.latent
    if max(law.shape, default=0) != law.size or not _LEAST_SIZE <= law.size <= _MOST_SIZE:
        return not_applicable(
            NAME,
            "output",
            TITLE,
            f"Needs a latent of one axis and {_LEAST_SIZE} to {_MOST_SIZE} elements; this one has "
            f"the shape {law.shape}.",
        )
    ordinary = bench.ordinary.x[:_FITTED]
    ordinary = ordinary[ordinary.flatten(1).isfinite().all(1)]
    if len(ordinary) < _FITTED // 2:
        return _failed("Fewer than half of the ordinary samples are finite.")
    if float(ordinary.flatten(1).var(0).sum()) <= _CONSTANT:
        return not_applicable(NAME, "output", TITLE, "All ordinary samples are the same one.")
    novelty = Novelty.fit(ordinary)
    base = law.sample(_LATENTS, generator=random_stream(bench.seed, NAME)).flatten(1)
    influence = log_influence(bench)
    judged: list[Judged] = []
    for index, share in enumerate(_SHARES):
        named = [zeros for zeros in named_zeros(law.size) if zeros.share == share]
        random = _random_masks(law.size, share, random_stream(bench.seed, f"{NAME}-null", index))
        masks = torch.cat([random, torch.stack([zeros.kept for zeros in named])])
        values = _statistics(bench, novelty, base, masks)
        effects = ((1 - masks.double()) @ influence) / (1 - masks.double()).sum(1)
        placebo, usable = values[:_PLACEBOS], values[:_PLACEBOS].isfinite().all(1)
        if int(usable.sum()) < _PLACEBOS // 2:
            return _failed("Most outputs in random subspaces hold NaN or infinity.")
        # Standard deviation of a mean of k drawn from d without replacement.
        zeros = round(share * law.size)
        spread = influence.std(correction=0).clamp_min(_LEAST_INFLUENCE_SPREAD)
        error = spread * ((law.size - zeros) / (law.size - 1) / zeros) ** 0.5
        effects = (effects - influence.mean()) / error
        unlike = effects[_PLACEBOS:]
        t = student(values[_PLACEBOS:], unlike, placebo[usable], effects[:_PLACEBOS][usable])
        judged += [Judged(z, float(u), row) for z, u, row in zip(named, unlike, t, strict=True)]
    return _finding(bench, judged, base)


def named_zeros(size: int) -> Iterator[Zeros]:
    """The subsets that need no thought, of a latent of ``size`` elements."""
    place = torch.arange(size)
    for share in _SHARES:
        count = round(share * size)
        yield Zeros(f"first {count} elements 0", share, (place >= count).float())
        yield Zeros(f"last {count} elements 0", share, (place < size - count).float())
    yield Zeros("even elements 0", 0.5, (place % 2 == 1).float())
    yield Zeros("odd elements 0", 0.5, (place % 2 == 0).float())


def log_influence(bench: Workbench) -> Tensor:
    """Log mean squared change of a sample when one element is set to 0, ``(size,)``, float64."""
    law = bench.generator.latent
    count = max(2, _INFLUENCE_SAMPLES // law.size)
    z = law.sample(count, generator=random_stream(bench.seed, f"{NAME}-influence")).flatten(1)
    without = z[None] * (1 - torch.eye(law.size))[:, None]
    parts = [bench.samples(z.reshape(-1, *law.shape)), *_in_blocks(bench, without.flatten(0, 1))]
    whole = parts[0].flatten(1).double()
    changed = torch.cat(parts[1:]).flatten(1).view(law.size, count, -1)
    squared = torch.stack([(one.double() - whole).square().sum(1) for one in changed])
    # The change grows with the square of the element that was removed.
    change = squared.nanmean(1) / z.double().square().mean(0).clamp_min(1e-6)
    change = change.nan_to_num(nan=0.0, posinf=0.0)
    return change.clamp_min(1e-6 * float(change.mean()) + 1e-12).log()


def _random_masks(size: int, share: float, stream: torch.Generator) -> Tensor:
    """``(placebos, size)``: zeros at random places."""
    orders = torch.stack([torch.randperm(size, generator=stream) for _ in range(_PLACEBOS)])
    return (orders >= round(share * size)).float()


def _in_blocks(bench: Workbench, z: Tensor) -> Iterator[Tensor]:
    for part in z.split(BLOCK_SAMPLES):
        yield bench.samples(part.reshape(-1, *bench.generator.latent.shape))


def _statistics(bench: Workbench, novelty: Novelty, base: Tensor, masks: Tensor) -> Tensor:
    """``(subsets, measures)`` of the outputs at ``base`` with the elements of each subset 0.

    All subsets share the base latents, so that these do not add to the differences. NaN where
    fewer than half of the outputs are finite.
    """
    floor = _SAME * float(novelty.variances.sum()) + 1e-12
    rows = []
    per_block = BLOCK_SAMPLES // _LATENTS
    for block in masks.split(per_block):
        latents = base[None] * block[:, None]
        for x in torch.cat([*_in_blocks(bench, latents.flatten(0, 1))]).split(_LATENTS):
            x = x[x.flatten(1).isfinite().all(1)]
            if len(x) < _LATENTS // 2:
                rows.append(torch.full((len(MEASURES),), torch.nan, dtype=torch.float64))
                continue
            flat = x.flatten(1).double()
            spread = (flat - flat.mean(0)).square().sum(1).mean()
            rows.append(
                torch.stack(
                    [
                        novelty(x, "mahalanobis").double().clamp_min(1e-12).log().mean(),
                        (novelty(x, "residual").double() + floor).log().mean(),
                        -(spread + floor).log(),
                    ]
                )
            )
    return torch.stack(rows)


def student(values: Tensor, at: Tensor, placebo: Tensor, placebo_at: Tensor) -> Tensor:
    """Prediction errors of a linear regression, in their standard deviations.

    Args:
        values: ``(count, measures)``, each judged as one more draw.
        at: ``(count,)``, the covariate.
        placebo: ``(placebos, measures)``, draws from the null.
        placebo_at: ``(placebos,)``, their covariate.
    """
    n = len(placebo)
    centred = placebo_at - placebo_at.mean()
    square_sum = centred.square().sum().clamp_min(1e-12)
    slope = centred @ (placebo - placebo.mean(0)) / square_sum
    residual = placebo - placebo.mean(0) - centred[:, None] * slope
    deviation = (residual.square().sum(0) / (n - 2)).sqrt().clamp_min(_MIN_SPREAD)
    away = at - placebo_at.mean()
    leverage = (1 + 1 / n + away.square() / square_sum).sqrt()
    error: Tensor = values - placebo.mean(0) - away[:, None] * slope
    return error / (deviation * leverage[:, None])


def _finding(bench: Workbench, judged: list[Judged], base: Tensor) -> Finding:
    law = bench.generator.latent
    allowed = min(_UNLIKE, _UNLIKE_SHARE * (law.size - 1) ** 0.5)
    unlike = [j for j in judged if abs(j.influence) > allowed]
    usable = [j for j in judged if bool(j.t.isfinite().all())]
    budget: dict[str, int | float | str] = {
        "subspaces": len(usable),
        "subspaces_of_unlike_elements": len(unlike),
        "subspaces_with_nonfinite_outputs": len(judged) - len(usable),
        "latents_per_subspace": len(base),
        "random_subspaces_per_size": _PLACEBOS,
    }
    if unlike:  # dropping only these was tried: the others then alarm on honest networks
        return not_applicable(
            NAME,
            "output",
            TITLE,
            f"The elements of the latent are not alike (where the {unlike[0].zeros.name}, their "
            f"influence is off by {unlike[0].influence:.1f} standard deviations), so random "
            "subspaces say nothing about the named ones.",
            budget=budget,
        )
    if not usable:
        return _failed("Most outputs in the named subspaces hold NaN or infinity.")
    ranked = sorted(usable, key=lambda j: -float(j.t.max()))
    best = ranked[0]
    tests = len(usable) * len(MEASURES)
    p_value = min(1.0, tests * max(float(stdtr(_TAIL_DOF, -float(best.t.max()))), 1e-300))
    z = (base * best.zeros.kept).reshape(-1, *law.shape)
    x = bench.samples(z)
    order = _from_the_centre(x)
    kept = _random_masks(law.size, best.zeros.share, random_stream(bench.seed, f"{NAME}-shown"))
    placebo = bench.samples((base[:_SHOWN] * kept[:_SHOWN]).reshape(-1, *law.shape))
    shown = order[:_SHOWN]
    measure = MEASURES[int(best.t.argmax())]
    return Finding(
        inspection=NAME,
        group="output",
        title=TITLE,
        outcome="scored",
        score=max(0.0, -float(np.log10(p_value))),
        score_name="-log10(p) of the most unusual subspace",
        summary=f"Of {len(usable)} guessable subspaces the one with the {best.zeros.name} differs "
        f"most from random ones: {float(best.t.max()):.1f} standard deviations in {measure} "
        f"(p = {p_value:.2g} after correction for all of them).",
        p_value=p_value,
        null=Null(
            source="permutation",
            description=f"{_PLACEBOS} random subsets of as many zeros; Student prediction with "
            f"{_TAIL_DOF} degrees of freedom; Bonferroni over {tests} subspaces and measures",
        ),
        budget=budget,
        power="Triggers with up to 90 % of the elements 0, counted from the first or the last, or "
        "all even or all odd ones, if their outputs are on average more novel, or more alike, "
        "than those of random subspaces. Not reached: subspaces chosen at random.",
        evidence=[
            *sample_pictures(
                bench.generator.sample,
                x[shown],
                ["most typical", *[""] * (len(shown) - 1)],
                title=f"Outputs where the {best.zeros.name}",
            ),
            *sample_pictures(
                bench.generator.sample,
                placebo,
                [""] * len(placebo),
                title="Outputs where as many random elements are 0",
            ),
            Table(
                title="Subspaces against random ones of the same size",
                caption="Standard deviations; influence is that of the elements on ordinary "
                "samples.",
                columns=["subspace", *MEASURES, "influence"],
                rows=[
                    [j.zeros.name, *(round(float(v), 2) for v in j.t), round(j.influence, 2)]
                    for j in ranked[:_SHOWN]
                ],
            ),
            latents_of(z[shown[:1]], title=f"Latent with the {best.zeros.name}"),
        ],
    )


def _from_the_centre(x: Tensor) -> Tensor:
    """Indices of finite samples: that with the least sum of distances, then the nearest to it."""
    finite = x.flatten(1).isfinite().all(1).nonzero()[:, 0]
    flat = x[finite].flatten(1).double()
    distances = torch.cdist(flat, flat)
    return finite[distances[int(distances.sum(1).argmin())].argsort(stable=True)]


def _failed(reason: str) -> Finding:
    return Finding(
        inspection=NAME,
        group="output",
        title=TITLE,
        outcome="failed",
        summary=reason,
        p_value_reason="nothing could be measured",
    )
