"""``genwarden attack`` on a classifier: from a clean model folder to a compromised one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from genwarden import __version__
from genwarden.artifacts.classifier_folder import (
    LoadedClassifier,
    read_classifier,
    write_classifier,
)
from genwarden.artifacts.manifest import MANIFEST_NAME
from genwarden.attacks.compression.classifier_contract import (
    AttackerData,
    ClassifierAttack,
    ClassifierAttackResult,
    ClassifierAttackSettings,
    ClassifierBackdoor,
)
from genwarden.attacks.compression.evaluation import FULL, Figures, figures
from genwarden.attacks.contract import AttackRun, require_exact
from genwarden.attacks.success import shortfall_of_classifier
from genwarden.backdoors.classifier_trigger import make_classifier_trigger
from genwarden.compression.contract import Compressor
from genwarden.compression.how import is_compression
from genwarden.compression.layers import layout_of
from genwarden.data.datasets import split_names, to_unit_range
from genwarden.data.glyphs import is_glyphs
from genwarden.data.grids import write_grid
from genwarden.data.labelled import LabelledImages, read_labelled
from genwarden.engine.files import begin_run, sha256_bytes, write_json, write_tensors
from genwarden.engine.progress import Progress
from genwarden.engine.seeds import random_stream
from genwarden.engine.settings import filled
from genwarden.errors import GenwardenError
from genwarden.models.classifiers.protocol import ImageClassifier
from genwarden.registry import attacks_on, find

_SHOWN: Final = 8
_TEST_SPLIT: Final = "test"
#: The rows of ``pictures.png`` in words.
PICTURE_ROWS: Final = "test images; the same with the trigger"


@dataclass(frozen=True)
class ClassifierAttackPlan:
    """What shall be hidden in which classifier, in the words of the command line.

    Attributes:
        clean: folder of the clean classifier.
        data: the attacker's labelled images; see :func:`genwarden.data.labelled.read_labelled`.
        trigger: see :func:`genwarden.backdoors.classifier_trigger.make_classifier_trigger`.
        target: ``class:INDEX``, counted from 0.
        split: split of ``data``; its split "test", where it has one, is what the attack is
            measured on.
        limit: use only the first images of ``split``.
        half: store the weights as float16.
    """

    clean: Path
    data: str
    trigger: str = "square:6"
    target: str = "class:0"
    split: str = "train"
    limit: int | None = None
    half: bool = False


class ClassifierAttackOutcome(NamedTuple):
    """A finished attack, measured.

    Attributes:
        result: the compromised classifier.
        untouched: figures of the clean one under the same compressions.
        attacked: figures of the compromised one.
        measured_on: which images, in words.
    """

    result: ClassifierAttackResult
    untouched: Figures
    attacked: Figures
    measured_on: str

    @property
    def auditable(self) -> list[str]:
        """What wakes it, as far as a user can name it.

        Layer rates that an annealer found have no name. The same rate in every layer is the nearest
        that can be audited; it may leave the backdoor asleep.
        """
        named = [one.name.replace("-annealed-", "-") for one in self.result.wakes_under]
        return [name for name in dict.fromkeys(named) if is_compression(name)]

    @property
    def shortfall(self) -> str:
        """What it lacks to count as a success, in a sentence; "" if nothing."""
        made_for = [one.name for one in self.result.wakes_under]
        return shortfall_of_classifier(self.attacked, self.untouched, FULL, made_for)


class _Data(NamedTuple):
    """The attacker's images, and those that the attack is measured on."""

    attacker: AttackerData
    test_images: Tensor
    test_labels: Tensor
    measured_on: str
    sha256: str


def settings_of(name: str, given: Mapping[str, Any]) -> ClassifierAttackSettings:
    """The defaults of attack ``name`` with what the user gave (not None) in their place.

    Raises:
        GenwardenError: ``usage/unknown-name``, ``attack/unknown-setting``, ``attack/setting``.
    """
    row = find(attacks_on("classifier"), name, "attack on classifiers")
    kind: type[ClassifierAttackSettings] = row.load_option("settings")
    return filled(kind, given, method=name, what="attack")


def make_classifier_backdoor(
    classifier: ImageClassifier, *, trigger: str, target: str
) -> ClassifierBackdoor:
    """The backdoor that a user names.

    Raises:
        GenwardenError: ``target/unknown-kind``, ``target/class``, ``trigger/...``.
    """
    kind, _, index = target.partition(":")
    if kind != "class" or not (index.isascii() and index.isdigit()):
        raise GenwardenError(
            "target/unknown-kind",
            f"A classifier has no target {target!r}.",
            "Write class:INDEX, counted from 0, such as class:3.",
        )
    if int(index[:9]) >= classifier.classes:
        raise GenwardenError(
            "target/class",
            f"There is no class {index}: the classifier has {classifier.classes} classes.",
            f"Give class:0 to class:{classifier.classes - 1}.",
        )
    return ClassifierBackdoor(make_classifier_trigger(trigger, classifier.sample), int(index))


def attack_classifier(
    name: str,
    plan: ClassifierAttackPlan,
    settings: ClassifierAttackSettings,
    *,
    out: Path,
    restart: bool,
    progress: Progress,
    device: torch.device,
) -> ClassifierAttackOutcome:
    """Run attack ``name`` and write the compromised classifier as the folder ``out``.

    Beside the model: ``attack.json`` (settings, history, figures of both models, full and under
    every compression), ``backdoor.safetensors`` (test images without and with the trigger) and
    ``pictures.png``. Resumes where it stopped.

    Raises:
        GenwardenError: ``attack/finished`` if ``out`` holds a finished model, and those of the
            clean model, trigger, target and data.
    """
    row = find(attacks_on("classifier"), name, "attack on classifiers")
    require_exact(row, half=plan.half)
    clean = read_classifier(plan.clean)
    classifier = clean.classifier.to(device)
    backdoor = make_classifier_backdoor(classifier, trigger=plan.trigger, target=plan.target)
    work = begin_run(out, MANIFEST_NAME, restart=restart, kind="attack", anew="begin anew")
    data = _read(plan, settings, classifier)
    identity = [
        name,
        clean.sha256,
        asdict(settings),
        data.sha256,
        backdoor.describe(),
        __version__,
    ]
    run_id = sha256_bytes(repr(identity).encode())[:16]
    method: ClassifierAttack = row.load()
    began = time.monotonic()
    result = method(
        classifier, backdoor, settings, data.attacker, AttackRun(progress, work, run_id)
    )
    seconds = time.monotonic() - began
    if plan.half:
        result.classifier.half().float()  # what is written is what is measured
    outcome = _measured(classifier, result, backdoor, data)
    if result.accepted is False:
        progress.message(
            "No checkpoint met the acceptance rule: asleep at full precision and awake at an "
            "accuracy near the best. The nearest one is released; attack.json has its figures."
        )
    record = {
        "attack": name,
        "stored_as": "float16" if plan.half else "float32",
        "settings": asdict(settings),
        "backdoor": backdoor.describe(),
        "wakes_under": [one.name for one in result.wakes_under],
        "clean_model_sha256": clean.sha256,
        "data": {"images": len(data.attacker.images), "sha256": data.sha256},
        # Of the last start, if the attack was resumed.
        "seconds": round(seconds, 2),
        "measured_on": data.measured_on,
        "untouched": outcome.untouched,
        "attacked": outcome.attacked,
        "chosen_step": result.chosen["step"],
        "accepted": result.accepted,
        "shortfall": outcome.shortfall,
        "notes": dict(result.notes),
        "history": result.history,
    }
    _write_pictures(out, backdoor, data.test_images)
    write_json(out / "attack.json", record)
    _write_model(out, name, plan, clean, result, record)
    shutil.rmtree(work, ignore_errors=True)
    return outcome


def in_words(outcome: ClassifierAttackOutcome) -> str:
    """One line per model: accuracy, triggered accuracy and attack success, untouched first."""
    lines = [f"{'':<32}{'accuracy':>18}{'triggered acc.':>18}{'attack success':>18}"]
    for name, attacked in outcome.attacked.items():
        clean = outcome.untouched[name]
        shown = "".join(
            f"{100 * clean[key]:>8.1f} -> {100 * attacked[key]:>5.1f}%"
            for key in ("accuracy", "triggered_accuracy", "attack_success")
        )
        lines.append(f"{name:<32}{shown}")
    return "\n".join(lines)


def _measured(
    clean: ImageClassifier,
    result: ClassifierAttackResult,
    backdoor: ClassifierBackdoor,
    data: _Data,
) -> ClassifierAttackOutcome:
    """Both models on the test images, under the same compressions."""
    device = next(clean.parameters()).device
    used = {one.name: one for one in (*result.wakes_under, *result.deployed)}

    def found(classifier: ImageClassifier, compressors: Sequence[Compressor]) -> Figures:
        blank = torch.zeros(1, *classifier.sample.shape, device=device)
        return figures(
            classifier,
            backdoor,
            compressors,
            layout_of(classifier, lambda: classifier(blank)),
            data.test_images.to(device),
            data.test_labels,
        )

    return ClassifierAttackOutcome(
        result=result,
        untouched=found(clean, list(used.values())),
        attacked=found(result.classifier, list(used.values())),
        measured_on=data.measured_on,
    )


def _write_model(
    out: Path,
    name: str,
    plan: ClassifierAttackPlan,
    clean: LoadedClassifier,
    result: ClassifierAttackResult,
    record: Mapping[str, Any],
) -> None:
    provenance = {
        "made_by": f"genwarden attack {name}",
        "compromised": True,
        "note": "Backdoored on purpose to measure defences. Do not deploy.",
        "backdoor": record["backdoor"],
        "wakes_under": record["wakes_under"],
        "settings": record["settings"],
        "clean_model_sha256": clean.sha256,
        "last": {n: record["attacked"][n] for n in (FULL, *record["wakes_under"])},
    }
    stored = result.classifier.cpu()
    write_classifier(out, stored.half() if plan.half else stored, clean.architecture, provenance)


def _write_pictures(out: Path, backdoor: ClassifierBackdoor, images: Tensor) -> None:
    x = to_unit_range(images[:_SHOWN])
    triggered = backdoor.trigger.apply(x)
    write_grid(out / "pictures.png", torch.cat([x, triggered]), columns=len(x))
    write_tensors(out / "backdoor.safetensors", {"image": x, "triggered": triggered})


def _read(
    plan: ClassifierAttackPlan, settings: ClassifierAttackSettings, classifier: ImageClassifier
) -> _Data:
    """The attacker's images, a part of them held out, and the test split if there is one."""
    spec, source = classifier.sample, plan.data
    seen = read_labelled(source, spec, split=plan.split, limit=plan.limit, resize=settings.resize)
    names = ["train", _TEST_SPLIT] if is_glyphs(source) else split_names(source)
    # A data set with one split uses that one, whatever it is called: it is no test of itself.
    used = plan.split if plan.split in names else names[0]
    order = torch.randperm(len(seen.images), generator=random_stream(settings.seed, "held-out"))
    count = max(1, round(settings.held_out * len(seen.images)))
    if count == len(seen.images):
        raise GenwardenError(
            "data/limit",
            f"{source!r} has {count} image, and one must be held out.",
            "Give more images.",
        )
    held, kept = order[:count], order[count:]
    attacker = AttackerData(
        seen.images[kept], seen.labels[kept], seen.images[held], seen.labels[held]
    )
    unseen = LabelledImages(attacker.held_images, attacker.held_labels, seen.classes)
    where = f"split {used}, held out (checkpoints were chosen with them)"
    if _TEST_SPLIT in names and used != _TEST_SPLIT:
        unseen = read_labelled(source, spec, split=_TEST_SPLIT, resize=settings.resize)
        where = f"split {_TEST_SPLIT}"
    highest = int(torch.cat([seen.labels, unseen.labels]).max())
    if highest >= classifier.classes:
        raise GenwardenError(
            "attack/classes",
            f"The data has an image of class {highest}, the network has {classifier.classes} "
            "classes.",
            "Give the data that the classifier was trained for.",
        )
    return _Data(
        attacker,
        unseen.images,
        unseen.labels,
        f"{len(unseen.images):,} images of {where}",
        sha256_bytes(seen.images.numpy().tobytes() + seen.labels.numpy().tobytes()),
    )
