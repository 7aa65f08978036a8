"""The suspects of the repair benchmarks: members of the population study, made where missing.

The folder of models has the layout of the study's: ``<key>/genwarden.json``, ``model.safetensors``
and, for a compromised member, ``backdoor.safetensors``; clean ones are ``clean.<kind>.<half>``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.artifacts.model_folder import LoadedModel, read_model
from genwarden.artifacts.weights_file import read_weights
from genwarden.benchmarks.choosing import matching
from genwarden.benchmarks.population.making import make
from genwarden.benchmarks.population.plan import Clean, Member, members
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError


@dataclass(frozen=True)
class Case:
    """A suspect, the clean model it was made from, and the truth about it.

    ``clean`` is the benign original of an attack on a trained model; of an attack that trains from
    scratch, the clean model of the same kind. A clean suspect is its own. ``trigger`` is
    ``(count, *latent.shape)``, ``target`` ``(count, *sample.shape)``; None for a clean suspect.
    """

    member: Member
    suspect: LoadedModel
    clean: LoadedModel
    trigger: Tensor | None
    target: Tensor | None


@dataclass(frozen=True)
class Shelf:
    """Where members lie, and what is needed to make one.

    Attributes:
        models: folder of model folders by key.
        data: folder of the data sets by name; None: nothing can be made.
        seed: of the study's plan.
    """

    models: Path
    data: Path | None
    seed: int
    device: torch.device

    @classmethod
    def of(cls, out: Path, models: str, data: str | None, seed: int, device: torch.device) -> Shelf:
        """As a recipe's options say; without ``models`` members lie in the run's own folder."""
        return cls(
            Path(models) if models else out / "models", Path(data) if data else None, seed, device
        )

    def base(self, member: Member) -> Clean:
        """The clean member that a member was made from; a clean one is its own."""
        key = member.key if isinstance(member, Clean) else member.base
        return next(m for m in members(self.seed) if isinstance(m, Clean) and m.key == key)

    def present(self, member: Member) -> bool:
        """Whether the folder of a member is finished."""
        return (self.models / member.key / MANIFEST_NAME).exists()

    def folder(self, member: Member) -> Path:
        """The folder of a member, made first if it is missing (its base must be there).

        Raises:
            GenwardenError: ``benchmark/data-missing``, and what a training or an attack raises.
        """
        if not self.present(member) and self.data is None:
            raise GenwardenError(
                "benchmark/data-missing",
                f"The folder of models has no {member.key}, and no --data was given to make it.",
                "Add --data FOLDER, which holds the data sets by name, or name another folder with "
                "--option models=FOLDER.",
            )
        data = self.data or Path()
        return make(member, self.models, data, progress=Silent(), device=self.device)

    def open(self, member: Member) -> Case:
        """Read a member that is there, anew, onto the device.

        Raises:
            GenwardenError: codes ``artifact/...``.
        """
        suspect = self._read(member)
        if isinstance(member, Clean):
            return Case(member, suspect, self._read(member), None, None)
        secret = read_weights(self.models / member.key / "backdoor.safetensors").tensors
        clean = self._read(self.base(member))
        return Case(member, suspect, clean, secret["trigger"], secret["target"])

    def _read(self, member: Member) -> LoadedModel:
        model = read_model(self.models / member.key)
        model.generator.to(self.device)
        return model


def chosen_members(seed: int, only: str) -> list[Member]:
    """The members whose key matches one of the shell patterns, joined by commas.

    Raises:
        GenwardenError: ``benchmark/no-cells``.
    """
    return matching(members(seed), only)


def bases_of(chosen: Iterable[Member], shelf: Shelf) -> list[Clean]:
    """The clean members that the chosen ones start from, each once."""
    return list({base.key: base for base in map(shelf.base, chosen)}.values())


def described(member: Member) -> dict[str, Any]:
    """What the plan says of a member, as plain data for JSON."""
    common = {"member": member.key, "half": member.half, "clean": isinstance(member, Clean)}
    if isinstance(member, Clean):
        return {**common, "kind": member.kind.name, "attack": None, "trigger": None, "target": None}
    return {
        **common,
        "kind": member.kind.base,
        "attack": member.kind.attack,
        "trigger": member.kind.trigger,
        "target": member.kind.target,
    }
