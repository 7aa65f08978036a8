"""Output channels of a network's convolutions: choosing the worst and setting them to zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genwarden.errors import GenwardenError
from genwarden.models.diffusion.denoiser import DiffusionModel


def convolutions(model: DiffusionModel) -> dict[str, nn.Conv2d]:
    """The convolutions by name, but the last one, whose channels are those of the image.

    Raises:
        GenwardenError: ``repair/not-applicable`` for a network without any.
    """
    found = {n: m for n, m in model.unet.named_modules() if isinstance(m, nn.Conv2d)}
    found.pop("conv_out", None)
    if not found:
        raise GenwardenError(
            "repair/not-applicable",
            "The network has no convolution whose channels could be pruned.",
            "Use --method shift-unlearning.",
        )
    return found


def highest(scores: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Indices of the channels with the highest scores over all layers; at least one channel.

    Args:
        scores: ``(channels,)`` per layer.
        share: of all channels. No layer loses more than half of its own.
    """
    ranked = sorted(
        ((float(value), name, i) for name, row in scores.items() for i, value in enumerate(row)),
        key=lambda entry: -entry[0],
    )
    wanted = max(1, round(share * len(ranked)))
    taken: dict[str, list[int]] = {}
    for _, name, index in ranked:
        if sum(map(len, taken.values())) == wanted:
            break
        if len(taken.get(name, [])) < max(1, len(scores[name]) // 2):
            taken.setdefault(name, []).append(index)
    return {name: torch.tensor(sorted(rows)) for name, rows in taken.items()}


@torch.no_grad()
def silence(model: DiffusionModel, chosen: dict[str, Tensor]) -> None:
    """Set weights and biases of the chosen channels to zero, in place."""
    layers = convolutions(model)
    for name, rows in chosen.items():
        layer = layers[name]
        where = rows.to(layer.weight.device)
        layer.weight[where] = 0
        if layer.bias is not None:
            layer.bias[where] = 0


def in_words(chosen: dict[str, Tensor], model: DiffusionModel) -> dict[str, object]:
    """What was pruned, for ``repair.json``."""
    total = sum(layer.out_channels for layer in convolutions(model).values())
    count = sum(map(len, chosen.values()))
    return {
        "pruned_channels": count,
        "pruned_share": round(count / total, 5),
        "pruned": {name: [int(i) for i in rows] for name, rows in chosen.items()},
    }
