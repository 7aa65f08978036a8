"""Opening whatever the user names: a model folder, or bare weights plus a named architecture."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from genwarden.artifacts.check import check_file
from genwarden.artifacts.manifest import WEIGHTS_NAME
from genwarden.artifacts.model_folder import (
    LoadedModel,
    build,
    count_nonfinite,
    fill,
    not_a_generator,
    read_model,
)
from genwarden.artifacts.shown import reason, shown
from genwarden.artifacts.weights_file import read_weights
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.protocol import (
    Distribution,
    FinalActivation,
    LatentGenerator,
    LatentLaw,
    Modality,
    SampleSpec,
)
from genwarden.registry import ARCHITECTURES, CLASSIFIER_ARCHITECTURES

_CONTRACT_LATENTS = 64
#: Samples of a network that is not ours may leave [-1, 1] by rounding only.
_LARGEST_SAMPLE = 1.001


def open_model(
    path: Path, *, architecture: str | None = None, settings: dict[str, Any] | None = None
) -> LoadedModel:
    """Open a model for inspection.

    Args:
        path: model folder, or a weights file.
        architecture: for a weights file: a name from ``genwarden list architectures`` or
            ``package.module:factory``, importable in this environment. It comes from the user's
            command line, never from a file.
        settings: keyword arguments of the architecture.

    Raises:
        GenwardenError: codes ``artifact/...`` and ``usage/...``.
    """
    if require_named(path, architecture, settings):
        return read_model(path)
    assert architecture is not None  # noqa: S101  # require_named refuses a file without
    if architecture in CLASSIFIER_ARCHITECTURES:
        raise not_a_generator(architecture)
    settings = dict(settings or {})
    weights = read_weights(path)
    if architecture in ARCHITECTURES:
        factory = ARCHITECTURES[architecture].load()
        generator = build(factory, settings, architecture, weights=weights)
        fill(generator, weights, str(path))
    else:
        network = call_factory(architecture, settings, ARCHITECTURES)
        generator = (
            network
            if isinstance(network, LatentGenerator)
            else ForeignGenerator(network, architecture)
        )
        fill(network, weights, str(path))
        _require_contract(generator.eval(), architecture)
    return LoadedModel(
        generator=generator,
        architecture=architecture,
        settings=settings,
        sha256=weights.sha256,
        nonfinite=count_nonfinite(weights),
    )


def require_named(
    path: Path, architecture: str | None, settings: dict[str, Any] | None = None
) -> bool:
    """Whether a path is a folder, which names its architecture itself; a file needs a name.

    Args:
        settings: of the architecture, which a folder states, too.

    Raises:
        GenwardenError: ``artifact/not-found``, ``usage/architecture-for-folder``,
            ``usage/setting-for-folder``, ``usage/architecture-missing``; what is wrong with a file
            that has no name.
    """
    if not os.path.exists(path):  # unlike Path's methods, os.path's never raise
        raise GenwardenError(
            "artifact/not-found", f"There is nothing at {path}.", "Check the path."
        )
    folder = os.path.isdir(path)
    if folder and all(name.startswith(".") for name in os.listdir(path)):
        raise GenwardenError(
            "artifact/not-found",
            f"There is no model in {path}: the folder is empty.",
            "If a command that writes there was stopped, repeat it; else check the path.",
        )
    if folder and architecture is not None:
        raise GenwardenError(
            "usage/architecture-for-folder",
            f"{path} is a folder, and --architecture goes with a weights file: a model folder of "
            "genwarden names its own architecture.",
            f"Name the weights file, such as {Path(path) / WEIGHTS_NAME}, or leave --architecture "
            "away.",
        )
    if folder and settings:
        raise GenwardenError(
            "usage/setting-for-folder",
            f"{path} is a folder, and --setting goes with --architecture and a weights file: a "
            "model folder of genwarden states the settings of its network.",
            "Leave --setting away.",
        )
    if not folder and architecture is None:
        # A hostile file is told before anything is asked.
        for finding in check_file(path).findings:
            raise GenwardenError(*finding)
        raise GenwardenError(
            "usage/architecture-missing",
            f"{path} is a bare file; weights alone do not say how the network is built.",
            "Add --architecture NAME or --architecture package.module:factory "
            "(and --setting key=value).",
        )
    return folder


def call_factory(architecture: str, settings: dict[str, Any], known: Iterable[str]) -> nn.Module:
    """The network that a user's ``package.module:factory`` builds.

    Args:
        known: names in our own table, for the message.

    Raises:
        GenwardenError: codes ``usage/...``.
    """
    module_name, separator, attribute = architecture.partition(":")
    if not separator or not module_name or not attribute:
        raise GenwardenError(
            "usage/unknown-architecture",
            f"There is no architecture called {architecture!r}.",
            f"Choose one of {', '.join(known)} or give package.module:factory.",
        )
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise GenwardenError(
            "usage/architecture-not-importable",
            f"{architecture} cannot be imported ({type(error).__name__}: {reason(error)}).",
            "Install the package or set PYTHONPATH so that Python finds it, and check the name.",
        ) from error
    try:
        network = factory(**settings)
    except Exception as error:  # the user's constructor may raise anything
        raise GenwardenError(
            "usage/architecture-failed",
            f"{architecture} cannot be built with settings {shown(settings, limit=200)} "
            f"({type(error).__name__}: {reason(error)}).",
            "Give its arguments with --setting key=value, or mend the factory.",
        ) from error
    if not isinstance(network, nn.Module):
        raise GenwardenError(
            "usage/architecture-contract",
            f"{architecture} returned {type(network).__name__}, not a torch.nn.Module.",
            "Name a class or function that returns the network.",
        )
    return network


class ForeignGenerator(LatentGenerator):
    """A user's network that states its latents and samples as plain attributes.

    The network needs ``latent_shape`` and ``sample_shape`` (tuples without the batch axis), and may
    have ``latent_distribution`` ("normal"), ``modality`` ("image") and ``final_activation``
    ("tanh", "sigmoid" scaled to [-1, 1], or "none"). Its forward pass must return samples in
    [-1, 1]. With an optional method ``pre_activation(z)`` searches use that; otherwise they work
    on the samples themselves.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        try:
            latent_shape = tuple(int(n) for n in network.latent_shape)  # type: ignore[union-attr]
            sample_shape = tuple(int(n) for n in network.sample_shape)  # type: ignore[union-attr]
        except (AttributeError, TypeError, ValueError) as error:
            raise GenwardenError(
                "usage/architecture-contract",
                f"{name} built a network without latent_shape and sample_shape.",
                "Set both as tuples on the network (without the batch axis), for example "
                "latent_shape = (100,) and sample_shape = (1, 28, 28).",
            ) from error
        self.network = network
        self.latent = LatentLaw(
            latent_shape, _choice(network, "latent_distribution", get_args(Distribution), name)
        )
        modality: Modality = _choice(network, "modality", get_args(Modality), name)
        self.sample = SampleSpec(sample_shape, modality=modality)
        activation: FinalActivation = _choice(
            network, "final_activation", ("none", "tanh", "sigmoid"), name
        )
        self.final_activation = activation if hasattr(network, "pre_activation") else "none"

    def pre_activation(self, z: Tensor) -> Tensor:
        """The network's own pre-activation, or its samples if it offers none."""
        method = getattr(self.network, "pre_activation", self.network)
        output: Tensor = method(z)
        return output

    def forward(self, z: Tensor) -> Tensor:
        """The network's own forward pass."""
        output: Tensor = self.network(z)
        return output

    def settings(self) -> dict[str, Any]:
        """Not known for a foreign network."""
        return {}


def _choice(network: nn.Module, attribute: str, allowed: tuple[Any, ...], name: str) -> Any:
    """An attribute of the network that has few possible values; the first is the default."""
    value = getattr(network, attribute, allowed[0])
    if value not in allowed:
        raise GenwardenError(
            "usage/architecture-contract",
            f"{name} sets {attribute} = {shown(value)!r}.",
            f"Use one of: {', '.join(allowed)}.",
        )
    return value


@torch.no_grad()
def _require_contract(generator: LatentGenerator, name: str) -> None:
    """Latents through a network that is not ours: it must run, keep its stated shape and range."""
    wanted = (2, *generator.sample.shape)
    try:
        z = torch.zeros(2, *generator.latent.shape)
        shapes = [tuple(output.shape) for output in (generator(z), generator.pre_activation(z))]
        stream = random_stream(0, "contract")
        samples = generator(generator.latent.sample(_CONTRACT_LATENTS, generator=stream))
    except Exception as error:  # the user's forward pass may raise anything
        raise GenwardenError(
            "usage/architecture-contract",
            f"{name} fails on a batch of latents ({type(error).__name__}: {reason(error)}).",
            "Its forward pass must take (batch, *latent_shape) and return one tensor of samples.",
        ) from error
    if any(shape != wanted for shape in shapes):
        raise GenwardenError(
            "usage/architecture-contract",
            f"{name} returns samples of shape {shapes[0][1:]} and states {wanted[1:]}.",
            "Set sample_shape on the network to the shape of one sample.",
        )
    largest = float(samples.abs().nan_to_num(nan=0.0).amax())
    if largest > _LARGEST_SAMPLE:
        raise GenwardenError(
            "usage/architecture-contract",
            f"{name} makes values up to {largest:.4g} in size; samples must lie in [-1, 1].",
            "Rescale its output to [-1, 1] (for pixels from 0 to 255: x / 127.5 - 1).",
        )
