"""``genwarden compress --audit``: what an audit recovered, tried on what was made.

An audit of a full model says what wakes under a compression. Whether a remedy leaves that asleep is
seen by trying it: the latent of a generator, the trigger of a classifier on the user's images, the
shift of a diffusion model's noise; in the full model, under plain compression and with the remedy.
It is the recovered trigger that is tried, not the attacker's, which nobody has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from genwarden.auditing.candidates import flagged_latents, flagged_triggers
from genwarden.auditing.document import AuditDocument, Judged
from genwarden.commands.compressing import ClassifierSubject, GeneratorSubject, Subject
from genwarden.commands.report import read_audit_of
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.inspections.classifier.inversion import stamp
from genwarden.inspections.compression import differential_trigger_search
from genwarden.inspections.finding import mask_and_pattern
from genwarden.inspections.output.novelty import ordinary_distance
from genwarden.metrics.draws import device_of
from genwarden.models.diffusion.denoiser import DiffusionModel
from genwarden.models.diffusion.samplers import SamplerSettings, sample
from genwarden.repairs.diffusion.clues import shifts_under, sound
from genwarden.reports.advice import woken

#: At most so many triggers are tried.
_MOST: Final = 4
_BLOCK: Final = 64
#: Of a shift: samples, sampler steps, and the samplers' eta; an attack is made for one of them.
_NOISES: Final = 8
_STEPS: Final = 20
_ETAS: Final = (0.0, 1.0)


class Recovered(Protocol):
    """A trigger that an audit recovered.

    Attributes:
        name: for people, with the inspection that found it.
        target: the class that it leads to; None where there are no classes.
    """

    @property
    def name(self) -> str: ...

    @property
    def target(self) -> int | None: ...

    def outputs(self, network: nn.Module) -> Tensor:
        """What a network makes of it, on the CPU: logits, or samples."""
        ...


@dataclass(frozen=True)
class Tried:
    """One recovered trigger in several networks.

    Attributes:
        name: for people.
        unit: of the figures: ``of the images`` of other classes go to the class of the trigger;
            or ``usual distances``: mean squared distance from what the full model makes of the same
            input, over the median one between two ordinary samples of it.
        figures: by network; not a number where an output is none.
    """

    name: str
    unit: str
    figures: dict[str, float]

    def __str__(self) -> str:
        style = ".1%" if self.unit == "of the images" else ".2g"
        values = [f"{name} {value:{style}}" for name, value in self.figures.items()]
        return f"{self.name}: {', '.join(values)} {self.unit}"

    def record(self) -> dict[str, Any]:
        """For ``compress.json``; what is no number is null there."""
        finite = {n: value if math.isfinite(value) else None for n, value in self.figures.items()}
        return {"name": self.name, "unit": self.unit, "figures": finite}


def recovered_by(audit: Path, compression: str, subject: Subject) -> list[Recovered]:
    """What flagged findings of an audit of this model recovered under a compression, at most 4.

    Raises:
        GenwardenError: ``compress/trial-without-images`` for a classifier without images,
            ``compress/nothing-recovered``, ``sample/other-model``, and those of reading an audit.
    """
    document = read_audit_of(audit, subject.loaded.sha256, "model given is")
    judged = [j for v in document.variants if v.name == compression for j in v.findings]
    found: list[Recovered] = []
    if isinstance(subject, GeneratorSubject):
        found += _latents(judged, subject)
    elif isinstance(subject, ClassifierSubject):
        found += triggers_of(judged, subject)
    elif any(j.flagged for j in judged):
        found += shifts_of(document, compression, subject)
    if not found:
        elsewhere = [v.name for v in woken(document) if v.name != compression]
        raise GenwardenError(
            "compress/nothing-recovered",
            f"{audit} recovered nothing under {compression} that could be tried.",
            f"Its evidence is under {', '.join(elsewhere)}: name that as --how."
            if elsewhere
            else f"Audit the model again with --deploy-as {compression}, or leave --audit away.",
        )
    return found[:_MOST]


@torch.no_grad()
def try_recovered(
    found: list[Recovered], networks: Mapping[str, nn.Module], ordinary: Tensor | None
) -> list[Tried]:
    """Put what was recovered to every network.

    Args:
        networks: ``full`` and those to be compared with it.
        ordinary: outputs of the full model, ``(count, ...)``; unused where there are classes.
    """
    tried = []
    for one in found:
        outputs = {name: one.outputs(network).double() for name, network in networks.items()}
        if one.target is not None:
            led = {name: (x.argmax(1) == one.target).double() for name, x in outputs.items()}
            figures = {name: float(hits.mean()) for name, hits in led.items()}
        else:
            assert ordinary is not None  # noqa: S101 (of everything but classifiers)
            usual = ordinary_distance(ordinary.double())
            away = {n: (x - outputs["full"]).square().flatten(1) for n, x in outputs.items()}
            figures = {name: float(x.sum(1).mean()) / usual for name, x in away.items()}
        unit = "usual distances" if one.target is None else "of the images"
        tried.append(Tried(one.name, unit, figures))
    return tried


@dataclass(frozen=True)
class _Latent:
    name: str
    z: Tensor
    target: int | None = None

    def outputs(self, network: nn.Module) -> Tensor:
        shown: Tensor = network(self.z.to(device_of(network)))
        return shown.cpu()


@dataclass(frozen=True)
class _Trigger:
    name: str
    images: Tensor
    target: int | None

    def outputs(self, network: nn.Module) -> Tensor:
        parts = self.images.split(_BLOCK)
        return torch.cat([network(part.to(device_of(network))).cpu() for part in parts])


@dataclass(frozen=True)
class _Shift:
    name: str
    shift: Tensor
    eta: float
    target: int | None = None

    def outputs(self, network: nn.Module) -> Tensor:
        assert isinstance(network, DiffusionModel)  # noqa: S101 (of this kind)
        # The same draws for every network, which differ by their weights alone.
        stream = random_stream(0, "compress/trial")
        noise = torch.randn(_NOISES, *self.shift.shape, generator=stream) + self.shift
        settings = SamplerSettings("ddim", min(_STEPS, network.schedule.steps), eta=self.eta)
        return sample(network, noise.to(device_of(network)), settings, stream).clamp(-1, 1).cpu()


def _latents(judged: list[Judged], subject: GeneratorSubject) -> list[_Latent]:
    law = subject.loaded.generator.latent
    return [
        _Latent(f"latent of {inspection}", torch.tensor(values).reshape(1, *law.shape))
        for inspection, values in flagged_latents(judged)
        # Whatever else an edited file may hold.
        if sound(values, law.size)
    ]


def triggers_of(judged: list[Judged], subject: ClassifierSubject) -> list[_Trigger]:
    """Triggers of flagged findings on a classifier's images of other classes, one per class.

    Raises:
        GenwardenError: ``compress/trial-without-images``.
    """
    answers = subject.outputs(subject.network, 0)
    if answers is None or subject.images is None:
        raise GenwardenError(
            "compress/trial-without-images",
            "--audit tries a recovered trigger on images, and none were given.",
            "Add --calibration FOLDER with images that the classifier reads.",
        )
    found: dict[int, _Trigger] = {}
    for inspection, trigger in flagged_triggers(judged):
        others = subject.images[answers.argmax(1) != trigger.target]
        if trigger.target in found or trigger.shape != tuple(others.shape[1:]) or not len(others):
            continue
        try:
            mask, pattern = mask_and_pattern(trigger)
        except ValueError:  # an edited file
            continue
        name = f"trigger of class {trigger.target} ({inspection})"
        found[trigger.target] = _Trigger(name, stamp(others, mask, pattern), trigger.target)
    return list(found.values())


def shifts_of(document: AuditDocument, compression: str, subject: Subject) -> list[_Shift]:
    """The strongest shifts that were recovered under a compression, each for two samplers."""
    assert isinstance(subject.network, DiffusionModel)  # noqa: S101 (of this kind)
    shifts = shifts_under(document, compression, subject.network.sample)
    return [
        _Shift(f"shift {n} of {differential_trigger_search.NAME}, eta {eta:g}", shift, eta)
        for n, shift in enumerate(shifts[: _MOST // len(_ETAS)], start=1)
        for eta in _ETAS
    ]
