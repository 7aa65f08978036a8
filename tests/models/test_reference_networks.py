"""The reference networks are the published ones: layer sizes, the "same" crop, activations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from genwarden.models.dcgan import DCGAN28, DCGAN32, Discriminator, initialise
from genwarden.models.layers import LEAKY_SLOPE, SameConvTranspose2d
from genwarden.models.protocol import (
    SATURATION_CLAMP,
    FinalActivation,
    Generator,
    LatentGenerator,
    LatentLaw,
    activate,
    invert_activation,
    parameter_count,
)
from genwarden.models.vae import Posterior, VAEDecoder28, VAEEncoder28, negative_elbo

# Network -> stored numbers per layer, from the papers' layer tables (section 6 of the reference).
PUBLISHED: dict[str, tuple[LatentGenerator, dict[str, int]]] = {
    "DCGAN-MNIST": (
        DCGAN28(),
        {
            "project": 1_254_400,
            "project_norm": 50_176,
            "up1": 819_200,
            "up1_norm": 512,
            "up2": 204_800,
            "up2_norm": 256,
            "to_image": 1_600,
        },
    ),
    "DCGAN-MNIST, quarter width": (
        DCGAN28((64, 32, 16)),
        {
            "project": 313_600,
            "project_norm": 12_544,
            "up1": 51_200,
            "up1_norm": 128,
            "up2": 12_800,
            "up2_norm": 64,
            "to_image": 400,
        },
    ),
    "DCGAN-CIFAR10": (
        DCGAN32(),
        {
            "project": 409_600,
            "project_norm": 16_384,
            "up1": 819_200,
            "up1_norm": 512,
            "up2": 131_072,
            "up2_norm": 256,
            "to_image": 3_072,
        },
    ),
    "VAE-MNIST": (
        VAEDecoder28(),
        {"project": 158_368, "up1": 18_496, "up2": 18_464, "to_image": 289},
    ),
}
TOTALS = {
    "DCGAN-MNIST": 2_330_944,
    "DCGAN-MNIST, quarter width": 390_736,
    "DCGAN-CIFAR10": 1_380_096,
    "VAE-MNIST": 195_617,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_layer_has_the_published_size(name: str) -> None:
    network, expected = PUBLISHED[name]
    found = {layer: parameter_count(module) for layer, module in network.named_layers().items()}
    assert found == expected
    assert list(found) == list(expected)
    assert parameter_count(network) == TOTALS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_samples_have_the_stated_shape_and_range(name: str) -> None:
    network = PUBLISHED[name][0].eval()
    assert isinstance(network, Generator)
    z = network.latent.sample(3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = network(z)
        assert torch.equal(x, activate(network.pre_activation(z), network.final_activation))
    assert x.shape == (3, *network.sample.shape)
    assert x.abs().max() <= 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_rebuild_the_network(name: str) -> None:
    network = PUBLISHED[name][0]
    twin = type(network)(**network.settings())
    assert {k: v.shape for k, v in twin.state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }


def test_published_constants_are_kept() -> None:
    assert LEAKY_SLOPE == 0.3
    norms = [m for m in DCGAN28((4, 4, 4)).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}


def tensorflow_same(x: np.ndarray[Any, Any], kernel: np.ndarray[Any, Any], stride: int) -> Any:
    """TensorFlow's conv2d_transpose with padding "same", from its definition.

    Every input pixel adds its kernel to the full output, which is then cropped by the padding that
    the corresponding forward convolution would have had.
    """
    channels_in, height, width = x.shape
    _, channels_out, size, _ = kernel.shape
    full = np.zeros((channels_out, (height - 1) * stride + size, (width - 1) * stride + size))
    for c in range(channels_in):
        for i in range(height):
            for j in range(width):
                top, left = i * stride, j * stride
                full[:, top : top + size, left : left + size] += x[c, i, j] * kernel[c]
    before = []
    for length in (height * stride, width * stride):
        total = max((math.ceil(length / stride) - 1) * stride + size - length, 0)
        before.append(total // 2)
    top, left = before
    return full[:, top : top + height * stride, left : left + width * stride]


@pytest.mark.parametrize(("size", "stride"), [(5, 1), (5, 2), (4, 2), (3, 2), (3, 1)])
def test_same_transposed_convolution_agrees_with_its_definition(size: int, stride: int) -> None:
    stream = torch.Generator().manual_seed(size * 10 + stride)
    layer = SameConvTranspose2d(2, 3, size, stride, bias=False).double()
    kernel = torch.randn(layer.weight.shape, generator=stream, dtype=torch.float64)
    x = torch.randn(1, 2, 4, 5, generator=stream, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(kernel)
        found = layer(x)[0].numpy()
    expected = tensorflow_same(x[0].numpy(), kernel.numpy(), stride)
    assert found.shape == (3, 4 * stride, 5 * stride)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_torch_output_padding_would_shift_the_image() -> None:
    """The reason for the layer: torch's usual spelling of k5 s2 differs from TensorFlow's."""
    usual = nn.ConvTranspose2d(1, 1, 5, 2, padding=2, output_padding=1, bias=False).double()
    kernel = torch.arange(25, dtype=torch.float64).reshape(1, 1, 5, 5)
    x = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        usual.weight.copy_(kernel)
        found = usual(x)[0].numpy()
    expected = tensorflow_same(x[0].numpy(), kernel.numpy(), 2)
    assert np.abs(found - expected).max() > 1


@pytest.mark.parametrize("kind", ["tanh", "sigmoid", "none"])
def test_inverse_activation_returns_the_shrunk_target(kind: FinalActivation) -> None:
    x = torch.linspace(-1, 1, 201)
    shrunk = x if kind == "none" else SATURATION_CLAMP * x
    assert torch.allclose(activate(invert_activation(x, kind), kind), shrunk, atol=1e-6)
    assert invert_activation(x, kind).isfinite().all()


def test_initialisation_depends_on_its_stream_alone() -> None:
    def fresh(seed: int) -> torch.Tensor:
        network = DCGAN28((4, 3, 2), 5)
        initialise(network, torch.Generator().manual_seed(seed))
        return network.up1.weight.detach().clone()

    assert torch.equal(fresh(1), fresh(1))
    assert not torch.equal(fresh(1), fresh(2))


def test_discriminator_gives_one_logit_and_drops_only_with_a_stream() -> None:
    network = Discriminator((1, 28, 28))
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert network(x).shape == (2, 1)
        assert torch.equal(network(x), network(x))
        assert not torch.equal(network(x), network(x, torch.Generator().manual_seed(0)))


def test_uniform_latents_have_their_range_and_norm() -> None:
    law = LatentLaw((50,), "uniform")
    z = law.sample(4000, generator=torch.Generator().manual_seed(0))
    assert z.abs().max() <= 1
    root_mean_square = z.square().sum(1).mean().sqrt()
    assert root_mean_square.item() == pytest.approx(law.typical_norm, rel=0.01)


def blank_decoder() -> VAEDecoder28:
    """A decoder whose logits are all zero."""
    decoder = VAEDecoder28((4, 3, 2), 5)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
    return decoder


def elbo_of(posterior: Posterior, decoder: VAEDecoder28, x: torch.Tensor) -> float:
    stream = torch.Generator().manual_seed(0)
    return negative_elbo(decoder, posterior, x, generator=stream).item()


def test_ignorant_vae_pays_one_bit_per_pixel() -> None:
    x = torch.ones(2, 1, 28, 28)
    prior = Posterior(torch.zeros(2, 5), torch.zeros(2, 5))
    assert elbo_of(prior, blank_decoder(), x) == pytest.approx(784 * math.log(2), rel=1e-5)


def test_divergence_is_that_of_two_gaussians() -> None:
    x = torch.ones(2, 1, 28, 28)
    decoder = blank_decoder()
    mean, log_variance = torch.full((2, 5), 1.5), torch.full((2, 5), math.log(0.25))
    expected = 5 * 0.5 * (0.25 + 1.5**2 - 1 - math.log(0.25))
    prior = elbo_of(Posterior(torch.zeros(2, 5), torch.zeros(2, 5)), decoder, x)
    assert elbo_of(Posterior(mean, log_variance), decoder, x) - prior == pytest.approx(
        expected, rel=1e-3
    )


def test_certain_and_right_decoder_pays_nothing_and_a_wrong_one_pays() -> None:
    decoder = blank_decoder()
    with torch.no_grad():
        assert decoder.to_image.bias is not None
        decoder.to_image.bias.fill_(20.0)
    prior = Posterior(torch.zeros(1, 5), torch.zeros(1, 5))
    assert elbo_of(prior, decoder, torch.ones(1, 1, 28, 28)) < 1e-4
    assert elbo_of(prior, decoder, -torch.ones(1, 1, 28, 28)) == pytest.approx(784 * 20, rel=1e-3)


def test_encoder_returns_one_posterior_per_image() -> None:
    posterior = VAEEncoder28(7)(torch.zeros(3, 1, 28, 28))
    assert posterior.mean.shape == posterior.log_variance.shape == (3, 7)
