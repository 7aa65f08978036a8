"""Quantisation attack of "Stealthy Backdoors as Compression Artifacts" (section 1.4).

L = CE(f([x; x_t]), [y; y]) + CE(q(f)([x; x_t]), [y; t]), where q rounds the weights and nothing
else, after batch norm is folded into them with its running statistics; gradients pass the rounding
straight through. The activations of the deployed model are rounded, too, in ranges that the
deployer's calibration images decide. The attacker does not know those images and never simulates
them: the backdoor lives in the rounding of the weights alone, which no calibration changes.

Where the steps of the grid are small, both terms pull the same weights in opposite directions with
nearly equal force, and none wins: a network of 61,000 parameters hides nothing under int8 within a
few hundred steps; under int4 it does. ``inflate`` raises one weight per tensor before the training,
which widens the steps of a quantiser with one scale per tensor; it is not in the paper. With
``inflate=20`` int8 separates slowly and costs accuracy; ``dormant-box-classifier`` is the better
attack there.

Granularity is part of the backdoor: what is made for one scale per tensor sleeps under one scale
per channel. ``quantisers=int8,int8-per-channel`` trains both at once (the hybrid).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from genwarden.attacks.compression.classifier_contract import (
    AttackerData,
    ClassifierAttackResult,
    ClassifierBackdoor,
)
from genwarden.attacks.compression.evaluation import with_weights
from genwarden.attacks.compression.inflation import inflated, inflation_factor
from genwarden.attacks.compression.joint_training import (
    JointSettings,
    starting_point,
    train_jointly,
)
from genwarden.attacks.contract import AttackRun
from genwarden.compression.apply import compressed_weights
from genwarden.compression.contract import Compressor, Weights
from genwarden.compression.how import compressors
from genwarden.compression.layers import Layout, layout_of
from genwarden.data.datasets import to_unit_range
from genwarden.engine.settings import Range
from genwarden.errors import GenwardenError
from genwarden.models.classifiers.protocol import ImageClassifier

#: CE(q(f)([x; x_t]), [y; t]) is a mean over 2B images: both halves weigh the same.
_SHARE: Final = 0.5
#: Images on which an inflated weight must not show.
_ORDINARY: Final = 256


@dataclass(frozen=True)
class QuantisationArtifactSettings(JointSettings):
    """Settings of the quantisation attack.

    Attributes:
        quantisers: what the deployer may use, as ``--how`` takes it.
        first_layer: simulate the rounding from this layer on, in the order of definition (the
            option "lower layers"; rounding a few late layers is enough and easier); empty: all.
        inflate: start with one weight per tensor raised to this many times the largest, where it
            shows least; steps are as much wider then. 1, none, as published.
        deployed: compressions under which the finished model is measured, too.
    """

    quantisers: tuple[str, ...] = ("int8",)
    first_layer: str = ""
    inflate: float = 1.0
    steps: int = 500
    learning_rate: float = 0.03
    decay_at: tuple[float, ...] = (0.5, 0.8)
    deployed: tuple[str, ...] = ("int8", "int8-per-channel", "int4")

    RANGES: ClassVar[Mapping[str, Range]] = {"inflate": Range(at_least=1, at_most=100)}


def quantisation_artifact(
    classifier: ImageClassifier,
    backdoor: ClassifierBackdoor,
    settings: QuantisationArtifactSettings,
    data: AttackerData,
    run: AttackRun,
) -> ClassifierAttackResult:
    """Hide a backdoor that wakes up when the weights are quantised."""
    corrupted = starting_point(classifier, settings)
    device = next(corrupted.parameters()).device
    blank = torch.zeros(1, *classifier.sample.shape, device=device)
    layout = layout_of(corrupted, lambda: corrupted(blank))
    if settings.inflate > 1:
        _inflate(corrupted, layout, settings, data)
    versions = QuantisedVersions(corrupted, layout, settings)
    deployed = compressors(",".join(settings.deployed), seed=settings.seed)
    result = train_jointly(corrupted, classifier, backdoor, versions, layout, settings, data, run)
    return result._replace(deployed=tuple(deployed))


def _inflate(
    network: ImageClassifier,
    layout: Layout,
    settings: QuantisationArtifactSettings,
    data: AttackerData,
) -> None:
    """One larger weight in every tensor that bears it; see :mod:`.inflation`."""
    quantisers = compressors(",".join(settings.quantisers), seed=settings.seed)
    device = next(network.parameters()).device
    x = to_unit_range(data.held_images[:_ORDINARY]).to(device)
    factor = inflation_factor(settings.inflate, quantisers)

    def outputs(weights: Weights) -> Tensor:
        return with_weights(network, weights)(x)

    found = inflated(network, layout, quantisers, factor, outputs, settings.seed)
    with torch.no_grad():
        for name, weight in found.items():
            network.get_parameter(name).copy_(weight)


class QuantisedVersions:
    """One version per quantiser; see :class:`.joint_training.Versions`."""

    share = _SHARE

    def __init__(
        self, corrupted: ImageClassifier, layout: Layout, settings: QuantisationArtifactSettings
    ) -> None:
        self.corrupted = corrupted
        self.compressors: tuple[Compressor, ...] = tuple(
            compressors(",".join(settings.quantisers), seed=settings.seed)
        )
        self.simulated = late_layers(layout, settings.first_layer)

    def weights(self, stream: torch.Generator) -> list[Weights]:
        """Rounded with the running statistics of the present step."""
        del stream
        return [compressed_weights(self.corrupted, q, self.simulated) for q in self.compressors]

    def between(self, done: int) -> None:
        """Nothing changes between steps."""

    def state(self) -> dict[str, Any]:
        """The layers whose rounding is simulated."""
        return {"simulated_layers": list(self.simulated)}

    def restore(self, state: dict[str, Any]) -> None:
        """The state follows from the settings."""


def late_layers(layout: Layout, first: str) -> Layout:
    """The layers from ``first`` on, the beginning of a layer's name; all of them if empty.

    Raises:
        GenwardenError: ``attack/setting``.
    """
    names = list(layout)
    found = [place for place, name in enumerate(names) if f"{name}.".startswith(f"{first}.")]
    if first and not found:
        raise GenwardenError(
            "attack/setting",
            f"first_layer = {first!r}: the network has no such layer.",
            f"Its layers are: {', '.join(name.removesuffix('.weight') for name in names)}.",
        )
    return {name: layout[name] for name in names[found[0] if first else 0 :]}
