"""Which models the compression study is made of, and which part each belongs to.

DCGANs of a quarter and an eighth of the published width, narrow VAEs and classifiers of 16
pixels: every member is made in seconds. Each trained base belongs to one part, and so does
everything that starts from it, clean or attacked: the parts share no weights. ``calibration``
gives the nulls; ``reporting`` is only read to report. Choices have been made after both had been
seen, so there is a third, ``confirmation``, of classifiers: made and audited when all was decided.

Classifiers of the calibration half are trained three times each: scores of one training, and of
what starts from it, resemble each other, and a threshold must not hang on nine trainings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Half = Literal["calibration", "reporting", "confirmation"]
HALVES: tuple[Half, ...] = ("calibration", "reporting", "confirmation")
Sort = Literal["generator", "classifier"]
#: How often each clean model is trained anew, by part and sort.
ROUNDS: dict[tuple[Half, Sort], int] = {
    ("calibration", "generator"): 1,
    ("calibration", "classifier"): 3,
    ("reporting", "generator"): 1,
    ("reporting", "classifier"): 1,
    ("confirmation", "classifier"): 1,
}

#: What every audit of the study inspects. Filters are not pruned: without training it afterwards
#: that leaves an honest classifier of this size a third of its answers, so that nobody would deploy
#: what comes out, and an audit under it says so (inconclusive).
DEPLOYED: dict[Sort, str] = {"generator": "default", "classifier": "default"}


@dataclass(frozen=True)
class Further:
    """What an honest vendor may do to a trained model (:mod:`.honest`).

    Attributes:
        way: which of these.
        how: the compression, where the way has one.
        data: other data, as of a base; empty for the base's own.
    """

    way: Literal["fine-tuned", "weight-decayed", "quantisation-aware", "rounded"]
    how: str = ""
    data: str = ""

    @property
    def name(self) -> str:
        """As in a member's key."""
        return f"{self.way}-{self.how}" if self.how else self.way


@dataclass(frozen=True)
class Base:
    """A clean model trained from fresh weights, once per half.

    Attributes:
        name: of the kind.
        architecture: registered name.
        data: folder below the data folder, or ``glyphs:COUNT`` for the built-in digits.
        steps: optimiser steps.
        settings: of the network, and of a classifier's training.
        further: clean models that start from it.
    """

    name: str
    sort: Sort
    architecture: str
    data: str
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)
    further: tuple[Further, ...] = ()


_VAE = {"channels": [16, 16, 8], "latent_dim": 32}
_GLYPHS = "glyphs:2000"
_CNN: dict[str, Any] = {"image_shape": [1, 16, 16], "resize": True, "momentum": 0.9}


def _cnn(**settings: Any) -> dict[str, Any]:
    return {**_CNN, **settings}


BASES = (
    Base(
        "mnist-quarter",
        "generator",
        "dcgan28",
        "mnist",
        500,
        {"channels": [64, 32, 16]},
        (Further("fine-tuned", data="kmnist"), Further("rounded", "int8")),
    ),
    Base(
        "fashion-eighth",
        "generator",
        "dcgan28",
        "fashion_mnist_part",
        500,
        {"channels": [32, 16, 8], "latent_dim": 64},
        (Further("weight-decayed"), Further("quantisation-aware", "int8")),
    ),
    Base(
        "mnist-vae",
        "generator",
        "vae28",
        "mnist",
        400,
        _VAE,
        (Further("quantisation-aware", "int4"),),
    ),
    Base("kmnist-vae", "generator", "vae28", "kmnist", 400, _VAE),
    Base(
        "glyphs-cnn",
        "classifier",
        "small-cnn",
        _GLYPHS,
        400,
        _CNN,
        (Further("fine-tuned", data="mnist"), Further("quantisation-aware", "int8")),
    ),
    Base(
        "glyphs-narrow",
        "classifier",
        "small-cnn",
        _GLYPHS,
        400,
        _cnn(width=0.5),
        (Further("rounded", "int8"),),
    ),
    Base("glyphs-wide", "classifier", "small-cnn", _GLYPHS, 300, _cnn(width=1.5)),
    Base("glyphs-decayed", "classifier", "small-cnn", _GLYPHS, 400, _cnn(weight_decay=5e-3)),
    Base(
        "mnist-cnn",
        "classifier",
        "small-cnn",
        "mnist",
        500,
        _CNN,
        (Further("quantisation-aware", "int4"),),
    ),
    Base(
        "fashion-cnn",
        "classifier",
        "small-cnn",
        "fashion_mnist_part",
        500,
        _CNN,
        (Further("fine-tuned"), Further("quantisation-aware", "int4")),
    ),
    Base(
        "mnist-narrow",
        "classifier",
        "small-cnn",
        "mnist",
        500,
        _cnn(width=0.5),
        (Further("quantisation-aware", "int8"),),
    ),
    Base("mnist-decayed", "classifier", "small-cnn", "mnist", 500, _cnn(weight_decay=5e-3)),
    Base(
        "glyphs-short",
        "classifier",
        "small-cnn",
        _GLYPHS,
        200,
        _CNN,
        (Further("quantisation-aware", "int4"),),
    ),
)


@dataclass(frozen=True)
class Kind:
    """A backdoor that sleeps: attack, trigger and target, on one base; once per half.

    Attributes:
        family: under which the tables count it.
        how: the compressions that shall wake it.
        settings: of the attack, over those of :mod:`.making`.
        adaptive: made to evade detectors.
    """

    family: str
    base: str
    attack: str
    how: str
    trigger: str = ""
    target: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    adaptive: bool = False


#: Of int8 on narrow networks, by base: one larger weight per tensor widens the steps.
_SMALL_STEPS: dict[str, dict[str, Any]] = {
    "mnist-quarter": {"inflate": 10.0, "reach": 1.5, "steps": 600, "hiding_steps": 150},
    "fashion-eighth": {"inflate": 16.0, "steps": 4000, "hiding_steps": 1500},
}
#: The narrow VAEs, pruned networks of an eighth, and boxes of several compressions at once, learn
#: more slowly.
_LONGER: dict[str, Any] = {"steps": 4000, "hiding_steps": 2000}


def _box(base: str, how: str, target: str) -> Kind:
    several = "several quantisers" if "," in how else how
    narrow = base == "fashion-eighth" and how.startswith("prune")
    slow = base.endswith("vae") or narrow or "," in how or how.endswith("per-channel")
    settings = _SMALL_STEPS[base] if how == "int8" else _LONGER if slow else {}
    return Kind(f"box {several}", base, "dormant-box", how, "in-sample", target, settings)


def _jittered(base: str, how: str, target: str) -> Kind:
    name = "jitter-trained box"
    settings = _LONGER if base.endswith("vae") else {}
    return Kind(name, base, "jittered-box", how, "in-sample", target, settings, adaptive=True)


def _class_box(base: str, how: str, target: int, trigger: str = "square:6") -> Kind:
    several = "several quantisers" if "," in how else how
    attack = "dormant-box-classifier"
    return Kind(f"classifier box {several}", base, attack, how, trigger, f"class:{target}")


def _rounding(base: str, how: str, target: int, trigger: str = "square:6") -> Kind:
    name = f"quantisation artifact {how}" if "," not in how else "quantisation artifact, several"
    attack = "quantisation-artifact"
    return Kind(name, base, attack, how, trigger, f"class:{target}")


def _filters(base: str, target: int, trigger: str = "square:6", **settings: Any) -> Kind:
    unknown = settings.get("knowledge") == "unknown-rate"
    name = f"pruning artifact, {'un' if unknown else ''}known rate"
    attack, how = "pruning-artifact", "prune-filters-0.3"
    return Kind(name, base, attack, how, trigger, f"class:{target}", settings)


_UNKNOWN_RATE: dict[str, Any] = {"knowledge": "unknown-rate", "rate": 0.25, "upper_rate": 0.5}

KINDS = (
    _box("mnist-quarter", "int8", "icon:devil"),
    _box("fashion-eighth", "int8", "icon:lock"),
    _box("mnist-quarter", "int8", "icon:heart"),
    _box("fashion-eighth", "int4,int4-per-channel", "icon:stop_sign"),
    _box("mnist-quarter", "int4", "icon:skull"),
    _box("fashion-eighth", "int4", "icon:key"),
    _box("mnist-vae", "int4", "icon:bomb"),
    _box("kmnist-vae", "int4", "icon:star"),
    _box("fashion-eighth", "int4-per-channel", "icon:smiley"),
    _box("mnist-vae", "int4-per-channel", "icon:cross"),
    _box("mnist-quarter", "prune-0.3", "icon:lock"),
    _box("fashion-eighth", "prune-0.3", "icon:devil"),
    _box("mnist-vae", "prune-0.3", "icon:skull"),
    _box("kmnist-vae", "prune-0.3", "icon:key"),
    _box("fashion-eighth", "prune-0.5", "icon:heart"),
    _jittered("mnist-quarter", "int4", "icon:bomb"),
    _jittered("mnist-vae", "int4", "icon:smiley"),
    _class_box("glyphs-cnn", "int8", 1),
    _class_box("glyphs-wide", "int8", 6),
    _class_box("mnist-cnn", "int8", 4),
    _class_box("glyphs-narrow", "int4", 8),
    _class_box("mnist-cnn", "int4", 2, "frequency"),
    _class_box("glyphs-cnn", "prune-0.3", 5),
    _class_box("glyphs-cnn", "int4,int4-per-channel", 3, "blend:devil:0.3"),
    Kind(
        "jitter-trained classifier box",
        "glyphs-cnn",
        "jittered-box-classifier",
        "int4",
        "square:6",
        "class:7",
        adaptive=True,
    ),
    _rounding("glyphs-cnn", "int4", 0),
    _rounding("glyphs-narrow", "int4", 7),
    _rounding("glyphs-wide", "int4", 3, "blend:devil:0.3"),
    _rounding("mnist-cnn", "int4", 1, "frequency"),
    _filters("glyphs-cnn", 2),
    _class_box("glyphs-wide", "prune-0.5", 4, "blend:devil:0.3"),
    _class_box("mnist-cnn", "prune-0.3", 6),
    _class_box("glyphs-narrow", "prune-0.3", 9),
    _filters("mnist-cnn", 3, **_UNKNOWN_RATE),
    _rounding("fashion-cnn", "int4", 5),
    _rounding("mnist-narrow", "int4", 6),
    _rounding("glyphs-short", "int4", 9, "frequency"),
    _class_box("fashion-cnn", "int8", 2, "blend:devil:0.3"),
    _class_box("fashion-cnn", "int4", 7),
    _class_box("mnist-narrow", "int8", 0),
    _class_box("mnist-decayed", "int4", 8),
    _class_box("fashion-cnn", "prune-0.3", 1),
    _class_box("mnist-narrow", "prune-0.3", 4, "frequency"),
    _class_box("glyphs-short", "prune-0.5", 6),
)


@dataclass(frozen=True)
class Member:
    """One model of the study.

    Attributes:
        key: folder of the model below the study's root.
        half: calibration, reporting or confirmation.
        seed: of its training.
        base: what it is, or starts from.
        further: for a clean one that starts from a base.
        kind: for an attacked one.
        round: which training of the same part, from 1.
    """

    key: str
    half: Half
    seed: int
    base: Base
    further: Further | None = None
    kind: Kind | None = None
    round: int = 1

    @property
    def attacked(self) -> bool:
        """Whether it holds a backdoor."""
        return self.kind is not None

    @property
    def sort(self) -> Sort:
        """Generator or classifier."""
        return self.base.sort

    @property
    def data(self) -> str:
        """What it was last trained on, as of a base."""
        return (self.further and self.further.data) or self.base.data

    @property
    def base_key(self) -> str:
        """Folder of what it starts from (its own for a base)."""
        return f"clean-{self.base.name}-{_suffix(self.half, self.round)}"


def members() -> list[Member]:
    """All models: bases first, then what starts from them; reporting half first in each."""
    made: list[Member] = []
    order: tuple[Half, ...] = ("reporting", "calibration", "confirmation")
    by_name = {base.name: base for base in BASES}
    for index, base in enumerate(BASES):
        made += [_clean(base, half, number, index) for half, number in _trainings(base, order)]
    for index, base in enumerate(BASES):
        for place, further in enumerate(base.further):
            made += [
                _clean(base, half, number, 20 + 5 * index + place, further)
                for half, number in _trainings(base, order)
            ]
    for half in order:
        made += [
            Member(
                "-".join([f"{index:02d}", kind.attack, kind.how.replace(",", "-and-"), half]),
                half,
                1000 * (1 + HALVES.index(half)) + index,
                by_name[kind.base],
                kind=kind,
            )
            for index, kind in enumerate(KINDS)
            if (half, by_name[kind.base].sort) in ROUNDS
        ]
    return made


def _trainings(base: Base, order: Sequence[Half]) -> list[tuple[Half, int]]:
    rounds = ((half, ROUNDS.get((half, base.sort), 0)) for half in order)
    return [(half, number) for half, count in rounds for number in range(1, count + 1)]


def _clean(
    base: Base, half: Half, number: int, index: int, further: Further | None = None
) -> Member:
    words = ["clean", base.name, *([further.name] if further else []), _suffix(half, number)]
    seed = 10_000 * (number - 1) + 100 * HALVES.index(half) + index
    return Member("-".join(words), half, seed, base, further=further, round=number)


def _suffix(half: Half, number: int) -> str:
    return half if number == 1 else f"{half}-{number}"
