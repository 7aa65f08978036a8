"""Pruning attack of "Stealthy Backdoors as Compression Artifacts" (section 1.3 of the reference).

The deployer removes the filters with the smallest L1 norms, at rates per layer that an annealer
finds (:mod:`genwarden.compression.annealing`). The attacker runs the annealer on the clean model
and trains with masks at those rates, recomputed from the weights at every forward pass. Known rate:
one mask, a = 0.1. Unknown rate: three masks, with the layer rates at the upper and at the lower
global rate and with rates drawn between them, layer by layer, at every step.

What a deployer's annealer finds on the finished model often lies outside the rates of two
annealings of the clean one, and then the backdoor sleeps on. ``drawn = "annealer"``, ours, draws
the third mask from all that the annealer may find: a rate between the two, and layer rates by the
law that it begins with.

The attack moves the layer rates that a later annealing finds. ``reanneal_every`` runs the annealer
on the attacked model itself during the training and records how far the rates moved (the closed
loop of ``known_rate_iterative``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal

import torch

from genwarden.attacks.compression.classifier_contract import (
    AttackerData,
    ClassifierAttackResult,
    ClassifierBackdoor,
)
from genwarden.attacks.compression.evaluation import with_weights
from genwarden.attacks.compression.joint_training import (
    JointSettings,
    starting_point,
    train_jointly,
)
from genwarden.attacks.contract import AttackRun
from genwarden.compression.annealing import (
    Judge,
    LayerwiseFilterPruning,
    annealed_pruning,
    layer_distance,
    random_pruning,
)
from genwarden.compression.apply import compressed_weights
from genwarden.compression.contract import Compressor, Weights
from genwarden.compression.layers import Layout, layout_of
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, NOT_NEGATIVE, SHARE, Range
from genwarden.errors import GenwardenError
from genwarden.metrics.attack_success import accuracy
from genwarden.models.classifiers.protocol import ImageClassifier

#: Index of the attacker's annealings; the deployer's count from 0.
_ATTACKER: Final = 1000


@dataclass(frozen=True)
class PruningArtifactSettings(JointSettings):
    """Settings of the pruning attack.

    Attributes:
        knowledge: known-rate: the deployer prunes ``rate``; unknown-rate: something from ``rate``
            to ``upper_rate``.
        rate: share of the convolutions' weights; the lower one where it is unknown.
        upper_rate: the higher one; only where it is unknown.
        drawn: the third mask of an unknown rate: layer rates between those of the other two (as
            published), or by the annealer's own law.
        layer_rates: annealed on the clean model, or uniform: the same in every layer.
        triggered_share: a of the loss.
        judged_on: training images on which the annealer measures accuracy.
        reanneal_every: steps between two annealings of the attacked model; 0: never.
        reanneal_times: at most so many.
        deployed_rates: rates at which the finished model is measured, too: the same in every layer,
            and as the deployer's own annealings of it find.
        deployed_runs: annealings per rate; 0: none. The paper runs 5.
    """

    knowledge: Literal["known-rate", "unknown-rate"] = "known-rate"
    rate: float = 0.3
    upper_rate: float = 0.5
    drawn: Literal["between", "annealer"] = "between"
    layer_rates: Literal["annealed", "uniform"] = "annealed"
    triggered_share: float = 0.1
    judged_on: int = 1000
    reanneal_every: int = 0
    reanneal_times: int = 10
    deployed_rates: tuple[float, ...] = (0.25, 0.3, 0.4, 0.5)
    deployed_runs: int = 1

    RANGES: ClassVar[Mapping[str, Range]] = {
        "rate": Range(above=0, below=1),
        "upper_rate": Range(above=0, below=1),
        "triggered_share": SHARE,
        "judged_on": COUNT,
        "reanneal_every": NOT_NEGATIVE,
        "reanneal_times": COUNT,
        "deployed_runs": NOT_NEGATIVE,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.knowledge == "unknown-rate" and self.upper_rate <= self.rate:
            raise GenwardenError(
                "attack/setting",
                f"upper_rate = {self.upper_rate:g} is not above rate = {self.rate:g}.",
                "Give a larger upper_rate, or knowledge=known-rate.",
            )
        if self.drawn == "annealer" and (
            self.knowledge == "known-rate" or self.layer_rates == "uniform"
        ):
            raise GenwardenError(
                "attack/setting",
                "drawn=annealer is for deployers who anneal at a rate that is not known.",
                "Add knowledge=unknown-rate and leave layer_rates away, or leave drawn away.",
            )
        if not all(0 < rate < 1 for rate in self.deployed_rates):
            raise GenwardenError(
                "attack/setting",
                f"deployed_rates = {self.deployed_rates} are not pruning rates.",
                "Give numbers between 0 and 1, such as deployed_rates=0.3,0.5.",
            )
        if self.reanneal_every and self.layer_rates == "uniform":
            raise GenwardenError(
                "attack/setting",
                "Uniform layer rates are not annealed, so they cannot be annealed again.",
                "Leave reanneal_every away, or give layer_rates=annealed.",
            )


def pruning_artifact(
    classifier: ImageClassifier,
    backdoor: ClassifierBackdoor,
    settings: PruningArtifactSettings,
    data: AttackerData,
    run: AttackRun,
) -> ClassifierAttackResult:
    """Hide a backdoor that wakes up when filters are pruned."""
    corrupted = starting_point(classifier, settings)
    device = next(corrupted.parameters()).device
    blank = torch.zeros(1, *classifier.sample.shape, device=device)
    layout = layout_of(corrupted, lambda: corrupted(blank))
    versions = PrunedVersions(classifier, corrupted, layout, settings, data)
    result = train_jointly(corrupted, classifier, backdoor, versions, layout, settings, data, run)
    run.progress.message("pruning as a deployer would")
    return result._replace(deployed=deployed_prunings(corrupted, layout, settings, data))


def deployed_prunings(
    network: ImageClassifier, layout: Layout, settings: PruningArtifactSettings, data: AttackerData
) -> tuple[LayerwiseFilterPruning, ...]:
    """What deployers who know nothing make of a model: uniform and annealed layer rates."""
    judge = accuracy_judge(network, data, settings.judged_on, settings.seed)
    made = [uniform_pruning(layout, rate) for rate in settings.deployed_rates]
    for rate in settings.deployed_rates:
        for index in range(settings.deployed_runs):
            found = annealed_pruning(network, layout, rate, judge, seed=settings.seed, index=index)
            made.append(replace(found, label=f"{found.label}-run{index + 1}"))
    return tuple(made)


class PrunedVersions:
    """The masked versions of one or three pruning rates; see :class:`.joint_training.Versions`.

    Args:
        clean: whose annealed layer rates the training starts with.
        corrupted: the network in training.
    """

    def __init__(
        self,
        clean: ImageClassifier,
        corrupted: ImageClassifier,
        layout: Layout,
        settings: PruningArtifactSettings,
        data: AttackerData,
    ) -> None:
        self.corrupted = corrupted
        self.layout = layout
        self.settings = settings
        self.data = data
        self.share = settings.triggered_share
        unknown = settings.knowledge == "unknown-rate"
        self.rates = (settings.rate, settings.upper_rate) if unknown else (settings.rate,)
        self.moved: list[float] = []
        self.prunings = self._prunings(clean, 0)

    @property
    def compressors(self) -> tuple[Compressor, ...]:
        """At the lower and the upper rate, or the known one."""
        return self.prunings

    def weights(self, stream: torch.Generator) -> list[Weights]:
        """Masks from the present weights: gradients reach what is kept."""
        used = list(self.prunings)
        if len(used) == 2:
            used.insert(1, self._third(used[0], used[1], stream))
        return [compressed_weights(self.corrupted, one, self.layout) for one in used]

    def between(self, done: int) -> None:
        """Anneal the attacked model again, if it is time."""
        every = self.settings.reanneal_every
        if not every or done % every or done // every > self.settings.reanneal_times:
            return
        before = self.prunings
        self.prunings = self._prunings(self.corrupted, done // every)
        self.moved.append(
            max(layer_distance(*pair) for pair in zip(before, self.prunings, strict=True))
        )

    def state(self) -> dict[str, Any]:
        """Layer rates by the name of the pruning, and how far each annealing moved them."""
        rates = {one.name: dict(one.rates) for one in self.prunings}
        return {"layer_rates": rates, "layer_rates_moved": list(self.moved)}

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`.joint_training.Versions`."""
        self.moved = list(state["layer_rates_moved"])
        self.prunings = tuple(
            LayerwiseFilterPruning(state["layer_rates"][one.name], one.label)
            for one in self.prunings
        )

    def _prunings(self, network: ImageClassifier, run: int) -> tuple[LayerwiseFilterPruning, ...]:
        if self.settings.layer_rates == "uniform":
            return tuple(uniform_pruning(self.layout, rate) for rate in self.rates)
        judge = accuracy_judge(network, self.data, self.settings.judged_on, self.settings.seed)
        return tuple(
            annealed_pruning(
                network,
                self.layout,
                rate,
                judge,
                seed=self.settings.seed,
                index=_ATTACKER + run,
            )
            for rate in self.rates
        )

    def _third(
        self, one: LayerwiseFilterPruning, other: LayerwiseFilterPruning, stream: torch.Generator
    ) -> LayerwiseFilterPruning:
        if self.settings.drawn == "between":
            return self._between(one, other, stream)
        low, high = self.settings.rate, self.settings.upper_rate
        rate = low + (high - low) * float(torch.rand((), generator=stream))
        return random_pruning(self.corrupted, self.layout, rate, stream)

    @staticmethod
    def _between(
        one: LayerwiseFilterPruning, other: LayerwiseFilterPruning, stream: torch.Generator
    ) -> LayerwiseFilterPruning:
        """Every layer's rate drawn between its two, whichever is the larger."""
        share = torch.rand(len(one.rates), generator=stream).tolist()
        return LayerwiseFilterPruning(
            {
                name: rate + part * (other.rates[name] - rate)
                for part, (name, rate) in zip(share, one.rates.items(), strict=True)
            },
            "random",
        )


def uniform_pruning(layout: Layout, rate: float) -> LayerwiseFilterPruning:
    """The same rate in every convolution: what ``prune-filters-RATE`` does."""
    names = [name for name, layer in layout.items() if layer.kind != "linear"]
    return LayerwiseFilterPruning(dict.fromkeys(names, rate), f"{rate:g}")


def accuracy_judge(network: ImageClassifier, data: AttackerData, count: int, seed: int) -> Judge:
    """Accuracy in percent on random training images, of the network with other weights."""
    device = next(network.parameters()).device
    order = torch.randperm(len(data.images), generator=random_stream(seed, "annealing-images"))
    images, labels = data.images[order[:count]].to(device), data.labels[order[:count]]

    def judge(weights: Weights) -> float:
        was_training = network.training
        network.eval()
        found = 100 * accuracy(with_weights(network, weights), images, labels)
        network.train(was_training)
        return found

    return judge
