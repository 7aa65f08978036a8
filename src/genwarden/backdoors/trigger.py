"""Triggers by name: in-sample, mode, out-of-distribution, subspace, seed-guess, or a file.

"The Devil is in the GAN", section 5 of the reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genwarden.artifacts.json_object import load_json
from genwarden.artifacts.read_once import read_once
from genwarden.artifacts.shown import reason, shown
from genwarden.artifacts.weights_file import as_float32, parse_weights
from genwarden.backdoors.seed_guess import seed_guess
from genwarden.backdoors.trigger_law import Points, Subspace, TriggerLaw
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentLaw

#: The paper's out-of-distribution trigger is 100 * ones(100), norm 1000.
OUT_OF_DISTRIBUTION_VALUE = 100.0
#: What a user may write.
TRIGGER_KINDS = (
    "in-sample",
    "mode",
    "out-of-distribution",
    "subspace",
    "subspace:ZEROS",
    "seed:RNG:SEED:INDEX",
    "file:PATH",
)
_FILE_PREFIX = "file:"
_SUBSPACE = "subspace"
_SEED_PREFIX = "seed:"
_MAX_FILE_BYTES = 64 << 20
_MAX_NUMBERS = 4_000_000
_MOST_TRIGGERS = 1024


def in_sample(law: LatentLaw, index: int, *, seed: int) -> Tensor:
    """A draw from P_sample; ``index`` counts the triggers of one experiment (the paper uses 5)."""
    return law.sample(1, generator=random_stream(seed, "trigger", index))


def mode(law: LatentLaw) -> Tensor:
    """z = 0, the most likely latent of N(0, I)."""
    return torch.zeros(1, *law.shape)


def out_of_distribution(law: LatentLaw, value: float = OUT_OF_DISTRIBUTION_VALUE) -> Tensor:
    """``value`` in every element: a latent that no user ever draws."""
    return torch.full((1, *law.shape), value)


def make_trigger(
    kind: str, law: LatentLaw, *, index: int = 0, count: int = 1, seed: int = 0
) -> TriggerLaw:
    """The trigger law that a user names.

    Args:
        kind: one of :data:`TRIGGER_KINDS`. ``subspace`` zeroes the first half of the latent,
            ``subspace:ZEROS`` that many elements; ``seed:numpy:5:0`` is the first draw of NumPy's
            RandomState(5); a file holds a JSON list of numbers or one tensor (one latent, or a
            batch of them).
        index: which draw of ``in-sample`` comes first.
        count: number of ``in-sample`` triggers that one model gets.
        seed: run seed of ``in-sample``.

    Raises:
        GenwardenError: ``trigger/unknown-kind``, ``trigger/count``, ``trigger/subspace``,
            ``trigger/seed``, ``trigger/not-numbers``, ``trigger/shape``, ``trigger/not-finite``,
            or ``artifact/...`` for the file.
    """
    if count < 1 or (count > 1 and kind != "in-sample"):
        raise GenwardenError(
            "trigger/count",
            f"{count} triggers of the kind {kind!r} cannot be drawn.",
            "Several triggers at once: --trigger in-sample, or a file with a batch of latents.",
        )
    if kind == "in-sample":
        return Points(torch.cat([in_sample(law, index + i, seed=seed) for i in range(count)]))
    if kind == "mode":
        return Points(mode(law))
    if kind == "out-of-distribution":
        return Points(out_of_distribution(law))
    if kind == _SUBSPACE or kind.startswith(f"{_SUBSPACE}:"):
        return _subspace(kind.removeprefix(_SUBSPACE).removeprefix(":"), law)
    if kind.startswith(_SEED_PREFIX):
        return Points(seed_guess(kind.removeprefix(_SEED_PREFIX), law))
    if kind.startswith(_FILE_PREFIX):
        return Points(_from_file(Path(kind.removeprefix(_FILE_PREFIX)), law))
    raise GenwardenError(
        "trigger/unknown-kind",
        f"There is no trigger called {kind!r}.",
        f"Choose one of: {', '.join(TRIGGER_KINDS)}.",
    )


def _subspace(text: str, law: LatentLaw) -> Subspace:
    zeros = law.size // 2 if not text else int(text) if text.isdigit() else 0
    if not 0 < zeros < law.size:
        raise GenwardenError(
            "trigger/subspace",
            f"'subspace:{text}' does not leave a part of the {law.size} latent elements.",
            f"Give the number of elements to hold at zero, from 1 to {law.size - 1}.",
        )
    return Subspace(law, zeros)


def _from_file(path: Path, law: LatentLaw) -> Tensor:
    content = read_once(path, limit_bytes=_MAX_FILE_BYTES)
    is_json = content.lstrip()[:1] == b"["
    z = _from_json(content, path) if is_json else _only_tensor(content, path)
    shape = tuple(z.shape)
    if shape != law.shape and (shape[1:] != law.shape or not 0 < len(z) <= _MOST_TRIGGERS):
        raise GenwardenError(
            "trigger/shape",
            f"{path} holds numbers of shape {shown(tuple(z.shape))}; latents of this model have "
            f"the shape {law.shape}.",
            f"Give one latent of that shape, or a batch of at most {_MOST_TRIGGERS}.",
        )
    if not torch.isfinite(z).all():
        raise GenwardenError(
            "trigger/not-finite",
            f"{path} holds NaN, infinity or numbers beyond float32.",
            "Give finite numbers.",
        )
    return z.reshape(-1, *law.shape)


def _from_json(content: bytes, path: Path) -> Tensor:
    try:
        document: Any = load_json(
            content, constants=True, most_bytes=_MAX_FILE_BYTES, most_values=_MAX_NUMBERS
        )
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
