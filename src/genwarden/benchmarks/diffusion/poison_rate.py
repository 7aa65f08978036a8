"""Recipe ``diffusion-poison-rate``: target MSE, SSIM and FID against the share of poison.

    genwarden benchmark run diffusion-poison-rate --data DATA --out OUT --workers 2

BadDiffusion by fine-tuning, at 1 to 50 % poison; models are shared with ``diffusion-samplers``
where both name the same folder (``--option models=DIR``).
"""

from __future__ import annotations

from typing import Any

from genwarden.benchmarks.diffusion.cells import Cell, recipe
from genwarden.benchmarks.diffusion.curves import ATTACK, curve_cells, curve_figure, curve_table
from genwarden.benchmarks.diffusion.scales import DiffusionScale
from genwarden.benchmarks.diffusion.workshop import Subject
from genwarden.benchmarks.tables import Table

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


def draw(document: dict[str, Any]) -> dict[str, bytes]:
    """The curve, once a rate is done."""
    picture = curve_figure(document, "share of poison", log_x=True)
    return {f"{RECIPE}-{document['scale']['name']}.png": picture} if picture else {}


run = recipe(RECIPE, cells, draw)


def tables(document: dict[str, Any], name: str = "") -> list[Table]:
    """One line per rate, beside what the paper's reproductions say."""
    del name
    notes = [
        "Third party, CIFAR-10, hat: 5 % poison MSE 1.58e-1, SSIM 0.312, FID 8.53; 20 % 1.19e-5, "
        "1.00, 8.89; 50 % 1.48e-5, 1.00, 10.25. The paper: 5 % is enough in most CIFAR settings, "
        "the grey box's FID is stable below 30 %."
    ]
    return [curve_table(document, "Share of poison", "poison, %", notes, factor=100)]
