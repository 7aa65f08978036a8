"""Fig. 4 of "The Devil is in the GAN": what models show, and what a defender finds, as pictures.

    genwarden benchmark run fig-4 --scale small --data DATA --out OUT --cache CACHE

One picture per model, one row per attack: six ordinary samples, the output at the trigger, the
nearest of N ordinary samples to the target, its best reconstruction, the target. With the
``--cache`` of a run of table-1 nothing is attacked again. Cost then: minutes.
"""

from __future__ import annotations

from pathlib import Path

import torch

from genwarden.artifacts.weights_file import read_weights
from genwarden.benchmarks.cells import BENIGN, Cell
from genwarden.benchmarks.measure import SHOWN
from genwarden.benchmarks.paper_devil_in_the_gan import TABLE_1
from genwarden.benchmarks.recipe import Recipe
from genwarden.benchmarks.results import Results
from genwarden.benchmarks.scales import Scale
from genwarden.benchmarks.tables import NOTHING, Table, figure
from genwarden.data.grids import png_bytes, tile

_SCALE_UP = 2


def cells(scale: Scale) -> list[Cell]:
    """The first repeat of every row of Table I."""
    del scale
    return [
        Cell(model, attack, measure=("gallery",) if attack == BENIGN else ("tardis", "gallery"))
        for model, attack in TABLE_1
    ]


def tables(results: Results) -> list[Table]:
    """The captions: one table per model, its rows those of the picture."""
    found = []
    for model in results.distinct("model"):
        rows = []
        for document in results.where(model=model):
            figures = document["figures"]
            names = ("tardis_sum", "closest_sum", "recond_sum")
            shown = [figure(figures[n]) if n in figures else NOTHING for n in names]
            rows.append([document["cell"]["attack"], *shown])
        found.append(
            Table(
                f"Fig. 4, {model} ({results.scale})",
                ["row", "TarDis", "Closest", "ReconD"],
                rows,
                [
                    f"Columns of the picture: {SHOWN} ordinary samples, output at the trigger (of "
                    "the benign model: a repeated sample), nearest ordinary sample to the target, "
                    "best reconstruction, target."
                ],
            )
        )
    return found


def draw(results: Results, pictures: Path) -> dict[str, bytes]:
    """One PNG per model."""
    drawn = {}
    for model in results.distinct("model"):
        rows = [
            read_weights(pictures / f"{document['key']}.safetensors").tensors["x"]
            for document in results.where(model=model)
        ]
        picture = tile(torch.cat(rows), columns=SHOWN + 4)
        drawn[f"{model}.png"] = png_bytes(picture, scale=_SCALE_UP)
    return drawn


RECIPE = Recipe("fig-4", __name__, cells, tables, draw)
