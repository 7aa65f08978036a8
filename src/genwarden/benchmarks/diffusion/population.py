"""Recipe ``diffusion-population``: make every diffusion model, audit it, judge it.

    genwarden benchmark run diffusion-population --data DATA --out OUT --workers 2

DATA holds the data sets as folders by name. Models lie below OUT/models, or in a folder given as
``--option models=DIR``; with ``make=false`` only those that are there are audited. Several
processes may run the same command: each member is made and audited by whichever takes its lock
first, and the last to end collects all. The clean models of the calibration half give the nulls
(``publish=true`` ships them with the package, together with what both halves say of the
audit's power, or with ``publish_found=true`` that alone). No audit is told a trigger, a target or
whether a model is compromised.

A study of hours may lose its models before it ends: ``earlier=FILE`` takes the scores of members
that OUT does not hold from a result of before, and judges them as its own. The result names them,
and how far the scores of members that both runs audited lie apart; where they do, nothing of it is
published as a reference.

``detectors=DIR`` names the OUT folder of the recipe ``diffusion-detectors``: its figures of Elijah
and TERD on the same models then stand beside ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genwarden.artifacts.diffusers_folder import read_diffusion
from genwarden.artifacts.diffusers_layout import INDEX_NAME
from genwarden.attacks.diffusion.evaluation import evaluate_trigger, triggered_samples
from genwarden.attacks.success import SUCCESS_SHARE
from genwarden.auditing import calibration
from genwarden.auditing.audit_diffusion import (
    DiffusionRequest,
    audit_diffusion,
)
from genwarden.auditing.budgets import diffusion_budget
from genwarden.auditing.document import AuditDocument
from genwarden.backdoors.image_backdoor import RECORD_NAME, read_image_backdoor
from genwarden.benchmarks.as_planned import require_as_planned
from genwarden.benchmarks.choosing import matching
from genwarden.benchmarks.diffusion.earlier import (
    read_earlier,
    repeats,
    require_repeated,
    with_earlier,
)
from genwarden.benchmarks.diffusion.judging import (
    judged_rows,
    measured_rows,
    publish_nulls,
    publish_power,
    taken_null,
)
from genwarden.benchmarks.diffusion.making import make
from genwarden.benchmarks.diffusion.plan import Member, members
from genwarden.benchmarks.diffusion.roc_figure import draw
from genwarden.benchmarks.member_study import MemberJob, do_members, write_study
from genwarden.benchmarks.repairs.run import command_of, result_head
from genwarden.benchmarks.results import read_document, read_result
from genwarden.commands.open_suspect import diffusion_suspect_of
from genwarden.engine.progress import Progress, Silent
from genwarden.errors import GenwardenError
from genwarden.metrics.target_match import target_match
from genwarden.models.diffusion.samplers import SamplerSettings

RECIPE = "diffusion-population"
#: Triggered samples behind the facts of an attack.
FACT_IMAGES = 8


class _Job(MemberJob[Member]):
    last_file = INDEX_NAME

    def __init__(
        self,
        member: Member,
        *,
        models: Path,
        out: Path,
        budgets: tuple[str, ...],
        seed: int,
        data: Path | None,
        device: torch.device,
    ) -> None:
        super().__init__(member, models=models, out=out, budgets=budgets, seed=seed)
        self.data, self.device = data, device

    def base(self) -> Member:
        return next(m for m in members() if m.key == self.member.base_key)

    @property
    def may_make(self) -> bool:
        return self.data is not None

    def make(self, member: Member) -> None:
        if self.data is not None:
            make(member, self.models, self.data, progress=Silent(), device=self.device)

    def audit(self, budget: str, work: Path) -> AuditDocument:
        return audit_diffusion(
            diffusion_suspect_of(read_diffusion(self.folder), "model"),
            DiffusionRequest(budget=budget, seed=self.seed, device=self.device),
            work=work,
            progress=Silent(),
        )

    def require_fitting(self) -> None:
        member = self.member
        if member.kind is not None:
            require_as_planned(
                self.folder,
                member.kind.attack,
                member.settings,
                trigger=member.kind.trigger,
                target=member.kind.target,
            )
        self.require_own_audits(lambda: read_diffusion(self.folder).sha256)

    def facts(self) -> dict[str, Any] | None:
        if not self.member.compromised:
            return None
        base = self.models / self.member.base_key
        return measure(self.folder, base, device=self.device)


def measure(
    folder: Path, base: Path, *, device: torch.device, images: int = FACT_IMAGES
) -> dict[str, Any]:
    """What an attack reached under its own sampler, beside the clean model it started from.

    TrojDiff is sampled as its attacker does (``own_sampler`` of its record).
    """
    backdoor = read_image_backdoor(folder)
    record = read_document(folder / RECORD_NAME)
    sampler, own = SamplerSettings(**record["sampler"]), bool(record["own_sampler"])
    suspect = read_diffusion(folder).model.to(device)
    clean = read_diffusion(base).model.to(device)
    reached = evaluate_trigger(suspect, backdoor, sampler, count=images, own_sampler=own)
    untouched = evaluate_trigger(clean, backdoor, sampler, count=images, own_sampler=own)
    plain = target_match(triggered_samples(suspect, None, sampler, count=images), backdoor.targets)
    return {
        "sampler": sampler.label + (" of the attacker" if own else ""),
        "images": images,
        "target_mse": reached.mse,
        "target_ssim": reached.ssim,
        "target_share": reached.share,
        "base_mse": untouched.mse,
        "plain_mse": plain.mse,
        "succeeded": reached.mse <= SUCCESS_SHARE * untouched.mse,
        "trigger_norm": float(backdoor.trigger.g.norm()),
    }


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    models: str = "",
    make: bool = True,
    budget: str = "standard",
    only: str = "*",
    workers: int = 1,
    detectors: str = "",
    earlier: str = "",
    publish: bool = False,
    publish_found: bool = False,
) -> Path:
    """Run the study, or the part of it whose member keys match ``only``.

    Args:
        data: folder with the data sets as sub-folders; needed only where models are made.
        models: folder of the members; ``OUT/models`` if empty.
        make: make members that are missing; without it they are listed as missing.
        budget: budgets of the audits, joined by commas.
        only: shell patterns of member keys, joined by commas.
        workers: members at a time, one thread each.
        detectors: OUT folder of the recipe ``diffusion-detectors``; empty for none.
        earlier: result file of an earlier run, whose scores stand in for members not in ``out``.
        publish: write the clean scores of the calibration half, and what the audits found,
            into the package.
        publish_found: write the latter alone, which stands for itself and judges nobody.

    Raises:
        GenwardenError: ``benchmark/data-missing``, ``benchmark/no-cells``,
            ``benchmark/no-results``, ``benchmark/other-orders``, ``benchmark/incomplete``;
            ``usage/options``; ``benchmark/cells-failed`` after all else is done.
    """
    budgets = tuple(part.strip() for part in budget.split(",") if part.strip())
    for name in budgets:
        diffusion_budget(name)
    if make and data is None:
        raise GenwardenError(
            "benchmark/data-missing",
            "The recipe diffusion-population trains models and was given no data.",
            "Add --data FOLDER (mnist, kmnist, fashion_mnist_part, cifar10), or "
            "--option make=false with --option models=DIR.",
        )
    plan = members()
    chosen = matching(plan, only)
    before = read_earlier(Path(earlier), RECIPE, seed) if earlier else None
    root = Path(models) if models else out / "models"
    source = Path(data) if make and data else None
    jobs = [
        _Job(m, models=root, out=out, budgets=budgets, seed=seed, data=source, device=device)
        for m in chosen
    ]
    failed = do_members(jobs, workers, progress)
    rows = measured_rows(out, root, plan, budgets, seed)
    carried = None
    if before is not None:
        rows, carried = with_earlier(
            rows, before, {m.key: m.settings.get("steps") for m in plan}, budgets
        )
    # Clean models of a run that measures otherwise are no references for this one.
    rows = judged_rows(rows, plan, mixed=carried is not None and repeats(carried, budgets))
    if publish:
        if carried is not None and any(map(taken_null, rows)):
            require_repeated(carried, budgets)
        for name in budgets:
            publish_nulls(rows, plan, name)
        calibration.clear_cache()
    if publish or publish_found:
        publish_power(rows)
    options = {
        "models": models and "MODELS",
        "make": "" if make else "false",
        "budget": budget if budget != "standard" else "",
        "only": only if only != "*" else "",
        "detectors": detectors and "DETECTORS",
        "earlier": earlier and "EARLIER",
    }
    document = {
        **result_head(RECIPE, seed, device),
        "command": command_of(RECIPE, seed, data, options),
        "members": {"clean": _count(plan, False), "compromised": _count(plan, True)},
        "rows": rows,
        "earlier": carried,
        "detectors": _detectors(detectors, set(carried["other"]) if carried else set()),
    }
    return write_study(out, RECIPE, plan, document, failed, draw(document))


def _count(plan: list[Member], compromised: bool) -> int:
    return sum(member.compromised is compromised for member in plan)


def _detectors(folder: str, other: set[str]) -> list[dict[str, Any]]:
    """Its figures, without those of members that were planned otherwise then: other models."""
    if not folder:
        return []
    advice = "Name the --out folder of a finished run of it."
    found = read_result(Path(folder) / "result.json", "diffusion-detectors", advice)
    return [row for row in found["rows"] if row["cell"]["member"] not in other]
