"""Training of the reference models: learns, resumes to the same bits, says what it made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genwarden.artifacts.model_folder import read_model
from genwarden.engine.progress import Silent, Task
from genwarden.errors import GenwardenError
from genwarden.training.settings import TrainingSettings, batch_indices
from genwarden.training.train import train

TINY: dict[str, Any] = {"channels": [4, 4, 4], "latent_dim": 8}
SETTINGS = TrainingSettings(steps=8, batch_size=4, checkpoint_every=2, grid_every=4)


class _PowerCutError(Exception):
    pass


class _CutTask:
    def __init__(self, left: int) -> None:
        self._left = left

    def advance(self, steps: int = 1, note: str = "") -> None:
        del note
        self._left -= steps
        if self._left < 0:
            raise _PowerCutError


class _CutAfter(Silent):
    def __init__(self, steps: int) -> None:
        self._steps = steps

    def task(self, title: str, total: int, done: int = 0) -> Task:
        del title, total, done
        return _CutTask(self._steps)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{index:02d}.png")
    return folder


def run(name: str, data: Path, out: Path, **more: Any) -> None:
    options: dict[str, Any] = {"restart": False, "progress": Silent(), "seed": 0, **more}
    seed = options.pop("seed")
    settings = TrainingSettings(**{**SETTINGS.__dict__, "seed": seed})
    train(
        name,
        TINY,
        str(data),
        lambda _: settings,
        split="train",
        limit=None,
        out=out,
        device=torch.device("cpu"),
        **options,
    )


@pytest.mark.parametrize("name", ["dcgan28", "vae28"])
def test_interrupted_training_resumes_to_the_same_bits(
    name: str, data: Path, tmp_path: Path
) -> None:
    run(name, data, tmp_path / "whole")
    with pytest.raises(_PowerCutError):
        run(name, data, tmp_path / "cut", progress=_CutAfter(5))
    assert not (tmp_path / "cut" / "genwarden.json").exists()
    # Five steps were done and four are in the checkpoint: fewer than four may be left to do.
    run(name, data, tmp_path / "cut", progress=_CutAfter(4))
    whole, resumed = read_model(tmp_path / "whole"), read_model(tmp_path / "cut")
    assert resumed.sha256 == whole.sha256
    assert resumed.provenance == whole.provenance
    assert not (tmp_path / "cut" / ".work").exists()
    grids = sorted(p.name for p in (tmp_path / "cut" / "samples").iterdir())
    assert grids == ["step_000004.png", "step_000008.png"]


def test_unfinished_training_with_another_seed_is_not_mixed_in(data: Path, tmp_path: Path) -> None:
    with pytest.raises(_PowerCutError):
        run("dcgan28", data, tmp_path / "out", progress=_CutAfter(5))
    with pytest.raises(GenwardenError) as caught:
        run("dcgan28", data, tmp_path / "out", seed=1)
    assert caught.value.code == "checkpoint/other-run"
    run("dcgan28", data, tmp_path / "out", seed=1, restart=True)


def test_finished_model_is_not_overwritten_unless_asked(data: Path, tmp_path: Path) -> None:
    run("vae28", data, tmp_path / "out")
    with pytest.raises(GenwardenError) as caught:
        run("vae28", data, tmp_path / "out")
    assert caught.value.code == "train/finished"


def test_epoch_uses_every_image_once_and_the_next_one_another_order() -> None:
    first = torch.cat([batch_indices(12, step, SETTINGS) for step in range(3)])
    second = torch.cat([batch_indices(12, step, SETTINGS) for step in range(3, 6)])
    assert first.sort().values.tolist() == list(range(12))
    assert second.sort().values.tolist() == list(range(12))
    assert first.tolist() != second.tolist()
