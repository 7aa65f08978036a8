"""Result files of the recipes: one JSON each, from which the tables in the docs are generated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from genwarden import __version__
from genwarden.engine.files import write_json

RESULT_VERSION = 1


def write_result(path: Path, result: dict[str, Any]) -> Path:
    """Write a recipe's result, atomically, with the versions that made it."""
    write_json(path, {"result_version": RESULT_VERSION, "genwarden": __version__, **result})
    return path


def summary_of(values: list[float]) -> dict[str, float | int]:
    """Mean, standard error, minimum and maximum over repeats."""
    n = len(values)
    mean = sum(values) / n
    variance = sum((v - mean) ** 2 for v in values) / (n - 1) if n > 1 else 0.0
    return {
        "mean": mean,
        "standard_error": math.sqrt(variance / n),
        "minimum": min(values),
        "maximum": max(values),
        "repeats": n,
    }
