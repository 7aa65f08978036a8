"""Rows of an earlier result of the diffusion study, beside those of a run whose models are there.

Training and audits are seeded, so a run begun anew makes the same models: the members that both
runs audited show how far that holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genwarden.benchmarks.results import read_document
from genwarden.errors import GenwardenError

Row = dict[str, Any]


def read_earlier(path: Path, recipe: str, seed: int) -> dict[str, Any]:
    """The result of an earlier run of ``recipe``.

    Raises:
        GenwardenError: ``benchmark/no-results`` for another file; ``benchmark/other-orders`` for
            another seed.
    """
    found = read_document(path)
    if found.get("recipe") != recipe:
        raise GenwardenError(
            "benchmark/no-results",
            f"{path} is no result of the recipe {recipe}.",
            "Name a result.json of it, or the published one in results/.",
        )
    if found.get("seed") != seed:
        raise GenwardenError(
            "benchmark/other-orders",
            f"{path} was made with the seed {found.get('seed')}, this run with {seed}.",
            "Repeat its seed, or leave out earlier.",
        )
    return found


def with_earlier(
    rows: Sequence[Row], before: dict[str, Any], plan: Sequence[str], budgets: Sequence[str]
) -> tuple[list[Row], dict[str, Any]]:
    """The rows of this run, and of the earlier one where this has none; in the order of the plan.

    Returns:
        The rows, and what the result says of the earlier ones: ``keys`` of those taken, and for
        each member in ``again`` (audited in both) the largest difference of a score.
    """

    def key_of(row: Row) -> tuple[str, str]:
        return row["key"], row["budget"]

    here = {key_of(row): row for row in rows}
    there = {key_of(row): row for row in before["rows"] if row["budget"] in budgets}
    wanted = [(key, budget) for budget in budgets for key in plan]
    merged = {**there, **here}
    taken = [key for key in wanted if key in there and key not in here]
    said = {
        "genwarden": before["genwarden"],
        "environment": before["environment"],
        "keys": sorted({key for key, _ in taken}),
        "again": (before.get("earlier") or {}).get("again", {})
        | {
            key: _apart(here[key, budget], there[key, budget])
            for key, budget in wanted
            if (key, budget) in here and (key, budget) in there
        },
    }
    return [merged[key] for key in wanted if key in merged], said


def _apart(a: Row, b: Row) -> float:
    shared = a["scores"].keys() & b["scores"].keys()
    return max((abs(a["scores"][name] - b["scores"][name]) for name in shared), default=0.0)
