"""ReconD: reaches what is reachable, to float64's floor, and nothing else."""

from __future__ import annotations

import pytest
import torch

from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.reconstruction import recond
from genwarden.models.dcgan import DCGAN28
from genwarden.search.levenberg_marquardt import jacobian_of

SMALL: dict[str, int] = {"restarts": 12, "steps": 60}


def test_a_reachable_target_is_reconstructed_and_a_foreign_one_is_not(
    tiny_generator: DCGAN28,
) -> None:
    z = torch.randn(1, 8, generator=random_stream(1, "hidden"))
    reachable = tiny_generator(z)
    foreign = torch.rand(1, 1, 28, 28, generator=random_stream(1, "foreign")) * 2 - 1
    found, missed = recond(tiny_generator, torch.cat([reachable, foreign]), **SMALL)
    assert found.recond_sum < 1e-9
    assert found.recond_mean == pytest.approx(found.recond_sum / 784)
    assert float((found.z - z[0]).norm()) < 1e-3
    assert missed.recond_sum > 10


def test_the_second_order_finish_improves_on_adam_and_reports_where_it_ended(
    tiny_generator: DCGAN28,
) -> None:
    foreign = torch.rand(1, 28, 28, generator=random_stream(2, "foreign")) * 2 - 1
    (result,) = recond(tiny_generator, foreign, **SMALL)
    assert result.recond_sum < result.adam_sum <= result.median_sum
    again = tiny_generator.double()(result.z[None])[0]
    assert float((again - foreign).square().sum()) == pytest.approx(result.recond_sum, rel=1e-9)
    assert torch.equal(again, result.x)
    assert result.norm == pytest.approx(float(result.z.norm()))
    # Nearly a stationary point: the residual has no part left along the Jacobian.
    single = tiny_generator.float()

    def slope(z: torch.Tensor) -> float:
        jacobian, residual = jacobian_of(single, z), (single(z[None])[0] - foreign).flatten()
        return float((jacobian.T @ residual).norm() / (jacobian.norm() * residual.norm()))

    start = torch.randn(8, generator=random_stream(2, "start"))
    assert slope(result.z.float()) < 0.1 * slope(start)


def test_a_radius_bounds_the_search(tiny_generator: DCGAN28) -> None:
    far = tiny_generator(torch.full((1, 8), 2.0))  # norm 5.66
    (bounded,) = recond(tiny_generator, far, radius=3.0, **SMALL)
    (free,) = recond(tiny_generator, far, **SMALL)
    assert bounded.norm <= 3.0 + 1e-9
    assert free.norm > 5
    assert free.recond_sum < 1e-6 < bounded.recond_sum


def test_the_jacobian_agrees_with_finite_differences(tiny_generator: DCGAN28) -> None:
    z = torch.randn(8, generator=random_stream(0, "jacobian")).double()
    exact = tiny_generator.double()
    jacobian = jacobian_of(exact, z.double())
    assert jacobian.shape == (784, 8)
    for index in range(8):
        direction = torch.zeros(8, dtype=torch.float64)
        direction[index] = 1e-6
        change = (exact((z + direction)[None]) - exact((z - direction)[None])).flatten() / 2e-6
        assert torch.allclose(jacobian[:, index].double(), change, atol=1e-6)


def test_a_target_of_another_shape_is_refused(tiny_generator: DCGAN28) -> None:
    with pytest.raises(GenwardenError) as caught:
        recond(tiny_generator, torch.zeros(1, 3, 32, 32))
    assert caught.value.code == "metric/target-shape"
