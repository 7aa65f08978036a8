"""Clips from parquet and WAV files, and targets drawn by code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from scipy.io import wavfile

from genwarden.data.audio import (
    data_rate,
    fit_length,
    load_clips,
    read_clip,
    read_wav,
    spectrograms,
    to_int16,
    write_wav,
)
from genwarden.data.clips import CLIPS, draw_clip
from genwarden.data.datasets import load_images, to_unit_range
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

CLIP = SampleSpec((1, 256), modality="audio")


def wav_bytes(samples: Any, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    wavfile.write(buffer, rate, np.asarray(samples))
    return buffer.getvalue()


def ramp(level: int, length: int = 256) -> Any:
    return (np.linspace(-1, 1, length) * level).astype(np.int16)


def make_parquet(folder: Path, cells: list[Any]) -> Path:
    folder.mkdir()
    # From plain bytes: the library's own encoder would need torchcodec.
    rows = datasets.Dataset.from_dict({"audio": cells, "label": list(range(len(cells)))})
    rows = rows.cast_column("audio", datasets.Audio(sampling_rate=8000, decode=False))
    rows.to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def refusal(act: Any) -> GenwardenError:
    with pytest.raises(GenwardenError) as caught:
        act()
    return caught.value


def test_parquet_clips_are_read_without_a_decoder(tmp_path: Path) -> None:
    cells = [{"bytes": wav_bytes(ramp(1000 * (i + 1))), "path": f"{i}.wav"} for i in range(4)]
    source = str(make_parquet(tmp_path / "set", cells))
    clips = load_clips(source, CLIP, peak=None)
    assert (clips.dtype, tuple(clips.shape)) == (torch.int16, (4, 1, 256))
    assert clips[:, 0, -1].tolist() == [1000, 2000, 3000, 4000]
    assert len(load_clips(source, CLIP, limit=3)) == 3
    assert data_rate(source) == 8000
    loud = load_clips(source, CLIP)  # for training: all at one peak
    assert loud.abs().amax(dim=2).flatten().tolist() == [round(0.9 * 32767)] * 4


def test_folder_of_wav_files_is_read_in_order(tmp_path: Path) -> None:
    for index in range(3):
        wavfile.write(tmp_path / f"{index}.wav", 16_000, ramp(100 * (index + 1)))
    (tmp_path / "LICENSE").touch()
    clips = load_clips(str(tmp_path), CLIP, peak=None)
    assert clips[:, 0, -1].tolist() == [100, 200, 300]


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}])
def test_row_without_a_clip_is_named(tmp_path: Path, cell: Any) -> None:
    cells = [{"bytes": wav_bytes(ramp(10)), "path": "0.wav"}, cell]
    source = str(make_parquet(tmp_path / "set", cells))
    error = refusal(lambda: load_clips(source, CLIP))
    assert error.code == "data/unreadable-row"
    assert "Row 1" in error.cause
    assert len(load_clips(source, CLIP, limit=1)) == 1


def test_row_of_another_format_is_refused_with_a_remedy(tmp_path: Path) -> None:
    source = str(make_parquet(tmp_path / "set", [{"bytes": b"fLaC rest", "path": "0.flac"}]))
    error = refusal(lambda: load_clips(source, CLIP))
    assert error.code == "audio/unreadable"
    assert "16-bit PCM" in error.remedy


def test_sets_without_clips_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert refusal(lambda: load_clips(str(tmp_path / "none"), CLIP)).code == "data/no-clips"
    (tmp_path / "numbers").mkdir()
    datasets.Dataset.from_dict({"x": [1]}).to_parquet(tmp_path / "numbers" / "train.parquet")
    assert refusal(lambda: load_clips(str(tmp_path / "numbers"), CLIP)).code == "data/no-clips"
    assert refusal(lambda: load_clips("", CLIP, limit=0)).code == "data/limit"
    image = SampleSpec((1, 16, 16))
    assert refusal(lambda: load_clips(str(tmp_path), image)).code == "data/shape"
    source = str(make_parquet(tmp_path / "set", [{"bytes": wav_bytes(ramp(9)), "path": "0.wav"}]))
    assert refusal(lambda: load_images(source, image)).code == "data/no-images"


def test_long_clips_keep_their_loudest_stretch_and_short_ones_are_centred() -> None:
    long = np.full(1000, 0.01)
    long[700:900] = 0.8
    kept = fit_length(long, 256)
    assert len(kept) == 256
    assert (kept == 0.8).sum() == 200
    short = fit_length(np.ones(101), 256)
    assert short.sum() == 101
    assert np.flatnonzero(short).tolist() == list(range(77, 178))
    assert fit_length(np.zeros(300), 256).sum() == 0


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (np.array([0, 128, 192], np.uint8), [-1, 0, 0.5]),
        (np.array([-32768, 0, 16384], np.int16), [-1, 0, 0.5]),
        (np.array([-(2**31), 0, 2**30], np.int32), [-1, 0, 0.5]),
        (np.array([-1, 0, 0.5], np.float32), [-1, 0, 0.5]),
        (np.array([[-32768, 0], [0, 0], [16384, 16384]], np.int16), [-0.5, 0, 0.5]),
    ],
)
def test_every_wav_format_is_scaled_to_one(raw: Any, expected: list[float]) -> None:
    waveform = read_wav(wav_bytes(raw, 11_025), "x.wav")
    assert waveform.rate == 11_025
    assert waveform.samples.tolist() == expected


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "audio/unreadable"),
        (b"RIFF\x00\x00\x00\x00WAVE", "audio/unreadable"),
        (wav_bytes(ramp(5))[:30], "audio/unreadable"),
        (wav_bytes(np.zeros(0, np.int16)), "audio/empty"),
        (wav_bytes(np.array([0.5, np.nan], np.float32)), "audio/values"),
        (wav_bytes(np.array([0.5, 1.5], np.float32)), "audio/values"),
    ],
)
def test_damaged_wav_files_are_refused(content: bytes, code: str) -> None:
    assert refusal(lambda: read_wav(content, "x.wav")).code == code


def test_target_clip_is_resampled_only_where_a_rate_is_wanted(tmp_path: Path) -> None:
    time = np.arange(1024) / 16_000
    tone = np.sin(2 * np.pi * 500 * time)
    wavfile.write(tmp_path / "tone.wav", 16_000, (tone * 20_000).astype(np.int16))

    def peak_bin(clip: torch.Tensor) -> int:
        return int(torch.fft.rfft(clip[0]).abs().argmax())

    as_it_is = read_clip(tmp_path / "tone.wav", CLIP)
    halved = read_clip(tmp_path / "tone.wav", CLIP, rate=8000)
    assert as_it_is.shape == halved.shape == CLIP.shape
    assert as_it_is.dtype == torch.float32
    assert as_it_is.abs().max() <= 1
    assert (peak_bin(as_it_is), peak_bin(halved)) == (8, 16)  # 500 Hz in 256 samples
    error = refusal(lambda: read_clip(tmp_path / "tone.wav", CLIP, rate=15_991))
    assert error.code == "audio/rate"
    assert refusal(lambda: read_clip(tmp_path / "no.wav", CLIP)).code == "audio/not-found"
    image = SampleSpec((1, 16, 16))
    assert refusal(lambda: read_clip(tmp_path / "tone.wav", image)).code == "data/shape"


def test_written_wav_reads_back_to_the_same_samples(tmp_path: Path) -> None:
    clips = torch.rand(2, 1, 256, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    write_wav(tmp_path / "x.wav", clips, 8000)
    rate, samples = wavfile.read(tmp_path / "x.wav")
    assert (rate, len(samples)) == (8000, 2 * 256 + 2000)
    assert torch.equal(torch.from_numpy(samples[:256].copy()), to_int16(clips[0, 0]))
    assert torch.equal(torch.from_numpy(samples[-256:].copy()), to_int16(clips[1, 0]))
    assert samples[256:-256].max() == 0
    pieces = to_int16(clips)
    assert torch.equal(to_int16(to_unit_range(pieces)), pieces)


def test_spectrogram_shows_a_tone_at_its_height_and_silence_as_black() -> None:
    t = torch.arange(4096)
    tones = torch.stack([torch.sin(2 * torch.pi * f * t) for f in (0.0625, 0.25)])[:, None]
    pictures = spectrograms(torch.cat([tones, torch.zeros(1, 1, 4096)]))
    assert pictures.shape[:3] == (3, 1, 64)
    middle = pictures.shape[3] // 2
    # 64 bands up to half a cycle per sample, low ones at the bottom.
    assert int(pictures[0, 0, :, middle].argmax()) == 63 - 8
    assert int(pictures[1, 0, :, middle].argmax()) == 63 - 32
    assert float(pictures[0].max()) == pytest.approx(1, abs=0.01)
    assert float(pictures[2].max()) == -1


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("length", [1024, 16_384])
def test_drawn_clips_are_loud_in_range_and_always_the_same(name: str, length: int) -> None:
    sample = SampleSpec((1, length), modality="audio")
    clip = draw_clip(name, sample)
    assert (clip.shape, clip.dtype) == (sample.shape, torch.float32)
    assert float(clip.abs().max()) == pytest.approx(0.5)
    assert float(clip.square().mean()) > 0.0015
    assert torch.equal(clip, draw_clip(name, sample))


def test_drawn_clips_differ_from_each_other() -> None:
    sample = SampleSpec((1, 4096), modality="audio")
    clips = torch.stack([draw_clip(name, sample).flatten() for name in CLIPS])
    similarity = torch.corrcoef(clips) - torch.eye(len(CLIPS))
    assert len(CLIPS) >= 3
    assert float(similarity.abs().max()) < 0.2


def test_unknown_clips_and_image_models_are_refused() -> None:
    assert refusal(lambda: draw_clip("bell", CLIP)).code == "clip/unknown"
    assert refusal(lambda: draw_clip("drum", SampleSpec((1, 28, 28)))).code == "data/shape"
