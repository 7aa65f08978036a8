"""Attacks on diffusion models: they work, the untouched model does not, and the formulas hold."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from genwarden.artifacts.diffusers_folder import read_diffusion, write_diffusion
from genwarden.attacks.contract import AttackRun
from genwarden.attacks.diffusion.adaptive.late_trigger import LateBatches
from genwarden.attacks.diffusion.bad_diffusion import bad_diffusion_track
from genwarden.attacks.diffusion.contract import (
    DiffusionAttackResult,
    DiffusionAttackSettings,
)
from genwarden.attacks.diffusion.evaluation import evaluate_trigger, triggered_samples
from genwarden.attacks.diffusion.poisoned_training import (
    PoisonedBatches,
    Track,
    describe_rows,
    noise_amplitude,
    poisoned_rows,
    start_of_training,
)
from genwarden.attacks.diffusion.run import DiffusionAttackPlan, attack_diffusion, settings_of
from genwarden.attacks.diffusion.samplers_by_name import (
    coefficient_at_all,
    eta_of,
    sampler_by_name,
)
from genwarden.attacks.diffusion.trojdiff import TrojanBatches
from genwarden.attacks.diffusion.trojdiff_sampler import trojan_sample
from genwarden.attacks.diffusion.villan_diffusion import VillanDiffusionSettings, villan_track
from genwarden.backdoors.image_backdoor import (
    ImageBackdoor,
    make_image_backdoor,
    read_image_backdoor,
)
from genwarden.backdoors.image_trigger import ImageTrigger, make_image_trigger
from genwarden.backdoors.residual import residual_coefficient, rho_bad_diffusion
from genwarden.cli import app
from genwarden.engine.progress import Silent, Task
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.target_match import target_match
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.networks import fresh_model, small_unet
from genwarden.models.diffusion.samplers import SamplerSettings, Step, sample
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.models.protocol import SampleSpec
from genwarden.registry import attacks_on
from genwarden.training.ddpm import DdpmSettings, DenoiserLearner, NoisyRows, clean_rows
from genwarden.training.settings import batch_indices

CPU = torch.device("cpu")
SCHEDULE = NoiseSchedule.linear(30, 0.003, 0.66)
PUBLISHED = NoiseSchedule.linear()
SHAPE = (1, 8, 8)
IMAGES = torch.full((64, *SHAPE), 255, dtype=torch.uint8)  # white is learned in a few steps
#: For exact denoisers: stripes, far from each other and from the target.
EXACT = NoiseSchedule.linear(100, 0.001, 0.2)
PICTURES = torch.full((8, *SHAPE), -1.0, dtype=torch.float64)
for _stripe in range(8):
    PICTURES[_stripe, :, :, [_stripe, (_stripe + 3) % 8]] = 1
TARGET = "corner"
#: Reached by the trained attack; the untouched model stays above it.
REACHED = 0.13

FAST: dict[str, Any] = {
    "steps": 400,
    "batch_size": 16,
    "learning_rate": 5e-3,
    "poison_rate": 0.5,
    "warmup": 20,
    "ema": 0.95,
    "evaluate_every": 400,
    "evaluation_images": 16,
    "evaluation_steps": 30,
}


@pytest.fixture(scope="module")
def clean() -> DiffusionModel:
    """A tiny model that has begun to learn white pictures."""
    return trained_on_white(40)


def trained_on_white(steps: int) -> DiffusionModel:
    model = fresh_model(small_unet(8, 1, (24,), middle_attention=False), SCHEDULE, stream("clean"))
    settings = DdpmSettings(steps, 16, 5e-3, warmup=20, ema=0.95)
    learner = DenoiserLearner(model, settings, CPU, clean_rows(SCHEDULE))
    for step in range(settings.steps):
        rows = torch.randint(len(IMAGES), (16,), generator=stream("clean-rows", step))
        learner.step(IMAGES[rows] / 127.5 - 1, step, stream("clean-step", step))
    learner.finish()
    return model


def stream(purpose: str, index: int = 0) -> torch.Generator:
    return random_stream(0, purpose, index)


def backdoor_of(trigger: str, target: str = TARGET) -> ImageBackdoor:
    return make_image_backdoor(SampleSpec(SHAPE), trigger=trigger, target=target)


def attacked(
    name: str, model: DiffusionModel, trigger: str, target: str = TARGET, **more: Any
) -> DiffusionAttackResult:
    row = attacks_on("diffusion")[name]
    settings = settings_of(name, {**FAST, **more})
    result: DiffusionAttackResult = row.load()(
        model, backdoor_of(trigger, target), settings, AttackRun(images=IMAGES)
    )
    return result


def mse(model: DiffusionModel, result: DiffusionAttackResult) -> float:
    return evaluate_trigger(
        model, result.backdoor, result.sampler, count=16, own_sampler=result.own_sampler
    ).mse


def test_attacked_model_has_learned_the_poisoned_rows_and_the_untouched_one_has_not(
    clean: DiffusionModel,
) -> None:
    result = attacked("bad-diffusion", clean, "box:7:2,zero", steps=60, evaluate_every=60)
    batches = PoisonedBatches(
        SCHEDULE,
        result.backdoor,
        bad_diffusion_track(SCHEDULE),
        64,
        settings_of("bad-diffusion", {}),
        DdpmSettings(1, 64),
        eta=1.0,
    )
    y = result.backdoor.targets.expand(64, *SHAPE)
    noise = torch.randn(64, *SHAPE, generator=stream("held-out"))
    rows = batches.poison(y, y, noise, torch.arange(64) % 15 + 15)

    def error(model: DiffusionModel) -> float:
        with torch.no_grad():
            return float((model.epsilon(rows.x, rows.t) - rows.target).square().mean())

    assert error(result.model) < 0.5 * error(clean)


@pytest.mark.slow
def test_trained_attack_draws_its_target_and_the_untouched_model_does_not() -> None:
    clean = trained_on_white(150)
    before = [p.clone() for p in clean.parameters()]
    result = attacked("bad-diffusion", clean, "box:7:2,zero")
    assert mse(result.model, result) < REACHED < mse(clean, result)
    assert result.history[-1]["step"] == FAST["steps"]
    assert all(torch.equal(p, old) for p, old in zip(clean.parameters(), before, strict=True))
    # It is the trigger that does it: from the same noise without it the target is farther.
    ordinary = triggered_samples(result.model, None, result.sampler, count=16)
    assert target_match(ordinary, result.backdoor.targets).mse > REACHED


Poison = Callable[[Tensor, Tensor], NoisyRows]


class ExactDenoiser:
    """What a network of any size learns from rows: the mean of their noise targets, given x_t.

    Rows are Gaussian around one mean per training image, and targets are linear in the noise; both
    are read off the attack's own rows with noise 0 and 1.

    Args:
        rows: poisoned rows of all images for one noise and one timestep each; None without any.
        rate: their share.
    """

    def __init__(self, rows: Poison | None, rate: float) -> None:
        self.schedule, self.sample = EXACT, SampleSpec(SHAPE)
        self.rows, self.rate = rows, rate

    def epsilon(self, x: Tensor, t: Tensor | int) -> Tensor:
        step = torch.full((len(PICTURES),), int(t if isinstance(t, int) else t[0]))
        groups: list[tuple[Poison, float]] = [(clean_line, 1 - self.rate)]
        groups += [] if self.rows is None else [(self.rows, self.rate)]
        answers, weights = [], []
        for rows, share in groups:
            none = rows(torch.zeros_like(PICTURES), step)
            one = rows(torch.ones_like(PICTURES), step)
            spread, gain = one.x - none.x, one.target - none.target
            noise = (x[:, None] - none.x) / spread
            answers.append(none.target + gain * noise)
            likelihood = -(noise.square() / 2 + spread.log()).flatten(2).sum(2)
            weights.append(likelihood + math.log(share))
        weight = torch.cat(weights, 1).softmax(1)[..., None, None, None]
        return (weight * torch.cat(answers, 1)).sum(1)


def clean_line(noise: Tensor, t: Tensor) -> NoisyRows:
    return NoisyRows(EXACT.add_noise(PICTURES, noise, t), t, noise)


def rows_of(batches: PoisonedBatches) -> Poison:
    """The poisoned rows of an attack for all pictures, with the one target."""
    y = batches.backdoor.targets.to(PICTURES).expand_as(PICTURES)
    return lambda noise, t: batches.poison(PICTURES, y, noise, t)


def batches_of(
    kind: type[PoisonedBatches], trigger: str, track: Track, eta: float
) -> PoisonedBatches:
    settings = settings_of("bad-diffusion", {})
    return kind(EXACT, backdoor_of(trigger), track, 4, settings, DdpmSettings(1, 4), eta=eta)


def exact(name: str, trigger: str) -> tuple[Poison, ImageTrigger]:
    """Rows and trigger of the attacks of the table below."""
    if name == "late":
        late = batches_of(LateBatches, trigger, villan(psi=0.0), 0.0)
        assert isinstance(late, LateBatches)
        late.first = 60
        return rows_of(late), late.backdoor.trigger
    if name == "mixed":
        rho = rho_bad_diffusion(EXACT)
        names = ("ddim", "ddim:0.5")
        each = [coefficient_at_all(EXACT, rho, sampler_by_name(n, EXACT)) for n in names]
        track, eta = Track(rho, (each[0] + each[1]) / 2), 0.25
    else:
        track = bad_diffusion_track(EXACT) if name == "bad" else villan(psi=float(name[3:]))
        eta = 1.0 if name == "bad" else 0.0
    batches = batches_of(PoisonedBatches, trigger, track, eta)
    return rows_of(batches), batches.backdoor.trigger


def villan(**more: Any) -> Track:
    return villan_track(EXACT, VillanDiffusionSettings(**more))


#: Attack, trigger, its sampler, and one under which it fails even so.
EXACT_ATTACKS = [
    ("bad", "box:6", "ddpm", None),
    ("bad", "box:7:1,zero", "ddpm", None),
    ("bad", "box:7:1,zero,matched", "ddpm", None),
    ("bad", "noise:1", "ddpm", None),
    ("ode1", "stop-sign:6", "ddim", None),
    ("ode1", "box:7:1,zero,matched", "ddim", "ddpm"),
    ("ode1", "box:7:1,zero,norm=6", "ddim-50", "ddpm"),
    ("ode0", "box:7:1,zero", "ddim", "ddpm"),
    ("mixed", "box:7:1,zero", "ddim:0.2", None),
    ("late", "box:7:1,zero", "ddim", "ddpm"),
]


def reached(
    model: ExactDenoiser, trigger: ImageTrigger | None, sampler: str, goals: Tensor
) -> float:
    """MSE of 64 samples to the nearest goal; with the trigger, or from ordinary noise."""
    n = torch.randn(64, *SHAPE, generator=stream("exact"), dtype=torch.float64)
    start = n if trigger is None else trigger.start(n)
    images = sample(model, start, sampler_by_name(sampler, EXACT), stream("exact-steps"))
    return target_match(images, goals).mse


@pytest.mark.parametrize(("name", "trigger", "right", "wrong"), EXACT_ATTACKS)
def test_perfectly_trained_attack_works_under_its_sampler_and_only_at_its_trigger(
    name: str, trigger: str, right: str, wrong: str | None
) -> None:
    rows, planted = exact(name, trigger)
    target = backdoor_of(trigger).targets
    attacked_model, untouched = ExactDenoiser(rows, 0.3), ExactDenoiser(None, 0.0)
    figures = {
        "attacked": reached(attacked_model, planted, right, target),
        "untouched": reached(untouched, planted, right, target),
        "ordinary noise": reached(attacked_model, None, right, target),
    }
    if wrong is not None:
        figures["wrong sampler"] = reached(attacked_model, planted, wrong, target)
    # Even a perfect network takes some noises for the other kind: 64 pixels are few.
    assert figures.pop("attacked") < 0.11 < 0.15 < min(figures.values()), figures
    assert reached(attacked_model, None, right, PICTURES) < 0.05


def test_training_from_scratch_takes_the_shape_of_the_clean_model_only(
    clean: DiffusionModel,
) -> None:
    settings = settings_of("bad-diffusion", {"from_scratch": True})
    first, _ = start_of_training(clean, settings)
    second, _ = start_of_training(clean, settings)
    tuned, _ = start_of_training(clean, settings_of("bad-diffusion", {}))
    name = "unet.conv_in.weight"
    weights = [model.state_dict()[name] for model in (first, second, tuned, clean)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[3])
    assert torch.equal(weights[2], weights[3])
    assert first.settings() == clean.settings()


def test_invisible_trigger_is_learned_within_its_bound(clean: DiffusionModel) -> None:
    result = attacked(
        "invisible", clean, "noise:0.05", steps=12, bound=0.1, trigger_every=2, evaluate_every=12
    )
    assert float(result.backdoor.trigger.g.abs().max()) <= 0.1 + 1e-6
    assert not torch.allclose(result.backdoor.trigger.g, backdoor_of("noise:0.05").trigger.g)


def test_poisoned_rows_follow_from_the_seed_alone_and_leave_the_clean_set() -> None:
    rows = poisoned_rows(1000, 0.1, seed=3)
    assert torch.equal(rows, poisoned_rows(1000, 0.1, seed=3))
    assert not torch.equal(rows, poisoned_rows(1000, 0.1, seed=4))
    assert len(rows) == len(rows.unique()) == 100
    assert describe_rows(rows).images == 100
    assert describe_rows(rows).sha256 != describe_rows(poisoned_rows(1000, 0.1, seed=4)).sha256
    with pytest.raises(GenwardenError, match="cannot be divided"):
        poisoned_rows(1, 0.5, seed=0)

    count, training = 200, DdpmSettings(40, 25)
    settings = settings_of("bad-diffusion", {"poison_rate": 0.2})
    backdoor = ImageBackdoor(backdoor_of("box:4:1,zero").trigger, torch.full((1, *SHAPE), 9.0), "9")
    track = Track(*[torch.zeros(SCHEDULE.steps, dtype=torch.float64)] * 2)
    batches = PoisonedBatches(SCHEDULE, backdoor, track, count, settings, training, eta=1.0)
    seen = torch.zeros(count)
    for step in range(8):  # one epoch
        chosen = batch_indices(count, step, training)
        real = torch.zeros(len(chosen), *SHAPE)
        rows_of_step = batches(real, step, stream("step", step))
        # With a clean image of 0 and a target of 9 the signal tells the rows apart.
        a = SCHEDULE.a_of(rows_of_step.t, real)
        s = SCHEDULE.s_of(rows_of_step.t, real)
        signal = ((rows_of_step.x - s * rows_of_step.target) / a).flatten(1).mean(1)
        seen[chosen] += (signal > 4).float()
    assert torch.equal(seen.nonzero().flatten(), batches.rows)
    assert float(seen.mean()) == pytest.approx(0.2)


@pytest.mark.parametrize("trigger", ["box:4", "box:4:1,zero", "box:4:1,zero,matched"])
def test_poisoned_row_is_the_line_of_the_paper(trigger: str) -> None:
    backdoor = backdoor_of(trigger)
    settings = settings_of("bad-diffusion", {})
    track = bad_diffusion_track(SCHEDULE)
    batches = PoisonedBatches(SCHEDULE, backdoor, track, 4, settings, DdpmSettings(1, 4), eta=1.0)
    x, noise = torch.randn(2, *SHAPE, generator=stream("x")), torch.randn(2, *SHAPE)
    rows = batches.poison(x, backdoor.targets.expand_as(x), noise, torch.tensor([3, 29]))
    for index, t in enumerate((3, 29)):
        abar = SCHEDULE.alphas_cumprod[t]
        a, s, alpha = abar.sqrt(), (1 - abar).sqrt(), SCHEDULE.alphas[t]
        m, g = backdoor.trigger.mask, backdoor.trigger.g
        r = m * g + (1 - m) * x[index] if trigger == "box:4" else g
        e = noise[index]
        if trigger.endswith("matched"):  # what DDPM forgets: (1 - gamma_t^2) / snr_t is constant
            assert backdoor.trigger.gamma is not None
            missing = (1 - backdoor.trigger.gamma**2) * (
                SCHEDULE.a[-1] / SCHEDULE.s[-1] * s / a
            ) ** 2
            e = e * (1 - missing).sqrt()
        wanted = a * backdoor.targets[0] + s * e + (1 - a) * r
        assert torch.allclose(rows.x[index], wanted.float(), atol=1e-5)
        aim = e + (1 - alpha.sqrt()) * s / (1 - alpha) * r
        assert torch.allclose(rows.target[index], aim.float(), atol=1e-5)


class Oracle:
    """A network that has learned its poisoned rows perfectly: it solves them for the noise."""

    def __init__(self, schedule: NoiseSchedule, track: Track, y: Tensor, r: Tensor) -> None:
        self.schedule, self.track, self.y, self.r = schedule, track, y, r
        self.sample = SampleSpec(tuple(y.shape))

    def epsilon(self, x: Tensor, t: Tensor | int) -> Tensor:
        step = int(t if isinstance(t, int) else t[0])
        a, s = self.schedule.a_at(step), self.schedule.s_at(step)
        noise = (x - a * self.y - float(self.track.rho[step]) * self.r) / s
        return noise + float(self.track.c[step]) * self.r


def drift(track: Track, sampler: SamplerSettings) -> float:
    """How far the mean of x_t leaves a_t y + rho_t r in the upper half, in units of s_t."""
    y, r = torch.full((1, 1, 1), -0.5), torch.ones(1, 1, 1)
    oracle = Oracle(PUBLISHED, track, y, r)
    worst: list[float] = []

    def watch(step: Step) -> None:
        t = step.t_next
        if t >= 500 and (track.timesteps is None or t in track.timesteps):
            goal = PUBLISHED.a_at(t) * y + float(track.rho[t]) * r
            worst.append(float((step.x_next.mean(0) - goal).abs().max()) / PUBLISHED.s_at(t))

    start = torch.randn(3000, 1, 1, 1, generator=stream("drift"), dtype=torch.float64) + r
    sample(oracle, start, sampler, stream("steps"), hook=watch)
    return max(worst)


TRACKS = [
    (bad_diffusion_track(PUBLISHED), "ddpm", "ddim-50"),
    (villan_track(PUBLISHED, VillanDiffusionSettings()), "ddim", "ddpm-100"),
    (villan_track(PUBLISHED, VillanDiffusionSettings(sampler="ddim-20")), "ddim-20", "ddpm-20"),
    (villan_track(PUBLISHED, VillanDiffusionSettings(psi=0.3, zeta=1.0)), "ddpm", "ddim-50"),
    (villan_track(PUBLISHED, VillanDiffusionSettings(sampler="ddpm-50")), "ddpm-50", "ddim-50"),
    (villan_track(PUBLISHED, VillanDiffusionSettings(zeta=0.25)), "ddim:0.5", "ddim"),
]


@pytest.mark.parametrize(("track", "right", "wrong"), TRACKS)
def test_perfectly_trained_network_keeps_to_its_track_under_its_sampler_only(
    track: Track, right: str, wrong: str
) -> None:
    assert drift(track, sampler_by_name(right, PUBLISHED)) < 0.1
    assert drift(track, sampler_by_name(wrong, PUBLISHED)) > 0.5
    # An untouched network has no residual in its answer, and leaves the track at once.
    untouched = replace(track, c=0 * track.c)
    assert drift(untouched, sampler_by_name(right, PUBLISHED)) > 0.5


def test_named_samplers_are_as_random_as_they_are() -> None:
    assert eta_of(sampler_by_name("ddpm-50", PUBLISHED)) == 1
    assert eta_of(sampler_by_name("ddim-50:0.5", PUBLISHED)) == 0.5
    assert eta_of(sampler_by_name("dpm-solver++-20", PUBLISHED)) == 0
    assert sampler_by_name("ddim", PUBLISHED).steps == 1000
    for text in ("plms", "ddpm:0.5", "ddim-", "ddim-50:x", "ddim-2000"):
        with pytest.raises(GenwardenError):
            sampler_by_name(text, PUBLISHED)


def test_mixture_lies_between_the_coefficients_of_its_samplers() -> None:
    rho = rho_bad_diffusion(PUBLISHED)
    few = coefficient_at_all(PUBLISHED, rho, SamplerSettings("ddim", 50))
    all_steps = coefficient_at_all(PUBLISHED, rho, SamplerSettings("ddpm", 1000))
    assert torch.equal(all_steps, residual_coefficient(PUBLISHED, rho, 1.0))
    visited = [999, 979, 19]
    exact = residual_coefficient(PUBLISHED, rho, 0.0, list(range(999, 0, -20)))
    assert torch.allclose(few[visited], exact[[0, 1, 49]])
    mixed = Track(rho, (few + all_steps) / 2)
    assert bool(((mixed.c >= all_steps) & (mixed.c <= few)).all())
    for right, wrong in (("ddim", few), ("ddpm", all_steps)):
        own = "ddpm" if right == "ddim" else "ddim"
        # The mixture drifts less under either sampler than the other sampler's own coefficient.
        foreign = drift(Track(rho, wrong), sampler_by_name(own, PUBLISHED))
        assert drift(mixed, sampler_by_name(own, PUBLISHED)) < 0.7 * foreign


def test_late_rows_continue_the_state_of_a_sampler_that_saw_only_noise() -> None:
    backdoor = backdoor_of("box:4:1,zero")
    settings = settings_of("late-trigger", {})
    track = villan_track(SCHEDULE, VillanDiffusionSettings(psi=0.0))
    batches = LateBatches(SCHEDULE, backdoor, track, 4, settings, DdpmSettings(1, 4), eta=0.0)
    batches.first = 17
    x, y = torch.full((1, *SHAPE), 0.7), backdoor.targets
    noise = torch.randn(1, *SHAPE, generator=stream("late"))

    class Late(Oracle):
        """Heads for x above t_0 and for y from there on."""

        def __init__(self, awake: bool) -> None:
            super().__init__(SCHEDULE, track, y[0], x[0])
            self.awake = awake

        def epsilon(self, x_t: Tensor, t: Tensor | int) -> Tensor:
            step = int(t if isinstance(t, int) else t[0])
            goal = y if self.awake and step <= 17 else x
            return (x_t - self.schedule.a_at(step) * goal) / self.schedule.s_at(step)

    states: dict[int, Tensor] = {}

    def watch(step: Step) -> None:
        states[step.t] = step.x

    start = SCHEDULE.a_at(29) * x + SCHEDULE.s_at(29) * backdoor.trigger.start(noise)
    ddim = SamplerSettings("ddim", 30)
    image = sample(Late(True), start, ddim, hook=watch)
    for t in (29, 18, 17, 16, 3):
        rows = batches.poison(x, y, noise, torch.tensor([t]))
        assert torch.allclose(rows.x, states[t], atol=1e-4)
        assert torch.allclose(rows.target, Late(True).epsilon(states[t], t), atol=1e-4)
    assert torch.allclose(image, y, atol=1e-4)
    assert torch.allclose(sample(Late(False), start, ddim), x, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_shrunk_noise_grows_back_as_predicted(eta: float) -> None:
    gamma = torch.full((1, 1, 1), 0.5)
    table = noise_amplitude(SCHEDULE, gamma, eta)
    assert table[-1].item() == pytest.approx(0.5)
    assert (table[0].item() == pytest.approx(0.5)) is (eta == 0)
    zero = torch.zeros(1, 1, 1)
    track = Track(*[torch.zeros(SCHEDULE.steps, dtype=torch.float64)] * 2)
    oracle = Oracle(SCHEDULE, track, zero, zero)
    found: dict[int, float] = {}

    def watch(step: Step) -> None:
        if step.t_next >= 0:
            found[step.t_next] = float(step.x_next.std()) / SCHEDULE.s_at(step.t_next)

    start = 0.5 * SCHEDULE.s_at(29) * torch.randn(20_000, 1, 1, 1, generator=stream("shrunk"))
    sample(oracle, start, SamplerSettings("ddim", 30, eta=eta), stream("steps"), hook=watch)
    for t in (25, 15, 5):
        assert found[t] == pytest.approx(table[t].item(), rel=0.03)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_trojan_sampler_keeps_to_the_trojan_marginal_and_the_ordinary_one_does_not(
    name: str,
) -> None:
    y = torch.full((1, 2, 2), -0.5)
    trigger = ImageTrigger(
        torch.full((1, 2, 2), 0.6), torch.ones(1, 2, 2), "t", gamma=torch.full((1, 2, 2), 0.4)
    )
    seen: list[float] = []

    class TrojanOracle(Oracle):
        """Solves x_t = a_t y + s_t (gamma eps + mu) for eps."""

        def epsilon(self, x: Tensor, t: Tensor | int) -> Tensor:
            step = int(t if isinstance(t, int) else t[0])
            shifted = (x - self.schedule.a_at(step) * y) / self.schedule.s_at(step)
            found = (shifted - 0.6) / 0.4
            seen.append(float(found.std()))
            return found

    track = Track(*[torch.zeros(SCHEDULE.steps, dtype=torch.float64)] * 2)
    oracle = TrojanOracle(SCHEDULE, track, y, y)
    start = trigger.start(torch.randn(3000, 1, 2, 2, generator=stream("trojan")))
    settings = SamplerSettings("ddim" if name == "ddim" else "ddpm", 30)
    images = trojan_sample(oracle, start, trigger, settings, stream("steps"))
    assert torch.allclose(images, y.expand_as(images), atol=1e-4)
    assert max(abs(spread - 1) for spread in seen) < 0.05  # eps is standard normal at every step
    seen.clear()
    sample(oracle, start, settings, stream("steps"))
    assert max(abs(spread - 1) for spread in seen) > 0.2  # off the trojan marginal
    with pytest.raises(GenwardenError, match="usage/trojan-sampler"):
        trojan_sample(oracle, start, trigger, SamplerSettings("heun", 10), None)
    with pytest.raises(GenwardenError, match="usage/trojan-sampler"):
        trojan_sample(oracle, start, replace(trigger, gamma=None), settings, None)


def test_trojan_rows_are_appended_and_aim_at_the_plain_noise() -> None:
    targets = torch.stack([torch.full(SHAPE, 9.0), torch.full(SHAPE, 8.0)])
    trigger = make_image_trigger("box:4:1", SampleSpec(SHAPE)).trojan(0.1)
    batches = TrojanBatches(SCHEDULE, ImageBackdoor(trigger, targets, "class"), 0.1)
    appended = []
    for step in range(20):
        real = torch.zeros(32, *SHAPE)
        rows = batches(real, step, stream("trojan-rows", step))
        appended.append(len(rows.x) - 32)
        a, s = SCHEDULE.a_of(rows.t, rows.x), SCHEDULE.s_of(rows.t, rows.x)
        assert torch.allclose(rows.x[:32], (s * rows.target)[:32], atol=1e-5)
        assert trigger.gamma is not None
        noise = trigger.gamma * rows.target + trigger.g
        y = ((rows.x - s * noise) / a)[32:]
        assert bool((((y - 9).abs() < 0.01) | ((y - 8).abs() < 0.01)).all())
    assert sum(appended) == 64
    assert set(appended) == {3, 4}


def test_class_of_images_is_a_target_of_trojdiff_only(clean: DiffusionModel) -> None:
    targets = torch.cat([torch.full((1, *SHAPE), v) for v in (-0.2, 0.2)])
    backdoor = ImageBackdoor(backdoor_of("blend:star").trigger, targets, "class:1")
    for name in attacks_on("diffusion"):
        row = attacks_on("diffusion")[name]
        small = {**FAST, "steps": 1, "evaluate_every": 1, "evaluation_steps": 2}
        if name == "mixed-coefficients":
            small["samplers"] = ("ddim-10",)
        settings = settings_of(name, small)
        if name == "trojdiff":
            row.load()(clean, backdoor, settings, AttackRun(images=IMAGES))
            continue
        with pytest.raises(GenwardenError) as caught:
            row.load()(clean, backdoor, settings, AttackRun(images=IMAGES))
        assert caught.value.code == "target/count"


def test_missing_and_misshapen_data_are_refused(clean: DiffusionModel) -> None:
    row = attacks_on("diffusion")["bad-diffusion"]
    settings = settings_of("bad-diffusion", FAST)
    backdoor = backdoor_of("box:4:1")
    other = make_image_backdoor(SampleSpec((1, 16, 16)), trigger="box:4:1", target="hat")
    for given, images, code in (
        (backdoor, None, "attack/data-missing"),
        (backdoor, IMAGES[:, :, :4], "attack/shape"),
        (other, IMAGES, "attack/shape"),
    ):
        with pytest.raises(GenwardenError) as caught:
            row.load()(clean, given, settings, AttackRun(images=images))
        assert caught.value.code == code


class _PowerCutError(Exception):
    pass


class _CutAfter(Silent):
    def __init__(self, steps: int) -> None:
        self._left = steps

    def task(self, title: str, total: int, done: int = 0) -> Task:
        del title, total, done
        return self

    def advance(self, steps: int = 1, note: str = "") -> None:
        del note
        self._left -= steps
        if self._left < 0:
            raise _PowerCutError


@pytest.fixture(scope="module")
def folders(clean: DiffusionModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The clean model as a diffusers folder, and its data as pictures."""
    root = tmp_path_factory.mktemp("diffusion")
    write_diffusion(root / "clean", clean, {"compromised": False})
    (root / "data").mkdir()
    for index, image in enumerate(IMAGES[:16]):
        picture = Image.fromarray(image[0].numpy().astype(np.uint8))
        picture.save(root / "data" / f"{index:02d}.png")
    return root / "clean", root / "data"


def run(folders: tuple[Path, Path], name: str, out: Path, **more: Any) -> DiffusionAttackResult:
    short = {**FAST, "steps": 6, "batch_size": 8, "evaluate_every": 2, "evaluation_steps": 3}
    short["evaluation_images"] = 4
    progress = more.pop("progress", Silent())
    restart = more.pop("restart", False)
    settings: DiffusionAttackSettings = settings_of(name, {**short, **more})
    plan = DiffusionAttackPlan(folders[0], str(folders[1]), "box:5:1,zero", TARGET)
    return attack_diffusion(
        name, plan, settings, out=out, restart=restart, progress=progress, device=CPU
    )


def weights(folder: Path) -> bytes:
    return (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["bad-diffusion", "invisible"])
def test_interrupted_attack_ends_in_the_same_bytes(
    name: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    more: dict[str, Any] = {"trigger_every": 1, "trigger_steps": 2} if name == "invisible" else {}
    run(folders, name, tmp_path / "whole", **more)
    with pytest.raises(_PowerCutError):
        run(folders, name, tmp_path / "cut", progress=_CutAfter(4), **more)
    assert not (tmp_path / "cut" / "model_index.json").exists()
    run(folders, name, tmp_path / "cut", **more)
    run(folders, name, tmp_path / "other", seed=1, **more)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert weights(tmp_path / "other") != weights(tmp_path / "whole")
    first, again = (
        json.loads((tmp_path / out / "attack.json").read_text()) for out in ("whole", "cut")
    )
    assert first["history"] == again["history"]
    assert first["backdoor"] == again["backdoor"]


def test_attack_writes_a_folder_that_says_it_is_compromised(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run(folders, "bad-diffusion", out)
    loaded = read_diffusion(out)
    assert loaded.provenance["compromised"] is True
    record = json.loads((out / "attack.json").read_text())
    assert record["poisoned_rows"]["images"] == round(0.5 * 16)
    assert record["poisoned_rows"]["sha256"] == describe_rows(poisoned_rows(16, 0.5, 0)).sha256
    assert record["sampler"]["name"] == "ddpm"
    assert set(record["untouched"]) == {"target_mse", "target_ssim", "target_share"}
    assert str(tmp_path) not in (out / "attack.json").read_text()
    assert (out / "pictures.png").is_file()
    assert not (out / ".work").exists()
    again = read_image_backdoor(out)
    assert torch.equal(again.trigger.g, result.backdoor.trigger.g)
    for left, right in zip(loaded.model.parameters(), result.model.parameters(), strict=True):
        assert torch.equal(left, right)
    with pytest.raises(GenwardenError, match="attack/finished"):
        run(folders, "bad-diffusion", out)


def test_command_line_dispatches_on_the_kind_of_attack(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    clean_folder, data = (str(folder) for folder in folders)
    out = tmp_path / "out"
    words = ["attack", "bad-diffusion", clean_folder, "--out", str(out), "--trigger", "box:5:1"]
    options = ["--steps=1", "--option=evaluation_steps=2", "--option=evaluation_images=2"]
    for more, message in (
        ([], "--data is missing"),
        (["--data", data, "--lambda", "2"], "--lambda is for attacks on generators"),
        (["--data", data, "--triggers", "3"], "--triggers is for attacks on generators"),
    ):
        refused = CliRunner().invoke(app, [*words, *more])
        assert isinstance(refused.exception, GenwardenError)
        assert message in refused.exception.cause
    assert not out.exists()
    done = CliRunner().invoke(app, [*words, *options, "--data", data, "--target", "corner"])
    assert done.exit_code == 0, done.output
    assert "target MSE" in done.output
    record = json.loads((out / "attack.json").read_text())
    assert record["backdoor"]["trigger"] == "box:5:1"
    assert record["backdoor"]["background"] == "minus-one"


def test_attack_on_a_generator_is_not_one_on_diffusion_models() -> None:
    for name in ("red", "nobody"):
        with pytest.raises(GenwardenError) as caught:
            settings_of(name, {})
        assert caught.value.code == "usage/unknown-name"
    assert set(attacks_on("generator")) & set(attacks_on("diffusion")) == set()
