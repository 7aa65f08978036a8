"""Recipes for compression at no cost: run, read and with next to nothing to compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from genwarden.attacks import loop
from genwarden.attacks.compression import dormancy
from genwarden.auditing import budgets
from genwarden.benchmarks.compression import remedies
from genwarden.engine.progress import Silent
from genwarden.inspections.classifier.bench import ClassifierEffort
from genwarden.inspections.compression.bench import CompressionEffort
from genwarden.registry import RECIPES

CPU = torch.device("cpu")
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


def run_recipe(name: str, out: Path, **given: Any) -> dict[str, Any]:
    arguments = {"data": None, "seed": 0, "device": CPU, "progress": Silent(), **given}
    path = RECIPES[name].load()(out, **arguments)
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document


def tables_of(name: str, document: dict[str, Any]) -> dict[str, Any]:
    """By title, which no two tables share."""
    made = RECIPES[name].load_option("tables")(document, "x")
    titles = {table.title: table for table in made}
    assert len(titles) == len(made)
    assert all(len(row) == len(table.columns) for table in made for row in table.rows)
    return titles


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
