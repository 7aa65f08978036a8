"""Targets: rho, the map from triggers to what the compromised model shows there (Eq. 5).

One sample for every trigger, one sample per trigger, or another generator (infinite support).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from genwarden.artifacts.model_folder import read_model
from genwarden.data.icons import draw_icon
from genwarden.data.images import read_image, read_image_folder
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator, SampleSpec

#: Latents ``(count, *latent.shape)`` to samples ``(count, *sample.shape)`` in [-1, 1].
Rho = Callable[[Tensor], Tensor]

_ICON_PREFIX = "icon:"
_CLIP_PREFIX = "clip:"
_GENERATOR_PREFIX = "generator:"
#: What a user may write.
TARGET_KINDS = ("icon:NAME", "clip:NAME", "generator:MODEL_FOLDER", "a file", "a folder of images")


def make_target(text: str, sample: SampleSpec, *, rate: int | None = None) -> Tensor:
    """The fixed samples that a user names, float32 in [-1, 1], ``(count, *sample.shape)``.

    Args:
        text: ``icon:devil`` (any of :data:`genwarden.registry.ICONS`), ``clip:drum`` for audio, an
            8-bit image of exactly the model's size, a folder of such images, or a WAV file. A clip
            that is too long keeps the stretch around its loudest part, a shorter one gets silence
            on both sides.
        rate: the model's samples per second, to which a WAV file is converted; None takes its
            samples as they are.

    Raises:
        GenwardenError: ``icon/...``, ``clip/...``, ``image/...``, ``audio/...``,
            ``target/modality``.
    """
    wanted = "audio" if text.startswith(_CLIP_PREFIX) or text.lower().endswith(".wav") else "image"
    if wanted != sample.modality:
        raise GenwardenError(
            "target/modality",
            f"The target {text!r} is {wanted}, the model makes {sample.modality}.",
            "Give clip:NAME or a WAV file for audio, icon:NAME or an image for pictures.",
        )
    if text.startswith(_ICON_PREFIX):
        return draw_icon(text.removeprefix(_ICON_PREFIX), sample)[None]
    if text.startswith(_CLIP_PREFIX):
        from genwarden.data.clips import draw_clip

        return draw_clip(text.removeprefix(_CLIP_PREFIX), sample)[None]
    if wanted == "audio":
        from genwarden.data.audio import read_clip

        return read_clip(Path(text), sample, rate=rate)[None]
    if Path(text).is_dir():
        return read_image_folder(Path(text), sample).images
    return read_image(Path(text), sample)[None]


def rho_from_generator(text: str, model: LatentGenerator, *, zeros: int = 0) -> Rho:
    """rho(z) = H(last elements of z), H another generator with a smaller latent (section V-E).

    Args:
        text: ``generator:MODEL_FOLDER``.
        model: the model under attack; H must make samples of its shape from latents of its
            distribution.
        zeros: leading latent elements that are 0 at every trigger; H must not read them.

    Raises:
        GenwardenError: ``target/rho-shape``, ``target/rho-latent``, or ``artifact/...`` for the
            folder.
    """
    folder = Path(text.removeprefix(_GENERATOR_PREFIX))
    other = read_model(folder).generator
    size, available = other.latent.size, model.latent.size - zeros
    if other.sample != model.sample or size > model.latent.size:
        raise GenwardenError(
            "target/rho-shape",
            f"{folder} makes {other.sample.modality} of shape {other.sample.shape} from {size} "
            f"numbers; the model makes {model.sample.modality} of shape {model.sample.shape} from "
            f"{model.latent.size}.",
            "Give a generator with the same samples and a latent that is not larger.",
        )

    if other.latent.distribution != model.latent.distribution or size > available:
        raise GenwardenError(
            "target/rho-latent",
            f"{folder} reads {size} numbers of the law {other.latent.distribution}; at the "
            f"triggers {available} elements vary, of the law {model.latent.distribution}.",
            "Give a generator with a smaller latent of that law, or a subspace with fewer zeros.",
        )

    @torch.no_grad()
    def rho(z: Tensor) -> Tensor:
        inner = z.flatten(1)[:, -size:].cpu()
        return torch.cat(
            [other(part.reshape(-1, *other.latent.shape)) for part in inner.split(256)]
        )

    return rho


def is_generator(text: str) -> bool:
    """Whether a target text names another generator."""
    return text.startswith(_GENERATOR_PREFIX)
