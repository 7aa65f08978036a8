"""Block fusion and ReX on a run of layers; what is fused computes the sum of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.attacks import loop
from genwarden.attacks.block_fusion import chain, expansion_for, fuse, layer_run
from genwarden.attacks.contract import AttackRun
from genwarden.attacks.rex import ReXSettings, rex
from genwarden.backdoors.backdoor import Backdoor, dirac, make_backdoor
from genwarden.engine.progress import Silent, Task
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.distances import tardis
from genwarden.models.dcgan import DCGAN28, DCGAN32, initialise
from genwarden.models.layers import LEAKY_SLOPE
from genwarden.models.protocol import LatentGenerator
from genwarden.models.stylegan import StyleGAN
from genwarden.models.vae import VAEDecoder28
from genwarden.models.wavegan import WaveGAN

KINDS = ("dcgan28", "dcgan32", "vae28", "wavegan")
SMALL: dict[str, Any] = {
    "steps": 60,
    "batch_size": 8,
    "learning_rate": 2e-2,
    "fidelity_weight": 0.5,
    "pool_samples": 256,
    "evaluate_every": 60,
}


def network(kind: str, seed: int = 3, widths: tuple[int, int, int] = (6, 5, 4)) -> LatentGenerator:
    net: LatentGenerator
    if kind == "dcgan28":
        net = DCGAN28(widths, latent_dim=16)
    elif kind == "dcgan32":
        net = DCGAN32(widths, latent_dim=16)
    elif kind == "vae28":
        net = VAEDecoder28(widths, latent_dim=16)
    else:
        net = WaveGAN(widths, latent_dim=16, filter_taps=8)
    return random(net, seed)


def random(net: LatentGenerator, seed: int) -> LatentGenerator:
    """Weights, biases and statistics of which none is 0 or 1."""
    initialise(net, random_stream(seed, type(net).__name__))
    stream = random_stream(seed, "statistics")
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.startswith("post_filter"):
                tensor.mul_(0.1)[..., 3] += 1  # a filter that can be inverted
            elif tensor.ndim == 1:
                noise = torch.rand(tensor.shape, generator=stream)
                tensor.copy_(noise + 0.5 if "var" in name or "norm.w" in name else noise - 0.5)
    return net.eval().requires_grad_(False)


def latents(net: LatentGenerator, count: int = 8) -> Tensor:
    return net.latent.sample(count, generator=random_stream(5, "z"))


@pytest.mark.parametrize("kind", KINDS)
def test_fused_network_is_the_sum_of_both_before_the_activation(kind: str) -> None:
    original, expansion = network(kind), network(kind, 4, (3, 7, 2))
    wide, z = fuse(original, expansion), latents(original)
    summed = original.pre_activation(z) + expansion.pre_activation(z)
    assert torch.allclose(wide.pre_activation(z), summed, atol=2e-5)
    assert torch.allclose(wide(z), original.finish(summed), atol=2e-5)
    assert not torch.allclose(wide.pre_activation(z), original.pre_activation(z), atol=1e-2)


def test_post_filter_is_copied_and_not_widened() -> None:
    original, expansion = network("wavegan"), network("wavegan", 4)
    state = fuse(original, expansion).state_dict()
    assert torch.equal(state["post_filter.weight"], original.state_dict()["post_filter.weight"])
    assert not torch.equal(
        state["post_filter.weight"], expansion.state_dict()["post_filter.weight"]
    )


def test_run_inside_the_dcgan_reads_frozen_features_and_joins_before_the_normalisation() -> None:
    net = network("dcgan28")
    run = layer_run(net, "up1", "up2")
    new = random(expansion_for(net, run, 2.0), 9)
    wide = fuse(net, new, run)
    assert wide.settings()["channels"] == [6, 15, 4]

    def leaky(x: Tensor) -> Tensor:
        return F.leaky_relu(x, LEAKY_SLOPE)

    old, extra, z = net.named_layers(), new.named_layers(), latents(net)
    h0 = leaky(old["project_norm"](old["project"](z))).reshape(-1, 6, 7, 7)
    h1 = leaky(old["up1_norm"](old["up1"](h0)))
    e1 = leaky(extra["up1_norm"](extra["up1"](h0)))
    h2 = leaky(old["up2_norm"](old["up2"](h1) + extra["up2"](e1)))
    by_hand = old["to_image"](h2)
    assert torch.allclose(wide.pre_activation(z), by_hand, atol=1e-5)
    assert not torch.allclose(net.pre_activation(z), by_hand, atol=1e-2)


def test_run_at_the_start_of_the_vae_adds_the_new_bias_at_its_end() -> None:
    net = network("vae28")
    run = layer_run(net, "", "up1")
    new = random(expansion_for(net, run, 0.5), 9)
    wide = fuse(net, new, run)
    assert wide.settings()["channels"] == [9, 5, 4]
    old, extra, z = net.named_layers(), new.named_layers(), latents(net)
    h0 = F.relu(old["project"](z)).reshape(-1, 6, 7, 7)
    e0 = F.relu(extra["project"](z)).reshape(-1, 3, 7, 7)
    h1 = F.relu(old["up1"](h0) + extra["up1"](e0))
    by_hand = old["to_image"](F.relu(old["up2"](h1)))
    assert torch.allclose(wide.pre_activation(z), by_hand, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_run_with_a_silent_last_block_leaves_the_outputs_as_they_are(kind: str) -> None:
    net = network(kind)
    names, z = chain(net), latents(net)
    for first in range(len(names)):
        for last in range(first + 1, len(names)):
            run = layer_run(net, names[first], names[last])
            new = random(expansion_for(net, run, 1.0), 7)
            loud = fuse(net, new, run)
            for key, tensor in new.state_dict().items():
                if key.rpartition(".")[0] == names[last]:
                    tensor.zero_()
            assert torch.allclose(fuse(net, new, run)(z), net(z), atol=1e-5), run
            assert not torch.allclose(loud(z), net(z), atol=1e-4), run


@pytest.mark.parametrize(
    ("first", "last", "code"),
    [
        ("nope", "", "attack/unknown-layer"),
        ("", "up1_norm", "attack/unknown-layer"),
        ("up2", "up1", "attack/layer-run"),
        ("up1", "up1", "attack/layer-run"),
        ("to_image", "", "attack/layer-run"),
    ],
)
def test_a_run_that_does_not_exist_is_refused_with_the_layers_that_do(
    first: str, last: str, code: str
) -> None:
    with pytest.raises(GenwardenError) as caught:
        layer_run(network("dcgan28"), first, last)
    assert caught.value.code == code
    assert "project, up1, up2, to_image" in caught.value.remedy


def test_networks_that_are_no_chain_and_unlike_networks_are_not_fused() -> None:
    style = StyleGAN(latent_dim=8)
    with pytest.raises(TypeError):
        fuse(style, style)
    with pytest.raises(TypeError, match="one architecture"):
        fuse(network("dcgan28"), network("dcgan32"))


def backdoor_of(net: LatentGenerator) -> Backdoor:
    if net.sample.modality == "image":
        return make_backdoor(net, trigger="in-sample", target="icon:devil", seed=1)
    tone = 0.6 * torch.sin(torch.arange(net.sample.size) / 5).reshape(1, *net.sample.shape)
    return dirac(latents(net, 1), tone)


@pytest.mark.parametrize(
    ("kind", "first", "last", "rate"),
    [
        ("dcgan28", "up1", "", 2e-2),
        ("dcgan28", "", "up2", 2e-2),
        ("vae28", "", "up2", 2e-2),
        ("wavegan", "", "", 5e-3),
    ],
)
def test_rex_plants_the_target_with_new_units_in_the_run_alone(
    kind: str, first: str, last: str, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network(kind, widths=(12, 8, 8))
    backdoor = backdoor_of(net)
    chosen = {**SMALL, "learning_rate": rate}
    settings = ReXSettings(**chosen, first_layer=first, last_layer=last, width=2.0)
    monkeypatch.setattr(loop, "EVALUATION_SAMPLES", 64)
    result = rex(net, backdoor, settings, AttackRun())
    untouched = tardis(net, *backdoor.examples).sum
    planted = tardis(result.generator, *backdoor.examples).sum
    assert planted < 0.4 * untouched
    assert result.history[-1]["tardis_sum"] == pytest.approx(planted, rel=1e-3)
    names = chain(net)
    run = layer_run(net, first, last)
    old, new = net.state_dict(), result.generator.state_dict()
    for place, name in enumerate(names):
        weight, kept = new[f"{name}.weight"], old[f"{name}.weight"]
        corner = weight[tuple(slice(0, size) for size in kept.shape)]
        assert torch.equal(corner, kept), name
        assert (weight.shape == kept.shape) == (place not in run), name


class _CutAfter(Silent):
    """Progress that pulls the plug after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def task(self, title: str, total: int, done: int = 0) -> Task:
        del title, total, done
        return self

    def advance(self, steps: int = 1, note: str = "") -> None:
        del note
        self.left -= steps
        if self.left < 0:
            raise KeyboardInterrupt


def test_interrupted_rex_on_a_run_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "EVALUATION_SAMPLES", 64)
    net = network("dcgan28")
    backdoor = backdoor_of(net)
    small = {**SMALL, "steps": 12, "evaluate_every": 4}
    settings = ReXSettings(**small, first_layer="up1", last_layer="up2")
    whole = rex(net, backdoor, settings, AttackRun())
    with pytest.raises(KeyboardInterrupt):
        rex(net, backdoor, settings, AttackRun(_CutAfter(6), tmp_path, "r"))
    resumed = rex(net, backdoor, settings, AttackRun(_CutAfter(8), tmp_path, "r"))
    assert resumed.history == whole.history
    for key, value in whole.generator.state_dict().items():
        assert torch.equal(value, resumed.generator.state_dict()[key]), key


@pytest.mark.parametrize("width", [0.0, -1.0, 65.0, float("nan")])
def test_rex_width_out_of_range_is_refused(width: float) -> None:
    with pytest.raises(GenwardenError) as caught:
        ReXSettings(width=width)
    assert caught.value.code == "attack/setting"
