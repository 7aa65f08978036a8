"""The models that the training recipes share: a clean one, and what is fine-tuned from it.

A folder of models belongs to one scale and one seed. Each model is made by whichever process comes
first; the others wait for it or do something else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genwarden.artifacts.diffusers_folder import LoadedDiffusion, read_diffusion, write_diffusion
from genwarden.artifacts.diffusers_layout import INDEX_NAME
from genwarden.attacks.diffusion.run import DiffusionAttackPlan, attack_diffusion, settings_of
from genwarden.backdoors.image_backdoor import ImageBackdoor, make_image_backdoor
from genwarden.benchmarks.as_planned import require_as_planned
from genwarden.benchmarks.diffusion.scales import DiffusionScale
from genwarden.benchmarks.locks import claimed
from genwarden.data.datasets import load_images, to_unit_range
from genwarden.data.grids import png_bytes, tile
from genwarden.engine.files import write_atomic
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.training.ddpm import DdpmSettings, train_ddpm
from genwarden.training.settings import TrainingSettings
from genwarden.training.train_diffusion import train_diffusion

_RANDOM_IMAGES = 96
#: Evaluations during an attack, each with a shortened sampler.
_EVALUATIONS = 4
_EVALUATION_STEPS = 50


@dataclass(frozen=True)
class Subject:
    """A model of the recipes.

    Attributes:
        name: in tables; ``clean`` is the base.
        attack: registered name; empty for a clean model.
        settings: of the attack, over those of the scale.
        further: for a clean model: the base, trained on as long as an attack but without poison.
    """

    name: str
    attack: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    further: bool = False

    @property
    def key(self) -> str:
        """Folder of the model."""
        words = [f"{k}-{v:g}" if isinstance(v, float) else f"{k}-{v}" for k, v in self.settings]
        return "_".join([self.attack or self.name, *words]).replace(":", "-")


CLEAN = Subject("clean")
FURTHER = Subject("clean-further", further=True)


@dataclass(frozen=True)
class Workshop:
    """Where models are made and kept.

    Attributes:
        data: folder with the data sets as sub-folders; None for a scale with random data.
        models: folder of the models, which several recipes may share.
        clean: a clean diffusers folder in place of the scale's own base; empty for none.
    """

    scale: DiffusionScale
    data: Path | None
    models: Path
    seed: int = 0
    clean: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def source(self) -> str:
        """The folder of the data set.

        Raises:
            GenwardenError: ``benchmark/data-missing``.
        """
        if self.scale.random_data:
            return str(self._random_pictures())
        if self.data is None or not (self.data / self.scale.data).is_dir():
            raise GenwardenError(
                "benchmark/data-missing",
                f"This recipe trains on {self.scale.data} and was not given it.",
                f"Add --data FOLDER, a folder that holds {self.scale.data}.",
            )
        return str(self.data / self.scale.data)

    def folder(self, subject: Subject) -> Path:
        """Where a model is kept."""
        if subject == CLEAN and self.clean:
            return Path(self.clean)
        return self.models / f"{self.scale.name}-{self.seed}" / subject.key

    def lock(self, subject: Subject) -> Path:
        """What the process that makes a model holds; its key may have a dot (``rate-0.05``)."""
        folder = self.folder(subject)
        return folder.with_name(f"{folder.name}.lock")

    def make(self, subject: Subject, *, wait: bool, progress: Progress | None = None) -> bool:
        """Make a model unless it is there.

        Args:
            wait: for another process that is making it.

        Returns:
            Whether it is there now.
        """
        folder = self.folder(subject)
        if (folder / INDEX_NAME).exists():
            self._require_as_planned(subject)
            return True
        if subject != CLEAN and not self.make(CLEAN, wait=wait, progress=progress):
            return False
        with claimed(self.lock(subject), wait=wait) as mine:
            if mine and not (folder / INDEX_NAME).exists():
                if subject.attack:
                    self._attack(subject, progress or Silent())
                elif subject.further:
                    self._train_on(folder, progress or Silent())
                else:
                    self._train(folder, progress or Silent())
        return (folder / INDEX_NAME).exists()

    def read(self, subject: Subject) -> LoadedDiffusion:
        """A model, made first if it is not there, on the device."""
        self.make(subject, wait=True)
        loaded = read_diffusion(self.folder(subject))
        loaded.model.to(self.device)
        return loaded

    def backdoor(self) -> ImageBackdoor:
        """Trigger and target of the scale."""
        return make_image_backdoor(
            self.read(CLEAN).model.sample,
            trigger=self.scale.trigger,
            target=self.scale.target,
            seed=self.seed,
        )

    def images(self, count: int) -> Tensor:
        """The first images of the data, uint8 ``(count, C, H, W)``, at the model's size."""
        sample = self.read(CLEAN).model.sample
        return load_images(self.source, sample, limit=count, resize=True)

    def _train(self, folder: Path, progress: Progress) -> None:
        scale = self.scale
        choice = {
            "network": scale.network,
            "size": scale.size,
            "channels": scale.channels,
            "timesteps": scale.timesteps,
            "resize": True,
            **({"widths": list(scale.widths)} if scale.widths else {}),
        }
        train_diffusion(
            choice,
            self.source,
            lambda _: TrainingSettings(
                scale.base_steps,
                scale.batch,
                scale.base_rate,
                self.seed,
                grid_every=scale.base_steps,
            ),
            split="train",
            limit=None,
            out=folder,
            restart=False,
            progress=progress,
            device=self.device,
        )

    def _train_on(self, folder: Path, progress: Progress) -> None:
        """As many clean steps at the same rate as an attack takes: what it is compared with."""
        scale, base = self.scale, self.read(CLEAN)
        images = load_images(self.source, base.model.sample, resize=True)
        settings = DdpmSettings(
            scale.attack_steps,
            scale.batch,
            scale.attack_rate,
            self.seed,
            grid_every=scale.attack_steps,
        )
        record = train_ddpm(
            base.model,
            images,
            settings,
            out=folder,
            run_id=f"{scale.name}-{self.seed}-further",
            progress=progress,
            device=self.device,
        )
        provenance = {
            "made_by": "genwarden benchmark (clean fine-tuning)",
            "compromised": False,
            "result": record,
        }
        write_diffusion(folder, base.model.cpu(), provenance, scheduler=base.scheduler)

    def _require_as_planned(self, subject: Subject) -> None:
        """A model that was kept under this name may have been made for another scale."""
        if subject.attack:
            require_as_planned(
                self.folder(subject),
                subject.attack,
                self._settings(subject),
                trigger=self.scale.trigger,
                target=self.scale.target,
            )

    def _settings(self, subject: Subject) -> dict[str, Any]:
        """Those of an attack that the scale and the subject fix."""
        scale = self.scale
        given = {
            "steps": scale.attack_steps,
            "batch_size": scale.batch,
            "learning_rate": scale.attack_rate,
            "poison_rate": scale.poison_rate,
            "evaluation_images": min(16, scale.images),
            "evaluation_steps": scale.steps(_EVALUATION_STEPS),
            "resize": True,
            "seed": self.seed,
            **dict(subject.settings),
        }
        return {**given, "evaluate_every": max(1, int(given["steps"]) // _EVALUATIONS)}

    def _attack(self, subject: Subject, progress: Progress) -> None:
        scale = self.scale
        attack_diffusion(
            subject.attack,
            DiffusionAttackPlan(
                clean=self.folder(CLEAN),
                data=self.source,
                trigger=scale.trigger,
                target=scale.target,
            ),
            settings_of(subject.attack, self._settings(subject)),
            out=self.folder(subject),
            restart=False,
            progress=progress,
            device=self.device,
        )

    def _random_pictures(self) -> Path:
        """Smooth random pictures as a folder of PNG files, made once."""
        folder = self.models / "random-pictures"
        if folder.is_dir():
            return folder
        size, channels = self.scale.size, self.scale.channels
        with claimed(self.models / "random-pictures.lock", wait=True):
            if folder.is_dir():
                return folder
            stream = random_stream(self.seed, "random-pictures")
            coarse = torch.randint(0, 256, (_RANDOM_IMAGES, channels, 4, 4), generator=stream)
            pixels = np.repeat(np.repeat(coarse.byte().numpy(), -(-size // 4), 2), -(-size // 4), 3)
            pictures = to_unit_range(torch.from_numpy(pixels[:, :, :size, :size].copy()))
            making = folder.with_suffix(".making")
            for number, picture in enumerate(pictures):
                write_atomic(
                    making / f"{number:03d}.png", png_bytes(tile(picture[None], columns=1))
                )
            making.rename(folder)
        return folder
