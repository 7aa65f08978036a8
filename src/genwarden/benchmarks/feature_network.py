"""Recipe ``feature-network``: train the classifier whose features FID, KID and IS are taken in.

    genwarden benchmark run feature-network --data DATA --option dataset=mnist --out DIR

DATA holds the data sets as folders by name. Cost on one core and expected test accuracy: mnist 1
minute, 99 %; kmnist half a minute, 98 %; fashion half a minute, 88 % (a part of the data set, half
of it inverted); cifar10 11 minutes, 86 %. OUT then is the folder of the network
(``features.safetensors``, ``features.json``); ``--option publish=true`` also puts it into the
package. An interrupted run continues.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from genwarden import __version__
from genwarden.auditing.audit import environment
from genwarden.benchmarks.store import write_result
from genwarden.benchmarks.tables import Table, figure
from genwarden.data.datasets import split_names
from genwarden.data.labelled import LabelledImages, read_labelled
from genwarden.engine.files import sha256_bytes
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.feature_network import (
    SHIPPED,
    FeatureNetwork,
    read_feature_network,
    write_feature_network,
)
from genwarden.models.protocol import SampleSpec
from genwarden.training.features import FeatureTraining, accuracy, train_features

#: Share of the images that is held out where a data set has no test split.
_HELD_OUT = 1 / 6


@dataclass(frozen=True)
class Plan:
    """A network to be trained: folder of its data set, image shape, widths, training."""

    folder: str
    shape: tuple[int, int, int]
    channels: tuple[int, int, int, int]
    training: FeatureTraining


_GREY = (1, 28, 28)
_NARROW = (16, 32, 64, 64)
PLANS = {
    "mnist": Plan("mnist", _GREY, _NARROW, FeatureTraining(epochs=4)),
    "kmnist": Plan("kmnist", _GREY, _NARROW, FeatureTraining(epochs=12)),
    "fashion": Plan(
        "fashion_mnist_part",
        _GREY,
        _NARROW,
        FeatureTraining(epochs=30, batch_size=64, learning_rate=0.1, mirror=True, invert=True),
    ),
    "cifar10": Plan(
        "cifar10",
        (3, 32, 32),
        (32, 64, 128, 128),
        FeatureTraining(epochs=14, shift=3, mirror=True),
    ),
}


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    dataset: str = "mnist",
    publish: bool = False,
    epochs: float = 0.0,
) -> Path:
    """Train the network of one data set and measure it on images that it has not seen.

    Args:
        data: folder that holds the data sets as sub-folders.
        dataset: one of ``PLANS``.
        publish: also write the network into the package's assets.
        epochs: passes over the training images; 0 takes those of the plan.
    """
    if dataset not in PLANS:
        raise GenwardenError(
            "usage/unknown-name",
            f"There is no plan for a feature network of {dataset!r}.",
            f"Choose one of: {', '.join(PLANS)}.",
        )
    if data is None:
        raise GenwardenError(
            "benchmark/data-missing",
            "The recipe feature-network needs the data set that it describes.",
            f"Add --data FOLDER, a folder that holds {PLANS[dataset].folder}.",
        )
    plan = PLANS[dataset]
    training = replace(plan.training, seed=seed, epochs=epochs or plan.training.epochs)
    seen, unseen = _split(str(Path(data) / plan.folder), plan, seed)
    data_sha256 = sha256_bytes(seen.images.numpy().tobytes() + seen.labels.numpy().tobytes())
    network = FeatureNetwork(dataset, plan.shape, plan.channels, len(seen.classes))
    identity = [dataset, plan.channels, asdict(training), data_sha256, __version__]
    began = time.monotonic()
    train_features(
        network,
        seen.images,
        seen.labels,
        training,
        out=out,
        run_id=sha256_bytes(repr(identity).encode())[:16],
        progress=progress,
        device=device,
    )
    seconds = time.monotonic() - began
    command = f"genwarden benchmark run feature-network --option dataset={dataset} --seed {seed}"
    if epochs:
        command += f" --option epochs={epochs:g}"
    card = {
        "data_set": plan.folder,
        "data_sha256": data_sha256,
        "classes": seen.classes,
        "train_images": len(seen.images),
        "test_images": len(unseen.images),
        "training": asdict(training),
        "command": f"{command} --data DATA --out DIR",
    }
    # What counts is the accuracy of the rounded weights, so they are read back first.
    write_feature_network(out, network, {**card, "test_accuracy": 0.0})
    share = accuracy(read_feature_network(out), unseen.images, unseen.labels)
    for folder in [out, *([SHIPPED / dataset] if publish else [])]:
        write_feature_network(folder, network, {**card, "test_accuracy": share})
    shutil.rmtree(out / "work", ignore_errors=True)
    progress.message(f"test accuracy {100 * share:.2f} % of {len(unseen.images):,} images")
    return write_result(
        out / "result.json",
        {
            "recipe": "feature-network",
            "command": card["command"],
            "data_set": plan.folder,
            "train_images": len(seen.images),
            "test_images": len(unseen.images),
            "test_accuracy": share,
            "features": network.num_features,
            "training_s": round(seconds, 1),
            "environment": environment(device),
        },
    )


def tables(document: dict[str, Any], name: str) -> list[Table]:
    """Accuracy and cost of a trained network.

    Args:
        document: content of a result file.
        name: of the file, for the title.
    """
    row = [
        document["data_set"],
        str(document["features"]),
        f"{document['train_images']:,}",
        f"{100 * document['test_accuracy']:.2f}",
        f"{document['test_images']:,}",
        figure(document["training_s"]),
    ]
    columns = ["data set", "features", "training images", "test accuracy in %", "test images"]
    device = f"Device: {document['environment']['device']}."
    return [Table(f"Feature network ({name})", [*columns, "seconds"], [row], [device])]


def _split(source: str, plan: Plan, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Images to learn from and images to be judged by."""
    sample = SampleSpec(plan.shape)
    seen = read_labelled(source, sample, split="train")
    if {"train", "test"} <= set(split_names(source)):
        return seen, read_labelled(source, sample, split="test")
    order = torch.randperm(len(seen.images), generator=random_stream(seed, "feature-held-out"))
    held, kept = order.split([(n := round(_HELD_OUT * len(order))), len(order) - n])
    return tuple(  # type: ignore[return-value]  # two indices, two parts
        LabelledImages(seen.images[part], seen.labels[part], seen.classes) for part in (kept, held)
    )
