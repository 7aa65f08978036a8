"""Samplers: equal to diffusers' step for step, and convergent to exact solutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from genwarden.errors import GenwardenError
from genwarden.models.diffusion.protocol import Diffusion
from genwarden.models.diffusion.samplers import (
    SAMPLERS,
    SamplerSettings,
    Step,
    pairs_of,
    sample,
    timesteps_of,
)
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.models.protocol import SampleSpec


class Mixture:
    """The exact noise estimate where every pixel is drawn from two Gaussians."""

    means: tuple[float, ...] = (-1.6, 0.7)
    weights: tuple[float, ...] = (0.3, 0.7)
    variance = 0.05

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule, self.sample = schedule, SampleSpec((1, 4, 4))

    def epsilon(self, x: Tensor, t: Tensor | int) -> Tensor:
        t = torch.as_tensor(t).expand(len(x))
        a, s = self.schedule.a_of(t, x), self.schedule.s_of(t, x)
        spread = a**2 * self.variance + s**2
        logits = torch.stack(
            [
                math.log(w) - (x - a * m) ** 2 / (2 * spread)
                for m, w in zip(self.means, self.weights, strict=True)
            ]
        )
        x0 = torch.zeros_like(x)
        for share, m in zip(logits.softmax(0), self.means, strict=True):
            x0 = x0 + share * (m + a * self.variance / spread * (x - a * m))
        return (x - a * x0) / s


class Gaussian(Mixture):
    """One Gaussian per pixel: then the probability-flow ODE has a closed solution."""

    means, weights, variance = (0.6,), (1.0,), 0.2

    def exact(self, x: Tensor, t: int, t_next: int) -> Tensor:
        """x - a m shrinks with the standard deviation of the marginal."""

        def marginal(t: int) -> tuple[float, float]:
            a, s = self.schedule.a_at(t), self.schedule.s_at(t)
            return a * self.means[0], math.sqrt(a**2 * self.variance + s**2)

        (mean, spread), (mean_next, spread_next) = marginal(t), marginal(t_next)
        return mean_next + spread_next / spread * (x - mean)


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(5), dtype=dtype)


def of_diffusers(name: str, **options: Any) -> Any:
    import diffusers

    return getattr(diffusers, name)(beta_start=1e-4, beta_end=0.02, **options)


def run_diffusers(
    scheduler: Any, model: Diffusion, noise: Tensor, steps: int, **arguments: Any
) -> Tensor:
    """The loop of a stock pipeline, begun in the state that ``sample`` begins in."""
    scheduler.set_timesteps(steps)
    x = noise
    if hasattr(scheduler, "is_scale_input_called") or scheduler.order == 2:
        x = noise * (scheduler.sigmas[0].double() ** 2 + 1).sqrt()
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        x = scheduler.step(model.epsilon(seen, int(t)), t, x, **arguments).prev_sample
    return x


DDPM, DDIM = "DDPMScheduler", "DDIMScheduler"
CASES = [
    (DDPM, SamplerSettings("ddpm", 1000), {}, 1e-11),
    (DDPM, SamplerSettings("ddpm", 50, spacing="leading"), {}, 1e-11),
    (DDPM, SamplerSettings("ddpm", 37, spacing="leading", clip="x0"), {}, 1e-11),
    (DDPM, SamplerSettings("ddpm", 28, spacing="linspace", variance="large"), {}, 1e-11),
    (DDIM, SamplerSettings("ddim", 50, 0.0, spacing="leading", offset=1), {}, 1e-11),
    (DDIM, SamplerSettings("ddim", 50, 0.0, clip="x0"), {}, 1e-11),
    (DDIM, SamplerSettings("ddim", 40, 0.5, spacing="leading"), {"eta": 0.5}, 1e-11),
    (DDIM, SamplerSettings("ddim", 50, 1.0), {"eta": 1.0}, 1e-11),
    ("DPMSolverMultistepScheduler", SamplerSettings("dpm-solver++", 20), {}, 1e-5),
    (
        "DPMSolverMultistepScheduler",
        SamplerSettings("dpm-solver++", 9, spacing="linspace"),
        {},
        1e-5,
    ),
    (
        "DPMSolverMultistepScheduler",
        SamplerSettings("dpm-solver++", 20, spacing="leading"),
        {},
        1e-5,
    ),
    ("UniPCMultistepScheduler", SamplerSettings("unipc", 20), {}, 1e-5),
    ("UniPCMultistepScheduler", SamplerSettings("unipc", 7, spacing="linspace"), {}, 1e-5),
    ("UniPCMultistepScheduler", SamplerSettings("unipc", 12, spacing="leading"), {}, 1e-5),
    ("EulerDiscreteScheduler", SamplerSettings("euler", 40), {}, 1e-5),
    ("EulerDiscreteScheduler", SamplerSettings("euler", 28, spacing="linspace"), {}, 1e-5),
    ("HeunDiscreteScheduler", SamplerSettings("heun", 25), {}, 1e-5),
    ("HeunDiscreteScheduler", SamplerSettings("heun", 28, spacing="linspace", clip="x0"), {}, 1e-5),
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
@pytest.mark.parametrize(
    ("name", "settings", "arguments", "tolerance"),
    CASES,
    ids=[f"{c[1].label} {c[1].spacing}" for c in CASES],
)
def test_sampler_equals_the_scheduler_of_diffusers(
    name: str, settings: SamplerSettings, arguments: dict[str, Any], tolerance: float
) -> None:
    options: dict[str, Any] = {"timestep_spacing": settings.spacing}
    if name in (DDPM, DDIM, "HeunDiscreteScheduler"):
        options["clip_sample"] = settings.clip == "x0"
    if settings.offset:
        options["steps_offset"] = settings.offset
    if settings.variance == "large":
        options["variance_type"] = "fixed_large"
    scheduler = of_diffusers(name, **options)
    # Both sides get the same float64 numbers; those schedulers that compute in float32 stay
    # within its rounding.
    schedule = NoiseSchedule(scheduler.alphas_cumprod.double())
    scheduler.alphas_cumprod = schedule.alphas_cumprod
    model = Mixture(schedule)
    if name in (DDPM, DDIM):
        arguments = {**arguments, "generator": torch.Generator().manual_seed(9)}
    theirs = run_diffusers(scheduler, model, start(), settings.steps, **arguments)
    ours = sample(model, start(), settings, torch.Generator().manual_seed(9))
    assert float((ours - theirs).abs().max()) < tolerance
    # and the comparison can fail: half the steps give another image
    fewer = SamplerSettings(**{**vars(settings), "steps": settings.steps // 2})
    other = sample(model, start(), fewer, torch.Generator().manual_seed(9))
    assert float((other - theirs).abs().max()) > 10 * tolerance


ORDERS = [("euler", 1), ("ddim", 1), ("heun", 2), ("dpm-solver++", 2), ("unipc", 3)]


@pytest.mark.parametrize(("name", "order"), ORDERS)
def test_error_falls_with_the_order_of_the_method(name: Any, order: int) -> None:
    """From t = 920 to t = 200 in 18 and in 144 steps, against the closed solution.

    UniPC corrects each state to one order more than its number says ("UniPC", Theorem 3.1).
    """
    schedule = NoiseSchedule.linear()
    model = Gaussian(schedule)
    exact = model.exact(start(), 920, 200)

    def error(stride: int) -> float:
        reached: list[Tensor] = []

        def hook(step: Step) -> None:
            if step.t == 200:
                reached.append(step.x)

        visited = range(920, 199, -stride)
        settings = SamplerSettings(name, len(visited))
        sample(model, start(), settings, hook=hook, timesteps=visited)
        return float((reached[0] - exact).abs().max())

    measured = math.log(error(40) / error(5)) / math.log(8)
    assert abs(measured - order) < 0.15


def test_samples_of_every_sampler_have_the_law_of_the_data() -> None:
    schedule = NoiseSchedule.linear()
    model = Mixture(schedule)
    noise = torch.randn(250, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    for name in SAMPLERS:
        settings = SamplerSettings(name, 250, eta=0.5)  # type: ignore[arg-type]
        x = sample(model, noise, settings, torch.Generator().manual_seed(2))
        low = x < -0.5
        assert abs(float(low.float().mean()) - 0.3) < 0.04
        for mean, part in ((-1.6, x[low]), (0.7, x[~low])):
            assert abs(float(part.mean()) - mean) < 0.03
            assert abs(float(part.var()) / 0.05 - 1) < 0.2


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_clipping_xt_keeps_every_state_inside_and_clipping_x0_every_prediction(name: Any) -> None:
    model = Mixture(NoiseSchedule.linear())

    def run(clip: Any) -> list[Step]:
        steps: list[Step] = []
        settings = SamplerSettings(name, 12, clip=clip)
        stream = torch.Generator().manual_seed(0)
        sample(model, start(), settings, stream, hook=lambda step: steps.append(step))
        return steps

    def largest(tensors: Sequence[Tensor]) -> float:
        return max(float(t.abs().max()) for t in tensors)

    assert largest([step.x_next for step in run("xt")]) <= 1
    assert largest([step.x0 for step in run("x0")]) <= 1
    free = run("none")
    assert largest([step.x_next for step in free]) > 1
    assert largest([step.x0 for step in free]) > 1


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_what_a_hook_returns_replaces_the_state(name: Any) -> None:
    """Two states set to zero (the multistep methods remember one): the noise is forgotten."""
    model = Mixture(NoiseSchedule.linear())
    settings = SamplerSettings(name, 10)

    def forget(step: Step) -> Tensor | None:
        return torch.zeros_like(step.x_next) if step.t_next in (399, 299) else None

    def run(noise: Tensor, hook: Callable[[Step], Tensor | None] | None) -> Tensor:
        return sample(model, noise, settings, torch.Generator().manual_seed(0), hook=hook)

    forgetful = [run(noise, forget) for noise in (start(), -start())]
    plain = [run(noise, None) for noise in (start(), -start())]
    assert float((forgetful[0] - forgetful[1]).abs().max()) < 1e-12
    assert float((plain[0] - plain[1]).abs().max()) > 0.01


def test_gradients_flow_through_a_sampler() -> None:
    model = Mixture(NoiseSchedule.linear())
    noise = start().requires_grad_()
    sample(model, noise, SamplerSettings("ddim", 10)).sum().backward()
    assert noise.grad is not None
    assert float(noise.grad.abs().max()) > 0.01


def test_step_noise_comes_from_the_generator_alone() -> None:
    model = Mixture(NoiseSchedule.linear())
    settings = SamplerSettings("ddim", 10, eta=1.0)
    runs = [
        sample(model, start(torch.float32), settings, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2], atol=0.1)


def test_euler_is_deterministic_ddim() -> None:
    model = Mixture(NoiseSchedule.linear())
    ddim = sample(model, start(), SamplerSettings("ddim", 30))
    assert torch.allclose(sample(model, start(), SamplerSettings("euler", 30)), ddim, atol=1e-9)
    ancestral = SamplerSettings("ddim", 30, eta=1.0)
    other = sample(model, start(), ancestral, torch.Generator().manual_seed(0))
    assert not torch.allclose(other, ddim, atol=0.1)


def test_pairs_lead_from_noise_to_the_clean_image() -> None:
    schedule = NoiseSchedule.linear()
    pairs = pairs_of(timesteps_of(schedule, SamplerSettings("ddim", 4)), schedule)
    assert [pair[:2] for pair in pairs] == [(999, 749), (749, 499), (499, 249), (249, -1)]
    assert pairs[-1].a_next == 1
    assert pairs[-1].s_next == 0


@pytest.mark.parametrize(
    ("settings", "timesteps"),
    [
        (SamplerSettings("ddpm", 1001), None),
        (SamplerSettings("ddpm", 0), None),
        (SamplerSettings("unipc", 1000, spacing="linspace"), None),
        (SamplerSettings("ddpm", 1000, spacing="leading", offset=1), None),
        (SamplerSettings(), [5, 5, 1]),
        (SamplerSettings(), [1000, 1]),
        (SamplerSettings(), []),
    ],
)
def test_impossible_timesteps_are_refused(
    settings: SamplerSettings, timesteps: list[int] | None
) -> None:
    model = Mixture(NoiseSchedule.linear())
    with pytest.raises(GenwardenError) as caught:
        sample(model, start(), settings, torch.Generator(), timesteps=timesteps)
    assert caught.value.code == "usage/sampler-steps"


def test_random_sampler_without_a_generator_is_refused() -> None:
    model = Mixture(NoiseSchedule.linear())
    with pytest.raises(GenwardenError) as caught:
        sample(model, start(), SamplerSettings("ddim", 5, eta=0.3))
    assert caught.value.code == "usage/sampler-generator"
    sample(model, start(), SamplerSettings("ddim", 5, eta=0.0))


@pytest.mark.parametrize("wrong", [{"eta": 1.1}, {"clip": "yes"}, {"name": "ddpm2"}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(GenwardenError) as caught:
        SamplerSettings(**wrong)
    assert caught.value.code == "usage/sampler-settings"
