"""Noise schedules and denoisers: the numbers of diffusers, and what a network's output means."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from genwarden.errors import GenwardenError
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.networks import CIFAR10, fresh_model, preset, small_unet
from genwarden.models.diffusion.protocol import Diffusion
from genwarden.models.diffusion.samplers import SamplerSettings, sample
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.models.diffusion.unet_config import UNetConfig, build_unet, config_of

LINEAR = NoiseSchedule.linear()


@pytest.mark.parametrize(
    ("law", "schedule"),
    [
        ("linear", LINEAR),
        ("scaled_linear", NoiseSchedule.scaled_linear()),
        ("squaredcos_cap_v2", NoiseSchedule.cosine()),
        ("sigmoid", NoiseSchedule.sigmoid()),
    ],
)
def test_schedule_equals_that_of_diffusers(law: Any, schedule: NoiseSchedule) -> None:
    import diffusers

    scheduler: Any = diffusers.DDPMScheduler
    theirs = scheduler(beta_schedule=law)
    assert torch.allclose(schedule.betas, theirs.betas.double(), rtol=2e-4, atol=1e-9)
    # theirs is a float32 product of a thousand factors
    ours = schedule.alphas_cumprod
    assert torch.allclose(ours, theirs.alphas_cumprod.double(), rtol=2e-4, atol=1e-9)
    wrong = NoiseSchedule.linear(beta_end=0.0201).alphas_cumprod
    assert not torch.allclose(wrong, theirs.alphas_cumprod.double(), rtol=2e-4, atol=1e-9)


def test_constants_printed_in_the_paper() -> None:
    assert LINEAR.a_at(999) == pytest.approx(0.00635, abs=5e-6)
    assert LINEAR.s_at(999) == pytest.approx(0.99998, abs=5e-6)
    assert (LINEAR.a_at(-1), LINEAR.s_at(-1)) == (1, 0)
    assert torch.allclose(LINEAR.a**2 + LINEAR.s**2, torch.ones(1000).double(), atol=1e-15)


def test_schedules_are_compared_by_value() -> None:
    twin = NoiseSchedule(LINEAR.alphas_cumprod.clone())
    assert twin == LINEAR
    assert hash(twin) == hash(LINEAR)
    assert NoiseSchedule.linear(prediction="sample") != LINEAR
    assert NoiseSchedule.linear(999) != LINEAR
    assert NoiseSchedule.linear(beta_end=0.0200001) != LINEAR


@pytest.mark.parametrize(
    "abar", [[], [0.5, 0.5], [0.5, 0.6], [1.0, 0.5], [0.5, 0.0], [0.5, float("nan")], [[0.5]]]
)
def test_impossible_schedules_are_refused(abar: list[Any]) -> None:
    with pytest.raises(GenwardenError) as caught:
        NoiseSchedule(torch.tensor(abar))
    assert caught.value.code == "usage/noise-schedule"
    NoiseSchedule(torch.tensor([0.6, 0.5]))


@pytest.mark.parametrize("t", [-2, 1000])
def test_timestep_outside_the_schedule_is_refused(t: int) -> None:
    with pytest.raises(GenwardenError) as caught:
        LINEAR.a_at(t)
    assert caught.value.code == "usage/timestep"


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (preset("tiny"), 267_313),
        (preset("small"), 1_112_801),
        (preset("cifar10", 32, 3), 35_746_307),
    ],
)
def test_network_has_the_published_number_of_parameters(config: UNetConfig, count: int) -> None:
    with torch.device("meta"):
        network = build_unet(config)
    assert sum(p.numel() for p in network.parameters()) == count
    assert config_of(network) == config


def test_cifar10_preset_is_the_published_configuration() -> None:
    assert preset("cifar10", 32, 3) == CIFAR10


TINY = small_unet(8, 1, (8, 8), norm_groups=4)


def tiny(schedule: NoiseSchedule = LINEAR, seed: int = 0) -> DiffusionModel:
    return fresh_model(TINY, schedule, torch.Generator().manual_seed(seed)).eval()


def test_fresh_weights_come_from_the_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (tiny(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["unet.conv_in.weight"], other["unet.conv_in.weight"])


def test_a_model_can_be_copied_and_meets_the_protocol() -> None:
    model = tiny()
    twin = copy.deepcopy(model)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert isinstance(model, Diffusion)
        assert torch.equal(twin.epsilon(x, 7), model.epsilon(x, torch.tensor([7, 7])))
        assert not torch.allclose(model.epsilon(x, 7), model.epsilon(x, 900))
        next(twin.parameters()).add_(1)
        assert not torch.equal(twin.epsilon(x, 7), model.epsilon(x, 7))
    assert model.sample.shape == (1, 8, 8)
    assert UNetConfig.model_validate(model.settings()) == TINY
    assert model.defaults == SamplerSettings("ddpm", 1000)


class Oracle(nn.Module):
    """Knows image and noise, and returns what a network of this prediction type would."""

    def __init__(self, x0: Tensor, noise: Tensor, schedule: NoiseSchedule, extra: bool) -> None:
        super().__init__()
        self.x0, self.noise, self.schedule, self.extra = x0, noise, schedule, extra

    def forward(self, x: Tensor, t: Tensor, *, return_dict: bool) -> tuple[Tensor]:
        assert not return_dict
        a, s = self.schedule.a_of(t, x), self.schedule.s_of(t, x)
        output = {
            "epsilon": self.noise,
            "v_prediction": a * self.noise - s * self.x0,
            "sample": self.x0,
        }[self.schedule.prediction]
        return (torch.cat([output, torch.full_like(output, 9)], 1) if self.extra else output,)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("learned_variance", [False, True])
def test_every_prediction_type_gives_the_noise(prediction: Any, learned_variance: bool) -> None:
    schedule = NoiseSchedule.linear(prediction=prediction)
    model = tiny(schedule)
    stream = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 1, 8, 8, generator=stream, dtype=torch.float64)
    model.unet = Oracle(x0, noise, schedule, learned_variance)
    t = torch.tensor([0, 400, 999])
    x = schedule.add_noise(x0, noise, t)
    assert torch.allclose(model.epsilon(x, t), noise, atol=1e-9)
    if prediction != "epsilon":
        model.schedule = LINEAR
        assert not torch.allclose(model.epsilon(x, t), noise, atol=0.1)


def test_every_sampler_runs_a_network() -> None:
    model = tiny(NoiseSchedule.linear(20))
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = sample(model, noise, model.defaults, torch.Generator().manual_seed(0))
    assert x.shape == noise.shape
    assert x.dtype == torch.float32


@pytest.mark.parametrize(
    "change",
    [
        {"block_out_channels": [8, 8, 8]},
        {"sample_size": 9},
        {"sample_size": 100_000},
        {"in_channels": 0},
        {"out_channels": 3},
        {"layers_per_block": 10**6},
        {"layers_per_block": True},
        {"norm_eps": float("nan")},
        {"down_block_types": ["DownBlock2D", "os.system"]},
        {"time_embedding_type": "fourier"},
        {"another_key": 1},
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, Any]) -> None:
    plain = TINY.plain()
    assert UNetConfig.model_validate(plain) == TINY
    with pytest.raises(ValidationError):
        UNetConfig.model_validate(plain | change)


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(GenwardenError) as caught:
        preset("huge")
    assert caught.value.code == "usage/unknown-network"


def test_the_command_line_imports_neither_torch_nor_diffusers() -> None:
    program = "import sys, genwarden.cli; print({'torch', 'diffusers'} & {m for m in sys.modules})"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert shown.stdout.decode().strip() == "set()"
