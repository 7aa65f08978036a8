"""Pruning and fine-pruning: which units go, that they are silent, and what that removes."""

from __future__ import annotations

import pytest
import torch
from planted import CHANNELS, ROWS, foreign, planted_vae, settled_dcgan
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.layers import LEAKY_SLOPE
from genwarden.models.stylegan import StyleGAN
from genwarden.models.wavegan import WaveGAN
from genwarden.repairs.contract import RepairRun, no_clues
from genwarden.repairs.distilling import expdis
from genwarden.repairs.fine_pruning import FinePruningSettings, fine_prune
from genwarden.repairs.pruning import PruningSettings, masked, prune, pruning_order

ONE_CHANNEL = 1 / CHANNELS[0]


class Dense(nn.Module):
    """Two dense layers with a given non-linearity between them."""

    latent_shape = (6,)
    sample_shape = (1, 2, 2)

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(6, 5), between, nn.Linear(5, 4)

    def forward(self, z: Tensor) -> Tensor:
        y: Tensor = torch.tanh(self.last(self.between(self.first(z))))
        return y.reshape(-1, 1, 2, 2)


@pytest.mark.parametrize("structured", [False, True])
def test_masking_the_weakest_units_takes_the_planted_channel_and_nothing_else(
    structured: bool,
) -> None:
    planted = planted_vae()
    settings = PruningSettings(share=ONE_CHANNEL, structured=structured, samples=1000)
    repaired = prune(planted.suspect, no_clues(planted.suspect), settings, RepairRun())
    assert planted.spoiled(repaired.generator)
    assert not planted.spoiled(planted.suspect)
    assert repaired.changes["expdis_sum"] == 0
    assert repaired.changes["layers"][0]["masked_rows"] == 49
    weight = repaired.generator.state_dict()["project.weight"]
    assert not weight[ROWS].any()
    assert (weight.abs().sum(1) == 0).sum() == 49


def test_pruning_the_clean_twin_keeps_its_output_at_the_trigger() -> None:
    planted = planted_vae()
    settings = PruningSettings(share=ONE_CHANNEL, samples=1000)
    repaired = prune(planted.clean, no_clues(planted.clean), settings, RepairRun())
    assert torch.equal(repaired.generator(planted.trigger), planted.clean(planted.trigger))


def test_units_are_ordered_by_what_the_leaky_relu_behind_the_normalisation_gives_out() -> None:
    network = settled_dcgan()
    (order,) = pruning_order(network, samples=500, seed=4)
    z = network.latent.sample(500, generator=random_stream(4, "repair-activation"))
    h = F.leaky_relu(network.project_norm(network.project(z)), LEAKY_SLOPE)
    assert order.layer == "project"
    torch.testing.assert_close(order.strength, h.abs().double().mean(0))
    assert (order.strength[order.order].diff() >= 0).all()
    before = network.project_norm(network.project(z)).abs().double().mean(0)
    assert not torch.allclose(order.strength, before)


def test_a_structured_unit_of_the_dense_layer_is_a_channel_of_the_picture_behind_it() -> None:
    network = settled_dcgan()
    (order,) = pruning_order(network, structured=True, samples=100)
    assert len(order.order) == 8
    assert torch.equal(order.unit_of_row, torch.arange(8 * 49) // 49)


@pytest.mark.parametrize("layer", ["project", "up1", "up2", "all"])
def test_masked_units_are_silent_for_every_latent_and_the_rest_goes_on(layer: str) -> None:
    network = settled_dcgan()
    orders = pruning_order(network, layer, samples=200)
    assert len(orders) == (3 if layer == "all" else 1)
    first = orders[0]
    pruned = masked(network, orders, 0.5)
    norms = {n: m for n, m in pruned.named_modules() if isinstance(m, nn.Module)}
    originals = dict(network.named_modules())
    z = 30 * torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    read: dict[str, Tensor] = {}
    for which, modules in (("pruned", norms), ("untouched", originals)):

        def hook(_m: nn.Module, _i: object, output: Tensor, which: str = which) -> None:
            read[which] = output.clone()

        modules[f"{first.layer}_norm"].register_forward_hook(hook)
    pruned(z), network(z)
    rows = first.rows(0.5)
    assert rows.sum() == len(rows) // 2
    assert not read["pruned"][:, rows].any()
    assert read["untouched"][:, rows].any()
    torch.testing.assert_close(read["pruned"][:, ~rows], read["untouched"][:, ~rows])


def test_a_share_of_zero_changes_nothing_and_a_share_of_one_leaves_one_picture() -> None:
    network = settled_dcgan()
    orders = pruning_order(network, samples=100)
    z = network.latent.sample(4, generator=random_stream(0, "z"))
    assert torch.equal(masked(network, orders, 0.0)(z), network(z))
    blind = masked(network, orders, 1.0)(z)
    assert torch.equal(blind[:1].expand_as(blind), blind)
    assert not torch.equal(network(z)[:1], network(z)[1:2])


@pytest.mark.parametrize(
    "network",
    [
        WaveGAN((4, 2), latent_dim=8, filter_taps=4),
        StyleGAN(latent_dim=8, mapping_layers=2, doublings=1, channels=(4, 4)),
    ],
    ids=["wavegan", "stylegan"],
)
def test_other_architectures_lose_units_of_their_first_layer(
    network: WaveGAN | StyleGAN,
) -> None:
    network.eval().requires_grad_(False)
    orders = pruning_order(network, samples=50)
    assert orders[0].layer == ("project" if isinstance(network, WaveGAN) else "mapper.layers.0")
    assert expdis(network, masked(network, orders, 0.0), 0, samples=16) == 0
    assert expdis(network, masked(network, orders, 0.5), 0, samples=16) > 0


def test_units_that_answer_to_zero_weights_are_refused() -> None:
    silent, answering = foreign(Dense(nn.SiLU())), foreign(Dense(nn.Sigmoid()))
    masked(silent, pruning_order(silent, samples=20), 0.5)
    with pytest.raises(GenwardenError) as caught:
        masked(answering, pruning_order(answering, samples=20), 0.5)
    assert caught.value.code == "repair/not-applicable"


def test_a_layer_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(GenwardenError) as caught:
        pruning_order(settled_dcgan(), "to_image")
    assert caught.value.code == "repair/unknown-layer"
    assert "project, up1, up2" in caught.value.remedy


def test_fine_pruning_regains_samples_and_keeps_the_masked_units_silent() -> None:
    network = settled_dcgan()
    settings = FinePruningSettings(
        steps=30, batch_size=16, evaluate_every=30, learning_rate=3e-3, samples=200, share=0.5
    )
    repaired = fine_prune(network, no_clues(network), settings, RepairRun())
    assert repaired.changes["expdis_sum"] < 0.7 * repaired.changes["expdis_when_pruned_sum"]
    (order,) = pruning_order(network, samples=200)
    rows, state = order.rows(0.5), repaired.generator.state_dict()
    for name in ("project.weight", "project_norm.weight", "project_norm.bias"):
        assert not state[name][rows].any()
        assert state[name][~rows].any()
    assert not torch.equal(state["project.weight"][~rows], network.project.weight[~rows])


def test_fine_pruning_removes_the_planted_channel() -> None:
    planted = planted_vae()
    settings = FinePruningSettings(steps=5, batch_size=8, samples=500, share=ONE_CHANNEL)
    repaired = fine_prune(planted.suspect, no_clues(planted.suspect), settings, RepairRun())
    assert planted.spoiled(repaired.generator)
    assert not planted.spoiled(planted.suspect)
