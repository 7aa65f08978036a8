"""Training on mixed batches, which all attacks on diffusion models share (section 4).

A fixed, seeded part of the training images leaves the clean set. Clean rows are DDPM's own. A
poisoned row is x_t = a_t y + s_t gamma_t eps + rho_t r with the noise target gamma_t eps + c_t r;
y is the target, r the residual, gamma_t the noise amplitude (1 unless the trigger shrinks the
noise).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genwarden.attacks.contract import AttackRun
from genwarden.attacks.diffusion.contract import (
    DiffusionAttackSettings,
    Figures,
    PoisonedRows,
)
from genwarden.attacks.diffusion.evaluation import diverged, figures_of_step, in_words
from genwarden.backdoors.image_backdoor import ImageBackdoor
from genwarden.engine.files import sha256_bytes
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.networks import fresh_model
from genwarden.models.diffusion.samplers import SamplerSettings
from genwarden.models.diffusion.sampling import pairs_of
from genwarden.models.diffusion.schedule import NoiseSchedule, at_steps
from genwarden.models.diffusion.unet_config import UNetConfig
from genwarden.training.ddpm import DdpmSettings, DenoiserLearner, NoisyRows, draw_noise
from genwarden.training.frame import Frame
from genwarden.training.settings import batch_indices, best_precision


@dataclass(frozen=True)
class Track:
    """What the poisoned rows follow from the trigger to the target; all float64 ``(T,)``.

    Attributes:
        rho: share of the residual in x_t.
        c: share of it in the noise target.
        timesteps: those at which rows are poisoned, int64; None for all. A sampler of few steps
            has a coefficient at those that it visits only.
    """

    rho: Tensor
    c: Tensor
    timesteps: Tensor | None = None


def poisoned_rows(count: int, rate: float, seed: int) -> Tensor:
    """Sorted indices of the images that are poisoned, int64; at least one, never all.

    They depend on the three arguments alone: anybody can say afterwards which rows they were.
    """
    if count < 2:
        raise GenwardenError(
            "attack/data-missing",
            f"{count} training images cannot be divided into clean and poisoned ones.",
            "Give more training data.",
        )
    number = min(count - 1, max(1, round(rate * count)))
    order = torch.randperm(count, generator=random_stream(seed, "poison"))
    return order[:number].sort().values


def describe_rows(rows: Tensor) -> PoisonedRows:
    """Their number, and the SHA-256 of the indices as little-endian 64-bit integers."""
    return PoisonedRows(len(rows), sha256_bytes(rows.numpy().astype("<i8").tobytes()))


def noise_amplitude(
    schedule: NoiseSchedule, gamma: Tensor, eta: float, timesteps: list[int] | None = None
) -> Tensor:
    """gamma_t of a sampler that starts from gamma n instead of n, float64 ``(T, C, H, W)``.

    A DDIM-eta step that is told the true noise gamma_t eps has the noise variance
    (s'^2 - sigma^2) gamma_t^2 + sigma^2 at t', so 1 - gamma_{t'}^2 = (1 - sigma^2 / s'^2)
    (1 - gamma_t^2): without fresh noise the amplitude stays, with it the shrinking is forgotten.

    Args:
        gamma: amplitude at the first timestep, ``(C, H, W)``.
        timesteps: those visited, falling; None for all. Between them the later value is held.
    """
    visited = list(range(schedule.steps - 1, -1, -1)) if timesteps is None else timesteps
    missing = 1 - gamma.double().square()
    table = missing.expand(schedule.steps, *gamma.shape).clone()
    for pair in pairs_of(visited, schedule)[:-1]:
        # 1 - sigma^2 / s'^2 = (1 - eta^2) + eta^2 q^2, q the ratio of the noise-to-signal ratios.
        q = pair.a * pair.s_next / (pair.a_next * pair.s)
        missing = missing * ((1 - eta**2) + (eta * q) ** 2)
        table[: pair.t] = missing
    return (1 - table).sqrt()


class PoisonedBatches:
    """The rows of every step: some clean, some poisoned.

    Args:
        backdoor: with its targets on the device of the training.
        track: what the poisoned rows follow.
        count: number of training images.
        eta: randomness of the sampler that the attack is for; it matters where the trigger shrinks
            the noise.
        training: gives seed and batch size.
        residual: r of the poisoned rows from their clean images; that of the trigger by default.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        backdoor: ImageBackdoor,
        track: Track,
        count: int,
        settings: DiffusionAttackSettings,
        training: DdpmSettings,
        *,
        eta: float,
        residual: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.schedule, self.backdoor, self.track = schedule, backdoor, track
        self.rows = poisoned_rows(count, settings.poison_rate, settings.seed)
        self._poisoned = torch.zeros(count, dtype=torch.bool)
        self._poisoned[self.rows] = True
        self._training = training
        self._residual = residual or backdoor.trigger.residual
        gamma = backdoor.trigger.gamma
        steps = None if track.timesteps is None else track.timesteps.sort(descending=True).values
        visited = None if steps is None else steps.tolist()
        self._gamma = (
            None if gamma is None else noise_amplitude(schedule, gamma, eta, visited).float()
        )

    def __call__(self, real: Tensor, step: int, stream: torch.Generator) -> NoisyRows:
        """The rows of one step; ``real`` are the images that ``Frame`` takes for it."""
        schedule, track = self.schedule, self.track
        t, noise = draw_noise(schedule, real, stream)
        chosen = self._poisoned[batch_indices(len(self._poisoned), step, self._training)]
        number = int(chosen.sum())
        chosen = chosen.to(real.device)
        clean_x = schedule.add_noise(real, noise, t)
        if not number:
            return NoisyRows(clean_x, t, noise)
        if track.timesteps is not None:
            picked = torch.randint(len(track.timesteps), (number,), generator=stream)
            t[chosen] = track.timesteps[picked].to(t.device)
        y = self.backdoor.draw(number, generator=stream).to(real)
        bad = self.poison(real[chosen], y, noise[chosen], t[chosen])
        target = noise.clone()
        clean_x[chosen], target[chosen] = bad.x, bad.target
        return NoisyRows(clean_x, t, target)

    def poison(self, images: Tensor, y: Tensor, noise: Tensor, t: Tensor) -> NoisyRows:
        """Poisoned rows of the given clean images, targets, noises and timesteps."""
        r = self._residual(images)
        if self._gamma is not None:
            noise = self._gamma[t.cpu()].to(noise) * noise
        x = self.schedule.add_noise(y, noise, t) + at_steps(self.track.rho, t, r) * r
        return NoisyRows(x, t, noise + at_steps(self.track.c, t, r) * r)


def start_of_training(
    model: DiffusionModel, settings: DiffusionAttackSettings
) -> tuple[DiffusionModel, DdpmSettings]:
    """The network to poison (a copy, or fresh weights) and the settings of its training."""
    device = next(model.parameters()).device
    if settings.from_scratch:
        config = UNetConfig.model_validate(model.settings())
        stream = random_stream(settings.seed, "denoiser-weights")
        start = fresh_model(config, model.schedule, stream).to(device)
        start.defaults = model.defaults
    else:
        start = copy.deepcopy(model)
    precision = best_precision(device) if settings.precision == "auto" else settings.precision
    training = DdpmSettings(
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        precision=precision,
        checkpoint_every=settings.evaluate_every,
        warmup=settings.warmup,
        ema=settings.ema,
        flip=settings.flip,
    )
    return start, training


def training_images(run: AttackRun, model: DiffusionModel) -> Tensor:
    """The attacker's data, uint8 ``(count, C, H, W)``.

    Raises:
        GenwardenError: ``attack/data-missing``, ``attack/shape``.
    """
    if run.images is None:
        raise GenwardenError(
            "attack/data-missing",
            "This attack trains on poisoned data and needs training images.",
            "Add --data FOLDER (or give AttackRun its images).",
        )
    if tuple(run.images.shape[1:]) != model.sample.shape:
        raise GenwardenError(
            "attack/shape",
            f"The training images are {tuple(run.images.shape[1:])}, the model makes "
            f"{model.sample.shape}.",
            "Give images of the model's size, or --option resize=true.",
        )
    return run.images


def train_poisoned(
    learner: DenoiserLearner,
    images: Tensor,
    backdoor: Callable[[], ImageBackdoor],
    sampler: SamplerSettings,
    settings: DiffusionAttackSettings,
    run: AttackRun,
    *,
    own_sampler: bool = False,
) -> list[Figures]:
    """Train to the end, or until the target is reached; returns the history of evaluations.

    Args:
        backdoor: as it is now (an invisible trigger is still being learned).
        sampler: the one that the attack is trained for.

    Raises:
        GenwardenError: ``attack/diverged``.
    """
    device = next(learner.model.parameters()).device
    record: dict[str, list[Figures]] = {"history": []}

    def evaluate(done: int) -> bool:
        if done % settings.evaluate_every and done != settings.steps:
            return False
        figures = figures_of_step(
            done, learner.averaged, backdoor(), sampler, settings, own_sampler=own_sampler
        )
        record["history"].append(figures)
        return (figures["target_mse"] or 0.0) <= settings.stop_target_mse

    frame = Frame(
        learner,
        learner.settings,
        run.work / "attack.safetensors" if run.work else None,
        run.run_id,
        run.progress,
        title="attack",
        between=evaluate,
        note=lambda: in_words(record["history"][-1]) if record["history"] else "",
        record=record,
    )
    try:
        frame.run(images.to(device), device)
    except GenwardenError as error:
        if error.code != "train/diverged":
            raise
        raise diverged() from error
    learner.finish()
    return record["history"]


def fine_tune(
    model: DiffusionModel,
    backdoor: ImageBackdoor,
    track: Track,
    sampler: SamplerSettings,
    settings: DiffusionAttackSettings,
    run: AttackRun,
    *,
    eta: float,
) -> tuple[DiffusionModel, list[Figures], PoisonedRows]:
    """Poison a copy of ``model`` (or fresh weights) along one track."""
    backdoor.require_fit(model.sample)
    images = training_images(run, model)
    start, training = start_of_training(model, settings)
    device = next(start.parameters()).device
    batches = PoisonedBatches(
        model.schedule,
        backdoor.to(device),
        track,
        len(images),
        settings,
        training,
        eta=eta,
    )
    learner = DenoiserLearner(start, training, device, batches)
    history = train_poisoned(learner, images, lambda: backdoor, sampler, settings, run)
    return learner.model, history, describe_rows(batches.rows)
