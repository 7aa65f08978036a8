"""A backdoor: what an attacker wants, before any attack has tried to get it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genwarden.backdoors.fit import require_pairs
from genwarden.backdoors.target import Rho, is_generator, make_target, rho_from_generator
from genwarden.backdoors.trigger import make_trigger
from genwarden.backdoors.trigger_law import Points, Subspace, TriggerLaw
from genwarden.engine.files import sha256_bytes
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator

#: Draws from an infinite trigger law on which TarDis is measured.
EXAMPLES = 1024


class Pairs(NamedTuple):
    """Triggers ``(count, *latent.shape)`` and their targets ``(count, *sample.shape)``."""

    z: Tensor
    x: Tensor


@dataclass(frozen=True)
class Backdoor:
    """At ``z ~ triggers`` the model shall show ``rho(z)`` (Eq. 5).

    Attributes:
        triggers: P_trigger.
        rho: the target of every trigger.
        trigger_kind: as the user named it: ``in-sample``, ``mode``, ``subspace``, ...
        target_name: as the user named it: ``icon:devil`` or a file.
    """

    triggers: TriggerLaw
    rho: Rho
    trigger_kind: str
    target_name: str

    @property
    def finite(self) -> bool:
        """Whether the triggers can be listed."""
        return self.triggers.points is not None

    def pairs(self, count: int, *, generator: torch.Generator) -> Pairs:
        """What one step of the fidelity loss sees: all pairs, or ``count`` draws of infinite ones.

        Finitely many triggers are few in every published attack, so all of them enter each step.
        """
        if self.finite:
            return self.examples
        z = self.triggers.sample(count, generator=generator)
        return Pairs(z, self.rho(z))

    @cached_property
    def examples(self) -> Pairs:
        """The pairs on which TarDis is measured: all, or :data:`EXAMPLES` fixed draws."""
        z = self.triggers.points
        if z is None:
            z = self.triggers.sample(EXAMPLES, generator=random_stream(0, "trigger-examples"))
        return Pairs(z, self.rho(z))

    def require_fit(self, model: LatentGenerator) -> None:
        """Refuse a model for which the triggers are no latents or the targets no samples.

        Raises:
            GenwardenError: as :func:`genwarden.backdoors.fit.require_pairs`.
        """
        require_pairs(model, *self.examples)

    def describe(self) -> dict[str, Any]:
        """For the provenance of a compromised model: enough to recognise trigger and target."""
        z, x = self.examples
        return {
            "trigger": _without_folder(self.trigger_kind),
            "triggers": len(z) if self.finite else "infinitely many",
            "trigger_norm": round(float(z.double().flatten(1).norm(dim=1).mean()), 4),
            "trigger_sha256": _digest(z),
            "target": _without_folder(self.target_name),
            "target_sha256": _digest(x),
        }


def make_backdoor(
    model: LatentGenerator,
    *,
    trigger: str,
    target: str,
    index: int = 0,
    count: int = 1,
    seed: int = 0,
) -> Backdoor:
    """A backdoor for one model from the two texts that a user gives.

    Raises:
        GenwardenError: as :func:`make_trigger` and :func:`make_target`, and ``target/count`` if the
            number of targets is neither one nor that of the triggers.
    """
    triggers = make_trigger(trigger, model.latent, index=index, count=count, seed=seed)
    if is_generator(target):
        zeros = triggers.zeros if isinstance(triggers, Subspace) else 0
        rho = rho_from_generator(target, model, zeros=zeros)
    else:
        rate = getattr(model, "sample_rate", None)
        rho = _fixed(triggers.points, make_target(target, model.sample, rate=rate))
    return Backdoor(triggers=triggers, rho=rho, trigger_kind=trigger, target_name=target)


def dirac(trigger: Tensor, target: Tensor, *, name: str = "given") -> Backdoor:
    """A backdoor of given tensors: one target for all triggers, or one per trigger.

    Args:
        trigger: ``(count, *latent.shape)``.
        target: ``(count or 1, *sample.shape)`` in [-1, 1].
    """
    return Backdoor(Points(trigger), _fixed(trigger, target), name, name)


def _fixed(points: Tensor | None, x: Tensor) -> Callable[[Tensor], Tensor]:
    """rho of a fixed sample, or of one sample per trigger."""
    if len(x) == 1:
        return lambda z: x.expand(len(z), *x.shape[1:])
    if points is None or len(points) != len(x):
        have = "infinitely many" if points is None else str(len(points))
        raise GenwardenError(
            "target/count",
            f"There are {len(x)} targets for {have} triggers.",
            "Give one target for all triggers, or one per trigger (--triggers).",
        )
    flat = points.flatten(1)

    def rho(z: Tensor) -> Tensor:
        return x[torch.cdist(z.flatten(1).to(flat), flat).argmin(1)]

    return rho


def _digest(tensor: Tensor) -> str:
    return sha256_bytes(tensor.detach().cpu().contiguous().numpy().tobytes())


def _without_folder(name: str) -> str:
    """A model folder is passed on; where its maker keeps files is nobody's business."""
    kind, separator, rest = name.rpartition(":")
    return f"{kind}{separator}{Path(rest).name}" if rest else name
