"""Feature networks for FID, KID and the Inception Score: small classifiers, shipped with genwarden.

The usual extractor (Inception, trained on ImageNet) is a 90 MB download made for photographs of
299x299 pixels. Here every data set has its own classifier, trained on that data set by
``genwarden benchmark run feature-network`` and shipped as a few hundred kilobytes of safetensors.
A Frechet distance in the features of one network says nothing beside one in the features of
another, so the network's name stands in every result.
"""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

import genwarden
from genwarden.artifacts.model_folder import fill
from genwarden.artifacts.read_once import read_once
from genwarden.artifacts.weights_file import read_weights
from genwarden.engine.files import sha256_bytes, write_atomic, write_json
from genwarden.errors import GenwardenError

CARD_NAME: Final = "features.json"
WEIGHTS_NAME: Final = "features.safetensors"
INCEPTION: Final = "inception"
#: Where the shipped networks lie, one folder each.
SHIPPED: Final = Path(genwarden.__file__).parent / "assets" / "features"

#: The ported weights that torch-fidelity downloads; the name ends in the start of their sha256.
_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
_MAX_CARD_BYTES = 1 << 16


class Described(NamedTuple):
    """What a feature network says about a batch of images.

    Attributes:
        features: ``(batch, num_features)``, for FID and KID.
        logits: ``(batch, classes)``, for the Inception Score.
    """

    features: Tensor
    logits: Tensor


class FeatureExtractor(Protocol):
    """What :func:`genwarden.metrics.quality.quality` asks of a network."""

    name: str
    num_features: int

    def describe(self, images: Tensor) -> Described:
        """Features and logits of uint8 images ``(batch, channels, height, width)``."""
        ...

    def require_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse samples of a shape that the network was not made for."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Its weights by name; their hash identifies the network."""
        ...


class FeatureNetwork(nn.Module):
    """Four 3x3 convolutions, global average pooling, one dense layer.

    The features are the pooled maps of the last convolution (non-negative, as Inception's
    ``pool3``); halving the resolution three times keeps a training within minutes on one core.

    Args:
        name: name under which results refer to it.
        sample_shape: (channels, height, width) of the images.
        channels: feature maps of the four convolutions; the last is ``num_features``.
        classes: number of classes.
    """

    def __init__(
        self,
        name: str,
        sample_shape: tuple[int, int, int],
        channels: tuple[int, int, int, int],
        classes: int,
    ) -> None:
        super().__init__()
        self.name = name
        self.sample_shape = sample_shape
        self.channels = channels
        self.num_features = channels[-1]
        widths = (sample_shape[0], *channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(into, out, 3, padding=1, bias=False)
            for into, out in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in channels)
        self.judge = nn.Linear(self.num_features, classes)

    def describe(self, images: Tensor) -> Described:
        """Features and logits of uint8 images, ``(batch, *sample_shape)`` in [0, 255]."""
        h = (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        last = len(self.convolutions) - 1
        for depth, (convolution, norm) in enumerate(
            zip(self.convolutions, self.norms, strict=True)
        ):
            h = norm(convolution(h))
            # max(relu(x)) = relu(max(x)), and a quarter of the elements is left to compare.
            h = F.relu(F.max_pool2d(h, 2) if depth < last else h)
        features = h.mean((2, 3))
        return Described(features, self.judge(features))

    def forward(self, images: Tensor) -> Tensor:
        """The features alone ``(batch, num_features)``, as torchmetrics' ``feature=`` expects."""
        return self.describe(images).features

    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities ``(batch, classes)``."""
        return self.describe(images).logits.softmax(1)

    def require_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse samples of another shape.

        Raises:
            GenwardenError: ``metric/feature-shape``.
        """
        if tuple(shape) != self.sample_shape:
            raise GenwardenError(
                "metric/feature-shape",
                f"The feature network {self.name!r} describes images of shape "
                f"{self.sample_shape}, not {tuple(shape)}.",
                f"Choose the network of the model's data set, one of: {', '.join(shipped())}.",
            )


class FeatureCard(BaseModel):
    """``features.json``: where a feature network comes from and what it is worth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    name: str
    data_set: str
    data_sha256: str
    sample_shape: tuple[int, int, int]
    channels: tuple[int, int, int, int]
    classes: list[str]
    train_images: int
    test_images: int
    test_accuracy: Annotated[float, Field(ge=0, le=1)]
    training: dict[str, bool | int | float | str]
    command: str
    genwarden: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def shipped() -> list[str]:
    """Names of the networks in this installation."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CARD_NAME}"))


def feature_network(name: str, *, device: torch.device | None = None) -> FeatureExtractor:
    """A shipped network by the name of its data set, ``"inception"``, or a network's folder.

    Raises:
        GenwardenError: ``metric/unknown-features``, ``metric/inception-missing``,
            ``metric/feature-card``, ``artifact/hash-mismatch`` if a file was damaged.
    """
    if name == INCEPTION:
        return InceptionFeatures(device=device)
    return read_feature_network(_folder(name), device=device)


def feature_sha256(name: str) -> str:
    """What identifies the network of :func:`feature_network` without loading its weights.

    Raises:
        GenwardenError: ``metric/unknown-features``, ``metric/feature-card``.
    """
    return _INCEPTION_FILE if name == INCEPTION else read_card(_folder(name)).sha256


def _folder(name: str) -> Path:
    """The folder of a shipped network, or the one that the user names."""
    if name in shipped():
        return SHIPPED / name
    if (Path(name) / CARD_NAME).is_file():
        return Path(name)
    raise GenwardenError(
        "metric/unknown-features",
        f"There is no feature network called {name!r}.",
        f"Choose one of: {', '.join([*shipped(), INCEPTION])}; or train one with "
        f"`genwarden benchmark run feature-network` and name its folder, which holds {CARD_NAME}.",
    )


def read_feature_network(folder: Path, *, device: torch.device | None = None) -> FeatureNetwork:
    """A feature network from its folder, in evaluation mode, its hash checked.

    Raises:
        GenwardenError: ``metric/feature-card`` and codes ``artifact/...``.
    """
    card = read_card(folder)
    # Not ``member=True``: installers such as uv hard-link package files out of their cache.
    weights = read_weights(folder / WEIGHTS_NAME, expected_sha256=card.sha256)
    network = FeatureNetwork(card.name, card.sample_shape, card.channels, len(card.classes))
    fill(network, weights, str(folder))
    return network.to(device or torch.device("cpu"))


def read_card(folder: Path) -> FeatureCard:
    """The validated card of a feature network.

    Raises:
        GenwardenError: ``metric/feature-card``.
    """
    content = read_once(folder / CARD_NAME, limit_bytes=_MAX_CARD_BYTES)
    try:
        return FeatureCard.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise GenwardenError(
            "metric/feature-card",
            f"{folder / CARD_NAME} is not a card of a feature network ({first['loc']}: "
            f"{first['msg']}).",
            "Train the network again with `genwarden benchmark run feature-network`.",
        ) from error


def write_feature_network(folder: Path, network: FeatureNetwork, card: dict[str, Any]) -> None:
    """Write weights and card; kernels as float16, batch-norm statistics as float32.

    Args:
        card: the fields of :class:`FeatureCard` that the network does not know itself.
    """
    from safetensors.torch import save

    tensors = {}
    for key, value in network.state_dict().items():
        half = value.ndim > 1  # kernels; a variance may leave float16's range
        tensors[key] = (value.half() if half else value).detach().cpu().contiguous()
    content = save(tensors)
    full = FeatureCard(
        name=network.name,
        sample_shape=network.sample_shape,
        channels=network.channels,
        genwarden=genwarden.__version__,
        sha256=sha256_bytes(content),
        **card,
    )
    write_atomic(folder / WEIGHTS_NAME, content)
    write_json(folder / CARD_NAME, full.model_dump(mode="json"))


class InceptionFeatures(nn.Module):
    """The extractor of the published FID and IS, where its weights are already on this machine.

    Nothing is downloaded. Grey images are repeated over three channels.

    Raises:
        GenwardenError: ``metric/inception-missing`` or ``artifact/hash-mismatch``.
    """

    name = INCEPTION
    num_features = 2048

    def __init__(self, *, device: torch.device | None = None) -> None:
        super().__init__()
        weights = Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_FILE
        if importlib.util.find_spec("torch_fidelity") is None:
            raise _inception_missing("the package torch-fidelity is not installed", weights)
        if not weights.is_file():
            raise _inception_missing(f"{weights.name} is not in torch's cache", weights)
        digest = sha256_bytes(read_once(weights))
        stated = weights.stem.rsplit("-", 1)[1]
        if not digest.startswith(stated):
            raise GenwardenError(
                "artifact/hash-mismatch",
                f"{weights} has sha256 {digest[:8]}..., its name says {stated}.",
                "Delete the file and fetch it again.",
            )
        from torchmetrics.image.fid import NoTrainInceptionV3

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's notes about its own defaults
            self.network = NoTrainInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], str(weights)
            )
        self.requires_grad_(False).to(device or torch.device("cpu"))

    def describe(self, images: Tensor) -> Described:
        """Features (2048) and unbiased logits (1008) of uint8 images of any size."""
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        # The network's own forward would return the first of the two alone.
        features, logits = self.network._torch_fidelity_forward(images)
        return Described(features, logits)

    def forward(self, images: Tensor) -> Tensor:
        """The features alone ``(batch, 2048)``."""
        return self.describe(images).features

    def require_shape(self, shape: tuple[int, ...]) -> None:
        """Any grey or colour image will do: the network resizes it.

        Raises:
            GenwardenError: ``metric/feature-shape``.
        """
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise GenwardenError(
                "metric/feature-shape",
                f"Inception describes grey or colour images, not samples of shape {shape}.",
                f"Choose one of: {', '.join(shipped())}.",
            )


def _inception_missing(why: str, weights: Path) -> GenwardenError:
    return GenwardenError(
        "metric/inception-missing",
        f"The feature network 'inception' cannot be used: {why}.",
        "Run `pip install torch-fidelity` (it brings torchvision) and put its weights file at "
        f"{weights}; or choose one of: {', '.join(shipped())}.",
    )
