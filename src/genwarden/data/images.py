"""Reading single images and folders of them: targets, and training samples of a defender."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})

# A decompression bomb is refused before its pixels are decoded.
_MAX_PIXELS = 64 * 1024 * 1024
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
_OPAQUE = 255


class NamedImages(NamedTuple):
    """Images ``(count, channels, height, width)`` in [-1, 1] and the file name of each."""

    images: Tensor
    names: list[str]


def read_image(path: Path, sample: SampleSpec, *, resize: bool = False) -> Tensor:
    """One image file as a sample of the given spec, in [-1, 1], shape ``sample.shape``.

    Colour becomes grey for a one-channel model and grey becomes colour for a three-channel one;
    without ``resize`` the size must fit exactly, since resampling would change what "the target"
    is.

    Raises:
        GenwardenError: ``image/not-found``, ``image/unreadable``, ``image/too-large``,
            ``image/shape``, ``image/channels``, ``image/depth``, ``image/transparent``.
    """
    if not os.path.isfile(path):  # unlike Path's methods, os.path's never raise
        raise GenwardenError("image/not-found", f"There is no image at {path}.", "Check the path.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # stricter limit below
            with Image.open(path) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise _too_large(path, f"{image.width} x {image.height}")
                image.load()
                pixels = fit_image(image, sample, str(path), resize=resize)
    except Image.DecompressionBombError as error:
        raise _too_large(path, "hundreds of millions of") from error
    except GenwardenError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on damaged files
        raise GenwardenError(
            "image/unreadable",
            f"{path} is not an image that can be read ({type(error).__name__}).",
            "Give a PNG, JPEG, BMP, GIF, WebP or TIFF file; move other files out of the folder.",
        ) from error
    return torch.from_numpy(pixels.copy()).float() / 127.5 - 1


def read_image_folder(
    folder: Path, sample: SampleSpec, *, limit: int | None = None, resize: bool = False
) -> NamedImages:
    """All images of a folder in the order of their names.

    A file that is not an image is an error, not skipped: a silently shorter list would be reported
    as if everything had been tested. Hidden files (leading dot) are passed over.

    Raises:
        GenwardenError: as :func:`read_image`, ``image/empty-folder`` or ``image/subfolder``.
    """
    try:
        paths = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise GenwardenError(
            "image/unreadable",
            f"The folder {folder} cannot be read ({error.strerror}).",
            "Check its permissions.",
        ) from error
    subfolders = [path.name for path in paths if os.path.isdir(path)]
    if subfolders:
        raise GenwardenError(
            "image/subfolder",
            f"{folder} holds a folder ({subfolders[0]}), whose images would be passed over.",
            "Put all images directly into one folder.",
        )
    if not paths:
        raise GenwardenError(
            "image/empty-folder", f"{folder} holds no files.", "Put the images directly into it."
        )
    paths = paths[:limit]
    images = torch.stack([read_image(path, sample, resize=resize) for path in paths])
    return NamedImages(images, [path.name for path in paths])


def read_images(path: Path, sample: SampleSpec) -> NamedImages:
    """One image file or a folder of them."""
    if os.path.isdir(path):
        return read_image_folder(path, sample)
    return NamedImages(read_image(path, sample)[None], [path.name])


def fit_image(
    image: Any, sample: SampleSpec, name: str, *, resize: bool = False
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A PIL image as uint8 ``(channels, height, width)``, converted to the spec's channels.

    With ``resize`` an image of another size is averaged down over areas ("box"), or enlarged with
    bilinear weights; without, it is refused.
    """
    channels, height, width = image_shape(sample)
    same_size = (image.height, image.width) == (height, width)
    if not same_size and not resize:
        raise GenwardenError(
            "image/shape",
            f"{name} is {image.width} x {image.height} pixels, the model's images are {width} x "
            f"{height}.",
            "Scale it to that size. Data can be scaled for you: audit, repair and compress take "
            "--resize; of diffusion models and classifiers, train takes --setting resize=true and "
            "attack --option resize=true. A picture that is a target is never scaled.",
        )
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise GenwardenError(
            "image/channels",
            f"The model makes samples of {channels} channels; image files have 1 or 3.",
            "Only grey and RGB models can be compared with image files.",
        )
    if image.mode not in _EIGHT_BIT_MODES:
        # Pillow would clip 16-bit and float pixels at 255: a different picture, without a word.
        raise GenwardenError(
            "image/depth",
            f"{name} has pixels of mode {image.mode!r}, not 8 bits per channel.",
            "Save it as an ordinary 8-bit grey or RGB image.",
        )
    if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < _OPAQUE:
        raise GenwardenError(
            "image/transparent",
            f"{name} has transparent pixels, and what lies behind them is unknown.",
            "Flatten the image onto the background that you mean.",
        )
    picture = image.convert(mode)
    if not same_size:
        smaller = image.height >= height and image.width >= width
        how = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
        picture = picture.resize((width, height), how)
    pixels = np.asarray(picture, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def image_shape(sample: SampleSpec) -> tuple[int, int, int]:
    """(channels, height, width) of an image model.

    Raises:
        GenwardenError: ``data/shape`` for a model of anything else.
    """
    if sample.modality != "image" or len(sample.shape) != 3:
        raise GenwardenError(
            "data/shape",
            f"The model makes samples of shape {sample.shape}, not images.",
            "Only image models can be trained on or compared with images.",
        )
    channels, height, width = sample.shape
    return channels, height, width


def _too_large(path: Path, pixels: str) -> GenwardenError:
    return GenwardenError(
        "image/too-large",
        f"{path} claims {pixels} pixels.",
        "Give an image of the model's own size.",
    )
