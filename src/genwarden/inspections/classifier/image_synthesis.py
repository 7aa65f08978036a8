"""Images from a classifier alone: its batch norms remember what they were trained on.

After DeepInversion (Yin et al., CVPR 2020): pictures that the network takes for given classes,
whose feature maps have the means and variances that its batch norms keep, and that are smooth,

    min_x  CE(f(x), y) + sum over norms (mean((mu(x) - mu)^2 / var) + mean(ln(var(x) / var)^2))
           + 0.02 TV(x)

They are no photographs, but they lie where the network was used to working, which is all that an
inversion of triggers asks of its images. Where two networks are compared, the full one and a
compressed one, the images are made from both: what only one of them finds ordinary (a backdoor that
compression wakes answers most pictures that were made from the full network alone) is no image to
start from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import ExitCode, GenwardenError
from genwarden.models.classifiers.protocol import ImageClassifier

_SMOOTHNESS: Final = 0.02
_LEARNING_RATE: Final = 0.05
_START: Final = 0.5
#: With fewer pictures that the network takes for what they should be, there is nothing to work on.
_LEAST_SHARE: Final = 0.5
_TINY: Final = 1e-6


def synthesise(
    classifiers: Sequence[ImageClassifier],
    count: int,
    steps: int,
    *,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> Tensor:
    """Images ``(count, C, H, W)`` in [-1, 1] of all classes in turn, on ``device``.

    Args:
        classifiers: in evaluation mode, parameters without gradients; need batch norm with running
            statistics. The first is the one that must take the images for what they are.
        steps: Adam steps.

    Raises:
        GenwardenError: ``inspect/no-images`` (nothing can be said without images).
    """
    first = classifiers[0]
    norms = [m for one in classifiers for m in one.modules() if isinstance(m, _BatchNorm)]
    norms = [m for m in norms if m.running_mean is not None and m.running_var is not None]
    if not norms:
        raise _missing("It has no batch norm whose statistics would show what its images look like")
    answers = torch.arange(count, device=device) % first.classes
    stream = random_stream(seed, "image-synthesis")
    start = _START * torch.randn(count, *first.sample.shape, generator=stream)
    v = start.to(device).requires_grad_(True)
    adam = torch.optim.Adam([v], _LEARNING_RATE)
    seen: dict[nn.Module, Tensor] = {}

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[module] = inputs[0]

    hooks = [norm.register_forward_pre_hook(watch) for norm in norms]
    task = (progress or Silent()).task("images from the network alone", steps)
    try:
        for _ in range(steps):
            x = torch.tanh(v)
            loss = _SMOOTHNESS * _variation(x)
            for one in classifiers:
                loss = loss + F.cross_entropy(one(x), answers)
            for norm in norms:
                loss = loss + _mismatch(norm, seen[norm])
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            task.advance()
    finally:
        for hook in hooks:
            hook.remove()
    images = torch.tanh(v).detach()
    with torch.no_grad():
        right = float((first(images).argmax(1) == answers).float().mean())
    if right < _LEAST_SHARE:
        raise _missing(f"Of the images made from it, it takes only {right:.0%} for what they are")
    return images


def _mismatch(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Distance of a batch's channel statistics from the kept ones, in units of the latter."""
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101, PT018
    maps = x.movedim(1, 0).flatten(1)
    kept = norm.running_var + norm.eps
    mean = (maps.mean(1) - norm.running_mean).square() / kept
    spread = (maps.var(1, correction=0) / kept + _TINY).log().square()
    return (mean + spread).mean()


def _variation(x: Tensor) -> Tensor:
    """Mean difference of neighbouring pixels."""
    across = (x[..., 1:] - x[..., :-1]).abs().mean()
    down = (x[..., 1:, :] - x[..., :-1, :]).abs().mean()
    return across + down


def _missing(why: str) -> GenwardenError:
    return GenwardenError(
        "inspect/no-images",
        f"{why}, and no images were given.",
        "Give images such as it was made for (--data); labels are not needed.",
        ExitCode.INCONCLUSIVE,
    )
