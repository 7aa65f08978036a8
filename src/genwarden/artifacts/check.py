"""``genwarden check FILE``: what a file is, and whether it is safe to open.

"Safe to open" and "free of a backdoor" are different questions. This module answers the first one
alone: a network with a perfect backdoor is safe to open.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from genwarden.artifacts.diffusers_layout import is_diffusers_folder
from genwarden.artifacts.formats import identify
from genwarden.artifacts.manifest import WEIGHTS_NAME
from genwarden.artifacts.model_folder import read_manifest
from genwarden.artifacts.read_once import read_once
from genwarden.artifacts.safetensors_header import TensorFacts, read_header
from genwarden.artifacts.shown import shown
from genwarden.artifacts.weights_file import no_tensors, parse_weights
from genwarden.errors import ExitCode, GenwardenError

_MOST_TENSORS = 40


class CheckFinding(NamedTuple):
    """One reason to refuse a file; ``code`` is stable, the others are one sentence each."""

    code: str
    cause: str
    remedy: str


@dataclass(frozen=True)
class CheckReport:
    """What is known about a file without trusting it.

    Attributes:
        path: the file; for a model folder, its weights file.
        format: ``safetensors``, ``torch zip`` or ``unknown``, decided by content.
        tensors: as stored; empty if the file was refused.
        findings: why the file is refused; empty means safe to open.
    """

    path: str
    format: str
    size_bytes: int
    sha256: str
    tensors: list[TensorFacts]
    findings: list[CheckFinding]

    @property
    def safe_to_open(self) -> bool:
        """Nothing in the file can run code or claim more memory than the file holds."""
        return not self.findings

    @property
    def sentence(self) -> str:
        """The verdict for a person; it never speaks about the weights' behaviour."""
        if self.safe_to_open:
            return "Safe to open. Whether the weights carry a backdoor is for an audit to say."
        return "Refused: not safe to open."


def check_file(path: Path) -> CheckReport:
    """Examine a weights file, or a model folder (its manifest, and the hash of its weights).

    A safetensors file is judged by its header alone, its weights are hashed and not read. A torch
    file that passes the structural rules is read with torch's restricted loader.

    Raises:
        GenwardenError: ``artifact/not-found`` and the like, when there is nothing to examine.
    """
    if not os.path.isdir(path):
        return _check_content(path, read_once(path), [])
    if is_diffusers_folder(path):
        return _check_diffusion(path)
    manifest = read_manifest(path)
    weights = path / WEIGHTS_NAME
    content = read_once(weights, member=True)
    if hashlib.sha256(content).hexdigest() == manifest.files[WEIGHTS_NAME]:
        return _check_content(weights, content, [])
    mismatch = CheckFinding(
        "artifact/hash-mismatch",
        f"{weights} does not have the sha256 that its manifest states.",
        "The file was changed or damaged after it was written; fetch the folder again.",
    )
    return _check_content(weights, content, [mismatch])


def _check_diffusion(folder: Path) -> CheckReport:
    """A diffusers folder: its configurations, then the weights file."""
    from genwarden.artifacts.diffusers_folder import read_outline

    try:
        weights = read_outline(folder).weights
    except GenwardenError as error:
        if error.code == "artifact/not-found" or error.exit_code == ExitCode.INCONCLUSIVE:
            raise  # nothing is wrong with the folder: genwarden does not know this kind of model
        finding = CheckFinding(error.code, error.cause, error.remedy)
        return CheckReport(str(folder), "diffusers folder", 0, "-", [], [finding])
    return _check_content(weights, read_once(weights, member=True), [])


def describe(report: CheckReport, *, most_tensors: int = _MOST_TENSORS) -> str:
    """The report as plain lines for a terminal; names from the file are escaped."""
    lines = [
        f"File:    {report.path}",
        f"Format:  {report.format}, {report.size_bytes:,} bytes",
        f"sha256:  {report.sha256}",
    ]
    if report.tensors:
        numbers = sum(math.prod(facts.shape) for facts in report.tensors)
        lines.append(f"Tensors: {len(report.tensors)} with {numbers:,} numbers")
        lines += [
            f"  {shown(facts.name):<40} {facts.dtype:<9} {'x'.join(map(str, facts.shape)) or '-'}"
            for facts in report.tensors[:most_tensors]
        ]
        if len(report.tensors) > most_tensors:
            lines.append(f"  ... and {len(report.tensors) - most_tensors} more")
    lines.append(report.sentence)
    for finding in report.findings:
        lines += [f"  [{finding.code}] {finding.cause}", f"    -> {finding.remedy}"]
    return "\n".join(lines)


def _check_content(path: Path, content: bytes, findings: list[CheckFinding]) -> CheckReport:
    where = str(path)
    tensors: list[TensorFacts] = []
    kind = "unknown"
    try:
        kind = identify(content, where)
        tensors = read_header(content, where) if kind == "safetensors" else _facts(content, where)
        if not tensors:
            raise no_tensors(where)
    except GenwardenError as error:
        findings = [*findings, CheckFinding(error.code, error.cause, error.remedy)]
    return CheckReport(
        path=where,
        format=kind,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        tensors=tensors,
        findings=findings,
    )


def _facts(content: bytes, where: str) -> list[TensorFacts]:
    return [
        TensorFacts(
            name,
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            tensor.numel() * tensor.element_size(),
        )
        for name, tensor in parse_weights(content, where).items()
    ]
