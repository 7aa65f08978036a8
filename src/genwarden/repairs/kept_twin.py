"""Twins of a suspect for repairs, kept with the run so that an interrupted one need not repeat."""

from __future__ import annotations

import copy
from pathlib import Path

from genwarden.engine.checkpoint import load_checkpoint, save_checkpoint
from genwarden.engine.seeds import derive_seed, random_stream
from genwarden.inspections.output.novelty import ordinary_distance
from genwarden.inspections.twins import Twin, make_twin
from genwarden.inspections.workbench import samples_of
from genwarden.models.protocol import LatentGenerator
from genwarden.repairs.contract import RepairRun

_TYPICAL_SAMPLES = 2048


def kept_twins(
    suspect: LatentGenerator, steps: int, *, count: int, seed: int, run: RepairRun
) -> list[Twin]:
    """``count`` twins of a suspect, distilled for ``steps``; finished ones are read from the run.

    Raises:
        GenwardenError: ``checkpoint/...`` if the run's folder holds those of another run.
    """
    paths = [run.work / f"twin-{n}.safetensors" if run.work else None for n in range(count)]
    found = [_read(suspect, path, run) for path in paths]
    missing = [number for number, twin in enumerate(found) if twin is None]
    if not missing:
        return [twin for twin in found if twin is not None]
    stream = random_stream(seed, "repair-typical")
    z = suspect.latent.sample(_TYPICAL_SAMPLES, generator=stream)
    device = next(suspect.parameters()).device
    typical = ordinary_distance(samples_of(suspect, z, device))
    task = run.progress.task("distilling twins", len(missing) * steps)
    for number in missing:
        twin = make_twin(
            suspect,
            steps,
            typical=typical,
            seed=derive_seed(seed, "repair-twin"),
            number=number,
            task=task,
        )
        found[number] = twin
        path = paths[number]
        if path is not None:
            save_checkpoint(
                path,
                run_id=run.run_id,
                step=steps,
                parts={"twin": twin.generator},
                record={"loss": twin.loss},
            )
    return [twin for twin in found if twin is not None]


def _read(suspect: LatentGenerator, path: Path | None, run: RepairRun) -> Twin | None:
    if path is None:
        return None
    generator = copy.deepcopy(suspect).eval().requires_grad_(False)
    kept = load_checkpoint(path, run_id=run.run_id, parts={"twin": generator})
    return Twin(generator, kept.record["loss"]) if kept else None
