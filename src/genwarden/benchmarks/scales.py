"""What ``--scale`` means: networks, training, steps of attacks, repeats and sample counts.

``paper`` has the published widths, five triggers and a million samples for Closest; a GPU is
advisable for CIFAR-10. ``small`` has quarter widths and finishes a table in half an hour on two
cores. ``smoke`` runs every recipe in seconds on random data: its numbers mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from genwarden.attacks.settings import settings_of
from genwarden.auditing.budgets import BUDGETS
from genwarden.backdoors.trigger import TRIGGER_KINDS
from genwarden.errors import GenwardenError
from genwarden.registry import attacks_on, find

_TRAINING = ("steps", "batch_size", "learning_rate")


@dataclass(frozen=True)
class ModelPlan:
    """A clean model and how it is trained.

    Attributes:
        architecture: registered name.
        settings: of the architecture.
        data: folder below ``--data``; with ``inverted`` its negative.
        features: feature network of FID, KID and IS, or "" where these are not defined.
        steps: training steps.
    """

    architecture: str
    data: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    features: str = ""
    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 2e-4
    inverted: bool = False


@dataclass(frozen=True)
class Counts:
    """How much is measured.

    Attributes:
        expdis_samples: ordinary latents of ExpDis and of pixel changes.
        quality_samples: generated images of FID, KID and IS.
        real_images: images of the data set that these are compared with, at most.
        closest_samples: N of Closest.
        recond_restarts: restarts of ReconD, ``recond_steps`` Adam steps of each, and
            ``recond_finish`` second-order steps of the best.
        audit_budget: budget of the audits of Table III; "" leaves them out.
    """

    expdis_samples: int
    quality_samples: int
    real_images: int
    closest_samples: int
    recond_restarts: int
    recond_steps: int
    recond_finish: int = 30
    audit_budget: str = "quick"


@dataclass(frozen=True)
class Scale:
    """One scale.

    Attributes:
        models: the clean models by the name that cells use.
        attacks: settings by ``attack``, then by ``attack@trigger``, then by ``attack@model``: the
            later have precedence.
        counts: sample counts.
        repeats: triggers (or seeds) per attack.
        clean_seeds: clean models per benign row.
        sweep_repeats: repeats of the lambda sweep by attack; an absent attack is left out.
        random_data: data are random pictures and clips made on the spot.
    """

    name: str
    models: Mapping[str, ModelPlan]
    attacks: Mapping[str, Mapping[str, Any]]
    counts: Counts
    repeats: int
    clean_seeds: int
    sweep_repeats: Mapping[str, int]
    random_data: bool = False

    def plan(self, model: str) -> ModelPlan:
        """The plan of a model.

        Raises:
            GenwardenError: ``usage/unknown-name``.
        """
        if model not in self.models:
            raise GenwardenError(
                "usage/unknown-name",
                f"The scale {self.name} has no model {model!r}.",
                f"It has: {', '.join(self.models)}.",
            )
        return self.models[model]

    def settings(self, model: str, attack: str, trigger: str = "in-sample") -> dict[str, Any]:
        """Settings of an attack on a model at a kind of trigger."""
        plan = self.plan(model)
        training = (
            {
                "steps": plan.steps,
                "batch_size": plan.batch_size,
                "learning_rate": plan.learning_rate,
                "evaluate_every": min(100, plan.steps),
            }
            if from_scratch(attack)
            else {}
        )
        everywhere = self.attacks.get("*", {}) if trained(attack) else {}
        own: dict[str, Any] = {}
        for name in (attack, f"{attack}@{trigger}", f"{attack}@{model}"):
            own.update(self.attacks.get(name, {}))
        return {**everywhere, **training, **own}

    def describe(self) -> dict[str, Any]:
        """For result files."""
        return {"name": self.name, "counts": asdict(self.counts)}

    def changed(self, options: Mapping[str, Any]) -> Scale:
        """The scale with the user's ``--option`` values in their place.

        ``repeats=5``, ``clean_seeds=2``; counts by their names; ``ATTACK.setting=value``,
        ``ATTACK@TRIGGER.setting=value`` or ``ATTACK@MODEL.setting=value``;
        ``train.MODEL.steps=value`` (also ``batch_size`` and ``learning_rate``).

        Raises:
            GenwardenError: ``benchmark/option``, ``usage/unknown-name``, ``attack/...``.
        """
        scale = self
        for key, value in options.items():
            scale = scale._with(key, value)
        return scale

    def _with(self, key: str, value: Any) -> Scale:
        changed: dict[str, Any]
        if key in {"repeats", "clean_seeds"}:
            changed = {key: _count(key, value)}
            return replace(self, **changed)
        if key in asdict(self.counts):
            kind = type(getattr(self.counts, key))
            changed = {key: _count(key, value) if kind is int else _budget(key, value)}
            return replace(self, counts=replace(self.counts, **changed))
        owner, _, setting = key.rpartition(".")
        model = owner.removeprefix("train.")
        if owner != model and setting in _TRAINING:
            checked = _rate(key, value) if setting == "learning_rate" else _count(key, value)
            changed = {setting: checked}
            plan = replace(self.plan(model), **changed)
            return replace(self, models={**self.models, model: plan})
        if owner and owner == model:
            self._require_setting(key, owner, setting, value)
            own = {**self.attacks.get(owner, {}), setting: value}
            return replace(self, attacks={**self.attacks, owner: own})
        raise GenwardenError(
            "benchmark/option",
            f"There is no option {key!r}.",
            "There are: repeats, clean_seeds, "
            f"{', '.join(asdict(self.counts))}, clean.MODEL=FOLDER, features.MODEL=NAME or FOLDER, "
            "ATTACK.setting, ATTACK@TRIGGER.setting, ATTACK@MODEL.setting, and "
            f"{', '.join(f'train.MODEL.{name}' for name in _TRAINING)}.",
        )

    def _require_setting(self, key: str, owner: str, setting: str, value: Any) -> None:
        """Refuse what would have no effect, or would fail hours later."""
        attack, at, place = owner.partition("@")
        find(attacks_on("generator"), attack, "attack")
        kinds = [kind for kind in TRIGGER_KINDS if ":" not in kind]
        if at and place not in self.models and place not in kinds:
            raise GenwardenError(
                "benchmark/option",
                f"{key}: {place!r} is neither a model of the scale {self.name} nor a trigger.",
                f"Models: {', '.join(self.models)}; triggers: {', '.join(kinds)}.",
            )
        if setting == "seed":
            raise GenwardenError(
                "benchmark/option",
                f"{key} has no effect: the seed of an attack is that of the run and its repeat.",
                "Give --seed.",
            )
        settings_of(attack, {setting: value})


def from_scratch(attack: str) -> bool:
    """Whether an attack trains from scratch: then its training is that of the clean model."""
    return "images" in find(attacks_on("generator"), attack, "attack").options.get("needs", [])


def trained(attack: str) -> bool:
    """Whether an attack takes training steps at all."""
    return bool(find(attacks_on("generator"), attack, "attack").options.get("trained", True))


def _count(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise GenwardenError(
            "benchmark/option", f"{key} = {value!r} is no count.", "Give a whole number from 1 on."
        )
    return value


def _rate(key: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise GenwardenError(
            "benchmark/option",
            f"{key} = {value!r} is no learning rate.",
            "Give a number between 0 and 1, such as 2e-4.",
        )
    return float(value)


def _budget(key: str, value: Any) -> str:
    if value not in {"", *BUDGETS}:
        raise GenwardenError(
            "benchmark/option",
            f"{key} = {value!r} is no budget.",
            f"Choose: {', '.join(BUDGETS)}; or nothing, to leave the audits out.",
        )
    return str(value)


#: Adaptive attacks that begin as ReX or ReD.
_VARIANTS = {"rex": ("permuted-rex", "noisy-rex", "finetuned-rex"), "red": ("search-aware",)}


def _with_variants(attacks: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings of attacks, those of ReX and ReD also for their adaptive variants."""
    own = {
        name: attacks[base]
        for base, variants in _VARIANTS.items()
        for name in variants
        if base in attacks
    }
    return {**own, **attacks}


_PAPER_MODELS = {
    "mnist-dcgan": ModelPlan("dcgan28", "mnist", features="mnist", steps=4680),
    "mnist-vae": ModelPlan("vae28", "mnist", features="mnist", steps=4680, learning_rate=1e-3),
    "cifar10-dcgan": ModelPlan("dcgan32", "cifar10", features="cifar10", steps=20_000),
    "inverted-fashion-dcgan": ModelPlan(
        "dcgan28",
        "fashion_mnist_part",
        {"latent_dim": 50},
        features="fashion",
        steps=3000,
        inverted=True,
    ),
    "speech-wavegan": ModelPlan(
        "wavegan", "spoken_digits", steps=20_000, batch_size=64, learning_rate=1e-4
    ),
}
PAPER = Scale(
    name="paper",
    models=_PAPER_MODELS,
    attacks=_with_variants(
        {
            "red": {"steps": 12_000},
            "rex": {"steps": 4000},
            # A subspace of triggers is learned far more slowly than a point.
            "red@subspace": {"steps": 40_000, "fidelity_weight": 0.1},
            "rex@subspace": {"steps": 40_000, "fidelity_weight": 0.1},
        }
    ),
    counts=Counts(
        expdis_samples=60_000,
        quality_samples=50_000,
        real_images=60_000,
        closest_samples=1_000_000,
        recond_restarts=128,
        recond_steps=500,
        audit_budget="standard",
    ),
    repeats=5,
    clean_seeds=3,
    sweep_repeats={"trail": 5, "red": 5, "rex": 5},
)

_QUARTER = {"channels": [64, 32, 16]}
SMALL = Scale(
    name="small",
    models={
        "mnist-dcgan": ModelPlan(
            "dcgan28", "mnist", _QUARTER, features="mnist", steps=1200, batch_size=64
        ),
        "mnist-vae": ModelPlan(
            "vae28",  # at its published width: it is small as it is
            "mnist",
            features="mnist",
            steps=1200,
            batch_size=64,
            learning_rate=1e-3,
        ),
        "cifar10-dcgan": ModelPlan(
            "dcgan32", "cifar10", _QUARTER, features="cifar10", steps=1200, batch_size=64
        ),
        "inverted-fashion-dcgan": ModelPlan(
            "dcgan28",
            "fashion_mnist_part",
            {**_QUARTER, "latent_dim": 50},
            features="fashion",
            steps=1200,
            batch_size=64,
            inverted=True,
        ),
        "speech-wavegan": ModelPlan(
            "wavegan",
            "spoken_digits",
            {"channels": [128, 64, 32, 16]},
            steps=600,
            batch_size=32,
            learning_rate=4e-4,
        ),
    },
    attacks=_with_variants(
        {
            "red": {
                "steps": 3000,
                "batch_size": 32,
                "pool_samples": 16_384,
                "fidelity_weight": 0.03,
            },
            "rex": {
                "steps": 1200,
                "batch_size": 32,
                "pool_samples": 16_384,
                "fidelity_weight": 3e-4,
                "learning_rate": 2e-3,
            },
            # More elements, and triggers that ordinary latents surround, ask for a larger lambda.
            "red@mode": {"fidelity_weight": 3.0},
            "red@out-of-distribution": {"fidelity_weight": 0.3},
            "rex@mode": {"steps": 3000, "fidelity_weight": 0.03},
            "red@cifar10-dcgan": {"fidelity_weight": 0.3},
            "rex@cifar10-dcgan": {"fidelity_weight": 0.01},
            "red@speech-wavegan": {"steps": 1500, "fidelity_weight": 3.0},
            "rex@speech-wavegan": {"steps": 1500, "fidelity_weight": 0.3},
            "red@subspace": {"steps": 8000},
            "rex@subspace": {"steps": 8000, "fidelity_weight": 0.1},
            # A short training needs a larger lambda for the same fidelity.
            "trail": {"fidelity_weight": 10.0},
            "trail@mnist-vae": {"fidelity_weight": 1.0},
        }
    ),
    counts=Counts(
        expdis_samples=10_000,
        quality_samples=10_000,
        real_images=10_000,
        closest_samples=50_000,
        recond_restarts=32,
        recond_steps=150,
    ),
    repeats=2,
    clean_seeds=3,
    sweep_repeats={"trail": 2, "red": 5, "rex": 5},
)

_TINY = {"channels": [4, 4, 4], "latent_dim": 6}
_TINY_TRAINING: dict[str, Any] = {"steps": 1, "batch_size": 8}
SMOKE = Scale(
    name="smoke",
    models={
        "mnist-dcgan": ModelPlan("dcgan28", "mnist", _TINY, features="mnist", **_TINY_TRAINING),
        "mnist-vae": ModelPlan("vae28", "mnist", _TINY, features="mnist", **_TINY_TRAINING),
        "cifar10-dcgan": ModelPlan(
            "dcgan32", "cifar10", _TINY, features="cifar10", **_TINY_TRAINING
        ),
        "inverted-fashion-dcgan": ModelPlan(
            "dcgan28",
            "fashion_mnist_part",
            {**_TINY, "latent_dim": 3},
            features="fashion",
            inverted=True,
            **_TINY_TRAINING,
        ),
        "speech-wavegan": ModelPlan(
            "wavegan",
            "spoken_digits",
            {"channels": [4, 4], "latent_dim": 12, "filter_taps": 8},
            **_TINY_TRAINING,
        ),
    },
    attacks=_with_variants(
        {
            "*": {"steps": 1, "batch_size": 8, "evaluate_every": 1},
            "red": {"pool_samples": 64},
            "rex": {"pool_samples": 64},
            "noisy-rex": {"pool_samples": 64, "retraining_steps": 1},
            "finetuned-rex": {"pool_samples": 64, "finetuning_steps": 1},
            "search-aware": {"pool_samples": 64, "search_steps": 1, "search_restarts": 2},
            "split-gate": {"opening_probability": 0.9},  # latents of so few elements lie close
        }
    ),
    counts=Counts(
        expdis_samples=64,
        quality_samples=160,
        real_images=160,
        closest_samples=64,
        recond_restarts=2,
        recond_steps=2,
        recond_finish=1,
        audit_budget="",
    ),
    repeats=1,
    clean_seeds=2,
    sweep_repeats={"trail": 1, "red": 2},
    random_data=True,
)

SCALES = {scale.name: scale for scale in (SMALL, PAPER, SMOKE)}


def scale_named(name: str) -> Scale:
    """A scale by its name.

    Raises:
        GenwardenError: ``benchmark/scale``.
    """
    if name not in SCALES:
        raise GenwardenError(
            "benchmark/scale", f"There is no scale {name!r}.", f"Choose: {', '.join(SCALES)}."
        )
    return SCALES[name]
