"""The WaveGAN study of "The Devil is in the GAN": a drum clip hidden in a model of speech.

    genwarden benchmark run wavegan --scale small --data DATA --out OUT --workers 2

Ten triggers, one clip. ReD starts from the pre-trained weights (the published one does not, by
mistake). Cost: small about 10 minutes on two cores.
"""

from __future__ import annotations

from genwarden.benchmarks.cells import Cell
from genwarden.benchmarks.paper_devil_in_the_gan import NOTES, WAVEGAN
from genwarden.benchmarks.recipe import Recipe
from genwarden.benchmarks.results import Results
from genwarden.benchmarks.scales import Scale
from genwarden.benchmarks.table_1 import counts_note
from genwarden.benchmarks.tables import Table, beside, spread

_TRIGGERS = 10


def cells(scale: Scale) -> list[Cell]:
    """ReD and ReX with ten triggers at once."""
    del scale  # ten triggers are the repeats
    return [
        Cell(
            "speech-wavegan",
            attack,
            target="clip:drum",
            triggers=_TRIGGERS,
            measure=("tardis", "expdis"),
        )
        for attack in WAVEGAN
    ]


def tables(results: Results) -> list[Table]:
    """One table: ours / the paper's."""
    rows = []
    for attack, printed in WAVEGAN.items():
        row = [attack]
        for name in ("tardis_sum", "expdis_sum"):
            row.append(beside(spread(results.values(name, attack=attack)), printed[name]))
        means = [spread(results.values(n, attack=attack)) for n in ("tardis_mean", "expdis_mean")]
        before = spread(results.values("untouched_tardis_sum", attack=attack))
        rows.append([*row, *means, before])
    return [
        Table(
            f"WaveGAN: ours / printed ({results.scale})",
            [
                "attack",
                "TarDis",
                "ExpDis",
                "TarDis per value",
                "ExpDis per value",
                "TarDis of the untouched model",
            ],
            rows,
            [*counts_note(results), *NOTES["wavegan"]],
        )
    ]


RECIPE = Recipe("wavegan", __name__, cells, tables)
