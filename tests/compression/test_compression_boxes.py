"""A box says where a weight may move with the outcome unchanged: that, and not much less."""

from __future__ import annotations

import pytest
import torch
from every_layer import LAYOUT, EveryLayer, latents, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genwarden.compression.apply import boxes, compressed_weights
from genwarden.compression.contract import Compressor
from genwarden.compression.how import compressor
from genwarden.compression.layers import layout_of
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError

EVERY = [
    "int8",
    "int4",
    "int2",
    "int8-per-channel",
    "int4-group32",
    "int4-affine",
    "int4-affine-per-channel",
    "int3-affine-group16",
    "int8-power2",
    "int4-per-channel-power2",
    "int8-scale1.02",
    "int4-scale0.8",
    "q8_0",
    "q4_0",
    "nf4",
    "prune-0.3",
    "prune-global-0.3",
    "prune-filters-0.3",
    "prune-2:4",
    "prune-0.3+int8",
    "prune-filters-0.3+int4-per-channel",
    "int8+prune-0.5",
]
#: Their boxes reach to the next code; the others' stop earlier where their scale has slack.
TIGHT = [
    name for name in EVERY if not any(word in name for word in ("power2", "scale", "filters", "+"))
]


def _inside(box_low: Tensor, box_high: Tensor, stream: torch.Generator) -> Tensor:
    """Random points of a box, a quarter of them at its ends."""
    share = torch.rand(box_low.shape, generator=stream) * 2 - 0.5
    # Of float32 numbers, so that the ends are met exactly.
    return torch.clamp(box_low + share * (box_high - box_low), box_low, box_high)


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("name", EVERY)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=12, deadline=None)
def test_whatever_lies_in_the_box_compresses_to_the_same(name: str, seed: int) -> None:
    made, weights = compressor(name), random_weights(seed)
    found = made.box(weights, LAYOUT)
    assert found
    stream = random_stream(seed, "inside")
    moved = {
        n: _inside(*found[n], stream) if n in found else weight for n, weight in weights.items()
    }
    assert any(not torch.equal(moved[n], weights[n]) for n in found), "nothing may move"
    assert _same(made(moved, LAYOUT), made(weights, LAYOUT))


@pytest.mark.parametrize("name", TIGHT)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=6, deadline=None)
def test_just_outside_the_box_the_outcome_changes(name: str, seed: int) -> None:
    made, weights = compressor(name), random_weights(seed)
    before, found = made(weights, LAYOUT), made.box(weights, LAYOUT)
    stream = random_stream(seed, "outside")
    tried = 0
    for n, weight in weights.items():
        low, high = (end.flatten() for end in found[n])
        free = torch.nonzero(low < high).flatten()
        for index in free[torch.randperm(len(free), generator=stream)[:4]].tolist():
            up = bool(torch.rand(1, generator=stream) < 0.5)
            end = float(high[index] if up else low[index])
            if bool(((weight.abs() - abs(end)).abs() <= 1e-4 * abs(end)).any()):
                continue  # an extreme, beyond which the scale follows continuously
            beyond = weight.clone().flatten()
            step = 0.01 * float(high[index] - low[index])
            beyond[index] = end + (step if up else -step)
            after = made({**weights, n: beyond.reshape(weight.shape)}, LAYOUT)
            assert not _same(after, before), f"{n}[{index}]: {end}"
            tried += 1
    assert tried >= 3


def test_filters_that_grow_together_beyond_their_boxes_are_kept() -> None:
    made, weights = compressor("prune-filters-0.3"), random_weights(0)
    found = made.box(weights, LAYOUT)["conv.weight"]
    grown = torch.where(found.low < found.high, found.high * 1.01, weights["conv.weight"])
    after = made({**weights, "conv.weight": grown}, LAYOUT)["conv.weight"]
    assert not torch.equal(after, made(weights, LAYOUT)["conv.weight"])


@pytest.mark.parametrize("name", EVERY)
def test_boxes_hold_on_a_network_with_batch_norm(name: str) -> None:
    made, network, z = compressor(name), EveryLayer(), latents()
    layout = layout_of(network, lambda: network(z))
    assert sum(bool(layer.norm) for layer in layout.values()) == 3
    before, found = compressed_weights(network, made, layout), boxes(network, made, layout)
    own = {n: network.get_parameter(n) for n in layout}
    for index in range(5):
        stream = random_stream(index, "on-network")
        moved = {n: _inside(*found[n], stream) if n in found else w for n, w in own.items()}
        after = compressed_weights(network, made, layout, moved)
        for n in before:
            assert torch.equal(after[n], before[n]), n


@pytest.mark.parametrize("name", EVERY)
def test_gradients_pass_straight_through_what_is_kept(name: str) -> None:
    made = compressor(name)
    weights = {n: w.requires_grad_(True) for n, w in random_weights(3).items()}
    out = made(weights, LAYOUT)
    sum(w.sum() for w in out.values()).backward()  # type: ignore[union-attr]
    for n, w in out.items():
        gradient = weights[n].grad
        assert gradient is not None
        pruned = _pruned(made, weights, n)
        assert torch.equal(gradient, torch.where(pruned, 0.0, 1.0)), n
        assert w.grad_fn is not None


def _pruned(made: Compressor, weights: dict[str, Tensor], name: str) -> Tensor:
    """Where pruning puts a zero; weights are never 0 themselves."""
    if "prune" not in made.name:
        return torch.zeros_like(weights[name], dtype=torch.bool)
    if made.name == "int8+prune-0.5":
        weights = compressor("int8")(weights, LAYOUT)
        made = compressor("prune-0.5")
    first = compressor(made.name.partition("+")[0])(weights, LAYOUT)
    return first[name] == 0 if name in first else torch.zeros_like(weights[name], dtype=torch.bool)


def test_random_rounding_has_no_box() -> None:
    with pytest.raises(GenwardenError) as caught:
        compressor("int4-stochastic").box(random_weights(0), LAYOUT)
    assert caught.value.code == "compress/no-box"


def test_behind_pruning_random_rounding_needs_no_box() -> None:
    found = compressor("prune-0.3+int8-stochastic").box(random_weights(0), LAYOUT)
    assert found.keys() == LAYOUT.keys()


def test_random_rounding_is_right_on_average_and_repeats_with_its_seed() -> None:
    weights = random_weights(0)
    draws = [compressor("int3-stochastic", seed=s)(weights, LAYOUT) for s in range(200)]
    mean = torch.stack([draw["conv.weight"] for draw in draws]).mean(0)
    step = float(weights["conv.weight"].abs().max()) / 3
    assert float((mean - weights["conv.weight"]).abs().max()) < 0.2 * step
    nearest = compressor("int3")(weights, LAYOUT)["conv.weight"]
    assert float((nearest - weights["conv.weight"]).abs().max()) > 0.4 * step
    again = compressor("int3-stochastic", seed=7)(weights, LAYOUT)
    assert _same(again, draws[7])
