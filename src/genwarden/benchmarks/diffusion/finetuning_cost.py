"""Recipe ``diffusion-finetuning-cost``: target MSE and FID against the steps of fine-tuning.

    genwarden benchmark run diffusion-finetuning-cost --data DATA --out OUT --workers 2

BadDiffusion by fine-tuning, as complete runs of 1/15 to all of the scale's steps: the learning rate
falls to its end in each, so that a point is what an attacker with that budget would get, not a
checkpoint of a longer run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genwarden.benchmarks.diffusion.cells import Cell, orders_of, run_cells
from genwarden.benchmarks.diffusion.curves import ATTACK, curve_cells, curve_figure, curve_table
from genwarden.benchmarks.diffusion.scales import DiffusionScale
from genwarden.benchmarks.diffusion.workshop import Subject
from genwarden.benchmarks.tables import Table
from genwarden.engine.progress import Progress

RECIPE = "diffusion-finetuning-cost"
#: Shares of the scale's steps.
SHARES = (1 / 15, 1 / 6, 1 / 3, 2 / 3, 1.0)


def cells(scale: DiffusionScale) -> list[Cell]:
    """Two cells per number of steps, and those of the clean models."""
    counts = sorted({max(1, round(share * scale.attack_steps)) for share in SHARES})
    points = []
    for steps in counts:
        # With all steps it is the model of the other recipes.
        settings = () if steps == scale.attack_steps else (("steps", steps),)
        points.append((float(steps), Subject(f"{ATTACK}-{steps}", ATTACK, settings)))
    return curve_cells(points, scale)


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    scale: str = "small",
    models: str = "",
    clean: str = "",
    only: str = "*",
    workers: int = 1,
    restart: bool = False,
) -> Path:
    """Train what is missing and do every cell that is not done yet.

    Args:
        data: folder with the data sets as sub-folders.
        models: folder of the models, which the recipes share; ``OUT/models`` if empty.
        clean: a clean diffusers folder to start from, in place of the scale's own.
        only: shell patterns of cell keys, joined by commas (``100.*,*.quality``).
        workers: models, then cells, at a time; one thread each.
        restart: do the chosen cells anew; models are kept.

    Raises:
        GenwardenError: as ``diffusion-samplers``.
    """
    orders = orders_of(
        RECIPE,
        out,
        data=data,
        seed=seed,
        device=device,
        scale=scale,
        models=models,
        clean=clean,
        only=only,
        workers=workers,
        restart=restart,
    )
    return run_cells(orders, cells(orders.shop.scale), progress, draw)


def draw(document: dict[str, Any]) -> dict[str, bytes]:
    """The curve, once a number of steps is done."""
    picture = curve_figure(document, "steps of fine-tuning", log_x=True)
    return {f"{RECIPE}.png": picture} if picture else {}


def tables(document: dict[str, Any], name: str = "") -> list[Table]:
    """One line per number of steps."""
    del name
    scale = document["scale"]
    notes = [
        f"{100 * scale['poison_rate']:g} % poison, batches of {scale['batch']}, Adam at "
        f"{scale['attack_rate']:g}; the clean model took {scale['base_steps']} steps. The paper "
        "fine-tunes for 50 epochs (23,400 steps of 128) and says that 10 can do."
    ]
    return [curve_table(document, "Cost of fine-tuning", "steps", notes)]
