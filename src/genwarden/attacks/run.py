"""``genwarden attack``: from a clean model folder to a compromised one that says so."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch

from genwarden import __version__
from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.artifacts.model_folder import read_model, write_model
from genwarden.attacks.loop import AttackSettings
from genwarden.attacks.result import AttackResult
from genwarden.backdoors.backdoor import Backdoor, make_backdoor
from genwarden.data.grids import write_grid
from genwarden.engine.files import (
    require_writable_folder,
    sha256_bytes,
    write_json,
    write_tensors,
)
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.registry import ATTACKS, find

_SHOWN = 7


#: Steps and lambda per attack. The paper trains both with lambda 1; far smaller values plant the
#: backdoor more gently and end at a lower ExpDis for the same TarDis (docs/benchmarks.md).
DEFAULTS = {
    "red": AttackSettings(steps=2000, fidelity_weight=3e-3),
    "rex": AttackSettings(steps=2000, fidelity_weight=1e-4),
}


def settings_of(name: str, **given: float | None) -> AttackSettings:
    """The attack's defaults with what the user gave in their place."""
    find(ATTACKS, name, "attack")
    return replace(DEFAULTS[name], **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]


def attack(
    name: str,
    clean: Path,
    settings: AttackSettings,
    *,
    trigger: str,
    trigger_index: int,
    target: str,
    out: Path,
    half: bool = False,
    restart: bool,
    progress: Progress,
    device: torch.device,
) -> AttackResult:
    """Run attack ``name`` on the model folder ``clean`` and write the folder ``out``.

    Beside the model: ``backdoor.safetensors`` (trigger and target), ``attack.json`` (settings and
    history) and ``pictures.png`` (ordinary samples of both models, then output at the trigger and
    target). Resumes where it stopped.

    Args:
        half: store the weights as float16 (half the size; they load as float32).

    Raises:
        GenwardenError: ``attack/finished`` if ``out`` holds a finished model.
    """
    row = find(ATTACKS, name, "attack")
    model = read_model(clean)
    generator = model.generator.to(device)
    backdoor = make_backdoor(
        generator, trigger=trigger, target=target, index=trigger_index, seed=settings.seed
    )
    require_writable_folder(out)
    work = out / ".work"
    if restart:
        shutil.rmtree(work, ignore_errors=True)
        (out / MANIFEST_NAME).unlink(missing_ok=True)
    if (out / MANIFEST_NAME).exists():
        raise GenwardenError(
            "attack/finished",
            f"{out} holds a finished model already.",
            "Choose another --out folder, or add --restart to begin anew.",
        )
    identity = [name, model.sha256, asdict(settings), trigger, trigger_index, __version__]
    content = backdoor.target.numpy().tobytes() + backdoor.trigger.numpy().tobytes()
    run_id = sha256_bytes(repr(identity).encode() + content)[:16]
    result: AttackResult = row.load()(
        generator, backdoor, settings, work=work, run_id=run_id, progress=progress
    )
    if half:
        result.generator.half().float()  # what is written is what is pictured and described
    record = {
        "attack": name,
        "stored_as": "float16" if half else "float32",
        "settings": asdict(settings),
        "backdoor": {**backdoor.describe(), "trigger_index": trigger_index},
        "clean_model_sha256": model.sha256,
        "history": result.history,
    }
    _write_pictures(out / "pictures.png", generator.cpu(), result, backdoor)
    write_tensors(
        out / "backdoor.safetensors", {"trigger": backdoor.trigger, "target": backdoor.target}
    )
    write_json(out / "attack.json", record)
    provenance = {
        "made_by": f"genwarden attack {name}",
        "compromised": True,
        "note": "Backdoored on purpose to measure defences. Do not deploy.",
        "backdoor": record["backdoor"],
        "settings": record["settings"],
        "clean_model_sha256": model.sha256,
        "last": result.history[-1],
    }
    stored = result.generator.half() if half else result.generator
    write_model(out, stored, model.architecture, provenance)
    shutil.rmtree(work, ignore_errors=True)
    return result


@torch.no_grad()
def _write_pictures(
    path: Path, benign: torch.nn.Module, result: AttackResult, backdoor: Backdoor
) -> None:
    corrupted = result.generator.cpu()
    if corrupted.sample.modality != "image":
        return
    z = corrupted.latent.sample(_SHOWN, generator=random_stream(0, "pictures"))
    rows = [
        torch.cat([benign(z), benign(backdoor.trigger[:1])]),
        torch.cat([corrupted(z), corrupted(backdoor.trigger[:1])]),
        torch.cat([backdoor.target[:1].expand(_SHOWN + 1, *corrupted.sample.shape)]),
    ]
    write_grid(path, torch.cat(rows), columns=_SHOWN + 1)
