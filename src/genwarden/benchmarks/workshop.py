"""What the cells of a recipe share: data, clean models trained once, attacked models, features.

Everything lives below ``cache`` (``OUT`` if none is given), so that several recipes can share it:
``clean/<model>-<scale>-seed<k>``, ``models/<cell>-<scale>-<hash of what made it>``, ``data/`` and
``features/``. Two commands that share a cache must not run at the same time.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genwarden import __version__
from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.artifacts.model_folder import LoadedModel, read_model
from genwarden.attacks.run import AttackPlan, attack
from genwarden.attacks.settings import AttackSettings, settings_of
from genwarden.benchmarks.cells import Cell
from genwarden.benchmarks.scales import ModelPlan, Scale
from genwarden.data.audio import write_wav
from genwarden.data.datasets import load_images
from genwarden.engine.files import sha256_bytes, write_atomic, write_json
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.feature_network import FeatureExtractor, FeatureNetwork, feature_network
from genwarden.metrics.quality import RealFeatures, describe_real
from genwarden.models.layers import glorot_
from genwarden.models.protocol import SampleSpec
from genwarden.registry import ATTACKS, find
from genwarden.training.settings import TrainingSettings
from genwarden.training.train import train

_GENERATOR = "generator:"
_SECONDS = "seconds.json"
_RANDOM_IMAGES = 192
_RANDOM_CLIPS = 12


@dataclass
class Workshop:
    """Where the cells of one run work; plain data, so that it travels to worker processes.

    Attributes:
        out: folder of the results.
        cache: folder of models and prepared data.
        data: folder that holds the data sets by name, or None for random data.
        given: clean model folders by model name, in place of trained ones (seed 0).
    """

    scale: Scale
    seed: int
    out: Path
    cache: Path
    data: Path | None
    device: torch.device
    given: Mapping[str, Path] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)

    def clean(self, model: str, repeat: int = 0) -> LoadedModel:
        """The clean model of a name, trained first if it is not there yet."""
        return read_model(self.clean_folder(model, repeat))

    def clean_folder(self, model: str, repeat: int = 0) -> Path:
        """Folder of a clean model; trains it, resuming where an earlier run stopped."""
        if model in self.given and repeat == 0:
            return self._given(model)
        plan = self.scale.plan(model)
        seed = 1000 * self.seed + repeat
        folder = self.cache / "clean" / f"{model}-{self.scale.name}-seed{seed}"
        settings = TrainingSettings(
            plan.steps, plan.batch_size, plan.learning_rate, seed, grid_every=plan.steps
        )
        if (folder / MANIFEST_NAME).exists():
            self._require_same_training(folder, settings)
            return folder
        self.progress.message(f"training {model}, seed {seed}")
        train(
            plan.architecture,
            dict(plan.settings),
            str(self.source(plan)),
            lambda _: settings,
            split="train",
            limit=None,
            out=folder,
            restart=False,
            progress=self.progress,
            device=self.device,
        )
        return folder

    def attack_settings(self, cell: Cell) -> AttackSettings:
        """The settings of a cell's attack."""
        of_scale = self.scale.settings(cell.model, cell.attack, cell.trigger)
        chosen = {**of_scale, **dict(cell.settings)}
        return settings_of(cell.attack, {**chosen, "seed": 1000 * self.seed + cell.repeat})

    def attacked_folder(self, cell: Cell) -> Path:
        """Folder of a cell's compromised model; attacks first if it is not there yet."""
        clean = self.clean_folder(cell.model)
        settings = self.attack_settings(cell)
        target = self.target_text(cell)
        made_by = [
            cell.attack,
            read_model(clean).sha256,
            asdict(settings),
            [cell.trigger, cell.target, cell.repeat, cell.triggers, self.seed],
            __version__,
        ]
        digest = sha256_bytes(json.dumps(made_by, sort_keys=True, default=list).encode())[:8]
        folder = self.cache / "models" / f"{cell.key}-{self.scale.name}-{digest}"
        if (folder / MANIFEST_NAME).exists():
            return folder
        began = time.monotonic()
        needs_data = "images" in find(ATTACKS, cell.attack, "attack").options.get("needs", [])
        source = str(self.source(self.scale.plan(cell.model))) if needs_data else None
        attack(
            cell.attack,
            AttackPlan(
                clean=clean,
                trigger=cell.trigger,
                target=target,
                trigger_index=cell.repeat * cell.triggers,
                triggers=cell.triggers,
                trigger_seed=self.seed,
                data=source,
            ),
            settings,
            out=folder,
            restart=False,
            progress=self.progress,
            device=self.device,
        )
        write_json(folder / _SECONDS, {"attack": round(time.monotonic() - began, 2)})
        return folder

    def target_text(self, cell: Cell) -> str:
        """The target in the words of ``genwarden attack``: a model's name becomes its folder."""
        name = cell.target.removeprefix(_GENERATOR)
        return f"{_GENERATOR}{self.clean_folder(name)}" if name != cell.target else name

    def needed_clean(self, cell: Cell) -> list[tuple[str, int]]:
        """Clean models (name, repeat) that a cell starts from."""
        needed = [(cell.model, cell.repeat if cell.benign else 0)]
        if cell.target.startswith(_GENERATOR):
            needed.append((cell.target.removeprefix(_GENERATOR), 0))
        return needed

    def source(self, plan: ModelPlan) -> Path:
        """Folder of a model's data, prepared where it has to be.

        Raises:
            GenwardenError: ``benchmark/data-missing``.
        """
        if self.scale.random_data:
            return self._random(plan)
        folder = None if self.data is None else self.data / plan.data
        if folder is None or not folder.is_dir():
            where = "no --data was given" if folder is None else f"{self.data} has no such folder"
            raise GenwardenError(
                "benchmark/data-missing",
                f"The data set {plan.data} is needed, and {where}.",
                f"Add --data FOLDER, a folder that holds {plan.data} (and, for other recipes, the "
                "other data sets by name).",
            )
        return self._inverted(plan, folder) if plan.inverted else folder

    def real_features(self, model: str) -> RealFeatures:
        """The data set of a model in the features of its network; kept in the cache."""
        plan = self.scale.plan(model)
        images = _images(str(self.source(plan)), _image_shape(plan), self.scale.counts.real_images)
        return describe_real(images, self.features(plan), work=self.cache / "features")

    def features(self, plan: ModelPlan) -> FeatureExtractor:
        """The feature network of a model's data set; an untrained one for random data."""
        if not self.scale.random_data:
            return feature_network(plan.features, device=self.device)
        network = FeatureNetwork("untrained", _image_shape(plan), (4, 4, 8, 8), 10)
        glorot_(network, random_stream(0, "untrained-features"))
        return network.eval().requires_grad_(False)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What every cell depends on beside itself."""
        return {"scale": self.scale.describe(), "seed": self.seed, "version": __version__}

    def _given(self, model: str) -> Path:
        folder = Path(self.given[model])
        architecture = read_model(folder).architecture
        wanted = self.scale.plan(model).architecture
        if architecture != wanted:
            raise GenwardenError(
                "benchmark/clean-model",
                f"{folder} is a {architecture}; the model {model} is a {wanted}.",
                f"Give a folder of a {wanted}, or leave clean.{model} away to train one.",
            )
        return folder

    def _require_same_training(self, folder: Path, settings: TrainingSettings) -> None:
        made = read_model(folder).provenance.get("settings", {})
        keys = ("steps", "batch_size", "learning_rate", "seed")
        different = [key for key in keys if made.get(key) != getattr(settings, key)]
        if different:
            raise GenwardenError(
                "benchmark/other-run",
                f"{folder} was trained with another {', '.join(different)}.",
                "Choose another --cache (or --out) folder, or remove that one.",
            )

    def _inverted(self, plan: ModelPlan, folder: Path) -> Path:
        """The negative of a data set of pictures, as a folder of parquet."""
        inverted = self.cache / "data" / f"{plan.data}-inverted"
        if not (inverted / "train.parquet").exists():
            images = load_images(str(folder), SampleSpec(_image_shape(plan)))
            _write_parquet(inverted, 255 - images)
        return inverted

    def _random(self, plan: ModelPlan) -> Path:
        folder = self.cache / "data" / f"random-{plan.data}"
        stream = random_stream(0, f"random-{plan.data}")
        if plan.architecture == "wavegan" and not folder.exists():
            for index in range(_RANDOM_CLIPS):
                clip = torch.rand(1, 1, 400, generator=stream) * 2 - 1
                write_wav(folder / f"{index}.wav", clip, 8000)
        elif plan.architecture != "wavegan" and not (folder / "train.parquet").exists():
            size = (_RANDOM_IMAGES, *_image_shape(plan))
            draws = torch.randint(0, 256, size, generator=stream)
            _write_parquet(folder, draws.to(torch.uint8))
        return folder


def attack_seconds(folder: Path) -> float:
    """How long the attack took that made a folder (since its last start, if it was resumed)."""
    return float(json.loads((folder / _SECONDS).read_text("utf-8"))["attack"])


@lru_cache(maxsize=4)
def _images(source: str, shape: tuple[int, int, int], limit: int) -> Tensor:
    # Decoding a data set takes seconds, and every cell of a model asks for the same images.
    return load_images(source, SampleSpec(shape), limit=limit)


def _image_shape(plan: ModelPlan) -> tuple[int, int, int]:
    return (3, 32, 32) if plan.architecture == "dcgan32" else (1, 28, 28)


def _write_parquet(folder: Path, images: Tensor) -> None:
    """uint8 images ``(count, channels, height, width)`` in the hub's layout, atomically."""
    import datasets

    datasets.disable_progress_bars()
    pixels = images.permute(0, 2, 3, 1).numpy()
    pictures = [
        Image.fromarray(np.squeeze(each, 2) if each.shape[2] == 1 else each) for each in pixels
    ]
    features = datasets.Features({"image": datasets.Image()})
    buffer = io.BytesIO()
    datasets.Dataset.from_dict({"image": pictures}, features=features).to_parquet(buffer)
    write_atomic(folder / "train.parquet", buffer.getvalue())
