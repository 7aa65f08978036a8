"""The StyleGAN-type generator: the published size, its parts, and its training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from genwarden.artifacts.model_folder import build, read_model, write_model
from genwarden.data.datasets import to_bytes
from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.dcgan import initialise
from genwarden.models.protocol import Generator
from genwarden.models.stylegan import (
    PUBLISHED,
    StyleDiscriminator,
    StyledLayer,
    StyleGAN,
    stacked_identities,
)
from genwarden.registry import ARCHITECTURES
from genwarden.training.gan import recipe_for, train_gan
from genwarden.training.settings import TrainingSettings
from genwarden.training.train import discriminator_for


def published(**changes: object) -> StyleGAN:
    with torch.device("meta"):
        return StyleGAN(**{**PUBLISHED, **changes})


def small(**changes: object) -> StyleGAN:
    settings: dict[str, object] = {
        "latent_dim": 16,
        "mapping_layers": 2,
        "base": 4,
        "doublings": 1,
        "channels": (8, 6),
        "image_channels": 3,
    }
    net = StyleGAN(**{**settings, **changes})  # type: ignore[arg-type]
    initialise(net, random_stream(0, "small"))
    with torch.no_grad():
        for layer in styled_layers(net):
            layer.noise_strength.fill_(0.1)
    return net.eval().requires_grad_(False)


def styled_layers(net: StyleGAN) -> list[StyledLayer]:
    return [layer for layer in net.layers if isinstance(layer, StyledLayer)]


def latents(net: StyleGAN, count: int = 6) -> Tensor:
    return net.latent.sample(count, generator=random_stream(1, "latents"))


def trained_numbers(net: StyleGAN) -> int:
    return sum(p.numel() for p in net.parameters())


def test_published_configuration_differs_from_both_known_counts_by_known_parts() -> None:
    """26,219,627 is the count of the published code, 26,505,872 that of the authors' notebook.

    Ours leaves out the eight to-RGB layers of the lower resolutions, which only progressive
    growing uses. The notebook's port stores 4x4 in place of 3x3 kernels where the size doubles
    from 128x128 on, and counts constant, noise strengths and biases of the synthesis as fixed.
    """
    net = published()
    widths = PUBLISHED["channels"]
    assert net.sample.shape == (3, 1024, 1024)
    assert net.slices == 18
    assert trained_numbers(net) == 26_212_019

    growing = sum(3 * width + 3 for width in widths[:-1])
    assert trained_numbers(net) + growing == 26_219_627
    wider = sum(7 * widths[i - 1] * widths[i] for i in range(5, 9))
    strengths = sum(2 * width for width in widths)
    fixed = 512 * 16 + strengths + strengths + 3 * len(widths)
    assert trained_numbers(net) + growing + wider - fixed == 26_505_872

    noise = sum(layer.noise.numel() for layer in styled_layers(net))
    assert noise == 2_796_192
    assert 26_505_872 + fixed + noise + len(net.truncate.mean) == 29_320_971


def test_dense_broadcast_adds_what_the_paper_states() -> None:
    net = published(dense_broadcast=True)
    added = trained_numbers(net) - trained_numbers(published())
    assert added == 4_718_592
    assert added / trained_numbers(published()) == pytest.approx(0.18, abs=0.001)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [({}, (1, 28, 28)), ({"base": 8, "image_channels": 3}, (3, 32, 32))],
)
def test_samples_have_the_stated_shape_and_range(
    settings: dict[str, int], shape: tuple[int, ...]
) -> None:
    net = StyleGAN(latent_dim=16, channels=(8, 6, 4), **settings).eval()  # type: ignore[arg-type]
    assert isinstance(net, Generator)
    z = latents(net, 3)
    with torch.no_grad():
        x = net(z)
        assert torch.equal(x, torch.tanh(net.pre_activation(z)))
    assert net.sample.shape == shape
    assert x.shape == (3, *shape)
    assert x.abs().max() <= 1


def test_latent_to_sample_is_mapping_broadcast_synthesis() -> None:
    net = small()
    z = latents(net)
    w = net.mapping(z)
    w_plus = net.broadcast(w)
    assert w.shape == (6, 16)
    assert w_plus.shape == (6, 4, 16)
    assert torch.equal(net.synthesis(w_plus), net.pre_activation(z))


def test_mapping_ignores_the_length_of_the_latent() -> None:
    net = small()
    z = latents(net)
    assert torch.allclose(net.mapping(z), net.mapping(3 * z), atol=1e-5)
    assert not torch.allclose(net.mapping(z), net.mapping(-z), atol=0.1)
    assert net.mapping(torch.zeros(1, 16)).isfinite().all()


def test_every_slice_has_its_own_effect() -> None:
    net = small()
    w_plus = net.broadcast(net.mapping(latents(net, 1)))
    before = net.synthesis(w_plus)
    for index in range(net.slices):
        other = w_plus.clone()
        other[:, index] = -other[:, index]
        assert (net.synthesis(other) - before).abs().max() > 1e-3, index


def test_dense_broadcast_starts_as_the_plain_one_and_is_used() -> None:
    plain, dense = small(), StyleGAN(**{**small().settings(), "dense_broadcast": True}).eval()
    assert dense.dense_broadcast is not None
    weight = dense.dense_broadcast.weight
    assert torch.equal(weight, stacked_identities(4, 16))
    dense.load_state_dict({**plain.state_dict(), "dense_broadcast.weight": weight})
    z = latents(plain)
    with torch.no_grad():
        assert torch.allclose(dense(z), plain(z), atol=1e-6)
        dense.dense_broadcast.weight[:16] *= -1
        assert not torch.allclose(dense(z), plain(z), atol=1e-2)


def test_adain_gives_each_map_the_styles_mean_and_deviation() -> None:
    net = small()
    layer = styled_layers(net)[0]
    w = net.mapping(latents(net))
    maps = layer(net.constant(6), w)
    scale, shift = layer.style(w).chunk(2, dim=1)
    assert torch.allclose(maps.mean((2, 3)), shift, atol=1e-5)
    deviation = maps.var((2, 3), correction=0).sqrt()
    assert torch.allclose(deviation, (scale + 1).abs(), atol=1e-4)


def test_doubling_layers_blur_with_the_binomial_filter() -> None:
    """A kernel of one pixel leaves the doubling and the blur: [1, 2, 1] over a pixel of two."""
    layer = styled_layers(small())[2]
    assert layer.up
    assert layer.conv is not None
    x = torch.zeros(1, 8, 4, 4)
    x[:, :, 1, 1] = 1
    with torch.no_grad():
        layer.conv.weight.zero_()
        layer.conv.weight[:, 0, 1, 1] = 1
        layer.style.weight.zero_()
        layer.noise_strength.zero_()
        found = layer(x, torch.zeros(1, 16))[0, 0]
    line = torch.tensor([0.0, 1, 3, 3, 1, 0, 0, 0])
    expected = torch.outer(line, line)
    expected = (expected - expected.mean()) / expected.var(correction=0).sqrt()
    assert torch.allclose(found, expected, atol=1e-3)


def test_truncation_pulls_styles_to_their_mean() -> None:
    net, cut = small(), small(truncation=0.0)
    z = latents(net)
    with torch.no_grad():
        cut.load_state_dict(net.state_dict())
        assert (net(z) - net(z)[:1]).abs().max() > 0.05
        assert torch.allclose(cut(z), cut(z)[:1].expand_as(cut(z)), atol=1e-6)


def test_mean_of_styles_is_gathered_while_training_only() -> None:
    net = small()
    z = latents(net, 64)
    net(z)
    assert net.truncate.mean.abs().max() == 0
    net.train()
    for _ in range(1500):
        net.truncate.gather(net.mapping(z))
    assert torch.allclose(net.truncate.mean, net.mapping(z).mean(0), atol=2e-3)


def test_settings_rebuild_the_network_from_a_folder(tmp_path: Path) -> None:
    net = small(truncation=0.7)
    write_model(tmp_path / "model", net, "stylegan", {})
    again = read_model(tmp_path / "model").generator
    assert again.settings() == net.settings()
    assert torch.equal(again(latents(net)), net(latents(net)))


@pytest.mark.parametrize(
    "settings",
    [{"channels": [8, 6]}, {"base": 1}, {"truncation": 2.0}, {"channels": [8, 0, 4]}],
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(GenwardenError, match="artifact/bad-settings"):
        build(ARCHITECTURES["stylegan"].load(), settings, "stylegan")


def test_discriminators_fit_their_images_and_stylegan_has_its_own() -> None:
    judge = discriminator_for(small())
    assert isinstance(judge, StyleDiscriminator)
    logits = judge(torch.zeros(8, 3, 8, 8))
    assert logits.shape == (8, 1)


def test_discriminator_sees_that_all_pictures_are_the_same() -> None:
    """The deviation map is zero for copies alone, and no group sees another."""
    judge = discriminator_for(small())
    stream = random_stream(2, "pictures")
    x = torch.rand(8, 3, 8, 8, generator=stream)
    x[4:] = x[4]
    maps = judge.features(x)[:, -1]
    assert (maps[:4] > 1e-2).all()
    assert maps[4:].abs().max() < 1e-3
    swapped = torch.cat([x[4:], x[:4]])
    assert torch.allclose(judge.features(swapped)[:4, -1], maps[4:], atol=1e-6)


def test_mapping_learns_slowly_and_everything_learns(tmp_path: Path) -> None:
    net = small()
    images = to_bytes(torch.rand(64, 3, 8, 8, generator=random_stream(3, "images")) * 2 - 1)
    fresh = small()
    initialise(fresh, random_stream(5, "generator-weights"))
    before = {name: value.clone() for name, value in fresh.named_parameters()}
    net.requires_grad_(True)
    train_gan(
        net,
        discriminator_for(net),
        images,
        TrainingSettings(steps=3, batch_size=16, learning_rate=1e-3, seed=5),
        out=tmp_path,
        run_id="one",
        progress=Silent(),
        device=torch.device("cpu"),
    )
    largest = {name: (p - before[name]).abs().max() for name, p in net.named_parameters()}
    share = recipe_for(net).slow_share
    for name, moved in largest.items():
        limit = 3e-3 * (share if name.startswith("mapper.") else 1)
        assert 0 < moved < 1.5 * limit, name
