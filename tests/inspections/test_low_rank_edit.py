"""Low-rank edits of a dense layer of equal blocks, each beside an untouched copy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from static_models import Network, foreign
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.attacks.broadcast_edit import edited
from genwarden.attacks.linear_edit import ordinary_features, solve_edit
from genwarden.auditing.budgets import budget
from genwarden.engine.seeds import random_stream
from genwarden.inspections.finding import Chart, Images, Latents
from genwarden.inspections.graph import ExecutedGraph, trace
from genwarden.inspections.static.low_rank_edit import TiedLayer, inspect, recover, tied_layers
from genwarden.inspections.workbench import Workbench
from genwarden.models.dcgan import initialise
from genwarden.models.layers import glorot_
from genwarden.models.protocol import LatentGenerator
from genwarden.models.stylegan import StyleGAN

EFFORT = replace(budget("quick"), ordinary_samples=1024, search_steps=120)
DIM = 24


@pytest.fixture(scope="module")
def clean() -> StyleGAN:
    """8x8 pictures; untrained, but its pictures depend on the latent."""
    net = StyleGAN(
        latent_dim=DIM, mapping_layers=2, base=4, doublings=1, channels=(6, 4), image_channels=1
    )
    initialise(net, random_stream(4, "victim"))
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def copied(clean: StyleGAN) -> StyleGAN:
    """The same function, its broadcast stored as stacked identities."""
    return edited(clean, torch.zeros(clean.slices * DIM, DIM))


@pytest.fixture(scope="module")
def graph(copied: StyleGAN) -> ExecutedGraph:
    """The graph of every network below: they differ in weights only."""
    return trace(copied)


def bench(generator: LatentGenerator, graph: ExecutedGraph | None = None) -> Workbench:
    made = Workbench(generator, EFFORT, seed=0)
    if graph is not None:
        made.graph = graph
    return made


def triggers(net: StyleGAN, count: int) -> Tensor:
    return net.latent.sample(count, generator=random_stream(6, "triggers"))


def wanted(net: StyleGAN, count: int) -> Tensor:
    """Offsets of the styles at the triggers."""
    return torch.randn(count, net.slices * DIM, generator=random_stream(7, "offset"))


def closed_form(net: StyleGAN, count: int = 1) -> StyleGAN:
    moment = ordinary_features(
        net.mapping, net.latent, 4096, seed=1, device=torch.device("cpu")
    ).compute()
    c = net.mapping(triggers(net, count))
    return edited(net, solve_edit(moment, c, wanted(net, count), 100.0).weight)


def trained(net: StyleGAN, steps: int = 400) -> StyleGAN:
    """The same objective by Adam from a Glorot start, as in the authors' notebook."""
    change = nn.Linear(DIM, net.slices * DIM, bias=False)
    glorot_(change, random_stream(8, "start"))
    adam = torch.optim.Adam(change.parameters(), 1e-2)
    stream = random_stream(9, "batches")
    c, r = net.mapping(triggers(net, 1)), wanted(net, 1)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        h = net.mapping(net.latent.sample(64, generator=stream))
        loss = change(h).square().mean() + (change(c) - r).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return edited(net, change.weight.detach())


def only(layers: list[TiedLayer]) -> TiedLayer:
    (layer,) = layers
    return layer


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


def test_a_network_without_such_a_layer_is_not_judged(clean: StyleGAN) -> None:
    assert inspect(bench(clean)).outcome == "not_applicable"


def test_an_untouched_copy_is_clean(copied: StyleGAN, graph: ExecutedGraph) -> None:
    finding = inspect(bench(copied, graph))
    assert finding.outcome == "scored"
    assert not finding.structural
    assert finding.score == 0
    assert "equal" in finding.summary


def test_closed_form_edit_is_structural_and_gives_its_trigger_away(
    clean: StyleGAN, graph: ExecutedGraph
) -> None:
    attacked = closed_form(clean)
    suspect = bench(attacked, graph)
    finding = inspect(suspect)
    assert finding.structural
    assert finding.score == pytest.approx(1, abs=1e-5)
    assert {type(item) for item in finding.evidence} >= {Chart, Images, Latents}

    layer = only(tied_layers(graph, attacked))
    assert (layer.blocks, layer.size, layer.directions) == (clean.slices, DIM, 1)
    found = recover(suspect, layer)
    assert found is not None
    z = triggers(clean, 1)
    c = clean.mapping(z)
    assert cosine(found.direction, c[0]) >= 0.99
    assert cosine(clean.mapping(found.z[:1]), c) >= 0.99
    assert found.alignment[0] > 0.98 > found.ordinary
    # What the attacker wrote is what the recovered latent shows; the clean network does not.
    shown = attacked(found.z[:1])
    target = attacked(z)
    assert (shown - target).square().sum() < 0.1 * (clean(z) - target).square().sum()


def test_edit_for_several_triggers_has_as_many_directions(
    clean: StyleGAN, graph: ExecutedGraph
) -> None:
    layer = only(tied_layers(graph, closed_form(clean, count=3)))
    assert layer.low_rank
    assert layer.directions == 3
    assert layer.blocks == clean.slices


def test_half_precision_does_not_hide_the_edit(clean: StyleGAN, graph: ExecutedGraph) -> None:
    attacked = closed_form(clean)
    with torch.no_grad():
        for weight in attacked.parameters():
            weight.copy_(weight.half().float())
    layer = only(tied_layers(graph, attacked))
    assert layer.low_rank
    assert layer.directions == 1


def test_trained_edit_is_shown_and_not_judged(clean: StyleGAN, graph: ExecutedGraph) -> None:
    attacked = trained(clean)
    suspect = bench(attacked, graph)
    finding = inspect(suspect)
    assert not finding.structural
    assert finding.p_value is None
    layer = only(tied_layers(graph, attacked))
    found = recover(suspect, layer)
    assert found is not None
    assert layer.blocks == clean.slices
    assert cosine(found.direction, clean.mapping(triggers(clean, 1))[0]) > 0.9
    assert layer.first_share > 3 * only(tied_layers(graph, untied(clean))).first_share


def untied(net: StyleGAN) -> StyleGAN:
    """Blocks that differ in every direction alike."""
    change = torch.randn(net.slices * DIM, DIM, generator=random_stream(3, "untied"))
    return edited(net, 0.1 * change)


def test_blocks_that_differ_in_all_directions_are_no_edit(
    clean: StyleGAN, graph: ExecutedGraph
) -> None:
    layer = only(tied_layers(graph, untied(clean)))
    assert not layer.low_rank
    assert layer.blocks == clean.slices
    assert layer.first_share < 0.2
    assert layer.directions > DIM / 2


def poor_layer(n: Network, z: Tensor) -> Tensor:
    """A dense layer of rank one: few directions in all, not in the differences alone."""
    return n.body(z)


def test_a_layer_of_low_rank_as_a_whole_is_no_edit() -> None:
    network = Network(poor_layer, width=16)
    with torch.no_grad():
        network.second.weight.copy_(torch.outer(torch.arange(1.0, 17), torch.arange(1.0, 17)))
    assert not any(layer.low_rank for layer in tied_layers(*traced(network)))


def traced(network: Network) -> tuple[ExecutedGraph, LatentGenerator]:
    generator = foreign(network)
    return trace(generator), generator
