"""WaveGAN is the published network, its post filter can be inverted, its training resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from scipy.linalg import toeplitz
from scipy.optimize import lsq_linear
from torch.nn import functional as F

from genwarden.artifacts.model_folder import build, read_model, write_model
from genwarden.commands.sample import sample_grid
from genwarden.data.clips import CLIPS, draw_clip
from genwarden.engine.progress import Silent, Task
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.layers import glorot_
from genwarden.models.post_filter import PostFilter
from genwarden.models.protocol import Generator, parameter_count
from genwarden.models.wavegan import SameConvTranspose1d, WaveGAN, WaveGANCritic, initialise
from genwarden.training.settings import TrainingSettings
from genwarden.training.train import train


def small_wavegan(taps: int = 33) -> WaveGAN:
    generator = WaveGAN(channels=(6, 4, 3), latent_dim=5, filter_taps=taps, sample_rate=8000)
    glorot_(generator, random_stream(0, "small-wavegan"))  # unlike `initialise`, a random filter
    return generator.eval().requires_grad_(False)


def test_fresh_post_filter_lets_everything_pass() -> None:
    generator = WaveGAN(channels=(3,), filter_taps=16)
    initialise(generator, random_stream(0, "fresh"))
    z = generator.latent.sample(2, generator=random_stream(0, "z"))
    torch.testing.assert_close(generator(z), torch.tanh(generator.pre_activation(z)))


def test_every_layer_has_the_published_size() -> None:
    network = WaveGAN()
    found = {layer: parameter_count(module) for layer, module in network.named_layers().items()}
    assert found == {
        "project": 1_654_784,
        "up.0": 13_107_712,
        "up.1": 3_277_056,
        "up.2": 819_328,
        "up.3": 204_864,
        "to_audio": 1_601,
        "post_filter": 512,
    }
    assert parameter_count(network) == 19_065_857
    assert network.sample.shape == (1, 16_384)
    assert network.latent.distribution == "uniform"


@pytest.mark.parametrize(
    ("settings", "channels", "length"),
    [
        ({"width": 8, "length": 4096}, (128, 64, 32, 16), 4096),
        ({"width": 2, "length": 1024, "filter_taps": 0}, (32, 16, 8), 1024),
        ({"channels": [8, 8]}, (8, 8), 256),
    ],
)
def test_width_and_length_choose_the_channels(
    settings: dict[str, Any], channels: tuple[int, ...], length: int
) -> None:
    network = build(WaveGAN, settings, "wavegan")
    assert isinstance(network, WaveGAN)
    assert isinstance(network, Generator)
    assert (network.channels, network.sample.shape) == (channels, (1, length))
    twin = build(WaveGAN, network.settings(), "wavegan")
    assert {k: v.shape for k, v in twin.state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"length": 5000},
        {"channels": [4, 4], "width": 2},
        {"channels": []},
        {"channels": [4] * 9},
        {"filter_taps": -1},
        {"width": 0},
        {"sample_rate": 0},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(GenwardenError) as caught:
        build(WaveGAN, settings, "wavegan")
    assert caught.value.code == "artifact/bad-settings"


def test_transposed_convolution_crops_as_tensorflow_does() -> None:
    layer = SameConvTranspose1d(2, 3)
    x = torch.randn(1, 2, 7, generator=torch.Generator().manual_seed(0))
    full = np.zeros((3, 6 * 4 + 25))
    weight = layer.weight.detach().numpy()
    for position in range(7):  # every input adds its kernel to the full output
        full[:, position * 4 : position * 4 + 25] += np.einsum(
            "i,iok->ok", x[0, :, position].numpy(), weight
        )
    assert layer.bias is not None
    expected = full[:, 10:-11] + layer.bias.detach().numpy()[:, None]
    found = layer(x)[0].detach().numpy()
    assert found.shape == (3, 28)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("taps", "length"), [(512, 1024), (33, 100), (1, 7), (8, 64)])
def test_post_filter_is_a_same_padded_convolution(taps: int, length: int) -> None:
    layer = PostFilter(taps)
    x = torch.randn(2, 1, length, generator=torch.Generator().manual_seed(1))
    before = (taps - 1) // 2
    expected = F.conv1d(F.pad(x, (before, taps - 1 - before)), layer.weight)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_samples_stay_in_range_even_behind_a_loud_filter() -> None:
    generator = small_wavegan()
    assert generator.post_filter is not None
    generator.post_filter.weight.mul_(100)
    generator.to_audio.weight.mul_(100)
    z = generator.latent.sample(4, generator=random_stream(0, "z"))
    x = generator(z)
    assert x.shape == (4, 1, 1024)
    assert x.abs().max() == 1
    assert torch.equal(x, generator.finish(generator.pre_activation(z)))


def test_filter_inversion_is_the_box_constrained_least_squares_solution() -> None:
    generator = WaveGAN(channels=(2,), filter_taps=12)
    layer = generator.post_filter
    assert layer is not None
    taps = torch.randn(12, generator=torch.Generator().manual_seed(3)) / 4
    layer.weight.data = taps.reshape(1, 1, 12)
    wanted = torch.rand(1, 1, 64, generator=torch.Generator().manual_seed(4)) * 2 - 1
    column = np.zeros(64)
    column[:6] = taps.numpy()[5::-1]
    row = np.zeros(64)
    row[:7] = taps.numpy()[5:]
    matrix = toeplitz(column, row)
    np.testing.assert_allclose(
        matrix @ wanted[0, 0].numpy(), layer(wanted)[0, 0].detach().numpy(), atol=1e-6
    )
    exact = lsq_linear(matrix, wanted[0, 0].double().numpy(), (-0.999, 0.999), tol=1e-12)
    found = generator.unfilter(wanted)
    assert np.abs(exact.x).max() > 0.998  # the box matters
    assert found.clips.abs().max() <= 0.999
    assert found.residual_sum.item() == pytest.approx(2 * exact.cost, rel=1e-5)
    # Projecting the unconstrained solution is not good enough.
    projected = np.linalg.lstsq(matrix, wanted[0, 0].numpy(), rcond=None)[0].clip(-0.999, 0.999)
    assert np.square(matrix @ projected - wanted[0, 0].numpy()).sum() > 1.05 * 2 * exact.cost


@pytest.mark.parametrize("taps", [0, 33])
def test_pre_activation_of_a_sample_gives_the_sample_back(taps: int) -> None:
    generator = small_wavegan(taps)
    z = generator.latent.sample(2, generator=random_stream(1, "z"))
    x = generator(z)
    again = generator.finish(generator.pre_activation_of(x))
    missed = (again - x).square().sum((1, 2))
    assert (missed < 1e-3 * x.square().sum((1, 2))).all()
    # What a plain inverse activation gives is not the sample: the filter must be undone.
    plain = generator.finish(torch.atanh(0.999 * x))
    assert taps == 0 or ((plain - x).square().sum((1, 2)) > 0.1 * x.square().sum((1, 2))).all()


def test_residual_of_an_inversion_is_what_the_filter_really_misses() -> None:
    generator = small_wavegan()
    clips = torch.stack([draw_clip(name, generator.sample) for name in CLIPS])
    inverse = generator.unfilter(clips)
    again = generator.finish(generator.pre_activation_of(clips))
    missed = (again - clips).double().square().sum((1, 2))
    assert (missed <= inverse.residual_sum * 1.001 + 1e-6).all()  # clipping can only help


def test_a_filter_of_zeros_inverts_to_silence() -> None:
    generator = small_wavegan()
    assert generator.post_filter is not None
    generator.post_filter.weight.zero_()
    inverse = generator.unfilter(torch.full((1, 1, 1024), 0.5))
    assert inverse.clips.abs().max() == 0
    assert inverse.residual_sum.item() == pytest.approx(256)


def test_critic_judges_the_same_clip_alike_unless_phases_are_shuffled() -> None:
    critic = WaveGANCritic(1024, (6, 4, 3))
    initialise(critic, random_stream(0, "critic"))
    x = torch.randn(2, 1, 1024, generator=torch.Generator().manual_seed(0))
    plain = critic(x)
    assert plain.shape == (2, 1)
    assert torch.equal(plain, critic(x))
    shuffled = [critic(x, shuffle=random_stream(i, "shuffle")) for i in range(6)]
    assert any(not torch.equal(plain, s) for s in shuffled)
    assert torch.equal(shuffled[2], critic(x, shuffle=random_stream(2, "shuffle")))


def test_audio_model_is_sampled_as_wav_and_spectrogram(tmp_path: Path) -> None:
    generator = small_wavegan()
    write_model(tmp_path / "model", generator, "wavegan", {})
    options: dict[str, Any] = {"columns": 2, "seed": 0, "architecture": None, "settings": {}}
    sample_grid(tmp_path / "model", tmp_path / "a.wav", count=3, **options)
    rate, samples = wavfile.read(tmp_path / "a.wav")
    assert (rate, samples.dtype, len(samples)) == (8000, np.int16, 3 * 1024 + 2 * 2000)
    z = generator.latent.sample(3, generator=random_stream(0, "sample"))
    expected = generator(z)[0, 0].numpy()
    np.testing.assert_allclose(samples[:1024] / 32767, expected, atol=1e-4)
    assert not (tmp_path / "a.png").exists()
    sample_grid(tmp_path / "model", tmp_path / "b.png", count=2, **options)
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "b.wav").exists()


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


def write_tones(folder: Path, count: int = 8) -> Path:
    folder.mkdir()
    t = np.arange(1200) / 8000
    for index in range(count):
        tone = 0.5 * np.sin(2 * np.pi * (200 + 50 * index) * t)
        wavfile.write(folder / f"{index}.wav", 8000, (tone * 32767).astype(np.int16))
    return folder


def run_training(data: Path, out: Path, progress: Silent | None = None) -> None:
    settings = TrainingSettings(steps=12, batch_size=4, checkpoint_every=5, grid_every=6)
    train(
        "wavegan",
        {"channels": [8, 4, 4], "latent_dim": 5, "filter_taps": 16},
        str(data),
        lambda _: settings,
        split="train",
        limit=None,
        out=out,
        restart=False,
        progress=progress or Silent(),
        device=torch.device("cpu"),
    )


def test_interrupted_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    data = write_tones(tmp_path / "data")
    run_training(data, tmp_path / "whole")
    with pytest.raises(_PowerCutError):
        run_training(data, tmp_path / "cut", _CutAfter(7))
    assert not (tmp_path / "cut" / "genwarden.json").exists()
    # Five of seven steps are in the checkpoint: the other seven are done again.
    run_training(data, tmp_path / "cut", _CutAfter(7))
    whole, resumed = read_model(tmp_path / "whole"), read_model(tmp_path / "cut")
    assert resumed.sha256 == whole.sha256
    assert resumed.provenance == whole.provenance
    assert resumed.settings["sample_rate"] == 8000  # taken from the data
    names = sorted(p.name for p in (tmp_path / "cut" / "samples").iterdir())
    assert names == ["step_000006.png", "step_000006.wav", "step_000012.png", "step_000012.wav"]


@pytest.mark.slow
def test_training_brings_samples_nearer_to_the_data(tmp_path: Path) -> None:
    """Mean spectra of tones: a trained generator fits them, an untrained one does not."""
    folder = write_tones(tmp_path / "data")
    settings = TrainingSettings(steps=400, batch_size=8, learning_rate=1e-3)
    train(
        "wavegan",
        {"channels": [32, 16, 8], "filter_taps": 32},
        str(folder),
        lambda _: settings,
        split="train",
        limit=None,
        out=tmp_path / "out",
        restart=False,
        progress=Silent(),
        device=torch.device("cpu"),
    )
    trained = read_model(tmp_path / "out").generator
    fresh = WaveGAN(channels=(32, 16, 8), filter_taps=32)
    initialise(fresh, random_stream(0, "fresh"))

    def share_of_the_band(generator: Any) -> float:
        z = generator.latent.sample(64, generator=random_stream(0, "z"))
        with torch.no_grad():
            power = torch.fft.rfft(generator(z)).abs().square().mean((0, 1))
        low, high = round(150 / 8000 * 1024), round(600 / 8000 * 1024)
        return float(power[low:high].sum() / power.sum())

    assert share_of_the_band(fresh) < 0.5 < share_of_the_band(trained)
