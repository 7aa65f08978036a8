"""The executed graph and the partition of its channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from static_models import Network, dcgan, foreign, latents, rex, vae
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.engine.seeds import random_stream
from genwarden.inspections.graph import trace
from genwarden.inspections.partition import find_partition, isolate, silence
from genwarden.models.protocol import LatentGenerator


def test_layers_are_found_in_order_with_their_state_dict_names() -> None:
    graph = trace(dcgan())
    assert graph.failure == ""
    assert [layer.weight for layer in graph.layers] == [
        "project.weight",
        "up1.weight",
        "up2.weight",
        "to_image.weight",
    ]
    assert [layer.kind for layer in graph.layers] == ["linear", *["conv_transpose"] * 3]
    norms = [layer.batch_norm for layer in graph.layers]
    assert norms[0] is not None
    assert (norms[0].gamma, norms[0].variance) == (
        "project_norm.weight",
        "project_norm.running_var",
    )
    assert norms[3] is None


def test_layer_order_is_that_of_execution_and_not_of_definition() -> None:
    network = Network(lambda n, z: n.picture(n.first(n.second(n.third(n.first(z))))))
    network.first = nn.Linear(6, 6)
    network.third = nn.Linear(6, 6)
    network.second = nn.Linear(6, 6)
    network.last = nn.Linear(6, 16)
    graph = trace(foreign(network))
    names = [layer.weight.removeprefix("network.") for layer in graph.layers]
    assert names == [f"{n}.weight" for n in ("first", "third", "second", "first", "last")]


def test_paths_follow_the_data() -> None:
    graph = trace(dcgan())
    first, last = graph.layers[0].node, graph.layers[-1].node
    assert graph.has_path(graph.latent, graph.output)
    assert graph.has_path(first, last)
    assert not graph.has_path(last, first)


def test_writes_in_place_become_data_flow() -> None:
    def run(n: Network, z: Tensor) -> Tensor:
        y = n.body(z)
        y[(z == n.secret).all(1)] = 0.5
        return y

    graph = trace(foreign(Network(run)))
    assert "index_put" in {node.op for node in graph.nodes.values()}
    assert "all" in {graph.nodes[name].op for name in graph.on_path}


def test_python_branch_on_the_latent_is_named_as_such() -> None:
    def run(n: Network, z: Tensor) -> Tensor:
        return n.body(-z) if bool((z[0] == n.secret).all()) else n.body(z)

    graph = trace(foreign(Network(run)))
    assert graph.failure
    assert graph.data_dependent
    assert not graph.nodes


def test_network_that_cannot_be_traced_is_a_failure_and_no_branch() -> None:
    def run(n: Network, z: Tensor) -> Tensor:
        scale = float(n.secret.sum())  # reads a stored value, not the latent
        return n.body(z) * (1.0 if scale > 0 else -1.0)

    def broken(n: Network, z: Tensor) -> Tensor:
        raise KeyError(f"no such layer: {n.secret.shape, z.shape}")

    graph = trace(foreign(Network(broken)))
    assert "no such layer" in graph.failure
    assert not graph.data_dependent
    assert not trace(foreign(Network(run))).data_dependent


def test_tracing_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    trace(foreign(Network(lambda n, z: n.body(z) if bool((z > 0).all()) else n.body(-z))))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize("make", [dcgan, vae])
def test_clean_model_has_one_component(
    make: Callable[..., LatentGenerator],
) -> None:
    generator = make()
    assert find_partition(trace(generator), generator) is None


@pytest.mark.parametrize("shuffle", [None, 7])
@pytest.mark.parametrize("make", [dcgan, vae])
def test_rex_blocks_are_found_up_to_permutation_and_scale(
    make: Callable[..., LatentGenerator], shuffle: int | None
) -> None:
    generator = rex(make(0), make(1), shuffle=shuffle)
    partition = find_partition(trace(generator), generator)
    assert partition is not None
    assert partition.components == 2
    sizes = [size.channels for size in partition.sizes["up1.weight"]]
    assert sizes == [6, 6]
    assert sorted(partition.labels["project.weight"].bincount().tolist()) == [392, 392]
    assert (partition.labels["to_image.weight"] == -1).all()
    assert partition.log10_p < -50


def test_shuffling_does_not_change_what_the_fused_model_computes() -> None:
    plain, shuffled = rex(dcgan(0), dcgan(1)), rex(dcgan(0), dcgan(1), shuffle=3)
    z = latents(plain)
    torch.testing.assert_close(plain(z), shuffled(z), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [dcgan, vae])
def test_isolated_component_is_the_expansion(make: Callable[..., LatentGenerator]) -> None:
    original, expansion = make(0), make(1, (6, 4, 2))
    generator = rex(original, expansion, shuffle=5)
    partition = find_partition(trace(generator), generator)
    assert partition is not None
    z = latents(generator)
    found = [isolate(generator, partition, c).pre_activation(z) for c in range(2)]
    shared = 0.0  # the last bias is in every copy
    if "to_image.bias" in generator.state_dict():
        shared = generator.state_dict()["to_image.bias"]
        bias = [m.state_dict()["to_image.bias"] for m in (original, expansion)]
    else:
        bias = [0.0, 0.0]
    # the larger network is component 0
    for output, network, own in zip(found, (original, expansion), bias, strict=True):
        expected = network.pre_activation(z)
        torch.testing.assert_close(output - shared, expected - own, rtol=1e-4, atol=1e-5)
    kept = silence(generator, partition, {1}).pre_activation(z)
    torch.testing.assert_close(kept, found[0])


def test_components_of_a_bias_free_model_add_up() -> None:
    generator = rex(rex(dcgan(0), dcgan(1)), dcgan(2), shuffle=2)
    partition = find_partition(trace(generator), generator)
    assert partition is not None
    assert partition.components == 3
    z = latents(generator)
    total = sum(isolate(generator, partition, c).pre_activation(z) for c in range(3))
    torch.testing.assert_close(total, generator.pre_activation(z), rtol=1e-4, atol=1e-5)


def test_sizes_count_every_number_of_a_fused_model_once() -> None:
    generator = rex(dcgan(0), dcgan(1))
    partition = find_partition(trace(generator), generator)
    assert partition is not None
    one = sum(t.numel() for t in dcgan(0).state_dict().values() if t.is_floating_point())
    assert [partition.parameters(c) for c in range(2)] == [one, one]


def test_one_leak_between_the_blocks_joins_them() -> None:
    generator = rex(dcgan(0), dcgan(1))
    generator.state_dict()["up2.weight"][0, 5] = 0.01
    partition = find_partition(trace(generator), generator)
    assert partition is None or all(block.weight != "up2.weight" for block in partition.blocks)


def test_expansion_that_ends_early_is_found_in_the_layers_it_spans() -> None:
    generator = rex(dcgan(0), dcgan(1), shuffle=1)
    stream = random_stream(0, "dense")
    weight = generator.state_dict()["up2.weight"]
    weight.copy_(torch.randn(weight.shape, generator=stream) * 0.2)
    partition = find_partition(trace(generator), generator)
    assert partition is not None
    assert [block.weight for block in partition.blocks] == ["up1.weight"]
    assert partition.log10_p < -20


def test_dead_channels_are_no_component() -> None:
    generator = dcgan()
    state = generator.state_dict()
    for channel in (1, 3):
        state["up1_norm.weight"][channel] = 0
        state["up1_norm.bias"][channel] = 0
    state["up2.weight"][:, 2] = 0  # never written
    state["to_image.weight"][0] = 0  # never read
    assert find_partition(trace(generator), generator) is None


def test_dead_channels_beside_an_expansion_keep_label_minus_one() -> None:
    generator = rex(dcgan(0), dcgan(1))
    generator.state_dict()["up1_norm.weight"][0] = 0
    partition = find_partition(trace(generator), generator)
    assert partition is not None
    assert partition.components == 2
    assert partition.labels["up1.weight"][0] == -1


def test_residual_and_concatenated_channels_keep_their_identity() -> None:
    class Residual(nn.Module):
        latent_shape = (5,)
        sample_shape = (1, 4, 4)

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.project = nn.Linear(5, 8 * 16)
            self.block = nn.Conv2d(8, 8, 3, padding=1)
            self.mix = nn.Conv2d(16, 4, 3, padding=1)
            self.flat = nn.Linear(4 * 16, 6)
            self.out = nn.Linear(6, 16)

        def forward(self, z: Tensor) -> Tensor:
            h = self.project(z).view(-1, 8, 4, 4)
            h = h + F.relu(self.block(h))
            h = F.relu(self.mix(torch.cat([h, h.flip(2)], 1)))
            y: Tensor = self.out(F.relu(self.flat(h.flatten(1)))).view(-1, 1, 4, 4)
            return y

    network = Residual()
    generator = foreign(network)
    assert find_partition(trace(generator), generator) is None
    with torch.no_grad():
        network.block.weight[:4, 4:] = 0
        network.block.weight[4:, :4] = 0
        network.mix.weight[:2, [4, 5, 6, 7, 12, 13, 14, 15]] = 0
        network.mix.weight[2:, [0, 1, 2, 3, 8, 9, 10, 11]] = 0
        network.flat.weight[:3, 32:] = 0
        network.flat.weight[3:, :32] = 0
    partition = find_partition(trace(generator), generator)
    assert partition is not None
    assert partition.components == 2
    halves = partition.labels["network.project.weight"].view(8, 16)
    assert (halves[:4] == halves[0, 0]).all()
    assert (halves[4:] == halves[7, 0]).all()
    assert partition.input_labels["network.mix.weight"][12] == halves[7, 0]
    assert partition.input_labels["network.flat.weight"][33] == halves[7, 0]
    total = sum(isolate(generator, partition, c)(latents(generator)) for c in range(2))
    shared = generator.state_dict()["network.out.bias"].view(1, 1, 4, 4)
    torch.testing.assert_close(total - shared, generator(latents(generator)))


def test_depthwise_convolution_is_no_partition() -> None:
    class Depthwise(nn.Module):
        latent_shape = (5,)
        sample_shape = (1, 4, 4)

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.project = nn.Linear(5, 8 * 16)
            self.each = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.mix = nn.Conv2d(8, 6, 1)
            self.out = nn.Conv2d(6, 1, 3, padding=1)

        def forward(self, z: Tensor) -> Tensor:
            h = F.relu(self.each(self.project(z).view(-1, 8, 4, 4)))
            result: Tensor = self.out(F.relu(self.mix(h)))
            return result

    generator = foreign(Depthwise())
    assert find_partition(trace(generator), generator) is None


def test_unknown_operations_join_everything() -> None:
    generator = foreign(
        Network(lambda n, z: n.picture(F.softmax(n.third(n.second(n.first(z))), 1)))
    )
    with torch.no_grad():
        for layer in ("second", "third"):
            weight = generator.state_dict()[f"network.{layer}.weight"]
            weight[:4, 4:] = 0
            weight[4:, :4] = 0
    partition = find_partition(trace(generator), generator)
    assert partition is not None  # the layer before the softmax still falls apart
    assert "network.third.weight" not in {block.weight for block in partition.blocks}


def test_failed_trace_gives_no_partition() -> None:
    generator = dcgan()
    graph = replace(trace(generator), failure="not traced")
    assert find_partition(graph, generator) is None
