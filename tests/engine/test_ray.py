"""The engine ray: what it does as the local one, what it survives, and what it says at once."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genwarden.errors import GenwardenError

RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not RAY, reason="the extra ray is not installed")


def genwarden(module: str, *words: object) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own: a test must not open the sockets of a cluster."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def content(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "audit.json").read_text("utf-8"))
    for volatile in ("timing", "environment", "command"):
        del document[volatile]
    return document


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "genwarden.engine.ray_executor", raising=False)
    with pytest.raises(GenwardenError, match="engine/ray-missing") as caught:
        importlib.import_module("genwarden.engine.ray_executor")
    assert "genwarden[ray]" in caught.value.remedy


@needs_ray
@pytest.mark.slow
def test_an_audit_over_ray_is_the_local_one(tiny_model_folder: Path, tmp_path: Path) -> None:
    outs = []
    for number, more in enumerate([[], ["--engine", "ray", "--workers", "2"]]):
        outs.append(tmp_path / str(number))
        done = genwarden(
            "genwarden.benchmarks.robustness.one_run",
            *("audit", tiny_model_folder, "--budget", "quick", "--out", outs[-1], *more),
        )
        assert done.returncode in {0, 1, 3}, done.stderr
    assert content(outs[0]) == content(outs[1])


@needs_ray
@pytest.mark.slow
def test_a_scan_survives_a_worker_a_node_and_its_driver(tmp_path: Path) -> None:
    done = genwarden(
        *("genwarden", "benchmark", "run", "ray-scaling", "--out", tmp_path / "out"),
        *("--option", "rounds=0", "--option", "channels=4+4+4"),
        *("--option", "samples=2000000"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    assert found["identical"]
    assert 0 < found["accidents"]["driver"] < found["accidents"]["pieces"]
    assert found["accidents"]["last"]["pieces_kept"] >= found["accidents"]["driver"]


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--address", "127.0.0.1:1"], "engine/no-cluster"),
        (["--address", "ray://127.0.0.1:10001"], "usage/engine"),
        (["--gpus-per-worker", "64"], "engine/resources"),
    ],
)
def test_a_cluster_that_cannot_serve_is_named_at_once(
    more: list[str], code: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    done = genwarden(
        *("genwarden", "audit", tiny_model_folder, "--budget", "quick", "--engine", "ray"),
        *("--out", tmp_path / "out", *more),
    )
    assert done.returncode == 2
    assert code in done.stderr
