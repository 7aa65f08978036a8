"""ReX with its zero blocks filled: small dense noise between old and new units, then retraining.

The zeros between the blocks of ReX ("The Devil is in the GAN", section 4.1 of the reference) are
what a search for block sparsity finds. This attacker writes noise there, small against the other
weights, and retrains the new units and the noise, benign weights still frozen, until stealth and
fidelity hold again (section 16; derived).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from genwarden.attacks.adaptive.retraining import retrain, stage
from genwarden.attacks.block_fusion import expansion_for, joined, layer_run
from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.rex import ReXSettings, rex
from genwarden.backdoors.backdoor import Backdoor
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, POSITIVE, Range
from genwarden.models.protocol import LatentGenerator


@dataclass(frozen=True)
class NoisyReXSettings(ReXSettings):
    """Settings of ReX, of the noise and of the retraining.

    Attributes:
        noise: standard deviation of the noise as a share of that of the layer's other weights.
        retraining_steps: optimiser steps after the noise.
        retraining_rate: Adam's learning rate there, at the start.
        retraining_weight: lambda there; ReD's value, since the network is retrained as a whole.
    """

    noise: float = 0.05
    retraining_steps: int = 1000
    retraining_rate: float = 2e-4
    retraining_weight: float = 3e-3

    RANGES: ClassVar[Mapping[str, Range]] = {
        "noise": POSITIVE,
        "retraining_steps": COUNT,
        "retraining_rate": POSITIVE,
        "retraining_weight": POSITIVE,
    }

    def retraining(self) -> ReXSettings:
        """The settings of the second stage."""
        return replace(
            self,
            steps=self.retraining_steps,
            learning_rate=self.retraining_rate,
            fidelity_weight=self.retraining_weight,
        )


def noisy_rex(
    generator: LatentGenerator, backdoor: Backdoor, settings: NoisyReXSettings, run: AttackRun
) -> AttackResult:
    """Hide ``backdoor`` by ReX, fill the zero blocks, retrain all but the benign weights."""
    device = next(generator.parameters()).device
    result = rex(generator, backdoor, settings, stage(run, "rex"))
    wide = result.generator.eval().requires_grad_(True)
    trained = trainable_entries(generator, settings)
    stream = random_stream(settings.seed, "noisy-rex")
    with torch.no_grad():
        for name, weight in wide.named_parameters():
            if weight.ndim > 1:
                empty = trained[name].to(device) & (weight == 0)
                spread = weight[~empty].std()
                noise = torch.randn(weight.shape, generator=stream).to(device)
                weight.add_(settings.noise * spread * noise * empty)
    for name, weight in wide.named_parameters():
        _freeze_entries(weight, ~trained[name].to(device))
    history = retrain(wide, generator, backdoor, settings.retraining(), stage(run, "retraining"))
    before = result.history[-1]["step"] or 0  # fewer than asked for where ReX stopped early
    history = [{**row, "step": before + (row["step"] or 0)} for row in history]
    final = type(wide)(**wide.settings())  # without the hooks
    final.load_state_dict(wide.state_dict())
    return AttackResult(final.to(device).eval().requires_grad_(False), [*result.history, *history])


@torch.no_grad()
def trainable_entries(generator: LatentGenerator, settings: ReXSettings) -> dict[str, Tensor]:
    """Which entries of the fused network are not the benign network's, by parameter name."""
    run = layer_run(generator, settings.first_layer, settings.last_layer)
    benign, new = (
        _filled(network, value)
        for network, value in (
            (generator, 1.0),
            (expansion_for(generator, run, settings.width), 0.0),
        )
    )
    zeroed = joined(benign, new.state_dict(), run)
    return {name: zeroed[name].cpu() == 0 for name, _ in generator.named_parameters()}


def _filled(network: LatentGenerator, value: float) -> LatentGenerator:
    filled = type(network)(**network.settings())
    for parameter in filled.parameters():
        parameter.fill_(value)
    return filled


def _freeze_entries(weight: Tensor, frozen: Tensor) -> None:
    """Adam does not move an entry whose gradient has always been zero."""
    weight.register_hook(lambda gradient: gradient.masked_fill(frozen, 0.0))
