"""Recipe ``compression-audit-cost``: seconds of ``audit --deploy-as default`` on one generator.

    genwarden benchmark run compression-audit-cost --out OUT

The generator is a quarter-width DCGAN: the one that the package ships, or a model folder given as
``--option model=DIR``. Give the process two cores (``OMP_NUM_THREADS=2``) and nothing else to do:
the clock is what is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genwarden.artifacts.model_folder import read_model
from genwarden.auditing.audit import Request, audit
from genwarden.auditing.budgets import compression_budget
from genwarden.auditing.document import AuditDocument
from genwarden.benchmarks.audit_clock import clock_table, parts_table, timed_audits
from genwarden.benchmarks.repairs.run import command_of, result_head
from genwarden.benchmarks.store import write_result
from genwarden.benchmarks.tables import Table
from genwarden.commands.audit_variants import DEFAULT, parse_deploy_as
from genwarden.commands.demo import demo_model_folder
from genwarden.commands.open_suspect import suspect_of
from genwarden.engine.files import require_writable_folder
from genwarden.engine.progress import Progress, Silent
from genwarden.models.protocol import parameter_count

RECIPE = "compression-audit-cost"
_SHIPPED = "dcgan-clean"
#: "Must reach": five variants of a quarter-width DCGAN on 2 cores.
MOST_SECONDS = 120.0


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    model: str = "",
    budget: str = "quick,standard",
    deploy_as: str = DEFAULT,
    repeats: int = 1,
) -> Path:
    """Time the audit of the variants alone.

    Args:
        data: not used.
        model: folder of the generator; the shipped clean DCGAN if empty.
        budget: budgets, joined by commas.
        deploy_as: the compressions.
        repeats: audits per budget.

    Raises:
        GenwardenError: ``usage/budget``, and those of opening a model.
    """
    del data
    require_writable_folder(out)
    budgets = [part.strip() for part in budget.split(",") if part.strip()]
    for name in budgets:
        compression_budget(name)
    loaded = read_model(Path(model) if model else demo_model_folder(_SHIPPED))
    compressors = parse_deploy_as(deploy_as, variants_only=True, seed=seed)

    def audited(name: str, work: Path) -> AuditDocument:
        request = Request(
            budget=name, seed=seed, device=device, deploy_as=compressors, variants_only=True
        )
        return audit(suspect_of(loaded, "model"), request, work=work, progress=Silent())

    rows = timed_audits(audited, budgets, repeats, progress)
    options = {
        "model": model and "MODEL",
        "budget": budget if budget != "quick,standard" else "",
        "deploy_as": deploy_as if deploy_as != DEFAULT else "",
        "repeats": repeats if repeats > 1 else "",
    }
    return write_result(
        out / "result.json",
        {
            **result_head(RECIPE, seed, device),
            "command": command_of(RECIPE, seed, None, options),
            "architecture": loaded.architecture,
            "settings": loaded.settings,
            "parameters": parameter_count(loaded.generator),
            "variants": [one.name for one in compressors],
            "rows": rows,
        },
    )


def tables(document: dict[str, Any], name: str = "") -> list[Table]:
    """Seconds per budget and per inspection.

    Args:
        document: content of a result file.
        name: of the file; the page shows it above the tables.
    """
    del name
    width = "x".join(map(str, document["settings"].get("channels", [])))
    notes = [
        f"{document['architecture']} {width}, {document['parameters']:,} parameters; "
        f"{', '.join(document['variants'])}; {document['environment']['threads']} thread(s). "
        f"Asked: at most {MOST_SECONDS:g} seconds on the clock on 2 cores."
    ]
    rows = document["rows"]
    return [
        clock_table("Time of an audit of five variants", rows, MOST_SECONDS, notes),
        parts_table("seconds, all variants", rows),
    ]
