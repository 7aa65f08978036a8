"""``genwarden audit``: open, inspect, decide, and write ``audit.json`` and ``audit.html``."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genwarden.artifacts.model_folder import LoadedModel
from genwarden.artifacts.open_model import open_model
from genwarden.auditing.audit import Request, Suspect, audit, refused
from genwarden.auditing.budgets import budget as budget_named
from genwarden.auditing.document import AuditDocument
from genwarden.data.datasets import load_images, to_unit_range
from genwarden.data.images import NamedImages, read_images
from genwarden.engine.device import pick_device
from genwarden.engine.files import require_writable_folder, sha256_bytes, write_atomic, write_json
from genwarden.engine.progress import Progress
from genwarden.errors import GenwardenError
from genwarden.reports.html import render_html

#: Codes with this prefix mean that the model itself was refused; the refusal is a verdict and
#: gets a document of its own.
_REFUSAL_PREFIX = "artifact/"


@dataclass(frozen=True)
class AuditOptions:
    """What the user asked for; see ``genwarden audit --help``."""

    model: Path
    out: Path
    targets: Path | None = None
    data: str | None = None
    data_limit: int = 10_000
    budget: str = "standard"
    seed: int = 0
    device: str = "auto"
    architecture: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    restart: bool = False


class AuditFiles(NamedTuple):
    """The document and where it was written."""

    document: AuditDocument
    json_path: Path
    html_path: Path


def audit_model(options: AuditOptions, *, progress: Progress) -> AuditFiles:
    """Audit one model; resumes from ``out/.work`` if an earlier run was interrupted.

    Raises:
        GenwardenError: wrong usage, unreadable targets or data, an output folder that cannot be
            written. A refused *model* is not raised: it is a document with verdict ``refused``.
    """
    budget_named(options.budget)
    device = pick_device(options.device)
    command = repeat_command(options)
    try:
        model = open_model(
            options.model, architecture=options.architecture, settings=options.settings
        )
    except GenwardenError as error:
        if not error.code.startswith(_REFUSAL_PREFIX) or error.code == "artifact/not-found":
            raise
        require_writable_folder(options.out)
        document = refused(error, budget=options.budget, seed=options.seed, command=command)
        return write_documents(document, options.out)
    targets, training = _inputs(options, model)
    require_writable_folder(options.out)
    work = options.out / ".work"
    if options.restart:
        shutil.rmtree(work, ignore_errors=True)
    for stale in ("audit.json", "audit.html"):  # an interruption must not leave another's verdict
        (options.out / stale).unlink(missing_ok=True)
    document = audit(
        suspect_of(model, options.model),
        Request(
            budget=options.budget,
            seed=options.seed,
            device=device,
            targets=targets,
            training=training,
            inputs_sha256=_fingerprint(targets, training),
            command=command,
            sample_command=sample_command(options),
        ),
        work=work,
        progress=progress,
    )
    files = write_documents(document, options.out)
    shutil.rmtree(work, ignore_errors=True)
    return files


def suspect_of(model: LoadedModel, path: Path) -> Suspect:
    """What an audit is given of an opened model, under the path that the user knows it by."""
    return Suspect(
        generator=model.generator,
        architecture=model.architecture,
        settings=model.settings,
        sha256=model.sha256,
        nonfinite=model.nonfinite,
        path=str(path),
    )


def write_documents(document: AuditDocument, out: Path) -> AuditFiles:
    """Write ``audit.json`` and the HTML report made from it."""
    json_path, html_path = out / "audit.json", out / "audit.html"
    write_json(json_path, document.model_dump(mode="json"))
    write_atomic(html_path, render_html(document).encode())
    return AuditFiles(document, json_path, html_path)


def repeat_command(options: AuditOptions) -> str:
    """The command line that repeats the audit."""
    words = _model_words("audit", options)
    if options.targets:
        words += ["--target", str(options.targets)]
    if options.data:
        words += ["--data", options.data, "--data-limit", str(options.data_limit)]
    words += ["--budget", options.budget, "--seed", str(options.seed)]
    if options.device != "auto":
        words += ["--device", options.device]
    words += ["--out", str(options.out)]
    return shlex.join(words)


def sample_command(options: AuditOptions) -> str:
    """The command line that draws a candidate of the audit, but for its number."""
    words = _model_words("sample", options)
    return shlex.join([*words, "--audit", str(options.out / "audit.json")])


def _model_words(command: str, options: AuditOptions) -> list[str]:
    words = ["genwarden", command, str(options.model)]
    if options.architecture:
        words += ["--architecture", options.architecture]
    for key, value in options.settings.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        words += ["--setting", f"{key}={text}"]
    return words


def _inputs(options: AuditOptions, model: LoadedModel) -> tuple[NamedImages | None, Tensor | None]:
    sample = model.generator.sample
    targets = read_images(options.targets, sample) if options.targets else None
    training = None
    if options.data:
        training = to_unit_range(load_images(options.data, sample, limit=options.data_limit))
    return targets, training


def _fingerprint(targets: NamedImages | None, training: torch.Tensor | None) -> str:
    content = b""
    if targets is not None:
        content += repr(targets.names).encode() + targets.images.numpy().tobytes()
    if training is not None:
        content += training.numpy().tobytes()
    return sha256_bytes(content) if content else ""
