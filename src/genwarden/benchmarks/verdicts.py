"""Recipe ``verdicts``: audit a list of model folders and record verdicts, scores and time.

    genwarden benchmark run verdicts --option models=DIR1+DIR2 --option budget=quick --out results/v

For models that are not in the clean population. The audits resume one by one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genwarden.artifacts.model_folder import read_model
from genwarden.auditing.audit import Request, audit, environment
from genwarden.auditing.calibration import NULLS
from genwarden.benchmarks.store import write_result
from genwarden.commands.open_suspect import suspect_of
from genwarden.engine.files import sha256_file
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress
from genwarden.errors import GenwardenError


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    models: str = "",
    budget: str = "quick",
) -> Path:
    """Audit the model folders ``models`` (joined by ``+``)."""
    del data  # the models are all that is needed
    folders = [Path(text) for text in models.split("+") if text]
    if not folders:
        raise GenwardenError(
            "benchmark/models-missing",
            "The recipe verdicts needs models.",
            "Add --option models=DIR1+DIR2.",
        )
    ledger = Ledger(out / "work", {"seed": seed, "budget": budget})
    # New references judge the recorded scores anew: a verdict belongs to the file it came from.
    nulls = sha256_file(NULLS)[:8] if NULLS.exists() else "none"
    rows: list[dict[str, Any]] = []
    for folder in folders:
        model = read_model(folder)
        key = f"{model.sha256[:16]}-{nulls}"
        row = ledger.get(key)
        if row is None:
            progress.message(f"== {folder.name} ==")
            document = audit(
                suspect_of(model, folder.name),
                Request(budget=budget, seed=seed, device=device),
                work=out / "audits" / model.sha256[:24],
                progress=progress,
            )
            row = {
                "model": folder.name,
                "sha256": model.sha256,
                "verdict": document.verdict,
                "suspicion": document.suspicion,
                "flagged": [j.finding.inspection for j in document.findings if j.flagged],
                "scores": {j.finding.inspection: j.finding.score for j in document.findings},
                "p_values": {j.finding.inspection: j.finding.p_value for j in document.findings},
                "seconds": document.timing["total"],
                "timing": document.timing,
                # For the reader of the table; the audit above did not receive it.
                "compromised": model.provenance.get("compromised"),
            }
            ledger.put(key, row)
        rows.append(row)
    return write_result(
        out / "result.json",
        {
            "recipe": "verdicts",
            "command": "genwarden benchmark run verdicts --option models="
            f"{'+'.join(folder.name for folder in folders)} --option budget={budget} "
            f"--seed {seed} --out DIR",
            "nulls_sha256": nulls,
            "budget": budget,
            "seed": seed,
            "rows": rows,
            "environment": environment(device),
        },
    )
