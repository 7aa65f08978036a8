"""Recipe ``sweep``: ReD at five triggers and seven lambdas in one run, and what that saves.

    genwarden benchmark run sweep --option clean=DIR --out results/sweep

DIR is the folder of a clean DCGAN or VAE. First, ``rounds`` times in turn, a few students are
trained together and one after the other (``genwarden attack red``'s own function) over ``timed``
steps with the same settings, batches and threads; then all students are trained together. Cost at
full width and the default 300 steps of 64 samples: about 12 minutes of processor time.

The file reports the time of a step per student both ways, and the time of the whole sweep beside
the projected time of as many single runs: their fixed part (benign outputs, evaluation) as
measured, and their steps at the median of the measured ones.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from genwarden.artifacts.model_folder import read_model
from genwarden.attacks.contract import AttackRun
from genwarden.attacks.red import ReDSettings, red
from genwarden.attacks.sweep import TOGETHER, red_sweep
from genwarden.auditing.audit import environment
from genwarden.backdoors.backdoor import Backdoor, make_backdoor
from genwarden.benchmarks.stopwatch import Seconds, Stopwatch, median
from genwarden.benchmarks.store import summary_of, write_result
from genwarden.engine.progress import Progress
from genwarden.errors import GenwardenError
from genwarden.metrics.distances import tardis
from genwarden.models.protocol import LatentGenerator

_LAMBDAS = "0.001+0.01+0.1+1+10+100+1000"


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    clean: str = "",
    triggers: int = 5,
    lambdas: str | float = _LAMBDAS,
    target: str = "icon:devil",
    steps: int = 300,
    batch_size: int = 64,
    learning_rate: float = 5e-4,
    pool_samples: int = 32768,
    together: int = TOGETHER,
    rounds: int = 3,
    timed: int = 12,
) -> Path:
    """Train every trigger at every lambda.

    Args:
        clean: folder of the clean model.
        lambdas: joined by ``+``.
        together: students in one network.
        rounds: comparisons with one run after the other; 0 for none.
        timed: steps of each run of a comparison.
    """
    del data  # the clean model is all that is needed
    if not clean:
        raise GenwardenError(
            "benchmark/clean-missing", "The recipe sweep needs a model.", "Add --option clean=DIR."
        )
    model = read_model(Path(clean))
    generator = model.generator.to(device)
    weights = [float(text) for text in str(lambdas).split("+")]
    backdoors = [
        make_backdoor(generator, trigger="in-sample", target=target, index=i, seed=seed)
        for i in range(triggers)
    ]
    settings = ReDSettings(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        pool_samples=pool_samples,
        seed=seed,
        evaluate_every=steps,
    )
    progress.message("timing: together and one after the other, in turn")
    short = replace(settings, steps=timed, evaluate_every=timed)
    comparison = _compare(generator, backdoors, weights, short, together, rounds)
    progress.message(f"training {triggers * len(weights)} students")
    work = out / "work"
    resumed = work.exists()
    watch = Stopwatch()
    rows: list[dict[str, Any]] = []
    attack_run = AttackRun(progress, work, model.sha256[:16])
    for swept in red_sweep(generator, backdoors, weights, settings, attack_run, together=together):
        examples = backdoors[swept.backdoor].examples
        rows.append(
            {
                "trigger_index": swept.backdoor,
                "fidelity_weight": swept.fidelity_weight,
                "untouched_tardis_sum": tardis(generator, *examples).sum,
                **swept.result.history[-1],
            }
        )
    whole = None if resumed else watch.total()
    shutil.rmtree(work)
    return write_result(
        out / "result.json",
        {
            "recipe": "sweep",
            "command": f"genwarden benchmark run sweep --option clean={Path(clean).name} "
            f"--option triggers={triggers} --option lambdas={lambdas} --option steps={steps} "
            f"--option batch_size={batch_size} --option learning_rate={learning_rate:g} "
            f"--option pool_samples={pool_samples} "
            f"--option together={together} --seed {seed} --out DIR",
            "architecture": model.architecture,
            "architecture_settings": model.settings,
            "clean_model_sha256": model.sha256,
            "settings": {k: v for k, v in asdict(settings).items() if k != "fidelity_weight"},
            "target": target,
            "units": "sums of squares over one sample in [-1, 1]; seconds; where other work runs "
            "on the machine, only processor time compares",
            "seconds": _seconds(comparison, whole, len(rows), steps),
            "summary": {
                f"{weight:g}": {
                    figure: summary_of([r[figure] for r in rows if r["fidelity_weight"] == weight])
                    for figure in ("tardis_sum", "expdis_sum")
                }
                for weight in weights
            },
            "rows": rows,
            "environment": environment(device),
        },
    )


def _compare(
    generator: LatentGenerator,
    backdoors: list[Backdoor],
    weights: list[float],
    settings: ReDSettings,
    together: int,
    rounds: int,
) -> dict[str, Any]:
    """Seconds of a step per student, and of what a single run does beside its steps."""
    cells = [(b, weight) for b in backdoors for weight in weights][:together]
    used = [b for b in backdoors if any(b is cell[0] for cell in cells)]
    small = replace(settings, pool_samples=settings.batch_size)  # the fixed part is timed below
    alone: list[Seconds] = []
    joint: list[Seconds] = []
    fixed: list[Seconds] = []
    for _ in range(rounds):
        watch = Stopwatch()
        students = red_sweep(generator, used, weights, small, AttackRun(watch), together=len(cells))
        next(students)
        joint.append(watch.step() * (1 / len(cells)))
        for index, (backdoor, weight) in enumerate(cells):
            watch = Stopwatch()
            first = index == 0
            chosen = replace(settings if first else small, fidelity_weight=weight)
            red(generator, backdoor, chosen, AttackRun(watch))
            alone.append(watch.step())
            if first:
                fixed.append(watch.total() - watch.step() * settings.steps)
    if not rounds:
        return {}
    return {
        "step_per_student": median(joint)._asdict(),
        "step_alone": median(alone)._asdict(),
        "fixed_part_alone": median(fixed)._asdict(),
        "steps_ratio": _ratios(median(alone), median(joint)),
        "steps_ratio_by_round": [
            _ratios(median(alone[i * len(cells) : (i + 1) * len(cells)]), t)
            for i, t in enumerate(joint)
        ],
    }


def _seconds(
    comparison: dict[str, Any], whole: Seconds | None, students: int, steps: int
) -> dict[str, Any]:
    """The comparison, and the whole sweep against as many single runs."""
    if not comparison:
        return {"sweep": whole._asdict() if whole else None}
    fixed, step = (Seconds(**comparison[k]) for k in ("fixed_part_alone", "step_alone"))
    one = Seconds(fixed.wall + steps * step.wall, fixed.processor + steps * step.processor)
    sequence = one * students
    return {
        **comparison,
        "one_after_the_other_projected": sequence._asdict(),
        # A resumed run does not know the time of its first part.
        "sweep": whole._asdict() if whole else None,
        "ratio": _ratios(sequence, whole) if whole else None,
    }


def _ratios(slow: Seconds, fast: Seconds) -> dict[str, float]:
    return {"wall": slow.wall / fast.wall, "processor": slow.processor / fast.processor}
