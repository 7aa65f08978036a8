"""Settings of a method: a frozen dataclass with ranges, filled from what a user typed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from genwarden.errors import GenwardenError


@dataclass(frozen=True)
class Range:
    """Which finite numbers a setting may have; ``above`` and ``below`` are not among them."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """NaN and infinity are outside every range."""
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """``above 0 and at most 64``."""
        words = [
            f"{name.replace('_', ' ')} {limit:g}"
            for name, limit in dataclasses.asdict(self).items()
            if limit is not None
        ]
        return " and ".join(words) or "finite"


#: The common ranges.
COUNT = Range(at_least=1)
POSITIVE = Range(above=0)
NOT_NEGATIVE = Range(at_least=0)
SHARE = Range(at_least=0, at_most=1)
ANY = Range()


@dataclass(frozen=True)
class Settings:
    """Base of all settings: every numeric field has a range and is checked when made."""

    #: First part of the error codes: ``attack``, ``repair``.
    CODE: ClassVar[str] = "usage"
    #: The range of every numeric field that a class adds; its bases' ranges hold too.
    RANGES: ClassVar[Mapping[str, Range]] = {}
    #: What a user knows a field as, where that is another word.
    WORDS: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for name, kind in types.items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                shown = self.WORDS.get(name, name)
                raise _misfit(self.CODE, shown, getattr(self, name), get_args(kind))
        for name, allowed in self.ranges().items():
            value = getattr(self, name)
            shown = self.WORDS.get(name, name)
            if types[name] is int and not isinstance(value, int):
                raise GenwardenError(
                    f"{self.CODE}/setting",
                    f"{shown} = {value!r} is not a whole number.",
                    "Give a whole number.",
                )
            if not allowed.holds(value):
                raise GenwardenError(
                    f"{self.CODE}/setting",
                    f"{shown} = {value!r} is not {allowed}.",
                    f"Give a value that is {allowed}.",
                )

    @classmethod
    def ranges(cls) -> dict[str, Range]:
        """The range of every numeric field."""
        found: dict[str, Range] = {}
        for kind in reversed(cls.__mro__):
            found |= vars(kind).get("RANGES", {})
        return found


AnySettings = TypeVar("AnySettings", bound=Settings)


def filled(
    kind: type[AnySettings], given: Mapping[str, Any], *, method: str, what: str
) -> AnySettings:
    """The defaults of ``kind`` with what the user gave (not None) in their place.

    Args:
        method: name of the method, for the message.
        what: "attack" or "repair".

    Raises:
        GenwardenError: ``<what>/unknown-setting``, ``<what>/setting``.
    """
    hints = get_type_hints(kind)
    types = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    given = {key: value for key, value in given.items() if value is not None}
    unknown = sorted(set(given) - set(types))
    if unknown:
        raise GenwardenError(
            f"{what}/unknown-setting",
            f"The {what} {method} has no setting {unknown[0]!r}.",
            f"It has: {', '.join(types)}.",
        )
    return kind(**{key: _as(types[key], value, key, what) for key, value in given.items()})


def defaults(kind: type[Settings]) -> dict[str, Any]:
    """Name and default of every setting."""
    return {field.name: field.default for field in dataclasses.fields(kind)}


def _as(wanted: Any, value: Any, key: str, what: str) -> Any:
    """A value from the command line as the field's type."""
    if get_origin(wanted) is tuple:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_as(get_args(wanted)[0], item, key, what) for item in values)
    if wanted is str and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ",".join(value)  # a text with commas, such as how=int8,int4
    allowed = get_args(wanted) if get_origin(wanted) is Literal else None
    if (
        allowed is None
        and wanted is float
        and isinstance(value, int)
        and not isinstance(value, bool)
    ):
        return float(value)
    if (value not in allowed) if allowed else type(value) is not wanted:
        raise _misfit(what, key, value, allowed or (wanted.__name__,))
    return value


def _misfit(code: str, shown: str, value: Any, expected: tuple[Any, ...]) -> GenwardenError:
    return GenwardenError(
        f"{code}/setting",
        f"{shown} = {value!r} does not fit.",
        f"Give {' or '.join(map(str, expected))}.",
    )
