"""onnxruntime's static 8-bit quantisation (QDQ format): what most devices are given.

Weights are symmetric int8, per tensor or per output channel; activations are int8 with a zero
point, from the smallest and largest value on calibration data. Only operators with weights are
quantised: a timestep times a frequency, 0 to 1,000 in 256 codes, is noise to the sine behind it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from genwarden.compression.backends.contract import LayerRun, Steps
from genwarden.compression.layers import Layout
from genwarden.compression.onnx_export import (
    export_onnx,
    input_names,
    output_names,
    quiet,
    require_onnx,
)
from genwarden.compression.uniform import Uniform

if TYPE_CHECKING:
    import onnx

#: Samples per run: an exported model may have its batch size fixed.
BATCH: Final = 16
_LEAST, _MOST = -128, 127
_OPERATORS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: They move numbers and change none, or add zeros, which every grid has.
_MOVING: Final = ("Slice", "Reshape", "Transpose", "Identity", "Pad", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class CodesFound:
    """The weights inside a quantised model against the simulated ones.

    Attributes:
        layers: names of the weights that the runtime holds in 8 bits.
        left_out: names of those that it does not.
        equal: share of their codes that are the simulated compressor's.
    """

    layers: tuple[str, ...]
    left_out: tuple[str, ...]
    equal: float


class OnnxRuntime:
    """The backend; makes temporary files only.

    Raises:
        GenwardenError: ``compress/backend-missing`` without the packages.
    """

    def __init__(self) -> None:
        require_onnx()

    @property
    def name(self) -> str:
        """With the version."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    def run_layers(
        self, layers: Sequence[nn.Module], inputs: Sequence[Tensor], compressor: Uniform
    ) -> list[LayerRun | None]:
        """All layers side by side in one model; see the contract."""
        import onnx

        names = output_names(len(layers))
        with tempfile.TemporaryDirectory() as folder:
            path, small = Path(folder) / "layers.onnx", Path(folder) / "layers-int8.onnx"
            export_onnx(_SideBySide(layers), inputs, path, outputs=len(layers))
            quantise(path, small, [tuple(inputs)], compressor)
            made = run(small, tuple(inputs))
            model = onnx.load(small)
        runs: list[LayerRun | None] = []
        for output, reading, writing in zip(made, input_names(len(layers)), names, strict=True):
            grids = _steps(model, reading), _steps(model, writing)
            if grids[0] is None or grids[1] is None:
                runs.append(None)
            else:
                runs.append(LayerRun(output, grids[0], grids[1]))
        return runs


class _SideBySide(nn.Module):
    """Layers that do not touch each other, one input and one output each."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """One output per input."""
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))


def quantise(
    path: Path, out: Path, calibration: Sequence[tuple[Tensor, ...]], compressor: Uniform
) -> None:
    """Static quantisation of an ONNX model.

    Args:
        calibration: batches of inputs.
        compressor: ``int8`` or ``int8-per-channel``.
    """
    from onnxruntime import quantization

    names = input_names(len(calibration[0]))
    with quiet():
        quantization.quantize_static(
            str(path),
            str(out),
            _Reader([_as_arrays(names, batch) for batch in calibration]),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=list(_OPERATORS),
            per_channel=compressor.granularity == "channel",
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
        )


def run(path: Path, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs of an ONNX model on the CPU."""
    return [torch.from_numpy(np.array(y)) for y in _session(path).run(None, _named(inputs))]


def run_in_batches(path: Path, inputs: Sequence[Tensor]) -> Tensor:
    """The first output of an ONNX model on many samples, a multiple of :data:`BATCH`."""
    session = _session(path)
    return torch.cat(
        [torch.from_numpy(np.array(session.run(None, _named(part))[0])) for part in batches(inputs)]
    )


def batches(inputs: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Inputs in blocks of :data:`BATCH`; a rest is left out."""
    for start in range(0, len(inputs[0]) // BATCH * BATCH, BATCH):
        yield tuple(x[start : start + BATCH] for x in inputs)


def codes_found(
    path: Path, small: Path, folded: nn.Module, layout: Layout, compressor: Uniform
) -> CodesFound:
    """Compare the int8 weights in a quantised model with those of the simulated compressor.

    Args:
        path: the model in float, which tells by its values what the runtime calls each weight.
        small: the quantised model.
        folded: the network that was exported.
    """
    import onnx
    from onnx import numpy_helper

    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    codes = {t.name: numpy_helper.to_array(t) for t in onnx.load(small).graph.initializer}
    layers, left_out, equal, total = [], [], 0, 0
    for name, layer in layout.items():
        weight = folded.get_parameter(name).detach()
        alias = _alias(weight.cpu().numpy(), stored)
        held = None if alias is None else codes.get(f"{alias}_quantized")
        if held is None or held.dtype != np.int8:
            left_out.append(name)
            continue
        grid = compressor.grid(weight, layer)
        wanted = compressor.restore(compressor.codes(grid, layer), weight, layer).cpu().numpy()
        if held.shape != wanted.shape or not np.array_equal(stored[str(alias)], weight.cpu()):
            wanted = wanted.T
        layers.append(name)
        equal += int((held == wanted).sum())
        total += held.size
    return CodesFound(tuple(layers), tuple(left_out), equal / total if total else 0.0)


class _Reader:
    """Calibration data as onnxruntime asks for it."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, None behind the last."""
        return next(self._left, None)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _named(inputs: Sequence[Tensor]) -> dict[str, Any]:
    return _as_arrays(input_names(len(inputs)), inputs)


def _as_arrays(names: Sequence[str], inputs: Sequence[Tensor]) -> dict[str, Any]:
    return {n: x.detach().cpu().numpy() for n, x in zip(names, inputs, strict=True)}


def _alias(weight: Any, stored: Mapping[str, Any]) -> str | None:
    """Name under which a weight lies in a model; dense layers may be transposed."""
    for name, values in stored.items():
        if values.shape == weight.shape and np.array_equal(values, weight):
            return name
        if weight.ndim == 2 and np.array_equal(values, weight.T):
            return name
    return None


def _steps(model: onnx.ModelProto, tensor: str) -> Steps | None:
    """The grid of an input or output of a quantised model of layers; None if it has none."""
    from onnx import numpy_helper

    constants = {t.name: t for t in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    while (maker := makers.get(tensor)) is not None and maker.op_type in _MOVING:
        tensor = maker.input[0]
    readers = [node for node in model.graph.node if tensor in node.input]
    while maker is None and readers and readers[0].op_type in _MOVING:
        tensor = readers[0].output[0]
        readers = [node for node in model.graph.node if tensor in node.input]
    for node in [*readers, *([] if maker is None else [maker])]:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            scale, zero = (numpy_helper.to_array(constants[n]) for n in node.input[1:3])
            return Steps(float(scale), int(zero), _LEAST, _MOST)
    return None
