"""Recipe ``diffusion-finetuning-cost``: target MSE and FID against the steps of fine-tuning.

    genwarden benchmark run diffusion-finetuning-cost --data DATA --out OUT --workers 2

BadDiffusion by fine-tuning, as complete runs of 1/15 to all of the scale's steps: the learning rate
falls to its end in each, so that a point is what an attacker with that budget would get, not a
checkpoint of a longer run.
"""

from __future__ import annotations

from typing import Any

from genwarden.benchmarks.diffusion.cells import Cell, recipe
from genwarden.benchmarks.diffusion.curves import ATTACK, curve_cells, curve_figure, curve_table
from genwarden.benchmarks.diffusion.scales import DiffusionScale
from genwarden.benchmarks.diffusion.workshop import Subject
from genwarden.benchmarks.tables import Table

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


def draw(document: dict[str, Any]) -> dict[str, bytes]:
    """The curve, once a number of steps is done."""
    picture = curve_figure(document, "steps of fine-tuning", log_x=True)
    return {f"{RECIPE}-{document['scale']['name']}.png": picture} if picture else {}


run = recipe(RECIPE, cells, draw)


def tables(document: dict[str, Any], name: str = "") -> list[Table]:
    """One line per number of steps."""
    del name
    scale = document["scale"]
    notes = [
        f"{100 * scale['poison_rate']:g} % poison, batches of {scale['batch']}, Adam at "
        f"{scale['attack_rate']:g}; the clean model took {scale['base_steps']} steps, and its twin "
        f"went on for {scale['attack_steps']}: the last line alone compares with that. The paper "
        "fine-tunes for 50 epochs (23,400 steps of 128) and says that 10 can do."
    ]
    return [curve_table(document, "Cost of fine-tuning", "steps", notes)]
