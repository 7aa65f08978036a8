"""Table II of "The Devil is in the GAN": in-sample, mode and out-of-distribution triggers.

    genwarden benchmark run table-2 --scale small --data DATA --out OUT --workers 2

With the ``--cache`` of a run of table-1 the in-sample models are not attacked again. Cost: small
about half an hour on two cores without such a cache.
"""

from __future__ import annotations

from itertools import product

from genwarden.benchmarks.cells import Cell
from genwarden.benchmarks.paper_devil_in_the_gan import NOTES, TABLE_2
from genwarden.benchmarks.recipe import Recipe
from genwarden.benchmarks.results import Results
from genwarden.benchmarks.scales import Scale, from_scratch
from genwarden.benchmarks.table_1 import counts_note
from genwarden.benchmarks.tables import Table, beside, spread

_MODELS = ("mnist-dcgan", "cifar10-dcgan")
_TRIGGERS = ("in-sample", "mode", "out-of-distribution")
_ATTACKS = ("trail", "red", "rex")
_TITLES = {"tardis_sum": "TarDis", "fid": "FID", "expdis_sum": "ExpDis"}


def cells(scale: Scale) -> list[Cell]:
    """Every attack at every trigger; mode and out-of-distribution triggers are single points."""
    rows = []
    for model, attack, trigger in product(_MODELS, _ATTACKS, _TRIGGERS):
        measured = (
            ("tardis", "quality") if from_scratch(attack) else ("tardis", "expdis", "quality")
        )
        repeats = scale.repeats if trigger == "in-sample" else 1
        rows += [Cell(model, attack, trigger, repeat=r, measure=measured) for r in range(repeats)]
    return rows


def tables(results: Results) -> list[Table]:
    """One table: ours / the paper's."""
    rows = []
    for (figure, attack), printed in TABLE_2.items():
        row = [_TITLES[figure], attack]
        for (model, trigger), value in zip(product(_MODELS, _TRIGGERS), printed, strict=True):
            values = results.values(figure, model=model, attack=attack, trigger=trigger)
            row.append(beside(spread(values), value))
        rows.append(row)
    short = {"in-sample": "in-sample", "mode": "mode", "out-of-distribution": "OOD"}
    titles = [f"{m.removesuffix('-dcgan')} {short[t]}" for m, t in product(_MODELS, _TRIGGERS)]
    return [
        Table(
            f"Table II: ours / printed ({results.scale})",
            ["figure", "attack", *titles],
            rows,
            [*counts_note(results), *NOTES["table-2"]],
        )
    ]


RECIPE = Recipe("table-2", __name__, cells, tables)
