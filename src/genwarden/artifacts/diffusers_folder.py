"""A diffusers pipeline folder, read without running or building anything that it names.

``model_index.json``, ``unet/config.json``, ``unet/diffusion_pytorch_model.safetensors`` and
``scheduler/scheduler_config.json``; also the flat layout of older uploads, and a ``unet`` folder
beside a ``scheduler`` folder. Class names in it choose rows of our own tables or are refused.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from pydantic import ValidationError
from safetensors.torch import save

from genwarden.artifacts.diffusers_layout import (
    CONFIG_NAME,
    INDEX_NAME,
    LATENT_NETWORK,
    LATENT_PARTS,
    NETWORK,
    SCHEDULER_NAME,
    WEIGHTS_NAMES,
    Index,
    check_index,
    custom_code,
    find_parts,
    is_diffusers_folder,
    refuse_code,
    require_pixel_space,
    unknown_class,
)
from genwarden.artifacts.diffusers_scheduler import (
    DIFFUSERS_VERSION,
    SchedulerReading,
    read_scheduler,
    scheduler_document,
)
from genwarden.artifacts.formats import identify
from genwarden.artifacts.json_object import first_problem, parse_object
from genwarden.artifacts.manifest import FORMAT_VERSION, MANIFEST_NAME, MAX_MANIFEST_BYTES
from genwarden.artifacts.model_folder import count_nonfinite, fill, require_fit
from genwarden.artifacts.read_once import read_once
from genwarden.artifacts.shown import reason, shown
from genwarden.artifacts.weights_file import Weights, as_float32, parse_weights
from genwarden.engine.files import (
    json_bytes,
    sha256_bytes,
    sha256_file,
    write_atomic,
    write_json,
)
from genwarden.errors import GenwardenError
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.unet_config import UNetConfig, build_unet

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

__all__ = [
    "ARCHITECTURE",
    "LoadedDiffusion",
    "is_diffusers_folder",
    "read_diffusion",
    "write_diffusion",
]

ARCHITECTURE: Final = "unet2d"
_MAX_CONFIG_BYTES: Final = 1 << 20
_PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

#: Attention projections before diffusers 0.17 and now; google/ddpm-cifar10-32 has the old ones.
_OLD_ATTENTION: Final = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME: Final = re.compile(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")


@dataclass(frozen=True)
class LoadedDiffusion:
    """A diffusion model in evaluation mode, and what is known about its folder.

    Attributes:
        model: network, schedule, and the user's sampler.
        architecture: always ``unet2d``.
        settings: the network's validated configuration.
        scheduler: ``scheduler_config.json`` of the sampler that runs, to be written again beside a
            repaired network.
        sha256: of the names and hashes of all files that were read; ``files`` has them one by one.
        nonfinite: NaN and infinite values per tensor.
        notes: what was passed over, or is done otherwise than the folder says; for the report.
        provenance: what the folder says about its own making. It is for people and for benchmarks;
            :mod:`genwarden.auditing` never receives it.
    """

    model: DiffusionModel
    architecture: str
    settings: dict[str, Any]
    scheduler: dict[str, Any]
    sha256: str
    files: dict[str, str]
    nonfinite: dict[str, int]
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)


def read_diffusion(folder: Path) -> LoadedDiffusion:
    """Open a diffusers folder.

    Raises:
        GenwardenError: codes ``artifact/...``: ``custom-code``, ``latent-diffusion`` (exit code
            "inconclusive"; the cause names the parts), ``unknown-class``, ``unknown-scheduler``,
            ``unsupported-scheduler``, ``class-conditional``, ``pickled-weights``,
            ``sharded-weights``, ``not-found``, ``bad-settings``, ``wrong-architecture``,
            ``link``, and those of reading single files.
    """
    outline = read_outline(folder)
    content = read_once(outline.weights, member=True)
    hashes = {**outline.hashes, outline.role: sha256_bytes(content)}
    weights = _network_weights(content, outline.weights)
    network = _build(outline.config, weights, outline.weights)
    note = require_stated(folder, hashes)  # last: what is wrong in itself has a code of its own
    return LoadedDiffusion(
        model=DiffusionModel(
            network, outline.scheduler.schedule, outline.scheduler.defaults
        ).eval(),
        architecture=ARCHITECTURE,
        settings=outline.config.plain(),
        scheduler=outline.document,
        sha256=_digest(hashes),
        files=hashes,
        nonfinite=count_nonfinite(weights),
        notes=(*outline.scheduler.notes, *_pickles_unread(outline.weights.parent)),
        provenance=_provenance(note, folder),
    )


class Outline(NamedTuple):
    """Everything in a folder but the weights, validated.

    Attributes:
        config: of the network.
        scheduler: as our samplers take it; ``document`` as it was read.
        weights: path of the weights file.
        hashes: of the files that were read, by role.
        read: their paths.
    """

    config: UNetConfig
    scheduler: SchedulerReading
    document: dict[str, Any]
    weights: Path
    hashes: dict[str, str]
    read: tuple[Path, ...]

    @property
    def role(self) -> str:
        """The weights file among ``hashes``."""
        return f"unet/{self.weights.name}"


def read_outline(folder: Path) -> Outline:
    """Validate a diffusers folder without reading its weights.

    Raises:
        GenwardenError: as :func:`read_diffusion`, but for the weights.
    """
    layout = find_parts(folder)
    refuse_code(layout.around)
    hashes: dict[str, str] = {}
    read: list[Path] = []

    def read_object(path: Path, role: str) -> dict[str, Any]:
        read.append(path)
        content = read_once(path, limit_bytes=_MAX_CONFIG_BYTES, member=True)
        hashes[role] = sha256_bytes(content)
        return parse_object(content, str(path))

    index = Index(None, None)
    if os.path.lexists(layout.around / INDEX_NAME):
        index = check_index(read_object(layout.around / INDEX_NAME, INDEX_NAME), folder)
    require_pixel_space([part for part in LATENT_PARTS if (layout.around / part).is_dir()], folder)

    path = layout.network / CONFIG_NAME
    config = _network_config(read_object(path, f"unet/{CONFIG_NAME}"), path)
    path = layout.scheduler / SCHEDULER_NAME
    if not os.path.lexists(path):
        raise GenwardenError(
            "artifact/not-found",
            f"There is no {path}: without it nobody knows for which noise levels the network was "
            "trained.",
            "Give the whole pipeline folder, or put the scheduler_config.json of the model there.",
        )
    document = read_object(path, f"scheduler/{SCHEDULER_NAME}")
    name, document = _effective_scheduler(document, index, path)
    named_in = layout.around / INDEX_NAME if index.scheduler else path
    scheduler = read_scheduler(name, document, str(path), named_in=str(named_in))
    if layout.network == folder and layout.scheduler != folder:
        told = f"The noise schedule is that of {path.parent.name}/{path.name} beside this folder."
        scheduler = scheduler._replace(notes=(*scheduler.notes, told))
    return Outline(
        config,
        scheduler,
        {**document, "_class_name": name},
        _weights_path(layout.network),
        hashes,
        tuple(read),
    )


def write_diffusion(
    folder: Path,
    model: DiffusionModel,
    provenance: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    scheduler: dict[str, Any] | None = None,
) -> str:
    """Write a folder that stock diffusers opens; the index last. Returns the folder's sha256.

    Args:
        model: the model; its default sampler decides the scheduler.
        provenance: how the model came to be; a compromised model of ours must say so here. Goes to
            ``genwarden.json``, which diffusers does not read.
        dtype: of the stored numbers; float16 halves the size.
        scheduler: ``scheduler_config.json`` to write instead (``LoadedDiffusion.scheduler``).

    Raises:
        GenwardenError: ``usage/sampler-not-in-diffusers``, ``output/half-precision``,
            ``output/not-writable``.
    """
    document = scheduler or scheduler_document(model.schedule, model.defaults)
    # The only infinite value that a valid configuration has, lambda_min_clipped = -inf, is the
    # default, and JSON has no word for it.
    document = {key: value for key, value in document.items() if value != -math.inf}
    tensors = {}
    for name, tensor in model.unet.state_dict().items():
        stored = tensor.detach().cpu().to(dtype).contiguous()
        if bool((torch.isfinite(tensor.cpu()) & ~torch.isfinite(stored)).any()):
            raise GenwardenError(
                "output/half-precision",
                f"Tensor {name} has numbers that {str(dtype).removeprefix('torch.')} cannot hold.",
                "Write the model in float32.",
            )
        tensors[name] = stored
    version = {"_diffusers_version": DIFFUSERS_VERSION}
    pipeline = "DDIMPipeline" if document["_class_name"] == "DDIMScheduler" else "DDPMPipeline"
    index = {
        "_class_name": pipeline,
        **version,
        "scheduler": ["diffusers", document["_class_name"]],
        "unet": ["diffusers", NETWORK],
    }
    weights_role = f"unet/{WEIGHTS_NAMES[0]}"
    write_atomic(folder / weights_role, save(tensors, metadata={"format": "pt"}))
    config = {"_class_name": NETWORK, **version, **model.settings()}
    write_json(folder / "unet" / CONFIG_NAME, config)
    write_json(folder / "scheduler" / SCHEDULER_NAME, document)
    roles = (f"unet/{CONFIG_NAME}", f"scheduler/{SCHEDULER_NAME}", weights_role)
    stated = {role: sha256_file(folder / role) for role in roles}
    stated[INDEX_NAME] = sha256_bytes(json_bytes(index))
    note = {"format_version": FORMAT_VERSION, "kind": "diffusion"}
    write_json(folder / MANIFEST_NAME, {**note, "files": stated, "provenance": provenance})
    write_json(folder / INDEX_NAME, index)
    return _digest(stated)


def _network_config(document: dict[str, Any], path: Path) -> UNetConfig:
    """``unet/config.json`` as bounded numbers."""
    name = document.get("_class_name")
    if "auto_map" in document:
        raise custom_code(path, "names code of its own (auto_map)")
    if name == LATENT_NETWORK:
        require_pixel_space([f"unet ({LATENT_NETWORK})"], path)
    if name != NETWORK:
        raise unknown_class(path, f"names the network {shown(name)!r}")
    if document.get("class_embed_type") or document.get("num_class_embeds"):
        raise GenwardenError(
            "artifact/class-conditional",
            f"{path} describes a network that also takes a class label.",
            "Only unconditional networks can be audited so far.",
        )
    given = {key: value for key, value in document.items() if not key.startswith("_")}
    try:
        return UNetConfig.model_validate(given)
    except ValidationError as error:
        raise _bad_settings(path, first_problem(error)) from error


def _effective_scheduler(
    document: dict[str, Any], index: Index, path: Path
) -> tuple[str, dict[str, Any]]:
    """The class that samples, and its configuration.

    The index wins over the file's own word, as in diffusers; ``DDIMPipeline`` makes a
    ``DDIMScheduler`` of a ``DDPMScheduler``.
    """
    name = index.scheduler or document.get("_class_name")
    if not isinstance(name, str):
        raise _bad_settings(path, "names no scheduler class")
    if index.pipeline == "DDIMPipeline" and name == "DDPMScheduler":
        kept = {key: value for key, value in document.items() if key != "variance_type"}
        return "DDIMScheduler", kept
    return name, document


def _weights_path(network: Path) -> Path:
    """The safetensors file of the network's folder."""
    names = sorted(os.listdir(network)) if os.path.isdir(network) else []
    for name in WEIGHTS_NAMES:
        if name in names:
            return network / name
    if f"{WEIGHTS_NAMES[0]}.index.json" in names:
        raise GenwardenError(
            "artifact/sharded-weights",
            f"The weights in {network} are split over several files.",
            "Save the pipeline again with a max_shard_size above its size.",
        )
    pickles = [name for name in names if name.endswith(_PICKLE_SUFFIXES)]
    if pickles:
        raise _pickled(network / pickles[0])
    return network / WEIGHTS_NAMES[0]  # reading it says that there is none


def _network_weights(content: bytes, path: Path) -> Weights:
    """The state dict under its present names, float32."""
    if identify(content, str(path)) != "safetensors":
        raise _pickled(path)
    stored = as_float32(parse_weights(content, str(path)))
    renamed = {_present_name(name): tensor for name, tensor in stored.items()}
    if len(renamed) != len(stored):
        raise _bad_settings(path, "has a tensor under its old and its new name")
    return Weights(renamed, sha256_bytes(content))


def _present_name(name: str) -> str:
    old = _OLD_NAME.fullmatch(name)
    return f"{old[1]}.{_OLD_ATTENTION[old[2]]}.{old[3]}" if old else name


def _build(config: UNetConfig, weights: Weights, path: Path) -> UNet2DModel:
    """The network with its weights.

    Built without memory first ("meta" device) and compared, so that a configuration cannot
    allocate more than the file holds.
    """
    try:
        with torch.device("meta"):
            outline = build_unet(config)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise _bad_settings(path.with_name(CONFIG_NAME), reason(error)) from error
    try:
        require_fit(outline.state_dict(), weights, str(path))
    except GenwardenError as error:
        raise GenwardenError(
            error.code,
            error.cause,
            f"{CONFIG_NAME} and the weights belong to different networks; fetch both again.",
        ) from error
    network = build_unet(config)
    fill(network, weights, str(path))
    return network


def _pickles_unread(network: Path) -> list[str]:
    names = sorted(name for name in os.listdir(network) if name.endswith(_PICKLE_SUFFIXES))
    return [
        f"{shown(name)} lies beside the weights; it is a pickle and was not read." for name in names
    ]


def require_stated(folder: Path, hashes: dict[str, str]) -> dict[str, Any]:
    """Where ``genwarden.json`` states hashes, the files that were read must have them.

    Folders of other software state none. Like the manifest of other models this finds damage and
    careless changes; whoever can write the folder can write new hashes.

    Args:
        hashes: of the files that were read, by role.

    Returns:
        That document; empty where there is none.

    Raises:
        GenwardenError: ``artifact/hash-mismatch``, ``artifact/bad-settings``.
    """
    note = _note(folder)
    if "files" not in note:
        return note
    stated = note["files"]
    if not isinstance(stated, dict):
        raise _bad_settings(folder / MANIFEST_NAME, "its files are not an object")
    for role in sorted({*stated, *hashes}):
        if stated.get(role) != hashes.get(role):
            raise GenwardenError(
                "artifact/hash-mismatch",
                f"{folder}: {shown(role)} does not have the sha256 that {MANIFEST_NAME} states.",
                "The file was changed or damaged after it was written; fetch the folder again "
                f"(remove {MANIFEST_NAME} if you changed it yourself).",
            )
    return note


def _provenance(note: dict[str, Any], folder: Path) -> dict[str, Any]:
    provenance = note.get("provenance", {})
    if not isinstance(provenance, dict):
        raise _bad_settings(folder / MANIFEST_NAME, "its provenance is not an object")
    return provenance


def _note(folder: Path) -> dict[str, Any]:
    """Our ``genwarden.json`` beside the pipeline, if there is one."""
    path = folder / MANIFEST_NAME
    if not os.path.lexists(path):
        return {}
    return parse_object(read_once(path, limit_bytes=MAX_MANIFEST_BYTES, member=True), str(path))


def _digest(hashes: dict[str, str]) -> str:
    """One hash for several files, independent of where they lay."""
    lines = [f"{digest}  {role}\n" for role, digest in sorted(hashes.items())]
    return sha256_bytes("".join(lines).encode())


def _pickled(path: Path) -> GenwardenError:
    return GenwardenError(
        "artifact/pickled-weights",
        f"{path} is a pickle, a format that can run code, and there are no safetensors.",
        "Ask its author for safetensors; do not convert it on a machine that matters.",
    )


def _bad_settings(path: Path, problem: str) -> GenwardenError:
    return GenwardenError(
        "artifact/bad-settings",
        f"{path}: {problem}.",
        "Fetch the folder again, or save it with a current version of diffusers.",
    )
