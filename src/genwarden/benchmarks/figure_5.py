"""Fig. 5 of "The Devil is in the GAN": the trade between fidelity and stealth over lambda.

    genwarden benchmark run fig-5 --scale small --data DATA --out OUT --workers 2

lambda from 1e-3 to 1e3 in decades, TarDis and ExpDis as mean +- standard error over triggers.
Cost: small about half an hour on two cores.
"""

from __future__ import annotations

import math
from pathlib import Path

from genwarden.benchmarks.cells import Cell
from genwarden.benchmarks.paper_devil_in_the_gan import FIGURE_5
from genwarden.benchmarks.plots import Curve, Panel, plot
from genwarden.benchmarks.recipe import Recipe
from genwarden.benchmarks.results import Results
from genwarden.benchmarks.scales import Scale, from_scratch
from genwarden.benchmarks.store import summary_of
from genwarden.benchmarks.tables import Table, spread

MODEL = "mnist-dcgan"
LAMBDAS = tuple(10.0**power for power in range(-3, 4))
_FIGURES = {"tardis_sum": "TarDis", "expdis_sum": "ExpDis"}


def cells(scale: Scale) -> list[Cell]:
    """Every attack of the sweep at every lambda and trigger."""
    rows = []
    for attack, repeats in scale.sweep_repeats.items():
        measured = ("tardis",) if from_scratch(attack) else ("tardis", "expdis")
        rows += [
            Cell(
                MODEL,
                attack,
                repeat=repeat,
                settings=(("fidelity_weight", weight),),
                measure=measured,
            )
            for weight in LAMBDAS
            for repeat in range(repeats)
        ]
    return rows


def at(results: Results, attack: str, weight: float, figure: str) -> list[float]:
    """The repeats of a figure at one lambda."""
    return results.values(figure, attack=attack, settings={"fidelity_weight": weight})


def tables(results: Results) -> list[Table]:
    """One row per attack and figure."""
    rows = []
    for attack in results.distinct("attack"):
        for figure, title in _FIGURES.items():
            if results.values(figure, attack=attack):
                values = [spread(at(results, attack, weight, figure)) for weight in LAMBDAS]
                rows.append([attack, title, *values])
    return [
        Table(
            f"Fig. 5: lambda sweep ({results.scale})",
            ["attack", "figure", *(f"{weight:g}" for weight in LAMBDAS)],
            rows,
            [f"In print, as a figure only: {FIGURE_5}."],
        )
    ]


def draw(results: Results, pictures: Path) -> dict[str, bytes]:
    """TarDis and ExpDis over lambda, both axes logarithmic."""
    del pictures  # the figures are enough
    panels = []
    for figure, title in _FIGURES.items():
        curves = []
        for attack in results.distinct("attack"):
            points = [(weight, at(results, attack, weight, figure)) for weight in LAMBDAS]
            known = [(weight, summary_of(values)) for weight, values in points if values]
            if known:
                curves.append(
                    Curve(
                        attack,
                        [weight for weight, _ in known],
                        [float(s["mean"]) for _, s in known],
                        [_error(s) for _, s in known],
                    )
                )
        panels.append(Panel(title, "lambda", f"{title} (sum)", curves, log_x=True, log_y=True))
    return {"sweep.png": plot(panels)}


def _error(summary: dict[str, float | int]) -> float:
    error = float(summary["standard_error"])
    return 0.0 if math.isnan(error) else error


RECIPE = Recipe("fig-5", __name__, cells, tables, draw)
