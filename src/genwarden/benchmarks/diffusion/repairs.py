"""Recipe ``diffusion-repairs``: what every repair and run-time defence takes away, and its cost.

    genwarden benchmark run diffusion-repairs --data DATA/mnist --out results/r
        --option models=DIR1+DIR2 --option bases=BASE --option features=mnist

The models are folders of ``genwarden attack`` on diffusion models, which say what was hidden in
them; the bases are the clean models that they were made from (one for all, or one for each). A
repair gets the suspect, the audit of it and nothing else. Measured, under the sampler that the
attack was made for (at most 50 steps of it, so that both sides cost alike):

- target MSE in [0, 1] scale at the **true** trigger: of the suspect, of the clean base, and after;
- FID by our feature network at N samples of the same sampler against the same images of the data
  set, before and after; smaller pictures are enlarged to what the network reads;
- seconds of the repair without audits (of a run-time defence: nothing).

A run-time defence has the suspect's weights; its FID is that of defended samples from plain noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from genwarden.artifacts.diffusers_folder import LoadedDiffusion
from genwarden.auditing.audit import environment
from genwarden.auditing.audit_diffusion import DiffusionRequest, audit_diffusion
from genwarden.auditing.document import AuditDocument
from genwarden.backdoors.image_trigger import without_folder
from genwarden.benchmarks.diffusion.repair_cases import Case, cases_of
from genwarden.benchmarks.diffusion.repair_measures import Measures, drawn, judged, measures_of
from genwarden.benchmarks.repairs.run import command_of
from genwarden.benchmarks.store import write_result
from genwarden.commands.open_suspect import diffusion_suspect_of
from genwarden.engine.files import sha256_bytes
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress
from genwarden.errors import GenwardenError
from genwarden.metrics.target_match import target_match
from genwarden.models.diffusion.defended import Defence
from genwarden.models.diffusion.sampling import SamplerSettings
from genwarden.registry import DIFFUSION_REPAIRS
from genwarden.repairs.diffusion.auto import diffusion_repair_settings, repair_automatically
from genwarden.repairs.diffusion.clues import diffusion_clues_of
from genwarden.repairs.diffusion.contract import (
    DiffusionRepair,
    DiffusionRepairRun,
    DiffusionRepairSettings,
)

AUTO: Final = "auto"

#: Run-time defences by name: a change of the sampler, and what is done to the noise.
DEFENCES: Final[dict[str, tuple[Callable[[SamplerSettings], SamplerSettings], Defence]]] = {
    "clip x0": (lambda sampler: replace(sampler, clip="x0"), Defence()),
    "clip xt": (lambda sampler: replace(sampler, clip="xt"), Defence()),
    "launder 0.5": (lambda sampler: sampler, Defence(launder=0.5)),
    "launder 0.9": (lambda sampler: sampler, Defence(launder=0.9)),
    "whiten": (lambda sampler: sampler, Defence(whiten=True)),
    "random eta": (
        lambda sampler: SamplerSettings("ddim", sampler.steps, clip=sampler.clip),
        Defence(random_eta=True),
    ),
}


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    models: str = "",
    bases: str = "",
    features: str = "mnist",
    budget: str = "quick",
    samples: int = 1000,
    triggered: int = 64,
    repairs: str = "all",
) -> Path:
    """Repair and defend the folders ``models`` (joined by ``+``); resumes one by one.

    Args:
        bases: clean folders, one for all or one for each model.
        features: feature network of the FID.
        budget: of the audits whose clues the repairs get.
        samples: N of the FID.
        triggered: samples at the true trigger.
        repairs: names joined by ``+``, or ``all``.
    """
    cases = cases_of(models, bases)
    wanted = [AUTO, *DIFFUSION_REPAIRS] if repairs == "all" else repairs.split("+")
    if data is None:
        raise GenwardenError(
            "benchmark/data-missing",
            "The recipe diffusion-repairs compares samples with the data set.",
            "Add --data FOLDER of the data that the models were trained on.",
        )
    measures = measures_of(out, data, cases[0], features, samples, triggered, seed, device)
    identity = {
        "seed": seed,
        "budget": budget,
        "samples": samples,
        "triggered": triggered,
        "features": measures.real.network_sha256,
        "real": sha256_bytes(measures.real.features.numpy().tobytes()),
        "bases": [case.base.sha256 for case in cases],
    }
    ledger = Ledger(out / "work", identity)
    rows: list[dict[str, Any]] = []
    for case in cases:
        key = case.loaded.sha256[:16]
        facts = _kept(ledger, f"{key}-facts", partial(_facts, case, measures))
        for name in wanted:
            progress.message(f"== {case.name}: {name} ==")
            audited = partial(_audited, case.loaded, budget, seed, device, out, progress)
            make = partial(_repaired, case, name, audited, measures, out, progress)
            row = _kept(ledger, f"{key}-{name}", make)
            rows.append({"model": case.name, "method": name, "kind": "repair", **facts, **row})
        for name, (change, defence) in DEFENCES.items():
            model, sampler = case.loaded.model, change(case.sampler)
            make = partial(judged, model, case, sampler, defence, measures)
            row = _kept(ledger, f"{key}-{name.replace(' ', '-')}", make)
            rows.append({"model": case.name, "method": name, "kind": "defence", **facts, **row})
    return write_result(
        out / "result.json",
        {
            "recipe": "diffusion-repairs",
            "command": command_of(
                "diffusion-repairs",
                seed,
                "DATA",
                {
                    "models": "+".join(case.name for case in cases),
                    "bases": "BASES",
                    "features": features,
                    "budget": budget,
                    "samples": samples,
                    "triggered": triggered,
                    "repairs": repairs if repairs != "all" else "",
                },
            ),
            "features": features,
            "samples": samples,
            "real_images": len(measures.real.features),
            "triggered": triggered,
            "budget": budget,
            "seed": seed,
            "rows": rows,
            "environment": environment(device),
        },
    )


def _kept(ledger: Ledger, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row of an earlier start, or a new one."""
    row = ledger.get(key)
    if row is None:
        row = make()
        ledger.put(key, row)
    return row


def _facts(case: Case, measures: Measures) -> dict[str, Any]:
    """What the suspect and its clean base draw, undefended."""
    suspect, base = (
        judged(model, case, case.sampler, Defence(), measures)
        for model in (case.loaded.model, case.base.model)
    )
    plain = drawn(
        case.base.model, case, case.sampler, Defence(), measures, measures.triggered, None
    )
    return {
        "trigger": without_folder(case.backdoor.trigger.name),
        "target": case.backdoor.describe()["target"],
        "sampler": case.sampler.label,
        "sampler_settings": asdict(case.sampler),
        "mse_before": suspect["mse"],
        "mse_clean": base["mse"],
        "mse_plain": target_match(plain, case.backdoor.targets).mse,
        "share_before": suspect["share"],
        "fid_before": suspect["fid"],
        "fid_clean": base["fid"],
    }


def _repaired(
    case: Case,
    name: str,
    audited: Callable[[], AuditDocument],
    measures: Measures,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    suspect = case.loaded.model.to(measures.device).eval().requires_grad_(False)
    clues = diffusion_clues_of(audited(), suspect.sample)
    work = out / "work" / f"{case.loaded.sha256[:16]}-{name}"
    run_of = DiffusionRepairRun(progress, work, f"{case.loaded.sha256[:16]}-{measures.seed}")
    began = time.perf_counter()
    try:
        if name == AUTO:
            settings = DiffusionRepairSettings(seed=measures.seed)
            repaired = repair_automatically(suspect, clues, settings, run_of)[1]
        else:
            method: DiffusionRepair = DIFFUSION_REPAIRS[name].load()
            chosen = diffusion_repair_settings(name, {"seed": measures.seed})
            repaired = method(suspect, clues, chosen, run_of)
    except GenwardenError as error:
        if error.code != "repair/not-applicable":
            raise
        return {"error": "does not apply"}
    seconds = time.perf_counter() - began
    found = judged(repaired.model, case, case.sampler, Defence(), measures)
    return {**found, "seconds": round(seconds, 1), "changes": repaired.changes}


def _audited(
    loaded: LoadedDiffusion,
    budget: str,
    seed: int,
    device: torch.device,
    out: Path,
    progress: Progress,
) -> AuditDocument:
    """The audit whose clues the repairs get; finished inspections are kept."""
    return audit_diffusion(
        diffusion_suspect_of(loaded, "suspect"),
        DiffusionRequest(budget=budget, seed=seed, device=device),
        work=out / "audits" / loaded.sha256[:24],
        progress=progress,
    )
