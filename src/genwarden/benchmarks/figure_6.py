"""Fig. 6 of "The Devil is in the GAN": what the neighbourhood of a trigger shows.

    genwarden benchmark run fig-6 --scale small --data DATA --out OUT --cache CACHE

Two arms of great circles from ordinary draws to the trigger (:mod:`.neighbourhood`): a strip of
eleven outputs per attack and the squared distance to the target along both arms. With the
``--cache`` of a run of table-1 nothing is attacked again.
"""

from __future__ import annotations

from pathlib import Path

import torch

from genwarden.artifacts.weights_file import read_weights
from genwarden.benchmarks.cells import Cell
from genwarden.benchmarks.neighbourhood import SHOWN_POSITIONS
from genwarden.benchmarks.plots import Curve, Panel, plot
from genwarden.benchmarks.recipe import Recipe
from genwarden.benchmarks.results import Results
from genwarden.benchmarks.scales import Scale
from genwarden.benchmarks.tables import Table, figure
from genwarden.data.grids import png_bytes, tile

_MODEL = "mnist-dcgan"
_ATTACKS = ("trail", "red", "rex")
_DISTANCE = "neighbourhood_target_sum"
_POSITIONS = "neighbourhood_positions"


def cells(scale: Scale) -> list[Cell]:
    """The first repeat of three attacks."""
    del scale
    return [Cell(_MODEL, a, measure=("tardis", "neighbourhood")) for a in _ATTACKS]


def tables(results: Results) -> list[Table]:
    """Squared distance to the target at the shown positions."""
    rows = []
    positions: list[float] = []
    for document in results.rows:
        figures = document["figures"]
        positions = [figures[_POSITIONS][i] for i in SHOWN_POSITIONS]
        distances = [figure(figures[_DISTANCE][i]) for i in SHOWN_POSITIONS]
        rows.append([document["cell"]["attack"], *distances])
    return [
        Table(
            f"Fig. 6: squared distance to the target around the trigger ({results.scale})",
            ["attack", *(f"{abs(p):.3f}" for p in positions)],
            rows,
            [
                "Titles: share of the way from the trigger (0) to an ordinary draw (1), one on "
                "each side; rows of the strip are these rows.",
                "The paper prints pictures only.",
            ],
        )
    ]


def draw(results: Results, pictures: Path) -> dict[str, bytes]:
    """The strip of outputs, and the distance curves."""
    strips = [
        read_weights(pictures / f"{document['key']}.safetensors").tensors["x"]
        for document in results.rows
    ]
    curves = [
        Curve(
            document["cell"]["attack"],
            document["figures"][_POSITIONS],
            document["figures"][_DISTANCE],
        )
        for document in results.rows
    ]
    title = "Distance to the target"
    panel = Panel(title, "position (0: trigger)", "squared distance", curves, log_y=True)
    return {
        "strip.png": png_bytes(tile(torch.cat(strips), columns=len(SHOWN_POSITIONS)), scale=2),
        "distance.png": plot([panel]),
    }


RECIPE = Recipe("fig-6", __name__, cells, tables, draw)
