"""Audio clips: training data, targets, and what a person listens to or looks at.

Sample values are int16 in tensors of data and floats in [-1, 1] where a model is at work.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor

from genwarden.data.datasets import load_dataset
from genwarden.engine.files import write_atomic
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

Floats = np.ndarray[Any, np.dtype[np.float64]]

_FULL_SCALE = 32767
_MAX_WAV_BYTES = 256 << 20
#: Rates whose ratio in lowest terms is larger than this are refused: 48000 -> 44100 is 147 / 160.
_MAX_RATIO = 1000
_GAP_S = 0.25
_RANGE_DB = 80.0
_TRAINING_PEAK = 0.9


class Waveform(NamedTuple):
    """One channel in [-1, 1], and its samples per second."""

    samples: Floats
    rate: int


def load_clips(
    source: str,
    sample: SampleSpec,
    *,
    split: str = "train",
    limit: int | None = None,
    rate: int | None = None,
    peak: float | None = _TRAINING_PEAK,
) -> Tensor:
    """Clips of a data set as one int16 tensor ``(count, 1, length)``.

    A longer clip keeps the stretch around its loudest part, a shorter one gets silence on both
    sides; several channels become their mean.

    Args:
        source: folder (parquet in the hub's layout with an audio column, or WAV files), or hub
            name.
        sample: shape that the clips get.
        limit: take the first ``limit`` clips.
        rate: samples per second that the clips get; None takes them as they are.
        peak: scale each clip so that its largest absolute value is this (recordings differ in
            loudness by 40 dB, and a GAN would learn the loud ones alone); None keeps loudness.

    Raises:
        GenwardenError: ``audio/...`` for a single clip, ``data/...`` for the set.
    """
    length = clip_length(sample)
    if limit is not None and limit < 1:
        raise GenwardenError(
            "data/limit", f"A limit of {limit} clips leaves nothing.", "Give a limit of 1 or more."
        )
    rows = _Rows(source, split)
    count = len(rows) if limit is None else min(limit, len(rows))
    clips = np.empty((count, 1, length))
    for index in range(count):
        waveform = rows.read(index)
        samples = waveform.samples
        if rate is not None and rate != waveform.rate:
            samples = resample(waveform, rate).samples
        clips[index, 0] = fit_length(samples, length)
    if peak is not None:
        loudest = np.abs(clips).max(axis=2, keepdims=True)
        clips *= np.divide(peak, loudest, out=np.ones_like(loudest), where=loudest > 0)
    return to_int16(torch.from_numpy(clips))


def data_rate(source: str, *, split: str = "train") -> int:
    """Samples per second of a data set's first clip.

    Raises:
        GenwardenError: as :func:`load_clips`.
    """
    return _Rows(source, split).read(0).rate


def read_clip(path: Path, sample: SampleSpec, *, rate: int | None = None) -> Tensor:
    """One WAV file as a sample of the given spec, float32 in [-1, 1], shape ``sample.shape``.

    Cut and padded as in :func:`load_clips`.

    Args:
        rate: the model's samples per second; None takes the file's samples as they are, so a file
            of another rate sounds higher or lower.

    Raises:
        GenwardenError: ``audio/...``, or ``data/shape`` for a model of anything but clips.
    """
    length = clip_length(sample)
    if not os.path.isfile(path):  # unlike Path's methods, os.path's never raise
        raise GenwardenError("audio/not-found", f"There is no clip at {path}.", "Check the path.")
    waveform = _read_file(path)
    if rate is not None and rate != waveform.rate:
        waveform = resample(waveform, rate)
    fitted = fit_length(waveform.samples, length).clip(-1, 1)
    return torch.from_numpy(fitted).float()[None]


def write_wav(path: Path, clips: Tensor, rate: int) -> None:
    """Clips ``(count, 1, length)`` in [-1, 1], one after another with pauses, as 16-bit WAV."""
    pause = torch.zeros(round(_GAP_S * rate), dtype=torch.int16)
    parts = [part for clip in to_int16(clips.detach().cpu()) for part in (clip.flatten(), pause)]
    buffer = io.BytesIO()
    wavfile.write(buffer, rate, torch.cat(parts[:-1]).numpy())
    write_atomic(path, buffer.getvalue())


def to_int16(clips: Tensor) -> Tensor:
    """Floats in [-1, 1] to int16, rounded to the nearest; NaN is silence.

    :func:`genwarden.data.datasets.to_unit_range` goes back.
    """
    return (clips.nan_to_num(0.0).clamp(-1, 1) * _FULL_SCALE).round().to(torch.int16)


def spectrograms(clips: Tensor, *, bands: int = 64) -> Tensor:
    """Pictures ``(count, 1, bands, columns)`` in [-1, 1]: time to the right, low frequencies below.

    Logarithmic power over 80 dB, white is a full-scale sine; about as many columns as bands.

    Args:
        clips: ``(count, 1, length)`` in [-1, 1].
    """
    signal = clips.detach().cpu().float().flatten(1)
    window = torch.hann_window(2 * bands)
    hop = max(1, signal.shape[1] // (2 * bands))
    power = torch.stft(
        signal, 2 * bands, hop, window=window, pad_mode="constant", return_complex=True
    )
    level = 20 * torch.log10(power.abs()[:, :bands] * 2 / window.sum() + 1e-8)
    return (1 + 2 * level / _RANGE_DB).clamp(-1, 1).flip(1)[:, None]


def clip_length(sample: SampleSpec) -> int:
    """Samples per clip of an audio model.

    Raises:
        GenwardenError: ``data/shape`` for a model of anything else.
    """
    if sample.modality != "audio" or len(sample.shape) != 2 or sample.shape[0] != 1:
        raise GenwardenError(
            "data/shape",
            f"The model makes {sample.modality} samples of shape {sample.shape}, not clips.",
            "Only audio models of one channel can be trained on or compared with clips.",
        )
    return sample.shape[1]


def fit_length(samples: Floats, length: int) -> Floats:
    """Cut around the loudest stretch of ``length`` samples, or pad with silence on both sides."""
    if len(samples) <= length:
        before = (length - len(samples)) // 2
        return np.pad(samples, (before, length - len(samples) - before))
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples))])
    first = int(np.argmax(energy[length:] - energy[:-length]))
    return samples[first : first + length]


def resample(waveform: Waveform, rate: int) -> Waveform:
    """Change the rate by a ratio of small whole numbers (polyphase filter, no aliasing).

    Raises:
        GenwardenError: ``audio/rate`` for odd ratios.
    """
    common = math.gcd(waveform.rate, rate)
    up, down = rate // common, waveform.rate // common
    if max(up, down) > _MAX_RATIO:
        raise GenwardenError(
            "audio/rate",
            f"{waveform.rate} samples per second do not convert cleanly to {rate}.",
            f"Convert the clips to {rate} samples per second with an audio program.",
        )
    return Waveform(resample_poly(waveform.samples, up, down), rate)


def read_wav(content: bytes, name: str) -> Waveform:
    """The bytes of a WAV file (8, 16, 24 or 32 bits, or floats) as one channel.

    Raises:
        GenwardenError: ``audio/too-large``, ``audio/unreadable``, ``audio/empty``,
            ``audio/values``.
    """
    if len(content) > _MAX_WAV_BYTES:
        raise GenwardenError(
            "audio/too-large",
            f"{name} has {len(content):,} bytes.",
            "Give a clip of a few seconds.",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # unknown chunks are no harm
            rate, raw = wavfile.read(io.BytesIO(content))
    except Exception as error:  # the parser raises many unrelated types on damaged files
        raise GenwardenError(
            "audio/unreadable",
            f"{name} is not a WAV file that can be read ({type(error).__name__}).",
            "Convert it to a WAV file of 16-bit PCM; MP3, FLAC and OGG are not read.",
        ) from error
    samples = raw.astype(np.float64)
    if raw.dtype == np.uint8:
        samples = (samples - 128) / 128
    elif raw.dtype.kind == "i":  # 24 bits arrive as 32, shifted to the top
        samples = samples / 2.0 ** (8 * raw.dtype.itemsize - 1)
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if not samples.size or rate < 1:
        raise GenwardenError("audio/empty", f"{name} holds no samples.", "Give another clip.")
    if not np.isfinite(samples).all() or np.abs(samples).max() > 1:
        raise GenwardenError(
            "audio/values",
            f"{name} holds values that are not finite or lie outside [-1, 1].",
            "Save it again as 16-bit PCM.",
        )
    return Waveform(samples, int(rate))


def _read_file(path: Path) -> Waveform:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GenwardenError(
            "audio/unreadable", f"{path} cannot be read ({error.strerror}).", "Check permissions."
        ) from error
    return read_wav(content, str(path))


class _Rows:
    """The clips of a source by index, decoded one at a time."""

    def __init__(self, source: str, split: str) -> None:
        self.source = source
        folder = Path(source)
        self.files: list[Path] = []
        if folder.is_dir() and not any(folder.rglob("*.parquet")):
            self.files = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".wav")
            if not self.files:
                raise _no_clips(f"{source} holds neither parquet files nor WAV files.")
            return
        dataset = load_dataset(source, split)
        self.column = _audio_column(dataset, source)
        # Decoding by the library would need torchcodec; WAV bytes need no help.
        self.dataset = dataset.cast_column(self.column, _undecoded())
        if len(self.dataset) == 0:
            raise _no_clips(f"{source!r} has no rows in this split.")

    def __len__(self) -> int:
        return len(self.files) or len(self.dataset)

    def read(self, index: int) -> Waveform:
        if self.files:
            return _read_file(self.files[index])
        name = f"{self.source}[{index}]"
        cell = self.dataset[index][self.column]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise GenwardenError(
                "data/unreadable-row",
                f"Row {index} of {self.source!r} holds no clip.",
                "Remove the row, or use --limit to stop before it.",
            )
        if cell["bytes"] is None:
            return _read_file(Path(cell["path"]))
        return read_wav(cell["bytes"], name)


def _undecoded() -> Any:
    import datasets

    return datasets.Audio(decode=False)


def _audio_column(dataset: Any, source: str) -> str:
    import datasets

    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Audio):
            return str(name)
    raise _no_clips(f"{source!r} has no audio column (columns: {', '.join(dataset.features)}).")


def _no_clips(cause: str) -> GenwardenError:
    return GenwardenError(
        "data/no-clips",
        cause,
        "Name a folder in the Hugging Face layout with an audio column, a folder of WAV files, "
        "or a hub name.",
    )
