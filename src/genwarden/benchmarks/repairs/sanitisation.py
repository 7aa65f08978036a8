"""Sanitisation by distillation, appendix B of "The Devil is in the GAN" (Fig. 11).

    genwarden benchmark run repair-sanitisation --data DATA --out OUT --workers 2 \\
        --option models=MODELS

A fresh student learns the ordinary samples of TrAIL, ReD, ReX and BAAAN models with an in-sample
trigger; TarDis at that trigger and ExpDis to the suspect stand beside the paper's, whose model is
the full-width DCGAN of MNIST. MODELS is the ``models`` folder of a population study. Cost: one to a
few minutes on one core per model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genwarden.benchmarks.paper_devil_in_the_gan import SANITISATION
from genwarden.benchmarks.population.plan import members
from genwarden.benchmarks.repairs.cell import Orders
from genwarden.benchmarks.repairs.judging import Outcome, grouped, outcomes_of
from genwarden.benchmarks.repairs.matrix import write_sheets_and_result
from genwarden.benchmarks.repairs.run import collected, command_of, do_cells, raise_failures
from genwarden.benchmarks.repairs.suspects import Shelf, chosen_members
from genwarden.benchmarks.repairs.tables import failures
from genwarden.benchmarks.tables import Table, beside, figure, spread
from genwarden.engine.progress import Progress

RECIPE = "repair-sanitisation"
METHOD = "distillation"
#: The paper's four attacks on our MNIST models, with its kind of trigger.
ONLY = ",".join(f"*.{attack}.mnist-*.in-sample.icon-*" for attack in SANITISATION)


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    models: str = "",
    only: str = ONLY,
    steps: int = 0,
    expdis_samples: int = 4096,
    fid_samples: int = 2048,
    workers: int = 1,
    restart: bool = False,
) -> Path:
    """Distil the chosen members; arguments as in ``repair-matrix``.

    Args:
        steps: of the student's training; 0 for the method's default.

    Raises:
        GenwardenError: ``benchmark/no-cells``; ``benchmark/cells-failed`` after everything else is
            done and written.
    """
    options = {
        "models": models and "MODELS",
        "only": only if only != ONLY else "",
        "steps": steps,
    }
    orders = Orders(
        recipe=RECIPE,
        command=command_of(RECIPE, seed, data, options),
        out=out,
        shelf=Shelf.of(out, models, data, seed, device),
        seed=seed,
        expdis_samples=expdis_samples,
        fid_samples=fid_samples,
        settings=(("steps", steps),) if steps else (),
    )
    failed = do_cells(
        chosen_members(seed, only),
        [METHOD],
        orders,
        workers=workers,
        restart=restart,
        progress=progress,
    )
    found = collected(RECIPE, out, members(seed), seed)
    path = write_sheets_and_result(RECIPE, out, found, seed, device)
    raise_failures(failed)
    return path


def tables(document: dict[str, Any], name: str) -> list[Table]:
    """Ours beside the paper's.

    Args:
        document: content of a result file.
        name: of the file.
    """
    del name
    everything = outcomes_of(document)
    counted = [o for o in everything if o.planted or not o.suspect]
    rows = [_row(attack, group) for attack, group in grouped(counted, "attack").items()]
    columns = ["attack", "models", "TarDis before", "after / printed", "clean model", "ratio"]
    columns += ["ExpDis / printed", "change of FID", "core-seconds"]
    notes = [
        "Mean over the models, +- standard error. The printed values are those of the full-width "
        "DCGAN on MNIST; sums over 28x28.",
        "Ratio: TarDis after over that of the clean model. ExpDis: to the suspect.",
    ]
    found = [Table("Sanitisation by distillation (appendix B)", columns, rows, notes)]
    return [*found, *failures(everything)] if rows else failures(everything)


def _row(attack: str, group: list[Outcome]) -> list[str]:
    done = [o for o in group if o.done]
    printed = SANITISATION.get(attack, {})

    def of(key: str) -> str:
        return spread([o.figures[key] for o in done])

    changes = [o.fid_change for o in done if o.fid_change is not None]
    costs = [float(o.row["cpu_seconds"]) for o in done]
    return [
        attack,
        f"{len(done)} of {len(group)}",
        of("tardis_before_sum"),
        beside(of("tardis_after_sum"), printed.get("tardis_sum")),
        of("tardis_clean_sum"),
        of("ratio"),
        beside(of("expdis_suspect_sum"), printed.get("expdis_sum")),
        spread(changes),
        figure(sum(costs) / len(costs)) if costs else "-",
    ]
