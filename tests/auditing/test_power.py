"""What a report says that its budget has found comes from measured models, or says that it is not
measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genwarden.auditing import power


def test_unmeasured_budget_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(power, "POWER", tmp_path / "none.json")
    (sentence,) = power.power_sentences("quick")
    assert "Not measured at the quick budget" in sentence


def test_measured_budget_names_every_family_and_the_false_alarms(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = {"quick": {"clean": [1, 18], "families": {"red": [3, 4], "rex": [2, 2]}}}
    path = tmp_path / "power.json"
    path.write_text(json.dumps(table), "utf-8")
    monkeypatch.setattr(power, "POWER", path)
    first, *rest = power.power_sentences("quick")
    assert "Of 6 compromised" in first
    assert "found 5" in first
    assert "of 18 clean ones it flagged 1" in first
    assert rest == ["red: 3 of 4", "rex: 2 of 2"]
    assert "Not measured" in power.power_sentences("standard")[0]
