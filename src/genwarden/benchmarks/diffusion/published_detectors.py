"""Recipe ``diffusion-detectors``: Elijah and TERD as published, on members of the population.

    genwarden benchmark run diffusion-detectors --out OUT --workers 2 --option models=MODELS

MODELS is the folder of the members (``OUT/models`` of ``diffusion-population``). Elijah runs with
100 iterations of 100 noises for stochastic and 10 for deterministic samplers and keeps the more
suspicious of the two; ``elijah-mended`` is the same with antithetic noise drawn anew at every step;
TERD runs 3000 + 1000 iterations of batch 16. Scores are those of the inspections (pixel distances
stand in for Elijah's LPIPS). The published code has no thresholds: a model is also called flagged
above mean + 3 standard deviations of the calibration half's clean scores (TERD's benign-only rule).

Cost on one core at 16 px: Elijah 20 to 30 s a member, TERD about 10 minutes; hence ``methods`` and
``only``. With ``share`` below 1 all iterations are shortened, and every table says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import torch
from torch import Tensor

from genwarden import __version__
from genwarden.artifacts.diffusers_folder import read_diffusion
from genwarden.artifacts.diffusers_layout import INDEX_NAME
from genwarden.auditing.budgets import diffusion_budget
from genwarden.backdoors.image_backdoor import read_image_backdoor
from genwarden.benchmarks.choosing import is_chosen
from genwarden.benchmarks.diffusion.plan import Member, members
from genwarden.benchmarks.diffusion.recovery import recovery
from genwarden.benchmarks.locks import claimed
from genwarden.benchmarks.population.statistics import Share, area, found_at
from genwarden.benchmarks.population.texts import BRACKETS, area_text, count_text, share_text
from genwarden.benchmarks.repairs.jobs import do_all
from genwarden.benchmarks.repairs.run import command_of, raise_failures, result_head
from genwarden.benchmarks.results import CELLS, read_document
from genwarden.benchmarks.store import write_result
from genwarden.benchmarks.tables import NOTHING, Table, figure
from genwarden.engine.files import write_json
from genwarden.engine.progress import Progress
from genwarden.errors import GenwardenError
from genwarden.inspections.diffusion import elijah, terd
from genwarden.inspections.diffusion.bench import DiffusionBench
from genwarden.inspections.diffusion.kl_detection import kl_features

RECIPE = "diffusion-detectors"
METHODS = ("elijah", "elijah-mended", "terd")
_SIGMAS = 3.0


@dataclass(frozen=True)
class _Found:
    """A recovered shift ``(C, H, W)``, its score, and what it was made with."""

    shift: Tensor
    score: float
    settings: dict[str, Any]


def detect(bench: DiffusionBench, method: str, share: float = 1.0) -> _Found:
    """One published detector on one model, which it is given alone.

    Args:
        share: of the published iterations.
    """
    return _terd(bench, share) if method == "terd" else _elijah(bench, method, share)


def _elijah(bench: DiffusionBench, method: str, share: float) -> _Found:
    cases = [
        elijah.case_of(
            bench,
            method,
            replace(
                published,
                iterations=max(1, round(share * published.iterations)),
                noises=elijah.published_noises(bench.shape),
                antithetic=method == "elijah-mended",
            ),
        )
        for published in (elijah.STOCHASTIC, elijah.DETERMINISTIC)
    ]
    best = max(cases, key=lambda case: case.score)
    return _Found(best.found.tau, best.score, asdict(best.settings))


def _terd(bench: DiffusionBench, share: float) -> _Found:
    published = terd.TerdSettings()
    settings = terd.published_settings(
        bench.shape,
        iterations=max(1, round(share * published.iterations)),
        refinements=max(1, round(share * published.refinements)),
    )
    stream = bench.stream(terd.NAME)
    first = terd.estimate(bench.model, stream, settings, device=bench.device)
    found = terd.refine(bench.model, first, stream, settings, device=bench.device)
    return _Found(found.mu, kl_features(found.mu, found.gamma).score, asdict(settings))


@dataclass(frozen=True)
class _Job:
    member: Member
    method: str
    models: Path
    out: Path
    seed: int
    share: float
    device: torch.device

    @property
    def name(self) -> str:
        return f"{self.member.key}.{self.method}"

    @property
    def path(self) -> Path:
        return self.out / CELLS / f"{self.name}.json"

    def identity(self) -> dict[str, Any]:
        """What a finished cell must agree with."""
        return {
            "recipe": RECIPE,
            "key": self.name,
            "version": __version__,
            "seed": self.seed,
            "share": self.share,
            "cell": {"member": self.member.key, "method": self.method},
        }

    def do(self) -> None:
        if self.path.exists():
            row = read_document(self.path)
            if any(row.get(key) != value for key, value in self.identity().items()):
                raise GenwardenError(
                    "benchmark/other-run",
                    f"The cell {self.name} was done with another seed, share or version.",
                    "Choose another --out folder.",
                )
            return
        with claimed(self.out / "locks" / f"{self.name}.lock", wait=False) as mine:
            if mine and not self.path.exists():
                self._measure()

    def _measure(self) -> None:
        folder = self.models / self.member.key
        loaded = read_diffusion(folder)
        bench = DiffusionBench(
            model=loaded.model.to(self.device).eval().requires_grad_(False),
            effort=diffusion_budget("thorough"),
            seed=self.seed,
            device=self.device,
        )
        cpu, wall = time.process_time(), time.perf_counter()
        found = detect(bench, self.method, self.share)
        figures: dict[str, Any] = {
            "score": found.score,
            "norm": float(found.shift.norm()),
            "cpu_seconds": round(time.process_time() - cpu, 2),
            "seconds": round(time.perf_counter() - wall, 2),
        }
        if self.member.compromised:
            # The truth is only read once the detector has ended.
            truth = read_image_backdoor(folder).trigger.g
            figures |= recovery(found.shift, truth)._asdict()
        kind = self.member.kind
        write_json(
            self.path,
            {
                **self.identity(),
                "half": self.member.half,
                "clean": kind is None,
                "family": kind.family if kind else "",
                "adaptive": bool(kind and kind.adaptive),
                "sha256": loaded.sha256,
                "settings": found.settings,
                "figures": figures,
            },
        )


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    models: str = "",
    only: str = "*",
    methods: str = "elijah,terd",
    share: float = 1.0,
    facts: str = "",
    workers: int = 1,
) -> Path:
    """Run the detectors on every chosen member that is there and was not done yet.

    Args:
        data: not used; nothing is trained here.
        models: folder of the members.
        only: shell patterns of member keys, joined by commas (``*-reporting``).
        methods: of :data:`METHODS`, joined by commas.
        share: of the published iterations.
        facts: ``OUT/facts`` of ``diffusion-population``: which attacks reached their target. Those
            that did not are in no rate; without it all count.
        workers: members at a time, one thread each.

    Raises:
        GenwardenError: ``usage/unknown-name``, ``benchmark/no-cells``; ``benchmark/cells-failed``
            after all else is done.
    """
    del data
    names = [part.strip() for part in methods.split(",") if part.strip()]
    for name in names:
        if name not in METHODS:
            raise GenwardenError(
                "usage/unknown-name",
                f"There is no published detector called {name!r}.",
                f"Choose one of: {', '.join(METHODS)}.",
            )
    root = Path(models or out / "models")
    chosen = [
        member
        for member in members()
        if is_chosen(member.key, only) and (root / member.key / INDEX_NAME).exists()
    ]
    if not chosen:
        raise GenwardenError(
            "benchmark/no-cells",
            f"The folder of models holds no member of the population that matches {only!r}.",
            "Make them with the recipe diffusion-population, and name its models folder with "
            "--option models=DIR.",
        )
    jobs = [_Job(m, name, root, out, seed, share, device) for name in names for m in chosen]
    failed = {job.name: f for job, f in do_all(jobs, workers, progress, "detectors")}
    rows = [read_document(path) for path in sorted((out / CELLS).glob("*.json"))]
    wanted = (RECIPE, __version__, seed, share)
    rows = [r for r in rows if _made_with(r) == wanted]
    for row in rows:
        row["succeeded"] = None if row["clean"] else _succeeded(facts, row["cell"]["member"])
    options = {
        "models": models and "MODELS",
        "share": share if share != 1 else "",
        "facts": facts and "FACTS",
    }
    path = write_result(
        out / "result.json",
        {
            **result_head(RECIPE, seed, device),
            "command": "; ".join(
                command_of(RECIPE, seed, None, {**options, **chosen_by})
                for chosen_by in _choices(rows)
            ),
            "share": share,
            "rows": rows,
            "failed": {name: f"{f.code}: {f.cause}" for name, f in failed.items()},
        },
    )
    raise_failures(failed)
    return path


def _choices(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Options that choose what the rows hold; methods that ran on the same members together."""
    members_of: dict[str, list[str]] = {}
    for row in rows:
        members_of.setdefault(row["cell"]["method"], []).append(row["cell"]["member"])
    methods_of: dict[str, list[str]] = {}
    for method, keys in members_of.items():
        methods_of.setdefault(",".join(sorted(keys)), []).append(method)
    return [{"methods": ",".join(names), "only": only} for only, names in methods_of.items()]


def _made_with(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in ("recipe", "version", "seed", "share"))


def _succeeded(facts: str, key: str) -> bool | None:
    path = Path(facts) / f"{key}.json"
    if not facts or not path.exists():
        return None
    return bool(json.loads(path.read_text("utf-8"))["succeeded"])


def tables(document: dict[str, Any], name: str = "") -> list[Table]:
    """Detection and recovered triggers of each method; reporting half first."""
    del name
    methods = dict.fromkeys(row["cell"]["method"] for row in document["rows"])
    rows = []
    for method in methods:
        mine = [row for row in document["rows"] if row["cell"]["method"] == method]
        for half in ("reporting", "calibration"):
            rows += _lines(method, half, mine)
    columns = ["method", "half", "attacks", "models", "AUC", "found at zero false alarms"]
    columns += ["above mean + 3 sd", "clean above it", "error", "error, best size", "core-seconds"]
    shortened = document["share"] != 1
    notes = [
        f"Iterations: {100 * document['share']:g} % of the published ones."
        if shortened
        else "Iterations as published.",
        "Mean + 3 sd: of the clean scores of the calibration half (benign-only rule). Errors and "
        "core-seconds are medians; error: |found - g| / |g|, best size: after scaling by the best "
        "positive factor. Attacks known to have missed their target are left out.",
        BRACKETS,
    ]
    return [Table("Published detectors", columns, rows, notes)] if rows else []


def _lines(method: str, half: str, mine: Sequence[dict[str, Any]]) -> list[list[str]]:
    clean = [row for row in mine if row["clean"] and row["half"] == half]
    known = [r["figures"]["score"] for r in mine if r["clean"] and r["half"] == "calibration"]
    limit = fmean(known) + _SIGMAS * stdev(known) if len(known) > 1 else None
    scores = [row["figures"]["score"] for row in clean]
    lines = []
    for title, wanted in (("all", (False, True)), ("standard", (False,)), ("adaptive", (True,))):
        attacked = [
            row
            for row in mine
            if not row["clean"]
            and row["half"] == half
            and row["adaptive"] in wanted
            and row["succeeded"] is not False
        ]
        if not attacked:
            continue
        theirs = [row["figures"]["score"] for row in attacked]
        lines.append(
            [
                method,
                half,
                title,
                f"{len(clean)} clean, {len(attacked)} compromised",
                area_text(area(scores, theirs)),
                share_text(found_at(scores, theirs)),
                _above(theirs, limit),
                _above(scores, limit),
                figure(median(row["figures"]["error"] for row in attacked)),
                figure(median(row["figures"]["error_scaled"] for row in attacked)),
                figure(median(row["figures"]["cpu_seconds"] for row in attacked)),
            ]
        )
    return lines


def _above(scores: Sequence[float], limit: float | None) -> str:
    if limit is None:
        return NOTHING
    return count_text(Share(sum(score > limit for score in scores), len(scores)))
