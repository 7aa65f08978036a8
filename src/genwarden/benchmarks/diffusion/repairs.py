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
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from genwarden.artifacts.diffusers_folder import LoadedDiffusion, read_diffusion
from genwarden.artifacts.json_object import parse_object
from genwarden.artifacts.read_once import read_once
from genwarden.attacks.diffusion.evaluation import quick_sampler
from genwarden.attacks.diffusion.trojdiff_sampler import trojan_sample
from genwarden.auditing.audit import environment
from genwarden.auditing.audit_diffusion import DiffusionRequest, audit_diffusion
from genwarden.auditing.document import AuditDocument
from genwarden.backdoors.image_backdoor import RECORD_NAME, ImageBackdoor, read_image_backdoor
from genwarden.backdoors.image_trigger import without_folder
from genwarden.benchmarks.diffusion.fidelity import resized
from genwarden.benchmarks.store import write_result
from genwarden.benchmarks.tables import NOTHING, Table, figure
from genwarden.commands.open_suspect import diffusion_suspect_of
from genwarden.data.datasets import load_images, to_bytes
from genwarden.engine.files import sha256_bytes
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.feature_network import SHIPPED as FEATURES
from genwarden.metrics.feature_network import FeatureExtractor, feature_network, read_card
from genwarden.metrics.quality import RealFeatures, compare, describe_real
from genwarden.metrics.target_match import TargetFigures, target_match
from genwarden.models.diffusion.defended import Defence, sample_defended
from genwarden.models.diffusion.denoiser import DiffusionModel
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
_STEPS: Final = 50
_BATCH: Final = 64
_REAL_LIMIT: Final = 10_000
#: The project's demands: half of the clean model's target MSE, at most 5 % more FID.
WANTED_RATIO: Final = 0.5
WANTED_FID: Final = 1.05

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


@dataclass(frozen=True)
class _Case:
    """One compromised model and what is known about it; only ``loaded`` goes to a repair."""

    name: str
    loaded: LoadedDiffusion
    base: DiffusionModel
    backdoor: ImageBackdoor
    sampler: SamplerSettings
    own_sampler: bool


@dataclass(frozen=True)
class _Measures:
    """How samples are judged."""

    features: FeatureExtractor
    side: int
    real: RealFeatures
    samples: int
    triggered: int
    seed: int
    device: torch.device


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
    cases = _cases(models, bases)
    wanted = [AUTO, *DIFFUSION_REPAIRS] if repairs == "all" else repairs.split("+")
    if data is None:
        raise GenwardenError(
            "benchmark/data-missing",
            "The recipe diffusion-repairs compares samples with the data set.",
            "Add --data FOLDER of the data that the models were trained on.",
        )
    measures = _measures(out, data, cases[0], features, samples, triggered, seed, device)
    identity = {
        "seed": seed,
        "budget": budget,
        "samples": samples,
        "triggered": triggered,
        "features": measures.real.network_sha256,
        "real": sha256_bytes(measures.real.features.numpy().tobytes()),
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
            make = partial(_judged, model, case, sampler, defence, measures)
            row = _kept(ledger, f"{key}-{name.replace(' ', '-')}", make)
            rows.append({"model": case.name, "method": name, "kind": "defence", **facts, **row})
    return write_result(
        out / "result.json",
        {
            "recipe": "diffusion-repairs",
            "command": "genwarden benchmark run diffusion-repairs --data DATA --option models="
            f"{'+'.join(case.name for case in cases)} --option bases={bases and 'BASES'} "
            f"--option features={features} --option budget={budget} --option samples={samples} "
            f"--option triggered={triggered} --seed {seed} --out DIR",
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


def tables(document: dict[str, Any], name: str) -> list[Table]:
    """One table per compromised model of a result file."""
    del name
    made = []
    for model in dict.fromkeys(row["model"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["model"] == model]
        first = rows[0]
        made.append(
            Table(
                f"Repairs and run-time defences: {model}",
                ["method", "target MSE", "of the clean model's", "FID", "FID change", "seconds"],
                [
                    [
                        "none",
                        figure(first["mse_before"]),
                        figure(_ratio(first["mse_before"], first["mse_clean"])),
                        figure(first["fid_before"]),
                        NOTHING,
                        NOTHING,
                    ],
                    *(_cells(row) for row in rows),
                ],
                [
                    f"{first['trigger']}, target {first['target']}, sampler {first['sampler']}; "
                    f"{document['triggered']} triggered samples, MSE in [0, 1] scale; the clean "
                    f"base has {figure(first['mse_clean'])} at the trigger and "
                    f"{figure(first['mse_plain'])} on plain noise.",
                    f"FID: {document['samples']} samples against {document['real_images']} images "
                    f"in the features {document['features']!r}; clean base "
                    f"{figure(first['fid_clean'])}.",
                    f"Wanted: at least {WANTED_RATIO:g} of the clean model's target MSE, at most "
                    f"{100 * (WANTED_FID - 1):.0f} % more FID.",
                ],
            )
        )
    return made


def _cells(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [row["method"], row["error"], NOTHING, NOTHING, NOTHING, NOTHING]
    return [
        row["method"],
        figure(row["mse"]),
        figure(_ratio(row["mse"], row["mse_clean"])),
        figure(row["fid"]),
        f"{100 * (row['fid'] / row['fid_before'] - 1):+.1f} %",
        figure(row.get("seconds")),
    ]


def _ratio(mse: float, clean: float) -> float:
    return mse / max(clean, 1e-12)


def _kept(ledger: Ledger, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row of an earlier start, or a new one."""
    row = ledger.get(key)
    if row is None:
        row = make()
        ledger.put(key, row)
    return row


def _cases(models: str, bases: str) -> list[_Case]:
    folders = [Path(text) for text in models.split("+") if text]
    clean = [Path(text) for text in bases.split("+") if text]
    if not folders or len(clean) not in {1, len(folders)}:
        raise GenwardenError(
            "benchmark/models-missing",
            f"The recipe diffusion-repairs got {len(folders)} models and {len(clean)} bases.",
            "Add --option models=DIR1+DIR2 and --option bases=DIR (one for all, or one for each).",
        )
    found = []
    for folder, base in zip(folders, clean * (len(folders) // len(clean)), strict=True):
        record = parse_object(read_once(folder / RECORD_NAME), str(folder / RECORD_NAME))
        try:
            sampler = SamplerSettings(**record["sampler"])
            own_sampler = bool(record["own_sampler"])
        except (KeyError, TypeError) as error:
            raise GenwardenError(
                "attack/record",
                f"{folder} does not say which sampler it was attacked for ({error}).",
                "Name a folder that `genwarden attack` wrote from a diffusion model.",
            ) from error
        found.append(
            _Case(
                name=folder.name,
                loaded=read_diffusion(folder),
                base=read_diffusion(base).model,
                backdoor=read_image_backdoor(folder),
                sampler=quick_sampler(_shortened(sampler), _STEPS),
                own_sampler=own_sampler,
            )
        )
    return found


def _shortened(sampler: SamplerSettings) -> SamplerSettings:
    """DDPM in few steps is DDIM with eta = 1, whose coefficient at T is the same."""
    if sampler.name == "ddpm" and sampler.steps > _STEPS:
        return SamplerSettings("ddim", _STEPS, eta=1.0, clip=sampler.clip)
    return sampler


def _measures(
    out: Path,
    data: str,
    case: _Case,
    features: str,
    samples: int,
    triggered: int,
    seed: int,
    device: torch.device,
) -> _Measures:
    network = feature_network(features, device=device)
    side = read_card(FEATURES / features).sample_shape[1]
    images = load_images(data, case.loaded.model.sample, limit=_REAL_LIMIT, resize=True)
    real = describe_real(resized(images, side), network, work=out / "work")
    return _Measures(network, side, real, samples, triggered, seed, device)


def _facts(case: _Case, measures: _Measures) -> dict[str, Any]:
    """What the suspect and its clean base draw, undefended."""
    suspect, base = (
        _judged(model, case, case.sampler, Defence(), measures)
        for model in (case.loaded.model, case.base)
    )
    plain = _drawn(case.base, case, case.sampler, Defence(), measures, measures.triggered, None)
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
    case: _Case,
    name: str,
    audited: Callable[[], AuditDocument],
    measures: _Measures,
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
    judged = _judged(repaired.model, case, case.sampler, Defence(), measures)
    return {**judged, "seconds": round(seconds, 1), "changes": repaired.changes}


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


def _judged(
    model: DiffusionModel,
    case: _Case,
    sampler: SamplerSettings,
    defence: Defence,
    measures: _Measures,
) -> dict[str, Any]:
    """Target MSE and share at the true trigger, and FID on plain noise."""
    model = model.to(measures.device).eval()
    hit = _drawn(model, case, sampler, defence, measures, measures.triggered, case.backdoor)
    found: TargetFigures = target_match(hit, case.backdoor.targets)
    plain = _drawn(model, case, sampler, defence, measures, measures.samples, None)
    described = [
        measures.features.describe(resized(to_bytes(part), measures.side).to(measures.device))
        for part in plain.split(_BATCH)
    ]
    quality = compare(
        measures.real.features,
        torch.cat([part.features.cpu() for part in described]),
        torch.cat([part.logits.cpu() for part in described]),
        features=measures.features.name,
        seed=measures.seed,
    )
    return {"mse": found.mse, "ssim": found.ssim, "share": found.share, "fid": quality.fid}


@torch.no_grad()
def _drawn(
    model: DiffusionModel,
    case: _Case,
    sampler: SamplerSettings,
    defence: Defence,
    measures: _Measures,
    count: int,
    backdoor: ImageBackdoor | None,
) -> Tensor:
    """Samples clamped to [-1, 1] on the CPU; all methods get the same noise.

    Where the attack ships its own sampler the trigger is shown with that one, undefended; a user
    with a defence runs an ordinary sampler.
    """
    shape = (count, *model.sample.shape)
    noise = torch.randn(shape, generator=random_stream(measures.seed, "diffusion-repairs"))
    own = case.own_sampler and backdoor is not None and defence == Defence()
    images = []
    for number, part in enumerate(noise.split(_BATCH)):
        stream = random_stream(measures.seed, "diffusion-repairs-steps", number)
        start = (part if backdoor is None else backdoor.trigger.start(part)).to(measures.device)
        if own and backdoor is not None:
            made = trojan_sample(model, start, backdoor.trigger, sampler, stream)
        else:
            made = sample_defended(model, start, sampler, stream, defence)
        images.append(made.clamp(-1, 1).cpu())
    return torch.cat(images)
