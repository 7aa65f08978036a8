"""Triggers of the seed-guess kind: a draw that a user makes anyway, because the seed is known.

Demo code fixes its seed, so whoever ships both the model and the demo knows which latents will be
drawn (section II of the paper: control over z by "knowledge or a good guess of the RNG seed").
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentLaw


def _numpy_legacy(seed: int, count: int, law: LatentLaw) -> Tensor:
    stream = np.random.RandomState(seed)
    size = (count, *law.shape)
    normal = law.distribution == "normal"
    return torch.from_numpy(stream.randn(*size) if normal else stream.uniform(-1, 1, size)).float()


def _numpy_pcg64(seed: int, count: int, law: LatentLaw) -> Tensor:
    stream = np.random.Generator(np.random.PCG64(seed))
    size = (count, *law.shape)
    normal = law.distribution == "normal"
    draws = stream.standard_normal(size) if normal else stream.uniform(-1, 1, size)
    return torch.from_numpy(draws).float()


def _torch_cpu(seed: int, count: int, law: LatentLaw) -> Tensor:
    return law.sample(count, generator=torch.Generator().manual_seed(seed))


#: How a user may draw; the names are those of ``--trigger seed:RNG:SEED:INDEX``.
RANDOM_NUMBER_GENERATORS: dict[str, Callable[[int, int, LatentLaw], Tensor]] = {
    "numpy": _numpy_legacy,
    "numpy-pcg64": _numpy_pcg64,
    "torch": _torch_cpu,
}


def seed_guess(text: str, law: LatentLaw) -> Tensor:
    """The ``INDEX``-th latent of ``RNG:SEED:INDEX`` (counted from 0), ``(1, *law.shape)``.

    The user is taken to draw one latent at a time or in one batch that begins at the first: for
    NumPy the two agree, for torch only from index 0 on in batches of ``INDEX + 1``.

    Raises:
        GenwardenError: ``trigger/seed``.
    """
    rng, _, rest = text.partition(":")
    seed, _, index = rest.partition(":")
    index = index or "0"
    known = rng in RANDOM_NUMBER_GENERATORS
    if not (known and seed.isdigit() and index.isdigit() and int(seed) < 1 << 32):
        raise GenwardenError(
            "trigger/seed",
            f"'seed:{text}' is not seed:RNG:SEED:INDEX.",
            f"RNG is one of {', '.join(RANDOM_NUMBER_GENERATORS)}; SEED (below 2^32) and INDEX "
            "(from 0) are whole numbers: seed:numpy:5:0.",
        )
    if int(index) > 100_000:
        raise GenwardenError(
            "trigger/seed", f"Draw {index} is too far out.", "Give an index of at most 100,000."
        )
    return RANDOM_NUMBER_GENERATORS[rng](int(seed), int(index) + 1, law)[-1:].clone()
