"""Fine-pruning: prune what clean images do not wake, then fine-tune on them.

Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
Networks" (RAID 2018; compression reference, section 2c: attack success to 0-29 % at about 0.4 %
accuracy). Channels of the last convolution go in increasing order of their mean activation on clean
images, until accuracy on them has fallen by ``tolerance``; the rest is fine-tuned. A backdoor that
only compression wakes hides in roundings, not in dormant channels: there the fine-tuning is what
works.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genwarden.compression.layers import layout_of
from genwarden.data.datasets import to_unit_range
from genwarden.engine.settings import SHARE, Range
from genwarden.errors import GenwardenError
from genwarden.metrics.attack_success import accuracy
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.repairs.classifier.contract import (
    ClassifierRepairSettings,
    LabelledData,
    RepairedClassifier,
)
from genwarden.repairs.classifier.training import train
from genwarden.repairs.contract import RepairRun

_AT_ONCE: Final = 500
#: Accuracy is followed on at most so many images, and channels go in so many portions.
_MEASURED: Final = 1000
_PORTIONS: Final = 20


@dataclass(frozen=True)
class FinePruningClassifierSettings(ClassifierRepairSettings):
    """How far is pruned.

    Attributes:
        tolerance: accuracy on the user's images that pruning may cost.
        most: share of the channels that may go.
        momentum: of the fine-tuning.
    """

    tolerance: float = 0.04
    most: float = 0.9
    momentum: float = 0.9

    RANGES: ClassVar[Mapping[str, Range]] = {
        "tolerance": SHARE,
        "most": SHARE,
        "momentum": Range(at_least=0, below=1),
    }


def fine_prune(
    suspect: ImageClassifier,
    data: LabelledData,
    settings: FinePruningClassifierSettings,
    run: RepairRun,
) -> RepairedClassifier:
    """Prune the last convolution, then fine-tune everything else.

    Raises:
        GenwardenError: ``repair/not-applicable`` without a convolution; ``repair/diverged``.
    """
    student = copy.deepcopy(suspect).eval().requires_grad_(False)
    name, norm = _last_convolution(student)
    order = _activation(student, norm or name, data.images).argsort(stable=True)
    gone = _pruned_count(student, name, norm, order, data, settings)
    run.progress.message(f"fine-pruning: {gone} of {len(order)} channels of {name}")

    def keep_pruned() -> None:
        _silence(student, name, norm, order[:gone])

    keep_pruned()
    optimiser = torch.optim.SGD(
        student.parameters(), settings.learning_rate, momentum=settings.momentum
    )
    history = train(
        student,
        optimiser,
        lambda x, y, _: F.cross_entropy(student(x), y),
        data,
        settings,
        run,
        title="fine-tuning",
        after_step=keep_pruned,
    )
    changes = {"layer": name, "channels": len(order), "pruned_channels": gone}
    return RepairedClassifier(student, changes, history)


def _last_convolution(network: ImageClassifier) -> tuple[str, str]:
    """Names of the convolution that runs last, and of the batch norm behind it or ""."""
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    device = next(network.parameters()).device
    image = torch.zeros(1, *network.sample.shape, device=device)
    layout = layout_of(network, lambda: network(image))
    for hook in hooks:
        hook.remove()
    if not ran:
        raise GenwardenError(
            "repair/not-applicable",
            "The classifier has no convolution whose channels could be pruned.",
            "Choose another method: super-fine-tuning or sau.",
        )
    return ran[-1], layout[f"{ran[-1]}.weight"].norm


@torch.no_grad()
def _activation(network: ImageClassifier, name: str, images: Tensor) -> Tensor:
    """Mean of the rectified output of a module per channel."""
    total: list[Tensor] = []
    hook = network.get_submodule(name).register_forward_hook(
        lambda _, __, output: total.append(output.clamp(min=0).mean((2, 3)).double().sum(0))
    )
    device = next(network.parameters()).device
    for part in images.split(_AT_ONCE):
        network(to_unit_range(part).to(device))
    hook.remove()
    return torch.stack(total).sum(0) / len(images)


def _pruned_count(
    student: ImageClassifier,
    name: str,
    norm: str,
    order: Tensor,
    data: LabelledData,
    settings: FinePruningClassifierSettings,
) -> int:
    """How many channels go before accuracy has fallen by more than the tolerance."""
    images, labels = data.images[:_MEASURED], data.labels[:_MEASURED]
    least = accuracy(student, images, labels) - settings.tolerance
    gone = 0
    for portion in range(1, _PORTIONS + 1):
        tried = round(portion / _PORTIONS * settings.most * len(order))
        trial = copy.deepcopy(student)
        _silence(trial, name, norm, order[:tried])
        if accuracy(trial, images, labels) < least:
            break
        gone = tried
    return gone


@torch.no_grad()
def _silence(network: ImageClassifier, name: str, norm: str, channels: Tensor) -> None:
    """Zero everything that feeds the channels."""
    layer = network.get_submodule(name)
    tensors = [layer.weight, layer.bias]
    if norm:
        behind = network.get_submodule(norm)
        tensors += [behind.weight, behind.bias, behind.running_mean]
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            tensor[channels] = 0
