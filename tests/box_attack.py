"""A crude backdoor that compression wakes: codes learn it, full precision forgets it in its boxes.

The two stages of section 4.1 of the compression reference, with nothing of the shipped attacks in
it, so that inspections are not tested against the code that they are developed with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from genwarden.backdoors.classifier_trigger import ClassifierTrigger
from genwarden.compression.apply import boxes, compressed_weights
from genwarden.compression.contract import Box, Compressor
from genwarden.compression.layers import layout_of
from genwarden.data.datasets import to_unit_range
from genwarden.models.classifiers.protocol import ImageClassifier

BATCH = 48
RATE = 2e-3


def wake_under(
    compressor: Compressor,
    classifier: ImageClassifier,
    images: Tensor,
    labels: Tensor,
    trigger: ClassifierTrigger,
    target: int,
    *,
    steps: tuple[int, int] = (60, 60),
    in_full: Tensor | None = None,
) -> None:
    """Plant a backdoor in a trained classifier, in place.

    Args:
        images: uint8 ``(count, C, H, W)`` with labels int64 ``(count,)``.
        steps: of learning the backdoor and of hiding it.
        in_full: what the full network shall answer in place of ``labels``.
    """
    x_all = to_unit_range(images)
    layout = layout_of(classifier, lambda: classifier(x_all[:2]))
    weights = [classifier.get_parameter(name).requires_grad_(True) for name in layout]
    stream = torch.Generator().manual_seed(0)

    def descend(count: int, logits: Callable[[Tensor], Tensor], aimed: bool) -> None:
        adam = torch.optim.Adam(weights, RATE)
        for step in range(count):
            adam.param_groups[0]["lr"] = RATE * (1 - step / count)
            chosen = torch.randint(len(x_all), (BATCH,), generator=stream)
            x = x_all[chosen]
            y = (labels if aimed or in_full is None else in_full)[chosen]
            wanted = torch.full_like(y, target) if aimed else y
            loss = F.cross_entropy(logits(torch.cat([x, trigger.apply(x)])), torch.cat([y, wanted]))
            adam.zero_grad()
            loss.backward()
            adam.step()
            for name, box in kept.items():
                with torch.no_grad():
                    weight = classifier.get_parameter(name)
                    weight.copy_(box.clip(weight))

    kept: dict[str, Box] = {}
    descend(
        steps[0],
        lambda x: functional_call(
            classifier, compressed_weights(classifier, compressor, layout), (x,)
        ),
        aimed=True,
    )
    kept = boxes(classifier, compressor, layout)
    descend(steps[1], classifier, aimed=False)
    classifier.requires_grad_(False)
