"""What a reader should do next, the same on the page and in the terminal.

Commands are made from the one that the audit documents; where that cannot be read, there is advice
and no command.
"""

from __future__ import annotations

import shlex
from itertools import chain, pairwise
from pathlib import PurePosixPath
from typing import NamedTuple

from genwarden.auditing.audit_variants import damaged
from genwarden.auditing.calibration import needs_population
from genwarden.auditing.candidates import flagged_latents, flagged_triggers
from genwarden.auditing.document import AuditDocument, Variant
from genwarden.auditing.verdict import WOKEN_BEFORE

#: The remedy that works on every family of compressions.
REMEDY = "finetuned"
_MOST_COMMANDS = 3
_WEIGHTS = {".safetensors", ".pt", ".pth", ".ckpt"}

_EVIDENCE = (
    "Do not deploy this model. Keep the file, ask its supplier where it was trained, and audit any "
    "replacement before it is used."
)
_REPAIR = "If you go on with it nevertheless, take out what was found and read the new audit."
_NONE_FOUND = (
    "This is not proof that there is no backdoor. The report lists what would have been found; "
    "anything weaker or better hidden than that remains possible."
)
_LARGER = "Repeat with a larger --budget before a deployment that matters."
_IMAGES = (
    "Give images with --data (labels are not needed): without them an audit makes its own from the "
    "network, and these are not what it meets at work and may wake a backdoor themselves."
)
_REFERENCES = (
    "Who has eight or more clean models of this architecture and sample shape can judge it against "
    "those: genwarden calibrate MODEL MODEL ... --out DIR, then audit with --references DIR."
)
_NOT_COMPRESSED = (
    "It was looked at as it is: if it will be pruned or quantised, audit it with --deploy-as, "
    "since a backdoor can be made to wake just then, and no larger budget shows it here."
)
_COMPRESSED = "It holds for these compressions and no others: {}."
_KEEP = "Keep audit.json with the model; its sha256 ties the result to these weights."
_INCONCLUSIVE = (
    "Treat this model as untested. Read the reasons: a missing verdict is not a good one."
)
_ORIGINAL = (
    "Ask for the model as it was before it was compressed, and audit that with --deploy-as: no "
    "references and no larger budget make up for it."
)
_DESTROYED = (
    "What {} leaves is no longer this model: compress it less, or train it after compression and "
    "audit what comes out."
)
_REFUSED = (
    "Treat this file as untrusted, and do not open it with a less careful tool. Nothing is known "
    "about the model in it."
)


class Advice(NamedTuple):
    """What to do, in sentences, and commands for it; the commands may be none."""

    text: str
    commands: list[str]


class _Asked(NamedTuple):
    """What the documented command names: the model and its options, results, references, images."""

    model: list[str]
    out: str
    references: list[str]
    data: str
    resize: list[str]

    def images(self, flag: str) -> list[str]:
        """The images of the audit behind another command's flag."""
        return [flag, self.data, *self.resize]


def advice(document: AuditDocument) -> Advice:
    """What to do with a verdict."""
    if document.verdict == "evidence":
        return _on_evidence(document)
    if document.verdict == "none_found":
        largest = document.budget.get("name") == "thorough"
        text = f"{_NONE_FOUND} {_deployed(document)} {_KEEP if largest else _LARGER}"
        return Advice(f"{text} {_IMAGES}" if _without_images(document) else text, [])
    if document.verdict == "refused":
        return Advice(_REFUSED, [])
    text = f"{_INCONCLUSIVE} {_IMAGES}" if _without_images(document) else _INCONCLUSIVE
    unknown = [reason for reason in document.reasons if reason.startswith("Nothing is known of ")]
    destroyed = [
        variant.name
        for variant in document.variants
        if variant.destroyed and any(f" {variant.name}: " in reason for reason in unknown)
    ]
    if any(WOKEN_BEFORE in reason for reason in document.reasons):
        return Advice(f"{text} {_ORIGINAL}", [])
    if destroyed:
        text += f" {_DESTROYED.format(', '.join(destroyed))}"
        if len(destroyed) == len(document.reasons):
            return Advice(text, [])
    return Advice(f"{text} {_REFERENCES}" if _without_references(document) else text, [])


def _deployed(document: AuditDocument) -> str:
    """What of compression was looked at; what was not is where backdoors sleep."""
    if not document.variants:
        return _NOT_COMPRESSED
    covered = [
        variant.name
        for variant in document.variants
        if not variant.failure and not damaged(variant)
    ]
    return _COMPRESSED.format(", ".join(covered))


def _without_images(document: AuditDocument) -> bool:
    """Whether a classifier was audited on images made from itself."""
    classes = document.model is not None and document.model.classes > 0
    return classes and document.inputs.training_images == 0


def _without_references(document: AuditDocument) -> bool:
    """Whether scores were left unjudged for want of clean models like this one."""
    return any(
        j.finding.outcome == "scored"
        and j.finding.p_value is None
        and needs_population(j.finding.inspection)
        for _, j in document.judged_under()
    )


def woken(document: AuditDocument) -> list[Variant]:
    """The variants under which there is evidence."""
    return [v for v in document.variants if any(j.flagged for j in v.findings)]


def sleeps(document: AuditDocument) -> bool:
    """Whether the evidence lies in compressed variants alone."""
    return bool(woken(document)) and not any(j.flagged for j in document.findings)


def variant_sample(document: AuditDocument, variant: Variant) -> str:
    """The command that draws what a variant wakes; "" if there is no latent, or no command."""
    asked = _asked(document)
    if asked is None or not any(flagged_latents(variant.findings)):
        return ""
    suffix = "wav" if document.model and document.model.modality == "audio" else "png"
    words = ["genwarden", "sample", *asked.model, "--how", variant.name]
    words += ["--audit", _in_folder(asked.out, "audit.json"), "--candidate", "1"]
    return shlex.join([*words, "--out", f"{variant.name}-candidate-1.{suffix}"])


def _on_evidence(document: AuditDocument) -> Advice:
    variants = woken(document)
    names = ", ".join(v.name for v in variants)
    compress = _compress_commands(document, variants)
    again = (
        f"A remedy compresses so that what {names} wakes stays asleep; {_after_remedy(document)}"
        if variants
        else ""
    )
    if sleeps(document) and not document.findings:
        # What is awake in full is awake compressed, and no remedy of compression removes it.
        full = _full_audit_command(document)
        return Advice(
            f"Do not deploy this model. The evidence is in what {names} makes of it, and the model "
            "as it is was not examined: what was found may be awake there as well. Audit it next. "
            "If it shows evidence, genwarden repair works on that; if it shows nothing, "
            f"{again[0].lower() + again[1:]}.",
            [*([full] if full else []), *compress],
        )
    if sleeps(document):
        return Advice(
            f"Do not deploy this model compressed. {_as_it_is(document)} The evidence is in what "
            f"{names} makes of it. Keep the file and ask its supplier where it was "
            "trained. If you go on with it nevertheless, do not compress it plainly. "
            f"{again}. genwarden repair looks at the model as it is and leaves this where it is.",
            compress,
        )
    text = f"{_EVIDENCE} {_REPAIR}"
    if variants:
        text += f" That does not reach what compression wakes. {again}."
    repair = _repair_command(document)
    return Advice(text, [*([repair] if repair else []), *compress])


def _after_remedy(document: AuditDocument) -> str:
    if document.model and document.model.classes:
        return "whether it does is tried on what this audit recovered"
    return "audit what comes out"


def _as_it_is(document: AuditDocument) -> str:
    if any(j.adjusted_p is not None for j in document.findings):
        return "The model as it is showed nothing."
    return "The model as it is was inspected, and nothing could be judged there."


def _compress_commands(document: AuditDocument, variants: list[Variant]) -> list[str]:
    asked = _asked(document)
    if asked is None:
        return []
    # A classifier has no ordinary inputs of its own.
    images = asked.images("--calibration") if document.model and document.model.classes else []
    first, last = ["genwarden", "compress", *asked.model], ["--remedy", REMEDY, *images]
    audit = ["--audit", _in_folder(asked.out, "audit.json")]
    commands = []
    for variant in variants[:_MOST_COMMANDS]:
        held = chain(flagged_latents(variant.findings), flagged_triggers(variant.findings))
        tried = audit if any(held) else []
        end = ["--out", f"{_stem(asked.model[0])}-{variant.name}"]
        commands.append(shlex.join([*first, "--how", variant.name, *last, *tried, *end]))
    return commands


def _full_audit_command(document: AuditDocument) -> str:
    asked = _asked(document)
    if asked is None:
        return ""
    words = ["genwarden", "audit", *asked.model]
    words += asked.images("--data") if document.model and document.model.classes else []
    words += asked.references
    return shlex.join([*words, "--out", f"{_stem(asked.model[0])}-audit"])


def _repair_command(document: AuditDocument) -> str:
    asked = _asked(document)
    if asked is None or document.model is None:
        return ""
    words = ["genwarden", "repair", *asked.model]
    if document.model.classes:
        words += ["--method", "fine-pruning", *asked.images("--data")]
    else:
        words += ["--audit", _in_folder(asked.out, "audit.json")]
    return shlex.join([*words, "--out", f"{_stem(asked.model[0])}-repaired"])


def _asked(document: AuditDocument) -> _Asked | None:
    try:
        words = shlex.split(document.command)
    except ValueError:
        return None
    if words[:2] != ["genwarden", "audit"] or len(words) < 3:
        return None
    model, out, references, data = [words[2]], "", [], "IMAGES"
    for flag, value in pairwise(words[3:]):
        if flag in {"--architecture", "--setting"}:
            model += [flag, value]
        elif flag == "--out":
            out = value
        elif flag == "--references":
            references = [flag, value]
        elif flag == "--data":
            data = value
    resize = ["--resize"] if "--resize" in words else []
    return _Asked(model, out, references, data, resize) if out else None


def _in_folder(folder: str, name: str) -> str:
    return str(PurePosixPath(folder) / name)


def _stem(model: str) -> str:
    """A folder beside the model; of a weights file without its ending."""
    path = PurePosixPath(model)
    return str(path.with_suffix("") if path.suffix in _WEIGHTS else path)
