"""FID, KID and Inception Score of a generator, by torchmetrics in the features of our networks.

Real and generated images are both described once, as uint8 (what a user stores and sees), and the
three metrics share the description. The real side does not depend on the generator: describe it
once with :func:`describe_real` where many models are compared with the same data.

All three depend on the feature network and on the number of samples; results that differ in either
must not be compared, so both stand in :class:`Quality`. The values of the paper's tables come from
an extractor and a sample count that it does not name.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from genwarden.artifacts.weights_file import read_weights
from genwarden.data.datasets import to_bytes
from genwarden.engine.files import sha256_bytes, write_tensors
from genwarden.engine.seeds import derive_seed
from genwarden.errors import GenwardenError
from genwarden.metrics.draws import LatentDraw, ordinary_samples
from genwarden.metrics.feature_network import FeatureExtractor
from genwarden.models.protocol import LatentGenerator

#: KID is the mean over this many subsets, each of at most so many samples.
KID_SUBSETS = 50
KID_SUBSET_SIZE = 1000
#: The Inception Score is the mean over this many parts of the samples.
IS_SPLITS = 10


@dataclass(frozen=True)
class Quality:
    """How near a generator's samples are to its data.

    Attributes:
        fid: Frechet distance of Gaussians fitted to the features; 0 for equal laws, has no upper
            end, and is biased upwards by small sample counts.
        kid_mean: squared polynomial-kernel MMD of the features, unbiased, mean over the subsets.
        kid_std: standard deviation over the subsets.
        inception_score: exp E KL(p(class | x) || p(class)), 1 to the number of classes.
        inception_score_std: standard deviation over the splits.
        features: name of the feature network.
        real_samples: number of images of the data.
        generated_samples: number of images of the generator.
    """

    fid: float
    kid_mean: float
    kid_std: float
    inception_score: float
    inception_score_std: float
    features: str
    real_samples: int
    generated_samples: int


@dataclass(frozen=True)
class RealFeatures:
    """The data as a feature network describes it: ``features`` is ``(images, num_features)``."""

    features: Tensor
    network: str
    network_sha256: str


def quality(
    generator: LatentGenerator,
    real: Tensor | RealFeatures,
    *,
    features: FeatureExtractor,
    samples: int = 10_000,
    seed: int = 0,
    batch: int = 250,
    draw: LatentDraw | None = None,
) -> Quality:
    """FID, KID and Inception Score of ``samples`` generated images against the data.

    Args:
        generator: in evaluation mode; an image model in [-1, 1].
        real: uint8 images ``(count, channels, height, width)``, or their :func:`describe_real`.
        features: see :func:`genwarden.metrics.feature_network.feature_network`.
        batch: images per forward pass.
        draw: latents other than ordinary ones (a trigger law).

    Raises:
        GenwardenError: ``metric/too-few-samples``, ``metric/feature-shape``,
            ``metric/other-features``, ``metric/not-finite``.
    """
    features.require_shape(generator.sample.shape)
    known = real if isinstance(real, RealFeatures) else describe_real(real, features, batch=batch)
    if known.network_sha256 != _sha256(features):
        raise GenwardenError(
            "metric/other-features",
            f"The data was described by the feature network {known.network!r}, the samples would "
            f"be described by another one ({features.name!r}).",
            "Describe the data with the same network.",
        )
    require_enough(len(known.features), features, "The data has")
    require_enough(samples, features, "Asked for were")
    described, logits = [], []
    for drawn in ordinary_samples(
        generator, samples, seed=seed, purpose="quality", draw=draw, batch=batch
    ):
        part = features.describe(to_bytes(drawn.x).to(_device(features)))
        described.append(part.features.cpu())
        logits.append(part.logits.cpu())
    return compare(
        known.features, torch.cat(described), torch.cat(logits), features=features.name, seed=seed
    )


@torch.no_grad()
def describe_real(
    images: Tensor, features: FeatureExtractor, *, work: Path | None = None, batch: int = 250
) -> RealFeatures:
    """Features of the data.

    Args:
        images: uint8 ``(count, channels, height, width)``.
        work: folder in which the features are kept under the hash of data and network.

    Raises:
        GenwardenError: ``metric/feature-shape``, ``metric/not-bytes``, ``metric/too-few-samples``.
    """
    features.require_shape(tuple(images.shape[1:]))
    if images.dtype != torch.uint8:
        raise GenwardenError(
            "metric/not-bytes",
            f"Real images must be uint8 in [0, 255], not {images.dtype}.",
            "Convert images in [-1, 1] with genwarden.data.datasets.to_bytes.",
        )
    require_enough(len(images), features, "The data has")
    network_sha256 = _sha256(features)
    kept = None
    if work is not None:
        data_sha256 = sha256_bytes(images.numpy().tobytes())
        kept = work / f"real-{data_sha256[:16]}-{network_sha256[:16]}.safetensors"
        if kept.exists():
            found = read_weights(kept).tensors["features"]
            return RealFeatures(found, features.name, network_sha256)
    device = _device(features)
    described = torch.cat([features.describe(p.to(device)).features for p in images.split(batch)])
    if kept is not None:
        write_tensors(kept, {"features": described})
    return RealFeatures(described.cpu(), features.name, network_sha256)


def compare(
    real: Tensor, generated: Tensor, logits: Tensor, *, features: str, seed: int = 0
) -> Quality:
    """The three metrics of given features, in float64.

    Args:
        real: features of the data ``(count, num_features)``.
        generated: features of the samples ``(count, num_features)``.
        logits: of the samples ``(count, classes)``.
        features: name of the feature network.
        seed: of KID's subsets and of the order in which the Inception Score splits the samples.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    given = _Given(real.shape[1])
    subset = min(KID_SUBSET_SIZE, len(real), len(generated))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
        frechet = FrechetInceptionDistance(feature=given)
        kernel = KernelInceptionDistance(feature=given, subsets=KID_SUBSETS, subset_size=subset)
        score = InceptionScore(feature=given, splits=IS_SPLITS)
        for metric in (frechet, kernel):
            metric.update(real.double(), real=True)
            metric.update(generated.double(), real=False)
        score.update(logits.double())
        # torchmetrics shuffles with torch's global stream; it is put back afterwards.
        torch.default_generator.manual_seed(derive_seed(seed, "quality-subsets"))
        fid = float(frechet.compute())
        kid_mean, kid_std = (float(value) for value in kernel.compute())
        score_mean, score_std = (float(value) for value in score.compute())
    return Quality(
        fid=fid,
        kid_mean=kid_mean,
        kid_std=kid_std,
        inception_score=score_mean,
        inception_score_std=score_std,
        features=features,
        real_samples=len(real),
        generated_samples=len(generated),
    )


def require_enough(count: int, features: FeatureExtractor, what: str) -> None:
    """A covariance of n features needs more than n samples, or it is singular.

    Raises:
        GenwardenError: ``metric/too-few-samples``.
    """
    if count <= features.num_features:
        raise GenwardenError(
            "metric/too-few-samples",
            f"{what} {count} samples; the {features.num_features} features of {features.name!r} "
            f"need at least {features.num_features + 1}.",
            "Give more samples, or choose a network with fewer features.",
        )


class _Given(nn.Module):
    """An extractor for torchmetrics that passes on what was extracted before."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, described: Tensor) -> Tensor:
        return described


def _device(features: FeatureExtractor) -> torch.device:
    weight: Tensor = next(iter(features.state_dict().values()))
    return weight.device


def _sha256(features: FeatureExtractor) -> str:
    digest = hashlib.sha256(features.name.encode())
    for key, tensor in sorted(features.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
