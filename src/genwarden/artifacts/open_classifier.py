"""Opening a classifier that the user names: its folder, or bare weights plus an architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from genwarden.artifacts.classifier_folder import (
    LoadedClassifier,
    is_classifier_folder,
    not_a_classifier,
    read_classifier,
)
from genwarden.artifacts.model_folder import build, count_nonfinite, fill
from genwarden.artifacts.open_model import call_factory, require_named
from genwarden.artifacts.shown import reason
from genwarden.artifacts.weights_file import read_weights
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.models.protocol import SampleSpec
from genwarden.registry import ARCHITECTURES, CLASSIFIER_ARCHITECTURES

_CONTRACT_IMAGES: Final = 4


def opens_as_classifier(
    path: Path, architecture: str | None, settings: dict[str, Any] | None = None
) -> bool:
    """Whether what the user names is a classifier: by its manifest, or by the architecture.

    A network that the user's own factory builds is one if it states images and classes and no
    latents.

    Args:
        path: as for :func:`open_classifier`, which takes the other arguments, too.

    Raises:
        GenwardenError: codes ``usage/...``, if a factory cannot be called.
    """
    if architecture is None:
        return is_classifier_folder(path)
    if architecture in CLASSIFIER_ARCHITECTURES or ":" not in architecture:
        return architecture in CLASSIFIER_ARCHITECTURES
    network = call_factory(architecture, dict(settings or {}), CLASSIFIER_ARCHITECTURES)
    if isinstance(network, ImageClassifier):
        return True
    stated = hasattr(network, "image_shape") and hasattr(network, "classes")
    return stated and not hasattr(network, "latent_shape")


def open_classifier(
    path: Path, *, architecture: str | None = None, settings: dict[str, Any] | None = None
) -> LoadedClassifier:
    """Open a classifier for inspection.

    Args:
        path: a classifier's folder, or a weights file.
        architecture: for a weights file: a name from ``genwarden list architectures`` or
            ``package.module:factory``, importable in this environment. It comes from the user's
            command line, never from a file.
        settings: keyword arguments of the architecture.

    Raises:
        GenwardenError: codes ``artifact/...`` and ``usage/...``.
    """
    if require_named(path, architecture, settings):
        return read_classifier(path)
    assert architecture is not None  # noqa: S101  # require_named refuses a file without
    settings = dict(settings or {})
    weights = read_weights(path)
    classifier: ImageClassifier
    if architecture in CLASSIFIER_ARCHITECTURES:
        factory = CLASSIFIER_ARCHITECTURES[architecture].load()
        classifier = build(factory, settings, architecture, weights=weights)
        fill(classifier, weights, str(path))
    else:
        if architecture in ARCHITECTURES:
            raise not_a_classifier(f"{architecture} is a generator")
        network = call_factory(architecture, settings, CLASSIFIER_ARCHITECTURES)
        classifier = (
            network
            if isinstance(network, ImageClassifier)
            else ForeignClassifier(network, architecture)
        )
        fill(network, weights, str(path))
        _require_contract(classifier.eval(), architecture)
    return LoadedClassifier(
        classifier=classifier,
        architecture=architecture,
        settings=settings,
        sha256=weights.sha256,
        nonfinite=count_nonfinite(weights),
    )


class ForeignClassifier(ImageClassifier):
    """A user's network that states its images and classes as plain attributes.

    The network needs ``image_shape`` (channels, height, width) and ``classes``. Its forward pass
    takes images in [-1, 1] and returns logits; other statistics it must apply itself.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        nn.Module.__init__(self)
        try:
            channels, height, across = (int(n) for n in network.image_shape)  # type: ignore[union-attr]
            classes = int(network.classes)  # type: ignore[arg-type]
        except (AttributeError, TypeError, ValueError) as error:
            raise GenwardenError(
                "usage/architecture-contract",
                f"{name} built a network without image_shape and classes.",
                "Set both on the network, for example image_shape = (3, 32, 32) and classes = 10.",
            ) from error
        self.network = network
        self.sample = SampleSpec((channels, height, across))
        self.classes = classes
        self.width = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """The network's own forward pass."""
        output: Tensor = self.network(x)
        return output

    def settings(self) -> dict[str, Any]:
        """Not known for a foreign network."""
        return {}


@torch.no_grad()
def _require_contract(classifier: ImageClassifier, name: str) -> None:
    """Images through a network that is not ours: it must run and give one logit per class."""
    stream = random_stream(0, "contract")
    images = torch.rand(_CONTRACT_IMAGES, *classifier.sample.shape, generator=stream) * 2 - 1
    try:
        shape = tuple(classifier(images).shape)
    except Exception as error:  # the user's forward pass may raise anything
        raise GenwardenError(
            "usage/architecture-contract",
            f"{name} fails on a batch of images ({type(error).__name__}: {reason(error)}).",
            "Its forward pass must take (batch, *image_shape) and return (batch, classes).",
        ) from error
    wanted = (_CONTRACT_IMAGES, classifier.classes)
    if shape != wanted:
        raise GenwardenError(
            "usage/architecture-contract",
            f"{name} returns {shape} for {_CONTRACT_IMAGES} images and states "
            f"{classifier.classes} classes.",
            "Set classes on the network to the number of its logits.",
        )
