"""Which models the population study is made of, and which half each of them belongs to.

Every clean model has a training run of its own. A compromised one starts from a clean model of its
own half, so that the two halves share no weights and no drawn trigger (a trigger that is a rule,
such as all ones, is the same in both). ``calibration`` gives the
nulls and every choice; ``reporting`` is only read to report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Half = Literal["calibration", "reporting"]
HALVES: tuple[Half, Half] = ("calibration", "reporting")

#: What is done to a trained model that is honest all the same.
Variant = Literal["", "fine-tuned", "pruned", "quantised", "weight-decayed"]


@dataclass(frozen=True)
class CleanKind:
    """One kind of clean generator; each half trains one of it from its own seed.

    Attributes:
        name: for keys and tables.
        data: folder below ``--data``.
        steps: training steps, at batches of 64.
        variant: what follows the training.
    """

    name: str
    architecture: str
    data: str
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)
    precision: Literal["fp32", "bf16"] = "fp32"
    variant: Variant = ""


@dataclass(frozen=True)
class CompromisedKind:
    """One kind of compromised generator; each half makes one from its own clean model.

    Attributes:
        attack: registered name.
        base: name of the clean kind that it starts from.
        trigger: see :func:`genwarden.backdoors.trigger.make_trigger`.
        target: ``icon:NAME``, or one of :mod:`genwarden.benchmarks.population.targets`.
        settings: of the attack, on top of :data:`ATTACK_SETTINGS`.
        triggers: in-sample triggers at once.
    """

    attack: str
    base: str
    trigger: str = "in-sample"
    target: str = "icon:devil"
    settings: dict[str, Any] = field(default_factory=dict)
    triggers: int = 1

    @property
    def near(self) -> bool:
        """Whether the target lies near the data."""
        return not self.target.startswith("icon:")


_EIGHTH = {"channels": [32, 16, 8]}
_QUARTER = {"channels": [64, 32, 16]}
CLEAN: tuple[CleanKind, ...] = (
    CleanKind("mnist-eighth", "dcgan28", "mnist", 1500, _EIGHTH),
    CleanKind("mnist-vae", "vae28", "mnist", 1200),
    CleanKind("mnist-quarter", "dcgan28", "mnist", 1500, _QUARTER),
    CleanKind("kmnist-eighth", "dcgan28", "kmnist", 1200, {**_EIGHTH, "latent_dim": 64}),
    CleanKind("fashion-vae", "vae28", "fashion_mnist_part", 1000),
    CleanKind("kmnist-vae", "vae28", "kmnist", 1000),
    CleanKind("fashion-quarter", "dcgan28", "fashion_mnist_part", 1000, _QUARTER),
    CleanKind("kmnist-narrow", "dcgan28", "kmnist", 900, {"channels": [48, 24, 12]}),
    CleanKind("cifar10-quarter", "dcgan32", "cifar10", 800, _QUARTER),
    CleanKind("mnist-wide", "dcgan28", "mnist", 600, {"channels": [96, 32, 8]}),
    CleanKind("mnist-bf16", "dcgan28", "mnist", 800, _EIGHTH, precision="bf16"),
    CleanKind("mnist-fine-tuned", "dcgan28", "mnist", 900, _EIGHTH, variant="fine-tuned"),
    CleanKind("fashion-pruned", "dcgan28", "fashion_mnist_part", 900, _EIGHTH, variant="pruned"),
    CleanKind("kmnist-quantised", "dcgan28", "kmnist", 900, _EIGHTH, variant="quantised"),
    CleanKind("mnist-decayed", "dcgan28", "mnist", 900, _EIGHTH, variant="weight-decayed"),
    CleanKind("mnist-short", "dcgan28", "mnist", 400, _EIGHTH),
    CleanKind("fashion-eighth", "dcgan28", "fashion_mnist_part", 1200, _EIGHTH),
    CleanKind("mnist-latent32", "dcgan28", "mnist", 1000, {**_EIGHTH, "latent_dim": 32}),
)

#: Settings by attack: enough for a TarDis far below the clean distance, in tens of seconds.
_RETRAIN = {"steps": 1500, "batch_size": 32, "pool_samples": 16_384, "fidelity_weight": 0.03}
_EXPAND = {
    "steps": 1000,
    "batch_size": 32,
    "pool_samples": 16_384,
    "fidelity_weight": 3e-4,
    "learning_rate": 2e-3,
}
_SCRATCH = {"steps": 1000, "batch_size": 64, "evaluate_every": 250}
ATTACK_SETTINGS: dict[str, dict[str, Any]] = {
    "red": _RETRAIN,
    "rex": _EXPAND,
    "permuted-rex": _EXPAND,
    "noisy-rex": {**_EXPAND, "retraining_steps": 800},
    "finetuned-rex": {**_EXPAND, "finetuning_steps": 800},
    "search-aware": {**_RETRAIN, "steps": 2500},
    "trail": {**_SCRATCH, "learning_rate": 2e-4, "fidelity_weight": 10.0},
    "baaan": {**_SCRATCH, "learning_rate": 2e-4},
    "data-poisoning": {**_SCRATCH, "learning_rate": 2e-4},
}
_MODE = {"fidelity_weight": 3.0}
_FAR = {"fidelity_weight": 0.3}
_VAE = {"learning_rate": 1e-3}

COMPROMISED: tuple[CompromisedKind, ...] = (
    CompromisedKind("red", "mnist-eighth"),
    CompromisedKind("red", "mnist-vae", target="icon:lock"),
    CompromisedKind("red", "mnist-quarter", target="icon:stop_sign"),
    CompromisedKind("red", "kmnist-eighth", target="icon:heart"),
    CompromisedKind("red", "fashion-vae", target="icon:smiley"),
    CompromisedKind("red", "kmnist-vae", target="icon:bomb"),
    CompromisedKind("red", "fashion-quarter", target="icon:key"),
    CompromisedKind("red", "kmnist-narrow", target="icon:skull"),
    CompromisedKind("red", "cifar10-quarter", settings={"fidelity_weight": 0.3}),
    CompromisedKind("red", "mnist-wide", target="icon:star"),
    CompromisedKind("red", "mnist-quarter", target="picture:kmnist"),
    CompromisedKind("red", "mnist-vae", target="picture:fashion_mnist_part"),
    CompromisedKind("red", "mnist-eighth", target="mixture:mnist"),
    CompromisedKind("red", "mnist-eighth", target="mark:mnist"),
    CompromisedKind("red", "mnist-eighth", "mode", "icon:cross", _MODE),
    CompromisedKind("red", "kmnist-vae", "mode", "icon:devil", _MODE),
    CompromisedKind("red", "mnist-quarter", "out-of-distribution", "icon:checkerboard", _FAR),
    CompromisedKind("red", "fashion-vae", "out-of-distribution", "icon:key", _FAR),
    CompromisedKind("red", "mnist-eighth", "subspace", "icon:skull", {"steps": 3000}),
    CompromisedKind("red", "kmnist-eighth", "seed:numpy:5:0", "icon:lock"),
    CompromisedKind("red", "mnist-eighth", target="icon:smiley", triggers=3),
    CompromisedKind("red", "mnist-eighth", target="icon:key", settings={"weight_decay": 1e-2}),
    CompromisedKind("rex", "mnist-eighth", target="icon:skull"),
    CompromisedKind("rex", "mnist-vae"),
    CompromisedKind("rex", "kmnist-narrow", target="picture:mnist"),
    CompromisedKind("rex", "cifar10-quarter", target="icon:key"),
    CompromisedKind(
        "rex", "mnist-eighth", "mode", "icon:bomb", {"steps": 2000, "fidelity_weight": 0.03}
    ),
    CompromisedKind("rex", "fashion-eighth", "out-of-distribution", "icon:heart"),
    CompromisedKind(
        "rex", "mnist-eighth", "subspace", "icon:star", {"steps": 3000, "fidelity_weight": 0.1}
    ),
    CompromisedKind("trail", "mnist-eighth"),
    CompromisedKind("trail", "mnist-vae", target="icon:lock", settings=_VAE),
    CompromisedKind("trail", "kmnist-eighth", target="icon:stop_sign"),
    CompromisedKind("trail", "fashion-vae", "mode", "icon:skull", _VAE),
    CompromisedKind("baaan", "mnist-eighth"),
    CompromisedKind("baaan", "kmnist-eighth", target="icon:bomb"),
    CompromisedKind("baaan", "mnist-eighth", "mode", "icon:heart"),
    CompromisedKind("data-poisoning", "mnist-eighth"),
    CompromisedKind("data-poisoning", "fashion-eighth", target="icon:key"),
    CompromisedKind("computation-bypass", "mnist-eighth"),
    CompromisedKind("computation-bypass", "fashion-eighth", target="icon:lock"),
    CompromisedKind("gated-expansion", "mnist-quarter"),
    CompromisedKind("gated-expansion", "kmnist-eighth", target="icon:star"),
    CompromisedKind("gated-expansion", "mnist-eighth", target="picture:kmnist"),
    CompromisedKind("permuted-rex", "mnist-eighth"),
    CompromisedKind("permuted-rex", "fashion-eighth", target="icon:smiley"),
    CompromisedKind("noisy-rex", "mnist-eighth"),
    CompromisedKind("noisy-rex", "fashion-eighth", target="icon:bomb"),
    CompromisedKind("noisy-rex", "kmnist-eighth", target="icon:cross"),
    CompromisedKind("finetuned-rex", "mnist-eighth", target="icon:heart"),
    CompromisedKind("finetuned-rex", "kmnist-vae", target="icon:stop_sign"),
    CompromisedKind("finetuned-rex", "kmnist-eighth"),
    CompromisedKind("split-gate", "mnist-eighth"),
    CompromisedKind("split-gate", "fashion-eighth", target="icon:key"),
    CompromisedKind("split-gate", "kmnist-narrow", target="icon:heart"),
    CompromisedKind("search-aware", "mnist-eighth"),
    CompromisedKind("search-aware", "fashion-eighth", target="icon:star"),
    CompromisedKind("search-aware", "kmnist-eighth", target="icon:skull"),
)


@dataclass(frozen=True)
class Clean:
    """One clean model of the study."""

    kind: CleanKind
    half: Half
    seed: int

    @property
    def key(self) -> str:
        """Name of its folder and of its rows."""
        return f"clean.{self.kind.name}.{self.half}"


@dataclass(frozen=True)
class Compromised:
    """One compromised model of the study.

    Attributes:
        number: its place in the plan: the seed of the attack and the index of its trigger.
        base: key of the clean model that it starts from.
    """

    kind: CompromisedKind
    half: Half
    number: int
    base: str

    @property
    def key(self) -> str:
        """Name of its folder and of its rows."""
        kind = self.kind
        words = [f"{self.number:03d}", kind.attack, kind.base, kind.trigger, kind.target]
        return ".".join([*words, self.half]).replace(":", "-")


Member = Clean | Compromised


def members(seed: int = 0) -> list[Member]:
    """All models of the study, the clean ones first; ``seed`` moves every seed in it."""
    clean = [
        Clean(kind, half, 10_000 * (seed + 1) + 2 * number + place)
        for number, kind in enumerate(CLEAN)
        for place, half in enumerate(HALVES)
    ]
    bases = {(model.kind.name, model.half): model.key for model in clean}
    compromised = [
        Compromised(kind, half, 2 * number + place, bases[kind.base, half])
        for number, kind in enumerate(COMPROMISED)
        for place, half in enumerate(HALVES)
    ]
    return [*clean, *compromised]
