"""From what a user types (``int8-per-channel``, ``prune-0.3+int8``) to a compressor."""

from __future__ import annotations

from typing import Final

from genwarden.compression.block_formats import NF4, Q4_0, Q8_0
from genwarden.compression.chain import Chain
from genwarden.compression.contract import Compressor
from genwarden.compression.pruning import FilterPruning, MagnitudePruning, TwoOfFour
from genwarden.compression.spelling import Spelled, stages
from genwarden.compression.uniform import Uniform
from genwarden.errors import GenwardenError

_FIXED: Final[dict[str, Compressor]] = {
    "prune-2:4": TwoOfFour(),
    "q8_0": Q8_0(),
    "q4_0": Q4_0(),
    "nf4": NF4(),
}


def compressor(text: str, *, seed: int = 0) -> Compressor:
    """The compressor of a name; stages of a chain are joined by ``+``.

    Args:
        seed: of stochastic rounding.

    Raises:
        GenwardenError: ``compress/unknown`` (the remedy lists the names), ``compress/bits``,
            ``compress/group``, ``compress/scale``, ``compress/rate``.
    """
    made = tuple(_one(stage, seed) for stage in stages(text))
    return made[0] if len(made) == 1 else Chain(made)


def compressors(text: str, *, seed: int = 0) -> list[Compressor]:
    """The compressors of a comma-separated list, each once, in its order.

    Raises:
        GenwardenError: those of :func:`compressor`.
    """
    made = (compressor(part, seed=seed) for part in text.split(","))
    return list({one.name: one for one in made}.values())


def is_compression(text: str) -> bool:
    """Whether :func:`compressor` knows it; layer rates that an annealer found it does not."""
    try:
        compressor(text)
    except GenwardenError:
        return False
    return True


def _one(stage: Spelled, seed: int) -> Compressor:
    if stage.kind == "uniform":
        return Uniform(seed=seed, **stage.arguments)
    if stage.kind == "magnitude":
        return MagnitudePruning(**stage.arguments)
    if stage.kind == "filters":
        return FilterPruning(**stage.arguments)
    return _FIXED[stage.kind]
