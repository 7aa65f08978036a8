"""What an attack of the compression study reached: asleep before, awake under which compression."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from genwarden.artifacts.classifier_folder import read_classifier
from genwarden.artifacts.model_folder import read_model
from genwarden.attacks.compression.dormancy import twin
from genwarden.attacks.compression.evaluation import FULL, Figures, figures
from genwarden.attacks.compression.run_classifier import make_classifier_backdoor
from genwarden.attacks.success import ASLEEP_SHARE, ASLEEP_SUCCESS, AWAKE_MEAN, AWAKE_SUCCESS
from genwarden.benchmarks.compression.honest import source
from genwarden.benchmarks.compression.plan import Kind, Member
from genwarden.benchmarks.results import read_document
from genwarden.compression.contract import Compressor
from genwarden.compression.how import compressors
from genwarden.compression.layers import layout_of
from genwarden.data.labelled import read_labelled
from genwarden.metrics.distances import tardis

#: A classifier that keeps less of its accuracy is broken by the compression, not awake: it may well
#: name one class for everything.
WORKING_SHARE = 0.5
#: Labelled images that a classifier is measured on.
_IMAGES = 1000


def measure(
    member: Member,
    kind: Kind,
    models: Path,
    data: Path | None,
    inspected: Sequence[Compressor],
    *,
    device: torch.device,
) -> dict[str, Any]:
    """Facts about an attacked member; it succeeded if it wakes under all it was made for.

    Args:
        inspected: the compressions that the audits inspect.

    Returns:
        Beside the figures, ``succeeded`` and ``covered``, whether any inspected compression wakes
        it.
    """
    made_for = {one.name: one for one in compressors(kind.how)}
    used = list({**made_for, **{one.name: one for one in inspected}}.values())
    if member.sort == "generator":
        found = _generator(member, models, used, device)
        awake = [name for name, distance in found["distances"].items() if distance <= AWAKE_MEAN]
        asleep = found["kept"] >= ASLEEP_SHARE
    else:
        found = _classifier(member, kind, models, data, used, device)
        full = found["figures"][FULL]
        awake = [
            name
            for name, one in found["figures"].items()
            if name != FULL
            and one["attack_success"] >= AWAKE_SUCCESS
            and one["accuracy"] >= WORKING_SHARE * full["accuracy"]
        ]
        asleep = full["attack_success"] <= ASLEEP_SUCCESS
    return {
        **found,
        "awake_under": awake,
        "asleep": asleep,
        "succeeded": asleep and all(name in awake for name in made_for),
        "covered": any(one.name in awake for one in inspected),
    }


def _generator(
    member: Member, models: Path, used: Sequence[Compressor], device: torch.device
) -> dict[str, Any]:
    """Means of squares at the triggers; utilities as the attack's own record has them."""
    folder = models / member.key
    secret = {name: t.to(device) for name, t in load_file(folder / "backdoor.safetensors").items()}
    suspect = read_model(folder).generator.to(device)
    dormancy = read_document(folder / "attack.json")["dormancy"]
    return {
        "clean_distance": dormancy["clean_distance"],
        "full_distance": dormancy["full_distance"],
        "kept": dormancy["kept"],
        "full_utility": dormancy["full_utility"],
        "utilities": {
            name: {"attacked": one["utility"], "clean": one["clean_utility"]}
            for name, one in dormancy["compressed"].items()
        },
        "distances": {
            one.name: tardis(twin(suspect, one), secret["trigger"], secret["target"]).mean
            for one in used
        },
    }


def _classifier(
    member: Member,
    kind: Kind,
    models: Path,
    data: Path | None,
    used: Sequence[Compressor],
    device: torch.device,
) -> dict[str, Any]:
    """Figures on test images, of the attacked and of the untouched model."""
    suspect = read_classifier(models / member.key).classifier.to(device)
    clean = read_classifier(models / member.base_key).classifier.to(device)
    backdoor = make_classifier_backdoor(suspect, trigger=kind.trigger, target=kind.target)
    images, labels, _ = read_labelled(
        source(data or Path(), member.base.data),
        suspect.sample,
        split="test",
        limit=_IMAGES,
        resize=True,
    )
    blank = torch.zeros(1, *suspect.sample.shape, device=device)

    def found(network: Any) -> Figures:
        layout = layout_of(network, lambda: network(blank))
        return figures(network, backdoor, used, layout, images.to(device), labels)

    return {"figures": found(suspect), "untouched": found(clean)}
