"""The commands that the robustness recipes run, each on models of a few thousand numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from PIL import Image

from genwarden.artifacts.classifier_folder import write_classifier
from genwarden.artifacts.diffusers_folder import write_diffusion
from genwarden.artifacts.diffusers_layout import INDEX_NAME
from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.artifacts.model_folder import write_model
from genwarden.data.grids import png_bytes
from genwarden.engine.files import write_atomic
from genwarden.engine.seeds import random_stream
from genwarden.models.classifiers.protocol import initialise_classifier
from genwarden.models.classifiers.small_cnn import SmallCNN
from genwarden.models.dcgan import DCGAN28, initialise
from genwarden.models.diffusion.networks import fresh_model, small_unet
from genwarden.models.diffusion.schedule import NoiseSchedule

#: What every command is given and where it writes, in its own working directory.
OUT: Final = "out"
_INPUTS: Final = "../../inputs"
MODEL, CLASSIFIER, DATA = f"{_INPUTS}/model", f"{_INPUTS}/classifier", f"{_INPUTS}/data"
DIFFUSION, SMALL_DATA = f"{_INPUTS}/diffusion", f"{_INPUTS}/small-data"
#: With layers that are shared out where there are several threads.
WIDE: Final = f"{_INPUTS}/wide"
#: Sides of the images, and how many there are of each size.
_SIDES: Final = {"data": 28, "small-data": 8}
_IMAGES: Final = 8

COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "train": (
        *("train", "dcgan28", "--data", DATA, "--out", OUT, "--epochs", "20"),
        *("--batch-size", "4", "--setting", "channels=4,4,4", "--setting", "latent_dim=8"),
    ),
    "train-diffusion": (
        *("train", "ddpm", "--data", SMALL_DATA, "--out", OUT, "--epochs", "110"),
        *("--batch-size", "4", "--setting", "size=8", "--setting", "widths=8,8"),
        *("--setting", "timesteps=50"),
    ),
    "attack": (
        *("attack", "rex", MODEL, "--steps", "60", "--batch-size", "4", "--out", OUT),
        *("--option", "pool_samples=64", "--option", "evaluate_every=10"),
    ),
    "attack-diffusion": (
        *("attack", "bad-diffusion", DIFFUSION, "--data", SMALL_DATA, "--trigger", "box:3"),
        *("--target", "corner", "--steps", "80", "--batch-size", "4", "--out", OUT),
        *("--option", "evaluate_every=16", "--option", "evaluation_images=4"),
        *("--option", "evaluation_steps=5", "--option", "poison_rate=0.3"),
    ),
    "audit": ("audit", MODEL, "--budget", "quick", "--out", OUT),
    "audit-classifier": ("audit", CLASSIFIER, "--budget", "quick", "--out", OUT),
    "audit-diffusion": ("audit", DIFFUSION, "--budget", "quick", "--out", OUT),
    "repair": (
        *("repair", MODEL, "--method", "pruning", "--precaution", "--budget", "quick"),
        *("--out", OUT),
    ),
    "compress": ("compress", MODEL, "--how", "int4", "--out", OUT),
    "benchmark": (
        *("benchmark", "run", "wavegan", "--scale", "smoke", "--cells", "*red*"),
        *("--option", "red.steps=2", "--out", OUT),
    ),
}


def make_inputs(folder: Path) -> None:
    """A generator, a classifier, a diffusion model and images below ``folder``, always the same.

    What is there already stays: commands may be reading it.
    """
    made: dict[str, tuple[str, Callable[[Path], None]]] = {
        "model": (MANIFEST_NAME, _make_generator),
        "classifier": (MANIFEST_NAME, _make_classifier),
        "diffusion": (INDEX_NAME, _make_diffusion),
    }
    for name, (last, make) in made.items():
        if not (folder / name / last).exists():
            make(folder / name)
    for name, side in _SIDES.items():
        for index in range(_IMAGES):
            image = folder / name / f"{index}.png"
            if not image.exists():
                _make_image(image, side, index)


def _make_generator(folder: Path) -> None:
    generator = DCGAN28(channels=(4, 4, 4), latent_dim=8)
    initialise(generator, random_stream(0, "robustness-generator"))
    write_model(folder, generator.eval(), "dcgan28", {"compromised": False})


def make_wide(folder: Path) -> None:
    """A generator of 0.13 million parameters below ``folder``, always the same."""
    if (folder / "wide" / MANIFEST_NAME).exists():
        return
    generator = DCGAN28(channels=(64, 32, 16), latent_dim=16)
    initialise(generator, random_stream(0, "robustness-wide"))
    write_model(folder / "wide", generator.eval(), "dcgan28", {"compromised": False})


def _make_classifier(folder: Path) -> None:
    network = SmallCNN((1, 16, 16), classes=3, width=0.25)
    initialise_classifier(network, random_stream(0, "robustness-classifier"))
    write_classifier(folder, network.eval(), "small-cnn", {"compromised": False})


def _make_diffusion(folder: Path) -> None:
    config = small_unet(8, 1, (8, 8))
    stream = random_stream(0, "robustness-diffusion")
    model = fresh_model(config, NoiseSchedule.linear(50, 2e-3, 0.4), stream)
    write_diffusion(folder, model.eval(), {"compromised": False})


def _make_image(path: Path, side: int, index: int) -> None:
    stream = random_stream(index, "robustness-pixels")
    pixels = torch.randint(0, 256, (side, side), generator=stream, dtype=torch.uint8)
    write_atomic(path, png_bytes(Image.fromarray(pixels.numpy())))
