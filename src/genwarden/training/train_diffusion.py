"""``genwarden train ddpm``: a clean diffusion model from a data set, as a diffusers folder."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import torch
from pydantic import ValidationError

from genwarden import __version__
from genwarden.artifacts.diffusers_folder import write_diffusion
from genwarden.artifacts.diffusers_layout import INDEX_NAME
from genwarden.artifacts.json_object import first_problem
from genwarden.data.datasets import load_images
from genwarden.engine.files import begin_run, sha256_bytes
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, POSITIVE, Range, Settings, filled
from genwarden.errors import GenwardenError
from genwarden.models.diffusion.networks import fresh_model, preset, small_unet
from genwarden.models.diffusion.schedule import BetaLaw, NoiseSchedule
from genwarden.models.diffusion.unet_config import UNetConfig
from genwarden.models.protocol import SampleSpec
from genwarden.training.ddpm import DdpmSettings, train_ddpm
from genwarden.training.settings import TrainingSettings

ScheduleName = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
#: Learning rates that train the networks well; the published one is for the CIFAR-10 network.
LEARNING_RATES: Final = {"tiny": 2e-3, "small": 1e-3, "cifar10": 2e-4}


@dataclass(frozen=True)
class DdpmChoice(Settings):
    """What ``--setting`` may say for ``genwarden train ddpm``.

    Attributes:
        network: ``tiny`` (0.27 M parameters), ``small`` (1.1 M) or ``cifar10`` (35.7 M).
        size: side of the images in pixels; a multiple of 4 (of 8 for ``cifar10``).
        channels: of the images.
        widths: feature maps per level, instead of those of the network; without attention.
        schedule: law of the betas, by its name in diffusers.
        timesteps: T; the betas, 1e-4 to 0.02 at 1000, are scaled by 1000 / T.
        resize: resize images of another size; without it they are refused.
        flip: mirror half of the images.
        warmup: steps over which the learning rate rises.
        last_rate: the learning rate at the end, as a share of the largest.
        ema: decay of the moving average of the weights.
        clip_norm: largest norm of a gradient.
    """

    network: Literal["tiny", "small", "cifar10"] = "tiny"
    size: int = 28
    channels: int = 1
    widths: tuple[int, ...] = ()
    schedule: ScheduleName = "linear"
    timesteps: int = 1000
    resize: bool = False
    flip: bool = False
    warmup: int = 50
    last_rate: float = 0.02
    ema: float = 0.995
    clip_norm: float = 1.0

    CODE: ClassVar[str] = "train"
    RANGES: ClassVar[Mapping[str, Range]] = {
        "size": Range(at_least=1, at_most=1024),
        "channels": Range(at_least=1, at_most=16),
        "timesteps": Range(at_least=50, at_most=10_000),
        "warmup": COUNT,
        "last_rate": Range(at_least=0, at_most=1),
        "ema": Range(at_least=0, below=1),
        "clip_norm": POSITIVE,
    }

    def config(self) -> UNetConfig:
        """The network.

        Raises:
            GenwardenError: ``train/setting`` where the size does not fit the network.
        """
        try:
            if not self.widths:
                return preset(self.network, self.size, self.channels)
            if min(self.widths) < 1:
                raise GenwardenError(
                    "train/setting",
                    f"widths = {self.widths} leaves a level without feature maps.",
                    "Give one number of feature maps per level, such as widths=16,32,32.",
                )
            groups = math.gcd(8, *self.widths)
            return small_unet(
                self.size, self.channels, self.widths, middle_attention=False, norm_groups=groups
            )
        except ValidationError as error:
            raise GenwardenError(
                "train/setting",
                f"The network cannot be built: {first_problem(error)}.",
                "Choose a size that can be halved once less than there are levels.",
            ) from error

    def noise_schedule(self) -> NoiseSchedule:
        """The schedule of the chosen law, with DDPM's end points at 1000 steps."""
        scale = 1000 / self.timesteps
        return NoiseSchedule.from_law(
            BetaLaw(self.schedule, self.timesteps, scale * 1e-4, scale * 0.02)
        )


def default_learning_rate(model_settings: Mapping[str, Any]) -> float:
    """Adam's rate where the user gave none: by the name of the network."""
    return LEARNING_RATES.get(str(model_settings.get("network", "tiny")), 2e-4)


def train_diffusion(
    model_settings: dict[str, Any],
    source: str,
    plan: Callable[[int], TrainingSettings],
    *,
    split: str,
    limit: int | None,
    out: Path,
    restart: bool,
    progress: Progress,
    device: torch.device,
) -> Path:
    """Train a diffusion model and write the diffusers folder ``out``; resumes where it stopped.

    Args:
        model_settings: see :class:`DdpmChoice`.
        plan: the training settings for a given number of images.

    Raises:
        GenwardenError: ``train/finished``, ``train/unknown-setting``, ``train/setting``,
            ``data/...``.
    """
    choice = filled(DdpmChoice, model_settings, method="ddpm", what="train")
    config, schedule = choice.config(), choice.noise_schedule()
    work = begin_run(out, INDEX_NAME, restart=restart, kind="train", anew="train it anew")
    spec = SampleSpec((config.in_channels, *config.sides))
    images = load_images(source, spec, split=split, limit=limit, resize=choice.resize)
    progress.message(f"{len(images):,} image samples from {source}")
    settings = DdpmSettings(
        **asdict(plan(len(images))),
        warmup=choice.warmup,
        last_rate=choice.last_rate,
        ema=choice.ema,
        clip_norm=choice.clip_norm,
        flip=choice.flip,
    )
    model = fresh_model(config, schedule, random_stream(settings.seed, "denoiser-weights"))
    data_sha256 = sha256_bytes(images.numpy().tobytes())
    identity = ["ddpm", asdict(choice), asdict(settings), data_sha256, __version__]
    record = train_ddpm(
        model,
        images,
        settings,
        out=out,
        run_id=sha256_bytes(repr(identity).encode())[:16],
        progress=progress,
        device=device,
    )
    provenance = {
        "made_by": "genwarden train ddpm",
        "compromised": False,
        "choice": asdict(choice),
        "settings": asdict(settings),
        "data": {"name": Path(source).name, "images": len(images), "sha256": data_sha256},
        "result": record,
    }
    write_diffusion(out, model.cpu(), provenance)
    shutil.rmtree(work, ignore_errors=True)
    return out
