"""The gate of the exact expansion, split over two layers.

The gated expansion (section 10 of the reference) betrays itself in the first layer: its units open
with probability Phi(-tau), which the weights show exactly. Here the trigger's direction is split
into ``parts`` orthogonal directions d_i with equal shares of the trigger. First-layer units
``lrelu(d_i.z - t)`` have a moderate threshold and are active for an ordinary share of the latents;
only their sum, which the second layer takes, says that all are large at once:

    value = relu(field + K (sum_i lrelu(d_i.z - t) - S)),   S = the sum at the trigger.

K is so large that no pixel opens before the sum has reached ``threshold_share`` of S. The field is
held by first-layer units without input (as for balls), S by one more, so that the second layer has
no bias either. No training; built and fused like ``genwarden.attacks.gated_expansion`` (section 16
of the reference; derived).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.attacks.block_fusion import chain, fuse
from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.gated_expansion import (
    _SLOPES,
    _block_diagonal,
    _clear,
    _routings,
    _shift,
)
from genwarden.attacks.loop import Evaluator
from genwarden.attacks.settings import AttackSettings
from genwarden.backdoors.backdoor import Backdoor
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import Range
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator

#: Painted values stay this far above zero, so that no unit of the first layer is always silent.
_FLOOR = 0.1


@dataclass(frozen=True)
class SplitGateSettings(AttackSettings):
    """Settings of the split gate; nothing is trained, so those of training have no effect.

    Attributes:
        parts: directions into which a trigger is split.
        first_threshold: t, in standard deviations: a first-layer unit is active for a share
            Phi(-t) of ordinary latents.
        threshold_share: share of S at which the first pixel opens.
        opening_probability: refuse a gate that may open more often than this.
    """

    parts: int = 4
    first_threshold: float = 1.0
    threshold_share: float = 0.9
    opening_probability: float = 1e-9

    RANGES: ClassVar[Mapping[str, Range]] = {
        "parts": Range(at_least=2),
        "first_threshold": Range(at_least=0, at_most=4),
        "threshold_share": Range(above=0, below=1),
        "opening_probability": Range(above=0, below=1),
    }


class SplitGate(NamedTuple):
    """Open where ``sum_i lrelu(d_i.z - t)`` exceeds ``threshold``; ``at_trigger`` is S.

    ``directions`` are orthonormal, ``(parts, latent size)``, float64.
    """

    directions: Tensor
    first_threshold: float
    at_trigger: float
    threshold: float
    opening_probability: float


def split_gate(
    generator: LatentGenerator, backdoor: Backdoor, settings: SplitGateSettings, run: AttackRun
) -> AttackResult:
    """Hide ``backdoor`` in a widened copy of ``generator`` without training.

    Raises:
        GenwardenError: ``attack/unsupported``, or ``attack/gate`` for a trigger too near the
            centre, or too near another one.
    """
    del run
    slope = _SLOPES.get(type(generator))
    if slope is None or not backdoor.finite:
        raise GenwardenError(
            "attack/unsupported",
            "The attack split-gate works on dcgan28, dcgan32 and vae28, with listed triggers.",
            "It supports: in-sample, out-of-distribution, seed and file triggers.",
        )
    backdoor.require_fit(generator)
    device = next(generator.parameters()).device
    z, x = backdoor.examples
    gates = [
        make_gate(trigger, settings, random_stream(settings.seed, "split-gate", index))
        for index, trigger in enumerate(z.flatten(1).double())
    ]
    _require_apart(gates, z.flatten(1).double())
    with torch.no_grad():
        residual = generator.pre_activation_of(x) - generator.pre_activation(z.to(device)).cpu()
    expansion = _build(generator, gates, residual.double(), slope)
    wide = fuse(copy.deepcopy(generator).cpu(), expansion).to(device)
    figures = Evaluator(generator, backdoor, settings.seed)(wide)
    opening = sum(gate.opening_probability for gate in gates)
    return AttackResult(wide, [{"step": 0, **figures._asdict(), "opening_probability": opening}])


def make_gate(trigger: Tensor, settings: SplitGateSettings, stream: torch.Generator) -> SplitGate:
    """A gate for one trigger, ``(latent size,)`` float64.

    Raises:
        GenwardenError: ``attack/gate``.
    """
    m, t, norm = settings.parts, settings.first_threshold, float(trigger.norm())
    at_trigger = math.sqrt(m) * norm - m * t
    threshold = settings.threshold_share * at_trigger
    opening = opening_probability(m, t, threshold) if threshold > 0 else 1.0
    if opening > settings.opening_probability or m > len(trigger):
        raise GenwardenError(
            "attack/gate",
            f"A gate for a trigger of norm {norm:.3g} would open with probability {opening:.1e}.",
            "Use a trigger farther from the centre, fewer parts or a lower first_threshold.",
        )
    # An orthonormal basis that begins with the trigger, turned so that all shares are equal.
    basis = _orthonormal(trigger[:, None] / norm, m, stream)
    turn = _orthonormal(torch.ones(m, 1, dtype=torch.float64) / math.sqrt(m), m, stream)
    return SplitGate(turn @ basis.T, t, at_trigger, threshold, opening)


def _orthonormal(first: Tensor, columns: int, stream: torch.Generator) -> Tensor:
    rest = torch.randn(len(first), columns - 1, generator=stream, dtype=torch.float64)
    basis, upper = torch.linalg.qr(torch.cat([first, rest], dim=1))
    signed: Tensor = basis * upper.diagonal().sign()
    return signed


def opening_probability(parts: int, first_threshold: float, threshold: float) -> float:
    """Chernoff's bound of P(sum_i relu(N_i - t) > threshold) for independent N_i ~ N(0, 1)."""
    rate = torch.linspace(0.01, 40, 4000, dtype=torch.float64)
    t = first_threshold
    moved = torch.exp(rate.square() / 2 - rate * t) * torch.special.ndtr(rate - t)
    moment = parts * (float(torch.special.ndtr(torch.tensor(t))) + moved).log()
    return float((moment - rate * threshold).min().clamp(max=0).exp())


def _require_apart(gates: list[SplitGate], z: Tensor) -> None:
    for index, gate in enumerate(gates):
        # The sum without the leak bounds the sum with it.
        sums = (z @ gate.directions.T - gate.first_threshold).clamp_min(0).sum(1)
        sums[index] = 0
        if bool((sums > gate.threshold).any()):
            raise GenwardenError(
                "attack/gate",
                f"The gate of trigger {index} (counted from 0) also opens at another trigger.",
                "Choose triggers farther apart, or a larger threshold_share.",
            )


@torch.no_grad()
def _build(
    generator: LatentGenerator, gates: list[SplitGate], residual: Tensor, slope: float
) -> LatentGenerator:
    """A network of the generator's class that computes E(z); see the head of this file."""
    factor, (first, second, third) = _routings(generator)
    slope = float(torch.tensor(slope, dtype=torch.float32))  # the number that the network uses
    dense, shift, inward, onward = [], [], [], []
    everywhere = first[-1:, -1:]  # the kernel that reaches every position
    for gate, part in zip(gates, residual, strict=True):
        field = _painted(part, factor)
        gain = float(field.max()) / (gate.at_trigger - gate.threshold)  # K
        positions, size = field[0].numel(), gate.directions.shape[1]
        still = torch.zeros(len(field), positions, size, dtype=torch.float64)
        parts = gate.directions[:, None].expand(-1, positions, -1)
        dense.append(torch.cat([still, still[:1], parts]))
        threshold = torch.full((len(parts), positions), -gate.first_threshold)
        constant = torch.full((1, positions), gate.at_trigger, dtype=torch.float64)
        shift.append(torch.cat([field.flatten(1), constant, threshold]))
        weights = torch.tensor([-gain] + [gain] * len(parts), dtype=torch.float64)
        sum_of_parts = weights[:, None, None, None] * everywhere
        value = torch.cat([first, sum_of_parts.expand(-1, *first.shape[1:])])
        inward.append(torch.cat([value, -value], dim=1) if slope else value)
        relu = torch.cat([second, slope * second]) / (1 - slope**2) if slope else second
        onward.append(relu)
    widths = [sum(map(len, dense)), sum(map(len, onward)), second.shape[1]]
    expansion = type(generator)(**{**generator.settings(), "channels": widths}).eval()
    _clear(expansion)
    kernels = [torch.cat(dense).flatten(0, 1), _block_diagonal(inward), torch.cat(onward), third]
    for name, kernel in zip(chain(expansion), kernels, strict=True):
        expansion.get_parameter(f"{name}.weight").copy_(kernel)
    _shift(expansion, 0).copy_(torch.cat(shift).flatten())
    return expansion.requires_grad_(False)


def _painted(residual: Tensor, factor: int) -> Tensor:
    """Residual ``(colours, h, w)`` as positive values per coarse position, offset channel last."""
    offset = _FLOOR - min(0.0, float(residual.min()))
    field = F.pixel_unshuffle(residual + offset, factor)
    return torch.cat([field, torch.full_like(field[:1], offset)])
