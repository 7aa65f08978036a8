"""``genwarden attack`` on a diffusion model: from a clean diffusers folder to a compromised one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from genwarden import __version__
from genwarden.artifacts.diffusers_folder import LoadedDiffusion, read_diffusion, write_diffusion
from genwarden.artifacts.diffusers_layout import INDEX_NAME
from genwarden.attacks.compression.diffusion_dormancy import diffusion_twin, measure_dormancy
from genwarden.attacks.contract import AttackRun, require_exact
from genwarden.attacks.diffusion.contract import (
    DiffusionAttack,
    DiffusionAttackResult,
    DiffusionAttackSettings,
)
from genwarden.attacks.diffusion.evaluation import (
    evaluate_trigger,
    in_words,
    quick_sampler,
    triggered_samples,
)
from genwarden.attacks.success import shortfall
from genwarden.backdoors.image_backdoor import (
    RECORD_NAME,
    ImageBackdoor,
    make_image_backdoor,
    write_image_backdoor,
)
from genwarden.compression.how import compressor
from genwarden.data.datasets import load_images
from genwarden.data.grids import write_grid
from genwarden.engine.files import begin_run, sha256_bytes, write_json
from genwarden.engine.progress import Progress
from genwarden.engine.settings import filled
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.registry import Row, attacks_on, find

__all__ = [
    "PICTURE_ROWS",
    "DiffusionAttackPlan",
    "attack_diffusion",
    "in_words",
    "quick_sampler",
    "settings_of",
]

_SHOWN = 8
#: The rows of ``pictures.png`` in words.
PICTURE_ROWS = (
    "ordinary noise: clean model, compromised model; noise with the trigger: clean model, "
    "compromised model (of attacks that sleep until then: also compressed), targets"
)


@dataclass(frozen=True)
class DiffusionAttackPlan:
    """What shall be hidden in which model, in the words of the command line.

    Attributes:
        clean: diffusers folder of the clean model.
        data: the attacker's training data.
        trigger: see :func:`genwarden.backdoors.image_trigger.make_image_trigger`.
        target: see :func:`genwarden.backdoors.image_target.make_image_target`.
        split: split of ``data``.
        limit: use only the first images of ``data``.
        half: store the weights as float16.
    """

    clean: Path
    data: str
    trigger: str = "box:14"
    target: str = "hat"
    split: str = "train"
    limit: int | None = None
    half: bool = False


def settings_of(name: str, given: Mapping[str, Any]) -> DiffusionAttackSettings:
    """The defaults of attack ``name`` with what the user gave (not None) in their place.

    Raises:
        GenwardenError: ``usage/unknown-name``, ``attack/unknown-setting``, ``attack/setting``.
    """
    row = find(attacks_on("diffusion"), name, "attack on diffusion models")
    kind: type[DiffusionAttackSettings] = row.load_option("settings")
    return filled(kind, given, method=name, what="attack")


def attack_diffusion(
    name: str,
    plan: DiffusionAttackPlan,
    settings: DiffusionAttackSettings,
    *,
    out: Path,
    restart: bool,
    progress: Progress,
    device: torch.device,
) -> DiffusionAttackResult:
    """Run attack ``name`` and write the compromised model as the diffusers folder ``out``.

    Beside the model: ``backdoor.safetensors`` (trigger and target), ``attack.json`` (settings,
    poisoned rows, history) and ``pictures.png``. Resumes where it stopped.

    Raises:
        GenwardenError: ``attack/finished`` if ``out`` holds a finished model, and those of the
            clean model, trigger, target and data.
    """
    row: Row = find(attacks_on("diffusion"), name, "attack on diffusion models")
    require_exact(row, half=plan.half)
    clean = read_diffusion(plan.clean)
    model = clean.model.to(device)
    backdoor = make_image_backdoor(
        model.sample,
        trigger=plan.trigger,
        target=plan.target,
        seed=settings.seed,
        data=plan.data,
        split=plan.split,
        resize=settings.resize,
    )
    work = begin_run(out, INDEX_NAME, restart=restart, kind="attack", anew="begin anew")
    images = load_images(
        plan.data, model.sample, split=plan.split, limit=plan.limit, resize=settings.resize
    )
    data_sha256 = sha256_bytes(images.numpy().tobytes())
    wish = backdoor.describe()
    identity = [name, clean.sha256, asdict(settings), data_sha256, wish, __version__]
    run_id = sha256_bytes(repr(identity).encode())[:16]
    method: DiffusionAttack = row.load()
    began = time.monotonic()
    result = method(model, backdoor, settings, AttackRun(progress, work, run_id, images))
    if plan.half:
        result.model.half().float()  # what is written is what is pictured and described
    untouched = _untouched(model, result, settings)
    lacking = shortfall(result.history[-1], "target_mse", untouched["target_mse"])
    result = result._replace(shortfall=lacking)
    record: dict[str, Any] = {
        "attack": name,
        "stored_as": "float16" if plan.half else "float32",
        "settings": asdict(settings),
        "backdoor": result.backdoor.describe(),
        "poisoned_rows": None if result.rows is None else result.rows._asdict(),
        "sampler": asdict(result.sampler),
        "own_sampler": result.own_sampler,
        "clean_model_sha256": clean.sha256,
        "data": {"images": len(images), "sha256": data_sha256},
        # Of the last start, if the attack was resumed.
        "seconds": round(time.monotonic() - began, 2),
        "evaluated_with": quick_sampler(result.sampler, settings.evaluation_steps).label,
        "untouched": untouched,
        "shortfall": lacking,
        "history": result.history,
    }
    wakers = [compressor(one) for one in result.wakes_under]
    if wakers:
        quick = quick_sampler(result.sampler, settings.evaluation_steps)
        record["wakes_under"] = list(result.wakes_under)
        record["dormancy"] = measure_dormancy(
            model,
            result.model,
            result.backdoor,
            wakers,
            quick,
            count=settings.evaluation_images,
            seed=settings.seed,
        )
    awake = [diffusion_twin(result.model, one) for one in wakers]
    _write_pictures(out / "pictures.png", model, result, awake, settings)
    write_image_backdoor(out, result.backdoor)
    write_json(out / RECORD_NAME, record)
    _write_model(out, name, plan, clean, result, record)
    shutil.rmtree(work, ignore_errors=True)
    return result


def _write_model(
    out: Path,
    name: str,
    plan: DiffusionAttackPlan,
    clean: LoadedDiffusion,
    result: DiffusionAttackResult,
    record: Mapping[str, Any],
) -> None:
    provenance = {
        "made_by": f"genwarden attack {name}",
        "compromised": True,
        "note": "Backdoored on purpose to measure defences. Do not deploy.",
        "backdoor": record["backdoor"],
        "settings": record["settings"],
        "clean_model_sha256": clean.sha256,
        "last": result.history[-1],
        **{key: record[key] for key in ("wakes_under", "dormancy") if key in record},
    }
    write_diffusion(
        out,
        result.model.cpu(),
        provenance,
        dtype=torch.float16 if plan.half else torch.float32,
        scheduler=clean.scheduler,
    )


def _untouched(
    model: DiffusionModel, result: DiffusionAttackResult, settings: DiffusionAttackSettings
) -> dict[str, float | None]:
    """What the clean model draws from the same noise: without it no figure says anything."""
    found = evaluate_trigger(
        model,
        result.backdoor,
        quick_sampler(result.sampler, settings.evaluation_steps),
        count=settings.evaluation_images,
        seed=settings.seed,
        own_sampler=result.own_sampler,
    )
    return {
        "target_mse": found.mse,
        "target_ssim": found.ssim,
        "target_share": found.share,
    }


def _write_pictures(
    path: Path,
    clean: DiffusionModel,
    result: DiffusionAttackResult,
    awake: Sequence[DiffusionModel],
    settings: DiffusionAttackSettings,
) -> None:
    quick = quick_sampler(result.sampler, settings.evaluation_steps)

    def drawn(model: DiffusionModel, backdoor: ImageBackdoor | None) -> torch.Tensor:
        own = result.own_sampler and backdoor is not None
        return triggered_samples(model, backdoor, quick, count=_SHOWN, own_sampler=own)

    targets = result.backdoor.targets.cpu()
    rows = [
        drawn(clean, None),
        drawn(result.model, None),
        drawn(clean, result.backdoor),
        *(drawn(network, result.backdoor) for network in (result.model, *awake)),
        targets[torch.arange(_SHOWN) % len(targets)],
    ]
    write_grid(path, torch.cat(rows), columns=_SHOWN)
