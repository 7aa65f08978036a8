"""The batched search, the novelty measures and the agreement of restarts, on problems with known
answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from genwarden.engine.progress import Silent
from genwarden.engine.seeds import random_stream
from genwarden.inspections.output.agreement import agree
from genwarden.inspections.output.novelty import Novelty, ordinary_distance
from genwarden.models.protocol import LatentLaw
from genwarden.search.latent_search import (
    BATCH_RESTARTS,
    SearchSettings,
    ordinary_bounds,
    polish,
    search,
    start_latents,
)

CPU = torch.device("cpu")
LAW = LatentLaw((10,))


def run(objective, starts: Tensor, settings: SearchSettings):  # type: ignore[no-untyped-def]
    task = Silent().task("t", 1)
    return search(objective, starts, settings, device=CPU, task=task)


def test_search_climbs_to_the_maximum_and_reports_convergence() -> None:
    goal = torch.linspace(-1, 1, 10)
    starts = start_latents(LAW, 40, seed=0, purpose="t")
    found = run(lambda z: -(z - goal).square().sum(1), starts, SearchSettings(300))
    assert (found.score > found.start_score).all()
    assert float((found.z - goal).abs().max()) < 0.05
    assert found.zero_gradient_share == 0


def _two_hills(z: Tensor) -> Tensor:
    """A high hill at 1, a low one at -1; most starts climb the low one."""
    high, low = ((z - place).square().sum(1) for place in (1.0, -1.0))
    return torch.maximum(2 - high, 1 - low / 2)


def test_halving_gives_up_the_worse_half_and_keeps_the_best() -> None:
    starts = start_latents(LAW, 301, seed=0, purpose="t")
    whole = run(_two_hills, starts, SearchSettings(80))
    steps = 0

    def counted(z: Tensor) -> Tensor:
        nonlocal steps
        steps += len(z)
        return _two_hills(z)

    halved = run(counted, starts, SearchSettings(80, halvings=2))
    # 301 for 20 steps, 151 for 20, 76 for 40 and the last look.
    assert steps == 301 * 20 + 151 * 20 + 76 * 41
    assert float(halved.score.max()) == float(whole.score.max())
    assert halved.z[halved.score.argmax()].tolist() == whole.z[whole.score.argmax()].tolist()
    # Restarts that went on took the same way; the others stay in their place, where they were.
    went_on = halved.score == whole.score
    assert 76 <= int(went_on.sum()) < 301
    assert torch.equal(halved.z[went_on], whole.z[went_on])
    assert torch.equal(halved.start_score, whole.start_score)
    assert (halved.score[~went_on] < whole.score[~went_on]).all()


@pytest.mark.parametrize(
    ("steps", "halvings", "rungs"),
    [(200, 3, [25, 50, 100]), (200, 0, []), (3, 4, [1]), (1, 2, [])],
)
def test_halvings_lie_at_half_of_the_steps_a_quarter_and_so_on(
    steps: int, halvings: int, rungs: list[int]
) -> None:
    assert SearchSettings(steps, halvings=halvings).rungs() == rungs


def test_search_respects_radius_and_box() -> None:
    starts = start_latents(LAW, 8, seed=0, purpose="t")
    ball = run(lambda z: z.sum(1), starts, SearchSettings(200, radius=2.0))
    assert float(ball.z.norm(dim=1).max()) <= 2.0 + 1e-5
    assert float(ball.score.max()) == pytest.approx(2.0 * 10**0.5, rel=1e-2)
    box = run(lambda z: z.sum(1), starts, SearchSettings(200, half_width=0.5))
    assert float(box.score.min()) == pytest.approx(5.0, rel=1e-3)


def test_ordinary_bounds_follow_the_latent_law() -> None:
    assert ordinary_bounds(LAW, steps=1).radius == pytest.approx(10**0.5 + 2)
    uniform = ordinary_bounds(LatentLaw((10,), "uniform"), steps=1)
    assert uniform.half_width == 1.0
    assert uniform.radius is None


def test_a_restart_does_not_depend_on_the_others_in_its_batch() -> None:
    def objective(z: Tensor) -> Tensor:
        return -(z - 1).square().sum(1) + z.sin().sum(1)

    starts = start_latents(LAW, BATCH_RESTARTS, seed=0, purpose="t")
    whole = run(objective, starts, SearchSettings(50))
    alone = run(objective, starts[3:4], SearchSettings(50))
    assert torch.allclose(whole.z[3], alone.z[0], atol=1e-5)


def test_flat_objective_is_reported_as_having_no_gradient() -> None:
    starts = start_latents(LAW, 8, seed=0, purpose="t")
    assert run(lambda z: (z * 0).sum(1), starts, SearchSettings(3)).zero_gradient_share == 1.0


def test_best_point_is_kept_when_the_search_overshoots() -> None:
    starts = torch.zeros(1, 10)
    found = run(lambda z: -z.square().sum(1), starts, SearchSettings(5, learning_rate=10.0))
    assert float(found.score[0]) == 0.0


def test_polish_reaches_float64_precision_and_never_gets_worse() -> None:
    matrix = torch.randn(30, 10, generator=random_stream(0, "m"), dtype=torch.float64)

    def loss(z: Tensor) -> Tensor:
        return (torch.tanh(z @ matrix.T) - 0.1).square().sum(1)

    start = torch.randn(3, 10, generator=random_stream(1, "s"))
    before = loss(start.double())
    z, after = polish(loss, start, iterations=200, device=CPU)
    assert (after <= before).all()
    assert torch.allclose(loss(z), after)
    again, finer = polish(loss, z, iterations=200, device=CPU)
    assert torch.allclose(finer, after, rtol=1e-6)
    del again


def test_novelty_matches_numpy() -> None:
    stream = random_stream(0, "x")
    x = torch.randn(500, 1, 4, 4, generator=stream) @ torch.randn(4, 4, generator=stream)
    novelty = Novelty.fit(x)
    flat = x.flatten(1).double().numpy()
    centred = flat - flat.mean(0)
    covariance = np.cov(flat.T)
    ridge = 1e-2 * np.trace(covariance) / 16
    inverse = np.linalg.inv(covariance + ridge * np.eye(16))
    expected = np.einsum("ni,ij,nj->n", centred, inverse, centred)
    assert np.allclose(novelty(x, "mahalanobis").numpy(), expected, rtol=2e-3)
    values, vectors = np.linalg.eigh(covariance)
    leading = vectors[:, ::-1][:, : novelty.leading]
    residual = ((centred - centred @ leading @ leading.T) ** 2).sum(1)
    assert np.allclose(novelty(x, "residual").numpy(), residual, rtol=1e-2, atol=1e-4)
    assert values.sum() > 0


def test_novelty_of_a_foreign_picture_exceeds_every_ordinary_one() -> None:
    basis = torch.randn(5, 64, generator=random_stream(0, "b"))
    x = torch.randn(400, 5, generator=random_stream(1, "c")) @ basis
    novelty = Novelty.fit(x.reshape(400, 1, 8, 8))
    foreign = torch.sign(torch.randn(1, 1, 8, 8, generator=random_stream(2, "f"))) * 3
    for measure in ("mahalanobis", "residual"):
        ordinary = novelty(x.reshape(400, 1, 8, 8), measure)
        assert float(novelty(foreign, measure)) > 3 * float(ordinary.max())


def scattered(count: int) -> Tensor:
    return torch.randn(count, 1, 6, 6, generator=random_stream(3, "scatter"))


def test_agreeing_isolated_end_points_score_high_and_scattered_ones_low() -> None:
    ordinary = scattered(500)
    typical = ordinary_distance(ordinary)
    ends = scattered(564)[500:]
    twin = agree(ends, ordinary, typical)
    assert twin.share == pytest.approx(1 / 64)
    hit = ends.clone()
    hit[:16] = 5 + 0.01 * hit[:16]
    planted = agree(hit, ordinary, typical)
    assert planted.share == pytest.approx(16 / 64)
    assert planted.score > 20 * twin.score
    assert set(planted.members.tolist()) == set(range(16))
    assert planted.spread < 0.01


def test_agreement_on_an_ordinary_output_does_not_count() -> None:
    ordinary = scattered(500)
    ends = ordinary[:1].expand(64, 1, 6, 6)
    assert agree(ends, ordinary, ordinary_distance(ordinary)).score < 1e-3


def test_novelty_with_fewer_samples_than_elements_agrees_with_the_full_computation() -> None:
    basis = torch.randn(6, 64, generator=random_stream(0, "b"))
    x = torch.randn(40, 6, generator=random_stream(1, "c")) @ basis
    x = (x + 0.1 * torch.randn(40, 64, generator=random_stream(2, "n"))).reshape(40, 1, 8, 8)
    small = Novelty.fit(x)
    assert small.axes.shape == (64, 39)
    flat = x.flatten(1).double().numpy()
    covariance = np.cov(flat.T)
    ridge = 1e-2 * np.trace(covariance) / 64
    probe = torch.randn(5, 1, 8, 8, generator=random_stream(3, "p"))
    centred = probe.flatten(1).double().numpy() - flat.mean(0)
    inverse = np.linalg.inv(covariance + ridge * np.eye(64))
    expected = np.einsum("ni,ij,nj->n", centred, inverse, centred)
    assert np.allclose(small(probe, "mahalanobis").numpy(), expected, rtol=1e-3)
