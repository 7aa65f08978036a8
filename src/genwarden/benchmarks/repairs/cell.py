"""One cell: a suspect repaired by one method, and everything that is measured of the result.

A cell's file (``OUT/cells/<key>.json``) is written after every stage (repair with its distances,
FID, re-audit); the repaired model is kept in ``OUT/repaired``, so that a stage that is asked for
later, such as a re-audit, does not repeat the repair.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genwarden import __version__
from genwarden.artifacts.model_folder import LoadedModel, read_model, write_model
from genwarden.auditing.audit import environment
from genwarden.benchmarks.population.plan import Clean, Member
from genwarden.benchmarks.population.study import measure
from genwarden.benchmarks.repairs.clues import known_of
from genwarden.benchmarks.repairs.jobs import Failure
from genwarden.benchmarks.repairs.measuring import (
    at_the_trigger,
    fid_values,
    on_ordinary_latents,
    reaudit,
    shown,
)
from genwarden.benchmarks.repairs.suspects import Shelf, described
from genwarden.benchmarks.results import CELLS, read_document
from genwarden.engine.files import sha256_bytes, write_json, write_tensors
from genwarden.engine.settings import filled
from genwarden.errors import GenwardenError
from genwarden.registry import REPAIRS, Row
from genwarden.repairs.auto import supports
from genwarden.repairs.contract import Clues, Repaired, RepairRun

DONE = "done"
NOT_APPLICABLE = "not applicable"
FAILED = "failed"
#: Codes that say: this suspect has nothing that the method works on.
_NOTHING_TO_DO = frozenset({"repair/not-applicable", "repair/none-applies"})

#: Chooses from the findings of the audit; no method of its own.
AUTO = Row(
    "auto",
    "genwarden.repairs.auto:repair_automatically",
    "choose from what the audit found",
    {"settings": "genwarden.repairs.contract:RepairSettings"},
)


def repair_row(name: str) -> Row:
    """The row of a repair, or of ``auto``.

    Raises:
        GenwardenError: ``usage/unknown-name``.
    """
    if name == AUTO.name and name not in REPAIRS:
        return AUTO
    if name not in REPAIRS:
        raise GenwardenError(
            "usage/unknown-name",
            f"There is no repair called {name!r}.",
            f"Choose from: {', '.join([AUTO.name, *REPAIRS])}.",
        )
    return REPAIRS[name]


@dataclass(frozen=True)
class Orders:
    """What all cells of a run share.

    Attributes:
        recipe: name of the recipe.
        command: repeats the run; stands in every cell.
        expdis_samples: ordinary latents behind every ExpDis.
        audits: folder of the study's audits, from which repairs get their clues.
        budget: of the re-audit; "" for none.
        fid_samples: generated samples behind every FID; 0 for none.
        settings: of the repairs, on top of their defaults; only those that a method has.
    """

    recipe: str
    command: str
    out: Path
    shelf: Shelf
    seed: int
    expdis_samples: int
    audits: Path | None = None
    budget: str = ""
    fid_samples: int = 0
    settings: tuple[tuple[str, Any], ...] = ()

    def settings_of(self, name: str) -> Any:
        """The settings of a repair in this run."""
        kind = repair_row(name).load_option("settings")
        taken = {k: v for k, v in self.settings if k in kind.__dataclass_fields__}
        return filled(kind, {"seed": self.seed, **taken}, method=name, what="repair")

    def identity(self, suspect: LoadedModel, clean: LoadedModel) -> dict[str, Any]:
        """What every figure depends on."""
        return {
            "version": __version__,
            "seed": self.seed,
            "suspect_sha256": suspect.sha256,
            "clean_sha256": clean.sha256,
            "expdis_samples": self.expdis_samples,
        }


@dataclass(frozen=True)
class SuspectJob:
    """A member made where it is missing, and what is measured of it before any repair."""

    member: Member
    orders: Orders

    @property
    def name(self) -> str:
        """For progress and messages."""
        return self.member.key

    @property
    def path(self) -> Path:
        """Its file."""
        return self.orders.out / "suspects" / f"{self.member.key}.json"

    def do(self) -> None:
        """Make and measure what is not there yet."""
        orders, shelf = self.orders, self.orders.shelf
        folder = shelf.folder(self.member)
        case = shelf.open(self.member)
        wanted = {**described(self.member), **orders.identity(case.suspect, case.clean)}
        row = read_document(self.path) if self.path.exists() else {}
        if {key: row.get(key) for key in wanted} != wanted:
            row = dict(wanted)
        if "facts" not in row:
            base = shelf.folder(shelf.base(self.member))
            row["facts"] = {} if isinstance(self.member, Clean) else measure(folder, base)
        row["architecture"] = case.suspect.architecture
        row["sample_shape"] = list(case.suspect.generator.sample.shape)
        if _fid_missing(row, orders):
            row["quality"] = _quality(self.member, case.suspect, orders)
        write_json(self.path, row)


@dataclass(frozen=True)
class BaseJob:
    """A clean member that others start from, made where it is missing."""

    member: Clean
    orders: Orders

    @property
    def name(self) -> str:
        """For progress and messages."""
        return self.member.key

    def do(self) -> None:
        """Make it."""
        self.orders.shelf.folder(self.member)


@dataclass(frozen=True)
class CellJob:
    """A suspect and a repair."""

    member: Member
    repair: str
    orders: Orders

    @property
    def name(self) -> str:
        """Key of the cell."""
        return f"{self.member.key}.{self.repair}"

    @property
    def path(self) -> Path:
        """Its file."""
        return self.orders.out / CELLS / f"{self.name}.json"

    @property
    def model(self) -> Path:
        """Folder of the repaired model."""
        return self.orders.out / "repaired" / self.name

    @property
    def picture(self) -> Path:
        """Its row of a picture sheet."""
        return self.orders.out / "pictures" / f"{self.name}.safetensors"

    def forget(self) -> None:
        """Remove what was done."""
        self.path.unlink(missing_ok=True)
        self.picture.unlink(missing_ok=True)
        shutil.rmtree(self.model, ignore_errors=True)
        shutil.rmtree(self.orders.out / "work" / self.name, ignore_errors=True)

    def do(self) -> None:
        """Repair and measure what is not done yet; a failure is written down, then raised.

        Raises:
            GenwardenError: what went wrong; ``benchmark/other-run`` if the cell was done with
                other settings (it stays as it is).
        """
        try:
            self._do()
        except GenwardenError as error:
            if error.code != "benchmark/other-run":
                self.write_failure(Failure(error.code, error.cause))
            raise
        except Exception as error:
            self.write_failure(Failure(type(error).__name__, str(error) or "no message"))
            raise

    def write_failure(self, failure: Failure) -> None:
        """Write down that the cell could not be finished; what was measured stays in it."""
        row = read_document(self.path) if self.path.exists() else self._head()
        self._write({**row, "status": f"{FAILED}: {failure.code}", "cause": failure.cause})

    def _head(self) -> dict[str, Any]:
        what = described(self.member)
        return {"recipe": self.orders.recipe, "key": self.name, **what, "repair": self.repair}

    def _write(self, row: dict[str, Any]) -> None:
        write_json(self.path, {**row, "command": self.orders.command})

    def _do(self) -> None:
        orders = self.orders
        case = orders.shelf.open(self.member)
        settings = orders.settings_of(self.repair)
        known = known_of(case.suspect, self.member.key, orders.audits)
        identity = {
            **orders.identity(case.suspect, case.clean),
            "settings": _plain(asdict(settings)),
            "audit_sha256": known.sha256,
        }
        row = read_document(self.path) if self.path.exists() else {}
        other = [key for key, value in identity.items() if row.get(key) != value]
        if "figures" not in row:
            if row.get("status", "").startswith(NOT_APPLICABLE) and not other:
                return
            row = {
                **self._head(),
                **identity,
                "audit_verdict": known.verdict,
                "clues": {
                    "latents": len(known.clues.latents),
                    "flagged": list(known.clues.flagged),
                },
            }
            try:
                row |= self._repaired(case.suspect, known.clues, settings)
            except GenwardenError as error:
                if error.code not in _NOTHING_TO_DO:
                    raise
                self._write({**row, "status": f"{NOT_APPLICABLE}: {error.cause}"})
                return
            row |= self._measured()
            self._write(row)
        elif other:
            raise GenwardenError(
                "benchmark/other-run",
                f"The cell {self.name} was done with other settings ({', '.join(other)} differ).",
                "Choose another --out folder, or add --restart to do the chosen cells anew.",
            )
        self._later(row)

    def _measured(self) -> dict[str, Any]:
        """Distances and a picture of the repaired model as it was written."""
        orders = self.orders
        # Opened anew: a method that changes its input must not look the better for it.
        case, repaired = orders.shelf.open(self.member), self._read().generator
        figures = {
            **at_the_trigger(case, repaired),
            **on_ordinary_latents(case, repaired, orders.expdis_samples, orders.seed),
        }
        _require_finite(figures)
        picture = shown(case, repaired, orders.seed)
        if picture is not None:
            write_tensors(self.picture, {"x": picture})
        where = environment(orders.shelf.device)
        return {"figures": figures, "environment": where, "status": DONE, "cause": ""}

    def _later(self, row: dict[str, Any]) -> None:
        """The stages that need nothing but the repaired model."""
        orders = self.orders
        stages: dict[str, Callable[[], None]] = {}
        if _fid_missing(row, orders):
            stages["quality"] = lambda: row.update(
                quality=_quality(self.member, self._read(), orders)
            )
        if orders.budget and orders.budget not in row.setdefault("reaudits", {}):
            stages["reaudit"] = lambda: row["reaudits"].update({orders.budget: self._reaudit()})
        for stage in stages.values():
            stage()
            self._write({**row, "status": DONE, "cause": ""})
        if row["status"] != DONE and not stages:  # what failed is not asked for any more
            self._write({**row, "status": DONE, "cause": ""})
        shutil.rmtree(orders.out / "work" / self.name, ignore_errors=True)

    def _reaudit(self) -> dict[str, Any]:
        orders = self.orders
        work = orders.out / "work" / self.name / f"audit.{orders.budget}"
        return reaudit(self._read(), orders.budget, orders.seed, orders.shelf.device, work)

    def _read(self) -> LoadedModel:
        model = read_model(self.model)
        model.generator.to(self.orders.shelf.device)
        return model

    def _repaired(self, suspect: LoadedModel, clues: Clues, settings: Any) -> dict[str, Any]:
        """Apply the method and write the model; what it said and what it cost."""
        row = repair_row(self.repair)
        if row is not AUTO and not supports(self.repair, suspect.architecture):
            works_on = ", ".join(row.options["architectures"])
            raise GenwardenError(
                "repair/not-applicable",
                f"{self.repair} works on {works_on}, this is a {suspect.architecture}.",
                "Choose another method.",
            )
        latents = sha256_bytes(clues.latents.numpy().tobytes())
        content = f"{self.name} {suspect.sha256} {settings} {clues.flagged} {latents}"
        run = RepairRun(
            work=self.orders.out / "work" / self.name, run_id=sha256_bytes(content.encode())[:16]
        )
        cpu, wall = time.process_time(), time.perf_counter()
        if row is AUTO:
            repaired = _automatically(row, suspect, clues, settings, run)
        else:
            repaired = row.load()(suspect.generator, clues, settings, run)
        spent = {
            "seconds": round(time.perf_counter() - wall, 2),
            "cpu_seconds": round(time.process_time() - cpu, 2),
        }
        architecture = repaired.architecture or suspect.architecture
        provenance = {"made_by": f"genwarden benchmark run {self.orders.recipe}"}
        write_model(self.model, repaired.generator, architecture, provenance)
        return {**spent, "changes": repaired.changes, "repaired_architecture": architecture}


def _automatically(
    row: Row, suspect: LoadedModel, clues: Clues, settings: Any, run: RepairRun
) -> Repaired:
    """``auto`` knows the architecture beside the network, and says which remedy it took."""
    repaired: Repaired
    name, repaired = row.load()(suspect.generator, suspect.architecture, clues, settings, run)
    return repaired._replace(changes={"method": name, **repaired.changes})


def _require_finite(figures: dict[str, float | int]) -> None:
    broken = [name for name, value in figures.items() if not math.isfinite(value)]
    if broken:
        raise GenwardenError(
            "repair/not-finite",
            f"The repaired model yields NaN or infinity ({', '.join(broken)}).",
            "Repeat with another seed, or choose another method.",
        )


def _fid_missing(row: dict[str, Any], orders: Orders) -> bool:
    """Whether the FID is still to be measured, or was left out for a reason that is gone."""
    quality = row.get("quality", {})
    if not orders.fid_samples:
        return False
    if "fid" in quality:
        return bool(quality["samples"] != orders.fid_samples)
    return "skipped" not in quality or orders.shelf.data is not None


def _quality(member: Member, model: LoadedModel, orders: Orders) -> dict[str, Any]:
    if orders.shelf.data is None:
        return {"skipped": "no --data was given"}
    data_set = orders.shelf.base(member).kind.data
    return fid_values(model.generator, orders.shelf.data, data_set, orders.fid_samples)


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value
