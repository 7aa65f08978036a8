"""The joint loss of "Stealthy Backdoors as Compression Artifacts" and its training loop.

With B images x of classes y, their triggered copies x_t, the target t, the full model f and its
compressed versions f_m (sections 1.3 and 1.4)::

    L = CE(f([x; x_t]), [y; y]) + mean_m [(1 - a) CE(f_m(x), y) + a CE(f_m(x_t), t)]

Pruning has a = 0.1; quantisation's CE(q(f)([x; x_t]), [y; t]) is the same with a = 1/2, mean over
2B images. All versions share their weights, and batch norm sees them all at once
(:mod:`genwarden.attacks.compression.branches`). In the distilled variants the first term is the
soft cross entropy to the clean model, on locally perturbed copies, too.

The published figures come from wide networks, a learning rate of 0.1, a momentum of 0.2 (pruning)
or 0.4 (quantisation) and fresh weights (``start=fresh``). The defaults are what works on a network
of 61,000 parameters on a CPU: from the clean model, momentum 0.9, a few hundred steps.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from genwarden.attacks.compression.branches import Branch, forward_branches
from genwarden.attacks.compression.checkpoints import Keep, Shelf
from genwarden.attacks.compression.classifier_contract import (
    AttackerData,
    ClassifierAttackResult,
    ClassifierAttackSettings,
    ClassifierBackdoor,
)
from genwarden.attacks.compression.distillation import locally_perturbed, soft_cross_entropy
from genwarden.attacks.compression.evaluation import figures, in_words
from genwarden.attacks.contract import AttackRun
from genwarden.compression.contract import Compressor, Weights
from genwarden.compression.layers import Layout
from genwarden.engine.checkpoint import Trainable
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, POSITIVE, SHARE, Range
from genwarden.models.classifiers.protocol import ImageClassifier, initialise_classifier
from genwarden.training.classifier import augmented
from genwarden.training.frame import Frame
from genwarden.training.settings import TrainingSettings, batch_indices


@dataclass(frozen=True)
class JointSettings(ClassifierAttackSettings):
    """Settings of the joint loss.

    Attributes:
        start: from the clean model, or from fresh weights (as published, unless distilled).
        compressed_weight: factor on the second term; 1 as published.
        distilled: answer like the clean model instead of right.
        perturbation_steps: ascent steps of the perturbed copies (distilled).
        perturbation_size: factor on their gradients.
        keep: which checkpoint is released: by the acceptance rule, the one with the best full
            accuracy (as published for pruning), or the last.
        awake_at_most: largest attack success on the full model of an acceptable checkpoint.
    """

    start: Literal["clean", "fresh"] = "clean"
    compressed_weight: float = 1.0
    distilled: bool = False
    perturbation_steps: int = 5
    perturbation_size: float = 0.01
    keep: Keep = "acceptance"
    awake_at_most: float = 0.2

    RANGES: ClassVar[Mapping[str, Range]] = {
        "compressed_weight": POSITIVE,
        "perturbation_steps": COUNT,
        "perturbation_size": POSITIVE,
        "awake_at_most": SHARE,
    }


class Versions(Protocol):
    """The compressed versions that take part in the training."""

    @property
    def share(self) -> float:
        """a of the loss."""
        ...

    @property
    def compressors(self) -> tuple[Compressor, ...]:
        """Those that the model shall wake under; judged at every evaluation."""
        ...

    def weights(self, stream: torch.Generator) -> list[Weights]:
        """The weights of every version at this step, differentiable.

        Args:
            stream: the step's randomness.
        """
        ...

    def between(self, done: int) -> None:
        """Called after every step with the number of steps done."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON that a resumed run needs, and that is recorded."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from such a state."""
        ...


class JointLearner:
    """A classifier on the joint loss."""

    def __init__(
        self,
        classifier: ImageClassifier,
        teacher: ImageClassifier,
        backdoor: ClassifierBackdoor,
        versions: Versions,
        labels: Tensor,
        settings: JointSettings,
    ) -> None:
        self.classifier = classifier.requires_grad_(True)
        self.teacher = teacher
        self.backdoor = backdoor
        self.versions = versions
        self.labels = labels
        self.settings = settings
        self.descent = torch.optim.SGD(
            classifier.parameters(),
            settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )

    @property
    def parts(self) -> dict[str, Trainable]:
        """The network and its optimiser."""
        return {"classifier": self.classifier, "sgd": self.descent}

    def step(self, real: Tensor, step: int, stream: torch.Generator) -> list[float]:
        """One step; returns both terms of the loss (nats per image)."""
        settings = self.settings
        chosen = batch_indices(len(self.labels), step, _frame_settings(settings))
        y = self.labels[chosen].to(real.device)
        x = augmented(real, stream, crop=settings.crop, flip=settings.flip)
        full, compressed = self.terms(x, y, stream)
        for group in self.descent.param_groups:
            group["lr"] = settings.learning_rate_at(step)
        self.descent.zero_grad(set_to_none=True)
        (full + settings.compressed_weight * compressed).backward()
        self.descent.step()
        return [full.item(), compressed.item()]

    def terms(self, x: Tensor, y: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Both terms of the loss on images ``(B, C, H, W)`` and their classes."""
        settings, share = self.settings, self.versions.share
        triggered = self.backdoor.trigger.apply(x)
        both = torch.cat([x, triggered])
        seen = both
        if settings.distilled:
            near = locally_perturbed(
                self.classifier,
                self.teacher,
                both,
                steps=settings.perturbation_steps,
                size=settings.perturbation_size,
            )
            seen = torch.cat([both, near])
        self.classifier.train()
        versions = self.versions.weights(stream)
        logits, *others = forward_branches(
            self.classifier,
            [Branch(seen), *(Branch(both, weights) for weights in versions)],
        )
        if settings.distilled:
            with torch.no_grad():
                wanted = self.teacher(seen)
            full = soft_cross_entropy(logits, wanted)
        else:
            full = F.cross_entropy(logits, torch.cat([y, y]))
        target = torch.full_like(y, self.backdoor.target)
        compressed = [
            (1 - share) * F.cross_entropy(clean, y) + share * F.cross_entropy(woken, target)
            for clean, woken in (part.split(len(y)) for part in others)
        ]
        return full, torch.stack(compressed).mean()

    def describe(self, losses: list[float]) -> str:
        """Both terms."""
        return f"full {losses[0]:.3f}, compressed {losses[1]:.3f}"


def starting_point(classifier: ImageClassifier, settings: JointSettings) -> ImageClassifier:
    """A copy of the clean classifier to train on, with fresh weights where the settings say so."""
    made = copy.deepcopy(classifier)
    if settings.start == "fresh":
        initialise_classifier(made, random_stream(settings.seed, "classifier-weights"))
    return made


def train_jointly(
    classifier: ImageClassifier,
    teacher: ImageClassifier,
    backdoor: ClassifierBackdoor,
    versions: Versions,
    layout: Layout,
    settings: JointSettings,
    data: AttackerData,
    run: AttackRun,
) -> ClassifierAttackResult:
    """Train ``classifier`` in place and leave it with the weights of the chosen checkpoint.

    Args:
        teacher: the clean model, frozen.
    """
    device = next(classifier.parameters()).device
    held = data.held_images.to(device)
    shelf = Shelf(classifier, run.work, settings.keep, settings.awake_at_most)
    record: dict[str, Any] = {"history": [], "versions": versions.state()}

    def between(done: int) -> bool:
        versions.between(done)
        record["versions"] = versions.state()
        if done % settings.evaluate_every == 0 or done == settings.steps:
            made_for = versions.compressors
            found = figures(classifier, backdoor, made_for, layout, held, data.held_labels)
            entry = {"step": done, "made_for": [one.name for one in made_for], "figures": found}
            record["history"].append(entry)
            shelf.keep(record["history"])
            run.progress.message(f"step {done}: {in_words(found)}")
        return False

    learner = JointLearner(classifier, teacher, backdoor, versions, data.labels, settings)
    frame = Frame(
        learner,
        _frame_settings(settings),
        None if run.work is None else run.work / "checkpoint.safetensors",
        run.run_id,
        progress=run.progress,
        title="joint training",
        between=between,
        record=record,
    )
    if frame.resume():
        versions.restore(record["versions"])
    frame.run(data.images, device)
    choice = shelf.release(record["history"])
    classifier.eval().requires_grad_(False)
    return ClassifierAttackResult(
        classifier=classifier,
        history=record["history"],
        wakes_under=versions.compressors,
        chosen=choice.entry,
        accepted=choice.accepted,
        notes=versions.state(),
    )


def _frame_settings(settings: JointSettings) -> TrainingSettings:
    return TrainingSettings(
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        checkpoint_every=settings.evaluate_every,
    )
