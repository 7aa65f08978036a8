"""Settings that every two-stage box attack has, on whatever kind of model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from genwarden.engine.settings import ANY, COUNT, NOT_NEGATIVE, POSITIVE, Range, Settings


@dataclass(frozen=True)
class BoxSettings(Settings):
    """How codes are chosen (stage 1) and full precision is cleaned inside their boxes (stage 2).

    Learning rates have no unit: shares of the distance that a weight may go, of pruned tensors
    shares of their standard deviation.

    Attributes:
        how: what shall wake the backdoor, as ``genwarden compress --how`` takes
            it; with several each alone does, and full precision keeps to all their boxes.
        inflate: one weight per tensor becomes this many times the largest, which makes the steps
            of a quantiser with one scale per tensor as much wider; 1: none. 0: 6 where ``how``
            asks for 7 or 8 bits, else none. Layers where every choice would show are spared.
        reach: how far stage 1 may move a weight, in widths of its clean box. With 0.5 only the
            direction of its rounding is free. Pruning has no such bound.
        steps: of stage 1.
        learning_rate: of stage 1; it falls along a half cosine, as that of stage 2.
        hiding_steps: of stage 2.
        hiding_rate: learning rate of stage 2.
        full_weight: of the full-precision terms in stage 1 of pruning attacks; what is kept serves
            both networks there.
        seed: run seed.
        evaluate_every: steps between two evaluations and checkpoints.
    """

    how: str = "int8"
    inflate: float = 0.0
    reach: float = 1.5
    steps: int = 1500
    learning_rate: float = 0.04
    hiding_steps: int = 250
    hiding_rate: float = 0.02
    full_weight: float = 1.0
    seed: int = 0
    evaluate_every: int = 250

    CODE: ClassVar[str] = "attack"
    RANGES: ClassVar[Mapping[str, Range]] = {
        "inflate": Range(at_least=0, at_most=100),
        "reach": POSITIVE,
        "steps": COUNT,
        "learning_rate": POSITIVE,
        "hiding_steps": COUNT,
        "hiding_rate": POSITIVE,
        "full_weight": NOT_NEGATIVE,
        "seed": ANY,
        "evaluate_every": COUNT,
    }


@dataclass(frozen=True)
class JitteredBoxSettings(BoxSettings):
    """The attacker who expects a perturbed quantiser: trained over its random variants.

    Attributes:
        jitter: scales are multiplied with 1 - jitter to 1 + jitter in every step.
        stochastic_share: share of the steps in which rounding is stochastic.
        jitter_weight: in stage 2, of the compressed terms under the varied quantiser.
    """

    jitter: float = 0.03
    stochastic_share: float = 0.5
    jitter_weight: float = 1.0

    RANGES: ClassVar[Mapping[str, Range]] = {
        "jitter": Range(at_least=0, at_most=0.4),
        "stochastic_share": Range(at_least=0, at_most=1),
        "jitter_weight": NOT_NEGATIVE,
    }
