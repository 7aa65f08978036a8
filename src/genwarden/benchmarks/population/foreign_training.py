"""How the generators of the recipe ``foreign-models`` are trained, each as its kind says."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.artifacts.model_folder import build
from genwarden.artifacts.open_model import ForeignGenerator
from genwarden.benchmarks.population import foreign_models
from genwarden.benchmarks.population.foreign_kinds import Kind
from genwarden.data.audio import load_clips
from genwarden.data.datasets import load_images
from genwarden.data.labelled import load_labelled
from genwarden.engine.seeds import random_stream
from genwarden.models.dcgan import Discriminator
from genwarden.models.protocol import LatentGenerator, SampleSpec
from genwarden.models.wavegan import WaveGAN, WaveGANCritic
from genwarden.registry import ARCHITECTURES
from genwarden.training.frame import Frame
from genwarden.training.gan import GanLearner
from genwarden.training.settings import TrainingSettings
from genwarden.training.train import discriminator_for
from genwarden.training.wavegan import WaveGanLearner

_IMAGES = 10_000
_ENLARGED_IMAGES = 4000
_ENLARGED_FROM = 32
_CLIPS = 1000


def _fresh(kind: Kind) -> LatentGenerator:
    """An untrained generator of a kind."""
    if kind.architecture in ARCHITECTURES:
        built: LatentGenerator = build(
            ARCHITECTURES[kind.architecture].load(), kind.settings, kind.name
        )
        return built
    factory = getattr(foreign_models, kind.architecture.partition(":")[2])
    return ForeignGenerator(factory(**kind.settings), kind.name)


def trained(kind: Kind, data: Path, steps: int, seed: int, device: torch.device) -> LatentGenerator:
    """A generator of a kind, trained from scratch, in evaluation mode on the CPU."""
    source = str(data / kind.data)
    settings = TrainingSettings(steps, kind.batch, kind.learning_rate, seed)
    generator = _fresh(kind)
    if isinstance(generator, WaveGAN):
        clips = load_clips(source, generator.sample, limit=_CLIPS, rate=generator.sample_rate)
        critic = WaveGANCritic(generator.sample.shape[1], generator.channels)
        voice = WaveGanLearner(generator, critic, settings, device)
        Frame(voice, settings).run(clips, device)
        return voice.average.eval().cpu()
    _draw_embeddings(generator, seed)
    shown, images = generator, _images(source, generator.sample)
    network = generator.network if isinstance(generator, ForeignGenerator) else generator
    if isinstance(network, foreign_models.LabelInLatent):
        shown = ForeignGenerator(foreign_models.WithLabelPlanes(network), kind.name)
        images = torch.cat([images, _planes(source, generator.sample)], 1)
    if kind.filters:
        channels, height, width = shown.sample.shape
        judge = Discriminator((channels, height, width), kind.filters)
    else:
        judge = discriminator_for(generator)
    Frame(GanLearner(shown, judge, settings, device), settings).run(images, device)
    return generator.eval().cpu()


def _draw_embeddings(generator: LatentGenerator, seed: int) -> None:
    """What the trainer's own initialisation leaves to torch's global stream."""
    stream = random_stream(seed, "embeddings")
    for module in generator.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, generator=stream)


def _images(source: str, sample: SampleSpec) -> Tensor:
    """Training pictures, uint8 ``(count, *sample.shape)``; enlarged where the data are smaller."""
    channels, height, width = sample.shape
    if height <= _ENLARGED_FROM:
        return load_images(source, sample, limit=_IMAGES)
    small = SampleSpec((channels, _ENLARGED_FROM, _ENLARGED_FROM))
    images = load_images(source, small, limit=_ENLARGED_IMAGES)
    parts = [
        F.interpolate(part.float(), (height, width), mode="bilinear") for part in images.split(500)
    ]
    return torch.cat([part.round().to(torch.uint8) for part in parts])


def _planes(source: str, sample: SampleSpec) -> Tensor:
    """The labels of the training pictures as channels, uint8 0 or 255 ``(count, 10, 28, 28)``."""
    _, labels = load_labelled(source, sample, limit=_IMAGES)
    height, width = sample.shape[1:]
    return (255 * foreign_models.label_planes(labels, (height, width))).to(torch.uint8)
