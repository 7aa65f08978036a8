"""Table I of "The Devil is in the GAN": every attack on three models, in-sample triggers.

    genwarden benchmark run table-1 --scale small --data DATA --out OUT --workers 2

Fidelity (TarDis), stealth (FID, IS and, where a benign twin exists, ExpDis), and what a defender
who knows the target finds by brute force (Closest) and by optimisation (ReconD). The benign rows
are several clean models, so that the spread of FID and IS from seed to seed stands beside the
attacks' values. Cost: small about half an hour on two cores; paper hours, with a GPU.
"""

from __future__ import annotations

from genwarden.benchmarks.cells import BENIGN, Cell
from genwarden.benchmarks.paper_devil_in_the_gan import NOTES, TABLE_1
from genwarden.benchmarks.recipe import Recipe
from genwarden.benchmarks.results import Results
from genwarden.benchmarks.scales import Scale, from_scratch
from genwarden.benchmarks.tables import NOTHING, Table, beside, spread, worst

_DEFENDER = ("quality", "closest", "recond")
_FIGURES = {
    "tardis_sum": "TarDis",
    "fid": "FID",
    "inception_score": "IS",
    "expdis_sum": "ExpDis",
    "closest_sum": "Closest",
    "recond_sum": "ReconD (max)",
}


def cells(scale: Scale) -> list[Cell]:
    """A benign row per seed, and every printed attack at every trigger."""
    rows = []
    for model, attack in TABLE_1:
        if attack == BENIGN:
            rows += [Cell(model, repeat=r, measure=_DEFENDER) for r in range(scale.clean_seeds)]
            continue
        twin = () if from_scratch(attack) else ("expdis",)
        measured = ("tardis", *twin, *_DEFENDER)
        rows += [Cell(model, attack, repeat=r, measure=measured) for r in range(scale.repeats)]
    return rows


def tables(results: Results) -> list[Table]:
    """One table: ours / the paper's."""
    rows = []
    for (model, attack), printed in TABLE_1.items():
        found = results.where(model=model, attack=attack)
        row = [model, attack]
        for figure in _FIGURES:
            values = results.values(figure, model=model, attack=attack)
            if attack == BENIGN and figure == "expdis_sum" and found:
                values = [0.0]  # by definition
            shown = worst(values) if figure == "recond_sum" else spread(values)
            row.append(beside(shown, getattr(printed, figure)))
        rows.append([*row, str(len(found)) if found else NOTHING])
    return [
        Table(
            f"Table I: ours / printed ({results.scale})",
            ["model", "attack", *_FIGURES.values(), "repeats"],
            rows,
            [*counts_note(results), *NOTES["table-1"]],
        )
    ]


def counts_note(results: Results) -> list[str]:
    """With how many samples, and in whose features, the figures were measured."""
    counted = {
        "closest_samples": "Closest of {:,} samples",
        "expdis_samples": "ExpDis over {:,} samples",
        "generated_samples": "FID and IS of {:,} samples",
        "real_samples": "against {:,} images",
    }
    parts = []
    for figure, words in counted.items():
        values = sorted(set(results.values(figure)))
        if values:
            parts.append(words.replace("{:,}", " or ".join(f"{value:,}" for value in values)))
    networks = sorted(set(results.values("features")))
    if networks:
        parts.append(f"feature networks: {', '.join(networks)}")
    return [f"{'; '.join(parts)}."] if parts else []


RECIPE = Recipe("table-1", __name__, cells, tables)
