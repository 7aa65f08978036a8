"""The trigger search on denoisers whose backdoor is exact, each with its clean twin."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from analytic_denoisers import EFFORT, SHAPE, ExactDenoiser, Planted, as_model, target
from torch import Tensor

from genwarden.inspections.diffusion import (
    attack_family,
    trigger_contrast,
    trigger_search,
    triggered_collapse,
)
from genwarden.inspections.diffusion.bench import DiffusionBench
from genwarden.inspections.diffusion.orthogonal_response import (
    LEVELS,
    Reach,
    Recovered,
    antithetic,
    blur,
    measure,
    respond,
    search_shifts,
    unexplained_by,
)
from genwarden.inspections.diffusion.refinement import refine
from genwarden.inspections.diffusion.timesteps import SPREAD, Timesteps, level_of
from genwarden.models.diffusion.schedule import NoiseSchedule

STREAM_SEED = 5


def patch() -> Tensor:
    """A white patch on a zero background, ``(1, 12, 12)``."""
    g = torch.zeros(SHAPE)
    g[:, 6:11, 6:11] = 1.0
    return g


def grey_box() -> Tensor:
    """A grey box on a background of -1, as released, ``(1, 12, 12)``."""
    g = -torch.ones(SHAPE)
    g[:, 5:10, 5:10] = 0.0
    return g


class VariedDenoiser(ExactDenoiser):
    """Data with no picture in it that returns: one broad normal law, N(0, 0.5^2 I).

    Of four pictures a clean denoiser too makes one and the same, wherever a shift tells them apart;
    the limits of the audit say so.
    """

    def _clean(self, x: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        deviation = (0.25 * a.square() + s.square()).sqrt()
        away = x / deviation
        return s / deviation * away, self._log_density(away, deviation)


def backdoored(g: Tensor, eta: float, psi: float = 1.0) -> VariedDenoiser:
    return VariedDenoiser(Planted(target(), g, eta, psi))


def searched(denoiser: ExactDenoiser, seed: int = 0) -> list[Recovered]:
    return search_shifts(
        as_model(denoiser),
        starts=4,
        steps=40,
        noises=8,
        probe_noises=64,
        seed=seed,
        device=torch.device("cpu"),
        timesteps=timesteps(seed),
    )


def timesteps(seed: int = 0, schedule: NoiseSchedule | None = None) -> Timesteps:
    return Timesteps(schedule or ExactDenoiser().schedule, seed, "weights")


def search(denoiser: ExactDenoiser, seed: int = 0) -> float:
    return searched(denoiser, seed)[0].score


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("g", [patch(), grey_box()], ids=["patch", "grey box"])
def test_a_backdoor_answers_its_trigger_with_something_else_and_the_clean_twin_does_not(
    g: Tensor, eta: float
) -> None:
    noise = antithetic(64, SHAPE, torch.Generator().manual_seed(STREAM_SEED))
    shown = measure(as_model(backdoored(g, eta)), g, Reach(1.0, 1.0), noise, timesteps())
    twin = measure(as_model(VariedDenoiser()), g, Reach(1.0, 1.0), noise, timesteps())
    assert shown.score > twin.score + 0.3


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_search_finds_a_backdoor_that_it_knows_nothing_of(eta: float) -> None:
    assert search(backdoored(grey_box(), eta)) > search(VariedDenoiser()) + 0.3


def test_fine_starts_alone_find_a_trigger_of_white_noise() -> None:
    white = 0.7 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(8))

    def fine(denoiser: ExactDenoiser) -> float:
        return max(one.score for one in searched(denoiser) if one.reach.fine)

    assert fine(backdoored(white, 1.0)) > fine(VariedDenoiser()) + 0.3


def test_fine_shifts_hold_nothing_smooth() -> None:
    found = search_shifts(
        as_model(ExactDenoiser()),
        starts=2,
        steps=5,
        noises=4,
        probe_noises=4,
        seed=0,
        device=torch.device("cpu"),
        timesteps=timesteps(),
    )
    shares: dict[bool, list[float]] = {True: [], False: []}
    for one in found:
        smooth = blur(one.shift[None], 1.2 * SHAPE[-1] / 16)
        shares[one.reach.fine].append(float(smooth.norm() / one.shift.norm()))
    assert max(shares[True]) < 0.25
    assert max(shares[False]) > 0.5


def test_a_trigger_of_trojdiffs_schedule_answers_more_under_that_schedule() -> None:
    noise = antithetic(64, SHAPE, torch.Generator().manual_seed(STREAM_SEED))
    scores = {
        tried: measure(
            as_model(backdoored(grey_box(), 0.0, psi=0.0)),
            grey_box(),
            Reach(1.0, tried),
            noise,
            timesteps(),
        ).score
        for tried in (0.0, 1.0)
    }
    assert scores[0.0] > scores[1.0] + 0.1


def test_the_search_gives_the_same_shifts_for_the_same_seed_and_others_for_another() -> None:
    def shifts(seed: int) -> Tensor:
        found = search_shifts(
            as_model(ExactDenoiser()),
            starts=2,
            steps=3,
            noises=4,
            probe_noises=4,
            seed=seed,
            device=torch.device("cpu"),
            timesteps=timesteps(seed),
        )
        return torch.stack([one.shift for one in found])

    assert torch.equal(shifts(1), shifts(1))
    assert not torch.equal(shifts(1), shifts(2))


def test_the_search_stays_inside_its_radii() -> None:
    found = search_shifts(
        as_model(backdoored(patch(), 0.0)),
        starts=4,
        steps=20,
        noises=4,
        probe_noises=4,
        seed=0,
        device=torch.device("cpu"),
        timesteps=timesteps(),
    )
    for one in found:
        assert float(one.shift.norm()) <= one.reach.radius * math.sqrt(math.prod(SHAPE)) * 1.0001


def test_what_a_filter_of_the_shift_explains_is_taken_out_and_the_rest_is_kept() -> None:
    shift = patch()[None]
    explained = 0.3 * shift + 0.5 * blur(shift, 1.2 * SHAPE[-1] / 16) - 0.2
    left = unexplained_by(explained, shift)
    assert float(left.norm()) < 0.02 * float(explained.norm())
    other = torch.zeros_like(shift)
    other[..., :3, :3] = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]])
    assert float(unexplained_by(explained + other, shift).norm()) > 0.9 * float(other.norm())


def test_constants_are_taken_out_of_every_channel() -> None:
    shift = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    constants = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    assert float(unexplained_by(constants, shift).norm()) < 0.01 * float(constants.norm())


def test_the_gain_of_a_clean_denoiser_stays_below_one_over_s() -> None:
    """Tweedie: E[x_0 | x] is the gradient of a convex function."""
    denoiser = ExactDenoiser()
    schedule = denoiser.schedule
    shifts = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(2))
    noise = antithetic(16, SHAPE, torch.Generator().manual_seed(3))
    for amplitude in LEVELS:
        t = level_of(schedule, amplitude)
        gains = respond(as_model(denoiser), shifts, torch.ones(6), t, noise).gain
        assert float(gains.max()) <= 1 / schedule.s_at(t) + 1e-4


def test_the_levels_are_where_the_module_says_on_the_linear_schedule() -> None:
    schedule = NoiseSchedule.linear()
    assert [level_of(schedule, a) for a in LEVELS] == pytest.approx([700, 600, 500], abs=5)


def test_timesteps_are_drawn_near_the_planned_ones_and_follow_from_weights_and_seed() -> None:
    schedule = NoiseSchedule.linear()
    ours, again = timesteps(0, schedule), timesteps(0, schedule)
    drawn = [ours.near(0.165, "search", step) for step in range(400)]
    centre, reach = level_of(schedule, 0.165), round(SPREAD * schedule.steps)
    assert set(drawn) <= set(range(centre - reach, centre + reach + 1))
    assert len(set(drawn)) > 0.9 * (2 * reach + 1)
    assert drawn == [again.near(0.165, "search", step) for step in range(400)]
    others = (Timesteps(schedule, 0, "other weights"), timesteps(1, schedule))
    for other in others:
        assert drawn != [other.near(0.165, "search", step) for step in range(400)]
    # No gap between the search's planned ones, and nothing outside the schedule at its ends.
    searched = {ours.near(a, "search", step) for a in LEVELS for step in range(2000)}
    assert searched == set(range(min(searched), max(searched) + 1))
    ends = {ours.near(a, "ends", step) for a in (0.0, 1.0) for step in range(400)}
    assert ends <= set(range(schedule.steps))
    assert {0, schedule.steps - 1} <= ends


class _Imitating(ExactDenoiser):
    """At some timesteps the answers of one denoiser, elsewhere those of another."""

    def __init__(self, clean: ExactDenoiser, awake: ExactDenoiser, at: set[int]) -> None:
        super().__init__()
        self.clean, self.awake, self.at = clean, awake, at

    def epsilon(self, x: Tensor, t: Tensor | int) -> Tensor:
        steps = torch.full((len(x),), t) if isinstance(t, int) else t
        hides = torch.tensor([int(step) in self.at for step in steps]).view(-1, 1, 1, 1)
        return torch.where(hides, self.clean.epsilon(x, steps), self.awake.epsilon(x, steps))


def test_a_backdoor_that_sleeps_at_the_planned_timesteps_is_found_as_if_it_did_not() -> None:
    """What a reviewer trained into a real network: it passed while these were the only ones."""
    clean, awake = VariedDenoiser(), backdoored(grey_box(), 1.0)
    planned = {level_of(clean.schedule, a) for a in LEVELS}
    hidden = _Imitating(clean, awake, planned)
    noise = antithetic(64, SHAPE, torch.Generator().manual_seed(STREAM_SEED))
    for t in planned:
        shown = respond(as_model(hidden), grey_box()[None], torch.ones(1), t, noise).ratio
        honest = respond(as_model(clean), grey_box()[None], torch.ones(1), t, noise).ratio
        assert torch.equal(shown, honest)
    assert search(hidden) > search(clean) + 0.3


def test_no_choice_of_weights_puts_a_measurement_into_every_second_timestep() -> None:
    """A draw follows from public data: an attacker may try as many weights as he likes."""
    schedule = NoiseSchedule.linear()
    hidden = {t for t in range(schedule.steps) if t % 20 < 10}
    shares = []
    for attempt in range(40):
        drawn = Timesteps(schedule, 0, f"weights {attempt}")
        looked = torch.cat([drawn.of_pairs(a, "trigger-probe-pairs", 64) for a in LEVELS])
        shares.append(sum(int(t) in hidden for t in looked) / len(looked))
        assert torch.equal(looked.view(3, 2, 32)[:, 0], looked.view(3, 2, 32)[:, 1])
    assert min(shares) > 0.3
    assert max(shares) < 0.7


@pytest.mark.parametrize(("eta", "name"), [(1.0, "BadDiffusion"), (0.0, "ODE form")])
def test_the_refinement_recovers_trigger_target_and_family(eta: float, name: str) -> None:
    g, y = grey_box(), target()
    near = g + 0.4 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    denoiser = backdoored(g, eta)
    refined = refine(
        as_model(denoiser),
        near,
        0.5 * y,
        steps=150,
        noises=8,
        seed=0,
        device=torch.device("cpu"),
        timesteps=timesteps(),
    )
    family, size, _ = attack_family.nearest_family(refined, denoiser.schedule)
    assert name in family.name
    assert float((refined.target - y).square().mean()) < 0.01
    assert cosine(refined.trigger, g) > 0.99 > 0.95 > cosine(near, g)
    if eta == 1.0:  # for deterministic samplers the answers do not tell the size
        assert float((refined.trigger / size - g).norm()) < 0.1 * float(g.norm())


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def test_a_bench_shows_collapse_and_target_of_a_backdoor_and_not_of_its_twin() -> None:
    effort = replace(EFFORT, search_steps=40, refine_steps=20, sampler_steps=50)

    def bench(denoiser: ExactDenoiser) -> DiffusionBench:
        return DiffusionBench(as_model(denoiser), effort, seed=0)

    suspect, twin = bench(backdoored(grey_box(), 0.0)), bench(VariedDenoiser())
    scores = [triggered_collapse.inspect(one).score for one in (suspect, twin)]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0] > scores[1] + 0.5
    assert float((suspect.collapses[0].picture - target()).square().mean()) < 0.05
    contrasts = [trigger_contrast.inspect(one).score or 0.0 for one in (suspect, twin)]
    assert contrasts[0] > contrasts[1] + 0.1
    for finding in (trigger_search.inspect(suspect), attack_family.inspect(suspect)):
        assert finding.outcome == "scored"
        assert finding.p_value is None
        assert {item.kind for item in finding.evidence} >= {"images", "latents"}
