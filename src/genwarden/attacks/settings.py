"""Settings that every trained attack has; each attack adds its own in its own file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from genwarden.engine.settings import (
    ANY,
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    Range,
    Settings,
    defaults,
    filled,
)
from genwarden.registry import ATTACKS, find


@dataclass(frozen=True)
class AttackSettings(Settings):
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
        stop_expdis_sum: the other limit of that rule; 0 for none.
    """

    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 5e-4
    fidelity_weight: float = 1.0
    seed: int = 0
    evaluate_every: int = 100
    stop_tardis_sum: float = 0.0
    stop_expdis_sum: float = 0.0

    CODE: ClassVar[str] = "attack"
    WORDS: ClassVar[Mapping[str, str]] = {"fidelity_weight": "lambda (fidelity_weight)"}
    RANGES: ClassVar[Mapping[str, Range]] = {
        "steps": COUNT,
        "batch_size": COUNT,
        "learning_rate": POSITIVE,
        "fidelity_weight": POSITIVE,
        "seed": ANY,
        "evaluate_every": COUNT,
        "stop_tardis_sum": NOT_NEGATIVE,
        "stop_expdis_sum": NOT_NEGATIVE,
    }


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
    return filled(kind, given, method=name, what="attack")


def describe_settings(name: str) -> dict[str, Any]:
    """Name and default of every setting of an attack."""
    kind: type[AttackSettings] = find(ATTACKS, name, "attack").load_option("settings")
    return defaults(kind)
