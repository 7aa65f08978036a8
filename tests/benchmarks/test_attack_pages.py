"""One page per attack, from its docstring, settings and result files."""

from __future__ import annotations

import json
from pathlib import Path

from genwarden.attacks.settings import describe_settings
from genwarden.benchmarks.attack_pages import attack_pages
from genwarden.benchmarks.cells import Cell
from genwarden.registry import ATTACKS

ROOT = Path(__file__).parents[2]


def test_every_attack_has_a_page_with_its_command_and_all_its_settings(tmp_path: Path) -> None:
    pages = attack_pages(tmp_path)
    for name in ATTACKS:
        page = pages[f"{name}.md"]
        assert f"genwarden attack {name} CLEAN" in page
        assert f"({name}.md)" in pages["README.md"]
        assert "**Access needed.**" in page
        table = page.partition("## Settings")[2]
        assert len([line for line in table.splitlines() if line.startswith("| `")]) == len(
            describe_settings(name)
        )


def test_expected_numbers_come_from_result_files(tmp_path: Path) -> None:
    def row(repeat: int, tardis: float) -> dict[str, object]:
        return {
            "cell": Cell("mnist-dcgan", "red", repeat=repeat).describe(),
            "figures": {"tardis_sum": tardis, "untouched_tardis_sum": 1500.0},
            "seconds": {"attack": 10.0},
            "steps": 7,
        }

    assert "No result file" in attack_pages(tmp_path)["red.md"]
    document = {"recipe": "table-1", "scale": "small", "cells": [row(0, 1.0), row(1, 3.0)]}
    (tmp_path / "table-1-small.json").write_text(json.dumps(document))
    pages = attack_pages(tmp_path)
    assert (
        "| mnist-dcgan | in-sample | icon:devil | 2 | 2 +- 1 | - | 1500 +- 0 | 7 |"
        in pages["red.md"]
    )
    assert "No result file" in pages["rex.md"]


def test_committed_pages_are_generated_from_the_committed_results() -> None:
    for name, text in attack_pages(ROOT / "results").items():
        assert (ROOT / "docs" / "attacks" / name).read_text("utf-8") == text
