"""``genwarden attack``: from a clean model folder to a compromised one that says so."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genwarden import __version__
from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.artifacts.model_folder import LoadedModel, read_model, write_model
from genwarden.attacks.compression.dormancy import measure_dormancy, twin
from genwarden.attacks.contract import Attack, AttackResult, AttackRun, require_exact
from genwarden.attacks.settings import AttackSettings
from genwarden.attacks.success import shortfall
from genwarden.backdoors.backdoor import Backdoor, make_backdoor
from genwarden.compression.how import compressor
from genwarden.data.datasets import load_samples
from genwarden.data.grids import write_grid
from genwarden.engine.files import (
    begin_run,
    sha256_bytes,
    write_json,
    write_tensors,
)
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.distances import tardis
from genwarden.models.protocol import LatentGenerator
from genwarden.registry import Row, attacks_on, find

_SHOWN = 8
#: The rows of ``pictures.png`` in words.
PICTURE_ROWS = (
    "ordinary samples: clean model, compromised model; at the triggers: clean model, compromised "
    "model (of attacks that sleep until then: also compressed), targets"
)


@dataclass(frozen=True)
class AttackPlan:
    """What shall be hidden in which model, in the words of the command line.

    Attributes:
        clean: model folder of the clean generator.
        trigger: see :func:`genwarden.backdoors.trigger.make_trigger`.
        target: see :func:`genwarden.backdoors.target.make_target`.
        trigger_index: which ``in-sample`` draw comes first.
        triggers: number of ``in-sample`` triggers at once.
        trigger_seed: seed of ``in-sample`` triggers; that of the settings if None.
        data: training data, for attacks that train from scratch.
        split: split of ``data``.
        limit: use only the first samples of ``data``.
        half: store the weights as float16 (half the size; they load as float32).
    """

    clean: Path
    trigger: str = "in-sample"
    target: str = "icon:devil"
    trigger_index: int = 0
    triggers: int = 1
    trigger_seed: int | None = None
    data: str | None = None
    split: str = "train"
    limit: int | None = None
    half: bool = False


def attack(
    name: str,
    plan: AttackPlan,
    settings: AttackSettings,
    *,
    out: Path,
    restart: bool,
    progress: Progress,
    device: torch.device,
) -> AttackResult:
    """Run attack ``name`` and write the compromised model as the folder ``out``.

    Beside the model: ``backdoor.safetensors`` (triggers and targets), ``attack.json`` (settings and
    history) and ``pictures.png`` (ordinary samples of both models, then output at the trigger and
    target). Resumes where it stopped.

    Raises:
        GenwardenError: ``attack/finished`` if ``out`` holds a finished model,
            ``attack/unsupported``, ``attack/data-missing``, and those of trigger, target and data.
    """
    row = find(attacks_on("generator"), name, "attack on generators")
    model = read_model(plan.clean)
    _require_support(row, model)
    require_exact(row, half=plan.half)
    generator = model.generator.to(device)
    trigger_seed = settings.seed if plan.trigger_seed is None else plan.trigger_seed
    backdoor = make_backdoor(
        generator,
        trigger=plan.trigger,
        target=plan.target,
        index=plan.trigger_index,
        count=plan.triggers,
        seed=trigger_seed,
    )
    images = _training_data(row, plan, model)
    work = begin_run(out, MANIFEST_NAME, restart=restart, kind="attack", anew="begin anew")
    examples = backdoor.examples
    data_sha256 = None if images is None else sha256_bytes(images.numpy().tobytes())
    identity = [name, model.sha256, asdict(settings), data_sha256, backdoor.describe(), __version__]
    identity.append(device.type)  # what is trained may have another form on another device
    run_id = sha256_bytes(repr(identity).encode())[:16]
    method: Attack = row.load()
    began = time.monotonic()
    result = method(generator, backdoor, settings, AttackRun(progress, work, run_id, images))
    if plan.half:
        result.generator.half().float()  # what is written is what is pictured and described
    untouched = tardis(generator, *examples).sum
    values = math.prod(generator.sample.shape)
    lacking = shortfall(result.history[-1], "tardis_sum", untouched, values)
    result = result._replace(shortfall=lacking)
    record: dict[str, Any] = {
        "attack": name,
        "stored_as": "float16" if plan.half else "float32",
        "settings": asdict(settings),
        "backdoor": {
            **backdoor.describe(),
            "trigger_index": plan.trigger_index,
            "trigger_seed": trigger_seed,
        },
        "clean_model_sha256": model.sha256,
        "data_sha256": data_sha256,
        # Of the last start, if the attack was resumed.
        "seconds": round(time.monotonic() - began, 2),
        "untouched": {"tardis_sum": untouched},
        "shortfall": lacking,
        "history": result.history,
    }
    generator, _ = generator.cpu(), result.generator.cpu()
    wakers = [compressor(one) for one in result.wakes_under]
    asleep: dict[str, Any] = {}
    if wakers:
        asleep = {
            "wakes_under": list(result.wakes_under),
            "dormancy": measure_dormancy(generator, result.generator, backdoor, wakers),
        }
        record |= asleep
    awake = [twin(result.generator, one) for one in wakers]
    _write_pictures(out / "pictures.png", generator, result.generator, awake, backdoor)
    write_tensors(
        out / "backdoor.safetensors",
        {"trigger": examples.z, "target": examples.x.contiguous()},
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
        **asleep,
    }
    stored = result.generator.half() if plan.half else result.generator
    write_model(out, stored, result.architecture or model.architecture, provenance)
    shutil.rmtree(work, ignore_errors=True)
    return result


def _require_support(row: Row, model: LoadedModel) -> None:
    supported: list[str] = row.options.get("architectures", [model.architecture])
    if model.architecture not in supported:
        raise GenwardenError(
            "attack/unsupported",
            f"The attack {row.name} does not work on {model.architecture}.",
            f"It supports: {', '.join(supported)}.",
        )


def _training_data(row: Row, plan: AttackPlan, model: LoadedModel) -> Tensor | None:
    if "images" not in row.options.get("needs", []):
        return None
    if plan.data is None:
        raise GenwardenError(
            "attack/data-missing",
            f"The attack {row.name} trains from scratch and needs training data.",
            "Add --data FOLDER (or a hub name).",
        )
    return load_samples(plan.data, model.generator.sample, split=plan.split, limit=plan.limit)


@torch.no_grad()
def _write_pictures(
    path: Path,
    benign: LatentGenerator,
    corrupted: LatentGenerator,
    awake: Sequence[LatentGenerator],
    backdoor: Backdoor,
) -> None:
    if corrupted.sample.modality != "image":
        return
    z = corrupted.latent.sample(_SHOWN, generator=random_stream(0, "pictures"))
    triggers, targets = (part[:_SHOWN] for part in backdoor.examples)
    gap = torch.full((_SHOWN - len(triggers), *corrupted.sample.shape), -1.0)
    at_triggers = [network(triggers) for network in (benign, corrupted, *awake)]
    rows = [
        benign(z),
        corrupted(z),
        *(torch.cat([row, gap]) for row in (*at_triggers, targets)),
    ]
    write_grid(path, torch.cat(rows), columns=_SHOWN)
