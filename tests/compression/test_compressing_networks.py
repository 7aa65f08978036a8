"""Compressing whole networks: coverage, folding, chains, learned rounding."""

from __future__ import annotations

import pytest
import torch
from every_layer import EveryLayer, latents, run_on
from torch import nn
from torch.func import functional_call

from genwarden.compression.apply import compress, compressed_weights
from genwarden.compression.chain import Chain
from genwarden.compression.folding import fold_batch_norm
from genwarden.compression.how import compressor
from genwarden.compression.layers import layout_of
from genwarden.compression.learned_rounding import (
    RoundingSettings,
    SoftRounding,
    decided,
    learned_rounding,
)
from genwarden.compression.uniform import Uniform
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.dcgan import DCGAN28


def test_coverage_counts_what_was_compressed_and_names_the_rest() -> None:
    network, z = EveryLayer(), latents()
    _, all_of_it = compress(network, compressor("int8"), run_on(z))
    weights = sum(network.get_parameter(n).numel() for n in layout_of(network))
    assert all_of_it.layers == ("dense.weight", "up.weight", "conv.weight", "last.weight")
    assert (all_of_it.weights, all_of_it.left_out) == (weights, ())
    assert all_of_it.parameters == sum(p.numel() for p in network.parameters()) > weights
    _, filters = compress(network, compressor("prune-filters-0.3"), run_on(z))
    # A dense layer has no filters, and of a single one none can go.
    assert filters.left_out == ("dense.weight", "last.weight")
    assert filters.share < all_of_it.share
    assert "2 of 4 layers" in str(filters)
    assert "dense.weight" in str(filters)


def test_coverage_counts_what_pruning_sets_to_zero_and_not_what_was_zero() -> None:
    network, z = EveryLayer(), latents()
    small, pruned = compress(network, compressor("prune-0.5"), run_on(z))
    zeros = sum(int((small.get_parameter(n) == 0).sum()) for n in layout_of(network))
    assert pruned.zeroed == zeros > 0.49 * pruned.weights
    assert f"of which {zeros / pruned.weights:.1%} become 0" in str(pruned)
    _, again = compress(small, compressor("prune-0.5"), run_on(z))
    assert again.zeroed == 0
    assert "become 0" not in str(again)


@pytest.mark.parametrize(
    "how", ["prune-filters-0.0001", "prune-0.0000001", "prune-global-0.0000001"]
)
def test_a_rate_that_rounds_to_nothing_covers_nothing(how: str) -> None:
    network, z = EveryLayer(), latents()
    small, covered = compress(network, compressor(how), run_on(z))
    assert torch.equal(small(z), network.eval()(z))
    assert (covered.layers, covered.weights) == ((), 0)


def test_compressing_leaves_the_original_alone() -> None:
    network, z = EveryLayer(), latents()
    before = network(z)
    small, _ = compress(network, compressor("int2"), run_on(z))
    assert torch.equal(network(z), before)
    assert float((small(z) - before).abs().max()) > 0.01


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("drop_norms", [False, True], ids=["kept", "dropped"])
def test_folding_keeps_the_function(bias: bool, drop_norms: bool) -> None:
    network, z = EveryLayer(bias=bias), latents(64)
    folded = fold_batch_norm(network, run_on(z), drop_norms=drop_norms)
    scale = float(network(z).abs().max())
    assert float((folded(z) - network(z)).abs().max()) < 1e-5 * scale
    for name in ("dense", "up", "conv"):
        weight = f"{name}.weight"
        assert not torch.equal(folded.get_parameter(weight), network.get_parameter(weight))
    norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == (0 if drop_norms else 3)
    x = torch.randn(4, 5, 6, 6)
    if not drop_norms:  # what is left adds a constant
        shift = folded.up_norm(x) - x
        torch.testing.assert_close(shift, shift[:1, :, :1, :1].expand_as(shift))
        assert folded.state_dict().keys() == network.state_dict().keys()


class Skipping(nn.Module):
    """A pre-activation block: what its first norm reads goes on beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(6)
        self.first = nn.Conv2d(6, 6, 3, padding=1)
        self.second_norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.one_norm, self.other_norm = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.first(torch.relu(self.first_norm(x)))
        y = x + self.second(torch.relu(self.second_norm(y)))
        both: torch.Tensor = self.one_norm(z := self.first(y)) * self.other_norm(z)
        return both


def test_what_is_read_beside_a_norm_is_not_folded_into_it() -> None:
    network, x = seeded(Skipping()), torch.randn(8, 1, 6, 6, generator=random_stream(0, "skip"))
    layout = layout_of(network, lambda: network(torch.zeros_like(x)))  # zeros hide no reader
    # The stem is skipped, "first" runs twice and has two more norms behind it.
    assert {name for name, layer in layout.items() if layer.norm} == set()

    class Plain(Skipping):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(torch.relu(self.first_norm(self.stem(x))))
            made: torch.Tensor = self.second(torch.relu(self.second_norm(y)))
            return made

    plain = seeded(Plain())
    read = {n: layer.norm for n, layer in layout_of(plain, lambda: plain(x)).items() if layer.norm}
    assert read == {"stem.weight": "first_norm", "first.weight": "second_norm"}
    folded = fold_batch_norm(plain, lambda network: network(x), drop_norms=True)
    torch.testing.assert_close(folded(x), plain(x), rtol=1e-4, atol=1e-4)


def seeded(network: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics that are not those of a fresh norm."""
    stream = random_stream(1, "seeded")
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                least = 0.5 if "var" in name else 0.0
                value.copy_(least + torch.rand(value.shape, generator=stream))
    return network.eval()


@pytest.mark.parametrize("reader", ["the caller", "a second norm", "an addition"])
def test_every_other_reader_keeps_a_layer_from_being_folded(reader: str) -> None:
    layer, norm, other = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    network = nn.ModuleDict({"layer": layer, "norm": norm, "other": other}).eval()

    def forward() -> object:
        y = layer(torch.zeros(2, 4))
        y.size(0), y.shape  # asks, and reads nothing
        z = norm(y)
        return {"the caller": (z, y), "a second norm": other(y), "an addition": None}[reader]

    def added() -> object:
        y = layer(torch.zeros(2, 4))
        return norm(y) + y

    read = layout_of(network, added if reader == "an addition" else forward)
    assert read["layer.weight"].norm == ""
    alone = layout_of(network, lambda: norm(layer(torch.zeros(2, 4))))
    assert alone["layer.weight"].norm == "norm"


def test_folding_twice_changes_nothing_more() -> None:
    network, z = EveryLayer(), latents()
    once = fold_batch_norm(network, run_on(z))
    twice = fold_batch_norm(once, run_on(z))
    torch.testing.assert_close(
        twice.get_parameter("up.weight"), once.get_parameter("up.weight"), rtol=1e-6, atol=0
    )


def test_the_published_generator_folds(tiny_generator: DCGAN28) -> None:
    z = torch.randn(16, 8)
    folded = fold_batch_norm(tiny_generator, run_on(z), drop_norms=True)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(z), tiny_generator(z), rtol=1e-4, atol=1e-5)


def test_folding_without_batch_norm_is_refused() -> None:
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(GenwardenError) as caught:
        fold_batch_norm(network, run_on(latents()))
    assert caught.value.code == "compress/no-batch-norm"


def test_the_grid_of_a_quantiser_is_that_of_the_folded_weight() -> None:
    network, z = EveryLayer(), latents()
    layout = layout_of(network, lambda: network(z))
    made = compressed_weights(network, compressor("int8-per-channel"), layout)
    folded = fold_batch_norm(network, run_on(z), drop_norms=True)
    wanted = compressed_weights(folded, compressor("int8-per-channel"), layout_of(folded))
    compressed = functional_call(network, made, (z,))
    theirs = functional_call(folded, wanted, (z,))
    torch.testing.assert_close(compressed, theirs, rtol=1e-4, atol=1e-4)
    # Per tensor the grid differs from the one that batch norm is left out of.
    plain = compressed_weights(network, compressor("int8"), layout_of(network))
    assert not torch.equal(
        compressed_weights(network, compressor("int8"), layout)["up.weight"], plain["up.weight"]
    )


def test_a_chain_prunes_the_weights_and_quantises_the_folded_rest() -> None:
    network, z = EveryLayer(), latents()
    chain, _ = compress(network, compressor("prune-0.3+int8"), run_on(z))
    pruned, _ = compress(network, compressor("prune-0.3"), run_on(z))
    by_hand, _ = compress(pruned, compressor("int8"), run_on(z))
    for name in layout_of(network):
        assert torch.equal(chain.get_parameter(name), by_hand.get_parameter(name)), name
    assert isinstance(compressor("prune-0.3+int8"), Chain)
    quantised, _ = compress(network, compressor("int8"), run_on(z))
    assert not torch.equal(chain(z), pruned(z))
    assert not torch.equal(chain(z), quantised(z))


def test_learned_rounding_moves_a_layers_outputs_less_than_rounding_to_nearest() -> None:
    network, held_out = EveryLayer(), torch.randn(512, 6, generator=random_stream(5, "held-out"))
    layout = layout_of(network, lambda: network(held_out))
    made = compressor("int3-per-channel")
    assert isinstance(made, Uniform)
    nearest = compressed_weights(network, made, layout)
    learned = learned_rounding(
        network, made, layout, run_on(latents(256)), RoundingSettings(steps=200)
    )
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _, x, y, name=name: seen.update({name: (x[0], y)})
        )
        for name in ("up", "conv")
    ]
    network(held_out)
    for hook in hooks:
        hook.remove()

    def distance(layer: str, weights: dict[str, torch.Tensor]) -> float:
        x, wanted = seen[layer]
        made = functional_call(
            network.get_submodule(layer), {"weight": weights[f"{layer}.weight"]}, (x,)
        )
        return float((made - wanted).square().mean())

    assert distance("conv", learned) < 0.6 * distance("conv", nearest)
    assert distance("up", learned) < 0.95 * distance("up", nearest)
    flips = 0
    for name, layer in layout.items():
        gain = 1.0 if not layer.norm else _gain(network, layer.norm, name, layer.out_axis)
        grid = made.grid(network.get_parameter(name) * gain, layer)
        near, far = (
            made.grid(w * gain, layer).blocks / grid.scale for w in (nearest[name], learned[name])
        )
        torch.testing.assert_close(far, far.round(), rtol=0, atol=1e-3)  # on the same grid
        assert float((far - grid.blocks / grid.scale).abs().max()) < 1.001  # a neighbour
        flips += int(((far - near).abs() > 0.5).sum())
    assert flips > 0


def _gain(network: nn.Module, norm: str, name: str, axis: int) -> torch.Tensor:
    found = network.get_submodule(norm)
    assert isinstance(found, nn.BatchNorm1d | nn.BatchNorm2d)
    assert found.running_var is not None
    gain = torch.rsqrt(found.running_var + found.eps)
    gain = gain if found.weight is None else gain * found.weight
    shape = [1] * network.get_parameter(name).dim()
    shape[axis] = -1
    return gain.reshape(shape)


def test_learned_rounding_takes_another_regulariser() -> None:
    """One that pushes every weight away from its nearest neighbour gets its way."""
    network, z = EveryLayer(), latents(64)
    layout = layout_of(network, lambda: network(z))
    made = compressor("int4")
    assert isinstance(made, Uniform)

    def against_nearest(rounding: SoftRounding) -> torch.Tensor:
        return (rounding.h - (rounding.fraction < 0.5).to(rounding.h)).square().mean()

    few = RoundingSettings(steps=60, learning_rate=0.2, weight=1e4)
    pushed = learned_rounding(network, made, layout, run_on(z), few, regulariser=against_nearest)
    nearest = compressed_weights(network, made, layout)
    other = (pushed["last.weight"] - nearest["last.weight"]).abs() > 1e-6
    assert float(other.float().mean()) > 0.9


def test_the_published_regulariser_is_zero_where_all_is_decided() -> None:
    step, fraction = torch.ones(1, 1), torch.full((1, 4), 0.5)
    done = SoftRounding(torch.tensor([[0.0, 1.0, 0.0, 1.0]]), fraction, step, 1.0)
    open_ = SoftRounding(torch.full((1, 4), 0.5), fraction, step, 1.0)
    assert float(decided(done)) == 0
    assert float(decided(open_)) == 1


def test_learned_rounding_without_calibration_data_is_refused() -> None:
    network, made = EveryLayer(), compressor("int4")
    assert isinstance(made, Uniform)
    with pytest.raises(GenwardenError) as caught:
        learned_rounding(network, made, layout_of(network), run_on(latents(0)))
    assert caught.value.code == "compress/no-calibration"
