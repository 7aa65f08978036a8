"""A ledger remembers finished work of exactly one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genwarden.engine.ledger import Ledger
from genwarden.errors import GenwardenError

IDENTITY: dict[str, Any] = {"command": "audit", "seed": 1, "model": "abc"}


def test_finished_work_is_found_again_and_other_work_is_not(tmp_path: Path) -> None:
    Ledger(tmp_path / "work", IDENTITY).put("block-3", {"score": 0.5})
    again = Ledger(tmp_path / "work", dict(reversed(IDENTITY.items())))
    assert again.get("block-3") == {"score": 0.5}
    assert again.get("block-4") is None


def test_run_with_other_settings_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    Ledger(tmp_path / "work", IDENTITY).put("block-3", {"score": 0.5})
    with pytest.raises(GenwardenError) as caught:
        Ledger(tmp_path / "work", IDENTITY | {"seed": 2})
    assert caught.value.code == "ledger/other-run"
    assert "seed" in caught.value.cause
    assert "model" not in caught.value.cause


def test_what_json_changes_alone_is_no_difference(tmp_path: Path) -> None:
    Ledger(tmp_path / "work", IDENTITY | {"budget": {"reruns": ("a", "b")}})
    with pytest.raises(GenwardenError) as caught:
        Ledger(tmp_path / "work", IDENTITY | {"budget": {"reruns": ("a", "b")}, "seed": 2})
    assert "(seed differ)" in caught.value.cause


@pytest.mark.parametrize("damage", [b"", b'{"score": 0.', b"[1, 2]", b"\xff\xfe"])
def test_damaged_piece_of_work_is_done_again(damage: bytes, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "work", IDENTITY)
    ledger.put("block-3", {"score": 0.5})
    (tmp_path / "work" / "block-3.json").write_bytes(damage)
    assert ledger.get("block-3") is None


def test_damaged_marker_is_not_mistaken_for_this_run(tmp_path: Path) -> None:
    Ledger(tmp_path / "work", IDENTITY)
    (tmp_path / "work" / "run.json").write_bytes(b"{")
    with pytest.raises(GenwardenError) as caught:
        Ledger(tmp_path / "work", IDENTITY)
    assert caught.value.code == "ledger/other-run"


def test_discarded_ledger_is_gone(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "work", IDENTITY)
    ledger.put("block-3", {"score": 0.5})
    ledger.discard()
    assert not (tmp_path / "work").exists()
    assert Ledger(tmp_path / "work", IDENTITY | {"seed": 2}).get("block-3") is None


def test_a_piece_that_another_run_left_is_not_taken_for_this_one_s(tmp_path: Path) -> None:
    # A kill between the marker and the pieces of a folder that was being removed leaves this.
    Ledger(tmp_path / "work", IDENTITY | {"seed": 2}).put("block-3", {"score": 0.9})
    (tmp_path / "work" / "run.json").unlink()
    ledger = Ledger(tmp_path / "work", IDENTITY)
    assert ledger.get("block-3") is None
    ledger.put("block-3", {"score": 0.5})
    assert ledger.get("block-3") == {"score": 0.5}


def test_a_piece_under_another_name_and_every_changed_number_is_noticed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "work", IDENTITY)
    ledger.put("block-3", {"score": 0.5, "rows": [1, 2, 3]})
    path = tmp_path / "work" / "block-3.json"
    content = path.read_bytes()
    (tmp_path / "work" / "block-4.json").write_bytes(content)
    assert ledger.get("block-4") is None
    path.write_bytes(content.replace(b"0.5", b"0.6"))
    assert ledger.get("block-3") is None
    path.write_bytes(content)
    assert ledger.get("block-3") == {"score": 0.5, "rows": [1, 2, 3]}
