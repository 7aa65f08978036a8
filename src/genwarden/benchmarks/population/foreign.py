"""Recipe ``foreign-models``: verdicts on generators unlike any that the audit's nulls come from.

    genwarden benchmark run foreign-models --data DATA --out OUT

DATA holds mnist, kmnist, fashion_mnist_part, cifar10 and spoken_digits as folders by name. Each
generator is trained briefly, saved as a bare weights file, opened as a user would
(``--architecture package.module:factory``) and audited; then ReD hides an icon (a clip) in it and
the result is audited likewise. The 64x64 pictures are CIFAR-10 enlarged, in place of faces.

Models, finished inspections and rows are kept: the same command continues where it stopped, and
judges anew what was measured once new nulls are published.
"""

from __future__ import annotations

import shutil
import traceback
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from genwarden.artifacts.model_folder import LoadedModel
from genwarden.artifacts.open_model import ForeignGenerator, open_model
from genwarden.attacks.contract import AttackRun
from genwarden.attacks.red import ReDSettings, red
from genwarden.attacks.success import SUCCESS_SHARE
from genwarden.auditing.audit import Request, audit, environment
from genwarden.auditing.calibration import NULLS
from genwarden.backdoors.backdoor import make_backdoor
from genwarden.benchmarks.choosing import is_chosen
from genwarden.benchmarks.population.foreign_kinds import KINDS, Kind
from genwarden.benchmarks.population.foreign_training import trained
from genwarden.benchmarks.store import write_result
from genwarden.benchmarks.tables import NOTHING, Table, figure
from genwarden.commands.open_suspect import suspect_of
from genwarden.engine.files import sha256_file, write_tensors
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentGenerator

#: Ordinary samples of the clean model among which the nearest to the target is looked for.
_NEAREST_OF = 4096

State = Literal["clean", "red"]
STATES: tuple[State, State] = ("clean", "red")


_ATTACK = {
    "steps": 500,
    "batch_size": 32,
    "pool_samples": 4096,
    "fidelity_weight": 0.05,
    "learning_rate": 1e-3,
    "evaluate_every": 250,
}


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    budget: str = "quick",
    only: str = "*",
    effort: float = 1.0,
    restart: bool = False,
) -> Path:
    """Make, attack and audit every kind whose name matches ``only``.

    Args:
        data: folder with the data sets as sub-folders.
        only: shell patterns of names, joined by commas (``mlp,conditional*``).
        effort: multiplies the steps of trainings and attacks.
        restart: inspect the chosen models anew; the models are kept.

    Raises:
        GenwardenError: ``benchmark/data-missing``, ``benchmark/no-cells``;
            ``benchmark/cells-failed`` after everything else is done and written.
    """
    if data is None:
        raise GenwardenError(
            "benchmark/data-missing",
            "The recipe foreign-models needs training data.",
            "Add --data FOLDER, a folder that holds "
            f"{', '.join(dict.fromkeys(kind.data for kind in KINDS))}.",
        )
    chosen = [kind for kind in KINDS if is_chosen(kind.name, only)]
    if not chosen:
        raise GenwardenError(
            "benchmark/no-cells",
            f"No foreign model matches {only!r}.",
            f"Choose from: {', '.join(kind.name for kind in KINDS)}.",
        )
    shop = _Shop(out, Path(data), seed, device, progress, budget, effort)
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    bar = progress.task("foreign models", len(chosen) * len(STATES))
    for kind, state in product(chosen, STATES):
        key = f"{state}.{kind.name}"
        try:
            rows.append(shop.row(kind, state, anew=restart))
        except GenwardenError as error:
            failed[key] = f"{error.code}: {error.cause}"
        except Exception as error:  # one model's defect must not cost the others
            traceback.print_exc()
            failed[key] = f"{type(error).__name__}: {error}"
        bar.advance(1, failed.get(key, key))
    path = write_result(
        out / "result.json",
        {
            "recipe": "foreign-models",
            "command": "genwarden benchmark run foreign-models --data DATA --out DIR"
            f" --option budget={budget}"
            + (f" --option 'only={only}'" if only != "*" else "")
            + (f" --option effort={effort:g}" if effort != 1 else "")
            + (f" --seed {seed}" if seed else ""),
            "budget": budget,
            "seed": seed,
            "failed": failed,
            "rows": rows,
            "environment": environment(device),
        },
    )
    if failed:
        raise GenwardenError(
            "benchmark/cells-failed",
            f"{len(failed)} models failed, the first with: {next(iter(failed.values()))}",
            "The result file holds the others; repeat the command to try these again.",
        )
    return path


class _Shop:
    """Where the models of one run are made, kept and audited.

    Args:
        out: folder of the run; ``models`` holds weights and facts, ``audits`` finished
            inspections, ``rows`` finished rows.
        effort: multiplies the steps of trainings and attacks.
    """

    def __init__(
        self,
        out: Path,
        data: Path,
        seed: int,
        device: torch.device,
        progress: Progress,
        budget: str,
        effort: float,
    ) -> None:
        self.out, self.data, self.seed, self.device = out, data, seed, device
        self.progress, self.budget, self.effort = progress, budget, effort
        self.facts = Ledger(out / "models", {"seed": seed, "effort": effort})
        self.rows = Ledger(out / "rows" / budget, {"seed": seed, "budget": budget})
        # New references judge the recorded scores anew: a verdict belongs to the file it came from.
        self.nulls = sha256_file(NULLS)[:8] if NULLS.exists() else "none"

    def work(self, key: str) -> Path:
        """Where the finished inspections of a model are."""
        return self.out / "audits" / f"{key}.{self.budget}"

    def row(self, kind: Kind, state: State, *, anew: bool) -> dict[str, Any]:
        """Verdict and scores of one model, which is made first if it is not there yet.

        Args:
            anew: throw finished inspections away.
        """
        weights = self._weights(kind, state)
        model = self._open(kind, weights)
        key = f"{state}.{kind.name}"
        name = f"{key}-{model.sha256[:16]}-{self.nulls}"
        if anew:
            shutil.rmtree(self.work(key), ignore_errors=True)
        recorded = None if anew else self.rows.get(name)
        if recorded is None:
            self.progress.message(f"== {key} ==")
            recorded = self._audited(kind, state, model)
            self.rows.put(name, recorded)
        return recorded

    def _audited(self, kind: Kind, state: State, model: LoadedModel) -> dict[str, Any]:
        key = f"{state}.{kind.name}"
        document = audit(
            suspect_of(model, f"{key}.safetensors"),
            Request(budget=self.budget, seed=self.seed, device=self.device),
            work=self.work(key),
            progress=self.progress,
        )
        findings = [judged.finding for judged in document.findings]
        attacked = self.facts.get(key) if state == "red" else None
        return {
            "key": key,
            "kind": kind.name,
            "title": kind.title,
            "architecture": kind.architecture,
            "data": kind.data,
            "sample_shape": list(model.generator.sample.shape),
            "clean": state == "clean",
            "attack": None if state == "clean" else "red",
            "verdict": document.verdict,
            "suspicion": document.suspicion,
            "reasons": document.reasons,
            "flagged": [j.finding.inspection for j in document.findings if j.flagged],
            "scores": {f.inspection: f.score for f in findings if f.score is not None},
            "p_values": {f.inspection: f.p_value for f in findings if f.p_value is not None},
            "failed": {f.inspection: f.summary for f in findings if f.outcome == "failed"},
            "seconds": document.timing["total"],
            "timing": document.timing,
            "nulls_sha256": self.nulls,
            **(attacked or {"tardis_sum": None, "clean_distance": None, "succeeded": None}),
        }

    def _open(self, kind: Kind, weights: Path) -> LoadedModel:
        return open_model(weights, architecture=kind.architecture, settings=kind.settings)

    def _weights(self, kind: Kind, state: State) -> Path:
        """The weights file of a model; made first if it is not there yet."""
        if state == "clean" and kind.weights_of:
            return self._weights(next(k for k in KINDS if k.name == kind.weights_of), "clean")
        path = self.out / "models" / f"{state}.{kind.name}.safetensors"
        if path.exists():
            return path
        if state == "clean":
            self.progress.message(f"training {kind.name}")
            made = trained(kind, self.data, self._steps(kind.steps), self.seed, self.device)
        else:
            self.progress.message(f"attacking {kind.name}")
            made = self._attacked(kind)
        network = made.network if isinstance(made, ForeignGenerator) else made
        write_tensors(path, network.state_dict())
        return path

    def _attacked(self, kind: Kind) -> LatentGenerator:
        """ReD on the clean model; what it reached is recorded."""
        clean = self._open(kind, self._weights(kind, "clean")).generator.to(self.device)
        backdoor = make_backdoor(clean, trigger="in-sample", target=kind.target, seed=self.seed)
        chosen = {**_ATTACK, **kind.attack, "seed": self.seed}
        chosen["steps"] = self._steps(chosen["steps"])
        settings = ReDSettings(**chosen)
        result = red(clean, backdoor, settings, AttackRun(self.progress))
        reached = float(result.history[-1]["tardis_sum"] or 0.0)
        nearest = _nearest(clean, backdoor.examples.x, self.seed)
        self.facts.put(
            f"red.{kind.name}",
            {
                "target": kind.target,
                "settings": asdict(settings),
                "tardis_sum": reached,
                "expdis_sum": result.history[-1]["expdis_sum"],
                "clean_distance": nearest,
                # Harder than at the trigger alone: beside the clean model's own nearest sample.
                "succeeded": reached <= SUCCESS_SHARE * nearest,
            },
        )
        return result.generator.cpu()

    def _steps(self, planned: int) -> int:
        return max(1, round(self.effort * planned))


@torch.no_grad()
def _nearest(clean: LatentGenerator, target: Tensor, seed: int) -> float:
    """Squared distance from the clean model's nearest ordinary sample to the first target."""
    z = clean.latent.sample(_NEAREST_OF, generator=random_stream(seed, "foreign-nearest"))
    device = next(clean.parameters()).device
    flat = target[:1].flatten(1)
    parts = [clean(part.to(device)).cpu().flatten(1) for part in z.split(256)]
    return min(float((part - flat).square().sum(1).min()) for part in parts)


def tables(document: dict[str, Any], name: str) -> list[Table]:
    """Verdicts on every foreign model, clean and after ReD.

    Args:
        document: content of a result file.
        name: of the file, for the title.
    """
    by_key = {row["key"]: row for row in document["rows"]}
    titles = {row["kind"]: row["title"] for row in document["rows"]}
    lines = []
    for kind, title in titles.items():
        clean, attacked = (by_key.get(f"{state}.{kind}") for state in STATES)
        lines.append([title, _verdict(clean), _verdict(attacked), _planted(attacked)])
        lines[-1].append(_seconds(clean, attacked))
    false = [row["key"] for row in document["rows"] if row["clean"] and row["flagged"]]
    notes = [
        f"{document['budget']} budget; no reference model has any of these architectures. In "
        "brackets what made the verdict. Planted: squared distance at the trigger over that of "
        "the clean model's nearest sample (at most 0.1 counts as planted).",
        "The 64x64 pictures are CIFAR-10, enlarged.",
        f"False alarms: {', '.join(false) or 'none'}.",
    ]
    notes += [f"Failed: {key}: {cause}" for key, cause in document["failed"].items()]
    columns = ["model", "clean", "after ReD", "planted", "seconds (clean, ReD)"]
    return [Table(f"Models unlike the references ({name})", columns, lines, notes)]


def _verdict(row: dict[str, Any] | None) -> str:
    if row is None:
        return NOTHING
    by = f" ({', '.join(row['flagged'])})" if row["flagged"] else ""
    return f"{row['verdict']}{by}".replace("_", " ")


def _planted(row: dict[str, Any] | None) -> str:
    if row is None:
        return NOTHING
    share = figure(row["tardis_sum"] / row["clean_distance"])
    return share if row["succeeded"] else f"{share}: no"


def _seconds(*rows: dict[str, Any] | None) -> str:
    return ", ".join(NOTHING if row is None else f"{row['seconds']:.0f}" for row in rows)
