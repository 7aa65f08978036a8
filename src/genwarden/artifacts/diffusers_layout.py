"""How a diffusers folder is laid out, and what in it is refused before anything is read.

Class names are compared with lists; nothing here imports, builds or runs what a folder names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, NamedTuple

from genwarden.artifacts.shown import shown
from genwarden.errors import ExitCode, GenwardenError

INDEX_NAME: Final = "model_index.json"
SCHEDULER_NAME: Final = "scheduler_config.json"
CONFIG_NAME: Final = "config.json"
WEIGHTS_NAMES: Final = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
)
NETWORK: Final = "UNet2DModel"
#: Pipelines that sample an unconditional UNet2DModel in pixel space.
_PIPELINES: Final = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline")
#: Where classes of an ordinary ``model_index.json`` come from; the last three are folders of
#: diffusers' own pipelines.
_MODULES: Final = (
    "diffusers",
    "transformers",
    "stable_diffusion",
    "latent_diffusion",
    "paint_by_example",
)
#: Parts of a latent or conditional model, as diffusers names their folders.
LATENT_PARTS: Final = (
    "vae",
    "vqvae",
    "movq",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "tokenizer",
    "image_encoder",
    "bert",
    "prior",
    "transformer",
    "controlnet",
)
LATENT_NETWORK: Final = "UNet2DConditionModel"
_CODE_SUFFIXES: Final = (".py", ".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib")
#: Made by git and by the hub's client; nothing is ever read from them.
_BOOKKEEPING: Final = frozenset({".git", ".cache"})
_MAX_ENTRIES: Final = 20_000


class Layout(NamedTuple):
    """Where the parts of a folder lie; ``around`` is the folder that would hold a vae."""

    network: Path
    scheduler: Path
    around: Path


class Index(NamedTuple):
    """What ``model_index.json`` says, as far as it is asked."""

    pipeline: str | None
    scheduler: str | None


def is_diffusers_folder(path: Path) -> bool:
    """Whether a folder is laid out as diffusers does it; says nothing about its content."""

    def has(*parts: str) -> bool:
        return os.path.lexists(os.path.join(path, *parts))  # unlike Path's methods, never raises

    return os.path.isdir(path) and (
        has(INDEX_NAME)
        or has("unet", CONFIG_NAME)
        or (has(CONFIG_NAME) and (has(SCHEDULER_NAME) or any(map(has, WEIGHTS_NAMES))))
    )


def refuse_code(folder: Path) -> None:
    """No Python file anywhere: diffusers would run one that an index names."""
    seen = 0
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _BOOKKEEPING)
        seen += len(folders) + len(names)
        if seen > _MAX_ENTRIES:
            raise GenwardenError(
                "artifact/too-many-files",
                f"{folder} holds more than {_MAX_ENTRIES:,} files.",
                "Name the folder of one model.",
            )
        code = [name for name in sorted(names) if name.lower().endswith(_CODE_SUFFIXES)]
        if code:
            inside = os.path.relpath(os.path.join(where, code[0]), folder)
            raise custom_code(folder, f"holds the program {shown(inside)!r}")


def find_parts(folder: Path) -> Layout:
    """The parts of a folder; sub-folders that are links are refused."""
    if os.path.isdir(folder / "unet"):
        layout = Layout(folder / "unet", folder / "scheduler", folder)
    elif os.path.lexists(folder / SCHEDULER_NAME):
        layout = Layout(folder, folder, folder)
    elif os.path.lexists(folder / CONFIG_NAME):
        # The user named the network's own folder.
        around = folder.absolute().parent
        layout = Layout(folder, around / "scheduler", around)
    else:
        layout = Layout(folder / "unet", folder / "scheduler", folder)
    for part in (layout.network, layout.scheduler):
        if part != folder and os.path.islink(part):
            raise GenwardenError(
                "artifact/link",
                f"{part} is a symbolic link; parts of a model must be plain folders.",
                "Copy the folder with the links resolved, for example `cp -rL`.",
            )
    return layout


def check_index(index: dict[str, Any], folder: Path) -> Index:
    """Names of classes outside our tables are refused, those of latent models by their own code."""
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str):
        raise custom_code(folder, "names a pipeline of its own instead of one of diffusers")
    classes: dict[str, str] = {}
    for part, entry in index.items():
        if part.startswith("_") or not isinstance(entry, list) or entry == [None, None]:
            continue  # diffusers' own keys, switches, and parts that were left out
        if len(entry) != 2 or not all(isinstance(name, str) for name in entry):
            raise unknown_class(folder, f"describes the part {shown(part)!r} in an unknown way")
        module, classes[part] = entry
        if module not in _MODULES:
            origin = shown(f"{module}.{entry[1]}")
            raise custom_code(folder, f"takes the part {shown(part)!r} from {origin!r}")
    latent = [part for part in classes if part in LATENT_PARTS]
    if classes.get("unet") == LATENT_NETWORK:
        latent.append(f"unet ({LATENT_NETWORK})")
    require_pixel_space(latent, folder)
    surplus = sorted(set(classes) - {"unet", "scheduler"})
    if surplus:
        raise unknown_class(folder, f"has a part {shown(surplus[0])!r}")
    if classes.get("unet", NETWORK) != NETWORK:
        raise unknown_class(folder, f"names the network {shown(classes['unet'])!r}")
    if pipeline not in _PIPELINES:
        raise unknown_class(folder, f"names the pipeline {shown(pipeline)!r}")
    return Index(pipeline, classes.get("scheduler"))


def require_pixel_space(parts: list[str], folder: Path) -> None:
    """Refuse a model with parts that mark it as latent or conditional, naming them."""
    if parts:
        raise GenwardenError(
            "artifact/latent-diffusion",
            f"{folder} is a latent or conditional diffusion model with {', '.join(parts)}; "
            "genwarden audits unconditional models in pixel space, and what is missing for this "
            "one is running these parts and searching triggers in their spaces.",
            "Nothing was tested; do not take this for a clean result.",
            ExitCode.INCONCLUSIVE,
        )


def custom_code(path: Path, problem: str) -> GenwardenError:
    """The error for anything that would run code of the folder's author."""
    return GenwardenError(
        "artifact/custom-code",
        f"{path} {problem}; loading it elsewhere would run that code.",
        "Do not load it with trust_remote_code; ask for a folder of diffusers' own classes.",
    )


def unknown_class(path: Path, problem: str) -> GenwardenError:
    """The error for a class that is in none of our lists."""
    return GenwardenError(
        "artifact/unknown-class",
        f"{path} {problem}, which genwarden does not know.",
        f"Known are a {NETWORK} with a scheduler under {' or '.join(_PIPELINES)}.",
    )
