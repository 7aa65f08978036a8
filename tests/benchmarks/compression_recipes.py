"""Recipes for compression at no cost: run, read and with next to nothing to compute."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from genwarden.attacks import loop
from genwarden.attacks.compression import dormancy
from genwarden.auditing import budgets
from genwarden.benchmarks.compression import remedies
from genwarden.inspections.classifier.bench import ClassifierEffort
from genwarden.inspections.compression.bench import CompressionEffort

TINY_VARIANT = CompressionEffort(
    name="quick", restarts=2, search_steps=1, placebos=2, ordinary_samples=8
)
TINY_CLASSIFIER = ClassifierEffort(
    name="quick",
    images=8,
    synthesis_steps=1,
    inversion_steps=1,
    inversion_batch=2,
    restarts=1,
    placebos=1,
    shift_placebos=3,
    guards=3,
    blends=2,
)


def write_pictures(folder: Path) -> Path:
    """Grey pictures in the place of MNIST."""
    (folder / "mnist").mkdir()
    for number in range(24):
        path = folder / "mnist" / f"{number:02d}.png"
        Image.new("L", (28, 28), 10 * number).save(path)
    return folder


def measure_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples behind every figure."""
    monkeypatch.setattr(loop, "EVALUATION_SAMPLES", 32)
    monkeypatch.setattr(dormancy, "_SAMPLES", 32)
    monkeypatch.setattr(remedies, "_SAMPLES", 32)
    monkeypatch.setattr(remedies, "_IMAGES", 32)


def audit_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick budget costs next to nothing."""
    monkeypatch.setitem(budgets.COMPRESSION_BUDGETS, "quick", TINY_VARIANT)
    monkeypatch.setitem(budgets.CLASSIFIER_BUDGETS, "quick", TINY_CLASSIFIER)
