"""Result files are whole or absent."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from genwarden.engine.files import (
    json_bytes,
    remove_folder,
    require_writable_folder,
    sha256_bytes,
    sha256_file,
    write_atomic,
    write_json,
    write_tensors,
)
from genwarden.errors import GenwardenError


def test_write_makes_the_folder_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_written_file_has_the_permissions_of_an_ordinary_one(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    write_atomic(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == ordinary.stat().st_mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file_and_leaves_no_rest(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(GenwardenError) as caught:
        write_atomic(path, b"new")
    assert caught.value.code == "output/not-writable"
    assert "No space left" in caught.value.cause
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


_WRITER = """
import sys
from pathlib import Path
from genwarden.engine.files import write_json
path, n = Path(sys.argv[1]), 0
while True:
    n += 1
    write_json(path, {"n": n, "again": [n] * 20000})
"""


def test_killed_writer_never_leaves_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for trial in range(4):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)])
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05 + 0.017 * trial)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        document = json.loads(path.read_text())
        assert document["again"] == [document["n"]] * 20000
        path.unlink()


def test_json_refuses_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"score": float("nan")})
    assert not list(tmp_path.iterdir())


def test_tensors_of_any_layout_are_written_dense(tmp_path: Path) -> None:
    transposed = torch.arange(6.0).reshape(2, 3).t()
    write_tensors(tmp_path / "x.safetensors", {"a": transposed})
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], transposed)


def test_hash_of_a_file_is_the_hash_of_its_bytes(tmp_path: Path) -> None:
    content = b"x" * 3_000_000
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == sha256_bytes(content)
    assert sha256_bytes(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_output_folder_is_proved_writable_and_left_empty(tmp_path: Path) -> None:
    require_writable_folder(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_file_in_the_way_of_the_output_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GenwardenError) as caught:
        require_writable_folder(tmp_path / "file")
    assert caught.value.code == "output/not-a-folder"
    with pytest.raises(GenwardenError) as caught:
        require_writable_folder(tmp_path / "file" / "below")
    assert caught.value.code == "output/not-writable"


def test_what_a_dead_process_left_of_a_file_is_removed_and_a_living_one_s_is_not(
    tmp_path: Path,
) -> None:
    dead = tmp_path / f".result.json.{1 << 23}.abc.partial"  # no process has such a number
    alive = tmp_path / f".result.json.{os.getpid()}.abc.partial"
    other = tmp_path / f".other.json.{1 << 23}.abc.partial"
    for left in (dead, alive, other):
        left.write_bytes(b"{")
    write_json(tmp_path / "result.json", {})
    assert not dead.exists()
    assert alive.exists()
    assert other.exists()


def test_a_folder_is_removed_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        (tmp_path / "out" / ".work").mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / ".work" / "run.json").write_text("{}")

    def cut(path: object, *_: object, **__: object) -> None:
        raise OSError(errno.EIO, "cut", str(path))

    full()
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", cut)
        with pytest.raises(GenwardenError):
            remove_folder(tmp_path / "out" / ".work")
    assert not (tmp_path / "out" / ".work").exists()  # never half of it
    full()
    remove_folder(tmp_path / "out" / ".work")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_link_in_the_place_of_a_folder_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (tmp_path / "work").symlink_to(tmp_path / "mine")
    remove_folder(tmp_path / "work")
    assert (tmp_path / "mine" / "file").exists()
    assert not (tmp_path / "work").is_symlink()


def test_a_byte_of_a_name_that_is_no_text_is_spelled_out() -> None:
    content = json_bytes({"path": os.fsdecode(b"a\xffb")})
    assert json.loads(content) == {"path": "a\\udcffb"}
