"""The results of a recipe: cell files of a run, or one result file that holds them all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from genwarden.benchmarks.scales import scale_named
from genwarden.benchmarks.tables import Table
from genwarden.errors import GenwardenError
from genwarden.registry import RECIPES, find

CELLS = "cells"
RESULT = "result.json"


@dataclass(frozen=True)
class Results:
    """Cell documents of one recipe at one scale, of one seed and version.

    Attributes:
        recipe: name.
        scale: name.
        rows: the cell documents, in the order of the recipe.
        name: name of the file or folder, for titles.
    """

    recipe: str
    scale: str
    rows: Sequence[dict[str, Any]]
    name: str = ""

    @property
    def made_with(self) -> tuple[str, int | None, str | None]:
        """Scale, seed and version of the rows."""
        return _made_with(self.rows[0]) if self.rows else (self.scale, None, None)

    def where(self, **wanted: Any) -> list[dict[str, Any]]:
        """Documents whose cell has the given fields."""
        return [r for r in self.rows if all(r["cell"].get(k) == v for k, v in wanted.items())]

    def values(self, figure: str, **wanted: Any) -> list[Any]:
        """A figure of all cells with the given fields, where it was measured."""
        rows = self.where(**wanted)
        return [r["figures"][figure] for r in rows if r["figures"].get(figure) is not None]

    def distinct(self, field: str) -> list[Any]:
        """Values of a cell's field in the order of their first appearance."""
        return list(dict.fromkeys(row["cell"][field] for row in self.rows))

    def in_order(self, keys: Sequence[str]) -> Results:
        """The same with the documents in the order of the recipe's cells."""
        places = {key: place for place, key in enumerate(keys)}
        rows = sorted(self.rows, key=lambda r: (places.get(r["key"], len(places)), r["key"]))
        return replace(self, rows=rows)

    def seconds(self) -> float:
        """Sum of the times of all cells."""
        return float(sum(sum(row["seconds"].values()) for row in self.rows))


def find_results(recipe: str, folder: Path) -> list[Results]:
    """All results of a recipe: the folder of a run, or a folder of result files.

    Cells of different scales, seeds or versions are different results.

    Raises:
        GenwardenError: ``benchmark/no-results``, ``benchmark/mixed-results``.
    """
    found = finished_cells(recipe, folder)
    return found or [results_of(d, path.stem) for path, d in _result_files(recipe, folder)]


def finished_cells(recipe: str, folder: Path) -> list[Results]:
    """The cell files of a run by scale, seed and version; none if it has no finished cells."""
    documents = [read_document(path) for path in sorted((folder / CELLS).glob("*.json"))]
    rows = [d for d in documents if d.get("recipe") == recipe and "cell" in d]
    groups = dict.fromkeys(_made_with(row) for row in rows)
    names = [f"{folder.name}, seed {seed}, version {version}" for _, seed, version in groups]
    return [
        Results(
            recipe,
            made_with[0],
            [row for row in rows if _made_with(row) == made_with],
            name if len(groups) > 1 else folder.name,
        )
        for made_with, name in zip(groups, names, strict=True)
    ]


def _made_with(row: dict[str, Any]) -> tuple[str, int | None, str | None]:
    scale = row.get("scale", {})
    return scale.get("name", ""), row.get("seed"), row.get("version")


def tables_of(recipe: str, folder: Path) -> list[Table]:
    """The tables of all results of a recipe in a folder.

    Raises:
        GenwardenError: ``usage/unknown-name``, ``benchmark/no-table``, ``benchmark/no-results``.
    """
    row = find(RECIPES, recipe, "recipe")
    tables: list[Table] = []
    if row.options.get("cells"):
        loaded = row.load()
        everything = find_results(recipe, folder)
        for found in everything:
            keys = [cell.key for cell in loaded.cells(scale_named(found.scale))]
            of_group = loaded.tables(found.in_order(keys))
            if len(everything) > 1:  # which is which
                of_group = [replace(t, title=f"{t.title}: {found.name}") for t in of_group]
            tables += of_group
        return tables
    if "tables" not in row.options:
        able = [name for name, each in RECIPES.items() if {"cells", "tables"} & set(each.options)]
        raise GenwardenError(
            "benchmark/no-table",
            f"The recipe {recipe} has no table of the paper's.",
            f"Choose one of: {', '.join(able)}.",
        )
    for path, document in _result_files(recipe, folder):
        tables += row.load_option("tables")(document, path.stem)
    return tables


def results_of(document: dict[str, Any], name: str) -> Results:
    """Results from the content of a result file.

    Raises:
        GenwardenError: ``benchmark/mixed-results``.
    """
    groups = {_made_with(row) for row in document["cells"]}
    if len(groups) > 1:
        raise GenwardenError(
            "benchmark/mixed-results",
            f"{name} mixes cells of different scales, seeds or versions.",
            "Repeat its command in a folder of its own.",
        )
    return Results(document["recipe"], document["scale"], document["cells"], name)


def _result_files(recipe: str, folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    documents = [(path, read_document(path)) for path in sorted(folder.glob("*.json"))]
    found = [(path, d) for path, d in documents if d.get("recipe") == recipe]
    if not found:
        raise GenwardenError(
            "benchmark/no-results",
            f"{folder} holds no results of the recipe {recipe}.",
            f"Run it (genwarden benchmark run {recipe} --out DIR) and add --results DIR.",
        )
    return found


def read_result(path: Path, recipe: str, advice: str) -> dict[str, Any]:
    """A result file of one recipe.

    Args:
        advice: what to name instead of another file.

    Raises:
        GenwardenError: ``benchmark/unreadable``, ``benchmark/no-results``.
    """
    found = read_document(path)
    if found.get("recipe") != recipe:
        raise GenwardenError(
            "benchmark/no-results", f"{path} is no result of the recipe {recipe}.", advice
        )
    return found


def read_document(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        GenwardenError: ``benchmark/unreadable``.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise GenwardenError(
            "benchmark/unreadable",
            f"{path} is not a result file ({type(error).__name__}).",
            "Remove it and repeat the run: finished cells are kept.",
        ) from error
    return document if isinstance(document, dict) else {}
