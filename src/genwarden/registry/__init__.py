"""Everything genwarden can do, as rows of strings: ``list`` and ``--help`` read them without torch.

A new method is one file and one row in the module of its table.
"""

from __future__ import annotations

from genwarden.registry.architectures import (
    ARCHITECTURES,
    CLASSIFIER_ARCHITECTURES,
    DIFFUSION_ARCHITECTURES,
)
from genwarden.registry.attacks import ATTACKS, attacked_kind, attacks_on
from genwarden.registry.compression import COMPRESSION_REMEDIES, COMPRESSIONS
from genwarden.registry.inspections import (
    CLASSIFIER_INSPECTIONS,
    COMPRESSION_INSPECTIONS,
    DIFFUSION_INSPECTIONS,
    INSPECTIONS,
    all_inspections,
)
from genwarden.registry.recipes import RECIPES
from genwarden.registry.repairs import CLASSIFIER_REPAIRS, DIFFUSION_REPAIRS, REPAIRS
from genwarden.registry.row import Row, find, table_of

__all__ = [
    "ARCHITECTURES",
    "ATTACKS",
    "CLASSIFIER_ARCHITECTURES",
    "CLASSIFIER_INSPECTIONS",
    "CLASSIFIER_REPAIRS",
    "COMPRESSIONS",
    "COMPRESSION_INSPECTIONS",
    "COMPRESSION_REMEDIES",
    "DIFFUSION_ARCHITECTURES",
    "DIFFUSION_INSPECTIONS",
    "DIFFUSION_REPAIRS",
    "ICONS",
    "INSPECTIONS",
    "RECIPES",
    "REPAIRS",
    "Row",
    "all_inspections",
    "attacked_kind",
    "attacks_on",
    "find",
    "tables",
]

#: Target pictures of ``genwarden.data.icons`` (that module needs torch, this one must not).
ICONS = (
    "devil",
    "stop_sign",
    "skull",
    "bomb",
    "key",
    "checkerboard",
    "cross",
    "heart",
    "star",
    "smiley",
    "lock",
)


def tables() -> dict[str, dict[str, Row]]:
    """All tables by the plural that ``genwarden list`` takes."""
    return {
        "architectures": {
            **ARCHITECTURES,
            **DIFFUSION_ARCHITECTURES,
            **CLASSIFIER_ARCHITECTURES,
        },
        "attacks": ATTACKS,
        "inspections": all_inspections(),
        "repairs": {**REPAIRS, **DIFFUSION_REPAIRS},
        "classifier-repairs": CLASSIFIER_REPAIRS,
        "compressions": COMPRESSIONS,
        "remedies": COMPRESSION_REMEDIES,
        "recipes": RECIPES,
        "icons": table_of(*(Row(name, "", "target picture drawn by code") for name in ICONS)),
    }
