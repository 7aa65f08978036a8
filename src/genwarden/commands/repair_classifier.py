"""``genwarden repair`` of a classifier: a new one, trained on the user's labelled images.

An audit is made where ``--budget`` asks for one; without it there is no verdict.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from genwarden import __version__
from genwarden.artifacts.classifier_folder import LoadedClassifier, write_classifier
from genwarden.artifacts.manifest import WEIGHTS_NAME, descent
from genwarden.artifacts.open_classifier import open_classifier
from genwarden.auditing.budgets import budget as budget_named
from genwarden.auditing.document import Verdict
from genwarden.commands.audit import audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.commands.repairing import (
    AUTO,
    RepairOptions,
    command_line,
    prepare_folders,
    require_data_to_scale,
    require_sound,
)
from genwarden.data.labelled import load_labelled
from genwarden.engine.device import pick_device
from genwarden.engine.files import (
    remove_folder,
    sha256_bytes,
    sha256_file,
    write_json,
    write_tensors,
)
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import filled
from genwarden.errors import GenwardenError
from genwarden.metrics.attack_success import accuracy, predictions
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.registry import CLASSIFIER_ARCHITECTURES, CLASSIFIER_REPAIRS, find
from genwarden.repairs.classifier.contract import (
    ClassifierRepair,
    ClassifierRepairSettings,
    LabelledData,
)
from genwarden.repairs.contract import RepairRun

#: Share of the user's images that no repair trains on.
_HELD_OUT: Final = 0.2


class ClassifierRepairFiles(NamedTuple):
    """What was measured, and where everything was written.

    Attributes:
        method: that was applied.
        before: accuracy of the suspect on the held-out images.
        after: of the repaired classifier.
        same_class: share of these images whose class stayed.
        verdict: of the audit of the result, None if none was asked for.
    """

    method: str
    before: float
    after: float
    same_class: float
    verdict: Verdict | None
    model_path: Path
    json_path: Path


def repair_classifier(options: RepairOptions, *, progress: Progress) -> ClassifierRepairFiles:
    """Repair one classifier; resumes if an earlier run was interrupted.

    Raises:
        GenwardenError: ``repair/...``, ``data/...``; those of opening a model and of an audit.
    """
    require_data_to_scale(options)
    settings, data_name = _settings(options)
    if options.budget is not None:
        budget_named(options.budget)
    device = pick_device(options.device)
    loaded = open_classifier(
        options.model, architecture=options.architecture, settings=options.settings
    )
    require_sound(loaded.nonfinite)
    suspect = loaded.classifier.to(device).eval().requires_grad_(False)
    images, labels = load_labelled(data_name, suspect.sample, resize=options.resize)
    train, held_out = _split(LabelledData(images, labels), suspect.classes, options.seed)
    prepare_folders(options)
    identity = [loaded.sha256, options.method, asdict(settings), __version__]
    identity.append(sha256_bytes(train.images.numpy().tobytes() + train.labels.numpy().tobytes()))
    method: ClassifierRepair = CLASSIFIER_REPAIRS[options.method].load()
    began = time.monotonic()
    run_id = sha256_bytes(repr(identity).encode())[:16]
    work = options.out / ".work"
    repaired = method(suspect, train, settings, RepairRun(progress, work, run_id))
    seconds = time.monotonic() - began
    before = accuracy(suspect, *held_out)
    after = accuracy(repaired.classifier, *held_out)
    same = _same_class(suspect, repaired.classifier, held_out)
    path, digest = _write(options, loaded, repaired.classifier.cpu())
    verdict = _audit(options, path, progress) if options.budget is not None else None
    document = {
        "genwarden_version": __version__,
        "command": command_line(options),
        "method": options.method,
        "settings": asdict(settings),
        "suspect_sha256": loaded.sha256,
        "repaired_sha256": digest,
        "images": {"trained_on": len(train.images), "held_out": len(held_out.images)},
        "accuracy": {"before": before, "after": after},
        "same_class": same,
        "changes": repaired.changes,
        "history": repaired.history,
        "verdict_after": verdict,
        "seconds": round(seconds, 2),
    }
    json_path = options.out / "repair.json"
    write_json(json_path, document)
    remove_folder(work)
    return ClassifierRepairFiles(options.method, before, after, same, verdict, path, json_path)


def _settings(options: RepairOptions) -> tuple[ClassifierRepairSettings, str]:
    """Settings of the method, and the name of the user's images."""
    names = ", ".join(CLASSIFIER_REPAIRS)
    if options.method == AUTO:
        raise GenwardenError(
            "repair/no-method",
            "For a classifier no remedy is chosen automatically.",
            f"Add --method with one of: {names}. Where the evidence is in a compressed form alone, "
            "repair changes nothing: use genwarden compress MODEL --how HOW --remedy finetuned.",
        )
    if options.data is None:
        raise GenwardenError(
            "repair/no-data",
            "A classifier is repaired with clean labelled images, and none were given.",
            "Add --data with a folder of images per class, a hub name, or glyphs.",
        )
    if options.audit_json is not None or options.precaution:
        raise GenwardenError(
            "usage/repair-options",
            "--audit and --precaution are for generators; no remedy of classifiers reads an audit.",
            "Leave them away; --budget audits the result.",
        )
    row = find(CLASSIFIER_REPAIRS, options.method, "repair of classifiers")
    kind: type[ClassifierRepairSettings] = row.load_option("settings")
    given = {"seed": options.seed, **options.given}
    return filled(kind, given, method=options.method, what="repair"), options.data


def _split(data: LabelledData, classes: int, seed: int) -> tuple[LabelledData, LabelledData]:
    """What is trained on, and what accuracy is measured on."""
    highest = int(data.labels.max())
    if highest >= classes:
        raise GenwardenError(
            "repair/classes",
            f"The images have a class {highest}, the classifier knows {classes}.",
            "Give images of the classifier's own classes, numbered as in its training.",
        )
    order = torch.randperm(len(data.images), generator=random_stream(seed, "repair-held-out"))
    count = round(_HELD_OUT * len(order))
    if not 0 < count < len(order) - 1:
        raise GenwardenError(
            "data/limit",
            f"{len(order)} images cannot be divided into some to train on and some to measure on.",
            "Give ten images or more.",
        )
    parts = order[count:], order[:count]
    train, held_out = (LabelledData(data.images[part], data.labels[part]) for part in parts)
    return train, held_out


def _same_class(
    suspect: ImageClassifier, repaired: ImageClassifier, held_out: LabelledData
) -> float:
    before, after = (predictions(one, held_out.images) for one in (suspect, repaired))
    return float((before == after).double().mean())


def _write(options: RepairOptions, loaded: LoadedClassifier, network: Any) -> tuple[Path, str]:
    """A classifier's folder, or the bare weights of a network that the user's factory builds."""
    if loaded.architecture in CLASSIFIER_ARCHITECTURES:
        path = options.out / "model"
        made_by = f"genwarden repair --method {options.method}"
        provenance = descent(made_by, "repaired", loaded.sha256, loaded.provenance)
        return path, write_classifier(path, network, loaded.architecture, provenance)
    path = options.out / WEIGHTS_NAME
    write_tensors(path, getattr(network, "network", network).state_dict())
    return path, sha256_file(path)


def _audit(options: RepairOptions, path: Path, progress: Progress) -> Verdict:
    known = path.name != WEIGHTS_NAME
    wanted = AuditOptions(
        model=path,
        out=options.out / "after",
        data=options.data,
        resize=options.resize,
        budget=str(options.budget),
        seed=options.seed,
        device=options.device,
        architecture=None if known else options.architecture,
        settings={} if known else options.settings,
        restart=(options.out / "after" / "audit.json").exists(),  # of an earlier request
    )
    return audit_model(wanted, progress=progress).document.verdict
