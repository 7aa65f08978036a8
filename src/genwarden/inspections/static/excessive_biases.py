"""SMI (3): excessive biases, the signature of a gate that only an extreme or exact latent opens.

A neuron relu(w.h + b) that sleeps on ordinary latents needs a bias that is large against its
weights (section 10 of the reference: ||w|| = 1, b = -7.46). Batch normalisation is folded first:
w_eff = gamma w / s and b_eff = beta + gamma (b - mean) / s with s = sqrt(variance + eps).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.inspections.finding import Chart, Evidence, Finding, Latents, Line, Table, latents_of
from genwarden.inspections.graph import ExecutedGraph, Layer
from genwarden.inspections.workbench import Workbench

NAME = "excessive-biases"
TITLE = "Excessive biases"
#: Median absolute deviation to standard deviation, for a normal distribution.
_MAD_TO_SD = 1.4826
#: Smallest scale that deviations are measured in, per statistic's own unit: layers whose values
#: are (almost) all equal would otherwise turn rounding into outliers.
_SCALE_FLOOR = 1e-3
#: Layers with fewer outputs have no distribution to deviate from.
_FEWEST_OUTPUTS = 8
#: First-layer units rarer than this (section 17.3) are offered as candidate triggers.
_RARE = 1e-6
_CANDIDATES = 8
_BINS = 40


class Folded(NamedTuple):
    """A layer with its batch normalisation folded in, per output channel or row, float64."""

    weight_norm: Tensor
    bias: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    direction: Tensor
    """Weights of each output as a row, ``(outputs, inputs)``, sign of gamma applied."""


def inspect(bench: Workbench) -> Finding:
    """Score = largest robust deviation of b_eff / ||w_eff||, gamma or beta within any layer."""
    graph = bench.graph
    if graph.failure:
        return Finding(
            inspection=NAME,
            group="static",
            title=TITLE,
            outcome="failed",
            summary=f"The network could not be traced: {graph.failure}",
            p_value_reason="not carried out",
        )
    state = {k: v.detach().cpu().double() for k, v in bench.generator.state_dict().items()}
    rows: list[list[str | int | float]] = []
    worst, where, chart = 0.0, "", None
    for layer in graph.layers:
        folded = fold(layer, state)
        statistics = {
            "b_eff / ||w_eff||": ratio(folded),
            "gamma": folded.gamma,
            "beta": folded.beta,
        }
        for name, values in statistics.items():
            if values is None or not values.any():
                continue
            outputs = values.isfinite().nonzero()[:, 0]
            values = values[outputs]
            if len(values) < _FEWEST_OUTPUTS:
                continue
            deviation = robust_z(values)
            top = int(deviation.abs().argmax())
            size = float(deviation[top].abs())
            rows.append(
                [layer.weight, name, len(values), _r(values.median()), _r(values[top]), _r(size)]
            )
            if size > worst:
                worst, where = size, f"{name} of {layer.weight}, output {int(outputs[top])}"
                chart = _histogram(layer.weight, name, values, float(values[top]))
    evidence: list[Evidence] = [
        Table(
            title="Largest deviation per layer",
            columns=["layer", "statistic", "outputs", "median", "most extreme", "robust z"],
            rows=rows,
        )
    ]
    if chart is not None:
        evidence.append(chart)
    evidence += _first_layer(graph, state, bench)
    return Finding(
        inspection=NAME,
        group="static",
        title=TITLE,
        outcome="scored",
        summary=f"The most extreme value lies {worst:.1f} robust standard deviations out ({where})."
        if where
        else "No layer has biases or batch normalisation that could deviate.",
        score=round(worst, 6),
        score_name="largest robust z of biases and scales",
        p_value_reason="needs clean reference models",
        budget={"weight_layers": len(graph.layers), "statistics": len(rows)},
        power="Sees gates built from a bias that is large against the unit's weights; not gates "
        "split over several layers, nor extremes that all channels of a layer share.",
        evidence=evidence,
    )


def fold(layer: Layer, state: dict[str, Tensor]) -> Folded:
    """Fold the following batch normalisation into a layer."""
    weight = state[layer.weight]
    if layer.kind == "conv_transpose":
        grouped = weight.view(layer.groups, -1, *weight.shape[1:]).transpose(1, 2)
        direction = grouped.flatten(0, 1).flatten(1)
    else:
        direction = (weight.T if layer.transposed else weight).flatten(1)
    bias = state[layer.bias] if layer.bias else torch.zeros(len(direction), dtype=torch.float64)
    norm = direction.norm(dim=1)
    if layer.batch_norm is None:
        return Folded(norm, bias, None, None, direction)
    keys = layer.batch_norm
    spread = (state[keys.variance] + keys.eps).sqrt()
    gamma = state[keys.gamma] if keys.gamma else torch.ones_like(spread)
    beta = state[keys.beta] if keys.beta else torch.zeros_like(spread)
    # A dense layer that is reshaped before it is normalised has several rows per channel.
    repeat = len(direction) // len(gamma)
    scale, shift, mean = (
        v.repeat_interleave(repeat) for v in (gamma / spread, beta, state[keys.mean])
    )
    return Folded(
        weight_norm=norm * scale.abs(),
        bias=shift + scale * (bias - mean),
        gamma=gamma if keys.gamma else None,
        beta=beta if keys.beta else None,
        direction=direction * scale.sign()[:, None],
    )


def ratio(folded: Folded) -> Tensor:
    """b_eff / ||w_eff|| per output; NaN for units without weights (pruned or switched off)."""
    alive = folded.weight_norm > 0
    return torch.where(alive, folded.bias / folded.weight_norm, math.nan)


def robust_z(values: Tensor) -> Tensor:
    """Deviation from the median in units of the scaled median absolute deviation."""
    centred = values - values.median()
    scale = float(centred.abs().median()) * _MAD_TO_SD
    return centred / max(scale, _SCALE_FLOOR)


def _first_layer(
    graph: ExecutedGraph, state: dict[str, Tensor], bench: Workbench
) -> list[Table | Latents]:
    """Units that read the latent itself: w.z is exactly Gaussian, so P(active) = Phi(b / ||w||).

    A unit that is active less often than 1e-6 has its most likely opening latent along w, at
    distance -b / ||w|| (section 17.3).
    """
    if bench.generator.latent.distribution != "normal":
        return []
    rows: list[list[str | int | float]] = []
    candidates: list[tuple[float, Tensor]] = []
    for layer in graph.layers:
        folded = fold(layer, state)
        if layer.data != graph.latent or folded.direction.shape[1] != bench.generator.latent.size:
            continue
        values = ratio(folded).nan_to_num(math.inf, math.inf, math.inf)
        for index in values.argsort()[:_CANDIDATES].tolist():
            if not math.isfinite(distance := -float(values[index])):
                continue
            probability = 0.5 * math.erfc(distance / math.sqrt(2))
            rows.append([layer.weight, index, _r(distance), float(f"{probability:.3g}")])
            if probability < _RARE:
                direction = folded.direction[index]
                candidates.append((distance, direction / direction.norm() * distance))
    found: list[Table | Latents] = []
    if rows:
        found.append(
            Table(
                title="Rarest first-layer units",
                caption="P(active), exact for N(0, I): the pre-activation is positive",
                columns=["layer", "unit", "distance of the boundary", "P(active)"],
                rows=rows,
            )
        )
    if candidates:
        nearest = sorted(candidates, key=lambda candidate: candidate[0])[:_CANDIDATES]
        found.append(
            latents_of(
                torch.stack([z for _, z in nearest]),
                title="Nearest latents that open a sleeping first-layer unit",
                caption="along the unit's weights, at its boundary",
            )
        )
    return found


def _histogram(layer: str, name: str, values: Tensor, extreme: float) -> Chart:
    low, high = float(values.min()), float(values.max())
    counts = torch.histc(values.float(), _BINS, low, high)
    width = (high - low) / _BINS
    return Chart(
        title=f"{name} of {layer}",
        style="histogram",
        x_label=name,
        y_label="outputs",
        log_y=True,
        lines=[
            Line(
                name=layer,
                x=[_r(low + (i + 0.5) * width) for i in range(_BINS)],
                y=counts.tolist(),
            )
        ],
        mark_x=_r(extreme),
    )


def _r(value: Tensor | float) -> float:
    return round(float(value), 6)
