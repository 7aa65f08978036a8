"""Triggers: the latents at which a compromised generator shows its target.

"The Devil is in the GAN", section 5 of the reference: in-sample, mode and out-of-distribution.
Every trigger has the shape ``(1, *law.shape)``, float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genwarden.artifacts.read_once import read_once
from genwarden.artifacts.shown import reason, shown
from genwarden.artifacts.weights_file import as_float32, parse_weights
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentLaw

#: The paper's out-of-distribution trigger is 100 * ones(100), norm 1000.
OUT_OF_DISTRIBUTION_VALUE = 100.0
#: Kinds that need no argument; ``file:PATH`` is the fourth.
TRIGGER_KINDS = ("in-sample", "mode", "out-of-distribution")
_FILE_PREFIX = "file:"
_MAX_FILE_BYTES = 64 << 20


def in_sample(law: LatentLaw, index: int, *, seed: int) -> Tensor:
    """A draw from P_sample; ``index`` counts the triggers of one experiment (the paper uses 5)."""
    return law.sample(1, generator=random_stream(seed, "trigger", index))


def mode(law: LatentLaw) -> Tensor:
    """z = 0, the most likely latent of N(0, I)."""
    return torch.zeros(1, *law.shape)


def out_of_distribution(law: LatentLaw, value: float = OUT_OF_DISTRIBUTION_VALUE) -> Tensor:
    """``value`` in every element: a latent that no user ever draws."""
    return torch.full((1, *law.shape), value)


def make_trigger(kind: str, law: LatentLaw, *, index: int = 0, seed: int = 0) -> Tensor:
    """The trigger that a user names.

    Args:
        kind: one of :data:`TRIGGER_KINDS`, or ``file:PATH`` of a JSON list of numbers or a weights
            file with one tensor; a batch axis of one may be left away.
        index: which draw of ``in-sample``.
        seed: run seed of ``in-sample``.

    Raises:
        GenwardenError: ``trigger/unknown-kind``, ``trigger/not-numbers``, ``trigger/shape``,
            ``trigger/not-finite``, or ``artifact/...`` for the file.
    """
    if kind == "in-sample":
        return in_sample(law, index, seed=seed)
    if kind == "mode":
        return mode(law)
    if kind == "out-of-distribution":
        return out_of_distribution(law)
    if kind.startswith(_FILE_PREFIX):
        return _from_file(Path(kind.removeprefix(_FILE_PREFIX)), law)
    raise GenwardenError(
        "trigger/unknown-kind",
        f"There is no trigger called {kind!r}.",
        f"Choose one of: {', '.join(TRIGGER_KINDS)}, or file:PATH.",
    )


def _from_file(path: Path, law: LatentLaw) -> Tensor:
    content = read_once(path, limit_bytes=_MAX_FILE_BYTES)
    is_json = content.lstrip()[:1] == b"["
    z = _from_json(content, path) if is_json else _only_tensor(content, path)
    if tuple(z.shape) not in {law.shape, (1, *law.shape)}:
        raise GenwardenError(
            "trigger/shape",
            f"{path} holds numbers of shape {shown(tuple(z.shape))}; latents of this model have "
            f"the shape {law.shape}.",
            "Give one latent of the model's own shape.",
        )
    if not torch.isfinite(z).all():
        raise GenwardenError(
            "trigger/not-finite",
            f"{path} holds NaN, infinity or numbers beyond float32.",
            "Give finite numbers.",
        )
    return z.reshape(1, *law.shape)


def _from_json(content: bytes, path: Path) -> Tensor:
    try:
        document: Any = json.loads(content)
        return torch.tensor(document, dtype=torch.float32)
    except (ArithmeticError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise GenwardenError(
            "trigger/not-numbers",
            f"{path} is not a list of numbers ({reason(error)}).",
            "Give a JSON list, nested like the shape of one latent.",
        ) from error


def _only_tensor(content: bytes, path: Path) -> Tensor:
    tensors = as_float32(parse_weights(content, str(path)))
    if len(tensors) != 1:
        raise GenwardenError(
            "trigger/not-numbers",
            f"{path} holds {len(tensors)} tensors, a trigger is one.",
            "Give a file with a single tensor.",
        )
    (z,) = tensors.values()
    return z.float()
