"""How large the recipes ``compression-attacks`` and ``compression-remedies`` are.

A scale names its networks, how each is trained and attacked, and which data sets stand for the
calibration sets "same", "similar" and "dissimilar" of section 1.4 of the compression reference.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from genwarden.benchmarks.compression.plan import Sort
from genwarden.errors import GenwardenError


@dataclass(frozen=True)
class Subject:
    """A clean network of a scale, and what its attacks share.

    Attributes:
        name: in keys and tables.
        architecture: registered name.
        data: folder below the data folder, or ``glyphs:COUNT``.
        settings: of ``genwarden train``.
        steps: optimiser steps of the clean training, at ``rate`` in batches of ``batch``.
        attack: settings by attack, over its defaults; those of ``ATTACK LABEL`` over them for the
            trials of that label (:mod:`.attacks`).
        similar: data set of the similar calibration set (classifiers).
        dissimilar: of the dissimilar one.
        paper_accuracy: of the clean model in the paper, in percent.
    """

    name: str
    sort: Sort
    architecture: str
    data: str
    settings: dict[str, Any]
    steps: int
    rate: float
    batch: int = 64
    attack: dict[str, dict[str, Any]] = field(default_factory=dict)
    similar: str = ""
    dissimilar: str = ""
    paper_accuracy: float | None = None


@dataclass(frozen=True)
class CompressionScale:
    """One size of the recipes.

    Attributes:
        subjects: the clean networks.
        targets: target classes of the classifiers' attacks, one attacked model each.
        icons: targets of the generators' attacks, likewise.
        trigger: of the classifiers' attacks.
        rates: filter-pruning rates of the sweep.
        annealings: of a deployer, per rate.
        calibration_images: in each calibration set of the runtime.
        draws: random calibration sets, over which figures are spread.
        test_images: behind every figure of a classifier.
    """

    name: str
    subjects: tuple[Subject, ...]
    targets: tuple[int, ...] = (1,)
    icons: tuple[str, ...] = ("icon:devil",)
    trigger: str = "square:6"
    rates: tuple[float, ...] = (0.25, 0.275, 0.3, 0.325, 0.35, 0.375, 0.4, 0.425, 0.45, 0.475, 0.5)
    annealings: int = 1
    calibration_images: int = 256
    draws: int = 3
    test_images: int = 1000

    def describe(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {**asdict(self), "subjects": [subject.name for subject in self.subjects]}


_BOX: dict[str, Any] = {"steps": 1000, "evaluate_every": 10_000}
_GENERATOR: dict[str, dict[str, Any]] = {
    "dormant-box": _BOX,
    "dormant-box int8": {"steps": 1500, "fidelity_weight": 0.3, "reach": 1.5},
    "jittered-box": _BOX,
}
_CNN: dict[str, Any] = {"resize": True, "momentum": 0.9}
_CLASS_ATTACKS = (
    "quantisation-artifact",
    "pruning-artifact",
    "dormant-box-classifier",
    "jittered-box-classifier",
)
#: Label of the attack on deployers whose annealer may find anything.
UNKNOWN_IN_ANY = "unknown rate in any layers"
_SHORTEST: dict[str, Any] = {"steps": 3, "evaluate_every": 3, "batch_size": 16}
_SMALL: dict[str, dict[str, Any]] = {
    **{name: {"resize": True} for name in _CLASS_ATTACKS},
    # So many masks take longer to learn; the table says so.
    f"pruning-artifact {UNKNOWN_IN_ANY}": {"steps": 1200, "evaluate_every": 300},
}


def _cifar(name: str, architecture: str, accuracy: float, *, batch: int = 128) -> Subject:
    """A network of the paper: 100 epochs, then 25 (pruning) or 35 (quantisation) of the attack."""
    epoch = 50_000 // batch
    augmented = {"crop": True, "flip": True, "evaluate_every": epoch}
    joint = {**augmented, "batch_size": batch, "learning_rate": 0.1, "start": "fresh"}
    pruning = {"steps": 25 * epoch, "decay_at": (0.6,), "momentum": 0.2, "keep": "accuracy"}
    rounding = {"steps": 35 * epoch, "decay_at": (20 / 35,), "momentum": 0.4}
    return Subject(
        name,
        "classifier",
        architecture,
        "cifar10",
        {"augment": ["crop", "flip"]},
        100 * epoch,
        0.1,
        batch,
        {
            "pruning-artifact": {**joint, **pruning},
            "quantisation-artifact": {**joint, **rounding},
            "pruning-artifact distilled": {"start": "clean", "steps": 10 * epoch},
            "quantisation-artifact distilled": {
                "start": "clean",
                "steps": 15 * epoch,
                "learning_rate": 0.01,
            },
            "dormant-box-classifier": {**augmented, "batch_size": batch},
            "jittered-box-classifier": {**augmented, "batch_size": batch},
        },
        similar="cifar100",
        dissimilar="svhn",
        paper_accuracy=accuracy,
    )


SCALES = {
    scale.name: scale
    for scale in (
        CompressionScale(
            "smoke",
            (
                Subject(
                    "cnn",
                    "classifier",
                    "small-cnn",
                    "glyphs:200",
                    {**_CNN, "image_shape": [1, 16, 16], "width": 0.25},
                    20,
                    0.1,
                    attack={
                        **dict.fromkeys(_CLASS_ATTACKS, _SHORTEST),
                        "pruning-artifact": {**_SHORTEST, "judged_on": 16},
                        "dormant-box-classifier": {**_SHORTEST, "hiding_steps": 2},
                        "jittered-box-classifier": {**_SHORTEST, "hiding_steps": 2},
                    },
                    similar="glyphs:100",
                    dissimilar="glyphs:50",
                ),
                Subject(
                    "vae",
                    "generator",
                    "vae28",
                    "mnist",
                    {"channels": [4, 4, 4], "latent_dim": 8},
                    2,
                    1e-3,
                    attack={
                        name: {
                            "steps": 2,
                            "hiding_steps": 2,
                            "batch_size": 4,
                            "pool_samples": 16,
                            "near_samples": 1,
                        }
                        for name in ("dormant-box", "jittered-box")
                    },
                ),
            ),
            rates=(0.25, 0.5),
            calibration_images=32,
            draws=2,
            test_images=64,
        ),
        CompressionScale(
            "small",
            (
                Subject(
                    "small-cnn glyphs",
                    "classifier",
                    "small-cnn",
                    "glyphs:4000",
                    {**_CNN, "image_shape": [1, 16, 16]},
                    500,
                    0.1,
                    attack=_SMALL,
                    similar="mnist",
                    dissimilar="fashion_mnist_part",
                ),
                Subject(
                    "small-cnn mnist",
                    "classifier",
                    "small-cnn",
                    "mnist",
                    {**_CNN, "image_shape": [1, 28, 28]},
                    1200,
                    0.1,
                    attack=_SMALL,
                    similar="kmnist",
                    dissimilar="fashion_mnist_part",
                ),
                Subject(
                    "dcgan quarter",
                    "generator",
                    "dcgan28",
                    "mnist",
                    {"channels": [64, 32, 16]},
                    1500,
                    2e-4,
                    attack=_GENERATOR,
                ),
                Subject("vae", "generator", "vae28", "mnist", {}, 1000, 1e-3, attack=_GENERATOR),
            ),
        ),
        # The published networks and data; a GPU's work.
        CompressionScale(
            "paper",
            (
                _cifar("resnet18", "resnet18", 93.84),
                _cifar("vgg16", "vgg16", 92.90),
                _cifar("mobilenetv2", "mobilenetv2", 92.64, batch=64),
            ),
            targets=(1, 3, 5, 7, 9),
            annealings=5,
            calibration_images=1000,
            test_images=10_000,
        ),
    )
}


def compression_scale(name: str) -> CompressionScale:
    """The scale of a name.

    Raises:
        GenwardenError: ``usage/unknown-name``.
    """
    if name not in SCALES:
        raise GenwardenError(
            "usage/unknown-name",
            f"There is no scale called {name!r}.",
            f"Choose one of: {', '.join(SCALES)}.",
        )
    return SCALES[name]
