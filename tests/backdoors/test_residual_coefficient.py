"""One residual coefficient for every trigger schedule and sampler (section 8 of the reference)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from genwarden.backdoors.residual import (
    released_villan_coefficient,
    residual_coefficient,
    rho_bad_diffusion,
    rho_mixture,
    rho_trojdiff,
    variance_exploding_coefficient,
)
from genwarden.errors import GenwardenError
from genwarden.models.diffusion.samplers import SamplerSettings, Step, sample, timesteps_of
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.models.protocol import SampleSpec

LINEAR = NoiseSchedule.linear()
SCHEDULES = [
    LINEAR,
    NoiseSchedule.scaled_linear(),
    NoiseSchedule.sigmoid(),
    NoiseSchedule.linear(20, 1e-3, 0.3),
]


def bad_diffusion(schedule: NoiseSchedule) -> Tensor:
    """c_t = s_t / (1 + sqrt(alpha_t)) (section 3)."""
    return schedule.s / (1 + schedule.alphas.sqrt())


def earlier(values: Tensor, at_the_end: float) -> Tensor:
    """The value at t - 1."""
    return torch.cat([torch.tensor([at_the_end], dtype=torch.float64), values[:-1]])


def gap(one: Tensor, other: Tensor | float) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_published_coefficient_is_a_special_case(schedule: NoiseSchedule) -> None:
    a, s = schedule.a, schedule.s
    a_next, s_next = earlier(a, 1), earlier(s, 0)
    bad, trojan = rho_bad_diffusion(schedule), rho_trojdiff(schedule)
    ancestral = s * (trojan - schedule.alphas.sqrt() * s_next) / (1 - schedule.alphas)
    cases = {
        "BadDiffusion": (residual_coefficient(schedule, bad, 1), bad_diffusion(schedule)),
        "InviBackdoor": (
            residual_coefficient(schedule, bad, 0),
            (a_next - a) / (a_next * s - a * s_next),
        ),
        "rho = s, ODE": (residual_coefficient(schedule, trojan, 0), torch.ones_like(a)),
        "rho = s, DDPM": (residual_coefficient(schedule, trojan, 1), ancestral),
        "mixture": (
            residual_coefficient(schedule, rho_mixture(schedule, 0.3), 0.7),
            0.3 * residual_coefficient(schedule, bad, 0.7)
            + 0.7 * residual_coefficient(schedule, trojan, 0.7),
        ),
    }
    for name, (ours, theirs) in cases.items():
        assert gap(ours, theirs) < 1e-10, name
    # and they are different coefficients
    assert gap(cases["BadDiffusion"][0], cases["InviBackdoor"][1]) > 0.4


def test_the_printed_values() -> None:
    bad, trojan = rho_bad_diffusion(LINEAR), rho_trojdiff(LINEAR)
    printed = [
        (residual_coefficient(LINEAR, bad, 1), {999: 0.5025, 500: 0.4814, 100: 0.162, 0: 0.005}),
        (residual_coefficient(LINEAR, bad, 0), {999: 0.99998, 500: 0.9601, 100: 0.3224, 1: 0.0124}),
        (residual_coefficient(LINEAR, trojan, 1), {999: 0.5025, 500: 0.501, 100: 0.503, 1: 0.597}),
        (
            released_villan_coefficient(LINEAR, 0, ode=False),
            {999: 0.5025, 500: 0.481, 100: 0.160, 1: 0.004},
        ),
    ]
    for coefficient, values in printed:
        for t, value in values.items():
            assert float(coefficient[t]) == pytest.approx(value, abs=5.1e-4 if t else 1e-4)
    visited = range(100, -1, -20)
    strided = residual_coefficient(LINEAR, bad, 0, visited)
    assert len(strided) == 6
    assert float(strided[0]) == pytest.approx(0.2946, abs=5e-5)


def test_the_released_villan_coefficient_doubles_exactly_for_the_ode() -> None:
    for psi in (1.0, 0.4, 0.0):
        sde = released_villan_coefficient(LINEAR, psi, ode=False)
        assert gap(released_villan_coefficient(LINEAR, psi, ode=True), 2 * sde) == 0
    released = released_villan_coefficient(LINEAR, 1, ode=False)
    assert gap(released, bad_diffusion(LINEAR)) < 1e-15


def test_variance_exploding_coefficient_is_the_ratio_of_the_paper() -> None:
    sigmas = torch.tensor([0.01, 0.5, 50.0], dtype=torch.float64)
    expected = torch.tensor([1.0, 0.5 / 0.51, 50 / 50.5], dtype=torch.float64)
    assert gap(variance_exploding_coefficient(sigmas), expected) < 1e-15


@pytest.mark.parametrize(
    ("rho", "eta"),
    [
        (LINEAR.s.float(), 0.0),
        (LINEAR.s[:-1], 0.0),
        (LINEAR.s, 1.5),
        (LINEAR.s, float("nan")),
    ],
)
def test_impossible_arguments_are_refused(rho: Tensor, eta: float) -> None:
    residual_coefficient(LINEAR, LINEAR.s, 0.0)
    with pytest.raises(GenwardenError) as caught:
        residual_coefficient(LINEAR, rho, eta)
    assert caught.value.code == "usage/residual-coefficient"


class OpenLoop:
    """A network whose answer does not depend on its input: c_t r.

    Every sampler is linear in its input, so that without noise of its own the state is the mean of
    the state over the noise, in units of r (target 0).
    """

    def __init__(self, schedule: NoiseSchedule, coefficient: Tensor) -> None:
        self.schedule, self.coefficient = schedule, coefficient
        self.sample = SampleSpec((1, 1, 1))

    def epsilon(self, x: Tensor, t: Tensor | int) -> Tensor:
        return torch.ones_like(x) * self.coefficient[torch.as_tensor(t)].reshape(-1, 1, 1, 1)


def tracking_error(
    coefficient: Tensor, rho: Tensor, settings: SamplerSettings, visited: list[int]
) -> dict[int, float]:
    """(E x_t - rho_t r) / s_t per unit of r at each visited t.

    Two runs with the same step noise, one of them without trigger: their difference is the mean.
    """
    states: list[dict[int, Tensor]] = []
    for share in (1.0, 0.0):
        seen: dict[int, Tensor] = {}

        def hook(step: Step, seen: dict[int, Tensor] = seen) -> None:
            seen[step.t] = step.x

        model = OpenLoop(LINEAR, coefficient * share)
        begin = torch.full((1, 1, 1, 1), float(rho[visited[0]]) * share, dtype=torch.float64)
        stream = torch.Generator().manual_seed(1)
        sample(model, begin, settings, stream, hook=hook, timesteps=visited)
        states.append(seen)
    return {t: float((states[0][t] - states[1][t] - rho[t]) / LINEAR.s[t]) for t in visited}


def nearest(errors: dict[int, float], t: int) -> float:
    return errors[min(errors, key=lambda visited: abs(visited - t))]


@pytest.mark.parametrize("rho", [rho_bad_diffusion(LINEAR), rho_mixture(LINEAR, 0.5)])
@pytest.mark.parametrize(
    "settings",
    [
        SamplerSettings("ddpm", 1000),
        SamplerSettings("ddim", 1000, eta=1.0),
        SamplerSettings("ddim", 50, eta=1.0),
        SamplerSettings("ddim", 50, eta=0.5),
        SamplerSettings("ddim", 20, eta=0.0),
    ],
)
def test_the_matched_coefficient_follows_the_marginal_exactly(
    rho: Tensor, settings: SamplerSettings
) -> None:
    visited = timesteps_of(LINEAR, settings)
    eta = 1.0 if settings.name == "ddpm" else settings.eta
    matched = torch.zeros(1000, dtype=torch.float64)
    matched[visited] = residual_coefficient(LINEAR, rho, eta, visited)
    errors = tracking_error(matched, rho, settings, visited)
    assert max(map(abs, errors.values())) < 1e-9
    unmatched = tracking_error(1.02 * matched, rho, settings, visited)
    assert max(map(abs, unmatched.values())) > 0.1


TABLE: list[tuple[str, SamplerSettings, tuple[float, float], tuple[float, float]]] = [
    ("c", SamplerSettings("ddpm", 1000), (0.0, 0.0), (0.0, 0.0)),
    ("c", SamplerSettings("ddim", 50, eta=1.0), (0.14, 0.14), (3.5, 3.5)),
    ("c", SamplerSettings("ddim", 20, eta=1.0), (0.30, 0.30), (8.0, 8.0)),
    ("c", SamplerSettings("ddim", 50, eta=0.5), (0.60, 0.65), (17, 18)),
    ("c", SamplerSettings("ddim", 1000, eta=0.5), (0.60, 0.65), (17, 18)),
    ("c", SamplerSettings("ddim", 50, eta=0.0), (0.79, 0.80), (22, 22)),
    ("c", SamplerSettings("ddim", 1000, eta=0.0), (0.79, 0.80), (22, 22)),
    ("s", SamplerSettings("ddim", 1000, eta=0.0), (0.0, 0.0), (0.0, 0.01)),
    ("s", SamplerSettings("ddim", 50, eta=1.0), (-1.6, -1.3), (-45, -37)),
    ("s", SamplerSettings("ddim", 1000, eta=1.0), (-1.6, -1.3), (-45, -37)),
]


@pytest.mark.parametrize(("trained", "settings", "early", "late"), TABLE)
def test_the_unmatched_coefficient_drifts_as_in_the_table(
    trained: str, settings: Any, early: tuple[float, float], late: tuple[float, float]
) -> None:
    """Columns t = 900 and t = 500 of section 8, to the digits printed there."""
    coefficient = bad_diffusion(LINEAR) if trained == "c" else LINEAR.s
    visited = timesteps_of(LINEAR, settings)
    errors = tracking_error(coefficient, rho_bad_diffusion(LINEAR), settings, visited)
    assert early[0] - 0.015 < nearest(errors, 899) < early[1] + 0.015
    assert late[0] - 0.55 < nearest(errors, 499) < late[1] + 0.55
