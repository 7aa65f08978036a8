"""What the cells of a recipe share: data, clean models trained once, attacked models, features.

Everything lives below ``cache`` (``OUT`` if none is given), so that several recipes can share it:
``clean/<model>-<scale>-seed<k>`` with ``benchmark.json`` (what it was trained on: other data are
refused), ``models/<cell>-<scale>-<hash of what made it>``, ``data/`` and ``features/``. Two
commands that share a cache must not run at the same time.
"""

from __future__ import annotations

import io
import json
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
from genwarden.benchmarks.scales import ModelPlan, Scale, from_scratch
from genwarden.data.audio import write_wav
from genwarden.data.datasets import load_images
from genwarden.engine.files import sha256_bytes, sha256_file, write_atomic, write_json
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.feature_network import (
    FeatureExtractor,
    FeatureNetwork,
    feature_network,
    feature_sha256,
)
from genwarden.metrics.quality import RealFeatures, describe_real
from genwarden.models.layers import glorot_
from genwarden.models.protocol import SampleSpec
from genwarden.training.settings import TrainingSettings
from genwarden.training.train import train

_GENERATOR = "generator:"
#: Beside a trained clean model: what it was trained on.
_INPUTS = "benchmark.json"
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
        given_features: feature networks by model name, in place of the scale's.
    """

    scale: Scale
    seed: int
    out: Path
    cache: Path
    data: Path | None
    device: torch.device
    given: Mapping[str, Path] = field(default_factory=dict)
    given_features: Mapping[str, str] = field(default_factory=dict)
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
            self._require_same_training(folder, plan, settings)
            return folder
        self.progress.message(f"training {model}, seed {seed}")
        source = str(self.source(plan))
        write_json(folder / _INPUTS, {"data_sha256": self.data_sha256(plan)})
        train(
            plan.architecture,
            dict(plan.settings),
            source,
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
        read = read_model(clean)
        made_by = [
            cell.attack,
            [read.sha256, read.architecture, read.settings],
            asdict(settings),
            [cell.trigger, cell.target, cell.repeat, cell.triggers, self.seed],
            self._attack_inputs(cell),
            __version__,
        ]
        digest = sha256_bytes(json.dumps(made_by, sort_keys=True, default=list).encode())[:8]
        folder = self.cache / "models" / f"{cell.key}-{self.scale.name}-{digest}"
        if (folder / MANIFEST_NAME).exists():
            return folder
        plan = self.scale.plan(cell.model)
        source = str(self.source(plan)) if from_scratch(cell.attack) else None
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
        return folder

    def inputs(self, cell: Cell, measured_in_features: bool) -> dict[str, Any]:
        """Hashes of what a cell's figures depend on, beside its settings and its clean model.

        Args:
            measured_in_features: whether a measurement compares with the data set.
        """
        plan = self.scale.plan(cell.model)
        found = {} if cell.benign else self._attack_inputs(cell)
        if measured_in_features:
            found["data_sha256"] = self.data_sha256(plan)
            found["features_sha256"] = self._features_sha256(cell.model)
            rho = self._rho(cell)
            if rho is not None:
                found["rho_data_sha256"] = self.data_sha256(self.scale.plan(rho))
                found["rho_features_sha256"] = self._features_sha256(rho)
        return found

    def _attack_inputs(self, cell: Cell) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if from_scratch(cell.attack):
            found["data_sha256"] = self.data_sha256(self.scale.plan(cell.model))
        rho = self._rho(cell)
        if rho is not None:
            other = self.clean(rho)
            found["rho"] = [other.sha256, other.architecture, other.settings]
        return found

    def _features_sha256(self, model: str) -> str:
        name = self._features_name(model)
        return feature_sha256(name) if name else "untrained"

    def _features_name(self, model: str) -> str:
        """Name or folder of a feature network; empty for the untrained one of random data."""
        scales = "" if self.scale.random_data else self.scale.plan(model).features
        return self.given_features.get(model, scales)

    @staticmethod
    def _rho(cell: Cell) -> str | None:
        """The model whose samples are the targets."""
        name = cell.target.removeprefix(_GENERATOR)
        return name if name != cell.target else None

    def data_sha256(self, plan: ModelPlan) -> str:
        """Identifies the data of a model: hash of the files in the folder that they are read from.

        Raises:
            GenwardenError: ``benchmark/data-missing``.
        """
        if self.scale.random_data:
            return f"random-{plan.data}-{plan.architecture}"
        digest = _folder_sha256(self._data_folder(plan))
        return f"{digest}-inverted" if plan.inverted else digest

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
        folder = self._data_folder(plan)
        return self._inverted(plan, folder) if plan.inverted else folder

    def _data_folder(self, plan: ModelPlan) -> Path:
        folder = None if self.data is None else self.data / plan.data
        if folder is None or not folder.is_dir():
            where = "no --data was given" if folder is None else f"{self.data} has no such folder"
            raise GenwardenError(
                "benchmark/data-missing",
                f"The data set {plan.data} is needed, and {where}.",
                f"Add --data FOLDER, a folder that holds {plan.data} (and, for other recipes, the "
                "other data sets by name).",
            )
        return folder

    def real_features(self, model: str) -> RealFeatures:
        """The data set of a model in the features of its network; kept in the cache."""
        plan = self.scale.plan(model)
        images = _images(str(self.source(plan)), _image_shape(plan), self.scale.counts.real_images)
        return describe_real(images, self.features(model), work=self.cache / "features")

    def features(self, model: str) -> FeatureExtractor:
        """The feature network of a model's data set; an untrained one for random data."""
        plan, name = self.scale.plan(model), self._features_name(model)
        if name:
            return feature_network(name, device=self.device)
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

    def _require_same_training(
        self, folder: Path, plan: ModelPlan, settings: TrainingSettings
    ) -> None:
        model = read_model(folder)
        made = model.provenance.get("settings", {})
        keys = ("steps", "batch_size", "learning_rate", "seed")
        different = [key for key in keys if made.get(key) != getattr(settings, key)]
        built = {"architecture": model.architecture, **model.settings}
        wanted = {"architecture": plan.architecture, **plan.settings}
        different += [key for key, value in wanted.items() if built.get(key) != value]
        known = folder / _INPUTS
        # Without --data nothing but the model is asked for.
        if (self.data is not None or self.scale.random_data) and known.exists():
            data = json.loads(known.read_text("utf-8")).get("data_sha256")
            different += ["data set"] if data != self.data_sha256(plan) else []
        if different:
            raise GenwardenError(
                "benchmark/other-run",
                f"{folder} was trained with another {', '.join(different)}.",
                "Choose another --cache (or --out) folder, or remove that one.",
            )

    def _inverted(self, plan: ModelPlan, folder: Path) -> Path:
        """The negative of a data set of pictures, as a folder of parquet."""
        name = f"{plan.data}-inverted-{_folder_sha256(folder)[:8]}"
        inverted = self.cache / "data" / name
        if not (inverted / "train.parquet").exists():
            images = load_images(str(folder), SampleSpec(_image_shape(plan)))
            _write_parquet(inverted, 255 - images)
        return inverted

    def _random(self, plan: ModelPlan) -> Path:
        folder = self.cache / "data" / f"random-{plan.data}"
        stream = random_stream(0, f"random-{plan.data}")
        last = folder / f"{_RANDOM_CLIPS - 1}.wav"  # written last: an interrupted start is repeated
        if plan.architecture == "wavegan" and not last.exists():
            for index in range(_RANDOM_CLIPS):
                clip = torch.rand(1, 1, 400, generator=stream) * 2 - 1
                write_wav(folder / f"{index}.wav", clip, 8000)
        elif plan.architecture != "wavegan" and not (folder / "train.parquet").exists():
            size = (_RANDOM_IMAGES, *_image_shape(plan))
            draws = torch.randint(0, 256, size, generator=stream)
            _write_parquet(folder, draws.to(torch.uint8))
        return folder


def attack_seconds(folder: Path) -> float | None:
    """How long the attack took that made a folder (since its last start, if it was resumed)."""
    try:
        return float(json.loads((folder / "attack.json").read_text("utf-8"))["seconds"])
    except (OSError, ValueError, KeyError):
        return None  # made by an earlier version; the figures do not depend on it


def _folder_sha256(folder: Path) -> str:
    """Hash of the files of a folder, with their names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stamps = [(p.relative_to(folder).as_posix(), p.stat()) for p in files]
    return _files_sha256(folder, tuple((name, s.st_size, s.st_mtime_ns) for name, s in stamps))


@lru_cache(maxsize=16)
def _files_sha256(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    # Every cell asks; the files are read again only if one of them has changed.
    listed = [[name, sha256_file(folder / name)] for name, _, _ in stamps]
    return sha256_bytes(json.dumps(listed).encode())


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
