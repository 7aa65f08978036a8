"""The training that all repairs of diffusion models share, and the rows that several use.

It is the frame of every training here (:mod:`genwarden.training.frame`) with a learner whose rows
the repair provides: an interrupted repair goes on from its checkpoint bit for bit. Losses of
several terms are written as one mean over rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from genwarden.data.datasets import to_unit_range
from genwarden.engine.seeds import random_stream
from genwarden.inspections.diffusion.orthogonal_response import REACHES, antithetic, measure
from genwarden.inspections.diffusion.timesteps import Timesteps
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.repairs.diffusion.contract import DiffusionRepairRun, DiffusionRepairSettings
from genwarden.training.ddpm import DdpmSettings, DenoiserLearner, NoisyRows, RowsOfStep, draw_noise
from genwarden.training.frame import Frame

#: Noises on which the history is measured, and shifts that it follows.
_PROBES = 32
_FOLLOWED = 4
_CHECKPOINT = "repair.safetensors"
#: Called after every step with the network in training and its average.
AfterStep = Callable[[DiffusionModel], None]


class _Learner(DenoiserLearner):
    """A denoiser whose pruned weights stay pruned."""

    after_step: AfterStep | None = None

    def step(self, real: Tensor, step: int, stream: torch.Generator) -> list[float]:
        """One step, after which what must hold is restored in both copies of the weights."""
        losses = super().step(real, step, stream)
        if self.after_step is not None:
            with torch.no_grad():
                self.after_step(self.model)
                self.after_step(self.averaged)
        return losses


def finetune(
    start: DiffusionModel,
    suspect: DiffusionModel,
    images: Tensor,
    rows: RowsOfStep,
    shifts: Tensor,
    settings: DiffusionRepairSettings,
    run: DiffusionRepairRun,
    *,
    after_step: AfterStep | None = None,
) -> tuple[DiffusionModel, list[dict[str, float]]]:
    """Fine-tune a copy of ``start``; returns it, ready for use, and the history.

    A row of the history holds ``step``; ``loss`` (mean squared error over the rows of the last 100
    steps); ``suspect_mse`` (mean squared difference of the noise estimates from the suspect's on
    plain inputs); and ``shift_ratio`` (largest ratio of the trigger search over the recovered
    shifts, which falls as their answer is forgotten; absent without shifts).

    Args:
        start: network to begin with; left as it is.
        suspect: what the history compares with.
        images: uint8 ``(count, C, H, W)``.
        rows: what a step learns from.
        shifts: ``(k, C, H, W)``, only followed.
        after_step: restores what must hold after every step, without gradients.
    """
    device = next(suspect.parameters()).device
    wish = DdpmSettings(
        steps=settings.steps,
        batch_size=min(settings.batch_size, len(images)),
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        checkpoint_every=settings.evaluate_every,
        warmup=max(1, settings.steps // 10),
        ema=settings.ema,
    )
    learner = _Learner(copy.deepcopy(start), wish, device, rows)
    learner.after_step = after_step
    looked = Timesteps.of(suspect, suspect.schedule, settings.seed)

    def follow(done: int) -> bool:
        if done % settings.evaluate_every == 0 or done == settings.steps:
            row = {"step": float(done), "loss": frame.mean_losses()[0]}
            row |= _figures(learner.averaged, suspect, images, shifts, looked)
            frame.record["history"].append(row)  # a resumed frame has a list of its own
        return False

    checkpoint = run.work / _CHECKPOINT if run.work else None
    frame = Frame(
        learner,
        wish,
        checkpoint,
        run.run_id,
        run.progress,
        title="repairing",
        between=follow,
        record={"history": []},
    )
    frame.run(images, device)
    learner.finish()
    history: list[dict[str, float]] = frame.record["history"]
    return learner.model, history


@torch.no_grad()
def _figures(
    model: DiffusionModel,
    suspect: DiffusionModel,
    images: Tensor,
    shifts: Tensor,
    looked: Timesteps,
) -> dict[str, float]:
    schedule, device = suspect.schedule, next(suspect.parameters()).device
    stream = random_stream(looked.seed, "repair-probe")
    rows = torch.randint(len(images), (_PROBES,), generator=stream)
    t = torch.randint(schedule.steps, (_PROBES,), generator=stream).to(device)
    noise = antithetic(_PROBES, suspect.sample.shape, stream).to(device)
    x = schedule.add_noise(to_unit_range(images[rows]).to(device), noise, t)
    gap = model.epsilon(x, t) - suspect.epsilon(x, t)
    found = {"suspect_mse": float(gap.square().mean())}
    if len(shifts):
        largest = [
            max(measure(model, shift.to(device), reach, noise, looked).largest for reach in REACHES)
            for shift in shifts[:_FOLLOWED]
        ]
        found["shift_ratio"] = max(largest)
    return found


def imitating_rows(suspect: DiffusionModel) -> RowsOfStep:
    """Plain rows x = a x0 + s eps whose target is the frozen suspect's own estimate."""

    def rows(real: Tensor, step: int, stream: torch.Generator) -> NoisyRows:
        del step
        t, noise = draw_noise(suspect.schedule, real, stream)
        return imitated(suspect, suspect.schedule.add_noise(real, noise, t), t)

    return rows


def imitated(suspect: DiffusionModel, x: Tensor, t: Tensor) -> NoisyRows:
    """Rows of given inputs with the frozen suspect's estimates as targets."""
    with torch.no_grad():
        return NoisyRows(x, t, suspect.epsilon(x, t))


def joined(*parts: NoisyRows) -> NoisyRows:
    """Rows of several terms as one batch."""
    return NoisyRows(*(torch.cat(column) for column in zip(*parts, strict=True)))


def late_timesteps(
    schedule: NoiseSchedule, share: float, count: int, stream: torch.Generator
) -> Tensor:
    """Uniform ``(count,)`` timesteps of [share T, T)."""
    first = first_late(schedule, share)
    return torch.randint(first, schedule.steps, (count,), generator=stream)


def first_late(schedule: NoiseSchedule, share: float) -> int:
    """The first timestep of [share T, T)."""
    return min(int(share * schedule.steps), schedule.steps - 1)
