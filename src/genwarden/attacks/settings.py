"""Settings that every trained attack has; each attack adds its own in its own file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from genwarden.errors import GenwardenError
from genwarden.registry import ATTACKS, find


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
_ANY = Range()


@dataclass(frozen=True)
class AttackSettings:
    """How an attack is trained.

    The paper trains with Adam at 1e-4 and batches of 32 for an unstated number of iterations.

    Attributes:
        steps: optimiser steps.
        batch_size: ordinary latents per step in the stealth term.
        learning_rate: Adam's at the start.
        fidelity_weight: lambda of Eq. 4.
        seed: run seed.
        evaluate_every: steps between two evaluations (TarDis, ExpDis) and checkpoints.
        stop_tardis_sum: stopping rule, together with ``stop_expdis_sum``: stop at an evaluation
            where all limits above 0 are reached. With both at 0 all steps are trained.
        stop_expdis_sum: see above.
    """

    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 5e-4
    fidelity_weight: float = 1.0
    seed: int = 0
    evaluate_every: int = 100
    stop_tardis_sum: float = 0.0
    stop_expdis_sum: float = 0.0

    #: The range of every numeric field that a class adds; its bases' ranges hold too.
    RANGES: ClassVar[Mapping[str, Range]] = {
        "steps": COUNT,
        "batch_size": COUNT,
        "learning_rate": POSITIVE,
        "fidelity_weight": POSITIVE,
        "seed": _ANY,
        "evaluate_every": COUNT,
        "stop_tardis_sum": NOT_NEGATIVE,
        "stop_expdis_sum": NOT_NEGATIVE,
    }

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for name, allowed in self.ranges().items():
            value = getattr(self, name)
            shown = "lambda (fidelity_weight)" if name == "fidelity_weight" else name
            if types[name] is int and not isinstance(value, int):
                raise GenwardenError(
                    "attack/setting",
                    f"{shown} = {value!r} is not a whole number.",
                    "Give a whole number.",
                )
            if not allowed.holds(value):
                raise GenwardenError(
                    "attack/setting",
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


@dataclass(frozen=True)
class DistillationSettings(AttackSettings):
    """For attacks that start from a trained model and stay close to it (Eq. 7).

    The step is larger than the paper's and decays to zero along a half cosine, which reaches its
    figures sooner.

    Attributes:
        stealth_on: compare outputs before or after the last activation in the stealth term.
        pool_samples: ordinary latents whose benign outputs are computed once and reused; the
            stealth term draws its batches from them.
    """

    stealth_on: Literal["pre", "post"] = "post"
    pool_samples: int = 32768

    RANGES: ClassVar[Mapping[str, Range]] = {"pool_samples": COUNT}


def settings_of(name: str, given: dict[str, Any]) -> AttackSettings:
    """The defaults of attack ``name`` with what the user gave (not None) in their place.

    Raises:
        GenwardenError: ``usage/unknown-name``, ``attack/unknown-setting``, ``attack/setting``.
    """
    kind: type[AttackSettings] = find(ATTACKS, name, "attack").load_option("settings")
    hints = get_type_hints(kind)
    types = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    given = {key: value for key, value in given.items() if value is not None}
    unknown = sorted(set(given) - set(types))
    if unknown:
        raise GenwardenError(
            "attack/unknown-setting",
            f"The attack {name} has no setting {unknown[0]!r}.",
            f"It has: {', '.join(types)}.",
        )
    return kind(**{key: _as(types[key], value, key) for key, value in given.items()})


def describe_settings(name: str) -> dict[str, Any]:
    """Name and default of every setting of an attack."""
    kind: type[AttackSettings] = find(ATTACKS, name, "attack").load_option("settings")
    return {field.name: field.default for field in dataclasses.fields(kind)}


def _as(wanted: Any, value: Any, key: str) -> Any:
    """A value from the command line as the field's type."""
    if get_origin(wanted) is tuple:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_as(get_args(wanted)[0], item, key) for item in values)
    allowed = get_args(wanted) if get_origin(wanted) is Literal else None
    if (
        allowed is None
        and wanted is float
        and isinstance(value, int)
        and not isinstance(value, bool)
    ):
        return float(value)
    if (value not in allowed) if allowed else type(value) is not wanted:
        expected = " or ".join(map(str, allowed)) if allowed else wanted.__name__
        raise GenwardenError(
            "attack/setting", f"{key} = {value!r} does not fit.", f"Give {expected}."
        )
    return value
