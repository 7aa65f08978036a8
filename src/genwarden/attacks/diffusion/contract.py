"""What an attack on a diffusion model takes and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

from genwarden.attacks.contract import AttackRun
from genwarden.backdoors.image_backdoor import ImageBackdoor
from genwarden.engine.settings import ANY, COUNT, NOT_NEGATIVE, POSITIVE, Range, Settings
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.samplers import SamplerSettings

Figures = dict[str, float | None]


@dataclass(frozen=True)
class DiffusionAttackSettings(Settings):
    """How an attack on a diffusion model is trained.

    Defaults are those that plant a backdoor in a network of 0.3 M parameters on a CPU. The paper
    fine-tunes google/ddpm-cifar10-32 with Adam at 2e-4 and batches of 128 for 50 epochs.

    Attributes:
        steps: optimiser steps.
        batch_size: images per step, clean and poisoned together.
        learning_rate: Adam's, after the warm-up; it falls along a half cosine.
        poison_rate: share of the training images that leave the clean set and are poisoned.
        warmup: steps over which the learning rate rises.
        ema: decay of the moving average of the weights, which is what is released; 0 releases the
            weights themselves, as BadDiffusion does.
        from_scratch: start from fresh weights; the clean model gives the network's shape only.
        precision: bf16 runs the network under autocast; auto does so on a GPU.
        flip: mirror half of the training images (the published code always does; digits suffer).
        resize: resize training images that have not the model's size.
        evaluate_every: steps between two evaluations and checkpoints.
        evaluation_images: triggered samples per evaluation.
        evaluation_steps: steps of its sampler at most, so that it stays cheap; the sampler is the
            one that the attack is trained for.
        stop_target_mse: stop at an evaluation with a target MSE of at most this; 0: train all
            steps.
        seed: run seed; the poisoned rows, batches and noises follow from it.
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    poison_rate: float = 0.1
    warmup: int = 50
    ema: float = 0.995
    from_scratch: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    flip: bool = False
    resize: bool = False
    evaluate_every: int = 250
    evaluation_images: int = 16
    evaluation_steps: int = 50
    stop_target_mse: float = 0.0
    seed: int = 0

    CODE: ClassVar[str] = "attack"
    RANGES: ClassVar[Mapping[str, Range]] = {
        "steps": COUNT,
        "batch_size": COUNT,
        "learning_rate": POSITIVE,
        "poison_rate": Range(above=0, below=1),
        "warmup": COUNT,
        "ema": Range(at_least=0, below=1),
        "evaluate_every": COUNT,
        "evaluation_images": COUNT,
        "evaluation_steps": COUNT,
        "stop_target_mse": NOT_NEGATIVE,
        "seed": ANY,
    }


class PoisonedRows(NamedTuple):
    """Which training images were poisoned: how many, and the SHA-256 of their sorted indices.

    The indices follow from the seed and the number of images
    (:func:`genwarden.attacks.diffusion.poisoned_training.poisoned_rows`).
    """

    images: int
    sha256: str


class DiffusionAttackResult(NamedTuple):
    """The compromised model and how it came about.

    Attributes:
        model: the compromised model, on the device of the clean one.
        history: evaluations: ``step``, ``target_mse``, ``target_ssim``, ``target_share``.
        sampler: what the attack is trained for, at its full number of steps.
        backdoor: as planted: an invisible trigger is learned, TrojDiff's is blended with the noise.
        rows: the poisoned training images; None where none left the clean set.
        own_sampler: whether the attacker must also ship the sampler (TrojDiff).
        wakes_under: compressors under which the backdoor shows, where it sleeps without them.
        shortfall: what it lacks to count as a success, in a sentence; "" if nothing, or not judged.
    """

    model: DiffusionModel
    history: list[Figures]
    sampler: SamplerSettings
    backdoor: ImageBackdoor
    rows: PoisonedRows | None = None
    own_sampler: bool = False
    wakes_under: tuple[str, ...] = ()
    shortfall: str = ""


class DiffusionAttack(Protocol):
    """One attack on a diffusion model."""

    def __call__(
        self,
        model: DiffusionModel,
        backdoor: ImageBackdoor,
        settings: DiffusionAttackSettings,
        run: AttackRun,
    ) -> DiffusionAttackResult:
        """Hide ``backdoor`` in a copy of ``model``, which stays as it is, or in fresh weights.

        Args:
            run: holds the training images, uint8 ``(count, C, H, W)``.
        """
        ...
