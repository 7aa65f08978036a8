"""From what a user types (``int8-per-channel``, ``prune-0.3+int8``) to a compressor."""

from __future__ import annotations

import re
from typing import Any, Final

from genwarden.compression.block_formats import NF4, Q4_0, Q8_0
from genwarden.compression.chain import Chain
from genwarden.compression.contract import Compressor
from genwarden.compression.pruning import FilterPruning, MagnitudePruning, TwoOfFour
from genwarden.compression.uniform import Uniform
from genwarden.errors import GenwardenError
from genwarden.registry import COMPRESSIONS

_NUMBER: Final = r"-?(?:\d{1,9}(?:\.\d{0,400})?|\.\d{1,400})"
_UNIFORM: Final = re.compile(r"int(\d{1,4})((?:-.+)?)")
#: Settings behind ``intK``, each at most once, in any order.
_OPTION: Final = re.compile(
    rf"-(?:(?P<affine>affine)|per-(?P<per>tensor|channel)|group(?P<group>\d{{1,6}})"
    rf"|(?P<power>power2)|(?P<random>stochastic)|scale(?P<scale>{_NUMBER}))(?=-|$)"
)
_PRUNING: Final = re.compile(rf"prune-(global-|filters-|)({_NUMBER})")
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
    stages = tuple(_one(part.strip().lower(), text, seed) for part in text.split("+"))
    return stages[0] if len(stages) == 1 else Chain(stages)


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


def _one(word: str, text: str, seed: int) -> Compressor:
    if word in _FIXED:
        return _FIXED[word]
    if found := _PRUNING.fullmatch(word):
        rate = float(found[2])
        if found[1] == "filters-":
            return FilterPruning(rate)
        return MagnitudePruning(rate, across=found[1] == "global-")
    if found := _UNIFORM.fullmatch(word):
        return Uniform(int(found[1]), seed=seed, **_options(found[2], word, text))
    raise _unknown(word, text)


def _options(text: str, word: str, whole: str) -> dict[str, Any]:
    """Arguments of :class:`Uniform` from ``-affine-per-channel``."""
    given: dict[str, str] = {}
    place = 0
    while place < len(text):
        found = _OPTION.match(text, place)
        if found is None:
            raise _unknown(word, whole)
        option = next(k for k, v in found.groupdict().items() if v is not None)
        kind = "granularity" if option in {"per", "group"} else option
        if kind in given:
            raise GenwardenError(
                "compress/unknown",
                f"{word!r} says twice how it is to be quantised ({found[0][1:]} is too many).",
                "Give each setting once: one of per-tensor, per-channel and groupN, one scale.",
            )
        given[kind] = found[0]
        place = found.end()
    made: dict[str, Any] = {}
    if "granularity" in given:
        size = given["granularity"].removeprefix("-group")
        if size.isdigit():
            made |= {"granularity": "group", "group_size": int(size)}
        else:
            made["granularity"] = size.removeprefix("-per-")
    if "scale" in given:
        made["scale_factor"] = float(given["scale"].removeprefix("-scale"))
    if "random" in given:
        made["rounding"] = "stochastic"
    return {**made, "affine": "affine" in given, "power_of_two": "power" in given}


def _unknown(word: str, text: str) -> GenwardenError:
    inside = "" if word == text.strip().lower() else f" (in {text!r})"
    return GenwardenError(
        "compress/unknown",
        f"There is no compression called {word!r}{inside}.",
        f"Choose from: {', '.join(COMPRESSIONS)}; join stages with +, as in prune-0.3+int8.",
    )
