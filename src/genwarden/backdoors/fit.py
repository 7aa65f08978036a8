"""Whether triggers and targets are latents and samples of a model.

Tensors of other shapes would broadcast: the attack would train on something else without a word.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator


def require_pairs(model: LatentGenerator, z: Tensor, x: Tensor) -> None:
    """Refuse triggers and targets that are not the model's.

    Args:
        z: shall be ``(count, *latent.shape)``, finite.
        x: shall be ``(count or 1, *sample.shape)``, finite.

    Raises:
        GenwardenError: ``trigger/shape``, ``trigger/not-finite``, ``target/shape``,
            ``target/not-finite``.
    """
    _require("trigger", z, "latents", model.latent.shape)
    _require("target", x, "samples", model.sample.shape)
    if len(x) not in {1, len(z)}:
        raise GenwardenError(
            "target/shape",
            f"There are {len(x)} targets for {len(z)} triggers.",
            "Give one target for all triggers, or one per trigger.",
        )


def _require(what: str, given: Tensor, plural: str, shape: tuple[int, ...]) -> None:
    if given.ndim == 0 or len(given) == 0 or given.shape[1:] != shape:
        raise GenwardenError(
            f"{what}/shape",
            f"The {what} is a tensor of shape {tuple(given.shape)}; {plural} of this model have "
            f"the shape {shape}.",
            f"Give a batch of shape {('count', *shape)}.".replace("'", ""),
        )
    if not bool(torch.isfinite(given).all()):
        raise GenwardenError(
            f"{what}/not-finite", f"The {what} holds NaN or infinity.", "Give finite numbers."
        )
