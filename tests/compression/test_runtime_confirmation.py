"""onnxruntime against the simulation, and the test that every runtime must pass first."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from every_layer import EveryLayer, latents
from torch import Tensor, nn

from genwarden.compression.apply import compress
from genwarden.compression.backends.contract import LayerRun, Steps
from genwarden.compression.backends.self_test import TOLERANCE_LSB, LayerError, self_test
from genwarden.compression.how import compressor
from genwarden.compression.layers import layout_of
from genwarden.compression.onnx_export import export_onnx, folded_for_export, require_onnx
from genwarden.compression.uniform import Uniform
from genwarden.errors import GenwardenError

#: Torch's own quantised tensors are on their way out; here they show what wrong kernels do.
pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")


def _int8() -> Uniform:
    made = compressor("int8")
    assert isinstance(made, Uniform)
    return made


def _worst(errors: list[LayerError]) -> float:
    return max(error.error_lsb for error in errors if error.error_lsb is not None)


class TorchKernels:
    """Torch's own 8-bit kernels: right or wrong by engine, shape and CPU.

    Args:
        spoil: what is done to every output; a kernel with a defect.
    """

    name = "torch"

    def __init__(self, engine: str, spoil: float = 0.0) -> None:
        self._engine, self._spoil = engine, spoil

    def run_layers(
        self, layers: Sequence[nn.Module], inputs: Sequence[Tensor], compressor: Uniform
    ) -> list[LayerRun | None]:
        """See the contract."""
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = self._engine
        try:
            pairs = zip(layers, inputs, strict=True)
            assert compressor.name == "int8"
            return [self._run(layer, x) for layer, x in pairs]
        finally:
            torch.backends.quantized.engine = before

    def _run(self, layer: nn.Module, x: Tensor) -> LayerRun:
        weight = layer.get_parameter("weight")
        scale = float(weight.abs().max() / 127)
        packed_weight = torch.quantize_per_tensor(weight, scale, 0, torch.qint8)
        reading, writing = _grid(x), _grid(layer(x))
        quantised = torch.quantize_per_tensor(x, reading.scale, reading.zero, torch.quint8)
        ops, bias = torch.ops.quantized, layer.bias
        if isinstance(layer, nn.Linear):
            packed = ops.linear_prepack(packed_weight, bias)
            made = ops.linear(quantised, packed, writing.scale, writing.zero)
        else:
            assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
            place = [list(layer.stride), list(layer.padding)]
            rest = [list(layer.dilation), layer.groups]
            if isinstance(layer, nn.ConvTranspose2d):
                packed = ops.conv_transpose2d_prepack(
                    packed_weight, bias, *place, list(layer.output_padding), *rest
                )
                made = ops.conv_transpose2d(quantised, packed, writing.scale, writing.zero)
            else:
                packed = ops.conv2d_prepack(packed_weight, bias, *place, *rest)
                made = ops.conv2d(quantised, packed, writing.scale, writing.zero)
        return LayerRun(made.dequantize() + self._spoil * writing.scale, reading, writing)


def _grid(x: Tensor) -> Steps:
    # One bit less than there is, so that no CPU's 16-bit sums overflow: the geometry is tested.
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / 127
    return Steps(scale, round(-low / scale), 0, 255)


def _right_engine() -> str:
    if "qnnpack" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch was built without qnnpack")
    return "qnnpack"


def test_right_kernels_pass_within_half_a_step() -> None:
    network, z = folded_for_export(EveryLayer(), (latents(),)), latents()
    errors = self_test(TorchKernels(_right_engine()), network, lambda: network(z), _int8())
    assert [error.name for error in errors] == list(layout_of(network))
    assert 0.3 < _worst(errors) < 0.55


@pytest.mark.parametrize("spoil", [2.0, -2.0, float("nan")])
def test_a_kernel_that_is_off_by_two_steps_is_refused(spoil: float) -> None:
    network, z = folded_for_export(EveryLayer(), (latents(),)), latents()
    with pytest.raises(GenwardenError) as caught:
        self_test(TorchKernels(_right_engine(), spoil), network, lambda: network(z), _int8())
    assert caught.value.code == "compress/backend-wrong"
    assert "dense.weight" in caught.value.cause


def test_a_silently_wrong_transposed_convolution_is_refused() -> None:
    """Torch's x86 engine: garbage unless the channels in and out agree (seen up to 2.13)."""
    if "onednn" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch was built without onednn")
    network = nn.Sequential(nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1)).eval()
    x = torch.rand(2, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        run = TorchKernels("onednn").run_layers([network[0]], [x], _int8())[0]
        assert run is not None
        gap = float((run.output - network(x)).abs().max()) / run.output_steps.scale
    if gap < 10:
        pytest.skip("this torch and CPU compute it rightly")
    with pytest.raises(GenwardenError) as caught:
        self_test(TorchKernels("onednn"), network, lambda: network(x), _int8())
    assert caught.value.code == "compress/backend-wrong"


def test_layers_of_one_shape_are_tested_once() -> None:
    network = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)), nn.Linear(6, 2)).eval()
    z = latents()
    errors = self_test(TorchKernels(_right_engine()), network, lambda: network(z), _int8())
    assert [error.name for error in errors] == ["0.weight", "3.weight"]


def test_without_the_packages_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(GenwardenError) as caught:
        require_onnx()
    assert caught.value.code == "compress/backend-missing"
    assert "genwarden[onnx]" in caught.value.remedy


def test_onnxruntime_holds_the_simulated_codes_and_its_kernels_are_right(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from genwarden.compression.backends import onnxruntime

    network, z = EveryLayer(bias=True), latents(64)
    folded = folded_for_export(network, (z,))
    errors = self_test(onnxruntime.OnnxRuntime(), folded, lambda: folded(z), _int8())
    assert _worst(errors) < TOLERANCE_LSB
    path = tmp_path / "float.onnx"
    export_onnx(folded, (z[:16],), path)
    torch.testing.assert_close(
        onnxruntime.run_in_batches(path, (z,)), network(z), rtol=1e-4, atol=1e-2
    )
    for name in ("int8", "int8-per-channel"):
        made = compressor(name)
        assert isinstance(made, Uniform)
        small = tmp_path / f"{name}.onnx"
        onnxruntime.quantise(path, small, list(onnxruntime.batches((z,))), made)
        codes = onnxruntime.codes_found(path, small, folded, layout_of(folded), made)
        assert codes.left_out == ()
        assert codes.equal > 0.999
        other = compressor("int8" if name != "int8" else "int8-per-channel")
        assert isinstance(other, Uniform)
        wrong = onnxruntime.codes_found(path, small, folded, layout_of(folded), other)
        assert wrong.equal < 0.7
        simulated, _ = compress(network, made, lambda n: n(z))
        theirs, ours, full = onnxruntime.run_in_batches(small, (z,)), simulated(z), network(z)
        assert float((theirs - ours).square().mean()) < 1e-2 * float(full.var())
