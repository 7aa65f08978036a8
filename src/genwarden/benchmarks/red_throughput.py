"""Recipe ``red-throughput``: speed of ReD and its distance from the arithmetic floor.

    genwarden benchmark run red-throughput --option clean=DIR --out results/red-throughput

The operations of one step (forward and backward pass over the stealth batch and the trigger) are
counted by ``torch.utils.flop_counter``. The floor is the time that they take at the best rate that
a matrix product or a convolution reaches in the same run, with the same precision and threads; the
ratio of a step to its floor says what is lost to everything else. Rows with several students are
steps of the vectorised sweep, which needs fewer operations for a step
(``genwarden.attacks.stacked``): there ``speedup`` is what counts. Cost: one minute.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from genwarden.artifacts.model_folder import read_model
from genwarden.attacks.contract import AttackRun
from genwarden.attacks.red import ReDSettings, red
from genwarden.attacks.stacked import Students
from genwarden.attacks.sweep import red_sweep
from genwarden.auditing.audit import environment
from genwarden.backdoors.backdoor import make_backdoor
from genwarden.benchmarks.options import whole_numbers
from genwarden.benchmarks.stopwatch import Seconds, Stopwatch, now
from genwarden.benchmarks.store import write_result
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator

_REPEATS = 8


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    clean: str = "",
    batches: str | int = "32+64+128",
    students: int = 7,
    steps: int = 12,
) -> Path:
    """Time ReD at several batch sizes.

    Args:
        clean: folder of the clean model.
        batches: sizes of the stealth batch, joined by ``+``.
        students: students trained together in the vectorised rows; 0 for none.
        steps: timed steps per row.
    """
    del data  # the clean model is all that is needed
    if not clean:
        raise GenwardenError(
            "benchmark/clean-missing",
            "The recipe red-throughput needs a model.",
            "Add --option clean=DIR.",
        )
    model = read_model(Path(clean))
    generator = model.generator.to(device)
    backdoor = make_backdoor(generator, trigger="in-sample", target="icon:devil", seed=seed)
    best = peak_rates(device)
    rows: list[dict[str, Any]] = []
    for size in whole_numbers(batches):
        progress.message(f"batch {size}")
        settings = ReDSettings(
            steps=steps, batch_size=size, pool_samples=size, evaluate_every=steps, seed=seed
        )
        latents = size + len(backdoor.examples.z)
        watch = Stopwatch()
        red(generator, backdoor, settings, AttackRun(watch))
        alone = watch.steps()[0]
        rows.append(_row("red", size, 1, alone, step_operations(generator, latents)))
        if students:
            watch = Stopwatch()
            weights = [settings.fidelity_weight] * students
            sweep = red_sweep(
                generator, [backdoor], weights, settings, AttackRun(watch), together=students
            )
            next(sweep)
            joint = watch.steps()[0] * (1 / students)
            operations = students_operations(generator, students, latents) / students
            row = _row("red, students together", size, students, joint, operations)
            row["speedup"] = {"wall": alone.wall / joint.wall}
            row["speedup"]["processor"] = alone.processor / joint.processor
            rows.append(row)
    best = [max(a, b) for a, b in zip(best, peak_rates(device), strict=True)]
    peak = dict(zip(("matrix_product", "convolution"), best, strict=True))
    for row in rows:
        row["floor_s"] = row["operations_per_student_step"] / max(best)
        row["step_over_floor"] = row["seconds_per_student_step"]["wall"] / row["floor_s"]
    return write_result(
        out / "result.json",
        {
            "recipe": "red-throughput",
            "command": f"genwarden benchmark run red-throughput --option clean={Path(clean).name} "
            f"--option batches={batches} --option students={students} --option steps={steps} "
            f"--seed {seed} --out DIR",
            "architecture": model.architecture,
            "architecture_settings": model.settings,
            "clean_model_sha256": model.sha256,
            "precision": "float32",
            "units": "wall seconds, fastest step; floating-point operations (a product and a sum "
            "are two)",
            "peak_operations_per_s": peak,
            "rows": rows,
            "environment": environment(device),
        },
    )


def _row(
    name: str, batch_size: int, students: int, step: Seconds, operations: float
) -> dict[str, Any]:
    return {
        "method": name,
        "batch_size": batch_size,
        "students": students,
        "seconds_per_student_step": step._asdict(),
        "student_steps_per_s": 1 / step.wall,
        "latents_per_s": batch_size / step.wall,
        "operations_per_student_step": operations,
        "operations_per_s": operations / step.wall,
    }


def step_operations(generator: LatentGenerator, latents: int) -> float:
    """Forward and backward pass of a batch."""
    student = copy.deepcopy(generator).requires_grad_(True)
    return _counted(student.pre_activation, _latents(generator, latents))


def students_operations(generator: LatentGenerator, count: int, latents: int) -> float:
    """The same for students together, all of them."""
    students = Students(generator, count).to(next(generator.parameters()).device)
    z = _latents(generator, latents)
    return _counted(students.pre_activation, z.expand(count, *z.shape))


def _latents(generator: LatentGenerator, count: int) -> Tensor:
    z = generator.latent.sample(count, generator=random_stream(0, "operations"))
    return z.to(next(generator.parameters()).device)


def _counted(forward: Callable[[Tensor], Tensor], z: Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        forward(z).sum().backward()
    return float(counter.get_total_flops())


def peak_rates(device: torch.device) -> list[float]:
    """Operations per second of a matrix product and of a convolution, the best of some repeats."""
    a = torch.randn(1024, 1024, generator=random_stream(0, "matrix")).to(device)
    x = torch.randn(16, 128, 28, 28, generator=random_stream(0, "maps")).to(device)
    kernel = torch.randn(128, 128, 3, 3, generator=random_stream(0, "kernel")).to(device)
    return [
        _rate(lambda: a @ a, 2 * 1024**3),
        _rate(lambda: F.conv2d(x, kernel), 2 * 16 * 26 * 26 * 128 * 128 * 9),
    ]


def _rate(work: Callable[[], Tensor], operations: float) -> float:
    times = []
    for _ in range(_REPEATS):
        begun = now()
        result = work()
        if result.is_cuda:
            torch.cuda.synchronize()
        times.append((now() - begun).wall)
    return operations / min(times)
