"""``genwarden train``: a reference model from a data set, as a model folder."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from genwarden import __version__
from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.artifacts.model_folder import build, write_model
from genwarden.data.audio import data_rate, load_clips
from genwarden.data.datasets import load_images
from genwarden.engine.files import begin_run, sha256_bytes
from genwarden.engine.progress import Progress
from genwarden.errors import GenwardenError
from genwarden.models.dcgan import Discriminator
from genwarden.models.protocol import LatentGenerator
from genwarden.models.stylegan import StyleDiscriminator, StyleGAN
from genwarden.models.wavegan import WaveGAN, WaveGANCritic
from genwarden.registry import CLASSIFIER_ARCHITECTURES, find, tables
from genwarden.training.classifier import ClassifierSettings
from genwarden.training.gan import train_gan
from genwarden.training.settings import TrainingSettings
from genwarden.training.train_classifier import train_classifier
from genwarden.training.train_diffusion import default_learning_rate, train_diffusion
from genwarden.training.vae import train_vae
from genwarden.training.wavegan import train_wavegan

#: Adam's learning rate of the published GAN trainings.
PUBLISHED_RATE = 2e-4


def train(
    name: str,
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
    """Train architecture ``name`` and write the model folder ``out``; resumes where it stopped.

    A diffusion model becomes a diffusers folder.

    Args:
        plan: the training settings for a given number of images.

    Raises:
        GenwardenError: ``train/finished`` if ``out`` holds a finished model already;
            ``train/unsupported``.
    """
    architectures = tables()["architectures"]
    row = find(architectures, name, "architecture")
    if "training" not in row.options:
        raise GenwardenError(
            "train/unsupported",
            f"{name} is not trained.",
            f"Choose one of: {', '.join(n for n, r in architectures.items() if r.options)}.",
        )
    if row.options["training"] == "ddpm":
        return train_diffusion(
            model_settings,
            source,
            plan,
            split=split,
            limit=limit,
            out=out,
            restart=restart,
            progress=progress,
            device=device,
        )
    if row.options["training"] == "classifier":
        return train_classifier(
            row,
            model_settings,
            source,
            plan,
            split=split,
            limit=limit,
            out=out,
            restart=restart,
            progress=progress,
            device=device,
        )
    work = begin_run(out, MANIFEST_NAME, restart=restart, kind="train", anew="train it anew")
    if row.options["training"] == "wavegan" and "sample_rate" not in model_settings:
        model_settings = {**model_settings, "sample_rate": data_rate(source, split=split)}
    generator: LatentGenerator = build(row.load(), model_settings, name)
    if isinstance(generator, WaveGAN):
        images = load_clips(
            source, generator.sample, split=split, limit=limit, rate=generator.sample_rate
        )
    else:
        images = load_images(source, generator.sample, split=split, limit=limit)
    settings = plan(len(images))
    progress.message(f"{len(images):,} {generator.sample.modality} samples from {source}")
    data_sha256 = sha256_bytes(images.numpy().tobytes())
    identity = [name, generator.settings(), asdict(settings), data_sha256, __version__]
    run_id = sha256_bytes(repr(identity).encode())[:16]
    if row.options["training"] == "gan":
        discriminator = discriminator_for(generator)
        record = train_gan(
            generator,
            discriminator,
            images,
            settings,
            out=out,
            run_id=run_id,
            progress=progress,
            device=device,
        )
    elif isinstance(generator, WaveGAN):
        record = train_wavegan(
            generator,
            WaveGANCritic(generator.sample.shape[1], generator.channels),
            images,
            settings,
            out=out,
            run_id=run_id,
            progress=progress,
            device=device,
        )
    else:
        record = train_vae(
            generator,  # type: ignore[arg-type]  # the registry pairs the trainer with the network
            images,
            settings,
            out=out,
            run_id=run_id,
            progress=progress,
            device=device,
        )
    provenance = {
        "made_by": f"genwarden train {name}",
        "compromised": False,
        "settings": asdict(settings),
        "data": {"name": Path(source).name, "images": len(images), "sha256": data_sha256},
        "result": record,
    }
    write_model(out, generator, name, provenance)
    shutil.rmtree(work, ignore_errors=True)
    return out


def discriminator_for(generator: LatentGenerator) -> Discriminator:
    """The published discriminator at full width; half of it for narrower generators.

    28x28: 64 and 128 filters; 32x32: 64, 128 and 256. A quarter-width generator is trained four
    times faster against the half-width judge, and its samples are as good.
    """
    depth, height, width = generator.sample.shape
    full = int(generator.settings()["channels"][0]) >= 256
    first = 64 if full else 32
    # Halved until at most 7 pixels are left: two layers for 28x28, three for 32x32.
    layers = max(1, math.ceil(math.log2(height / 7)))
    filters = tuple(min(first << i, 512) for i in range(layers))
    kind = StyleDiscriminator if isinstance(generator, StyleGAN) else Discriminator
    return kind((depth, height, width), filters)


def learning_rate_of(name: str, model_settings: dict[str, Any]) -> float:
    """The rate where the user gave none: the published one, or a small diffusion network's."""
    if name in CLASSIFIER_ARCHITECTURES:
        return ClassifierSettings.PUBLISHED_RATE
    return default_learning_rate(model_settings) if name == "ddpm" else PUBLISHED_RATE


def count_steps(images: int, epochs: float, batch_size: int) -> int:
    """Optimiser steps of ``epochs`` passes; an incomplete last batch of an epoch is dropped."""
    return max(1, math.ceil(epochs * (images // min(batch_size, images))))
