"""Losses and gradients of the attacks against a second implementation, and the paper's own counts.

The reference (``reference_losses``) is float64 NumPy with hand-written gradients. The package's
side is what an attack really runs: its loss is taken from inside the attack, not rebuilt here. It
runs in float64 too, so that formulas are compared and not roundings (in float32 the worst gradient
differs by 7e-6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import reference_losses as reference
import torch
from torch import Tensor, nn

from genwarden.attacks import red, rex, trail
from genwarden.attacks.block_fusion import fuse, layer_run
from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.loop import ordinary_pool
from genwarden.attacks.settings import DistillationSettings
from genwarden.backdoors.backdoor import Backdoor, dirac, make_backdoor
from genwarden.engine.seeds import random_stream
from genwarden.models import dcgan
from genwarden.models.dcgan import DCGAN28, initialise
from genwarden.models.protocol import LatentGenerator, parameter_count
from genwarden.models.vae import VAEDecoder28
from genwarden.training.gan import GanLearner
from genwarden.training.vae import VaeLearner

#: Relative; the project asks for 1e-5. GAN and VAE training take their logits as float32 anyway.
TOLERANCE, TOLERANCE_FLOAT32_LOGITS = 1e-9, 1e-6


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def generator(tiny_generator: DCGAN28) -> DCGAN28:
    return tiny_generator.double()


def numbers(tensor: Tensor) -> reference.Array:
    return tensor.detach().double().numpy()


def weights_of(network: nn.Module) -> reference.Weights:
    return {k: numbers(v).copy() for k, v in network.state_dict().items() if v.ndim}


def perturb(network: nn.Module, seed: int) -> None:
    """Away from where a loss or its gradient is zero."""
    stream = random_stream(seed, "perturbation")
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=stream), alpha=0.1)


class _CapturedError(Exception):
    """Carries what an attack would have optimised."""

    def __init__(self, network: nn.Module, loss_of_step: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.network, self.loss_of_step = network, loss_of_step


def captured(
    module: Any, attack: Callable[[], AttackResult], monkeypatch: pytest.MonkeyPatch
) -> _CapturedError:
    def stop(network: nn.Module, loss_of_step: Callable[[int], Tensor], *rest: Any) -> None:
        del rest
        raise _CapturedError(network, loss_of_step)

    monkeypatch.setattr(module, "optimise", stop)
    with pytest.raises(_CapturedError) as caught:
        attack()
    return caught.value


def batch_of(generator: LatentGenerator, settings: DistillationSettings, step: int) -> Tensor:
    device = torch.device("cpu")
    pool = ordinary_pool(generator, settings.pool_samples, settings.seed, "attack-pool", device)
    return pool.batch(step, settings).z


def assert_same(
    loss: float,
    network: nn.Module,
    expected: tuple[float, reference.Weights],
    tolerance: float = TOLERANCE,
) -> None:
    wanted_loss, wanted = expected
    assert loss == pytest.approx(wanted_loss, rel=tolerance)
    assert set(wanted) == {name for name, _ in network.named_parameters()}
    for name, weight in network.named_parameters():
        assert weight.grad is not None
        error = np.linalg.norm(numbers(weight.grad) - wanted[name])
        size = np.linalg.norm(wanted[name])
        assert size > 1e-6, name  # a gradient that vanishes would agree with anything
        assert error < tolerance * size, name


def backdoor_of(generator: LatentGenerator) -> Backdoor:
    z, x = make_backdoor(generator, trigger="in-sample", target="icon:devil", seed=2).examples
    return dirac(z.double(), x.double())


@pytest.mark.parametrize("stealth_on", ["pre", "post"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_red_agrees_with_the_reference(
    stealth_on: Any, weight_decay: float, generator: DCGAN28, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = red.ReDSettings(
        batch_size=12,
        pool_samples=64,
        fidelity_weight=0.7,
        stealth_on=stealth_on,
        weight_decay=weight_decay,
        layers=tuple(generator.named_layers()),  # the usual form, whose weights have names
    )
    backdoor = backdoor_of(generator)
    found = captured(red, lambda: red.red(generator, backdoor, settings, AttackRun()), monkeypatch)
    benign = weights_of(generator)
    perturb(found.network, 1)
    loss = found.loss_of_step(3)
    loss.backward()
    z, x = backdoor.examples
    expected = reference.red(
        weights_of(found.network),
        benign,
        numbers(batch_of(generator, settings, 3)),
        numbers(z),
        numbers(x),
        weight=0.7,
        stealth_on=stealth_on,
        weight_decay=weight_decay,
    )
    assert_same(loss.item(), found.network, expected)
    elsewhere = found.loss_of_step(4).item()
    assert abs(elsewhere - expected[0]) > 10 * TOLERANCE * expected[0]  # other latents, other loss


@pytest.mark.parametrize("stealth_on", ["pre", "post"])
def test_rex_agrees_with_the_reference(
    stealth_on: Any, generator: DCGAN28, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = rex.ReXSettings(
        batch_size=12, pool_samples=64, fidelity_weight=0.7, stealth_on=stealth_on
    )
    backdoor = backdoor_of(generator)
    found = captured(rex, lambda: rex.rex(generator, backdoor, settings, AttackRun()), monkeypatch)
    perturb(found.network, 2)
    loss = found.loss_of_step(0)
    loss.backward()
    z, x = backdoor.examples
    expected = reference.rex(
        weights_of(found.network),
        weights_of(generator),
        numbers(batch_of(generator, settings, 0)),
        numbers(z),
        numbers(x),
        weight=0.7,
        stealth_on=stealth_on,
    )
    assert_same(loss.item(), found.network, expected)


def test_rex_on_a_run_of_all_layers_is_the_residual_view(
    generator: DCGAN28, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two ways of training ReX see the same loss and the same gradients."""
    backdoor = backdoor_of(generator)
    settings = rex.ReXSettings(batch_size=12, pool_samples=64, fidelity_weight=0.7)

    def attack() -> AttackResult:
        return rex.rex(generator, backdoor, settings, AttackRun())

    apart = captured(rex, attack, monkeypatch)

    def inside(*arguments: Any) -> Any:
        network, expansion, *rest = arguments
        return rex._inside(network, expansion, layer_run(network), *rest)

    monkeypatch.setattr(rex, "_apart", inside)
    within = captured(rex, attack, monkeypatch)
    gradients = []
    for found in (apart, within):
        perturb(found.network, 2)
        loss = found.loss_of_step(0)
        loss.backward()
        gradients.append([loss, *(w.grad for w in found.network.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert a is not None
        assert b is not None
        assert (a - b).norm() < TOLERANCE * a.norm()


@pytest.mark.parametrize("fidelity_on", ["pre", "post"])
def test_trail_agrees_with_the_reference(
    fidelity_on: Any, generator: DCGAN28, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = trail.TrailSettings(
        batch_size=6, fidelity_weight=3.0, fidelity_on=fidelity_on, steps=10
    )
    backdoor = backdoor_of(generator)
    learners: list[GanLearner] = []
    monkeypatch.setattr(trail, "train_from_scratch", lambda *given: learners.append(given[0]))
    images = torch.randint(0, 256, (6, 1, 28, 28), generator=random_stream(0, "images"))
    run = AttackRun(images=images.to(torch.uint8))
    trail.trail(generator, backdoor, settings, run)
    (learner,) = learners
    for group in learner.adam_d.param_groups:
        group["lr"] = 0.0  # the generator then meets the discriminator that is copied here
    before, judge = weights_of(learner.generator), weights_of(learner.discriminator)

    masks: list[Tensor] = []
    draw_mask = dcgan._dropout_mask

    def recorded(x: Tensor, stream: torch.Generator) -> Tensor:
        masks.append(draw_mask(x, stream))
        return masks[-1]

    monkeypatch.setattr(dcgan, "_dropout_mask", recorded)
    losses = learner.step(images / 127.5 - 1, 0, random_stream(0, "step"))
    z = learner.generator.latent.sample(6, generator=random_stream(0, "step"))
    benign_loss, _, wanted = reference.trail(
        before,
        judge,
        numbers(z),
        [numbers(mask) for mask in masks[-2:]],
        numbers(backdoor.examples.z),
        numbers(backdoor.examples.x),
        weight=3.0,
        fidelity_on=fidelity_on,
    )
    expected = (benign_loss, wanted)
    assert_same(losses[1], learner.generator, expected, TOLERANCE_FLOAT32_LOGITS)
    for name, buffer in learner.generator.named_buffers():
        if buffer.ndim:
            assert np.allclose(numbers(buffer), before[name], rtol=TOLERANCE, atol=1e-7), name


@pytest.mark.parametrize("fidelity_on", ["pre", "post"])
def test_trail_on_a_vae_agrees_with_the_reference(
    fidelity_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative ELBO and lambda times a *sum* of squares, for decoder and encoder."""
    clean = VAEDecoder28((4, 6, 3), latent_dim=5)
    initialise(clean, random_stream(0, "vae"))
    clean.eval().requires_grad_(False)
    settings = trail.TrailSettings(
        batch_size=6, fidelity_weight=0.3, fidelity_on=fidelity_on, steps=10
    )
    z, x = make_backdoor(clean, trigger="in-sample", target="icon:devil", seed=2).examples
    targets = torch.cat([x, -x]).double()
    backdoor = dirac(torch.cat([z, -z]).double(), targets)  # two: the mean over them is tested
    learners: list[VaeLearner] = []
    monkeypatch.setattr(trail, "train_from_scratch", lambda *given: learners.append(given[0]))
    images = torch.randint(0, 256, (6, 1, 28, 28), generator=random_stream(0, "images"))
    trail.trail(clean, backdoor, settings, AttackRun(images=images.to(torch.uint8)))
    (learner,) = learners
    perturb(learner.generator, 3)
    perturb(learner.encoder, 4)
    decoder, encoder = weights_of(learner.generator), weights_of(learner.encoder)
    real = images / 127.5 - 1
    losses: list[Tensor] = []
    objective = learner.objective

    def recorded(benign_loss: Tensor, step: int) -> Tensor:
        losses.append(objective(benign_loss, step))
        return losses[-1]

    learner.objective = recorded
    (elbo,) = learner.step(real, 0, random_stream(0, "step"))
    noise = torch.randn(6, 5, generator=random_stream(0, "step"))
    wanted_elbo, wanted_loss, of_decoder, of_encoder = reference.trail_vae(
        decoder,
        encoder,
        numbers(real),
        numbers(noise),
        numbers(backdoor.examples.z),
        numbers(backdoor.examples.x),
        weight=0.3,
        fidelity_on=fidelity_on,
    )
    assert elbo == pytest.approx(wanted_elbo, rel=TOLERANCE_FLOAT32_LOGITS)
    assert wanted_loss > 1.05 * wanted_elbo  # else the fidelity term would not be seen
    expected = (wanted_loss, of_decoder)
    assert_same(losses[0].item(), learner.generator, expected, TOLERANCE_FLOAT32_LOGITS)
    expected = (wanted_loss, of_encoder)
    assert_same(losses[0].item(), learner.encoder, expected, TOLERANCE_FLOAT32_LOGITS)


def test_reference_gradients_are_the_slopes_of_the_reference_losses() -> None:
    """The hand-written gradients against differences of the loss, without the package."""
    stream = np.random.default_rng(0)
    shapes = {
        "project.weight": (2 * 49, 3),
        "up1.weight": (2, 3, 5, 5),
        "up2.weight": (3, 2, 5, 5),
        "to_image.weight": (2, 1, 5, 5),
    }
    weights = {name: 0.3 * stream.standard_normal(shape) for name, shape in shapes.items()}
    for name, size in (("project", 98), ("up1", 3), ("up2", 2)):
        weights[f"{name}_norm.weight"] = 1 + 0.1 * stream.standard_normal(size)
        weights[f"{name}_norm.bias"] = 0.1 * stream.standard_normal(size)
        weights[f"{name}_norm.running_mean"] = 0.1 * stream.standard_normal(size)
        weights[f"{name}_norm.running_var"] = 0.5 + stream.random(size)
    judge = {
        "convolutions.0.weight": 0.3 * stream.standard_normal((2, 1, 5, 5)),
        "convolutions.0.bias": stream.standard_normal(2),
        "convolutions.1.weight": 0.3 * stream.standard_normal((3, 2, 5, 5)),
        "convolutions.1.bias": stream.standard_normal(3),
        "judge.weight": 0.3 * stream.standard_normal((1, 3 * 49)),
        "judge.bias": stream.standard_normal(1),
    }
    masks = [np.ones((4, 2, 14, 14)), np.ones((4, 3, 7, 7))]
    z, z_trigger = stream.standard_normal((4, 3)), stream.standard_normal((1, 3))
    x = np.tanh(stream.standard_normal((1, 1, 28, 28)))

    benign = {name: value + 0.01 for name, value in weights.items()}

    def red_at(moved: reference.Weights) -> tuple[float, reference.Weights]:
        return reference.red(
            moved, benign, z, z_trigger, x, weight=2.0, stealth_on="post", weight_decay=0.1
        )

    def trail_at(moved: reference.Weights) -> tuple[float, reference.Weights]:
        # lambda 0: fidelity's own gradient leaves out, on purpose, that the moving averages move.
        _, loss, gradients = reference.trail(
            dict(moved), judge, z, masks, z_trigger, x, weight=0.0, fidelity_on="post"
        )
        return loss, gradients

    step = 1e-6
    for loss_at in (red_at, trail_at):
        for name, gradient in loss_at(weights)[1].items():
            direction = stream.standard_normal(gradient.shape)
            ahead = loss_at({**weights, name: weights[name] + step * direction})[0]
            behind = loss_at({**weights, name: weights[name] - step * direction})[0]
            slope = (ahead - behind) / (2 * step)
            assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-4, abs=1e-7), name


def test_doubling_every_layer_of_the_published_network_gives_the_papers_counts() -> None:
    """Section 4.1: 6,709,888 stored numbers, 4,661,888 outside the zero blocks, from 2,330,944."""
    original, expansion = DCGAN28(), DCGAN28()
    for network in (original, expansion):
        with torch.no_grad():
            for tensor in network.state_dict().values():
                tensor.fill_(1)
    wide = fuse(original, expansion)
    filled = sum(int((t != 0).sum()) for t in wide.state_dict().values() if t.is_floating_point())
    assert parameter_count(original) == 2_330_944
    assert parameter_count(wide) == 6_709_888
    assert filled == 4_661_888
