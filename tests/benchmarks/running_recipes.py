"""Recipes as the command runs them, on the CPU, and their tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from genwarden.engine.progress import Silent
from genwarden.registry import RECIPES

CPU = torch.device("cpu")


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
