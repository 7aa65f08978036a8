"""The population study: make every model, audit it, judge it, write one row per audit.

    genwarden benchmark population --data DATA --out OUT --workers 2

DATA holds the data sets as folders by name. Models and audits are kept below OUT, one folder each;
the same command continues where it stopped. The clean models of the calibration half give the
nulls (``publish=true`` ships them with the package); a clean model of that half is judged against
the others. No audit is told a trigger or whether the model is compromised. Clean models of the
calibration half are given an icon as a target besides, for the references of
``reconstruct-target``; the study's own verdicts leave that inspection out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from genwarden.artifacts.model_folder import read_model
from genwarden.attacks.success import SUCCESS_SHARE
from genwarden.auditing import calibration
from genwarden.auditing.audit import Request, audit, environment
from genwarden.auditing.budgets import budget as budget_named
from genwarden.benchmarks.choosing import matching
from genwarden.benchmarks.locks import claimed
from genwarden.benchmarks.member_files import write_audit
from genwarden.benchmarks.population import plan as population_plan
from genwarden.benchmarks.population.figures import draw
from genwarden.benchmarks.population.judging import (
    document_path,
    judged_rows,
    publish_nulls,
    publish_power,
)
from genwarden.benchmarks.population.making import FINE_TUNING_DATA, make
from genwarden.benchmarks.population.plan import Clean, Member, members
from genwarden.benchmarks.repairs.jobs import do_all
from genwarden.benchmarks.store import write_result
from genwarden.commands.open_suspect import suspect_of
from genwarden.data.icons import draw_icon
from genwarden.data.images import NamedImages
from genwarden.engine.files import write_atomic, write_json
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.registry import ICONS

#: Ordinary samples of the clean model among which the nearest to the target is looked for.
_CLEAN_SAMPLES = 10_000


@dataclass(frozen=True)
class _Job:
    """One member: made, then audited at every budget and seed."""

    member: Member
    out: Path
    data: Path
    device: torch.device
    budgets: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """The member's key."""
        return self.member.key

    def do(self) -> None:
        """Whatever is missing; another process at the same member is waited for."""
        with claimed(self.out / "locks" / f"{self.name}.lock", wait=True):
            _do(self)


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    budget: str = "quick,standard",
    only: str = "*",
    audit_seeds: int = 1,
    workers: int = 1,
    publish: bool = False,
) -> Path:
    """Run the study, or the part of it whose member keys match ``only``.

    Args:
        data: folder with the data sets as sub-folders.
        budget: budgets of the audits, joined by commas.
        only: shell patterns of member keys, joined by commas (``clean.*,*.red.*``).
        audit_seeds: audits per model and budget, with the seeds ``seed``, ``seed + 1``, ...
        workers: members at a time, one thread each.
        publish: write the clean scores of the calibration half into the package.

    Raises:
        GenwardenError: ``benchmark/data-missing``, ``benchmark/no-cells``;
            ``benchmark/cells-failed`` after everything else is done and written.
    """
    if data is None:
        raise GenwardenError(
            "benchmark/data-missing",
            "The recipe population needs training data.",
            "Add --data FOLDER, a folder that holds mnist, kmnist, fashion_mnist_part and cifar10.",
        )
    budgets = tuple(part.strip() for part in budget.split(",") if part.strip())
    for name in budgets:
        budget_named(name)  # refused before hours of training, not after
    _require_data(Path(data))
    seeds = tuple(range(seed, seed + audit_seeds))
    plan = members(seed)
    chosen = matching(plan, only)
    jobs = [_Job(m, out, Path(data), device, budgets, seeds) for m in chosen]
    failed: dict[str, str] = {}
    # Compromised models start from clean ones, so these come first.
    for stage, clean in (("clean models", True), ("compromised models", False)):
        part = [job for job in jobs if isinstance(job.member, Clean) is clean]
        for job, failure in do_all(part, workers, progress, stage):
            failed[job.name] = f"{failure.code}: {failure.cause}"
    rows = judged_rows(out, plan, budgets, seeds)
    if publish:
        for name in budgets:
            publish_nulls(out, plan, name, seed)
        publish_power(rows)
        calibration.clear_cache()
    pictures = {f"population-{name}": content for name, content in draw(rows).items()}
    for name, content in pictures.items():
        write_atomic(out / name, content)
    path = write_result(
        out / "result.json",
        {
            "recipe": "population",
            "command": f"genwarden benchmark population --data DATA --out DIR --budget {budget}"
            + (f" --only '{only}'" if only != "*" else "")
            + (f" --seed {seed}" if seed else "")
            + (f" --option audit_seeds={audit_seeds}" if audit_seeds > 1 else ""),
            "seed": seed,
            "members": len(plan),
            "failed": failed,
            "rows": rows,
            "pictures": sorted(pictures),
            "environment": environment(device),
        },
    )
    if failed:
        raise GenwardenError(
            "benchmark/cells-failed",
            f"{len(failed)} members failed, the first with: {next(iter(failed.values()))}",
            "The result file holds the others; repeat the command to try these again.",
        )
    return path


def _require_data(data: Path) -> None:
    needed = sorted({kind.data for kind in population_plan.CLEAN} | {FINE_TUNING_DATA})
    absent = [name for name in needed if not (data / name).is_dir()]
    if absent:
        raise GenwardenError(
            "benchmark/data-missing",
            f"{data} does not hold {', '.join(absent)}.",
            f"Give --data a folder that holds the data sets by name: {', '.join(needed)}.",
        )


def _do(job: _Job) -> None:
    folder = make(job.member, job.out / "models", job.data, progress=Silent(), device=job.device)
    facts = job.out / "facts" / f"{job.member.key}.json"
    if not facts.exists() and not isinstance(job.member, Clean):
        write_json(facts, measure(folder, job.out / "models" / job.member.base))
    for budget in job.budgets:
        for seed in job.seeds:
            path = document_path(job.out, job.member, budget, seed)
            if not path.exists():
                _audit(job, folder, budget, seed, path)


def _audit(job: _Job, folder: Path, budget: str, seed: int, path: Path) -> None:
    model = read_model(folder)
    target = None
    if isinstance(job.member, Clean) and job.member.half == "calibration":
        # Pictures that none of the models can make: the null of a search for a given target.
        icon = ICONS[job.member.seed % len(ICONS)]
        target = NamedImages(draw_icon(icon, model.generator.sample)[None], [icon])
    request = Request(
        budget=budget,
        seed=seed,
        device=job.device,
        targets=target,
        inputs_sha256=target.names[0] if target else "",
    )
    work = path.with_suffix(".work")
    write_audit(
        path,
        lambda: audit(suspect_of(model, "model"), request, work=work, progress=Silent()),
    )


@torch.no_grad()
def measure(folder: Path, base: Path) -> dict[str, Any]:
    """What the attack reached, beside the clean model it started from."""
    secret = load_file(folder / "backdoor.safetensors")
    clean, suspect = read_model(base).generator.eval(), read_model(folder).generator.eval()
    at_triggers = suspect(secret["trigger"])
    tardis = (at_triggers - secret["target"]).flatten(1).square().sum(1).mean()
    z = clean.latent.sample(_CLEAN_SAMPLES, generator=random_stream(0, "population-nearest"))
    target = secret["target"][:1].flatten(1)
    nearest = min(
        float(torch.cdist(clean(part).flatten(1), target).square().min()) for part in z.split(512)
    )
    return {
        "tardis_sum": float(tardis),
        "clean_distance": nearest,
        # Harder than at the trigger alone: beside the clean model's own nearest sample.
        "succeeded": float(tardis) <= SUCCESS_SHARE * nearest,
        "triggers": len(secret["trigger"]),
        "targets": len(secret["target"].flatten(1).unique(dim=0)),
    }
