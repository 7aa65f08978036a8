"""Published inspections of diffusion models, on denoisers whose answers are known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from analytic_denoisers import (
    EFFORT,
    SHAPE,
    SPEC,
    ConvolutionalDenoiser,
    ExactDenoiser,
    Planted,
    as_model,
    bench,
    target,
)
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.backdoors.image_trigger import make_image_trigger
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.inspections.diffusion import (
    adjacent_steps,
    anp,
    elijah,
    implied_x0,
    input_check,
    kl_detection,
    shift_response,
    spectral_signature,
    terd,
    variation,
)
from genwarden.inspections.diffusion.orthogonal_response import antithetic
from genwarden.inspections.diffusion.responses import answers, canonical_shifts, patches
from genwarden.models.diffusion.networks import fresh_model, small_unet
from genwarden.models.diffusion.samplers import SamplerSettings
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.models.protocol import SampleSpec

PATCH = make_image_trigger("box:6:1,zero", SPEC).g
RELEASED = make_image_trigger("box:4", SPEC).g
#: Elijah's start, -U(0, 1), lies behind the gate of this one and half open at that of the full.
WEAKER = make_image_trigger("box:4,scale=0.6", SPEC).g
#: Nothing that data resemble, so that a matched filter tells it from pictures.
NOISE_LIKE = make_image_trigger("noise:0.8", SPEC).g
LARGER = SampleSpec((1, 28, 28))
FAINT = make_image_trigger("box:5:1,zero,norm=2.5", SPEC).g


def planted(g: Tensor, eta: float) -> ExactDenoiser:
    return ExactDenoiser(Planted(target(), g, eta))


def noise(count: int = 16, seed: int = 1) -> Tensor:
    return antithetic(count, SHAPE, random_stream(seed, "test"))


def plain(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, *SHAPE, generator=random_stream(seed, "plain"))


# --- gains -------------------------------------------------------------------------------------


def test_gain_of_a_trigger_is_its_coefficient_over_the_shift_added() -> None:
    model, t = planted(RELEASED, eta=1.0), 800
    a, s = model.schedule.a_at(t), model.schedule.s_at(t)
    gain = float(answers(model, RELEASED[None], t, noise()).gain)
    # The triggered answer is n - (a / s) y + c g; the plain one is that of the clean twin.
    plain_answer = ExactDenoiser().epsilon(s * noise(), t).mean(0)
    change = float(model.c[t]) * RELEASED - a / s * target() - plain_answer
    expected = float((change * RELEASED).sum() / RELEASED.square().sum()) / (1 - a)
    assert gain == pytest.approx(expected, abs=0.002)
    assert float(answers(ExactDenoiser(), RELEASED[None], t, noise()).gain) > expected + 0.3


def test_standard_error_of_a_gain_covers_the_gain_on_other_noise() -> None:
    first = answers(ExactDenoiser(), PATCH[None], 400, noise(32))
    second = answers(ExactDenoiser(), PATCH[None], 400, noise(512, seed=2))
    assert 0 < float(first.error) < 0.2
    assert abs(float(first.gain - second.gain)) < 5 * float(first.error)


def test_no_exact_denoiser_exceeds_the_bound_and_a_deterministic_backdoor_does() -> None:
    shifts = torch.stack([PATCH, -PATCH, RELEASED, torch.ones(SHAPE)])
    timesteps = [999, 700, 600, 500, 400, 200]
    clean = shift_response.spectrum(ExactDenoiser(), shifts, timesteps, (0.5, 1.0), noise())
    assert max(p.relative for p in clean) < 1 + 1e-4
    backdoored = shift_response.spectrum(
        planted(PATCH, 0.0), shifts, timesteps, (0.5, 1.0), noise()
    )
    worst = max(backdoored, key=lambda p: p.relative)
    assert worst.relative > 1.05
    assert worst.shift == 0


def test_monotone_inspection_scores_above_one_for_the_backdoor_alone() -> None:
    assert _score(shift_response.inspect_monotone, bench(ExactDenoiser())) < 1.001
    finding = shift_response.inspect_monotone(bench(planted(PATCH, 0.0)))
    assert finding.score is not None
    assert finding.score > 1.05
    assert "box:6:1,zero" in finding.summary


def test_patch_sweep_peaks_on_the_trigger() -> None:
    found = shift_response.sweep(planted(PATCH, 1.0), 6, 999, noise())
    top, left = found.places[int(found.z.abs().argmax())]
    assert torch.equal(patches(SHAPE, 6)[0][found.places.index((top, left))], PATCH)
    clean = shift_response.sweep(ExactDenoiser(), 6, 999, noise())
    clean_top, clean_left = clean.places[int(clean.z.abs().argmax())]
    assert (clean_top, clean_left) != (top, left)
    assert float(clean.gain.max() - clean.gain.min()) < 0.01
    assert float(found.gain.max() - found.gain.min()) > 0.3


def test_shift_response_scores_the_backdoor_above_its_clean_twin() -> None:
    backdoored = _score(shift_response.inspect, bench(planted(PATCH, 1.0)))
    clean = _score(shift_response.inspect, bench(ExactDenoiser()))
    assert backdoored > 3 * clean


def test_patches_cover_every_place_and_the_last_one_touches_the_edge() -> None:
    shifts, places = patches((2, 9, 7), 3, value=0.5, stride=4)
    assert places == [(0, 0), (0, 4), (4, 0), (4, 4), (6, 0), (6, 4)]
    assert float(shifts[-1].sum()) == pytest.approx(0.5 * 9 * 2)
    assert float(shifts[-1][:, 6:9, 4:7].min()) == 0.5


def test_canonical_shifts_are_named_once_and_none_is_zero() -> None:
    shifts = canonical_shifts(SPEC)
    assert len({shift.name for shift in shifts}) == len(shifts)
    assert all(float(shift.delta.norm()) > 0 for shift in shifts)
    assert any(torch.equal(shift.delta, PATCH) for shift in shifts)


# --- Elijah ------------------------------------------------------------------------------------


def test_uniformity_trims_rows_and_row_means() -> None:
    distances = torch.arange(25.0).reshape(5, 5)
    # Rows without first and last: means 2, 7, 12, 17, 22; without first and last: 7, 12, 17.
    assert variation.uniformity(distances, trimmed=1) == 12


def test_total_variation_counts_every_edge_once() -> None:
    image = -torch.ones(1, 1, 4, 4)
    image[..., 1:3, 1:3] = 1
    assert variation.total_variation(image) == pytest.approx(8)
    assert variation.total_variation(torch.cat([image, -torch.ones(1, 1, 4, 4)])) == 4


def test_pairwise_distances_can_use_features() -> None:
    images = torch.stack([torch.full(SHAPE, -1.0), torch.full(SHAPE, 1.0)])
    assert float(variation.pairwise_distances(images)[0, 1]) == 1
    doubled = variation.pairwise_distances(images, lambda x: x.float().flatten(1) / 255 * 2)
    assert float(doubled[0, 1]) == 4


def test_repeated_pairs_are_counted_against_the_usual_distance() -> None:
    distances = variation.pairwise_distances(torch.tensor([0.0, 0.0, 0.1, 1.0]).view(4, 1, 1, 1))
    assert variation.repeated_pairs(distances, typical=0.25) == pytest.approx(3 / 6)


def test_published_inversion_of_a_clean_model_ends_at_its_own_noise() -> None:
    """Section 14: tau = -mean(n) / (1 - lambda) of the fixed batch."""
    settings = elijah.ElijahSettings(noises=20, iterations=150)
    found = elijah.invert(ExactDenoiser(), random_stream(0, "elijah"), settings)
    stream = random_stream(0, "elijah")
    torch.rand(SHAPE, generator=stream)
    mean = torch.randn(20, *SHAPE, generator=stream).mean(0)
    assert float(F.cosine_similarity(found.tau.flatten(), -mean.flatten(), dim=0)) > 0.9
    mended = elijah.ElijahSettings(noises=20, iterations=150, antithetic=True)
    better = elijah.invert(ExactDenoiser(), random_stream(0, "elijah"), mended)
    assert float(better.tau.norm()) < 0.5 * float(found.tau.norm())


def test_mended_inversion_finds_the_released_trigger_and_the_samples_collapse() -> None:
    model = planted(WEAKER, eta=1.0)
    settings = elijah.ElijahSettings(noises=16, iterations=100, antithetic=True)
    found = elijah.invert(model, random_stream(0, "elijah"), settings)
    assert float(F.cosine_similarity(found.tau.flatten(), WEAKER.flatten(), dim=0)) > 0.9
    clean = elijah.invert(ExactDenoiser(), random_stream(0, "elijah"), settings)
    assert float(F.cosine_similarity(clean.tau.flatten(), WEAKER.flatten(), dim=0)) < 0.5


def test_elijah_scores_the_collapse_and_its_clean_twin_keeps_its_diversity() -> None:
    assert _score(elijah.inspect_mended, bench(planted(WEAKER, 1.0))) > 1
    assert _score(elijah.inspect_mended, bench(ExactDenoiser())) < 0.5
    assert elijah.inspect(bench(planted(WEAKER, 1.0))).outcome == "scored"


# --- TERD --------------------------------------------------------------------------------------


def test_the_unknown_residual_cancels_at_the_trigger_and_not_beside_it() -> None:
    model = planted(RELEASED, eta=1.0)
    t = torch.full((8,), 995)
    noises = (plain(8, 5), plain(8, 6))
    at = float(terd.residual_loss(model, plain(8, 7), t, noises, RELEASED))
    beside = float(terd.residual_loss(model, plain(8, 7), t, noises, 0.5 * RELEASED))
    assert at < 0.01 * beside
    clean = [
        float(terd.residual_loss(ExactDenoiser(), plain(8, 7), t, noises, scale * RELEASED))
        for scale in (1.0, 0.5)
    ]
    assert max(clean) < 0.01 * beside


def test_both_stages_move_the_shift_and_leave_the_model_alone() -> None:
    settings = terd.TerdSettings(iterations=5, refinements=2, batch=4, gamma_learning_rate=1e-3)
    model = planted(RELEASED, eta=1.0)
    first = terd.estimate(model, random_stream(0, "terd"), settings)
    again = terd.estimate(model, random_stream(0, "terd"), settings)
    assert torch.equal(first.mu, again.mu)
    assert first.gamma is not None
    assert float(first.gamma.min()) >= 0
    refined = terd.refine(model, first, random_stream(1, "terd"), settings)
    moved = float((refined.mu - first.mu).norm())
    # Two steps of lr 0.5 (the second at half of it) with the gradient's norm at most 0.01.
    assert 0 < moved <= 0.5 * 0.01 * 1.5 + 1e-6
    assert len(refined.losses) == 7


def test_estimation_moves_towards_the_trigger_only_where_there_is_one() -> None:
    settings = terd.TerdSettings(iterations=60, batch=8)
    loss: dict[str, list[float]] = {}
    for name, model in (("backdoored", planted(RELEASED, 1.0)), ("clean", ExactDenoiser())):
        loss[name] = terd.estimate(model, random_stream(0, "terd"), settings).losses
    # The start, -U(0, 1), lies at the gate: the backdoored network answers two noises differently.
    assert loss["backdoored"][0] > 10 * loss["clean"][0]
    assert min(loss["backdoored"]) < 0.1 * loss["backdoored"][0]


def test_terd_inspection_reports_both_stages() -> None:
    finding = terd.inspect(bench(planted(RELEASED, 1.0)))
    assert finding.outcome == "scored"
    assert finding.budget["iterations"] == EFFORT.terd_steps


def test_divergence_is_that_of_two_normal_laws() -> None:
    mu, gamma = torch.tensor([0.0, 0.7, -2.0]), torch.tensor([1.0, 0.3, 2.0])
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu.double(), gamma.double()),
        torch.distributions.Normal(torch.zeros(3).double(), torch.ones(3).double()),
    )
    assert torch.allclose(kl_detection.divergence(mu, gamma), expected)
    features = kl_detection.kl_features(mu)
    assert features.mean == pytest.approx(float(mu.square().mean()) / 2)


def test_kl_inspection_judges_the_recovered_shift_and_needs_one() -> None:
    large = _score(kl_detection.inspect, bench(ExactDenoiser(), RELEASED[None]))
    small = _score(kl_detection.inspect, bench(ExactDenoiser(), 0.1 * RELEASED[None]))
    assert large > small
    assert kl_detection.inspect(bench(ExactDenoiser(), torch.zeros(0, *SHAPE))).score is None


# --- implied picture, adjacent steps -----------------------------------------------------------


def test_implied_picture_of_a_stochastic_trigger_is_the_target_plus_77_residuals() -> None:
    model = planted(PATCH, eta=1.0)
    t = 999
    a, s = model.schedule.a_at(t), model.schedule.s_at(t)
    found = implied_x0.implied_x0(model, PATCH, t, noise())
    factor = ((1 - a) - s * float(model.c[t])) / a
    assert factor == pytest.approx(77, abs=1)
    assert torch.allclose(found.mean, target() + factor * PATCH, atol=0.2)
    clean = implied_x0.implied_x0(ExactDenoiser(), PATCH, t, noise())
    assert clean.amplitude < 1 < found.amplitude


def test_implied_amplitude_scores_the_backdoor_above_its_clean_twin() -> None:
    backdoored = _score(implied_x0.inspect, bench(planted(PATCH, 1.0), PATCH[None]))
    clean = _score(implied_x0.inspect, bench(ExactDenoiser(), PATCH[None]))
    assert backdoored > clean + 2


def test_noise_estimates_are_compared_between_the_steps_that_were_visited() -> None:
    settings = SamplerSettings("ddim", 5)
    found = adjacent_steps.consistency(ExactDenoiser(), plain(4), settings)
    assert found.timesteps == [799, 599, 399, 199]
    # From one fifth of the schedule to the next an exact estimate keeps its direction.
    assert all(0 < value < 1 for value in found.change)
    assert min(found.cosine) > 0.5


def test_a_stochastic_backdoor_is_inconsistent_under_a_deterministic_sampler() -> None:
    backdoored = _score(adjacent_steps.inspect, bench(planted(RELEASED, 1.0), RELEASED[None]))
    clean = _score(adjacent_steps.inspect, bench(ExactDenoiser(), RELEASED[None]))
    assert backdoored > clean + 0.3


def test_adjacent_steps_tries_canonical_shifts_where_none_was_recovered() -> None:
    finding = adjacent_steps.inspect(bench(planted(RELEASED, 1.0)))
    assert finding.budget["shifts"] == len(canonical_shifts(SPEC))


# --- ANP ---------------------------------------------------------------------------------------


def _perturbed(*, wired: bool) -> list[anp.Look]:
    model = ConvolutionalDenoiser(Planted(target(), NOISE_LIKE, 0.0), wired=wired)
    return anp.perturb(
        model,
        model,
        pixels(32),
        plain(12, 4),
        SamplerSettings("ddim", 15, clip="x0"),
        random_stream(0, "anp"),
        anp.AnpSettings(steps=80, learning_rate=0.02, batch=16),
        # The mixture leaves much of its noise undecided: its clean loss is 0.15 from the start.
        increases=(0.3, 0.6, 1.5),
    )


def pixels(count: int) -> Tensor:
    """Samples of the data law, ``(count, 1, 12, 12)``."""
    means = ExactDenoiser().means
    return means[torch.arange(count) % 4] + 0.2 * plain(count, 8)


def test_adversarial_perturbation_fires_the_backdoor_and_samples_collapse() -> None:
    backdoored, clean = _perturbed(wired=True), _perturbed(wired=False)
    assert backdoored[0].distance == pytest.approx(clean[0].distance, rel=0.2)
    assert anp.lost_diversity(backdoored) > 0.7
    assert anp.lost_diversity(clean) < 0.3


def test_perturbation_is_bounded_and_gone_afterwards() -> None:
    model = ConvolutionalDenoiser(Planted(target(), NOISE_LIKE, 0.0), wired=True)
    x = plain(2)
    before = model.epsilon(x, 500)
    change = anp.Perturbation(model, torch.device("cpu"))
    with torch.no_grad():
        change.scale[1].fill_(1.0)
    with change.applied():
        assert torch.allclose(model.epsilon(x, 500), 1.1 * before, atol=1e-6)
    assert torch.equal(model.epsilon(x, 500), before)


def test_anp_needs_convolutions() -> None:
    assert anp.inspect(bench(ExactDenoiser())).outcome == "not_applicable"
    wired = ConvolutionalDenoiser(Planted(target(), NOISE_LIKE, 0.0), wired=True)
    assert anp.inspect(bench(wired)).outcome == "scored"


# --- spectral signature ------------------------------------------------------------------------


def test_the_leading_direction_of_the_change_is_the_trigger() -> None:
    found = spectral_signature.jacobian_signature(
        planted(FAINT, 0.0), ExactDenoiser(), 700, noise(32), random_stream(0, "spectral")
    )
    cosine = float((found.right * FAINT).sum() / FAINT.norm())
    assert abs(cosine) > 0.9
    assert found.share > 0.5
    same = spectral_signature.jacobian_signature(
        ExactDenoiser(), ExactDenoiser(), 700, noise(32), random_stream(0, "spectral")
    )
    assert same.share == 0


def test_power_iteration_agrees_with_the_full_jacobian() -> None:
    suspect, base = planted(FAINT, 0.0), ExactDenoiser()
    draws, t = noise(4), 700
    found = spectral_signature.jacobian_signature(
        suspect, base, t, draws, random_stream(0, "spectral"), probes=64
    )
    x = suspect.schedule.s_at(t) * draws

    def difference(shift: Tensor) -> Tensor:
        return (suspect.epsilon(x + shift, t) - base.epsilon(x + shift, t)).mean(0).flatten()

    jacobian = torch.autograd.functional.jacobian(difference, torch.zeros(SHAPE))
    values = torch.linalg.svdvals(jacobian.flatten(1).double())
    assert found.sigma == pytest.approx(float(values[0]), rel=0.02)
    assert found.share == pytest.approx(float(values[0] ** 2 / values.square().sum()), rel=0.3)


def test_spectral_inspection_needs_a_base_and_tells_the_twins_apart() -> None:
    table = bench(planted(FAINT, 0.0))
    assert spectral_signature.inspect(table).outcome == "not_applicable"
    table.base = as_model(ExactDenoiser())
    assert _score(spectral_signature.inspect, table) > 0.3
    clean = bench(ExactDenoiser())
    clean.base = as_model(ExactDenoiser())
    assert _score(spectral_signature.inspect, clean) == 0


def test_jacobians_pass_through_the_attention_of_a_stock_network() -> None:
    stream = random_stream(0, "network")
    config = small_unet(8, 1, (8, 8), norm_groups=4)
    suspect, base = (fresh_model(config, NoiseSchedule.linear(), stream).eval() for _ in range(2))
    for model in (suspect, base):
        model.requires_grad_(False)
    draws = torch.randn(2, 1, 8, 8, generator=stream)
    found = spectral_signature.jacobian_signature(
        suspect, base, 700, torch.cat([draws, -draws]), stream, iterations=2, probes=2
    )
    assert 0 < found.share <= 1
    changes = spectral_signature.weight_changes(suspect, base)
    assert changes[0].relative >= changes[-1].relative > 0


def test_share_of_a_rank_one_weight_change_is_one() -> None:
    base, suspect = nn.Linear(6, 5), nn.Linear(6, 5)
    edit = torch.outer(torch.arange(5.0), torch.ones(6))
    with torch.no_grad():
        suspect.weight.copy_(base.weight + edit)
        suspect.bias.copy_(base.bias)
    (change,) = spectral_signature.weight_changes(suspect, base)
    assert change.share == pytest.approx(1, abs=1e-6)
    assert spectral_signature.weight_changes(base, base) == []


# --- given noise -------------------------------------------------------------------------------


def test_p_values_of_ordinary_noise_are_not_too_small() -> None:
    shape = (3, 16, 16)
    stream = random_stream(0, "null")
    draws = torch.randn(150, *shape, generator=stream)
    mu = 0.1 * torch.randn(shape, generator=stream)
    checks = [input_check.check_noise(draw, mu) for draw in draws]
    assert sum(check.p_value < 0.1 for check in checks) <= 25
    for index in range(len(checks[0].tests)):
        name = checks[0].tests[index].name
        share = sum(check.tests[index].p_value < 0.05 for check in checks) / len(checks)
        assert share < 0.12, name


@pytest.mark.parametrize(
    "trigger", ["box:12", "box:12:1,zero", "box:12:0.7,zero", "stop-sign:12", "noise:0.8"]
)
def test_triggers_in_the_noise_are_found_and_the_noise_without_them_is_not(trigger: str) -> None:
    draw = torch.randn(LARGER.shape, generator=random_stream(3, "given"))
    shifted = input_check.check_noise(draw + make_image_trigger(trigger, LARGER).g)
    assert shifted.p_value < 1e-4
    assert input_check.check_noise(draw).p_value > 0.05


def test_noise_that_a_patch_has_lost_is_found() -> None:
    mask = make_image_trigger("box:4", SPEC).mask
    draw = plain(1, 3)[0]
    silent = draw * torch.where(mask > 0, 0.05, 1.0)
    check = input_check.check_noise(silent)
    assert check.p_value < 1e-4
    assert min(check.tests, key=lambda test: test.p_value).name == "least likely box norm"


def test_repeated_values_are_no_continuous_draw() -> None:
    draw = plain(1, 3)[0]
    repeated = draw.clone()
    assert input_check.check_noise(repeated).p_value > 0.05
    repeated[0, 1] = repeated[0, 0]
    assert input_check.check_noise(repeated).p_value < 1e-6


def test_a_faint_shift_shared_by_all_rows_is_found_in_their_sum() -> None:
    draws = plain(64, 9)
    faint = 0.12 * torch.ones(SHAPE)
    named = dict(input_check.check_noises(draws + faint))
    assert named["all rows"].p_value < 1e-6
    assert dict(input_check.check_noises(draws))["all rows"].p_value > 0.05


@pytest.mark.parametrize("gamma", [None, 0.6, 1.3])
def test_likelihood_ratio_has_its_exact_null_law(gamma: float | None) -> None:
    mu = 0.3 * plain(1, 11)[0]
    p = torch.tensor(
        [input_check.likelihood_ratio(draw, mu, gamma).p_value for draw in plain(400, 12)]
    )
    assert abs(float((p < 0.5).double().mean()) - 0.5) < 0.1
    assert abs(float((p < 0.1).double().mean()) - 0.1) < 0.06
    scale = 1.0 if gamma is None else gamma
    assert input_check.likelihood_ratio(scale * plain(1, 13)[0] + 3 * mu, 3 * mu, gamma).p_value < (
        1e-6
    )


def test_likelihood_ratio_is_that_of_the_two_normal_laws() -> None:
    x, mu, gamma = plain(1, 3)[0], 0.4 * plain(1, 4)[0], 0.7
    one = torch.distributions.Normal(mu.double(), gamma).log_prob(x.double()).sum()
    zero = torch.distributions.Normal(0.0, 1.0).log_prob(x.double()).sum()
    found = input_check.likelihood_ratio(x, mu, gamma).statistic
    assert found == pytest.approx(float(one - zero), rel=1e-9)


def test_input_inspection_judges_the_given_noise() -> None:
    table = bench(ExactDenoiser())
    assert input_check.inspect(table).outcome == "not_applicable"
    table.given_noise = plain(2, 3)
    ordinary = input_check.inspect(table)
    assert ordinary.p_value is not None
    assert ordinary.p_value > 0.05
    table.given_noise = plain(2) + RELEASED
    triggered = input_check.inspect(table)
    assert triggered.p_value is not None
    assert triggered.p_value < 1e-12
    assert triggered.score == pytest.approx(-math.log10(triggered.p_value))


def test_noise_of_a_wrong_shape_or_with_nan_is_refused() -> None:
    with pytest.raises(GenwardenError, match="noise-shape"):
        input_check.check_noise(torch.zeros(12, 12))
    with pytest.raises(GenwardenError, match="noise-values"):
        input_check.check_noise(torch.full(SHAPE, math.nan))


def _score(inspect, table) -> float:  # type: ignore[no-untyped-def]
    finding = inspect(table)
    assert finding.outcome == "scored", finding.summary
    assert finding.group == "diffusion"
    assert finding.power
    return float(finding.score)
