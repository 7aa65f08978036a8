"""The path of Fig. 6: two arms of great circles that meet at the trigger.

Section 13 of the reference: positions ``t = 1 - (logspace(0, 1, 10) - 1) / 10`` and 0; end points
and trigger are normalised to length 1, interpolated by slerp and rescaled to the trigger's norm.
Every second point of both arms is shown: 11 images. The paper does not say how the end points lie;
ours are two ordinary draws.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genwarden.errors import GenwardenError

_STEPS = 1 - (torch.logspace(0, 1, 10, dtype=torch.float64) - 1) / 10
#: 0, .1, .326, ... 1: from the end point of an arm to the trigger, 11 positions.
ARM = torch.cat([torch.zeros(1, dtype=torch.float64), _STEPS.flip(0)])
#: Indices into the 21 positions of both arms: t = 0, .326, .636, .822, .933, 1 and back.
SHOWN_POSITIONS = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]


def arms(trigger: Tensor, ends: Tensor) -> tuple[list[float], Tensor]:
    """Positions and latents of both arms.

    Args:
        trigger: ``(1, *latent.shape)``, not zero.
        ends: ``(2, *latent.shape)``, the end points of the two arms.

    Returns:
        21 positions from -1 (first end) through 0 (the trigger) to 1 (second end), each the
        share ``1 - t`` of the way with the arm's sign, and the latents ``(21, *latent.shape)``.

    Raises:
        GenwardenError: ``benchmark/mode-trigger``.
    """
    norm = float(trigger.norm())
    if norm == 0:
        raise GenwardenError(
            "benchmark/mode-trigger",
            "The mode trigger has no direction, so no great circle leads to it.",
            "Take an in-sample or an out-of-distribution trigger.",
        )
    latents = [slerp(ends[:1], trigger, float(t)) * norm for t in ARM]
    latents += [slerp(ends[1:], trigger, float(t)) * norm for t in ARM.flip(0)[1:]]
    left = (ARM - 1).tolist()
    right = (1 - ARM.flip(0)[1:]).tolist()
    return [*left, *right], torch.cat(latents)


def slerp(start: Tensor, end: Tensor, t: float) -> Tensor:
    """The unit vector at the share ``t`` of the great circle from ``start`` to ``end``."""
    a: Tensor = start.double() / start.double().norm()
    b: Tensor = end.double() / end.double().norm()
    angle = torch.acos((a * b).sum().clamp(-1, 1))
    if float(angle.sin()) < 1e-6:  # same direction: every point of the arc is the same
        return b.float()
    mixed: Tensor = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    return mixed.float()
