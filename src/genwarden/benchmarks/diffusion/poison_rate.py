"""Recipe ``diffusion-poison-rate``: target MSE, SSIM and FID against the share of poison.

    genwarden benchmark run diffusion-poison-rate --data DATA --out OUT --workers 2

BadDiffusion by fine-tuning, at 1 to 50 % poison; models are shared with ``diffusion-samplers``
where both name the same folder (``--option models=DIR``).
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

RECIPE = "diffusion-poison-rate"
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def cells(scale: DiffusionScale) -> list[Cell]:
    """Two cells per rate, and those of the clean models."""
    points = []
    for rate in RATES:
        # At the scale's own rate it is the model of the other recipes.
        settings = () if rate == scale.poison_rate else (("poison_rate", rate),)
        points.append((rate, Subject(f"{ATTACK}-{rate:g}", ATTACK, settings)))
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
        only: shell patterns of cell keys, joined by commas (``0.1.*,*.quality``).
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
    """The curve, once a rate is done."""
    picture = curve_figure(document, "share of poison", log_x=True)
    return {f"{RECIPE}.png": picture} if picture else {}


def tables(document: dict[str, Any], name: str = "") -> list[Table]:
    """One line per rate, beside what the paper's reproductions say."""
    del name
    notes = [
        "Third party, CIFAR-10, hat: 5 % poison MSE 1.58e-1, SSIM 0.312, FID 8.53; 20 % 1.19e-5, "
        "1.00, 8.89; 50 % 1.48e-5, 1.00, 10.25. The paper: 5 % is enough in most CIFAR settings, "
        "the grey box's FID is stable below 30 %."
    ]
    return [curve_table(document, "Share of poison", "poison, %", notes, factor=100)]
