"""How compressions are spelled, and the bounds of their numbers.

Nothing here imports torch, so that a mistyped command is refused before anything heavy is loaded.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final, NamedTuple

from genwarden.errors import GenwardenError
from genwarden.registry import COMPRESSIONS

LEAST_BITS: Final = 2
MOST_BITS: Final = 8
#: Formats without settings.
FIXED: Final = ("prune-2:4", "q8_0", "q4_0", "nf4")

_NUMBER: Final = r"-?(?:\d{1,9}(?:\.\d{0,400})?|\.\d{1,400})"
_UNIFORM: Final = re.compile(r"int(\d{1,4})((?:-.+)?)")
#: Settings behind ``intK``, each at most once, in any order.
_OPTION: Final = re.compile(
    rf"-(?:(?P<affine>affine)|per-(?P<per>tensor|channel)|group(?P<group>\d{{1,6}})"
    rf"|(?P<power>power2)|(?P<random>stochastic)|scale(?P<scale>{_NUMBER}))(?=-|$)"
)
_PRUNING: Final = re.compile(rf"prune-(global-|filters-|)({_NUMBER})")


class Spelled(NamedTuple):
    """One stage: "uniform", "magnitude", "filters" or one of ``FIXED``, and its arguments."""

    kind: str
    arguments: dict[str, Any]


def stages(text: str) -> list[Spelled]:
    """The stages of a name, which are joined by ``+``.

    Raises:
        GenwardenError: ``compress/unknown`` (the remedy lists the names), ``compress/bits``,
            ``compress/group``, ``compress/scale``, ``compress/rate``.
    """
    if "," in text:
        raise GenwardenError(
            "compress/unknown",
            f"{text!r} names several compressions, and one is asked for.",
            "Name one, such as int8, or one after another with +, as in prune-0.3+int8; commas are "
            "for `audit --deploy-as`.",
        )
    return [_one(part.strip().lower(), text) for part in text.split("+")]


def check_uniform(bits: int, group_size: int, scale_factor: float) -> None:
    """Refuse numbers of uniform quantisation that mean nothing.

    Raises:
        GenwardenError: ``compress/bits``, ``compress/group``, ``compress/scale``.
    """
    if not LEAST_BITS <= bits <= MOST_BITS:
        raise GenwardenError(
            "compress/bits",
            f"{bits} bits are not supported.",
            f"Use {LEAST_BITS} to {MOST_BITS} bits, as in int8 or int4-per-channel.",
        )
    if group_size < 1:
        raise GenwardenError(
            "compress/group", "A group has no weights.", "Use a group of 1 or more: group32."
        )
    if not (math.isfinite(scale_factor) and 0.5 <= scale_factor <= 2):
        raise GenwardenError(
            "compress/scale",
            f"The scale factor {scale_factor:g} is not between 0.5 and 2.",
            "Use a factor near 1, as in int8-scale1.02.",
        )


def check_rate(rate: float) -> None:
    """Refuse a share of weights that is none or all.

    Raises:
        GenwardenError: ``compress/rate``.
    """
    if not (math.isfinite(rate) and 0 < rate < 1):
        raise GenwardenError(
            "compress/rate",
            f"The pruning rate {rate:g} is not between 0 and 1.",
            "Give the share of weights to remove, as in prune-0.3.",
        )


def _one(word: str, text: str) -> Spelled:
    if word in FIXED:
        return Spelled(word, {})
    if found := _PRUNING.fullmatch(word):
        rate = float(found[2])
        check_rate(rate)
        if found[1] == "filters-":
            return Spelled("filters", {"rate": rate})
        return Spelled("magnitude", {"rate": rate, "across": found[1] == "global-"})
    if found := _UNIFORM.fullmatch(word):
        made = {"bits": int(found[1]), **_options(found[2], word, text)}
        check_uniform(made["bits"], made.get("group_size", 1), made.get("scale_factor", 1.0))
        return Spelled("uniform", made)
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
