"""Which kind of model an attack is made for, and which kind a folder holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from genwarden.artifacts.classifier_folder import is_classifier_folder
from genwarden.artifacts.diffusers_layout import is_diffusers_folder
from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.errors import GenwardenError
from genwarden.registry import ATTACKS, attacked_kind, attacks_on, find

_IN_WORDS: Final = {
    "generator": "generators (GANs, VAEs)",
    "diffusion": "diffusion models",
    "classifier": "classifiers",
}


def require_kind(name: str, folder: Path) -> str:
    """The kind of model that an attack works on: generator, diffusion or classifier.

    Raises:
        GenwardenError: ``usage/attack-kind`` if the folder holds another kind;
            ``usage/unknown-name`` for an unknown attack.
    """
    wanted = attacked_kind(find(ATTACKS, name, "attack"))
    held = _kind_of(folder)
    if held in (wanted, None):
        return wanted
    fitting = ", ".join(attacks_on(held))
    raise GenwardenError(
        "usage/attack-kind",
        f"{name} is an attack on {_IN_WORDS[wanted]}, and {folder} is one of the "
        f"{_IN_WORDS[held]}.",
        f"Attacks on {_IN_WORDS[held]}: {fitting}.",
    )


def _kind_of(folder: Path) -> str | None:
    """By its layout and manifest; None where reading it will say what is wrong."""
    if is_diffusers_folder(folder):
        return "diffusion"
    if is_classifier_folder(folder):
        return "classifier"
    return "generator" if os.path.isfile(folder / MANIFEST_NAME) else None
