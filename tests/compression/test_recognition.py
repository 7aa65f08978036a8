"""Quantised weights are recognised on any grid; trained ones, pruned or in 16 bits, are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from genwarden.compression.apply import compress
from genwarden.compression.how import compressor
from genwarden.compression.layers import WeightLayer, layout_of
from genwarden.compression.recognition import share_of_few_values
from genwarden.models.dcgan import DCGAN28
from glyph_task import GlyphTask


def shares(network: nn.Module, example: Tensor, how: str = "") -> list[float]:
    """Of all layers whose rows are long enough."""
    if how:
        network = compress(network, compressor(how), lambda one: one(example))[0]
    return [
        share_of_few_values(network.get_parameter(name), layer)
        for name, layer in layout_of(network).items()
        if network.get_parameter(name).movedim(layer.out_axis, 0)[0].numel() >= 16
    ]


def of(weight: Tensor) -> float:
    return share_of_few_values(weight, WeightLayer("a", "linear", 0))


def blank(task: GlyphTask) -> Tensor:
    return torch.zeros(2, *task.classifier.sample.shape)


@pytest.mark.parametrize(
    "how",
    [
        "int8",
        "int8-affine",
        "int8-per-channel",
        "int8-group32",
        "int8-group128",
        "int8-group16",
        "int6-group24",
        "int4-group8",
        "int8-power2",
        "int8-scale1.3",
        "int8-stochastic",
        "int5-affine-per-channel",
        "int4",
        "int3",
        "q8_0",
        "q4_0",
        "nf4",
        "prune-0.5+int8",
    ],
)
def test_every_grid_is_recognised_whatever_shares_its_scale(
    how: str, glyph_task: GlyphTask
) -> None:
    found = shares(glyph_task.classifier, blank(glyph_task), how)
    assert len(found) >= 3
    assert min(found) > 0.4  # twice what the audit asks


@pytest.mark.parametrize("how", ["", "prune-0.3", "prune-0.7", "prune-2:4", "prune-filters-0.3"])
def test_trained_weights_are_not_though_they_were_pruned(how: str, glyph_task: GlyphTask) -> None:
    assert max(shares(glyph_task.classifier, blank(glyph_task), how)) < 0.02


def test_nor_are_those_that_are_stored_in_half_precision(glyph_task: GlyphTask) -> None:
    for kind in (torch.float16, torch.bfloat16):
        for name, weight in glyph_task.classifier.named_parameters():
            if weight.dim() > 1:
                layer = WeightLayer(name, "convolution", 0)
                assert share_of_few_values(weight.to(kind).float(), layer) < 0.02


def test_a_grid_is_recognised_through_float16(glyph_task: GlyphTask) -> None:
    example = blank(glyph_task)
    small = compress(glyph_task.classifier, compressor("int8"), lambda one: one(example))[0]
    with torch.no_grad():
        for weight in small.parameters():
            weight.copy_(weight.half().float())
    assert min(shares(small, example)) > 0.3


def test_scales_of_input_channels_and_short_rows_are_read_along_the_other_axis() -> None:
    weight = torch.randn(64, 40)
    scale = weight.abs().amax(0) / 127  # per input channel
    assert of((weight / scale).round() * scale) > 0.4
    narrow = torch.randn(512, 8)
    steps = narrow.abs().amax() / 7
    assert of((narrow / steps).round() * steps) > 0.4


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_with_a_scale_are_a_code_book(kind: torch.dtype) -> None:
    weight = torch.randn(64, 576)
    assert of((weight / 0.0173).to(kind).float() * 0.0173) == 1
    assert of(weight) < 0.02


def test_large_code_books_are_recognised_in_the_whole_tensor() -> None:
    values = torch.randn(256).sort().values
    weight = values[torch.randint(256, (64, 576), generator=torch.Generator().manual_seed(0))]
    assert of(weight) == 1


def test_trained_weights_of_any_law_are_not() -> None:
    torch.manual_seed(0)
    for weight in (torch.randn(2000, 320), torch.rand(2000, 320), torch.randn(2000, 320) ** 3):
        for gone in (0.0, 0.5, 0.8):
            assert of(weight * (torch.rand_like(weight) >= gone)) < 0.01


def test_transposed_convolutions_are_read_along_their_output_channels(
    tiny_generator: DCGAN28,
) -> None:
    latents = torch.zeros(2, 8)
    assert max(shares(tiny_generator, latents)) < 0.02
    assert min(shares(tiny_generator, latents, "int8-per-channel")) > 0.5


@pytest.mark.parametrize("weight", [torch.zeros(8, 64), torch.ones(8, 64), torch.rand(2, 3)])
def test_constants_and_tiny_layers_tell_nothing(weight: Tensor) -> None:
    assert of(weight) == 0
