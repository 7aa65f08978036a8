"""ReD at many triggers and lambdas together (Fig. 5 of "The Devil is in the GAN" in one run).

Every student is trained as :func:`genwarden.attacks.red.red` would train it alone, with the same
batches, to rounding. What is shared: the benign outputs of the stealth term and of the evaluation
are computed once for all students. What is saved beside that is arithmetic, see
:mod:`genwarden.attacks.stacked`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import torch
from torch import Tensor

from genwarden.attacks.contract import AttackResult, AttackRun, Evaluation
from genwarden.attacks.loop import (
    EVALUATION_SAMPLES,
    FidelityBatches,
    Pool,
    half_cosine,
    in_words,
    ordinary_pool,
)
from genwarden.attacks.red import ReDSettings, training_precision
from genwarden.attacks.settings import DistillationSettings
from genwarden.attacks.stacked import Students
from genwarden.backdoors.backdoor import Backdoor
from genwarden.engine.checkpoint import Trainable, load_checkpoint, save_checkpoint
from genwarden.engine.files import sha256_bytes
from genwarden.engine.progress import Task
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator

#: Full-width students at a time: about 100 MB each while they train.
TOGETHER = 7
_FORWARD_BATCH = 128


class Swept(NamedTuple):
    """One student: which of the backdoors, which lambda, and what ReD made of them."""

    backdoor: int
    fidelity_weight: float
    result: AttackResult


def red_sweep(
    generator: LatentGenerator,
    backdoors: Sequence[Backdoor],
    fidelity_weights: Sequence[float],
    settings: ReDSettings,
    run: AttackRun,
    *,
    together: int = TOGETHER,
) -> Iterator[Swept]:
    """Train one student per backdoor and lambda, and hand them out as they are ready.

    Args:
        generator: the benign model, left as it is.
        backdoors: each with finitely many triggers, the same number in all.
        fidelity_weights: values of lambda; that of ``settings`` is not used.
        settings: of every student; all layers are retrained.
        together: students in one network.

    Raises:
        GenwardenError: ``sweep/unsupported``, ``attack/setting``, ``attack/diverged``.
    """
    counts = {len(b.examples.z) if b.finite else 0 for b in backdoors}
    stops = settings.stop_tardis_sum, settings.stop_expdis_sum
    limits = settings.layers, settings.weight_decay, settings.first_layer_steps, *stops
    if len(counts) != 1 or 0 in counts or any(limits) or together < 1 or not fidelity_weights:
        raise GenwardenError(
            "sweep/unsupported",
            "The vectorised sweep needs backdoors with equally many (finitely many) triggers, "
            "lambdas, at least one student at a time, and plain ReD (no layers, decay, first layer "
            "or stops).",
            "Run genwarden attack red for the others.",
        )
    for weight in fidelity_weights:
        replace(settings, fidelity_weight=weight)  # refuses lambda <= 0
    device = next(generator.parameters()).device
    pool = ordinary_pool(generator, settings.pool_samples, settings.seed, "attack-pool", device)
    held_out = ordinary_pool(
        generator, EVALUATION_SAMPLES, settings.seed, "attack-evaluation", device
    )
    cells = [(b, weight) for b in range(len(backdoors)) for weight in fidelity_weights]
    total = settings.steps * math.ceil(len(cells) / together)
    bar = run.progress.task("sweep", total)
    for start in range(0, len(cells), together):
        part = cells[start : start + together]
        lesson = _Lesson(generator, backdoors, part, settings, pool, held_out)
        students = Students(generator, len(part), training_precision(settings)).to(device)
        histories = _train(students, lesson, settings, run, bar)
        for index, (backdoor, weight) in enumerate(part):
            result = AttackResult(students.student(index), histories[index])
            yield Swept(backdoor, weight, result)


class _Lesson:
    """Loss and figures of the students of one part."""

    def __init__(
        self,
        generator: LatentGenerator,
        backdoors: Sequence[Backdoor],
        cells: Sequence[tuple[int, float]],
        settings: DistillationSettings,
        pool: Pool,
        held_out: Pool,
    ) -> None:
        device = pool.z.device
        self.generator, self.cells, self.settings = generator, cells, settings
        self.pool, self.held_out = pool, held_out
        pairs = [FidelityBatches(generator, backdoors[b], settings).batch(0) for b, _ in cells]
        self.triggers = torch.stack([pair.z for pair in pairs])
        self.wanted = torch.stack([pair.pre for pair in pairs])
        self.targets = torch.stack([backdoors[b].examples.x for b, _ in cells]).to(device)
        self.weights = torch.tensor([weight for _, weight in cells], device=device)
        self.key = [(backdoors[b].describe(), weight) for b, weight in cells]

    def loss(self, students: Students, step: int) -> Tensor:
        """Sum over the students of Eq. 4; no student's gradient depends on another."""
        z, teacher = self.pool.batch(step, self.settings)
        shared = z.expand(students.count, *z.shape)
        pre = students.pre_activation(torch.cat([shared, self.triggers], dim=1))
        ordinary, at_trigger = pre[:, : len(z)], pre[:, len(z) :]
        if self.settings.stealth_on == "post":
            ordinary, teacher = self.generator.finish(ordinary), self.generator.finish(teacher)
        stealth = (ordinary - teacher).square().flatten(1).mean(1)  # Eq. 7
        fidelity = (at_trigger - self.wanted).square().flatten(1).mean(1)  # Eq. 6
        return (stealth + self.weights * fidelity).sum()

    @torch.no_grad()
    def evaluate(self, students: Students) -> list[Evaluation]:
        """TarDis and ExpDis of every student."""
        moved = torch.zeros(students.count, dtype=torch.float64)
        parts = (part.split(_FORWARD_BATCH) for part in self.held_out)
        for z, pre in zip(*parts, strict=True):
            output = self.generator.finish(students.pre_activation(z.expand(1, *z.shape)))
            difference = output - self.generator.finish(pre)
            moved += difference.double().square().flatten(1).sum(1).cpu()
        output = self.generator.finish(students.pre_activation(self.triggers))
        missed = (output - self.targets).double().square().flatten(2).sum(2).mean(1)
        expdis = moved / len(self.held_out.z)
        return [Evaluation(t, e) for t, e in zip(missed.tolist(), expdis.tolist(), strict=True)]


Histories = list[list[dict[str, float | None]]]


def _train(
    students: Students, lesson: _Lesson, settings: ReDSettings, run: AttackRun, bar: Task
) -> Histories:
    """Adam with a step that falls to zero along a half cosine, as in ``loop.optimise``."""
    adam = torch.optim.Adam(students.parameters(), settings.learning_rate, fused=True)
    parts: dict[str, Trainable] = {"students": students, "adam": adam}
    key = sha256_bytes(repr([run.run_id, asdict(settings), lesson.key]).encode())[:16]
    checkpoint = run.work / f"sweep-{key}.safetensors" if run.work else None
    restored = load_checkpoint(checkpoint, run_id=key, parts=parts) if checkpoint else None
    histories: Histories = restored.record["histories"] if restored else [[] for _ in lesson.cells]
    start = restored.step if restored else 0
    bar.advance(start)
    note = ""
    for step in range(start, settings.steps):
        for group in adam.param_groups:
            group["lr"] = settings.learning_rate * half_cosine(step / settings.steps)
        adam.zero_grad(set_to_none=True)
        lesson.loss(students, step).backward()
        adam.step()
        done = step + 1
        if done % settings.evaluate_every == 0 or done == settings.steps:
            figures = lesson.evaluate(students)
            for history, figure, (_, weight) in zip(histories, figures, lesson.cells, strict=True):
                if not all(map(math.isfinite, (figure.tardis_sum, figure.expdis_sum or 0.0))):
                    raise GenwardenError(
                        "attack/diverged",
                        f"The training at lambda {weight:g} diverged before step {done}.",
                        "Repeat with a smaller learning_rate or without this lambda.",
                    )
                history.append({"step": done, **figure._asdict()})
            note = in_words(histories[0][-1])
            if checkpoint:
                save_checkpoint(
                    checkpoint, run_id=key, step=done, parts=parts, record={"histories": histories}
                )
        bar.advance(1, note)
    return histories
