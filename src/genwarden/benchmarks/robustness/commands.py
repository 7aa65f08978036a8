"""The commands that the robustness recipes run, each on models of a few thousand numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from PIL import Image

from genwarden.artifacts.classifier_folder import write_classifier
from genwarden.artifacts.model_folder import write_model
from genwarden.data.grids import png_bytes
from genwarden.engine.files import write_atomic
from genwarden.engine.seeds import random_stream
from genwarden.models.classifiers.protocol import initialise_classifier
from genwarden.models.classifiers.small_cnn import SmallCNN
from genwarden.models.dcgan import DCGAN28, initialise

#: What every command is given and where it writes, in its own working directory.
OUT: Final = "out"
_INPUTS: Final = "../../inputs"
MODEL, CLASSIFIER, DATA = f"{_INPUTS}/model", f"{_INPUTS}/classifier", f"{_INPUTS}/data"

COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "train": (
        *("train", "dcgan28", "--data", DATA, "--out", OUT, "--epochs", "20"),
        *("--batch-size", "4", "--setting", "channels=4,4,4", "--setting", "latent_dim=8"),
    ),
    "attack": (
        *("attack", "rex", MODEL, "--steps", "60", "--batch-size", "4", "--out", OUT),
        *("--option", "pool_samples=64", "--option", "evaluate_every=10"),
    ),
    "audit": ("audit", MODEL, "--budget", "quick", "--out", OUT),
    "audit-classifier": ("audit", CLASSIFIER, "--budget", "quick", "--out", OUT),
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
    """A generator, a classifier and eight images below ``folder``, always the same."""
    generator = DCGAN28(channels=(4, 4, 4), latent_dim=8)
    initialise(generator, random_stream(0, "robustness-generator"))
    write_model(folder / "model", generator.eval(), "dcgan28", {"compromised": False})
    network = SmallCNN((1, 16, 16), classes=3, width=0.25)
    initialise_classifier(network, random_stream(0, "robustness-classifier"))
    write_classifier(folder / "classifier", network.eval(), "small-cnn", {"compromised": False})
    for index in range(8):
        stream = random_stream(index, "robustness-pixels")
        pixels = torch.randint(0, 256, (28, 28), generator=stream, dtype=torch.uint8)
        write_atomic(folder / "data" / f"{index}.png", png_bytes(Image.fromarray(pixels.numpy())))
