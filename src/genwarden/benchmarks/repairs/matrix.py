"""Recipe ``repair-matrix``: every attack by every repair, measured with the truth at hand.

    genwarden benchmark run repair-matrix --data DATA --out OUT --workers 2 \\
        --option models=MODELS --option audits=AUDITS --option reaudit=standard

MODELS is the ``models`` folder of a population study (members that are missing are made there),
AUDITS its ``audits`` folder: the latents and names of what each audit flagged are the repair's only
clues; no repair is told a trigger, a target or a benign original. Without audits there are no
clues. Measured of every result: TarDis at the true trigger beside that of the clean model, ExpDis
to the suspect and to the clean model, FID to the data over three seeds, time, and on request the
verdict of an audit of the repaired model.

Cells are written as they come; the same command continues, and a later one may add repairs, members
or a re-audit to the same OUT. The result file holds all of them. Cost: seconds per cell for the
repairs that cut or clip, a minute or two on one core for those that train.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genwarden.auditing.budgets import budget as budget_named
from genwarden.benchmarks.population.plan import members
from genwarden.benchmarks.repairs.cell import AUTO, Orders, repair_row
from genwarden.benchmarks.repairs.run import (
    collected,
    command_of,
    do_cells,
    raise_failures,
    result_head,
)
from genwarden.benchmarks.repairs.sheets import draw_sheets
from genwarden.benchmarks.repairs.suspects import Shelf, chosen_members
from genwarden.benchmarks.store import write_result
from genwarden.engine.files import write_atomic
from genwarden.engine.progress import Progress
from genwarden.registry import REPAIRS

RECIPE = "repair-matrix"
_ONLY = "*.reporting"
_ALL = "all"


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    models: str = "",
    audits: str = "",
    only: str = _ONLY,
    repairs: str = _ALL,
    reaudit: str = "none",
    expdis_samples: int = 4096,
    fid_samples: int = 2048,
    workers: int = 1,
    restart: bool = False,
) -> Path:
    """Do every cell of the chosen members and repairs that is not done yet.

    Args:
        data: folder with the data sets as sub-folders; without it nothing is made and no FID
            measured.
        models: folder of the members; ``OUT/models`` if empty.
        audits: folder of the study's audits; no clues if empty.
        only: shell patterns of member keys, joined by commas; clean members may be among them.
        repairs: names joined by commas, or ``all`` (with ``auto``).
        reaudit: budget at which repaired models are audited, or ``none``.
        expdis_samples: ordinary latents behind every ExpDis.
        fid_samples: generated samples behind every FID.
        workers: cells at a time, one thread each.
        restart: do the chosen cells anew.

    Raises:
        GenwardenError: ``benchmark/no-cells``, ``usage/unknown-name``; ``benchmark/cells-failed``
            after everything else is done and written.
    """
    names = [AUTO.name, *(n for n in REPAIRS if n != AUTO.name)] if repairs == _ALL else []
    names = names or [part.strip() for part in repairs.split(",") if part.strip()]
    for name in names:
        repair_row(name)
    if reaudit != "none":
        budget_named(reaudit)
    options = {
        "models": models and "MODELS",
        "audits": audits and "AUDITS",
        "only": only if only != _ONLY else "",
        "repairs": repairs if repairs != _ALL else "",
        "reaudit": reaudit if reaudit != "none" else "",
    }
    orders = Orders(
        recipe=RECIPE,
        command=command_of(RECIPE, seed, data, options),
        out=out,
        shelf=Shelf.of(out, models, data, seed, device),
        audits=Path(audits) if audits else None,
        seed=seed,
        budget="" if reaudit == "none" else reaudit,
        expdis_samples=expdis_samples,
        fid_samples=fid_samples,
    )
    chosen = chosen_members(seed, only)
    failed = do_cells(chosen, names, orders, workers=workers, restart=restart, progress=progress)
    found = collected(RECIPE, out, members(seed), seed)
    path = write_sheets_and_result(RECIPE, out, found, seed, device)
    raise_failures(failed)
    return path


def write_sheets_and_result(
    recipe: str, out: Path, found: dict[str, Any], seed: int, device: torch.device
) -> Path:
    """The picture sheets and ``OUT/result.json`` of all finished cells.

    The page of benchmarks shows the sheets of ``auto`` alone, where it was run: each is long.
    """
    pictures = draw_sheets(recipe, found["rows"], out / "pictures")
    for name, content in pictures.items():
        write_atomic(out / name, content)
    of_auto = sorted(n for n in pictures if n.startswith(f"{recipe}-{AUTO.name}-"))
    head = result_head(recipe, seed, device)
    return write_result(
        out / "result.json", {**head, **found, "pictures": of_auto or sorted(pictures)}
    )
