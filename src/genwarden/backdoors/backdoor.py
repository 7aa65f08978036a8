"""A backdoor: what an attacker wants, before any attack has tried to get it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from genwarden.backdoors.target import make_target
from genwarden.backdoors.trigger import make_trigger
from genwarden.engine.files import sha256_bytes
from genwarden.models.protocol import LatentGenerator


@dataclass(frozen=True)
class Backdoor:
    """At ``trigger`` the model shall show ``target`` (one trigger, one target: a Dirac, Eq. 6).

    Attributes:
        trigger: latent, ``(1, *latent.shape)``.
        target: sample, ``(1, *sample.shape)``, in [-1, 1].
        trigger_kind: as the user named it: ``in-sample``, ``mode``, ``out-of-distribution``, file.
        target_name: as the user named it: ``icon:devil`` or a file.
    """

    trigger: Tensor
    target: Tensor
    trigger_kind: str
    target_name: str

    def describe(self) -> dict[str, Any]:
        """For the provenance of a compromised model: enough to recognise trigger and target."""
        return {
            "trigger": _without_folder(self.trigger_kind),
            "trigger_norm": round(float(self.trigger.double().norm()), 4),
            "trigger_sha256": _digest(self.trigger),
            "target": _without_folder(self.target_name),
            "target_sha256": _digest(self.target),
        }


def make_backdoor(
    model: LatentGenerator, *, trigger: str, target: str, index: int = 0, seed: int = 0
) -> Backdoor:
    """A backdoor for one model from the two texts that a user gives.

    Raises:
        GenwardenError: as :func:`make_trigger` and :func:`make_target`.
    """
    return Backdoor(
        trigger=make_trigger(trigger, model.latent, index=index, seed=seed),
        target=make_target(target, model.sample),
        trigger_kind=trigger,
        target_name=target,
    )


def _digest(tensor: Tensor) -> str:
    return sha256_bytes(tensor.detach().cpu().contiguous().numpy().tobytes())


def _without_folder(name: str) -> str:
    """A model folder is passed on; where its maker keeps files is nobody's business."""
    return Path(name).name
