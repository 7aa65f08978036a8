"""The clean networks of a scale and the attacks on them: made once, by any process, then kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.attacks.compression.run_classifier import (
    ClassifierAttackPlan,
    attack_classifier,
)
from genwarden.attacks.compression.run_classifier import settings_of as classifier_settings
from genwarden.attacks.run import AttackPlan, attack
from genwarden.attacks.settings import settings_of
from genwarden.benchmarks.compression.honest import source
from genwarden.benchmarks.compression.scales import CompressionScale, Subject
from genwarden.benchmarks.locks import claimed
from genwarden.data.glyphs import is_glyphs
from genwarden.engine.progress import Silent
from genwarden.errors import GenwardenError
from genwarden.training.settings import TrainingSettings
from genwarden.training.train import train


@dataclass(frozen=True)
class Trial:
    """One attack on one network.

    Attributes:
        label: what sets it apart from other trials of the attack ("" for none).
        how: the compressions that shall wake it.
        settings: of the attack, over the scale's.
    """

    subject: Subject
    attack: str
    how: str
    trigger: str
    target: str
    label: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Folder of the attacked model, and name of its cell."""
        words = [self.subject.name, self.attack, self.label, self.how, self.target]
        return ".".join(words).replace(":", "-").replace(" ", "-").replace(",", "-and-")

    def given(self, seed: int) -> dict[str, Any]:
        """The attack's settings, as ``--option`` would give them."""
        of_scale = self.subject.attack
        made = {
            **of_scale.get(self.attack, {}),
            **of_scale.get(f"{self.attack} {self.label}", {}),
            **self.settings,
            "seed": seed,
        }
        if self.attack == "quantisation-artifact":
            return {"quantisers": tuple(self.how.split(",")), **made}
        if self.attack == "pruning-artifact":
            return {"rate": float(self.how.rpartition("-")[2]), **made}
        return {"how": self.how, **made}

    def describe(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "network": self.subject.name,
            "sort": self.subject.sort,
            "attack": self.attack,
            "label": self.label,
            "how": self.how,
            "trigger": self.trigger,
            "target": self.target,
        }


@dataclass(frozen=True)
class Workshop:
    """Where the models of a scale lie and how they are made.

    Attributes:
        models: folder of the models, which the recipes share.
        data: folder of the data sets, or None.
    """

    scale: CompressionScale
    models: Path
    data: Path | None
    seed: int
    device: torch.device

    def require_data(self) -> None:
        """Refuse a run that lacks data, before anything is trained.

        Raises:
            GenwardenError: ``benchmark/data-missing``.
        """
        wanted = {
            name
            for subject in self.scale.subjects
            for name in (subject.data, subject.similar, subject.dissimilar)
            if name and not is_glyphs(name)
        }
        absent = sorted(n for n in wanted if self.data is None or not (self.data / n).is_dir())
        if absent:
            raise GenwardenError(
                "benchmark/data-missing",
                f"The scale {self.scale.name} needs data that is not there: {', '.join(absent)}.",
                "Give --data a folder that holds the data sets by name: "
                f"{', '.join(sorted(wanted))}.",
            )

    def source(self, name: str) -> str:
        """A data set by name."""
        return source(self.data or Path(), name)

    def clean(self, subject: Subject) -> Path:
        """Folder of a clean network, trained first if need be."""
        folder = self.models / f"clean.{subject.name.replace(' ', '-')}"
        with claimed(self._lock(folder), wait=True):
            if not (folder / MANIFEST_NAME).exists():
                train(
                    subject.architecture,
                    subject.settings,
                    self.source(subject.data),
                    lambda _: TrainingSettings(
                        subject.steps,
                        subject.batch,
                        subject.rate,
                        self.seed,
                        grid_every=subject.steps,
                    ),
                    split="train",
                    limit=None,
                    out=folder,
                    restart=False,
                    progress=Silent(),
                    device=self.device,
                )
        return folder

    def attacked(self, trial: Trial) -> Path:
        """Folder of an attacked network, made first if need be."""
        folder, clean = self.models / trial.key, self.clean(trial.subject)
        with claimed(self._lock(folder), wait=True):
            if not (folder / MANIFEST_NAME).exists():
                self._attack(trial, clean, folder)
        return folder

    def _lock(self, folder: Path) -> Path:
        return self.models / ".locks" / f"{folder.name}.lock"

    def _attack(self, trial: Trial, clean: Path, out: Path) -> None:
        given = trial.given(self.seed)
        if trial.subject.sort == "generator":
            attack(
                trial.attack,
                AttackPlan(clean=clean, trigger=trial.trigger, target=trial.target),
                settings_of(trial.attack, given),
                out=out,
                restart=False,
                progress=Silent(),
                device=self.device,
            )
        else:
            attack_classifier(
                trial.attack,
                ClassifierAttackPlan(
                    clean=clean,
                    data=self.source(trial.subject.data),
                    trigger=trial.trigger,
                    target=trial.target,
                ),
                classifier_settings(trial.attack, given),
                out=out,
                restart=False,
                progress=Silent(),
                device=self.device,
            )
