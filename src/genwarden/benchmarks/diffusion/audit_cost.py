"""Recipe ``diffusion-audit-cost``: seconds of the audit of one diffusion model, and of its parts.

    genwarden benchmark run diffusion-audit-cost --out OUT --option model=DIR

The model is a diffusers folder, or a network of the ``small`` preset (1.1 M parameters, 28 pixels)
with fresh weights, which costs what a trained one does: no inspection ends early. It is computed
with as many threads as ``genwarden audit`` takes by itself, or with ``--option processors=2``. Give
it two idle cores: the clock is what is asked for.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import torch

from genwarden.artifacts.diffusers_folder import ARCHITECTURE, read_diffusion
from genwarden.auditing.audit_diffusion import DiffusionRequest, DiffusionSuspect, audit_diffusion
from genwarden.auditing.budgets import diffusion_budget
from genwarden.auditing.document import AuditDocument
from genwarden.benchmarks.audit_clock import clock_table, parts_table, timed_audits
from genwarden.benchmarks.repairs.run import command_of, result_head
from genwarden.benchmarks.store import write_result
from genwarden.benchmarks.tables import Table, answer
from genwarden.commands.open_suspect import diffusion_suspect_of
from genwarden.engine.files import require_writable_folder
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.threads import fixed_threads, threads
from genwarden.inspections.diffusion.shift_response import NAME as PRE_SCREEN
from genwarden.models.diffusion.networks import fresh_model, preset
from genwarden.models.diffusion.schedule import NoiseSchedule
from genwarden.models.protocol import parameter_count

RECIPE = "diffusion-audit-cost"
#: "Must reach", of a model of 1 M parameters and 28 pixels on 2 cores.
MOST_SECONDS = 300.0
MOST_PRE_SCREEN_SECONDS = 15.0
_PRESET, _SIZE, _TIMESTEPS = "small", 28, 1000


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    model: str = "",
    budget: str = "quick,standard",
    repeats: int = 1,
    processors: int = 0,
) -> Path:
    """Time whole audits.

    Args:
        data: not used.
        model: diffusers folder; a network with fresh weights if empty.
        budget: budgets, joined by commas.
        repeats: audits per budget.
        processors: threads, as of ``genwarden audit --threads``; 0 for its default.

    Raises:
        GenwardenError: ``usage/budget``, and those of opening a model.
    """
    del data
    require_writable_folder(out)
    budgets = [part.strip() for part in budget.split(",") if part.strip()]
    for name in budgets:
        diffusion_budget(name)
    suspect = diffusion_suspect_of(read_diffusion(Path(model)), "model") if model else _fresh(seed)

    def audit(name: str, work: Path) -> AuditDocument:
        request = DiffusionRequest(budget=name, seed=seed, device=device)
        return audit_diffusion(suspect, request, work=work, progress=Silent())

    count = parameter_count(suspect.model)
    with threads(processors or fixed_threads(count, denoiser=True)):
        head = result_head(RECIPE, seed, device)
        rows = timed_audits(audit, budgets, repeats, progress)
    options = {
        "model": model and "MODEL",
        "budget": budget if budget != "quick,standard" else "",
        "repeats": repeats if repeats > 1 else "",
        "processors": processors or "",
    }
    return write_result(
        out / "result.json",
        {
            **head,
            "command": command_of(RECIPE, seed, None, options),
            "trained": bool(model),
            "parameters": count,
            "sample_shape": list(suspect.model.sample.shape),
            "rows": rows,
        },
    )


def _fresh(seed: int) -> DiffusionSuspect:
    model = fresh_model(
        preset(_PRESET, _SIZE),
        NoiseSchedule.linear(_TIMESTEPS),
        torch.Generator().manual_seed(seed),
    )
    return DiffusionSuspect(model, ARCHITECTURE, {}, "", {}, "fresh weights")


def tables(document: dict[str, Any], name: str = "") -> list[Table]:
    """Seconds per budget, of the pre-screen alone, and per inspection.

    Args:
        document: content of a result file.
        name: of the file; the page shows it above the tables.
    """
    del name
    rows = document["rows"]
    shape = "x".join(map(str, document["sample_shape"]))
    notes = [
        f"{document['parameters']:,} parameters, {shape}, "
        f"{'trained' if document['trained'] else 'fresh weights'}; "
        f"{document['environment']['threads']} thread(s) of {document['environment']['cores']} "
        f"cores. Asked, of 1 M parameters at 28 pixels on 2 cores: {MOST_SECONDS:g} seconds on the "
        f"clock, {MOST_PRE_SCREEN_SECONDS:g} for the pre-screen. The pre-screen ({PRE_SCREEN}) "
        "gates nothing: the search is run in any case."
    ]
    screened = [
        [budget, f"{seconds:.1f}", answer(seconds <= MOST_PRE_SCREEN_SECONDS)]
        for budget in dict.fromkeys(row["budget"] for row in rows)
        for seconds in [
            median(row["timing"][PRE_SCREEN] for row in rows if row["budget"] == budget)
        ]
    ]
    return [
        clock_table("Time of an audit of a diffusion model", rows, MOST_SECONDS, notes),
        Table(
            "Time of the pre-screen",
            ["budget", "seconds", f"within {MOST_PRE_SCREEN_SECONDS:g} s"],
            screened,
        ),
        parts_table("seconds", rows),
    ]
