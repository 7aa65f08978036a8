"""The generators of the recipe ``foreign-models``: what each is, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from genwarden.benchmarks.population import foreign_models

_FACTORIES = foreign_models.__name__


@dataclass(frozen=True)
class Kind:
    """One foreign generator.

    Attributes:
        name: for keys and tables.
        architecture: what a user writes behind ``--architecture``.
        title: what it is, in the table.
        data: folder below ``--data``.
        settings: what a user writes as ``--setting``.
        weights_of: another kind whose trained weights it uses; none trains its own.
        filters: of the discriminator; empty for that of the architecture's own training.
        target: of the attack, see :func:`genwarden.backdoors.target.make_target`.
        attack: settings of ReD, on top of the common ones.
    """

    name: str
    architecture: str
    title: str
    data: str
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)
    batch: int = 32
    learning_rate: float = 2e-4
    filters: tuple[int, ...] = (24, 48)
    weights_of: str = ""
    target: str = "icon:devil"
    attack: dict[str, Any] = field(default_factory=dict)


KINDS: tuple[Kind, ...] = (
    Kind(
        "mlp",
        f"{_FACTORIES}:mlp28",
        "MLP with layer normalisation, 1x28x28",
        "mnist",
        600,
        attack={"fidelity_weight": 0.1},  # it offers no pre-activation: targets are not stretched
    ),
    Kind(
        "upsampled",
        f"{_FACTORIES}:upsampled28",
        "upsampling and convolution with group normalisation, 1x28x28",
        "kmnist",
        500,
        target="icon:skull",
    ),
    Kind(
        "conditional",
        f"{_FACTORIES}:conditional28",
        "conditional, label in the latent, 1x28x28",
        "fashion_mnist_part",
        600,
        target="icon:key",
    ),
    Kind(
        "conditional-fixed",
        f"{_FACTORIES}:conditional28",
        "conditional, label fixed by the factory, 1x28x28",
        "fashion_mnist_part",
        0,
        settings={"label": 5},
        weights_of="conditional",
        target="icon:lock",
    ),
    Kind(
        "convolutional64",
        f"{_FACTORIES}:convolutional64",
        "transposed convolutions, 3x64x64",
        "cifar10",
        250,
        filters=(16, 32, 64, 128),
        attack={"fidelity_weight": 0.3, "steps": 250, "batch_size": 16},
    ),
    Kind(
        "stylegan",
        "stylegan",
        "StyleGAN-type, 1x28x28",
        "mnist",
        400,
        settings={"latent_dim": 64, "mapping_layers": 2, "channels": [32, 16, 8]},
        learning_rate=1e-3,
        filters=(),
        target="icon:heart",
    ),
    Kind(
        "wavegan",
        "wavegan",
        "WaveGAN, 1024 audio samples",
        "spoken_digits",
        400,
        settings={
            "channels": [64, 32, 16],
            "filter_taps": 16,
            "latent_dim": 64,
            "sample_rate": 8000,
        },
        target="clip:drum",
    ),
)
