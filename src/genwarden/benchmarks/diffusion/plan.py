"""Which diffusion models the population study is made of, and which half each belongs to.

The networks are the ``tiny`` preset (0.27 M parameters) at 12 to 28 pixels: a CPU trains one in
minutes. Every trained base belongs to one half, and so does everything that starts from it, clean
or compromised: the halves share no weights. ``calibration`` gives the nulls; ``reporting`` is only
read to report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Half = Literal["calibration", "reporting"]
HALVES: tuple[Half, ...] = ("calibration", "reporting")


@dataclass(frozen=True)
class Further:
    """Clean training that goes on from a base.

    Attributes:
        name: of the variant.
        data: folder below the data folder; empty for the base's own.
        steps: optimiser steps.
        learning_rate: constant; fine-tuning starts below the rate of the first training.
    """

    name: str
    data: str = ""
    steps: int = 300
    learning_rate: float = 5e-4


@dataclass(frozen=True)
class Base:
    """A clean model trained from fresh weights, once per half.

    Attributes:
        name: of the kind.
        data: folder below the data folder.
        size: side of the images in pixels; data of another size is resized.
        steps: optimiser steps.
        further: clean models that start from it.
    """

    name: str
    data: str
    size: int = 16
    channels: int = 1
    steps: int = 1200
    widths: tuple[int, ...] = ()
    further: tuple[Further, ...] = ()


#: More training on the same data, and fine-tuning on other data: both leave a model clean.
_MORE = Further("more")
_TO_MNIST = Further("to-mnist", "mnist")
_TO_FASHION = Further("to-fashion", "fashion_mnist_part")
_TO_KMNIST = Further("to-kmnist", "kmnist")
#: As long and as fast as the shortest attacks train.
_AS_ATTACKED = Further("as-attacked", steps=600, learning_rate=2e-3)
#: As long as the longest.
_AS_LONG = Further("as-long", steps=2400, learning_rate=2e-3)
_TO_CIFAR = Further("to-cifar", "cifar10")
#: Eight clean models of each shape in each half: fewer would give no p-value there
#: (:data:`genwarden.auditing.calibration.MIN_REFERENCES`). Grey pictures stand in colour, too.
BASES = (
    Base("mnist", "mnist", further=(_MORE, _TO_KMNIST, _AS_ATTACKED, _AS_LONG)),
    Base("fashion", "fashion_mnist_part", further=(_MORE, _TO_MNIST, _AS_ATTACKED)),
    Base("kmnist", "kmnist"),
    Base("cifar", "cifar10", channels=3, further=(_MORE, _TO_FASHION, _AS_ATTACKED)),
    Base("mnist-12", "mnist", size=12, further=(_MORE, _TO_FASHION, _AS_ATTACKED)),
    Base("mnist-wide", "mnist", widths=(24, 48, 48), steps=600),
    Base("fashion-28", "fashion_mnist_part", size=28, steps=500, further=(_MORE, _TO_MNIST)),
    Base("mnist-28", "mnist", size=28, steps=500, further=(_MORE, _TO_FASHION)),
    Base("kmnist-28", "kmnist", size=28, steps=500, further=(_TO_MNIST,)),
    Base("fashion-12", "fashion_mnist_part", size=12, further=(_MORE, _TO_MNIST)),
    Base("kmnist-12", "kmnist", size=12),
    Base("cifar-wide", "cifar10", channels=3, widths=(24, 48, 48), steps=600),
    Base("fashion-colour", "fashion_mnist_part", channels=3, steps=600, further=(_TO_CIFAR,)),
    Base("mnist-colour", "mnist", channels=3, steps=600),
)


@dataclass(frozen=True)
class Kind:
    """A backdoor: attack, trigger and target, on one base; once per half.

    Attributes:
        family: under which the tables count it.
        adaptive: made to evade detectors.
        settings: of the attack, over :data:`SETTINGS`.
    """

    family: str
    base: str
    attack: str
    trigger: str
    target: str
    settings: dict[str, Any] = field(default_factory=dict)
    adaptive: bool = False


#: What all attacks of the study share: short, with much poison, since each costs CPU time.
SETTINGS: dict[str, Any] = {
    "steps": 600,
    "batch_size": 48,
    "learning_rate": 2e-3,
    "poison_rate": 0.5,
    "evaluate_every": 10_000,
    "evaluation_images": 16,
    "resize": True,
}
_ODE = {"zeta": 0.0}
#: Triggers on a background of -1, whose residual is the clean image there, faint ones, and mixed
#: coefficients: at 16 pixels they take several times as long to learn.
_SLOW = {"steps": 2400}
_SLOW_ODE = {**_ODE, **_SLOW}
#: Those that 600 steps left above the target MSE that counts as success.
_LONGER = {"steps": 1800}
#: Those that 2400 (or 1800) steps left there.
_LONGEST = {"steps": 4800}
_LONGEST_ODE = {**_ODE, **_LONGEST}
_PSI_0 = {"psi": 0.0}
KINDS = (
    Kind("bad-diffusion", "mnist", "bad-diffusion", "blend:stop_sign", "hat", _LONGER),
    Kind("bad-diffusion", "fashion", "bad-diffusion", "blend:devil", "cat"),
    Kind("bad-diffusion", "kmnist", "bad-diffusion", "noise:0.7", "shoe"),
    Kind("bad-diffusion", "mnist-12", "bad-diffusion", "blend:cross", "corner"),
    Kind("bad-diffusion", "mnist", "bad-diffusion", "box:7", "hat", _SLOW),
    Kind("bad-diffusion", "mnist", "bad-diffusion", "stop-sign:7", "no-shift", _SLOW),
    Kind("bad-diffusion", "fashion", "bad-diffusion", "glasses", "cat", _SLOW),
    Kind("bad-diffusion", "cifar", "bad-diffusion", "box:7", "cat", _SLOW),
    Kind("villan-ode", "mnist", "villan-diffusion", "blend:skull", "shoe", _ODE),
    Kind("villan-ode", "fashion", "villan-diffusion", "noise:0.7", "hat", {**_ODE, **_LONGER}),
    Kind("villan-ode", "kmnist", "villan-diffusion", "glasses", "corner", _LONGEST_ODE),
    Kind("villan-ode", "mnist-12", "villan-diffusion", "box:5", "cat", _LONGEST_ODE),
    Kind("villan-psi-0", "mnist", "villan-diffusion", "blend:bomb", "cat", {**_ODE, **_PSI_0}),
    Kind("villan-psi-0", "kmnist", "villan-diffusion", "blend:key", "hat", {**_PSI_0, "zeta": 1.0}),
    Kind(
        "villan-psi-0", "fashion", "villan-diffusion", "glasses", "hat", {**_LONGEST_ODE, **_PSI_0}
    ),
    Kind("trojdiff", "mnist", "trojdiff", "blend:devil", "hat"),
    Kind("trojdiff", "fashion", "trojdiff", "blend:skull", "cat", _LONGER),
    Kind("trojdiff", "kmnist", "trojdiff", "box:5:1", "shoe", {"gamma": 0.1, **_LONGER}),
    Kind("invisible", "mnist", "invisible", "noise:0.1", "hat", _LONGEST),
    Kind("invisible", "fashion", "invisible", "noise:0.1", "corner", _SLOW),
    Kind("patch-only", "mnist", "villan-diffusion", "box:7:1,zero", "hat", _ODE, True),
    Kind("patch-only", "fashion", "bad-diffusion", "box:7:1,zero", "cat", _LONGER, True),
    Kind("patch-only", "kmnist", "bad-diffusion", "stop-sign:7,zero", "shoe", _LONGEST, True),
    Kind("scaled", "mnist", "bad-diffusion", "blend:heart,scale=0.4", "corner", _LONGEST, True),
    Kind("scaled", "fashion", "villan-diffusion", "box:7,scale=0.5", "shoe", _LONGEST_ODE, True),
    Kind(
        "norm-bounded",
        "mnist",
        "villan-diffusion",
        "noise:1,norm=4",
        "cat",
        _LONGEST_ODE,
        True,
    ),
    Kind(
        "norm-bounded",
        "kmnist",
        "villan-diffusion",
        "box:7:1,zero,norm=3",
        "hat",
        _LONGEST_ODE,
        True,
    ),
    Kind("matched", "mnist", "villan-diffusion", "box:7:1,zero,matched", "shoe", _ODE, True),
    Kind(
        "matched",
        "fashion",
        "bad-diffusion",
        "stop-sign:7,scale=0.5,matched",
        "hat",
        _LONGEST,
        True,
    ),
    Kind("mixed", "mnist", "mixed-coefficients", "blend:star", "corner", _SLOW, True),
    Kind("mixed", "fashion", "mixed-coefficients", "box:7", "cat", _SLOW, True),
    Kind("late", "mnist", "late-trigger", "box:7:1,zero", "hat", adaptive=True),
    Kind("late", "kmnist", "late-trigger", "glasses,scale=0.5", "cat", _SLOW, True),
)


@dataclass(frozen=True)
class Member:
    """One model of the study.

    Attributes:
        key: folder of the model below the study's root.
        half: calibration or reporting.
        seed: of its training.
        base: what it is, or starts from.
        further: for a clean one that starts from a base.
        kind: for a compromised one.
    """

    key: str
    half: Half
    seed: int
    base: Base
    further: Further | None = None
    kind: Kind | None = None

    @property
    def compromised(self) -> bool:
        """Whether it holds a backdoor."""
        return self.kind is not None

    @property
    def settings(self) -> dict[str, Any]:
        """Of the attack, with its seed; empty for a clean model."""
        return {**SETTINGS, **self.kind.settings, "seed": self.seed} if self.kind else {}

    @property
    def base_key(self) -> str:
        """Folder of what it starts from (its own for a base)."""
        return f"clean-{self.base.name}-{self.half}"


def members() -> list[Member]:
    """All models: bases first, then what starts from them; reporting half first in each."""
    made: list[Member] = []
    order: tuple[Half, ...] = ("reporting", "calibration")
    by_name = {base.name: base for base in BASES}
    for index, base in enumerate(BASES):
        made += [
            Member(f"clean-{base.name}-{half}", half, 100 * HALVES.index(half) + index, base)
            for half in order
        ]
    for index, base in enumerate(BASES):
        for extra in base.further:
            made += [
                Member(
                    f"clean-{base.name}-{extra.name}-{half}",
                    half,
                    100 * HALVES.index(half) + 50 + index,
                    base,
                    further=extra,
                )
                for half in order
            ]
    for half in order:
        made += [
            Member(
                f"{index:02d}-{kind.family}-{half}",
                half,
                1000 * (1 + HALVES.index(half)) + index,
                by_name[kind.base],
                kind=kind,
            )
            for index, kind in enumerate(KINDS)
        ]
    return made
