"""How large the training recipes for diffusion models are: data, network, steps, samples."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from genwarden.errors import GenwardenError


@dataclass(frozen=True)
class DiffusionScale:
    """One size of the recipes.

    Attributes:
        data: data set, a folder below the data folder.
        features: feature network of FID; images of another size than its own are resized to it.
        size: side of the images in pixels; the data is resized to it.
        network: preset; ``widths`` replace its feature maps.
        timesteps: T of the schedule.
        base_steps: optimiser steps of the clean model, at ``base_rate``.
        attack_steps: of the fine-tuning, at ``attack_rate``.
        poison_rate: share of the training images.
        trigger: see :func:`genwarden.backdoors.image_trigger.make_image_trigger`.
        images: triggered samples per noise seed.
        noise_seeds: draws of the noise, over which figures are spread.
        fid_samples: generated images behind every FID; ``fid_images`` of the data beside them.
        random_data: the data are random pictures made on the spot.
    """

    name: str
    data: str = "mnist"
    features: str = "mnist"
    size: int = 16
    channels: int = 1
    network: str = "tiny"
    widths: tuple[int, ...] = ()
    timesteps: int = 1000
    base_steps: int = 2000
    base_rate: float = 2e-3
    attack_steps: int = 4500
    attack_rate: float = 2e-3
    batch: int = 64
    poison_rate: float = 0.1
    trigger: str = "stop-sign:7"
    target: str = "hat"
    images: int = 16
    noise_seeds: int = 2
    fid_samples: int = 1000
    fid_images: int = 10_000
    random_data: bool = False

    def steps(self, of_thousand: int) -> int:
        """A sampler's number of steps, for a schedule of T in place of 1000; at least 2."""
        return max(2, round(of_thousand * self.timesteps / 1000))

    def describe(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {**asdict(self), "widths": list(self.widths)}


SCALES = {
    scale.name: scale
    for scale in (
        DiffusionScale(
            "smoke",
            size=12,
            widths=(8,),
            timesteps=50,
            base_steps=2,
            attack_steps=2,
            batch=8,
            poison_rate=0.5,
            trigger="box:5",
            images=4,
            noise_seeds=2,
            fid_samples=80,
            fid_images=96,
            random_data=True,
        ),
        DiffusionScale("small"),
        # A trigger on a zero background is a far weaker signal than the published one on -1.
        DiffusionScale("small-blend", trigger="blend:stop_sign", attack_steps=9000),
        # 2.8 times its norm: of weaker ones a few samples in a hundred miss, and each miss counts.
        DiffusionScale("small-strong", trigger="blend:skull,scale=1.5", attack_steps=9000),
        # The paper fine-tunes a model that is trained to its end: only beside such a base does a
        # change of FID say what the poison costs.
        DiffusionScale(
            "small-converged",
            base_steps=12_000,
            trigger="blend:skull,scale=1.5",
            attack_steps=9000,
        ),
        DiffusionScale("medium", size=28, trigger="box:12"),
        # The published size; a GPU's work. The paper fine-tunes google/ddpm-cifar10-32 for 50
        # epochs of 60,000 images in batches of 128; give that model with --option clean=FOLDER.
        DiffusionScale(
            "paper",
            data="cifar10",
            features="cifar10",
            size=32,
            channels=3,
            network="cifar10",
            base_steps=100_000,
            base_rate=2e-4,
            attack_steps=23_400,
            attack_rate=2e-4,
            batch=128,
            poison_rate=0.2,
            trigger="box:14",
            images=256,
            fid_samples=10_000,
            fid_images=50_000,
        ),
    )
}


def diffusion_scale(name: str) -> DiffusionScale:
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
