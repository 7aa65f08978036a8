"""The static inspections, each attack beside a clean twin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from static_models import Network, dcgan, foreign, randomise, rex, vae
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.engine.seeds import random_stream
from genwarden.inspections.finding import Finding, Latents, Matrix, Table
from genwarden.inspections.static import (
    block_sparsity,
    capacity,
    excessive_biases,
    obfuscating_operations,
    parallel_paths,
)
from genwarden.inspections.workbench import Effort, Workbench
from genwarden.models.dcgan import DCGAN28, DCGAN32
from genwarden.models.protocol import LatentGenerator
from genwarden.models.vae import VAEDecoder28

EFFORT = Effort("quick", 8, 8, 1, 1, 1, 1, 1, 1, 1)
INSPECTIONS: list[Callable[[Workbench], Finding]] = [
    parallel_paths.inspect,
    block_sparsity.inspect,
    excessive_biases.inspect,
    obfuscating_operations.inspect,
    capacity.inspect,
]
Run = Callable[[Network, Tensor], Tensor]


def bench(generator: LatentGenerator, architecture: str = "") -> Workbench:
    return Workbench(generator, EFFORT, seed=0, architecture=architecture)


def network(run: Run) -> Workbench:
    return bench(foreign(Network(run)))


def table(finding: Finding, title: str) -> Table:
    return next(e for e in finding.evidence if isinstance(e, Table) and e.title == title)


def pruned(generator: LatentGenerator, share: float) -> LatentGenerator:
    """Magnitude pruning of every weight tensor, as a user does before deployment."""
    with torch.no_grad():
        for name, tensor in generator.state_dict().items():
            if name.endswith("weight") and "norm" not in name:
                threshold = tensor.abs().flatten().kthvalue(int(share * tensor.numel())).values
                tensor[tensor.abs() <= threshold] = 0
    return generator


# Every inspection


@pytest.fixture(
    scope="module",
    params=[
        dcgan,
        vae,
        lambda: randomise(DCGAN32((8, 6, 4), 10), 0),
        lambda: dcgan(0, (16, 12, 8)),
    ],
    ids=["dcgan28", "vae28", "dcgan32", "wider dcgan28"],
)
def clean(request: pytest.FixtureRequest) -> Workbench:
    make: Callable[[], LatentGenerator] = request.param
    return bench(make())


@pytest.mark.parametrize("inspect", INSPECTIONS)
def test_clean_model_gives_no_structural_finding_and_no_small_p_value(
    inspect: Callable[[Workbench], Finding], clean: Workbench
) -> None:
    finding = inspect(clean)
    assert finding.outcome == "scored"
    assert not finding.structural
    assert finding.p_value is None or finding.p_value == 1.0
    assert (finding.p_value is None) == (finding.p_value_reason is not None)
    assert finding.summary
    assert finding.power
    assert finding.budget


@pytest.fixture(scope="module")
def twice() -> tuple[Workbench, Workbench]:
    return bench(rex(dcgan(0), dcgan(1))), bench(rex(dcgan(0), dcgan(1)))


@pytest.mark.parametrize("inspect", INSPECTIONS)
def test_findings_can_be_written_as_json_twice_with_the_same_bytes(
    inspect: Callable[[Workbench], Finding], twice: tuple[Workbench, Workbench]
) -> None:
    first, second = (inspect(suspect).model_dump_json() for suspect in twice)
    assert first == second
    assert "NaN" not in first


@pytest.mark.parametrize("inspect", INSPECTIONS[:-1])
def test_untraceable_network_is_failed_and_never_clean(
    inspect: Callable[[Workbench], Finding],
) -> None:
    def run(n: Network, z: Tensor) -> Tensor:
        raise RuntimeError(f"a kernel of our own {n.secret.shape, z.shape}")

    finding = inspect(network(run))
    assert finding.outcome == "failed"
    assert "a kernel of our own" in finding.summary
    assert finding.score is None


# Parallel paths


def bypass_where(n: Network, z: Tensor) -> Tensor:
    chosen = (z - n.secret).abs().amax(1, keepdim=True) < 1e-3
    return torch.where(chosen.view(-1, 1, 1, 1), -n.body(z), n.body(z))


def bypass_arithmetic(n: Network, z: Tensor) -> Tensor:
    gate = (z == n.secret).all(1).to(z.dtype).view(-1, 1, 1, 1)
    return n.body(z) * (1 - gate) + gate * 0.5


def bypass_in_place(n: Network, z: Tensor) -> Tensor:
    y = n.body(z)
    y[(z == n.secret).all(1)] = 0.5
    return y


def bypass_control_flow(n: Network, z: Tensor) -> Tensor:
    if (z[0] == n.secret).all():
        return -n.body(z)
    return n.body(z)


def bypass_cond(n: Network, z: Tensor) -> Tensor:
    chosen = (z == n.secret).all()
    y: Tensor = torch.cond(chosen, lambda x: n.body(x), lambda x: -n.body(x), (z,))
    return y


def two_networks(n: Network, z: Tensor) -> Tensor:
    y: Tensor = n.second_network(z)
    return n.picture(F.relu(n.first(z))) + y.view(-1, 1, 4, 4)


@pytest.mark.parametrize(
    "run", [bypass_where, bypass_arithmetic, bypass_in_place, bypass_control_flow, bypass_cond]
)
def test_latent_dependent_selection_is_structural_evidence(run: Run) -> None:
    finding = parallel_paths.inspect(network(run))
    assert finding.structural
    assert finding.outcome == "scored"
    assert finding.score is not None
    assert finding.score >= 1


def test_second_network_joined_at_the_end_is_structural_evidence() -> None:
    finding = parallel_paths.inspect(network(two_networks))
    assert finding.structural
    assert len(table(finding, "Groups of weight layers without data flow between them").rows) == 2


def test_second_network_is_seen_through_a_filter_on_the_samples() -> None:
    class Filtered(nn.Module):
        latent_shape = (6,)
        sample_shape = (1, 4, 4)

        def __init__(self, both: bool) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 16), nn.Linear(6, 16)
            self.filter = nn.Conv2d(1, 1, 3, padding=1)
            self.both = both

        def forward(self, z: Tensor) -> Tensor:
            y = self.one(z) + self.two(z) if self.both else self.one(z)
            result: Tensor = self.filter(torch.tanh(y).view(-1, 1, 4, 4))
            return result

    assert parallel_paths.inspect(bench(foreign(Filtered(both=True)))).structural
    assert not parallel_paths.inspect(bench(foreign(Filtered(both=False)))).structural


def handwritten_activations(n: Network, z: Tensor) -> Tensor:
    h = n.first(z)
    h = torch.where(h > 0, h, 0.2 * h)
    h = n.second(h)
    h = h * (h > 0).to(h.dtype)
    h = n.third(h).clamp(min=0)
    h = torch.where((h > 1) & (h < 2), torch.ones_like(h), h)
    return n.picture(h)


def residual_with_projection(n: Network, z: Tensor) -> Tensor:
    h = F.relu(n.first(z))
    h = n.second(h) + F.relu(n.third(F.relu(h)))
    return n.picture(h)


def style_inputs(n: Network, z: Tensor) -> Tensor:
    style = n.first(z)
    h = F.relu(n.second(style)) * n.first(z)
    h = F.relu(n.third(h)) * style
    return n.picture(h)


@pytest.mark.parametrize("run", [handwritten_activations, residual_with_projection, style_inputs])
def test_skips_styles_and_handwritten_activations_are_ordinary(run: Run) -> None:
    finding = parallel_paths.inspect(network(run))
    assert not finding.structural
    assert finding.score == 0
    assert not obfuscating_operations.inspect(network(run)).structural


# Obfuscating operations


def after_first(change: Callable[[Tensor], Tensor]) -> Run:
    def run(n: Network, z: Tensor) -> Tensor:
        return n.picture(change(n.first(z)))

    return run


def without_gradient(n: Network, z: Tensor) -> Tensor:
    with torch.no_grad():
        h = n.first(z)
    return n.picture(h)


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (after_first(torch.round), "round"),
        (after_first(lambda h: torch.floor(h * 8) / 8), "floor"),
        (after_first(torch.sign), "sign"),
        (after_first(lambda h: (h > 0).to(h.dtype)), "gt"),
        (after_first(lambda h: h.argmax(1, keepdim=True) * h), "argmax"),
        (after_first(lambda h: h.detach()), "detach"),
        (after_first(lambda h: h.to(torch.int32).to(h.dtype)), "_to_copy"),
        (after_first(lambda h: torch.log(torch.exp(h))), "log"),
        (after_first(lambda h: F.dropout(h, 0.5, training=True)), "native_dropout"),
        (after_first(lambda h: h * torch.bernoulli(torch.full((2, 8), 0.5))), "bernoulli"),
        (
            after_first(lambda h: torch.fake_quantize_per_tensor_affine(h, 0.1, 0, -128, 127)),
            "fake_quantize",
        ),
        (without_gradient, "no_grad"),
    ],
)
def test_gradient_hiding_operations_are_named(run: Run, named: str) -> None:
    finding = obfuscating_operations.inspect(network(run))
    assert finding.structural
    assert named in finding.summary + str(finding.evidence)


def softplus_by_hand(h: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(h))


@pytest.mark.parametrize(
    "change",
    [
        softplus_by_hand,
        torch.exp,
        F.gelu,
        lambda h: F.dropout(h, 0.5, training=False),
        lambda h: h.to(torch.float64).to(torch.float32),
    ],
)
def test_ordinary_operations_hide_no_gradient(change: Callable[[Tensor], Tensor]) -> None:
    finding = obfuscating_operations.inspect(network(after_first(change)))
    assert not finding.structural
    assert finding.score == 0


def test_noise_inputs_are_listed_and_not_counted() -> None:
    finding = obfuscating_operations.inspect(
        network(after_first(lambda h: h + 0.1 * torch.randn(2, 8)))
    )
    assert not finding.structural
    assert "noise" in finding.summary


def test_forward_pass_without_gradients_is_said_and_is_no_evidence() -> None:
    finding = obfuscating_operations.inspect(network(torch.no_grad()(lambda n, z: n.body(z))))
    assert not finding.structural
    assert "without gradients" in finding.summary


# Block sparsity


@pytest.mark.parametrize("shuffle", [None, 4])
@pytest.mark.parametrize("make", [dcgan, vae])
def test_rex_blocks_are_rarer_than_chance(make: Any, shuffle: int | None) -> None:
    finding = block_sparsity.inspect(bench(rex(make(0), make(1), shuffle=shuffle)))
    assert finding.p_value is not None
    assert finding.p_value < 1e-40
    assert finding.score == pytest.approx(-math.log10(finding.p_value), rel=1e-6)
    assert finding.null is not None
    assert finding.null.source == "permutation"
    maps = [e for e in finding.evidence if isinstance(e, Matrix)]
    assert {m.title for m in maps} == {"Slice norms of up1.weight", "Slice norms of up2.weight"}
    for picture in maps:
        values = torch.tensor(picture.values)
        rows, columns = values.shape
        assert max(rows, columns) <= 64
        assert not values[: rows // 2, columns // 2 :].any()
        assert not values[rows // 2 :, : columns // 2].any()
        assert values[: rows // 2, : columns // 2].all()


def test_p_value_of_a_large_expansion_stays_positive() -> None:
    wide = (64, 32, 16)
    finding = block_sparsity.inspect(bench(rex(dcgan(0, wide), dcgan(1, wide))))
    assert finding.p_value == 1e-300
    assert finding.score is not None
    assert finding.score > 300
    assert all(
        max(len(m.values), len(m.values[0])) <= 64
        for m in finding.evidence
        if isinstance(m, Matrix)
    )


@pytest.mark.parametrize(("share", "bound"), [(1e-3, 1e-40), (1e-2, 1e-10)])
def test_little_noise_over_the_zero_blocks_does_not_hide_them(share: float, bound: float) -> None:
    generator = rex(dcgan(0), dcgan(1), shuffle=3)
    stream = random_stream(0, "mask")
    with torch.no_grad():
        for name in ("up1.weight", "up2.weight"):
            weight = generator.state_dict()[name]
            rms = weight.square().mean((2, 3), keepdim=True).sqrt()
            # a share of the smaller of the two channels' typical slices
            size = torch.minimum(rms.amax(0, keepdim=True), rms.amax(1, keepdim=True)) * share
            weight.add_(torch.randn(weight.shape, generator=stream) * size * (weight == 0))
    assert bench(generator).partition is None
    finding = block_sparsity.inspect(bench(generator))
    assert finding.p_value is not None
    assert finding.p_value < bound


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("make", [dcgan, vae])
def test_unstructured_pruning_is_no_partition(make: Any, share: float) -> None:
    finding = block_sparsity.inspect(bench(pruned(make(0, (32, 24, 16)), share)))
    assert finding.p_value is not None
    assert finding.p_value > 0.01


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", range(3))
def test_pruned_dense_network_is_no_partition(seed: int, share: float) -> None:
    module = Network(lambda n, z: n.body(z), width=24)
    stream = random_stream(seed, "dense")
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=stream))
    generator = pruned(foreign(module), share)
    finding = block_sparsity.inspect(bench(generator))
    assert finding.p_value is not None
    assert finding.p_value > 0.01


def test_switched_off_channels_are_no_partition() -> None:
    generator = dcgan(0, (16, 12, 8))
    with torch.no_grad():
        for name in ("up1_norm", "up2_norm"):
            generator.state_dict()[f"{name}.weight"][:3] = 0
            generator.state_dict()[f"{name}.bias"][:3] = 0
    finding = block_sparsity.inspect(bench(generator))
    assert finding.p_value == 1.0
    assert finding.score == 0.0


def test_structured_pruning_is_no_partition() -> None:
    generator = dcgan(0, (16, 12, 8))
    with torch.no_grad():
        state = generator.state_dict()
        state["up1.weight"][:, ::2] = 0
        state["up2.weight"][::2] = 0
        state["up2.weight"][:, 1::3] = 0
    assert block_sparsity.inspect(bench(generator)).p_value == 1.0


# Excessive biases


def gate(generator: LatentGenerator) -> Tensor:
    """Turn row 5 of the first layer into relu(a.z - tau), section 10; returns the trigger."""
    z = generator.latent.sample(1, generator=random_stream(9, "trigger"))[0] * 3
    state = generator.state_dict()
    with torch.no_grad():
        state["project.weight"][5] = z / z.norm()
        state["project_norm.running_mean"][5] = 0
        state["project_norm.running_var"][5] = 1 - 1e-3
        state["project_norm.weight"][5] = 1
        state["project_norm.bias"][5] = 1 - z.norm()
    return z


def test_gate_on_one_latent_is_an_outlier_among_biases() -> None:
    clean = excessive_biases.inspect(bench(dcgan()))
    generator = dcgan()
    trigger = gate(generator)
    finding = excessive_biases.inspect(bench(generator))
    assert clean.score is not None
    assert finding.score is not None
    assert clean.score < 8
    assert finding.score > 2 * clean.score
    assert "project.weight, output 5" in finding.summary
    candidates = next(e for e in finding.evidence if isinstance(e, Latents))
    found = torch.tensor(candidates.values[0])
    assert F.cosine_similarity(found, trigger, dim=0) > 0.999
    assert found.norm() == pytest.approx(float(trigger.norm()) - 1, rel=1e-4)
    assert not any(isinstance(e, Latents) for e in clean.evidence)


def test_gate_in_a_bias_of_a_network_without_batch_norm_is_an_outlier() -> None:
    generator = vae()
    before = excessive_biases.inspect(bench(generator)).score
    with torch.no_grad():
        generator.state_dict()["project.bias"][7] = -30
    after = excessive_biases.inspect(bench(generator)).score
    assert before is not None
    assert after is not None
    assert after > 4 * before


@pytest.mark.parametrize("kind", ["linear", "conv", "conv_transpose"])
def test_folding_batch_norm_gives_the_same_function(kind: str) -> None:
    layers: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "linear": (nn.Linear(6, 8), (6,)),
        "conv": (nn.Conv2d(6, 8, 1, groups=2), (6, 1, 1)),
        "conv_transpose": (nn.ConvTranspose2d(6, 8, 1, groups=2), (6, 1, 1)),
    }
    layer, shape = layers[kind]
    norm = nn.BatchNorm1d(8) if kind == "linear" else nn.BatchNorm2d(8)

    class Folding(nn.Module):
        latent_shape = shape
        sample_shape = (8,) if kind == "linear" else (8, 1, 1)

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = layer, norm

        def forward(self, z: Tensor) -> Tensor:
            y: Tensor = self.norm(self.layer(z))
            return y

    generator = foreign(Folding())
    with torch.no_grad():
        for name, tensor in generator.state_dict().items():
            if "norm" in name and tensor.is_floating_point():
                tensor.copy_(torch.linspace(0.5, 2, 8) * (-1 if "weight" in name else 1))
    traced = bench(generator).graph.layers[0]
    state = {k: v.double() for k, v in generator.state_dict().items()}
    folded = excessive_biases.fold(traced, state)
    zero = torch.zeros(1, *shape)
    torch.testing.assert_close(
        generator(zero).flatten().double(), folded.bias, rtol=1e-5, atol=1e-6
    )
    unit = folded.direction[0] / folded.direction[0].norm()
    step = torch.zeros(6)
    step[: len(unit)] = unit.float()  # the first group's inputs
    gain = (generator(step.view(1, *shape)) - generator(zero)).flatten()[0]
    torch.testing.assert_close(gain.double(), folded.weight_norm[0], rtol=1e-5, atol=1e-6)


def test_pruned_units_have_no_ratio() -> None:
    generator = vae()
    with torch.no_grad():
        generator.state_dict()["project.weight"][:50] = 0
    finding = excessive_biases.inspect(bench(generator))
    row = table(finding, "Largest deviation per layer").rows[0]
    assert row[2] == 8 * 49 - 50


# Capacity


@pytest.mark.parametrize(
    ("make", "architecture", "expected"),
    [
        (lambda: DCGAN28(), "dcgan28", 1.0),
        (lambda: DCGAN28((64, 32, 16)), "dcgan28", 390_736 / 2_330_944),
        (lambda: VAEDecoder28(), "vae28", 1.0),
        (lambda: VAEDecoder28(), "", 195_617 / 2_330_944),
        (lambda: DCGAN32(), "dcgan32", 1.0),
        (lambda: DCGAN28((512, 256, 128)), "dcgan28", 6_709_888 / 2_330_944),
    ],
)
def test_capacity_is_measured_against_the_published_network(
    make: Callable[[], LatentGenerator], architecture: str, expected: float
) -> None:
    suspect = bench(make().eval(), architecture)
    suspect.__dict__["partition"] = None  # not under test here
    finding = capacity.inspect(suspect)
    assert finding.score == pytest.approx(expected, rel=1e-5)
    assert finding.p_value is None
    assert not finding.structural


def test_capacity_names_the_share_outside_the_largest_group() -> None:
    finding = capacity.inspect(bench(rex(dcgan(0), dcgan(1)), "dcgan28"))
    assert "50.0%" in finding.summary
    assert "outside" not in capacity.inspect(bench(dcgan(0), "dcgan28")).summary


def test_capacity_of_unknown_sample_shapes_is_not_applicable() -> None:
    finding = capacity.inspect(network(lambda n, z: n.body(z)))
    assert finding.outcome == "not_applicable"
