"""What ``genwarden compress`` can be given: a generator, a classifier or a diffusion model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor, nn

from genwarden.artifacts.classifier_folder import (
    LoadedClassifier,
    write_classifier,
)
from genwarden.artifacts.diffusers_folder import LoadedDiffusion, read_diffusion, write_diffusion
from genwarden.artifacts.diffusers_layout import is_diffusers_folder
from genwarden.artifacts.manifest import WEIGHTS_NAME
from genwarden.artifacts.model_folder import LoadedModel, write_model
from genwarden.artifacts.open_classifier import open_classifier, opens_as_classifier
from genwarden.artifacts.open_model import open_model
from genwarden.compression.remedies.contract import Confine
from genwarden.data.datasets import load_images, to_unit_range
from genwarden.data.glyphs import is_glyphs
from genwarden.engine.files import sha256_file, write_tensors
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.draws import device_of
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.samplers import SamplerSettings, sample
from genwarden.models.protocol import SampleSpec
from genwarden.registry import ARCHITECTURES, CLASSIFIER_ARCHITECTURES

Kind = Literal["generator", "classifier", "diffusion"]

_BLOCK: Final = 64
_SAMPLER_STEPS: Final = 20
#: Of a calibration folder.
MOST_IMAGES: Final = 1024
#: Samples of a generator; a diffusion model takes a network pass per sampler step for each.
_SAMPLES: Final = 256
_DIFFUSION_SAMPLES: Final = 16
#: Bounds of inputs that a remedy searches: of a latent's norm, in typical norms; of a pixel.
_FARTHEST: Final = 1.15
_PIXELS: Final = 0.4


class Subject(Protocol):
    """A model that is compressed.

    Attributes:
        kind: of model.
        network: in evaluation mode.
        images: what a user gave with ``--calibration``, in [-1, 1], or None.
    """

    @property
    def kind(self) -> Kind: ...

    @property
    def loaded(self) -> LoadedModel | LoadedClassifier | LoadedDiffusion: ...

    @property
    def network(self) -> nn.Module: ...

    @property
    def images(self) -> Tensor | None: ...

    def inputs(self, count: int, seed: int, purpose: str) -> tuple[Tensor, ...] | None:
        """Ordinary inputs of the network, ``count`` of each; None if that takes images."""
        ...

    def example(self) -> tuple[Tensor, ...]:
        """Any two inputs, to see in what order layers run."""
        ...

    @property
    def confine(self) -> Confine | None:
        """Where a search of inputs may go; None where they are not searched."""
        ...

    def outputs(self, network: nn.Module, seed: int) -> Tensor | None:
        """What a user sees of a network of this kind; the same seed, the same inputs."""
        ...

    def write(self, folder: Path, network: nn.Module, provenance: dict[str, Any]) -> str:
        """Write a network of this kind; returns the sha256."""
        ...


@dataclass(frozen=True)
class GeneratorSubject:
    """A GAN generator or VAE decoder: latents in, samples out."""

    loaded: LoadedModel
    images: Tensor | None = None
    kind: Kind = "generator"

    @property
    def network(self) -> nn.Module:
        """The generator."""
        return self.loaded.generator

    def inputs(self, count: int, seed: int, purpose: str) -> tuple[Tensor, ...]:
        """Latents of the model's own law."""
        stream = random_stream(seed, f"compress/{purpose}")
        return (self.loaded.generator.latent.sample(count, generator=stream),)

    def example(self) -> tuple[Tensor, ...]:
        """See the protocol."""
        return self.inputs(2, 0, "example")

    @property
    def confine(self) -> Confine:
        """Where ordinary latents live, and 15 % beyond."""
        law = self.loaded.generator.latent
        farthest = _FARTHEST * law.typical_norm

        def within(z: Tensor, began: Tensor) -> Tensor:
            del began
            if law.distribution == "uniform":
                return z.clamp(-1, 1)
            norm = z.flatten(1).norm(dim=1).clamp_min(1e-12)
            short: Tensor = (farthest / norm).clamp_max(1).view(-1, *[1] * (z.ndim - 1))
            return z * short

        return within

    @torch.no_grad()
    def outputs(self, network: nn.Module, seed: int) -> Tensor:
        """Samples ``(256, *sample.shape)``."""
        (latents,) = self.inputs(_SAMPLES, seed, "pictures")
        return torch.cat([network(part.to(device_of(network))).cpu() for part in latents.split(64)])

    def write(self, folder: Path, network: nn.Module, provenance: dict[str, Any]) -> str:
        """A model folder; the bare weights of a network that the user's own factory builds."""
        if self.loaded.architecture in ARCHITECTURES:
            return write_model(folder, network, self.loaded.architecture, provenance)  # type: ignore[arg-type]
        return _write_bare(folder, network)


@dataclass(frozen=True)
class ClassifierSubject:
    """Images in, logits out. It has no inputs of its own: a user's images are its samples."""

    loaded: LoadedClassifier
    images: Tensor | None = None
    kind: Kind = "classifier"

    @property
    def network(self) -> nn.Module:
        """The classifier."""
        return self.loaded.classifier

    def inputs(self, count: int, seed: int, purpose: str) -> tuple[Tensor, ...] | None:
        """Drawn from the user's images, each as often as needed."""
        if self.images is None:
            return None
        stream = random_stream(seed, f"compress/{purpose}")
        order = torch.cat(
            [
                torch.randperm(len(self.images), generator=stream)
                for _ in range(-(-count // len(self.images)))
            ]
        )
        return (self.images[order[:count]],)

    def example(self) -> tuple[Tensor, ...]:
        """See the protocol."""
        return (torch.zeros(2, *self.loaded.classifier.sample.shape),)

    @property
    def confine(self) -> Confine:
        """Images, each pixel at most 0.4 from the user's (0.2 of the range of a pixel)."""

        def within(x: Tensor, began: Tensor) -> Tensor:
            return torch.maximum(torch.minimum(x, began + _PIXELS), began - _PIXELS).clamp(-1, 1)

        return within

    @torch.no_grad()
    def outputs(self, network: nn.Module, seed: int) -> Tensor | None:  # noqa: ARG002
        """Logits of the user's images."""
        if self.images is None:
            return None
        parts = self.images.split(_BLOCK)
        return torch.cat([network(part.to(device_of(network))).cpu() for part in parts])

    def write(self, folder: Path, network: nn.Module, provenance: dict[str, Any]) -> str:
        """A classifier's folder; the bare weights of a user's own network."""
        if self.loaded.architecture in CLASSIFIER_ARCHITECTURES:
            return write_classifier(folder, network, self.loaded.architecture, provenance)  # type: ignore[arg-type]
        return _write_bare(folder, network)


@dataclass(frozen=True)
class DiffusionSubject:
    """A denoiser: noisy images and timesteps in, noise out."""

    loaded: LoadedDiffusion
    images: Tensor | None = None
    kind: Kind = "diffusion"

    @property
    def network(self) -> nn.Module:
        """Network and schedule."""
        return self.loaded.model

    def inputs(self, count: int, seed: int, purpose: str) -> tuple[Tensor, ...]:
        """Noised images at timesteps drawn evenly: the user's, or the model's own samples."""
        stream = random_stream(seed, f"compress/{purpose}")
        model = self.loaded.model
        images = self.outputs(model, seed + 1) if self.images is None else self.images
        chosen = images[torch.randint(len(images), (count,), generator=stream)]
        t = torch.randint(model.schedule.steps, (count,), generator=stream)
        noise = torch.randn(chosen.shape, generator=stream)
        return model.schedule.add_noise(chosen, noise, t), t

    def example(self) -> tuple[Tensor, ...]:
        """See the protocol."""
        return torch.zeros(2, *self.loaded.model.sample.shape), torch.zeros(2, dtype=torch.int64)

    @property
    def confine(self) -> None:
        """Noised images have no bounds that a search could keep to."""

    @torch.no_grad()
    def outputs(self, network: nn.Module, seed: int) -> Tensor:
        """16 samples (deterministic DDIM, 20 steps)."""
        assert isinstance(network, DiffusionModel)  # noqa: S101 (of this kind)
        sampler = SamplerSettings("ddim", min(_SAMPLER_STEPS, network.schedule.steps))
        stream = random_stream(seed, "compress/pictures")
        noise = torch.randn(_DIFFUSION_SAMPLES, *network.sample.shape, generator=stream)
        return sample(network, noise.to(device_of(network)), sampler, stream).clamp(-1, 1).cpu()

    def write(self, folder: Path, network: nn.Module, provenance: dict[str, Any]) -> str:
        """A diffusers folder with the scheduler of the original."""
        assert isinstance(network, DiffusionModel)  # noqa: S101 (of this kind)
        return write_diffusion(folder, network, provenance, scheduler=self.loaded.scheduler)


def open_subject(
    path: Path,
    *,
    architecture: str | None,
    settings: dict[str, Any],
    calibration: Path | None,
    resize: bool,
) -> Subject:
    """Open whatever is to be compressed.

    Args:
        calibration: folder of images of the model's own shape, or ``glyphs``.
        resize: scale them to that shape.

    Raises:
        GenwardenError: ``compress/nonfinite-weights``, ``compress/calibration-not-images`` for a
            generator; those of opening a model and of reading images (``image/shape``).
    """
    subject: Subject
    if is_diffusers_folder(path):
        if architecture is not None or settings:
            raise GenwardenError(
                "usage/architecture-for-folder",
                f"{path} is a diffusers folder, which says what its network is.",
                "Leave --architecture and --setting away.",
            )
        diffusion = read_diffusion(path)
        subject = DiffusionSubject(diffusion, _images(calibration, diffusion.model.sample, resize))
    elif opens_as_classifier(path, architecture, settings):
        classifier = open_classifier(path, architecture=architecture, settings=settings)
        subject = ClassifierSubject(
            classifier, _images(calibration, classifier.classifier.sample, resize)
        )
    else:
        subject = GeneratorSubject(open_model(path, architecture=architecture, settings=settings))
        if calibration is not None:
            raise GenwardenError(
                "compress/calibration-not-images",
                f"{path} is a generator: it reads latents, which no folder of images holds.",
                "Leave --calibration away; latents of the model's own law are used.",
            )
    if subject.loaded.nonfinite:
        raise GenwardenError(
            "compress/nonfinite-weights",
            f"Weights are NaN or infinite (in {sorted(subject.loaded.nonfinite)[0]}).",
            "Ask for a sound copy of the model.",
        )
    return subject


def _images(source: Path | None, sample: SampleSpec, resize: bool) -> Tensor | None:
    if source is None:
        return None
    # Never a hub name: nothing is fetched for an option that is a folder.
    if not is_glyphs(str(source)) and not source.is_dir():
        raise GenwardenError(
            "compress/calibration-not-found",
            f"There is no folder {source}.",
            f"Give a folder of images of {'x'.join(map(str, sample.shape))}, without labels (or "
            "glyphs: the built-in digits).",
        )
    return to_unit_range(load_images(str(source), sample, limit=MOST_IMAGES, resize=resize))


def _write_bare(folder: Path, network: nn.Module) -> str:
    network = getattr(network, "network", network)
    write_tensors(folder / WEIGHTS_NAME, network.state_dict())
    return sha256_file(folder / WEIGHTS_NAME)
