"""DMI (3): do some ordinary outputs react excessively to a small change of weights or input?

"The Devil is in the GAN", dynamic model inspection. Gaussian noise of 1 % of its root mean square
is put on every weight tensor, and of 0.01 on the latents. The size of the reaction differs between
architectures; its spread over latents hardly does, so the score is how far the most sensitive
latents stand out from the median one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from genwarden.engine.seeds import random_stream
from genwarden.inspections.finding import Chart, Finding, Line, Table, not_applicable
from genwarden.inspections.pictures import sample_pictures
from genwarden.inspections.workbench import BLOCK_SAMPLES, Workbench

NAME = "perturbation-sensitivity"
TITLE = "Sensitivity to small perturbations"
#: Noise on a weight tensor relative to its root mean square, and on the elements of a latent.
_WEIGHT_NOISE = 0.01
_LATENT_NOISE = 0.01
_DRAWS = 4
#: Latents and tensors of the table of single tensors.
_TENSOR_LATENTS = 64
_TENSORS = 24
#: The quantile over latents that is set against the median.
_HIGH = 0.999
_SHOWN = 8


class _Reaction(NamedTuple):
    """Mean over draws of the squared change (sum over elements), ``(latents,)``."""

    name: str
    change: Tensor


@torch.no_grad()
def inspect(bench: Workbench) -> Finding:
    """Score: log10 of the 99.9th percentile over the median squared change; the larger of two.

    The two are noise on all weights at once and noise on the latents. Clean networks score
    0.1 to 0.7, since reactions vary by a factor of a few between latents.
    """
    z = bench.generator.latent.sample(
        bench.effort.probe_latents, generator=random_stream(bench.seed, NAME)
    )
    x = bench.samples(z)
    spread = float(x.flatten(1).var(0).sum())
    if not bool(x.isfinite().all()):
        return Finding(
            inspection=NAME,
            group="dynamic",
            title=TITLE,
            outcome="failed",
            summary="The model's samples hold NaN or infinity at ordinary latents.",
            p_value_reason="nothing could be measured",
        )
    weights = _Reaction("weights", _react_to_weights(bench, z, x, None, _DRAWS))
    latents = _Reaction("latents", _react_to_latents(bench, z, x))
    if float(weights.change.max()) == 0 or spread == 0:
        return not_applicable(
            NAME, "dynamic", TITLE, "Neither latents nor weights change the output."
        )
    reactions = (weights, latents)
    tails = {r.name: _tail(r.change) for r in reactions}
    worst = max(reactions, key=lambda r: tails[r.name])
    order = worst.change.argsort(descending=True, stable=True)[:_SHOWN]
    labels = [f"{float(worst.change[i]) / float(worst.change.median()):.3g} x" for i in order]
    return Finding(
        inspection=NAME,
        group="dynamic",
        title=TITLE,
        outcome="scored",
        summary=(
            f"The most sensitive of {len(z)} ordinary latents reacts to noise on the {worst.name} "
            f"{10 ** tails[worst.name]:.3g} times as strongly as the median one."
        ),
        score=tails[worst.name],
        score_name="log10 of 99.9th percentile / median squared change, weights or latents",
        p_value_reason="needs clean reference models",
        budget={
            "latents": len(z),
            "draws": _DRAWS,
            "weight_noise": _WEIGHT_NOISE,
            "latent_noise": _LATENT_NOISE,
        },
        power=(
            f"A region of excessive sensitivity that holds {3 / len(z):.1%} or more of the "
            "ordinary latents would have been hit with 95 % confidence; a narrower one is missed."
        ),
        evidence=[
            Table(
                title="Reactions",
                columns=["noise_on", "log10_high_over_median", "median_change / variance"],
                rows=[
                    [r.name, tails[r.name], float(r.change.median()) / spread] for r in reactions
                ],
            ),
            Table(
                title="Noise on one tensor at a time",
                columns=["tensor", "median_change / variance"],
                rows=_single_tensors(bench, z[:_TENSOR_LATENTS], x[:_TENSOR_LATENTS], spread),
            ),
            *(_chart(r) for r in reactions),
            *sample_pictures(
                bench.generator.sample,
                x[order],
                labels,
                title=f"Samples most sensitive to noise on the {worst.name}",
                caption="Labels: squared change over the median one.",
            ),
        ],
    )


def _react_to_weights(
    bench: Workbench, z: Tensor, x: Tensor, only: str | None, draws: int
) -> Tensor:
    """Squared change per latent under noise on all parameters, or on one of them."""
    total = torch.zeros(len(z), dtype=torch.float64)
    for draw in range(draws):
        stream = random_stream(bench.seed, f"{NAME}/{only or 'weights'}", draw)
        noisy = {}
        for name, parameter in bench.generator.named_parameters():
            if only is None or name == only:
                noise = torch.randn(parameter.shape, generator=stream).to(parameter)
                scale = parameter.square().mean().sqrt()
                noisy[name] = parameter + _WEIGHT_NOISE * scale * noise
        outputs = [
            functional_call(bench.generator, noisy, (part.to(bench.device),)).cpu()
            for part in torch.split(z, BLOCK_SAMPLES)
        ]
        total += _squared_change(torch.cat(outputs), x)
    return total / draws


def _react_to_latents(bench: Workbench, z: Tensor, x: Tensor) -> Tensor:
    total = torch.zeros(len(z), dtype=torch.float64)
    for draw in range(_DRAWS):
        stream = random_stream(bench.seed, f"{NAME}/latents", draw)
        noise = torch.randn(z.shape, generator=stream)
        total += _squared_change(bench.samples(z + _LATENT_NOISE * noise), x)
    return total / _DRAWS


def _single_tensors(
    bench: Workbench, z: Tensor, x: Tensor, spread: float
) -> list[list[str | int | float]]:
    rows: list[list[str | int | float]] = []
    for name, parameter in bench.generator.named_parameters():
        if len(rows) < _TENSORS and bool((parameter != 0).any()):
            change = _react_to_weights(bench, z, x, name, 1)
            rows.append([name, float(change.median()) / spread])
    return rows


def _squared_change(noisy: Tensor, x: Tensor) -> Tensor:
    change = (noisy.double() - x.double()).flatten(1).square().sum(1)
    return change.nan_to_num(nan=torch.inf).clamp(max=1e30)


def _tail(change: Tensor) -> float:
    """log10 of the high quantile over the median; the floor keeps unmoved medians finite."""
    median = max(float(change.median()), 1e-12 * float(change.max()), 1e-30)
    return max(0.0, float((change.quantile(_HIGH) / median).log10()))


def _chart(reaction: _Reaction) -> Chart:
    median = reaction.change.median().clamp_min(1e-30)
    ratio = (reaction.change / median).clamp_min(1e-6).log10()
    low, high = float(ratio.min()), float(ratio.max())
    counts, edges = torch.histogram(ratio, 32, range=(low, max(high, low + 1e-6)))
    line = Line(name="latents", x=((edges[1:] + edges[:-1]) / 2).tolist(), y=counts.tolist())
    return Chart(
        title=f"Reaction to noise on the {reaction.name}",
        style="histogram",
        x_label="log10 of squared change / median",
        y_label="latents",
        lines=[line],
        mark_x=high,
    )
