"""The commands that are interrupted, each on the smallest model that goes the whole way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from genwarden.artifacts.classifier_folder import write_classifier
from genwarden.artifacts.diffusers_folder import write_diffusion
from genwarden.artifacts.model_folder import write_model
from genwarden.attacks.diffusion.bad_diffusion import BadDiffusionSettings
from genwarden.attacks.diffusion.run import DiffusionAttackPlan, attack_diffusion
from genwarden.attacks.rex import ReXSettings
from genwarden.attacks.run import AttackPlan
from genwarden.attacks.run import attack as run_attack
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.commands.compress import CompressOptions, compress_model
from genwarden.commands.repair import RepairOptions, repair_model
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.classifiers.protocol import initialise_classifier
from genwarden.models.classifiers.small_cnn import SmallCNN
from genwarden.models.dcgan import DCGAN28, initialise
from genwarden.models.diffusion.networks import fresh_model, small_unet
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.training.settings import TrainingSettings
from genwarden.training.train import train

OUT = Path("out")
MODEL, CLASSIFIER, DATA = Path("model"), Path("classifier"), Path("data")
DIFFUSION, SMALL_DATA = Path("diffusion"), Path("small-data")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Scenario:
    """A command that writes into ``out``, in the working directory.

    Attributes:
        finished: the code of the refusal to do a finished thing again; "" where it is done again.
    """

    run: Callable[[], object]
    finished: str = ""

    def again(self) -> None:
        """The same command after an interruption."""
        try:
            self.run()
        except GenwardenError as error:
            if not self.finished or error.code != self.finished:
                raise


def make_inputs() -> None:
    """A generator, a classifier and a few images, in the working directory."""
    generator = DCGAN28(channels=(4, 4, 4), latent_dim=8)
    initialise(generator, random_stream(0, "crash-generator"))
    write_model(MODEL, generator.eval(), "dcgan28", {"made_by": "tests", "compromised": False})
    network = SmallCNN((1, 16, 16), classes=3, width=0.25)
    initialise_classifier(network, random_stream(0, "crash-classifier"))
    write_classifier(CLASSIFIER, network.eval(), "small-cnn", {})
    denoiser = fresh_model(
        small_unet(8, 1, (8,)),
        NoiseSchedule.linear(50, 2e-3, 0.4),
        random_stream(0, "crash-diffusion"),
    )
    write_diffusion(DIFFUSION, denoiser.eval(), {})
    for folder, side in ((DATA, 28), (SMALL_DATA, 8)):
        folder.mkdir()
        for index in range(8):
            stream = random_stream(index, "crash-pixels")
            pixels = torch.randint(0, 256, (side, side), generator=stream)
            Image.fromarray(pixels.byte().numpy()).save(folder / f"{index}.png")


def _training(name: str, settings: dict[str, object], data: Path) -> None:
    wanted = TrainingSettings(steps=4, batch_size=4, checkpoint_every=2, grid_every=2)
    train(
        name,
        settings,
        str(data),
        lambda _: wanted,
        split="train",
        limit=None,
        out=OUT,
        restart=False,
        progress=Silent(),
        device=CPU,
    )


def _train() -> None:
    _training("dcgan28", {"channels": [4, 4, 4], "latent_dim": 8}, DATA)


def _train_diffusion() -> None:
    _training("ddpm", {"size": 8, "widths": (8,), "timesteps": 50, "warmup": 2}, SMALL_DATA)


def _attack_diffusion() -> None:
    settings = BadDiffusionSettings(
        steps=4,
        batch_size=4,
        poison_rate=0.3,
        evaluate_every=2,
        evaluation_images=2,
        evaluation_steps=2,
    )
    plan = DiffusionAttackPlan(DIFFUSION, str(SMALL_DATA), trigger="box:3", target="corner")
    attack_diffusion(
        "bad-diffusion", plan, settings, out=OUT, restart=False, progress=Silent(), device=CPU
    )


def _attack() -> None:
    settings = ReXSettings(steps=4, batch_size=4, pool_samples=16, evaluate_every=2)
    plan = AttackPlan(clean=MODEL)
    run_attack("rex", plan, settings, out=OUT, restart=False, progress=Silent(), device=CPU)


def _audit(model: Path) -> None:
    audit_model(AuditOptions(model=model, out=OUT, budget="quick"), progress=Silent())


def _compress() -> None:
    compress_model(CompressOptions(MODEL, OUT, "int4", device="cpu"), progress=Silent())


def _repair() -> None:
    options = RepairOptions(MODEL, OUT, method="pruning", budget="quick", precaution=True)
    repair_model(options, progress=Silent())


SCENARIOS = {
    "train": Scenario(_train, "train/finished"),
    "train-diffusion": Scenario(_train_diffusion, "train/finished"),
    "attack": Scenario(_attack, "attack/finished"),
    "attack-diffusion": Scenario(_attack_diffusion, "attack/finished"),
    "audit": Scenario(lambda: _audit(MODEL)),
    "compress": Scenario(_compress),
    "repair": Scenario(_repair, "repair/finished"),
}
