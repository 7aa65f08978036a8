"""FID, KID and IS: parity with the formulas, order between models, honest refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from genwarden.artifacts.model_folder import read_model
from genwarden.data.datasets import to_bytes
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics import quality as module
from genwarden.metrics.feature_network import SHIPPED, FeatureNetwork, feature_network
from genwarden.metrics.quality import KID_SUBSETS, compare, describe_real, quality
from genwarden.models.dcgan import DCGAN28

FEATURES = 12


def cloud(count: int, name: str, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Correlated Gaussian features ``(count, FEATURES)``."""
    stream = random_stream(0, name)
    mixing = torch.randn(FEATURES, FEATURES, generator=random_stream(0, "mixing"))
    return scale * torch.randn(count, FEATURES, generator=stream) @ mixing + shift


def frechet(a: Tensor, b: Tensor) -> float:
    """The textbook formula with scipy's matrix square root."""
    x, y = a.double().numpy(), b.double().numpy()
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root.real))


def polynomial_mmd(a: Tensor, b: Tensor) -> float:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3."""
    x, y = a.double().numpy(), b.double().numpy()
    m = len(x)

    def kernel(p: Any, q: Any) -> Any:
        return (p @ q.T / x.shape[1] + 1) ** 3

    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    np.fill_diagonal(xx, 0)
    np.fill_diagonal(yy, 0)
    return float((xx.sum() + yy.sum()) / (m * (m - 1)) - 2 * xy.mean())


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    """A feature network with random weights: enough for everything but the size of the figures."""
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    net = FeatureNetwork("untrained", (1, 28, 28), (4, 4, 8, 8), 10)
    torch.random.set_rng_state(torch_state)
    net.eval().requires_grad_(False)
    return net


def refusal(code: str, *arguments: Any, **options: Any) -> str:
    with pytest.raises(GenwardenError) as caught:
        quality(*arguments, **options)
    assert caught.value.code == code
    return caught.value.cause


def test_fid_equals_the_formula_with_a_matrix_square_root() -> None:
    real, other = cloud(900, "real"), cloud(700, "other", shift=0.3, scale=1.2)
    ours = compare(real, other, torch.randn(700, 10), features="none").fid
    assert ours == pytest.approx(frechet(real, other), rel=1e-8)
    assert ours > 1


def test_kid_equals_the_unbiased_polynomial_mmd(monkeypatch: pytest.MonkeyPatch) -> None:
    real, other = cloud(400, "real"), cloud(400, "other", shift=0.3)
    # With as many samples as a subset holds every subset is the whole, in another order.
    result = compare(real, other, torch.randn(400, 10), features="none")
    assert result.kid_mean == pytest.approx(polynomial_mmd(real, other), rel=1e-9)
    assert result.kid_std == pytest.approx(0, abs=1e-9)
    monkeypatch.setattr(module, "KID_SUBSET_SIZE", 100)
    sampled = compare(real, other, torch.randn(400, 10), features="none")
    error = 4 * sampled.kid_std / KID_SUBSETS**0.5
    assert sampled.kid_std > 0
    assert sampled.kid_mean == pytest.approx(result.kid_mean, abs=error)


def test_the_inception_score_counts_the_classes_of_confident_predictions() -> None:
    classes = torch.arange(1000) % 10
    confident = 50.0 * torch.nn.functional.one_hot(classes, 10)
    some = cloud(1000, "real")
    # Ten parts of 100 shuffled samples miss equal shares a little.
    assert 9 < compare(some, some, confident, features="none").inception_score <= 10
    assert compare(some, some, torch.zeros(1000, 10), features="none").inception_score == (
        pytest.approx(1)
    )
    collapsed = 50.0 * torch.nn.functional.one_hot(torch.zeros(1000, dtype=torch.int64), 10)
    score = compare(some, some, collapsed, features="none").inception_score
    assert score == pytest.approx(1, abs=1e-6)


def test_identical_sets_have_no_distance_a_twin_a_small_one_a_shifted_twin_a_large_one() -> None:
    logits = torch.randn(2000, 10, generator=random_stream(0, "logits"))
    real = cloud(2000, "real")
    same = compare(real, real, logits, features="none")
    twin = compare(real, cloud(2000, "twin"), logits, features="none")
    shifted = compare(real, cloud(2000, "twin", shift=1.5), logits, features="none")
    assert same.fid == pytest.approx(0, abs=1e-6)
    assert same.fid < twin.fid < 0.1 * shifted.fid
    assert abs(twin.kid_mean) < 0.1 * shifted.kid_mean
    assert abs(same.kid_mean) < 0.1 * shifted.kid_mean


def test_a_model_is_nearest_to_its_own_samples(
    tiny_generator: DCGAN28, network: FeatureNetwork
) -> None:
    z = torch.randn(400, 8, generator=random_stream(9, "data"))
    own = to_bytes(tiny_generator(z))
    result = quality(tiny_generator, own, features=network, samples=300)
    foreign = quality(tiny_generator, 255 - own, features=network, samples=300)
    assert result.fid < 0.05 * foreign.fid
    assert result.kid_mean < 0.05 * foreign.kid_mean
    assert (result.features, result.real_samples, result.generated_samples) == (
        "untrained",
        400,
        300,
    )


def test_the_shipped_network_ranks_a_trained_model_over_noise(tiny_generator: DCGAN28) -> None:
    """Two halves of the demo model's samples, and an untrained model of the same shape."""
    demo = read_model(SHIPPED.parent / "models" / "dcgan-clean").generator
    z = demo.latent.sample(300, generator=random_stream(1, "data"))
    data = to_bytes(demo(z))
    net = feature_network("mnist")
    real = describe_real(data, net)
    good = quality(demo, real, features=net, samples=300)
    bad = quality(tiny_generator, real, features=net, samples=300)
    assert good.fid < 0.05 * bad.fid
    assert good.inception_score > 2 * bad.inception_score
    assert good.features == "mnist"


def test_the_same_seed_gives_the_same_figures_and_leaves_the_global_stream_alone(
    tiny_generator: DCGAN28, network: FeatureNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KID_SUBSET_SIZE", 50)
    data = torch.randint(0, 256, (200, 1, 28, 28), dtype=torch.uint8)
    before = torch.random.get_rng_state()
    first = quality(tiny_generator, data, features=network, samples=150, seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    assert quality(tiny_generator, data, features=network, samples=150, seed=4) == first
    other = quality(tiny_generator, data, features=network, samples=150, seed=5)
    assert other.fid != first.fid
    assert other.kid_mean != first.kid_mean


def test_features_of_the_data_are_kept_per_data_and_network(
    tmp_path: Path, network: FeatureNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8)
    first = describe_real(data, network, work=tmp_path)
    assert first.features.shape == (40, 8)
    assert len(list(tmp_path.iterdir())) == 1

    def forbidden(*_: Any) -> Any:
        raise AssertionError("the data was described again")

    with monkeypatch.context() as patch:
        patch.setattr(FeatureNetwork, "describe", forbidden)
        again = describe_real(data, network, work=tmp_path)
        assert torch.equal(again.features, first.features)
        with pytest.raises(AssertionError, match="described again"):
            describe_real(255 - data, network, work=tmp_path)
    describe_real(255 - data, network, work=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_too_few_samples_on_either_side_are_refused(
    tiny_generator: DCGAN28, network: FeatureNetwork
) -> None:
    data = torch.randint(0, 256, (9, 1, 28, 28), dtype=torch.uint8)
    code = "metric/too-few-samples"
    assert "data" in refusal(code, tiny_generator, data[:8], features=network, samples=100)
    assert "Asked" in refusal(code, tiny_generator, data, features=network, samples=8)
    quality(tiny_generator, data, features=network, samples=10)  # 8 features need 9 samples


def test_what_cannot_be_compared_is_refused(
    tiny_generator: DCGAN28, network: FeatureNetwork
) -> None:
    data = torch.randint(0, 256, (50, 1, 28, 28), dtype=torch.uint8)
    refusal("metric/not-bytes", tiny_generator, data.float(), features=network, samples=50)
    colour = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8)
    refusal("metric/feature-shape", tiny_generator, colour, features=network, samples=50)
    real = describe_real(data, network)
    mnist = feature_network("mnist")
    refusal("metric/other-features", tiny_generator, real, features=mnist, samples=100)
    with torch.no_grad():
        tiny_generator.project.weight.fill_(torch.inf)
    refusal("metric/not-finite", tiny_generator, data, features=network, samples=50)
