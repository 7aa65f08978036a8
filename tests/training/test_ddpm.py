"""Training of diffusion models: learns, resumes to the same bytes, resizes only when asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genwarden.artifacts.diffusers_folder import read_diffusion
from genwarden.data.datasets import load_images, to_unit_range
from genwarden.engine.progress import Silent, Task
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.diffusion.networks import fresh_model, small_unet
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.models.protocol import SampleSpec
from genwarden.training.ddpm import (
    DdpmSettings,
    DenoiserLearner,
    NoisyRows,
    clean_rows,
    rate_share,
)
from genwarden.training.settings import TrainingSettings
from genwarden.training.train import learning_rate_of, train

TINY: dict[str, Any] = {"size": 8, "widths": (8,), "timesteps": 50, "warmup": 4, "ema": 0.9}


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
    for index in range(16):
        picture = np.zeros((8, 8), dtype=np.uint8)
        picture[:, index % 8] = 255
        Image.fromarray(picture).save(folder / f"{index:02d}.png")
    return folder


def run(data: Path, out: Path, steps: int = 6, **more: Any) -> None:
    options: dict[str, Any] = {"restart": False, "progress": Silent(), **more}
    settings = TrainingSettings(
        steps, 8, 1e-2, seed=options.pop("seed", 0), checkpoint_every=2, grid_every=3
    )
    train(
        "ddpm",
        {**TINY, **options.pop("setting", {})},
        str(data),
        lambda _: settings,
        split="train",
        limit=None,
        out=out,
        device=torch.device("cpu"),
        **options,
    )


def weights(folder: Path) -> bytes:
    return (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_training_writes_a_diffusers_folder_that_says_it_is_clean(
    data: Path, tmp_path: Path
) -> None:
    run(data, tmp_path / "out")
    loaded = read_diffusion(tmp_path / "out")
    assert loaded.model.sample.shape == (1, 8, 8)
    assert loaded.model.schedule.steps == 50
    assert float(loaded.model.schedule.a[-1]) < 0.02  # the betas of short schedules are larger
    assert loaded.provenance["compromised"] is False
    assert not (tmp_path / "out" / ".work").exists()
    shown = sorted(path.name for path in (tmp_path / "out" / "samples").iterdir())
    assert shown == ["step_000003.png", "step_000006.png"]
    with pytest.raises(GenwardenError, match="train/finished"):
        run(data, tmp_path / "out")
    run(data, tmp_path / "out", restart=True)


def test_interrupted_training_ends_in_the_same_bytes(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "whole")
    with pytest.raises(_PowerCutError):
        run(data, tmp_path / "cut", progress=_CutAfter(5))
    assert not (tmp_path / "cut" / "model_index.json").exists()
    run(data, tmp_path / "cut")
    run(data, tmp_path / "other", seed=1)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert weights(tmp_path / "other") != weights(tmp_path / "whole")


def test_training_brings_the_noise_estimate_nearer_than_fresh_weights(data: Path) -> None:
    model = fresh_model(
        small_unet(8, 1, (16,), middle_attention=False),
        NoiseSchedule.linear(50, 0.002, 0.4),
        random_stream(0, "fresh"),
    )
    images = to_unit_range(load_images(str(data), model.sample))

    def error() -> float:
        rows = clean_rows(model.schedule)(images.repeat(8, 1, 1, 1), 0, random_stream(7, "held"))
        with torch.no_grad():
            return float((model.epsilon(rows.x, rows.t) - rows.target).square().mean())

    before = error()
    settings = DdpmSettings(60, 16, 1e-2, warmup=5, ema=0.8)
    learner = DenoiserLearner(model, settings, torch.device("cpu"), clean_rows(model.schedule))
    for step in range(settings.steps):
        learner.step(images, step, random_stream(0, "step", step))
    trained = {name: p.detach().clone() for name, p in model.unet.named_parameters()}
    learner.finish()
    assert error() < 0.4 < 0.8 < before
    assert not model.training
    assert any(not torch.equal(p, trained[name]) for name, p in model.unet.named_parameters())


def test_without_a_moving_average_the_last_weights_are_kept(data: Path) -> None:
    model = fresh_model(
        small_unet(8, 1, (8,), middle_attention=False), NoiseSchedule.linear(50), torch.Generator()
    )
    images = to_unit_range(load_images(str(data), model.sample))
    settings = DdpmSettings(3, 8, 1e-2, ema=0.0)
    learner = DenoiserLearner(model, settings, torch.device("cpu"), clean_rows(model.schedule))
    for step in range(3):
        learner.step(images[:8], step, random_stream(0, "step", step))
    last = {name: p.detach().clone() for name, p in model.unet.named_parameters()}
    learner.finish()
    assert all(torch.equal(p, last[name]) for name, p in model.unet.named_parameters())


def test_images_are_mirrored_only_when_asked(data: Path) -> None:
    images = to_unit_range(load_images(str(data), SampleSpec((1, 8, 8))))
    seen: list[torch.Tensor] = []
    schedule = NoiseSchedule.linear(50)

    def watch(real: torch.Tensor, step: int, stream: torch.Generator) -> NoisyRows:
        seen.append(real)
        return clean_rows(schedule)(real, step, stream)

    for flip in (False, True):
        model = fresh_model(
            small_unet(8, 1, (8,), middle_attention=False), schedule, torch.Generator()
        )
        learner = DenoiserLearner(model, DdpmSettings(1, 8, flip=flip), torch.device("cpu"), watch)
        learner.step(images, 0, random_stream(0, "flip"))
    plain, mirrored = seen
    assert torch.equal(plain, images)
    changed = (mirrored != images).flatten(1).any(1)
    assert 0 < int(changed.sum()) < len(images)
    assert torch.equal(mirrored[changed], images[changed].flip(-1))


def test_learning_rate_warms_up_and_falls_along_a_half_cosine() -> None:
    settings = DdpmSettings(100, warmup=10, last_rate=0.02)
    shares = [rate_share(step, settings) for step in range(100)]
    assert shares[0] < 0.11
    assert max(shares) == pytest.approx(shares[9], abs=0.03)
    assert shares[50] == pytest.approx(0.5)
    assert shares[-1] == pytest.approx(0.02)


def test_images_of_another_size_are_refused_or_averaged_down(data: Path, tmp_path: Path) -> None:
    with pytest.raises(GenwardenError, match="image/shape"):
        run(data, tmp_path / "out", setting={"size": 4})
    run(data, tmp_path / "out", steps=1, setting={"size": 4, "resize": True})
    assert read_diffusion(tmp_path / "out").model.sample.shape == (1, 4, 4)
    half = load_images(str(data), SampleSpec((1, 4, 4)), resize=True)
    full = load_images(str(data), SampleSpec((1, 8, 8)))
    means = full.double().reshape(-1, 1, 4, 2, 4, 2).mean((3, 5))
    assert float((half.double() - means).abs().max()) <= 0.5


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ({"network": "huge"}, "train/setting"),
        ({"size": 7, "widths": (8, 8)}, "train/setting"),
        ({"widths": (8, 0)}, "train/setting"),
        ({"channels": 0}, "train/setting"),
        ({"timesteps": 10}, "train/setting"),
        ({"timesteps": 10_001}, "train/setting"),  # more than a folder may say when it is read
        ({"latent_dim": 8}, "train/unknown-setting"),
    ],
)
def test_settings_that_make_no_network_are_refused(
    setting: dict[str, Any], code: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(GenwardenError) as caught:
        run(data, tmp_path / "out", setting=setting)
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_small_networks_learn_faster_than_the_published_ones() -> None:
    assert learning_rate_of("ddpm", {}) > learning_rate_of("ddpm", {"network": "cifar10"})
    assert learning_rate_of("dcgan28", {}) == 2e-4
