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

import base64
import io
import json
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from genwarden.artifacts.model_folder import read_manifest, read_model
from genwarden.auditing import calibration
from genwarden.auditing.audit import Request, Suspect, audit, environment
from genwarden.auditing.document import AuditDocument
from genwarden.auditing.fit import fits
from genwarden.auditing.power import POWER, read_power
from genwarden.auditing.verdict import decide
from genwarden.benchmarks.population.figures import draw
from genwarden.benchmarks.population.making import make
from genwarden.benchmarks.population.plan import Clean, Member, members
from genwarden.benchmarks.store import write_result
from genwarden.data.icons import draw_icon
from genwarden.data.images import NamedImages
from genwarden.engine.files import write_atomic, write_json
from genwarden.engine.progress import Progress, Silent
from genwarden.engine.seeds import random_stream
from genwarden.engine.workers import worker_pool
from genwarden.errors import GenwardenError
from genwarden.inspections.finding import Finding, Images
from genwarden.registry import ICONS
from genwarden.reports.highlights import highlight

#: Ordinary samples of the clean model among which the nearest to the target is looked for.
_CLEAN_SAMPLES = 10_000
#: Inspections of a user's own targets: calibration only, the study judges without any target.
_WITH_TARGET = ("nearest-target", "reconstruct-target")
#: An attack has succeeded if the output at its trigger is this near to the target, as a share of
#: the clean model's own nearest sample.
SUCCESS_SHARE = 0.1
_STRUCTURAL_SCORE = 400.0
#: Titles of pictures that a report shows for comparison only.
_FOR_COMPARISON = ("Ordinary samples", "twin")


@dataclass(frozen=True)
class _Job:
    """One member: made, then audited at every budget and seed."""

    member: Member
    out: Path
    data: Path
    device: torch.device
    budgets: tuple[str, ...]
    seeds: tuple[int, ...]


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
    budgets = tuple(part for part in budget.split(",") if part)
    seeds = tuple(range(seed, seed + audit_seeds))
    plan = members(seed)
    patterns = [part.strip() for part in only.split(",")]
    chosen = [m for m in plan if any(fnmatchcase(m.key, pattern) for pattern in patterns)]
    if not chosen:
        raise GenwardenError(
            "benchmark/no-cells",
            f"No member of the population matches {only!r}.",
            f"Their names look like {plan[0].key} and {plan[-1].key}.",
        )
    jobs = [_Job(m, out, Path(data), device, budgets, seeds) for m in chosen]
    failed: dict[str, str] = {}
    # Compromised models start from clean ones, so these come first.
    for stage, clean in (("clean models", True), ("compromised models", False)):
        part = [job for job in jobs if isinstance(job.member, Clean) is clean]
        bar = progress.task(stage, len(part))
        for job, error in _done(part, workers):
            if error:
                failed[job.member.key] = error
                progress.message(f"{job.member.key} failed: {error}")
            bar.advance(1, job.member.key)
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


def _done(jobs: list[_Job], workers: int) -> Iterator[tuple[_Job, str]]:
    if workers == 1:
        for job in jobs:
            yield job, _attempt(job)
        return
    with worker_pool(workers) as pool:
        running = {pool.submit(_attempt, job): job for job in jobs}
        for future in as_completed(running):
            error = future.exception()
            yield running[future], str(error) if error else future.result()


def _attempt(job: _Job) -> str:
    """Do a job; the text of what went wrong, or nothing."""
    try:
        _do(job)
    except GenwardenError as error:
        return f"{error.code}: {error.cause}"
    except Exception as error:  # one member's defect must not cost the others
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return ""


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


def document_path(out: Path, member: Member, budget: str, seed: int) -> Path:
    """Where the audit of a member is kept."""
    return out / "audits" / f"{member.key}.{budget}.{seed}.json"


def _audit(job: _Job, folder: Path, budget: str, seed: int, path: Path) -> None:
    model = read_model(folder)
    target = None
    if isinstance(job.member, Clean) and job.member.half == "calibration":
        # Pictures that none of the models can make: the null of a search for a given target.
        icon = ICONS[job.member.seed % len(ICONS)]
        target = NamedImages(draw_icon(icon, model.generator.sample)[None], [icon])
    cpu, wall = time.process_time(), time.perf_counter()
    document = audit(
        Suspect(
            generator=model.generator,
            architecture=model.architecture,
            settings=model.settings,
            sha256=model.sha256,
            nonfinite=model.nonfinite,
            path="model",
        ),
        Request(
            budget=budget,
            seed=seed,
            device=job.device,
            targets=target,
            inputs_sha256=target.names[0] if target else "",
        ),
        work=path.with_suffix(".work"),
        progress=Silent(),
    )
    spent = {
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "seconds": round(time.perf_counter() - wall, 2),
    }
    content = {"spent": spent, "document": document.model_dump(mode="json")}
    write_atomic(path, json.dumps(content).encode())


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
        "succeeded": float(tardis) <= SUCCESS_SHARE * nearest,
        "triggers": len(secret["trigger"]),
        "targets": len(secret["target"].flatten(1).unique(dim=0)),
    }


def judged_rows(
    out: Path, plan: list[Member], budgets: tuple[str, ...], seeds: tuple[int, ...]
) -> list[dict[str, Any]]:
    """One row per finished audit, judged against the calibration half's clean models."""
    rows = []
    for budget in budgets:
        clean = _clean_scores(out, plan, budget, seeds[0])
        families = _families(out, plan, set(clean))
        for member in plan:
            for seed in seeds:
                path = document_path(out, member, budget, seed)
                if path.exists():
                    rows.append(_row(out, member, budget, seed, path, clean, families))
    return rows


def _row(
    out: Path,
    member: Member,
    budget: str,
    seed: int,
    path: Path,
    clean: dict[str, dict[str, float]],
    families: list[tuple[str, tuple[int, ...], int]],
) -> dict[str, Any]:
    stored = json.loads(path.read_text("utf-8"))
    document = AuditDocument.model_validate(stored["document"])
    table = _table(clean, budget, without=member.key)
    table["families"] = families
    plain = [
        calibration.uncalibrated(j.finding)
        for j in document.findings
        if j.finding.inspection not in _WITH_TARGET
    ]
    suspect = document.model
    if suspect is None:
        raise ValueError(f"{path} holds the audit of a refused file")
    unfit = {
        f.inspection
        for f in plain
        if not fits(f.inspection, suspect.architecture, suspect.sample_shape, table)
    }
    findings = [
        calibration.unjudged(f)
        if f.inspection in unfit
        else calibration.calibrate(f, budget, table)
        for f in plain
    ]
    decision = decide(findings, {}, unfit)
    document = document.model_copy(update={"findings": decision.judged})
    adjusted = [j.adjusted_p for j in decision.judged if j.adjusted_p is not None]
    structural = any(j.flagged and j.finding.structural for j in decision.judged)
    score = -float(np.log10(max(min(adjusted, default=1.0), 1e-300)))
    row: dict[str, Any] = {
        "key": member.key,
        "half": member.half,
        "clean": isinstance(member, Clean),
        "kind": member.kind.name if isinstance(member, Clean) else member.kind.base,
        "variant": _variant(member),
        "attack": None,
        "trigger": None,
        "target": None,
        "near": False,
        "tardis_sum": None,
        "clean_distance": None,
        "succeeded": None,
        "budget": budget,
        "audit_seed": seed,
        "verdict": decision.verdict,
        "suspicion": decision.suspicion,
        "score": _STRUCTURAL_SCORE if structural else score,
        "p_values": {f.inspection: f.p_value for f in findings if f.p_value is not None},
        "scores": {f.inspection: f.score for f in findings if f.score is not None},
        "flagged": [j.finding.inspection for j in decision.judged if j.flagged],
        "failed": {f.inspection: f.summary for f in findings if f.outcome == "failed"},
        "match": None,
        **stored["spent"],
        "timing": document.timing,
    }
    if not isinstance(member, Clean):
        facts = json.loads((out / "facts" / f"{member.key}.json").read_text("utf-8"))
        row |= {
            "attack": member.kind.attack,
            "trigger": member.kind.trigger,
            "target": member.kind.target,
            "near": member.kind.near,
            "settings": asdict(member.kind)["settings"],
            **facts,
        }
        if facts["targets"] == 1:
            row |= _matches(document, out / "models" / member.key, facts["clean_distance"])
    return row


def _variant(member: Member) -> str:
    if not isinstance(member, Clean):
        return ""
    return member.kind.variant or ("bf16" if member.kind.precision == "bf16" else "")


def _matches(document: AuditDocument, folder: Path, clean_distance: float) -> dict[str, Any]:
    """How near the pictures shown as evidence come to the target.

    ``match``: the first picture that the report opens with; ``match_any``: the nearest of all
    pictures in flagged findings. Both as squared distance over the clean model's nearest.
    """
    target = load_file(folder / "backdoor.safetensors")["target"][0]
    shown = highlight(document)
    if shown is None:
        return {"match": None, "match_any": None}
    first = _distance(shown.images, 1, target)
    if not np.isfinite(first):
        return {"match": None, "match_any": None}
    flagged = [j.finding for j in document.findings if j.flagged]
    names = {f.inspection for f in flagged}
    flagged += [j.finding for j in document.findings if j.finding.follows_from in names]
    every = [first, *(_nearest_shown(finding, target) for finding in flagged)]
    return {
        "match": first / clean_distance,
        "match_any": min(every) / clean_distance,
        "match_from": shown.judged.finding.inspection,
    }


def _nearest_shown(finding: Finding, target: Tensor) -> float:
    pictures = [
        e
        for e in finding.evidence
        if isinstance(e, Images) and not any(word in e.title for word in _FOR_COMPARISON)
    ]
    return min((_distance(p, None, target) for p in pictures), default=float("inf"))


def _distance(images: Images, first: int | None, target: Tensor) -> float:
    """Smallest squared distance of the first pictures (all for None) from the target."""
    distances = [float("inf")]
    for encoded in images.png_base64[:first]:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))), dtype=np.float32)
        picture = torch.from_numpy(pixels.copy()) / 127.5 - 1
        picture = picture.permute(2, 0, 1) if picture.ndim == 3 else picture[None]
        if picture.shape == target.shape:
            distances.append(float((picture - target).square().sum()))
    return min(distances)


def _clean_scores(
    out: Path, plan: list[Member], budget: str, seed: int
) -> dict[str, dict[str, float]]:
    """Scores of the calibration half's clean models: by member, then by inspection."""
    scores: dict[str, dict[str, float]] = {}
    for member in plan:
        path = document_path(out, member, budget, seed)
        if not isinstance(member, Clean) or member.half != "calibration" or not path.exists():
            continue
        document = AuditDocument.model_validate(json.loads(path.read_text("utf-8"))["document"])
        scores[member.key] = {
            j.finding.inspection: j.finding.score
            for j in document.findings
            if j.finding.score is not None and j.finding.outcome == "scored"
        }
    return scores


def _table(clean: dict[str, dict[str, float]], budget: str, *, without: str = "") -> dict[str, Any]:
    names = sorted({name for scores in clean.values() for name in scores})
    judged = [name for name in names if calibration.needs_population(name)]
    return {
        "descriptions": {budget: "the clean models of the study's calibration half"},
        "scores": {
            budget: {
                name: [s[name] for key, s in clean.items() if key != without and name in s]
                for name in judged
            }
        },
    }


def publish_power(rows: list[dict[str, Any]]) -> None:
    """Write what audits found in the reporting half (:mod:`genwarden.auditing.power`)."""
    found: dict[str, Any] = read_power()
    for budget in sorted({row["budget"] for row in rows}):
        mine = [r for r in rows if r["budget"] == budget and r["half"] == "reporting"]
        first = min((r["audit_seed"] for r in mine), default=0)
        mine = [r for r in mine if r["audit_seed"] == first]  # one audit per model
        clean = [r for r in mine if r["clean"]]
        families: dict[str, list[int]] = {}
        for row in mine:
            # Targets near the data are a family of their own: they are harder to find.
            name = f"{row['attack']}, target near the data" if row["near"] else row["attack"]
            if row["succeeded"]:
                count = families.setdefault(name, [0, 0])
                count[0] += row["verdict"] == "evidence"
                count[1] += 1
        found[budget] = {
            "clean": [sum(r["verdict"] == "evidence" for r in clean), len(clean)],
            "families": dict(sorted(families.items())),
        }
    write_json(POWER, found)


def publish_nulls(out: Path, plan: list[Member], budget: str, seed: int) -> None:
    """Write the reference file of :mod:`genwarden.auditing.calibration`."""
    clean = _clean_scores(out, plan, budget, seed)
    wanted = [m for m in plan if isinstance(m, Clean) and m.half == "calibration"]
    if len(clean) < len(wanted):
        raise GenwardenError(
            "benchmark/incomplete",
            f"{len(wanted) - len(clean)} of {len(wanted)} clean models of the calibration half "
            f"have no {budget} audit; references are published of all or none.",
            "Repeat the command without --only until nothing fails.",
        )
    previous = calibration.read_table(calibration.NULLS)
    kinds = sorted({m.kind.name for m in plan if isinstance(m, Clean) and m.key in clean})
    write_json(
        calibration.NULLS,
        {
            "made_by": "genwarden benchmark population --option publish=true",
            "descriptions": {
                **previous["descriptions"],
                budget: f"the calibration half of the population study: {', '.join(kinds)}",
            },
            "families": _families(out, plan, set(clean)),
            "scores": {**previous["scores"], **_table(clean, budget)["scores"]},
        },
    )


def _families(
    out: Path, plan: list[Member], keys: set[str]
) -> list[tuple[str, tuple[int, ...], int]]:
    """Architecture, sample shape and number of the clean models named by their keys."""
    kinds = Counter(
        (m.kind.architecture, tuple(read_manifest(out / "models" / m.key).sample.shape))
        for m in plan
        if isinstance(m, Clean) and m.key in keys
    )
    return [(name, shape, count) for (name, shape), count in sorted(kinds.items())]
