"""Recipe ``compression-population``: make every model, audit what it becomes, judge it.

    genwarden benchmark run compression-population --data DATA --out OUT --workers 2

DATA holds mnist, kmnist and fashion_mnist_part as folders. Models lie below OUT/models, or in a
folder given as ``--option models=DIR``; with ``make=false`` only those that are there are audited.
Several processes may run the same command: each member is made and audited by whichever takes its
lock first, and the last to end collects all. Audits are those of ``--deploy-as ...
--variants-only``, with the same compressions for every model of a sort: none is told a trigger, a
target, whether a model is attacked or what would wake it. Classifiers are audited with
``images=N`` test images of their data, unlabelled (0: none). The clean models of the calibration
half give the nulls (``publish=true`` ships them with the package, together with what the reporting
half's classifiers say of the audit's power).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genwarden.artifacts.classifier_folder import read_classifier
from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.artifacts.model_folder import read_model
from genwarden.auditing import calibration
from genwarden.auditing.audit import Request, audit
from genwarden.auditing.audit_classifier import (
    ClassifierRequest,
    audit_classifier,
)
from genwarden.auditing.budgets import compression_budget
from genwarden.auditing.document import AuditDocument
from genwarden.benchmarks.as_planned import require_as_planned
from genwarden.benchmarks.choosing import matching
from genwarden.benchmarks.compression.facts import measure
from genwarden.benchmarks.compression.honest import source
from genwarden.benchmarks.compression.judging import (
    judged_rows,
    publish_nulls,
    publish_power,
)
from genwarden.benchmarks.compression.making import attack_settings
from genwarden.benchmarks.compression.making import make as make_member
from genwarden.benchmarks.compression.plan import DEPLOYED, Member, Sort, members
from genwarden.benchmarks.compression.roc_figure import draw
from genwarden.benchmarks.member_files import require_same_orders
from genwarden.benchmarks.member_study import MemberJob, do_members, write_study
from genwarden.benchmarks.repairs.run import command_of, result_head
from genwarden.commands.audit_variants import parse_deploy_as, where_usable
from genwarden.commands.open_classifier_suspect import classifier_suspect_of
from genwarden.commands.open_suspect import suspect_of
from genwarden.compression.contract import Compressor
from genwarden.data.datasets import to_unit_range
from genwarden.data.glyphs import is_glyphs
from genwarden.data.labelled import read_labelled
from genwarden.engine.files import sha256_bytes
from genwarden.engine.progress import Progress, Silent
from genwarden.errors import GenwardenError
from genwarden.inspections.classifier.recalibration import DAMAGED, DESTROYED

RECIPE = "compression-population"


@dataclass(frozen=True)
class Orders:
    """What the user asks of a run.

    Attributes:
        models: folder of the members.
        data: folder of the data sets, or None.
        make: make members that are missing.
        deploy_as: in place of :data:`.plan.DEPLOYED`, if any.
        images: test images that an audit of a classifier is given.
    """

    models: Path
    out: Path
    data: Path | None
    make: bool
    device: torch.device
    budgets: tuple[str, ...]
    seed: int
    deploy_as: str
    images: int

    def inspected(self, member: Member) -> tuple[Compressor, ...]:
        """The compressions of an audit: the same for every member of a sort."""
        text = self.named[member.sort]
        return parse_deploy_as(text, variants_only=True, seed=self.seed)

    @property
    def named(self) -> dict[Sort, str]:
        """The same as ``--deploy-as`` takes them, by sort."""
        return {sort: self.deploy_as or text for sort, text in DEPLOYED.items()}

    def shown(self, member: Member) -> Tensor | None:
        """Test images ``(images, C, H, W)`` in [-1, 1] beside a classifier; labels stay here."""
        if member.sort == "generator" or not self.images:
            return None
        if self.data is None and not is_glyphs(member.data):
            raise GenwardenError(
                "benchmark/data-missing",
                f"The audit of {member.key} is given images of {member.data}.",
                "Add --data FOLDER, or --option images=0.",
            )
        sample = read_classifier(self.models / member.key).classifier.sample
        found = read_labelled(
            source(self.data or Path(), member.data),
            sample,
            split="test",
            limit=self.images,
            resize=True,
        )
        return to_unit_range(found.images)


class _Job(MemberJob[Member]):
    last_file = MANIFEST_NAME

    def __init__(self, member: Member, orders: Orders) -> None:
        super().__init__(
            member,
            models=orders.models,
            out=orders.out,
            budgets=orders.budgets,
            seed=orders.seed,
        )
        self.orders = orders

    def base(self) -> Member:
        return next(m for m in members() if m.key == self.member.base_key)

    def require_fitting(self) -> None:
        member = self.member
        if (kind := member.kind) is not None:
            settings = attack_settings(kind, member.seed)
            require_as_planned(
                self.folder, kind.attack, settings, trigger=kind.trigger, target=kind.target
            )
        read = read_model if member.sort == "generator" else read_classifier
        self.require_own_audits(lambda: read(self.folder).sha256)

    @property
    def may_make(self) -> bool:
        return self.orders.make and self.orders.data is not None

    def make(self, member: Member) -> None:
        orders = self.orders
        if orders.data is not None:
            make_member(member, orders.models, orders.data, progress=Silent(), device=orders.device)

    def audit(self, budget: str, work: Path) -> AuditDocument:
        if self.member.sort == "generator":
            return self._of_generator(budget, work)
        return self._of_classifier(budget, self.orders.shown(self.member), work)

    def facts(self) -> dict[str, Any] | None:
        member, orders = self.member, self.orders
        if member.kind is None:
            return None
        return measure(
            member,
            member.kind,
            orders.models,
            orders.data,
            orders.inspected(member),
            device=orders.device,
        )

    def _of_generator(self, budget: str, work: Path) -> AuditDocument:
        loaded = read_model(self.folder)
        return audit(
            suspect_of(loaded, "model"),
            Request(
                budget=budget,
                seed=self.orders.seed,
                device=self.orders.device,
                deploy_as=self.orders.inspected(self.member),
                variants_only=True,
            ),
            work=work,
            progress=Silent(),
        )

    def _of_classifier(self, budget: str, images: Tensor | None, work: Path) -> AuditDocument:
        loaded = read_classifier(self.folder)
        return audit_classifier(
            classifier_suspect_of(loaded, "model"),
            ClassifierRequest(
                budget=budget,
                seed=self.orders.seed,
                device=self.orders.device,
                images=images,
                inputs_sha256="" if images is None else sha256_bytes(images.numpy().tobytes()),
                deploy_as=self.orders.inspected(self.member),
                where_usable=where_usable(self.orders.named[self.member.sort]),
                variants_only=True,
            ),
            work=work,
            progress=Silent(),
        )


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    models: str = "",
    make: bool = True,
    budget: str = "quick",
    deploy_as: str = "",
    images: int = 100,
    only: str = "*",
    workers: int = 1,
    publish: bool = False,
) -> Path:
    """Run the study, or the part of it whose member keys match ``only``.

    Args:
        data: folder with the data sets as sub-folders; needed only where models are made, and for
            the classifiers of other data than the built-in digits.
        models: folder of the members; ``OUT/models`` if empty.
        make: make members that are missing; without it they are listed as missing.
        budget: budgets of the audits, joined by commas.
        deploy_as: the compressions of every audit; those of the plan if empty.
        images: unlabelled test images that an audit of a classifier is given.
        only: shell patterns of member keys, joined by commas.
        workers: members at a time, one thread each.
        publish: write the clean scores of the calibration half, and what the reporting half found,
            into the package.

    Raises:
        GenwardenError: ``benchmark/data-missing``, ``benchmark/no-cells``,
            ``benchmark/other-orders``, ``benchmark/incomplete``; ``benchmark/cells-failed`` after
            all else is done.
    """
    budgets = tuple(part.strip() for part in budget.split(",") if part.strip())
    for name in budgets:
        compression_budget(name)
    if make and data is None:
        raise GenwardenError(
            "benchmark/data-missing",
            f"The recipe {RECIPE} trains models and was given no data.",
            "Add --data FOLDER (mnist, kmnist, fashion_mnist_part), or --option make=false with "
            "--option models=DIR.",
        )
    plan = members()
    chosen = matching(plan, only)
    root = Path(models) if models else out / "models"
    source_folder = Path(data) if data else None
    orders = Orders(root, out, source_folder, make, device, budgets, seed, deploy_as, images)
    # Audits that set other bounds to damage would be judged beside these.
    bounds = {"destroyed": DESTROYED, "damaged": DAMAGED}
    require_same_orders(out, {"deploy_as": deploy_as, "images": images, **bounds})
    jobs = [_Job(member, orders) for member in chosen]
    failed = do_members(jobs, workers, progress)
    rows = judged_rows(out, root, plan, budgets, seed, orders.named)
    if publish:
        for name in budgets:
            publish_nulls(out, plan, name, seed)
        publish_power(rows)
        calibration.clear_cache()
    options = {
        "models": models and "MODELS",
        "make": "" if make else "false",
        "budget": budget if budget != "quick" else "",
        "deploy_as": deploy_as,
        "images": "" if images == 100 else str(images),
        "only": only if only != "*" else "",
    }
    document = {
        **result_head(RECIPE, seed, device),
        "command": command_of(RECIPE, seed, data, options),
        "members": {"clean": _count(plan, False), "attacked": _count(plan, True)},
        "inspected": {
            sort: [one.name for one in parse_deploy_as(text, variants_only=True, seed=seed)]
            for sort, text in orders.named.items()
        },
        "rows": rows,
    }
    return write_study(out, RECIPE, plan, document, failed, draw(document))


def _count(plan: list[Member], attacked: bool) -> int:
    return sum(member.attacked is attacked for member in plan)
