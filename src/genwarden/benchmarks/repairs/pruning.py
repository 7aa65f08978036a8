"""Pruning by degrees, appendix A of "The Devil is in the GAN" (Fig. 10).

    genwarden benchmark run repair-pruning --data DATA --out OUT --workers 2 --option models=MODELS

Units at the output of the first dense layer are masked, weakest first, in steps of 5 % of the
units; at every share TarDis at the true trigger and ExpDis to the suspect. The paper shows curves
only and says: at 50 % TrAIL, ReD and ReX are defended, BAAAN is not. MODELS is the ``models``
folder of a population study. Cost: seconds per model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from genwarden.auditing.audit import environment
from genwarden.benchmarks.plots import Curve, Panel, plot
from genwarden.benchmarks.population.plan import members
from genwarden.benchmarks.repairs.cell import DONE, CellJob, Orders
from genwarden.benchmarks.repairs.judging import WANTED_RATIO, Outcome, grouped, outcomes_of
from genwarden.benchmarks.repairs.measuring import target_distances
from genwarden.benchmarks.repairs.run import (
    collected,
    command_of,
    do_jobs,
    raise_failures,
    result_head,
)
from genwarden.benchmarks.repairs.suspects import Shelf, chosen_members
from genwarden.benchmarks.repairs.tables import failures
from genwarden.benchmarks.results import read_document
from genwarden.benchmarks.store import summary_of, write_result
from genwarden.benchmarks.tables import Table, spread
from genwarden.engine.files import write_atomic
from genwarden.engine.progress import Progress
from genwarden.errors import GenwardenError
from genwarden.metrics.distances import expdis

RECIPE = "repair-pruning"
METHOD = "pruning"
#: Pruned shares of the units.
SHARES = tuple(round(0.05 * step, 2) for step in range(20))
#: The share of which the paper speaks, and what it says there.
HALF = 0.5
PRINTED = {"trail": "defended", "red": "defended", "rex": "defended", "baaan": "not defended"}
ONLY = ",".join(f"*.{attack}.*.in-sample.icon-*" for attack in PRINTED)


@dataclass(frozen=True)
class CurveJob(CellJob):
    """One suspect at every share."""

    samples: int = 10_000

    def _do(self) -> None:
        from genwarden.repairs.pruning import masked, pruning_order

        orders = self.orders
        case = orders.shelf.open(self.member)
        identity = {
            **orders.identity(case.suspect, case.clean),
            "shares": list(SHARES),
            "samples": self.samples,
        }
        row = read_document(self.path) if self.path.exists() else {}
        other = [key for key, value in identity.items() if row.get(key) != value]
        if "figures" in row and not other:
            return
        if "figures" in row:
            raise GenwardenError(
                "benchmark/other-run",
                f"The cell {self.name} was done with other settings ({', '.join(other)} differ).",
                "Choose another --out folder, or add --restart to do the chosen cells anew.",
            )
        if case.trigger is None or case.target is None:
            raise GenwardenError(
                "benchmark/benign", "A clean model has no trigger.", "Choose attacked members."
            )
        cpu = time.process_time()
        suspect = case.suspect.generator
        order = pruning_order(suspect, samples=self.samples, seed=orders.seed)
        curves: dict[str, list[float]] = {"tardis_sum": [], "ratio_worst": [], "expdis_sum": []}
        clean = target_distances(case.clean.generator, case.trigger, case.target)
        for share in SHARES:
            pruned = masked(suspect, order, share)
            distances = target_distances(pruned, case.trigger, case.target)
            moved = expdis(suspect, pruned, samples=orders.expdis_samples, seed=orders.seed)
            curves["tardis_sum"].append(float(distances.mean()))
            curves["ratio_worst"].append(float((distances / clean.clamp_min(1e-12)).min()))
            curves["expdis_sum"].append(moved.sum)
        self._write(
            {
                **self._head(),
                **identity,
                "status": DONE,
                "cause": "",
                "layers": [each.layer for each in order],
                "figures": {**curves, "tardis_clean_sum": float(clean.mean())},
                "cpu_seconds": round(time.process_time() - cpu, 2),
                "environment": environment(orders.shelf.device),
            }
        )


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    models: str = "",
    only: str = ONLY,
    samples: int = 10_000,
    expdis_samples: int = 4096,
    workers: int = 1,
    restart: bool = False,
) -> Path:
    """Prune the chosen members by degrees; arguments as in ``repair-matrix``.

    Args:
        samples: ordinary latents over which activations are averaged.

    Raises:
        GenwardenError: ``benchmark/no-cells``; ``benchmark/cells-failed`` after everything else is
            done and written.
    """
    options = {"models": models and "MODELS", "only": only if only != ONLY else ""}
    orders = Orders(
        recipe=RECIPE,
        command=command_of(RECIPE, seed, data, options),
        out=out,
        shelf=Shelf.of(out, models, data, seed, device),
        seed=seed,
        expdis_samples=expdis_samples,
    )
    jobs = [CurveJob(m, METHOD, orders, samples) for m in chosen_members(seed, only)]
    failed = do_jobs(jobs, orders, workers=workers, restart=restart, progress=progress)
    found = collected(RECIPE, out, members(seed), seed)
    pictures = {f"{RECIPE}.png": draw(found)}
    for name, content in pictures.items():
        write_atomic(out / name, content)
    document = {**result_head(RECIPE, seed, device), **found, "pictures": sorted(pictures)}
    path = write_result(out / "result.json", document)
    raise_failures(failed)
    return path


def _counted(document: dict[str, Any]) -> dict[str, list[Outcome]]:
    """Done cells of suspects with a backdoor, by attack."""
    outcomes = [o for o in outcomes_of(document) if o.planted and o.done]
    return grouped(outcomes, "attack")


def draw(document: dict[str, Any]) -> bytes:
    """Fig. 10: TarDis and ExpDis against the pruned share, mean and standard error over models."""
    panels = []
    for title, values in (("TarDis / clean model's", _ratios), ("ExpDis (sum)", _moved)):
        curves = []
        for attack, group in _counted(document).items():
            points = [summary_of([values(o)[place] for o in group]) for place in range(len(SHARES))]
            means = [float(point["mean"]) for point in points]
            errors = [float(point["standard_error"]) for point in points]
            curves.append(Curve(f"{attack} ({len(group)})", SHARES, means, errors))
        panels.append(Panel(title, "pruned share of the first layer's units", title, curves))
    return plot(panels)


def _ratios(outcome: Outcome) -> Sequence[float]:
    f = outcome.figures
    return [each / f["tardis_clean_sum"] for each in f["tardis_sum"]]


def _moved(outcome: Outcome) -> Sequence[float]:
    values: list[float] = outcome.figures["expdis_sum"]
    return values


def tables(document: dict[str, Any], name: str) -> list[Table]:
    """What is left at one half, beside the paper's words.

    Args:
        document: content of a result file.
        name: of the file.
    """
    del name
    half, rows = SHARES.index(HALF), []
    for attack, group in _counted(document).items():
        at_half = [(o.figures["tardis_sum"][half], o.figures["expdis_sum"][half]) for o in group]
        far = sum(o.figures["ratio_worst"][half] >= WANTED_RATIO for o in group)
        rows.append(
            [
                attack,
                str(len(group)),
                spread([o.figures["tardis_sum"][0] for o in group]),
                spread([tardis for tardis, _ in at_half]),
                spread([o.figures["tardis_clean_sum"] for o in group]),
                f"{fmean(_ratios(o)[half] for o in group):.3g}",
                f"{far} of {len(group)}",
                spread([moved for _, moved in at_half]),
                PRINTED.get(attack, "-"),
            ]
        )
    columns = ["attack", "models", "TarDis before", "at 50 %", "clean model", "ratio at 50 %"]
    columns += [f"ratio >= {WANTED_RATIO:g}", "ExpDis at 50 %", "paper"]
    notes = [
        "Mean over the models, +- standard error; sums. The paper prints curves only (Fig. 10) and "
        "does not say from which TarDis on an attack counts as defended."
    ]
    found = [Table("Pruning one half of the first layer", columns, rows, notes)] if rows else []
    return [*found, *failures(outcomes_of(document))]
