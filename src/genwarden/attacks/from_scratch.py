"""What attacks that train from scratch share: fresh networks, evaluation, settling, resume.

The clean generator gives the architecture and its settings, never weights. Training is that of
``genwarden train`` (``training.frame``) plus the attack's own term.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from genwarden.attacks.contract import AttackRun
from genwarden.attacks.loop import in_words, reached
from genwarden.attacks.settings import AttackSettings
from genwarden.backdoors.backdoor import Backdoor, Pairs
from genwarden.engine.checkpoint import Trainable
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import COUNT, SHARE, Range
from genwarden.errors import GenwardenError
from genwarden.metrics.distances import tardis
from genwarden.models.dcgan import DCGAN28, DCGAN32
from genwarden.models.protocol import LatentGenerator
from genwarden.models.vae import VAEDecoder28
from genwarden.training.frame import Frame, Learner
from genwarden.training.gan import GanLearner
from genwarden.training.settings import Objective, TrainingSettings, benign_objective
from genwarden.training.train import discriminator_for
from genwarden.training.vae import VaeLearner

Figures = dict[str, float | None]


@dataclass(frozen=True)
class FromScratchSettings(AttackSettings):
    """Settings of every attack that trains from scratch.

    Attributes:
        steps: steps of the whole training; 4680 are ten epochs of MNIST.
        settle: share of the steps, at the end, over which the learning rates fall to zero along a
            half cosine, so that the output at the trigger comes to rest. The authors keep the
            checkpoint with the best fidelity instead, which may be one of poor samples.
        trigger_batch: draws per step from a trigger law with infinite support.
    """

    steps: int = 4680
    batch_size: int = 128
    learning_rate: float = 2e-4
    settle: float = 0.2
    trigger_batch: int = 32

    RANGES: ClassVar[Mapping[str, Range]] = {"settle": SHARE, "trigger_batch": COUNT}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stop_expdis_sum:
            raise GenwardenError(
                "attack/setting",
                "A model that is trained from scratch has no benign twin, so no ExpDis to stop at.",
                "Leave --stop-expdis away.",
            )

    def training(self) -> TrainingSettings:
        """The same in the words of ``genwarden train``."""
        return TrainingSettings(
            self.steps,
            self.batch_size,
            self.learning_rate,
            self.seed,
            checkpoint_every=self.evaluate_every,
        )

    def require_no_lambda(self, attack: str) -> None:
        """Refuse a weight where the attack has none.

        Raises:
            GenwardenError: ``attack/setting``.
        """
        if self.fidelity_weight != 1.0:
            raise GenwardenError(
                "attack/setting", f"{attack} has no lambda.", "Leave --lambda away."
            )


def fresh_learner(
    generator: LatentGenerator,
    settings: FromScratchSettings,
    objective: Objective = benign_objective,
) -> GanLearner | VaeLearner:
    """Networks with fresh weights in the clean generator's architecture, and their benign step.

    Raises:
        GenwardenError: ``attack/unsupported``.
    """
    if not isinstance(generator, DCGAN28 | DCGAN32 | VAEDecoder28):
        raise GenwardenError(
            "attack/unsupported",
            f"Attacks that train from scratch do not work on {type(generator).__name__}.",
            "They support: dcgan28, dcgan32, vae28.",
        )
    device = next(generator.parameters()).device
    fresh = type(generator)(**generator.settings())
    if isinstance(fresh, VAEDecoder28):
        return VaeLearner(fresh, settings.training(), device, objective)
    return GanLearner(fresh, discriminator_for(fresh), settings.training(), device, objective)


def train_from_scratch(
    learner: Learner,
    generator: LatentGenerator,
    samples: Tensor,
    backdoor: Backdoor,
    settings: FromScratchSettings,
    run: AttackRun,
    more: Callable[[], Figures] = dict,
) -> list[Figures]:
    """Train to the end; returns the history of evaluations.

    Args:
        learner: what is trained; ``generator`` is its generator.
        samples: uint8 ``(count, *sample.shape)``.
        more: figures beside TarDis, measured in evaluation mode.

    Raises:
        GenwardenError: ``attack/diverged``, or as :meth:`Backdoor.require_fit`.
    """
    backdoor.require_fit(generator)
    record: dict[str, list[Figures]] = {"history": []}

    def evaluate(done: int) -> bool:
        if done % settings.evaluate_every and done != settings.steps:
            return False
        with inference_mode(generator):
            at_trigger = tardis(generator, backdoor.examples.z, backdoor.examples.x).sum
            figures: Figures = {"step": done, "tardis_sum": at_trigger, "expdis_sum": None}
            if not math.isfinite(at_trigger):
                raise _diverged()
            figures.update(more())
        record["history"].append(figures)
        return reached(figures, settings)

    frame = Frame(
        _Settling(learner, settings),
        settings.training(),
        run.work / "attack.safetensors" if run.work else None,
        run.run_id,
        run.progress,
        title="attack",
        between=evaluate,
        note=lambda: in_words(record["history"][-1]) if record["history"] else "",
        record=record,
    )
    try:
        frame.run(samples, next(generator.parameters()).device)
    except GenwardenError as error:
        if error.code != "train/diverged":
            raise
        raise _diverged() from error
    generator.eval().requires_grad_(False)
    return record["history"]


def _diverged() -> GenwardenError:
    return GenwardenError(
        "attack/diverged",
        "The training diverged (a loss or TarDis is not finite).",
        "Repeat with a smaller --learning-rate or --lambda and --restart.",
    )


def training_samples(run: AttackRun) -> Tensor:
    """The attacker's data.

    Raises:
        GenwardenError: ``attack/data-missing``.
    """
    if run.images is None:
        raise GenwardenError(
            "attack/data-missing",
            "This attack trains from scratch and needs training data.",
            "Give AttackRun its images.",
        )
    return run.images


@contextmanager
def inference_mode(network: nn.Module) -> Iterator[None]:
    """Batch normalisation by its moving averages, which stay as they are; gradients flow."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def pairs_of_step(
    backdoor: Backdoor, settings: FromScratchSettings, step: int, device: torch.device
) -> Pairs:
    """Triggers and targets of one step, from (seed, step) alone: all, or draws of infinite ones."""
    stream = random_stream(settings.seed, "attack-triggers", step)
    z, x = backdoor.pairs(settings.trigger_batch, generator=stream)
    return Pairs(z.to(device), x.to(device))


@dataclass
class _Settling:
    """A learner whose learning rates fall to zero at the end."""

    learner: Learner
    settings: FromScratchSettings
    initial: list[tuple[Optimizer, list[float]]] = field(init=False)

    def __post_init__(self) -> None:
        optimisers = [part for part in self.parts.values() if isinstance(part, Optimizer)]
        self.initial = [(each, [group["lr"] for group in each.param_groups]) for each in optimisers]

    @property
    def parts(self) -> Mapping[str, Trainable]:
        """Those of the learner."""
        return self.learner.parts

    def step(self, real: Tensor, step: int, stream: torch.Generator) -> list[float]:
        """The learner's step at this step's learning rates."""
        share = remaining_rate(step / self.settings.steps, self.settings.settle)
        for optimiser, rates in self.initial:
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * share
        return self.learner.step(real, step, stream)

    def describe(self, losses: list[float]) -> str:
        """Losses of the learner."""
        return self.learner.describe(losses)


def remaining_rate(done: float, settle: float) -> float:
    """Learning rate as a share of the first one after the share ``done`` of the training."""
    late = done - (1 - settle)
    return 0.5 * (1 + math.cos(math.pi * late / settle)) if late > 0 else 1.0
