"""The workbench of a classifier audit: what inspections share, computed once.

It holds what a defender has: the network and, if the user gave them, images. Labels are not needed:
what an image is, the full network says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from genwarden.compression.contract import Compressor
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import derive_seed, random_stream
from genwarden.inspections.classifier.image_synthesis import synthesise
from genwarden.inspections.classifier.inversion import Blind, Exemplars, Inverted, invert
from genwarden.inspections.classifier.recalibration import (
    DAMAGED,
    DESTROYED,
    Agreement,
    Kept,
    agree,
    destroyed,
    kept,
)
from genwarden.inspections.compression.variant import VariantBase
from genwarden.models.classifiers.protocol import ImageClassifier

_IMAGES_AT_ONCE = 256
_RANDOM_ERRORS = "With errors of the same size and random signs"


@dataclass(frozen=True)
class ClassifierEffort:
    """How much a classifier audit spends; the budgets are defined in ``auditing.budgets``.

    Attributes:
        name: quick, standard or thorough.
        images: images that inspections work on; so many are drawn from the user's, or made.
        synthesis_steps: Adam steps of making images where the user gave none.
        inversion_steps: Adam steps of every trigger inversion.
        inversion_batch: images per class and step.
        restarts: runs of Neural Cleanse, of which the smallest mask per class counts.
        placebos: networks with errors of the same size, each inverted like the variant.
        shift_placebos: the same, only run on images.
        guards: the same, which a trigger must leave alone.
        blends: images that STRIP blends with each image.
    """

    name: str
    images: int
    synthesis_steps: int
    inversion_steps: int
    inversion_batch: int
    restarts: int
    placebos: int
    shift_placebos: int
    guards: int
    blends: int


@dataclass
class ClassifierBench:
    """One suspect on the table, as it is.

    Args:
        classifier: the suspect in evaluation mode, parameters without gradients.
        effort: the budget.
        seed: run seed of the audit.
        device: where to compute.
        given: images ``(count, C, H, W)`` in [-1, 1] that the user gave, or None.
        exemplars: what :attr:`shown` is to be; chosen or made from ``given`` if None.
    """

    classifier: ImageClassifier
    effort: ClassifierEffort
    seed: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    given: Tensor | None = None
    exemplars: Exemplars | None = None
    progress: Progress = field(default_factory=Silent)

    @cached_property
    def shown(self) -> Exemplars:
        """The user's images (a random part of many), or images made from the network alone."""
        if self.exemplars is not None:
            return self.exemplars
        if self.given is None:
            return self.made([self.classifier])
        order = torch.randperm(len(self.given), generator=self.stream("images"))
        return self.answered(self.given[order[: self.effort.images]].to(self.device))

    def made(self, classifiers: Sequence[ImageClassifier]) -> Exemplars:
        """Images made from networks, the suspect first."""
        images = synthesise(
            classifiers,
            self.effort.images,
            self.effort.synthesis_steps,
            seed=self.seed,
            device=self.device,
            progress=self.progress,
        )
        return self.answered(images)

    def answered(self, images: Tensor) -> Exemplars:
        """Images on the device with this network's answers."""
        return Exemplars(images, self.logits(self.classifier, images).argmax(1).to(self.device))

    @property
    def whence(self) -> str:
        """Where the images come from, for people."""
        made = self.given is None
        return f"{len(self.shown.images)} images {'made from the network' if made else 'given'}"

    @cached_property
    def triggers(self) -> Inverted:
        """Neural Cleanse's smallest triggers of the inspected network."""
        best: Inverted | None = None
        for run in range(self.effort.restarts):
            found = self.invert(
                self.classifier,
                title="trigger inversion",
                blind=None,
                seed=self.inversion_seed(run),
            )
            best = found if best is None else _smaller(best, found)
        assert best is not None  # noqa: S101  # every budget has a restart
        return best

    def invert(
        self,
        network: ImageClassifier,
        *,
        title: str,
        blind: Blind | None,
        seed: int,
    ) -> Inverted:
        """Triggers of a network, at this budget and on these images."""
        return invert(
            network,
            self.shown,
            self.classifier.classes,
            steps=self.effort.inversion_steps,
            batch=self.effort.inversion_batch,
            seed=seed,
            blind=blind,
            progress=self.progress,
            title=title,
        )

    def inversion_seed(self, run: int = 0) -> int:
        """The seed of an inversion; the same for every network that is compared."""
        return derive_seed(self.seed, "inversion", run)

    def stream(self, purpose: str) -> torch.Generator:
        """Randomness of one purpose, from the run seed alone."""
        return random_stream(self.seed, purpose)

    @torch.no_grad()
    def logits(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """``(count, classes)``, float64 on the CPU."""
        parts = images.split(_IMAGES_AT_ONCE)
        return torch.cat([network(part.to(self.device)).double().cpu() for part in parts])


@dataclass
class VariantBench(VariantBase[ImageClassifier]):
    """A suspect, and one way to compress it.

    Args:
        full: the bench of the suspect as it is, whose images this one uses, too.
        compressor: what a deployer will do to it.
    """

    full: ClassifierBench
    compressor: Compressor

    @property
    def effort(self) -> ClassifierEffort:
        """The budget."""
        return self.full.effort

    @property
    def classifier(self) -> ImageClassifier:
        """The suspect as it is."""
        return self.full.classifier

    @property
    def network(self) -> ImageClassifier:
        """The same."""
        return self.classifier

    def stream(self, purpose: str) -> torch.Generator:
        """Randomness of one purpose, from the run seed alone."""
        return self.full.stream(purpose)

    def forward(self, network: ImageClassifier) -> Tensor:
        """Logits of two grey images."""
        x = torch.zeros(2, *network.sample.shape, device=self.full.device)
        with torch.no_grad():
            logits: Tensor = network(x)
        return logits

    @cached_property
    def agreement(self) -> Agreement:
        """Where the compressed network answers as the full one, and it recalibrated there.

        Raises:
            GenwardenError: as :func:`.recalibration.agree`.
        """
        return agree(self.classifier, self.compressed, self.shown)

    @cached_property
    def kept(self) -> Kept:
        """How many answers stay, on all images that were given, else on those that were made."""
        images = self.shown.images if self.full.given is None else self.full.given
        full, small = (self.full.logits(n, images) for n in (self.classifier, self.compressed))
        return kept(full.argmax(1), small.argmax(1))

    @cached_property
    def destroyed(self) -> str:
        """Why compression leaves no classifier to be inspected; "" where it does."""
        if self.kept.renamed >= DESTROYED:
            return ""
        error = destroyed(f"Compressed, it keeps {self.kept.share:.0%} of its answers")
        return f"{error.cause} {error.remedy}"

    @cached_property
    def damaged(self) -> str:
        """Why damage cannot be told from a backdoor by how much more errors do than placebos."""
        if self.kept.share >= DAMAGED:
            return ""
        return (
            f"Compressed, it keeps {self.kept.share:.0%} of its answers: that much damage draws "
            "images to single classes in honest networks, too, as no errors of random signs do."
        )

    @cached_property
    def shown(self) -> Exemplars:
        """The user's images, or images made from the full and the compressed network together."""
        if self.full.given is not None:
            return self.full.shown
        return self.full.made([self.classifier, self.compressed])

    @cached_property
    def alone(self) -> ClassifierBench:
        """The bench of the compressed network as it is, for inspections of one network.

        Its images are those of :attr:`shown` that both answer alike.
        """
        return replace(self.full, classifier=self.compressed, exemplars=self.agreement.shown)

    @cached_property
    def placebo_logits(self) -> list[Tensor]:
        """By placebo, logits ``(images, classes)`` of the full network's images."""
        images = self.full.shown.images
        return [
            self.full.logits(self.placebo(number), images)
            for number in range(self.effort.shift_placebos)
        ]

    @cached_property
    def placebo_movement(self) -> float:
        """How far placebos move the logits, over how far these spread from image to image.

        Root mean squares, each class less its mean over the images; the mean of the placebos. Not
        that of the compression itself, which a backdoor that it wakes moves, too.
        """
        before = self.full.logits(self.classifier, self.full.shown.images)
        spread = (before - before.mean(0)).square().mean().sqrt()
        moved = [(after - before) for after in self.placebo_logits]
        each = [(one - one.mean(0)).square().mean().sqrt() for one in moved]
        return float(torch.stack(each).mean() / spread.clamp_min(1e-12))

    @cached_property
    def differential(self) -> Inverted:
        """Triggers that the compressed network sees and the full one does not."""
        return self._invert(self.agreement.network, "differential inversion")

    @cached_property
    def guarded_differential(self) -> Inverted:
        """The same with the compressed network as it is, not recalibrated, and blind placebos."""
        guards = [self.placebo(number) for number in range(self.effort.guards)]
        return self._invert(self.compressed, "differential inversion, guarded", guards)

    @cached_property
    def placebo_differentials(self) -> list[Inverted]:
        """The same inversion between the suspect and each placebo."""
        shown = self.alone.shown
        return [
            self._invert(
                agree(self.classifier, self.placebo(number), shown, how=_RANDOM_ERRORS).network,
                f"differential inversion, placebo {number + 1}",
            )
            for number in range(self.effort.placebos)
        ]

    def _invert(
        self, network: ImageClassifier, title: str, guards: Sequence[ImageClassifier] = ()
    ) -> Inverted:
        return self.alone.invert(
            network,
            title=title,
            blind=Blind(self.classifier, guards),
            seed=self.full.inversion_seed(),
        )


def _smaller(one: Inverted, other: Inverted) -> Inverted:
    """Class by class, the trigger with the smaller mask."""
    better = other.norm < one.norm
    wide = better[:, None, None, None]
    return Inverted(
        torch.where(wide, other.mask, one.mask),
        torch.where(wide, other.pattern, one.pattern),
        torch.where(better, other.norm, one.norm),
        torch.where(better, other.objective, one.objective),
        torch.where(better, other.success, one.success),
    )
