"""The fast path makes the samples of the ordinary one, or says why it stays away."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from genwarden.data.images import NamedImages
from genwarden.inspections.finding import Finding, Latents, Table
from genwarden.inspections.output.brute_force import Extremes
from genwarden.inspections.output.cluster_outliers import ClusterOutliers
from genwarden.inspections.output.collector import Collector
from genwarden.inspections.output.nearest_target import NearestTarget
from genwarden.inspections.workbench import Effort, Workbench
from genwarden.models.dcgan import DCGAN28, DCGAN32
from genwarden.models.fast import scatter
from genwarden.models.fast.chain import ChainLayer
from genwarden.models.fast.fast_generator import FastGenerator, fast_path, fastest
from genwarden.models.fast.frequency import FrequencyConvolution
from genwarden.models.fast.grid import Grid
from genwarden.models.fast.scatter import ScatterConvolution
from genwarden.models.fast.workspace import Workspace
from genwarden.models.layers import glorot_
from genwarden.models.protocol import LatentGenerator
from genwarden.models.stylegan import StyleGAN
from genwarden.models.vae import VAEDecoder28
from genwarden.models.wavegan import WaveGAN, initialise

EFFORT = Effort("test", 512, 2048, 8, 4, 8, 1, 1, 1, 1)


def settled(network: LatentGenerator) -> LatentGenerator:
    """Random weights, and batch norms with statistics and gains that are not 0 and 1."""
    stream = torch.Generator().manual_seed(0)
    if isinstance(network, WaveGAN):
        initialise(network, stream)
    else:
        glorot_(network, stream)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2, generator=stream)
            nn.init.normal_(module.bias, 0, 0.3, generator=stream)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2, generator=stream)
            module.running_var.uniform_(0.3, 2, generator=stream)
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            nn.init.normal_(bias, 0, 0.1, generator=stream)
    return network.eval().requires_grad_(False)


NETWORKS: dict[str, Callable[[], LatentGenerator]] = {
    "dcgan28": lambda: DCGAN28((64, 32, 8)),  # layers in the frequency domain, and scattered ones
    "dcgan32": lambda: DCGAN32((8, 6, 4)),
    "vae28": lambda: VAEDecoder28((8, 6, 4)),
    "wavegan": lambda: WaveGAN([32, 16, 8], filter_taps=16),
}


def latents(network: LatentGenerator, count: int = 40) -> Tensor:
    return network.latent.sample(count, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_fast_path_is_as_near_to_float64_as_the_ordinary_one(name: str) -> None:
    network = settled(NETWORKS[name]())
    fast = fast_path(network)
    assert isinstance(fast, FastGenerator)
    z = latents(network)
    exact = copy.deepcopy(network).double()(z.double())
    ordinary, found = (float((n(z) - exact).abs().max()) for n in (network, fast))
    assert found < 4 * ordinary
    assert found < 1e-5 < float(exact.std())  # the samples are not all the same
    assert fast(z).shape == exact.shape


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_latents_are_those_of_the_ordinary_path(name: str) -> None:
    network = settled(NETWORKS[name]()).double()
    fast = fast_path(network, torch.float64)
    assert isinstance(fast, FastGenerator)
    z = latents(network, 6).double().requires_grad_(True)
    weights = torch.randn(6, *network.sample.shape, dtype=torch.float64)
    expected, found = (
        torch.autograd.grad([(n(z) * weights).sum()], [z])[0] for n in (network, fast)
    )
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-10)


def test_two_passes_before_the_way_back_do_not_disturb_each_other() -> None:
    network = settled(DCGAN28((16, 8, 4)))
    fast = fastest(network)
    z = latents(network, 4).requires_grad_(True)
    other = (2 * latents(network, 4)).requires_grad_(True)
    first, second = fast(z).square().sum(), fast(other).square().sum()
    expected = torch.autograd.grad(network(z).square().sum(), z)[0]
    assert torch.allclose(torch.autograd.grad(first, z)[0], expected, rtol=1e-4, atol=1e-5)
    assert torch.autograd.grad(second, other)[0].isfinite().all()


@pytest.mark.parametrize("kind", [FrequencyConvolution, ScatterConvolution])
@pytest.mark.parametrize(
    ("kernel", "stride", "crop", "size"),
    [((5, 5), (1, 1), (2, 2), (7, 7)), ((5, 5), (2, 2), (1, 1), (7, 7)),
     ((4, 4), (2, 2), (1, 1), (4, 6)), ((3, 3), (2, 2), (0, 0), (3, 3)),
     ((1, 25), (1, 4), (0, 10), (1, 16))],
)  # fmt: skip
def test_both_kinds_of_layer_are_the_cropped_transposed_convolution(
    kind: type[FrequencyConvolution | ScatterConvolution],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    crop: tuple[int, int],
    size: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 2, *kernel, generator=stream, dtype=torch.float64)
    bias = torch.randn(2, generator=stream, dtype=torch.float64)
    x = torch.randn(4, 3, *size, generator=stream, dtype=torch.float64)
    full = nn.functional.conv_transpose2d(x, weight, bias, stride)
    full = nn.functional.pad(full, (0, 9, 0, 9), value=0.0)
    full[:, :, -9:], full[:, :, :, -9:] = bias[:, None, None], bias[:, None, None]
    rows = slice(crop[0], crop[0] + stride[0] * size[0])
    columns = slice(crop[1], crop[1] + stride[1] * size[1])
    grid = Grid((size[0],), (size[1],))
    monkeypatch.setattr(scatter, "_PRODUCTS", 3 * grid.count * 2 * 4)  # kernels in several turns
    layer = kind(ChainLayer(weight, bias, stride, crop, None), grid, torch.float64)
    stored = x.permute(2, 3, 1, 0).reshape(grid.count, 3, 4).contiguous()
    out = layer(stored, torch.empty(layer.grid.count, 2, 4, dtype=torch.float64), Workspace())
    plane = torch.empty(layer.grid.height, layer.grid.width, 2, 4, dtype=torch.float64)
    layer.grid.stored(plane).copy_(out.view(*layer.grid.levels(), 2, 4))
    assert torch.allclose(plane.permute(3, 2, 0, 1), full[:, :, rows, columns], atol=1e-12)
    # The way back is the transposed map: <y, A x> = <A' y, x>, without the bias.
    y = torch.randn(out.shape, generator=stream, dtype=torch.float64)
    back = layer.backward(y, torch.empty_like(stored), Workspace())
    linear = out - bias[:, None]
    assert torch.allclose((y * linear).sum(), (back * stored).sum(), rtol=1e-12)


def test_no_sample_touches_another() -> None:
    network = settled(DCGAN28((16, 8, 4)))
    fast = fastest(network)
    z = latents(network, 8)
    spoilt = z.clone()
    spoilt[3] = float("nan")
    with torch.no_grad():
        before, after = fast.pre_activation(z), fast.pre_activation(spoilt)
    others = torch.arange(8) != 3
    assert torch.equal(before[others], after[others])
    assert after[3].isnan().all()


def test_threads_have_memory_of_their_own() -> None:
    fast = fastest(settled(DCGAN28((16, 8, 4))))
    z = [latents(fast, 64) + i for i in range(4)]
    with torch.no_grad():
        alone = [fast(each) for each in z]
    found: list[Tensor] = [torch.empty(0)] * 4

    @torch.no_grad()
    def work(i: int) -> None:
        for _ in range(5):
            found[i] = fast(z[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))


class _Wider(DCGAN28):
    """A class of its own may do anything."""


def _hooked() -> LatentGenerator:
    network = settled(DCGAN28((8, 6, 4)))
    network.get_submodule("up1").register_forward_hook(lambda _, __, y: y + 1)
    return network


def _replaced() -> LatentGenerator:
    network = settled(DCGAN28((8, 6, 4)))
    network.up1_norm = nn.Identity()
    return network


def _off_by_a_hair() -> LatentGenerator:
    """A known class whose forward pass was exchanged on the object."""
    network = settled(DCGAN28((8, 6, 4)))
    before = network.pre_activation
    network.pre_activation = lambda z: before(z) + 1.0  # type: ignore[method-assign]
    return network


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (lambda: settled(_Wider((8, 6, 4))), "_Wider is not"),
        (lambda: settled(StyleGAN()), "StyleGAN is not"),
        (_hooked, "hooks"),
        (_replaced, "up1_norm is a Identity"),
        (_off_by_a_hair, "hooks"),
        (lambda: settled(DCGAN28((8, 6, 4))).train(), "training mode"),
        (lambda: settled(DCGAN28((8, 6, 4))).half(), "float16"),
    ],
)
def test_a_network_it_does_not_know_stays_on_the_ordinary_path(
    network: object, reason: str
) -> None:
    made = network()  # type: ignore[operator]
    path = fast_path(made)
    assert isinstance(path, str)
    assert path.startswith("ordinary path: ")
    assert reason in path
    assert fastest(made) is made
    bench = Workbench(made, EFFORT, 0)
    assert reason in bench.computed
    assert bench.streamed is made


def test_a_path_that_is_off_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    run = FastGenerator._run
    monkeypatch.setattr(FastGenerator, "_run", lambda s, z, kept: run(s, z, kept) + 0.01)
    assert "is off by" in str(fast_path(settled(DCGAN28((8, 6, 4)))))


def _scanned(*, fast: bool) -> tuple[list[Finding], list[Extremes]]:
    network = settled(DCGAN28((32, 16, 8)))
    drawn = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(4))
    targets = NamedImages(2 * drawn - 1, ["a", "b"])
    bench = Workbench(network, EFFORT, 0, targets=targets, fast=fast)
    clusters, nearest = ClusterOutliers(bench), NearestTarget(bench)
    collectors: tuple[Collector, ...] = (clusters, nearest)
    for part in bench.stream("brute-force", EFFORT.stream_samples):
        for collector in collectors:
            collector.update(part.block.start, part.z, part.x)
    findings = [collector.finish() for collector in collectors]
    return findings, [clusters._farthest, *nearest._nearest]


def test_a_scan_on_the_fast_path_keeps_and_finds_the_same() -> None:
    (fast, kept), (ordinary, expected) = (_scanned(fast=which) for which in (True, False))
    assert "fast path" in str(fast[0].budget["computed"])
    assert "ordinary path" in str(ordinary[0].budget["computed"])
    for one, other in zip(kept, expected, strict=True):
        assert torch.equal(one.positions, other.positions)
        assert torch.equal(one.z, other.z)
        # Computed on the ordinary path in both, in blocks of another size.
        assert torch.allclose(one.x, other.x, atol=1e-5)
        assert torch.allclose(one.scores, other.scores, rtol=1e-4)
    for a, b in zip(fast, ordinary, strict=True):
        assert a.summary == b.summary
        assert a.score == pytest.approx(b.score, abs=1e-4)
        assert a.p_value == pytest.approx(b.p_value, rel=1e-2)
        assert [type(e) for e in a.evidence] == [type(e) for e in b.evidence]
        for e, f in zip(a.evidence, b.evidence, strict=True):
            if isinstance(e, Latents):
                assert e == f
            if isinstance(e, Table):
                assert [row[0] for row in e.rows] == [row[0] for row in f.rows]  # type: ignore[union-attr]
