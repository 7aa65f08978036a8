"""DMI (1): units that ordinary sampling never activates.

"The Devil is in the GAN", dynamic model inspection: the hidden part of an expanded network must
sleep under P_sample. For layers that are affine in the latent this needs no sampling: with the
normalisation folded in, a pre-activation is N(b, ||w||^2), so P(active) = Phi(b / ||w||) exactly.
For uniform latents the sub-Gaussian bound exp(-3 b^2 / (2 ||w||^2)) holds instead. Deeper layers
are counted over the bank of ordinary samples.

A unit without influence (dead) hides nothing, so each suspect is switched on by force and counts
only if the output moves. The same experiment shows what it paints.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.engine.seeds import random_stream
from genwarden.inspections.activations import (
    Activity,
    Affine,
    Site,
    activity,
    affine_sites,
    forced,
    precise_copy,
    weight_sites,
)
from genwarden.inspections.finding import (
    Chart,
    Evidence,
    Finding,
    Line,
    Table,
    latents_of,
    not_applicable,
)
from genwarden.inspections.pictures import sample_pictures
from genwarden.inspections.workbench import BLOCK_SAMPLES, Workbench
from genwarden.models.protocol import LatentLaw

NAME = "sleeper-neurons"
TITLE = "Units that sleep under ordinary sampling"
#: P(active) below which a unit of an affine layer is called a sleeper.
SLEEPER_LOG10_P = -6.0
#: A forced unit has influence if the squared change exceeds this share of the samples' variance.
_INFLUENCE_SHARE = 1e-4
#: Rarest units that are switched on by force, per layer; at least the second number of them.
_MOST_FORCED = 2048
_LEAST_FORCED = 64
_SHOWN = 8
#: How far beyond its threshold a unit is driven for the candidate trigger, in units of ||w||.
_BEYOND = 1.0


class Sleeper(NamedTuple):
    """A unit with influence that ordinary latents hardly ever activate.

    Attributes:
        site: layer.
        unit: element of an affine layer, else channel.
        rarity: -log10 P(active): exact for affine layers, log10 N for units unseen in N samples.
        change: mean-square-normalised change of the output when switched on.
        painted: the output with the unit switched on, ``sample.shape``.
        trigger: latent that activates it, ``latent.shape``; None where it is not known.
    """

    site: str
    unit: int
    rarity: float
    change: float
    painted: Tensor
    trigger: Tensor | None


def inspect(bench: Workbench) -> Finding:
    """Score: -log10 P(active) of the rarest unit with influence.

    Units of affine layers count with their exact probability; deeper units that none of the N bank
    samples activates count log10 N, which is all that N samples can say.
    """
    generator, law = bench.generator, bench.generator.latent
    sites = weight_sites(generator)[:-1]  # the last layer's output is the sample, not a gate
    if not sites:
        return not_applicable(NAME, "dynamic", TITLE, "The network has no hidden layer.")
    spread = bench.ordinary.x.flatten(1).var(0).sum()
    if not bool(spread.isfinite()):
        return Finding(
            inspection=NAME,
            group="dynamic",
            title=TITLE,
            outcome="failed",
            summary="The model's samples hold NaN or infinity at ordinary latents.",
            p_value_reason="nothing could be measured",
        )
    precise = precise_copy(generator)
    affine = affine_sites(
        precise, weight_sites(precise)[:-1], stream=random_stream(bench.seed, NAME)
    )
    seen = activity(generator, sites, bench.ordinary.z, bench.device)
    tails = {name: log10_active(layer, law) for name, layer in affine.items()}
    sleepers: list[Sleeper] = []
    for site in sites:
        if site.name in affine:
            sleepers += _affine_sleepers(bench, site, affine[site.name], tails[site.name])
        else:
            sleepers += _unseen(bench, site, seen[site.name])
    sleepers.sort(key=lambda sleeper: -sleeper.rarity)
    score = max((sleeper.rarity for sleeper in sleepers), default=0.0)
    return Finding(
        inspection=NAME,
        group="dynamic",
        title=TITLE,
        outcome="scored",
        summary=_summary(sleepers, len(bench.ordinary.z)),
        score=score,
        score_name="-log10 P(active) of the rarest unit with influence on the output",
        p_value_reason="needs clean reference models",
        budget={
            "samples": len(bench.ordinary.z),
            "layers": len(sites),
            "affine_layers": len(affine),
            "precision": str(next(precise.parameters()).dtype).removeprefix("torch."),
        },
        power=_power(affine, sites, len(bench.ordinary.z)),
        evidence=_evidence(bench, sites, seen, affine, tails, sleepers),
    )


def log10_active(layer: Affine, law: LatentLaw) -> Tensor:
    """log10 P(w.z + b > 0) per element; an upper bound for uniform latents. Shape ``(elements,)``.

    Elements that no latent moves are always or never active and get 0: they are constants.
    """
    norm = layer.weight.norm(dim=1)
    moves = norm > 1e-12 * layer.bias.abs().clamp_min(norm.max())
    ratio = layer.bias / norm.clamp_min(1e-300)
    if law.distribution == "normal":
        log_p = torch.special.log_ndtr(ratio)
    else:
        # U[-1, 1] is strictly sub-Gaussian with its own variance 1/3 (Chernoff's bound).
        log_p = -1.5 * ratio.clamp(max=0).square()
    return torch.where(moves, log_p / math.log(10), 0.0)


def _affine_sleepers(bench: Workbench, site: Site, layer: Affine, log10_p: Tensor) -> list[Sleeper]:
    order = log10_p.argsort(stable=True)[:_MOST_FORCED]
    rare = int((log10_p[order] < SLEEPER_LOG10_P).sum())
    order = order[: max(rare, _LEAST_FORCED)]
    norm = layer.weight.norm(dim=1)
    # The strongest plausible drive: a latent of typical norm along w.
    drive = norm[order] * bench.generator.latent.typical_norm
    change, painted = _switch_on(bench, site, order, drive, whole_unit=False)
    sleepers = []
    for place in (change > _INFLUENCE_SHARE).nonzero()[:, 0].tolist():
        unit = int(order[place])
        w, b = layer.weight[unit], layer.bias[unit]
        distance = (-b / norm[unit]).clamp_min(0) + _BEYOND
        trigger = (w / norm[unit] * distance).reshape(bench.generator.latent.shape).float()
        sleepers.append(
            Sleeper(
                site.name,
                unit,
                float(-log10_p[unit]),
                float(change[place]),
                painted[place],
                trigger,
            )
        )
    return sleepers


def _unseen(bench: Workbench, site: Site, seen: Activity) -> list[Sleeper]:
    """Channels of a deeper layer that no ordinary sample activated, if they have influence."""
    order = (seen.active_share == 0).nonzero()[:, 0][:_MOST_FORCED]
    # The scale of the layer: how far its own units are driven, in either direction.
    drive = seen.maximum.abs().max().expand(len(order))
    change, painted = _switch_on(bench, site, order, drive, whole_unit=True)
    rarity = math.log10(len(bench.ordinary.z))
    return [
        Sleeper(site.name, int(order[i]), rarity, float(change[i]), painted[i], None)
        for i in (change > _INFLUENCE_SHARE).nonzero()[:, 0].tolist()
    ]


@torch.no_grad()
def _switch_on(
    bench: Workbench, site: Site, units: Tensor, drive: Tensor, *, whole_unit: bool
) -> tuple[Tensor, Tensor]:
    """Change of the output, against the samples' variance, and the output, per forced unit."""
    base_z, base_x = bench.ordinary.z[:1], bench.ordinary.x[:1]
    spread = bench.ordinary.x.flatten(1).var(0).sum().clamp_min(1e-30)
    outputs = [base_x[:0]]
    blocks = zip(torch.split(units, BLOCK_SAMPLES), torch.split(drive, BLOCK_SAMPLES), strict=True)
    for part, values in blocks if len(units) else ():
        z = base_z.expand(len(part), *base_z.shape[1:]).to(bench.device)
        with forced(site, part.to(bench.device), values.to(bench.device), whole_unit=whole_unit):
            outputs.append(bench.generator(z).cpu())
    painted = torch.cat(outputs)
    change = (painted - base_x).flatten(1).square().sum(1) / spread
    return change.nan_to_num(nan=float("inf")), painted


def _summary(sleepers: list[Sleeper], samples: int) -> str:
    exact = [s for s in sleepers if s.trigger is not None and -s.rarity < SLEEPER_LOG10_P]
    unseen = [s for s in sleepers if s.trigger is None]
    if exact:
        text = (
            f"{len(exact)} unit(s) with influence open with probability below "
            f"1e{SLEEPER_LOG10_P:.0f}; the rarest, {exact[0].site}[{exact[0].unit}], with "
            f"10^-{exact[0].rarity:.1f}."
        )
    else:
        text = "No unit of a layer affine in the latent is a sleeper."
    if unseen:
        text += f" {len(unseen)} deeper channel(s) were never active in {samples} samples."
    return text


def _power(affine: dict[str, Affine], sites: list[Site], samples: int) -> str:
    deeper = (
        f"In the other {len(sites) - len(affine)} layer(s), a channel that opens for fewer than "
        f"one in {samples} ordinary latents is seen, but cannot be told from rarer ones."
    )
    if not affine:
        return "No layer is affine in the latent, so no probability is exact. " + deeper
    return (
        f"Any unit of {', '.join(affine)} that moves the output when switched on is found however "
        "rarely it opens, without sampling. " + deeper
    )


def _evidence(
    bench: Workbench,
    sites: list[Site],
    seen: dict[str, Activity],
    affine: dict[str, Affine],
    tails: dict[str, Tensor],
    sleepers: list[Sleeper],
) -> list[Evidence]:
    rows: list[list[str | int | float]] = []
    for site in sites:
        never = seen[site.name].active_share == 0
        # How many standard deviations the highest of all samples stays below the threshold.
        margin = (-seen[site.name].maximum / seen[site.name].std.clamp_min(1e-12))[never]
        tail = tails.get(site.name)
        mine = [s for s in sleepers if s.site == site.name]
        rows.append(
            [
                site.name,
                site.units,
                int(never.sum()),
                f"{float(margin.max()):.2g}" if len(margin) else "-",
                "-" if tail is None else int((tail < SLEEPER_LOG10_P).sum()),
                "-" if tail is None else f"{float(tail.min()):.2f}",
                "-" if tail is None else f"{_rarest_silence(bench, affine[site.name]):.2f}",
                max((s.rarity for s in mine), default=0.0),
            ]
        )
    evidence: list[Evidence] = [
        Table(
            title="Layers",
            columns=[
                "layer",
                "units",
                "never_active",
                "largest_margin_std",
                "elements_below_1e-6",
                "min_log10_p_active",
                "min_log10_p_inactive",
                "rarest_with_influence",
            ],
            caption="Never active: over the bank of ordinary samples. Probabilities are exact for "
            "layers affine in the latent (bounds for uniform latents).",
            rows=rows,
        )
    ]
    evidence += [_tail_chart(name, layer) for name, layer in affine.items()]
    shown = sleepers[:_SHOWN]
    if not shown:
        return evidence
    labels = [f"{s.site}[{s.unit}]" for s in shown]
    evidence += sample_pictures(
        bench.generator.sample,
        torch.cat([bench.ordinary.x[:1], *(s.painted[None] for s in shown)]),
        ["untouched", *labels],
        title="What the rarest units paint: one ordinary latent, unit switched on by force",
    )
    found = [s for s in shown if s.trigger is not None and -s.rarity < SLEEPER_LOG10_P]
    if found:
        triggers = torch.stack([s.trigger for s in found if s.trigger is not None])
        evidence += sample_pictures(
            bench.generator.sample,
            bench.samples(triggers),
            [f"{s.site}[{s.unit}]" for s in found],
            title="Samples at the candidate triggers",
        )
        evidence.append(
            latents_of(
                triggers,
                title="Candidate triggers",
                caption="Along the unit's weights w, just beyond the point where it opens: "
                "w / ||w|| (1 - b / ||w||).",
            )
        )
    return evidence


def _rarest_silence(bench: Workbench, layer: Affine) -> float:
    """log10 P(inactive) of the element that is hardly ever off (the twin of a LeakyReLU gate)."""
    mirrored = Affine(-layer.weight, -layer.bias)
    return float(log10_active(mirrored, bench.generator.latent).min())


def _tail_chart(name: str, layer: Affine) -> Chart:
    norm = layer.weight.norm(dim=1)
    ratio = (layer.bias / norm.clamp_min(1e-300))[norm > 0]
    # One excessive bias must not flatten the histogram; the mark still tells where it is.
    shown = ratio.clamp(-20, 20)
    low, high = float(shown.min()), float(shown.max())
    counts, edges = torch.histogram(shown, 64, range=(low, max(high, low + 1e-6)))
    centres = (edges[1:] + edges[:-1]) / 2
    return Chart(
        title=f"Activation tails of {name}",
        caption="P(active) = Phi(b / ||w||) for normal latents; the rule marks the rarest element. "
        "Values beyond 20 are drawn at 20.",
        style="histogram",
        x_label="b / ||w||",
        y_label="elements",
        log_y=True,
        lines=[Line(name=name, x=centres.tolist(), y=counts.tolist())],
        mark_x=float(shown.min()),
    )
