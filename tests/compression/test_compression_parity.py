"""The simulated compressors against torch, the gguf package, and second implementations."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from every_layer import LAYOUT, EveryLayer, random_weights
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import prune

from genwarden.compression.block_formats import NF4_VALUES
from genwarden.compression.how import compressor
from genwarden.compression.layers import WeightLayer, layout_of
from genwarden.compression.uniform import Uniform
from genwarden.engine.seeds import random_stream

_DENSE = {"w": WeightLayer("w", "linear", 0)}


def _weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {n: network.get_parameter(n) for n in layout_of(network)}


def _pruned(owner: nn.Module) -> Tensor:
    """Torch leaves the masked weight as a plain attribute."""
    assert isinstance(owner.weight, Tensor)
    return owner.weight


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_magnitude_pruning_is_torchs_l1_unstructured(rate: float) -> None:
    network = EveryLayer()
    ours = compressor(f"prune-{rate}")(_weights_of(network), layout_of(network))
    theirs = copy.deepcopy(network)
    for name in ours:
        owner = theirs.get_submodule(name.rpartition(".")[0])
        prune.l1_unstructured(owner, "weight", amount=rate)
        assert torch.equal(ours[name], _pruned(owner)), name


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_global_pruning_is_torchs_global_unstructured(rate: float) -> None:
    network = EveryLayer()
    ours = compressor(f"prune-global-{rate}")(_weights_of(network), layout_of(network))
    theirs = copy.deepcopy(network)
    owners = {n: theirs.get_submodule(n.rpartition(".")[0]) for n in ours}
    prune.global_unstructured(
        [(owner, "weight") for owner in owners.values()],
        pruning_method=prune.L1Unstructured,
        amount=rate,
    )
    for name, owner in owners.items():
        assert torch.equal(ours[name], _pruned(owner)), name


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.6])
def test_filter_pruning_is_torchs_ln_structured_over_output_channels(rate: float) -> None:
    network = EveryLayer()
    layout = layout_of(network)
    ours = compressor(f"prune-filters-{rate}")(_weights_of(network), layout)
    assert "dense.weight" not in ours
    theirs = copy.deepcopy(network)
    for name in ("up.weight", "conv.weight"):
        owner = theirs.get_submodule(name.rpartition(".")[0])
        prune.ln_structured(owner, "weight", amount=rate, n=1, dim=layout[name].out_axis)
        assert torch.equal(ours[name], _pruned(owner)), name


def test_two_of_every_four_inputs_stay() -> None:
    weights = random_weights(0)
    ours = compressor("prune-2:4")(weights, LAYOUT)
    for name, layer in LAYOUT.items():
        rows = ours[name].movedim(layer.out_axis, 0).flatten(1)
        full = weights[name].movedim(layer.out_axis, 0).flatten(1)
        for start in range(0, rows.shape[1] // 4 * 4, 4):
            four, before = rows[:, start : start + 4], full[:, start : start + 4]
            assert ((four != 0).sum(1) == 2).all()
            assert torch.equal(four.abs().amax(1), before.abs().amax(1))


@pytest.mark.parametrize("bits", [4, 8])
def test_per_tensor_quantisation_is_torchs_fake_quantisation(bits: int) -> None:
    weights, most = random_weights(1), 2 ** (bits - 1) - 1
    ours = compressor(f"int{bits}")(weights, LAYOUT)
    for name, w in weights.items():
        scale = float(w.abs().max() / most)
        theirs = torch.fake_quantize_per_tensor_affine(w, scale, 0, -most, most)
        torch.testing.assert_close(ours[name], theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [4, 8])
def test_affine_quantisation_is_torchs_fake_quantisation(bits: int) -> None:
    weights, half = random_weights(2), 2 ** (bits - 1)
    ours = compressor(f"int{bits}-affine")(weights, LAYOUT)
    for name, w in weights.items():
        scale = (w.max() - w.min()) / (2**bits - 1)
        zero = int(-half - torch.round(w.min() / scale))
        theirs = torch.fake_quantize_per_tensor_affine(w, float(scale), zero, -half, half - 1)
        torch.testing.assert_close(ours[name], theirs, rtol=1e-6, atol=1e-7)


def test_per_channel_quantisation_is_torchs_along_the_output_axis() -> None:
    weights = random_weights(3)
    ours = compressor("int8-per-channel")(weights, LAYOUT)
    for name, layer in LAYOUT.items():
        w = weights[name]
        scale = w.movedim(layer.out_axis, 0).flatten(1).abs().amax(1) / 127
        zero = torch.zeros_like(scale, dtype=torch.int32)
        theirs = torch.fake_quantize_per_channel_affine(w, scale, zero, layer.out_axis, -127, 127)
        torch.testing.assert_close(ours[name], theirs, rtol=1e-6, atol=0)


def test_a_group_of_a_whole_row_is_a_channel() -> None:
    weights = {"w": random_weights(4)["dense.weight"]}
    width = weights["w"].shape[1]
    one = compressor(f"int4-group{width}")(weights, _DENSE)["w"]
    assert torch.equal(one, compressor("int4-per-channel")(weights, _DENSE)["w"])
    assert not torch.equal(one, compressor("int4-group7")(weights, _DENSE)["w"])


def test_power_of_two_scales_are_powers_of_two_and_cover_the_extremes() -> None:
    made, weights = compressor("int8-power2"), random_weights(5)
    assert isinstance(made, Uniform)
    for name, layer in LAYOUT.items():
        grid = made.grid(weights[name], layer)
        assert torch.equal(torch.log2(grid.scale), torch.log2(grid.scale).round())
        assert float(weights[name].abs().max()) <= 127 * float(grid.scale)


def test_a_layer_of_zeros_stays_zero_everywhere() -> None:
    zeros = {"w": torch.zeros(2, 64)}
    for name in ("int8", "int4-affine", "int4-per-channel-power2", "q8_0", "q4_0", "nf4"):
        assert torch.equal(compressor(name)(zeros, _DENSE)["w"], zeros["w"]), name


def _awkward_rows() -> Tensor:
    """Normal rows, and such with zeros, ties between codes and two extremes of equal size."""
    rows = torch.randn(40, 128, generator=random_stream(0, "rows"))
    rows[0] = 0
    rows[1, :32] = torch.arange(32) - 16.0
    rows[2, :32] = 16 - torch.arange(32.0)
    rows[3, :32] = torch.arange(32) / 2 - 8
    rows[4] *= 1e-4
    rows[5, :32] = 127 - torch.arange(32) / 2
    return rows


def test_gguf_blocks_are_the_packages() -> None:
    quants = pytest.importorskip("gguf.quants")
    types = pytest.importorskip("gguf").GGMLQuantizationType
    rows = _awkward_rows()
    for name, kind in (("q8_0", types.Q8_0), ("q4_0", types.Q4_0)):
        theirs = quants.dequantize(quants.quantize(rows.numpy(), kind), kind)
        ours = compressor(name)({"w": rows}, _DENSE)["w"]
        assert torch.equal(ours, torch.from_numpy(theirs)), name


def test_gguf_blocks_are_those_of_a_second_implementation() -> None:
    rows = _awkward_rows()
    for name, one_block in (("q8_0", _q8_0), ("q4_0", _q4_0)):
        blocks = rows.numpy().reshape(-1, 32)
        wanted = np.stack([one_block(block) for block in blocks]).reshape(rows.shape)
        ours = compressor(name)({"w": rows}, _DENSE)["w"].numpy()
        np.testing.assert_allclose(ours, wanted, rtol=1e-6, err_msg=name)


def _q8_0(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """By the description of the format: one float16 scale and 32 whole numbers."""
    scale = np.float32(np.abs(block).max()) / np.float32(127)
    inverse = np.float32(1) / scale if scale else np.float32(0)
    made = []
    for x in block:
        place = np.float32(x * inverse)
        code = np.floor(abs(place) + np.float32(0.5)) * np.sign(place)  # halves away from 0
        made.append(np.float32(np.float16(scale)) * np.float32(code))
    return np.array(made, np.float32)


def _q4_0(block: NDArray[np.float32]) -> NDArray[np.float32]:
    extreme = max(block, key=abs)  # the first of equals, with its sign
    scale = np.float32(extreme) / np.float32(-8)
    inverse = np.float32(1) / scale if scale else np.float32(0)
    made = []
    for x in block:
        code = min(15, max(0, int(float(x) * float(inverse) + 8.5)))
        made.append(np.float32(np.float16(scale)) * np.float32(code - 8))
    return np.array(made, np.float32)


def test_nf4_takes_the_nearest_of_its_values_per_block_of_64() -> None:
    rows = torch.randn(5, 48, generator=random_stream(0, "nf4"))  # the last block is not full
    flat = rows.flatten()
    wanted = []
    for block in flat.split(64):
        largest = block.abs().max()
        distance = (block[:, None] / largest - torch.tensor(NF4_VALUES)).abs()
        wanted.append(torch.tensor(NF4_VALUES)[distance.argmin(1)] * largest)
    ours = compressor("nf4")({"w": rows}, _DENSE)["w"]
    torch.testing.assert_close(ours.flatten(), torch.cat(wanted), rtol=1e-6, atol=0)


def test_nf4_values_are_16_normal_quantiles_with_an_exact_zero() -> None:
    """QLoRA's construction: 8 positive and 7 negative quantiles of N(0, 1), 0, scaled to 1."""
    offset = 0.5 * ((1 - 1 / 30) + (1 - 1 / 32))
    normal = torch.distributions.Normal(0.0, 1.0)
    up = normal.icdf(torch.linspace(offset, 0.5, 9, dtype=torch.float64))[:-1]
    down = -normal.icdf(torch.linspace(offset, 0.5, 8, dtype=torch.float64))[:-1]
    values = torch.cat([up, torch.zeros(1), down]).sort().values
    torch.testing.assert_close(
        torch.tensor(NF4_VALUES, dtype=torch.float64), values / values.max(), rtol=0, atol=2e-6
    )
