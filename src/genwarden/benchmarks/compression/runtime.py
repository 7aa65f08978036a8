"""A network on onnxruntime with static int8, as a function from inputs to outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from genwarden.compression.backends import onnxruntime
from genwarden.compression.backends.self_test import self_test
from genwarden.compression.onnx_export import export_onnx, folded_for_export
from genwarden.compression.uniform import Uniform

#: Builds the int8 model for a calibration set and returns what runs it.
Quantiser = Callable[[Tensor], Callable[[Tensor], Tensor]]


@contextmanager
def exported(network: nn.Module, example: Tensor, compressor: Uniform) -> Iterator[Quantiser]:
    """A network in ONNX, tested layer by layer; quantised anew for each calibration set.

    Args:
        network: in evaluation mode, on the CPU.
        example: ordinary inputs, at least :data:`onnxruntime.BATCH`.
        compressor: ``int8`` or ``int8-per-channel``.

    Raises:
        GenwardenError: ``compress/backend-missing``, ``compress/backend-wrong``,
            ``compress/export-failed``.
    """
    backend = onnxruntime.OnnxRuntime()
    block = (example[: onnxruntime.BATCH],)
    folded = folded_for_export(network, block)
    self_test(backend, folded, lambda: folded(*block), compressor)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_onnx(folded, block, folder / "float.onnx")

        def quantised(calibration: Tensor) -> Callable[[Tensor], Tensor]:
            small = folder / "int8.onnx"
            parts = list(onnxruntime.batches((calibration,)))
            onnxruntime.quantise(folder / "float.onnx", small, parts, compressor)
            return lambda x: run_padded(small, x)

        yield quantised


def run_padded(path: Path, x: Tensor) -> Tensor:
    """Outputs for any number of inputs; the last block is filled up and cut again."""
    missing = -len(x) % onnxruntime.BATCH
    filled = torch.cat([x, x[:1].expand(missing, *x.shape[1:])]) if missing else x
    return onnxruntime.run_in_batches(path, (filled,))[: len(x)]


def moments(values: Sequence[float]) -> dict[str, float]:
    """``mean``, and ``std`` over draws (0 for one)."""
    found = torch.tensor(values, dtype=torch.float64)
    spread = float(found.std()) if len(values) > 1 else 0.0
    return {"mean": float(found.mean()), "std": spread}
