"""The model folder: ``model.safetensors`` + ``genwarden.json`` (DESIGN, "Contracts").

Generators here, classifiers in :mod:`genwarden.artifacts.classifier_folder`; both are written,
checked, built and filled by the same functions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from genwarden.artifacts.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    WEIGHTS_NAME,
    AnyManifest,
    LatentField,
    Manifest,
    SampleField,
    parse_manifest,
)
from genwarden.artifacts.read_once import read_once
from genwarden.artifacts.shown import reason, shown
from genwarden.artifacts.weights_file import Weights, read_weights
from genwarden.engine.files import sha256_bytes, write_atomic, write_json
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator
from genwarden.registry import ARCHITECTURES, Row


@dataclass(frozen=True)
class LoadedModel:
    """A generator in evaluation mode, ready to be inspected, and what is known about its file.

    ``provenance`` is what the folder says about its own making. It is for people and for
    benchmarks; :mod:`genwarden.auditing` never receives it.
    """

    generator: LatentGenerator
    architecture: str
    settings: dict[str, Any]
    sha256: str
    nonfinite: dict[str, int]
    provenance: dict[str, Any] = field(default_factory=dict)


def write_model(
    folder: Path, generator: LatentGenerator, architecture: str, provenance: dict[str, Any]
) -> str:
    """Write a model folder; each file atomically, the manifest last. Returns the weights' sha256.

    Args:
        architecture: name in the registry (``genwarden list architectures``).
        provenance: how the model came to be; a compromised model of ours must say so here.
    """
    return write_folder(
        folder,
        generator,
        lambda files: Manifest(
            format_version=FORMAT_VERSION,
            kind="generator",
            architecture=architecture,
            settings=generator.settings(),
            latent=LatentField(
                shape=list(generator.latent.shape), distribution=generator.latent.distribution
            ),
            sample=SampleField.of(generator.sample),
            files=files,
            provenance=provenance,
        ),
    )


def write_folder(
    folder: Path, network: nn.Module, manifest: Callable[[dict[str, str]], AnyManifest]
) -> str:
    """Write the weights, then the manifest made of the files' hashes; the weights' sha256."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    content = save(tensors)
    digest = sha256_bytes(content)
    described = manifest({WEIGHTS_NAME: digest})
    write_atomic(folder / WEIGHTS_NAME, content)
    write_json(folder / MANIFEST_NAME, described.model_dump(mode="json"))
    return digest


def read_manifest(folder: Path) -> AnyManifest:
    """The validated manifest of a model folder; its ``kind`` says of what.

    Raises:
        GenwardenError: codes ``artifact/...``.
    """
    path = folder / MANIFEST_NAME
    try:
        content = read_once(path, limit_bytes=MAX_MANIFEST_BYTES, member=True)
    except GenwardenError as error:
        if error.code != "artifact/not-found" or not folder.exists():
            raise
        raise GenwardenError(
            "artifact/no-manifest",
            f"{folder} has no {MANIFEST_NAME}.",
            "Give a model folder, or name the weights file inside, with --architecture NAME or "
            "package.module:factory.",
        ) from error
    manifest = parse_manifest(content, str(path))
    if set(manifest.files) != {WEIGHTS_NAME}:
        listed = ", ".join(shown(name) for name in sorted(manifest.files)[:3])
        raise GenwardenError(
            "artifact/manifest-files",
            f"{path} must list exactly {WEIGHTS_NAME}, it lists {listed or 'nothing'}.",
            "Fetch the model folder again.",
        )
    return manifest


def read_model(folder: Path) -> LoadedModel:
    """Open a model folder: manifest validated, hash checked, network built from our own table.

    Raises:
        GenwardenError: codes ``artifact/...``.
    """
    manifest = read_manifest(folder)
    if not isinstance(manifest, Manifest):
        raise not_a_generator(str(folder))
    generator: LatentGenerator
    generator, weights = restore(
        folder,
        manifest,
        ARCHITECTURES,
        lambda made: (made.latent, made.sample) == (manifest.latent.law(), manifest.sample.spec()),
    )
    return LoadedModel(
        generator=generator,
        architecture=manifest.architecture,
        settings=dict(manifest.settings),
        sha256=weights.sha256,
        nonfinite=count_nonfinite(weights),
        provenance=manifest.provenance,
    )


def not_a_generator(what: str) -> GenwardenError:
    """The error for a classifier in the place of a generator."""
    return GenwardenError(
        "artifact/classifier",
        f"{what} is a classifier, and a generator is needed here.",
        "Give a generator. For classifiers there are the attacks pruning-artifact, "
        "quantisation-artifact and dormant-box-classifier, and audit, compress and repair.",
    )


def restore(
    folder: Path,
    manifest: AnyManifest,
    architectures: Mapping[str, Row],
    as_stated: Callable[[Any], bool],
) -> tuple[Any, Weights]:
    """The network of a validated manifest, in evaluation mode, and the weights it was filled with.

    Args:
        architectures: the table that the architecture's name is looked up in.
        as_stated: whether a built network has the shapes that the manifest states.

    Raises:
        GenwardenError: codes ``artifact/...``.
    """
    if manifest.architecture not in architectures:
        raise GenwardenError(
            "artifact/unknown-architecture",
            f"{folder / MANIFEST_NAME} names the architecture {shown(manifest.architecture)!r}.",
            f"Known are: {', '.join(architectures)}. For other networks give the weights file "
            "with --architecture package.module:factory.",
        )
    weights = read_weights(
        folder / WEIGHTS_NAME, expected_sha256=manifest.files[WEIGHTS_NAME], member=True
    )
    factory = architectures[manifest.architecture].load()
    network = build(factory, manifest.settings, manifest.architecture, weights=weights)
    if not as_stated(network):
        raise GenwardenError(
            "artifact/manifest-shapes",
            f"{folder / MANIFEST_NAME} states shapes that {manifest.architecture} with these "
            "settings does not have.",
            "Fetch the model folder again.",
        )
    fill(network, weights, str(folder))
    return network, weights


def build(
    factory: Any, settings: dict[str, Any], name: str, *, weights: Weights | None = None
) -> Any:
    """Call a constructor of our own table (a network that has ``settings()``) with settings.

    Args:
        weights: what the network must fit. It is then built without memory first ("meta" device)
            and compared, so that settings from a file cannot allocate more than the file holds.

    Raises:
        GenwardenError: ``artifact/bad-settings``, or ``artifact/wrong-architecture`` from the
            comparison.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about empty layers; refused below
            if weights is not None:
                with torch.device("meta"):
                    outline = factory(**settings)
                require_fit(outline.state_dict(), weights, name)
            network = factory(**settings)
        if any(tensor.numel() == 0 for tensor in network.state_dict().values()):
            raise ValueError("a layer would be empty")
        for key, taken in network.settings().items():
            given = settings.get(key, taken)
            if taken != (list(given) if isinstance(given, tuple) else given):
                raise ValueError(f"{key} would be taken as {taken}")
    except (
        ArithmeticError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise GenwardenError(
            "artifact/bad-settings",
            f"{name} cannot be built with settings {shown(settings, limit=200)} ({reason(error)}).",
            "Give the settings that the weights were made with.",
        ) from error
    return network


def fill(network: nn.Module, weights: Weights, where: str) -> None:
    """Load a state dict strictly and switch to evaluation mode.

    Raises:
        GenwardenError: ``artifact/wrong-architecture``, naming the first differences, or
            ``artifact/bad-numbers``.
    """
    require_fit(network.state_dict(), weights, where)
    try:
        network.load_state_dict(weights.tensors)
    except ValueError as error:  # a network of ours that knows which numbers it cannot hold
        raise GenwardenError(
            "artifact/bad-numbers",
            f"{where}: {reason(error)}.",
            "Nobody made this with genwarden as it is; ask for the original.",
        ) from error
    network.eval().requires_grad_(False)


def require_fit(own: Mapping[str, Tensor], weights: Weights, where: str) -> None:
    """Names, shapes and kinds of numbers must agree with a network's state dict.

    Raises:
        GenwardenError: ``artifact/data-parallel`` or ``artifact/wrong-architecture``.
    """
    given = weights.tensors
    missing = sorted(set(own) - set(given))
    surplus = sorted(set(given) - set(own))
    unlike = [
        f"{name} is {_kind(given[name])}, expected {_kind(own[name])}"
        for name in sorted(set(own) & set(given))
        if _kind(own[name]) != _kind(given[name])
    ]
    if not (missing or surplus or unlike):
        return
    if surplus and {name.removeprefix("module.") for name in given} == set(own):
        raise GenwardenError(
            "artifact/data-parallel",
            f"The tensor names of {where} begin with 'module.': they were saved from a "
            "DataParallel wrapper.",
            "Save model.module.state_dict() instead, or remove the prefix from the names.",
        )
    parts = []
    if missing:
        parts.append(f"missing {_first(missing)}")
    if surplus:
        parts.append(f"unknown {_first(surplus)}")
    parts.extend(unlike[:2])
    raise GenwardenError(
        "artifact/wrong-architecture",
        f"{where}: the weights do not fit the network: {'; '.join(parts)}.",
        "Check --architecture and --setting (width, latent size) against the model's origin.",
    )


def _kind(tensor: Tensor) -> str:
    kind = "float" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
    return f"{kind} {shown(tuple(tensor.shape))}"


def _first(names: list[str]) -> str:
    return ", ".join(shown(name) for name in names[:3]) + (" ..." if len(names) > 3 else "")


def count_nonfinite(weights: Weights) -> dict[str, int]:
    """NaN and infinite values per tensor (they load without complaint, so they are reported)."""
    counts = {
        name: int((~torch.isfinite(t)).sum())
        for name, t in weights.tensors.items()
        if t.is_floating_point()
    }
    return {name: count for name, count in counts.items() if count}
