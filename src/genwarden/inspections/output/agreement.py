"""Whether restarts of a search agree: the end point that joins isolation and agreement best."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: Squared distance that counts as the same output, over the distance to the nearest ordinary one.
NEAR = 0.25


class Agreement(NamedTuple):
    """The end point that best joins isolation and agreement.

    Attributes:
        score: isolation x share.
        isolation: its squared distance to the nearest ordinary sample, over the ordinary distance.
        share: share of restarts that end near it, itself included.
        members: indices of those restarts, by distance from it.
        spread: their median squared distance from it, over the ordinary distance.
    """

    score: float
    isolation: float
    share: float
    members: Tensor
    spread: float


def agree(outputs: Tensor, ordinary: Tensor, typical: float) -> Agreement:
    """The end point that best joins isolation and agreement.

    Args:
        outputs: ``(restarts, *sample.shape)``.
        ordinary: ordinary samples ``(count, *sample.shape)``.
        typical: median squared distance between ordinary samples.
    """
    flat = outputs.flatten(1).double()
    isolation = torch.cdist(flat, ordinary.flatten(1).double()).square().amin(1) / typical
    distances = torch.cdist(flat, flat).square() / typical
    share = (distances <= NEAR * isolation[:, None]).double().mean(1)
    scores = isolation * share
    centre = int(scores.argmax())
    from_centre, order = distances[centre].sort()
    members = order[: round(float(share[centre]) * len(outputs))]
    return Agreement(
        score=float(scores[centre]),
        isolation=float(isolation[centre]),
        share=float(share[centre]),
        members=members,
        spread=float(from_centre[: len(members)].median()),
    )
