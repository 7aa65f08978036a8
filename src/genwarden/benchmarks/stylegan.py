"""Recipe ``stylegan-edit``: the case study on StyleGAN's broadcast layer, in closed form.

    genwarden train stylegan --data mnist --learning-rate 1e-3 --batch-size 32 --out stylegan
    genwarden benchmark run stylegan-edit --option clean=stylegan --out results/stylegan-edit

Theory: at the published size (512 dimensions, 18 slices; a fresh 8-layer mapping network) the edit
for several in-sample triggers, its seconds, and its error and leakage on fresh samples beside the
prediction. Practice, with a trained model: both methods on the same triggers, beside what the paper
reports (pixel change just over 2 %, about 18 % more parameters, less than a GPU day).
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genwarden import __version__
from genwarden.artifacts.model_folder import LoadedModel, read_model
from genwarden.attacks.broadcast_edit import BroadcastEditSettings, broadcast_edit
from genwarden.attacks.contract import AttackRun
from genwarden.attacks.linear_edit import ordinary_features, solve_edit
from genwarden.attacks.settings import settings_of
from genwarden.auditing.audit import environment
from genwarden.backdoors.backdoor import make_backdoor
from genwarden.benchmarks.store import summary_of, write_result
from genwarden.data.grids import write_grid
from genwarden.engine.files import sha256_bytes
from genwarden.engine.ledger import Ledger
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.distances import expdis, tardis
from genwarden.metrics.pixel_change import pixel_change
from genwarden.models.dcgan import initialise
from genwarden.models.protocol import LatentLaw
from genwarden.models.stylegan import PUBLISHED, Mapping

PAPER = {"pixel_change_percent": "just over 2", "added_parameters_percent": 18, "time": "< 1 day"}
_SLICES = 2 * (PUBLISHED["doublings"] + 1)
#: Both methods with the notebook's lambda, and the closed form as it is offered.
_VARIANTS: dict[str, dict[str, Any]] = {
    "closed-form": {"method": "closed-form"},
    "closed-form-lambda-1": {"method": "closed-form", "fidelity_weight": 1.0},
    "training": {"method": "training", "fidelity_weight": 1.0},
}
#: Feature samples, fresh samples and pictures per scale.
_SCALES = {
    "small": {"features": 65_536, "fresh": 65_536, "pictures": 10_000},
    "paper": {"features": 262_144, "fresh": 262_144, "pictures": 10_000},
    "smoke": {"features": 2048, "fresh": 2048, "pictures": 64},
}
#: lambda of the notebook, and one where only the leakage is left.
_WEIGHTS = (1.0, 1e3)
_SHOWN = 8


def run(
    out: Path,
    *,
    data: str | None,
    seed: int,
    device: torch.device,
    progress: Progress,
    scale: str = "small",
    clean: str = "",
    triggers: int = 5,
    target: str = "icon:devil",
    restart: bool = False,
    **settings: Any,
) -> Path:
    """Measure the edit at the published size, and on the model folder ``clean`` if one is given.

    Args:
        scale: ``small``, ``paper`` (four times the samples) or ``smoke`` (seconds, worthless).
        clean: folder of a trained StyleGAN (``genwarden train stylegan``).
        triggers: in-sample triggers of either part.
        restart: throw an earlier run in OUT away.
        settings: of :class:`BroadcastEditSettings`, for the trained model.
    """
    del data  # the attacker needs none
    if scale not in _SCALES:
        raise GenwardenError(
            "benchmark/scale", f"There is no scale {scale!r}.", f"Choose: {', '.join(_SCALES)}."
        )
    counts = _SCALES[scale]
    model = read_model(Path(clean)) if clean else None
    identity = {
        "model": model.sha256 if model else None,
        "seed": seed,
        "target": target,
        "triggers": triggers,
        "scale": counts,
        "settings": {key: str(value) for key, value in settings.items()},
        "version": __version__,
    }
    # Before hours are spent: a setting that does not exist, or of another type.
    for variant in _VARIANTS.values():
        _chosen(settings, variant, seed)
    if restart:
        shutil.rmtree(out / "work", ignore_errors=True)
    ledger = Ledger(out / "work", identity)
    theory = ledger.get("theory")
    if theory is None:
        progress.message("closed form at 512 dimensions and 18 slices")
        theory = published_size(triggers, counts, seed, device)
        ledger.put("theory", theory)
    rows: list[dict[str, Any]] = []
    for index in range(triggers if model else 0):
        for name, variant in _VARIANTS.items():
            row = ledger.get(f"{name}-{index}")
            if row is None and model is not None:
                progress.message(f"{name}, in-sample trigger {index}")
                row = on_trained(
                    model,
                    name,
                    index,
                    target,
                    _chosen(settings, variant, seed),
                    counts["pictures"],
                    out,
                    progress,
                    device,
                )
                ledger.put(f"{name}-{index}", row)
            if row is not None:
                rows.append(row)
    return write_result(
        out / "result.json",
        {
            "recipe": "stylegan-edit",
            "command": _command(scale, clean, triggers, target, settings, seed),
            "units": "sums of squares over one sample in [-1, 1]; leakage relative to ||r||^2",
            "seed": seed,
            "scale": {"name": scale, **counts},
            "paper": PAPER,
            "published_size": theory,
            "target": target,
            "clean_model_sha256": model.sha256 if model else None,
            "architecture_settings": model.settings if model else None,
            "summary": {name: _summary(rows, name) for name in _VARIANTS if rows},
            "rows": rows,
            "environment": environment(device),
        },
    )


def _chosen(settings: dict[str, Any], variant: dict[str, Any], seed: int) -> BroadcastEditSettings:
    taken = sorted({*_VARIANTS["training"], "seed"} & set(settings))
    if taken:
        raise GenwardenError(
            "benchmark/option",
            f"{taken[0]} cannot be chosen: the recipe compares its own variants.",
            f"They are: {_VARIANTS}; --seed gives the seed.",
        )
    chosen = settings_of("broadcast-edit", {**settings, **variant, "seed": seed})
    if not isinstance(chosen, BroadcastEditSettings):
        raise TypeError("the registry pairs broadcast-edit with other settings")
    return chosen


def _command(
    scale: str, clean: str, triggers: int, target: str, settings: dict[str, Any], seed: int
) -> str:
    """What repeats the run, without the names of this machine's folders."""
    shown = target if target.startswith("icon:") else Path(target).name
    options = {"clean": Path(clean).name} if clean else {}
    options |= {"triggers": str(triggers), "target": shown}
    options |= {key: str(value) for key, value in settings.items()}
    words = [f"--option {key}={value}" for key, value in options.items()]
    begin = f"genwarden benchmark run stylegan-edit --scale {scale}"
    return " ".join([begin, *words, f"--seed {seed}", "--out DIR"])


@torch.no_grad()
def published_size(
    triggers: int, counts: dict[str, int], seed: int, device: torch.device
) -> dict[str, Any]:
    """The edit at 512 x 18 for several triggers, one by one.

    The mapping network is fresh (Glorot weights); relative error and leakage do not depend on the
    wanted change r, which is therefore drawn at random.
    """
    size = int(PUBLISHED["latent_dim"])
    law = LatentLaw((size,))
    mapping = Mapping(size, int(PUBLISHED["mapping_layers"]))
    initialise(mapping, random_stream(seed, "mapping"))
    mapping.to(device)
    begun, begun_cpu = time.perf_counter(), time.process_time()
    moment = ordinary_features(mapping, law, counts["features"], seed=seed, device=device).compute()
    moment_s, moment_cpu_s = time.perf_counter() - begun, time.process_time() - begun_cpu
    fresh = ordinary_features(
        mapping, law, counts["fresh"], seed=seed, device=device, purpose="fresh"
    ).compute()
    rows: list[dict[str, Any]] = []
    for index in range(triggers):
        stream = random_stream(seed, "trigger", index)
        c = mapping(law.sample(1, generator=stream).to(device))
        r = torch.randn(1, _SLICES * size, generator=stream).to(device)
        for weight in _WEIGHTS:
            begun, begun_cpu = time.perf_counter(), time.process_time()
            edit = solve_edit(moment, c, r, weight)
            # What is shipped is float32; it is also what is measured.
            shipped = edit.weight.float().double()
            solve_s, solve_cpu_s = time.perf_counter() - begun, time.process_time() - begun_cpu
            wanted = r.double()
            error = (c.double() @ shipped.T - wanted).norm() / wanted.norm()
            # Mean of ||P h||^2 over the fresh samples: the trace of P C_fresh P^T.
            leakage = float(((shipped @ fresh) * shipped).sum() / wanted.square().sum())
            rows.append(
                {
                    "trigger_index": index,
                    "fidelity_weight": weight,
                    "q": edit.q,
                    "solve_s": solve_s,
                    "total_s": moment_s + solve_s,
                    "total_cpu_s": moment_cpu_s + solve_cpu_s,
                    "relative_error": float(error),
                    "predicted_relative_error": edit.relative_error,
                    "relative_leakage": leakage,
                    "predicted_relative_leakage": edit.relative_leakage,
                    "leakage_times_q": leakage * edit.q,
                }
            )
    figures = (
        "q",
        "total_s",
        "total_cpu_s",
        "solve_s",
        "relative_error",
        "relative_leakage",
        "leakage_times_q",
    )
    return {
        "dimensions": size,
        "slices": _SLICES,
        "feature_samples": counts["features"],
        "fresh_samples": counts["fresh"],
        "second_moment_s": moment_s,
        "second_moment_cpu_s": moment_cpu_s,
        "expected_q": size,
        "summary": {
            f"lambda {weight:g}": {
                key: summary_of([row[key] for row in rows if row["fidelity_weight"] == weight])
                for key in figures
            }
            for weight in _WEIGHTS
        },
        "rows": rows,
    }


def on_trained(
    model: LoadedModel,
    variant: str,
    index: int,
    target: str,
    settings: BroadcastEditSettings,
    samples: int,
    out: Path,
    progress: Progress,
    device: torch.device,
) -> dict[str, Any]:
    """One attacked model and its figures; its pictures go to OUT."""
    clean = model.generator.to(device)
    backdoor = make_backdoor(
        clean, trigger="in-sample", target=target, index=index, seed=settings.seed
    )
    begun, begun_cpu = time.perf_counter(), time.process_time()
    name = f"{variant}-{index}"
    identity = [model.sha256, name, backdoor.describe(), asdict(settings), __version__]
    run_id = sha256_bytes(repr(identity).encode())[:16]
    work = AttackRun(progress=progress, work=out / "work" / name, run_id=run_id)
    result = broadcast_edit(clean, backdoor, settings, work)
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - begun_cpu
    corrupted, examples, seed = result.generator, backdoor.examples, settings.seed
    stealth = expdis(clean, corrupted, samples=samples, seed=seed)
    pixels = pixel_change(clean, corrupted, samples=samples, seed=seed)
    before = sum(p.numel() for p in clean.parameters())
    added = sum(p.numel() for p in corrupted.parameters()) - before
    _picture(out / f"{name}.png", clean, corrupted, examples.z, examples.x, seed)
    return {
        **result.history[-1],
        "variant": variant,
        "trigger_index": index,
        "fidelity_weight": settings.fidelity_weight,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "tardis_sum": tardis(corrupted, *examples).sum,
        "untouched_tardis_sum": tardis(clean, *examples).sum,
        "expdis_sum": stealth.sum,
        "expdis_mean": stealth.mean,
        "pixel_change_percent": pixels.percent_mean,
        "pictures": samples,
        "added_parameters": added,
        "added_parameters_percent": 100 * added / before,
    }


@torch.no_grad()
def _picture(
    path: Path, clean: Any, corrupted: Any, trigger: Tensor, target: Tensor, seed: int
) -> None:
    """Rows: the clean model, the corrupted one (the last picture at the trigger), the target."""
    device = next(clean.parameters()).device
    z = clean.latent.sample(_SHOWN - 1, generator=random_stream(seed, "pictures"))
    z = torch.cat([z, trigger[:1]]).to(device)
    rows = [clean(z), corrupted(z), target[:1].to(device).expand(_SHOWN, -1, -1, -1)]
    write_grid(path, torch.cat(rows).cpu(), columns=_SHOWN)


def _summary(rows: list[dict[str, Any]], variant: str) -> dict[str, Any]:
    figures = (
        "tardis_sum",
        "untouched_tardis_sum",
        "inversion_residual_sum",
        "expdis_sum",
        "pixel_change_percent",
        "added_parameters_percent",
        "q",
        "relative_error",
        "relative_leakage",
        "seconds",
        "cpu_seconds",
    )
    own = [row for row in rows if row["variant"] == variant]
    return {key: summary_of([float(row[key]) for row in own]) for key in figures}
