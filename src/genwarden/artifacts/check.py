"""``genwarden check FILE``: what a file is, and whether it is safe to open.

"Safe to open" and "free of a backdoor" are different questions. This module answers the first one
alone: a network with a perfect backdoor is safe to open. Of safetensors the header is read, a torch
file is read in a confined child process that sends names and shapes; no weight becomes a tensor
here, and torch is not imported for a file.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from genwarden.artifacts.diffusers_layout import is_diffusers_folder
from genwarden.artifacts.formats import identify
from genwarden.artifacts.limits import in_words
from genwarden.artifacts.read_once import read_once
from genwarden.artifacts.reading_child import read_in_child
from genwarden.artifacts.safetensors_header import (
    BYTES_OF,
    TensorFacts,
    read_header,
    read_metadata,
)
from genwarden.artifacts.shown import shown
from genwarden.artifacts.torch_zip import no_tensors
from genwarden.artifacts.unread import unread_files
from genwarden.errors import ExitCode, GenwardenError

_MOST_TENSORS = 40
_MOST_METADATA = 8
_MOST_UNREAD = 20
_LONGEST_LINE = 4000


#: Of diffusers folders: nothing in them is wrong, they only name what genwarden has not.
_UNSUPPORTED = frozenset(
    {
        "artifact/unknown-scheduler",
        "artifact/unsupported-scheduler",
        "artifact/class-conditional",
        "artifact/sharded-weights",
    }
)


class CheckFinding(NamedTuple):
    """One reason to refuse a file; ``code`` is stable, the others are one sentence each."""

    code: str
    cause: str
    remedy: str
    exit_code: ExitCode = ExitCode.ERROR

    @classmethod
    def of(cls, error: GenwardenError) -> CheckFinding:
        """From the error that opening the file would end in."""
        return cls(error.code, error.cause, error.remedy, error.exit_code)


@dataclass(frozen=True)
class CheckReport:
    """What is known about a file without trusting it.

    Attributes:
        path: the file; for a model folder, its weights file.
        format: ``safetensors``, ``torch zip`` or ``unknown``, decided by content.
        tensors: as stored; empty if the file was refused.
        findings: why the file is refused; empty means safe to open.
        metadata: texts that a safetensors file carries beside its tensors; claims, not facts.
        confined: the layers of confinement under which a torch file was read.
        unread: of a folder, what genwarden does not open and other software may: name and kind.
    """

    path: str
    format: str
    size_bytes: int
    sha256: str
    tensors: list[TensorFacts]
    findings: list[CheckFinding]
    metadata: dict[str, str] = field(default_factory=dict)
    confined: tuple[str, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()

    @property
    def safe_to_open(self) -> bool:
        """Nothing in what was examined runs code or claims more memory than the file holds."""
        return not self.findings

    @property
    def sentence(self) -> str:
        """The verdict for a person; it never speaks about the weights' behaviour."""
        if self.safe_to_open and self.unread:
            return (
                "What genwarden opens of it is safe to open; the files above were not examined. "
                "Whether the weights carry a backdoor is for an audit to say."
            )
        if self.safe_to_open:
            return "Safe to open. Whether the weights carry a backdoor is for an audit to say."
        if self.exit_code == ExitCode.INCONCLUSIVE:
            return "Not examined: whether it is safe to open is not known."
        if {finding.code for finding in self.findings} <= _UNSUPPORTED:
            return "Refused: genwarden does not know what it names; the weights were not examined."
        return "Refused: not safe to open."

    @property
    def exit_code(self) -> ExitCode:
        """0 safe to open, 2 refused, 3 not examined (R-12)."""
        codes = {finding.exit_code for finding in self.findings}
        if ExitCode.ERROR in codes:
            return ExitCode.ERROR
        return ExitCode.INCONCLUSIVE if codes or self.unread else ExitCode.NONE_FOUND


def check_file(path: Path) -> CheckReport:
    """Examine a weights file, or a model folder (its manifest, and the hash of its weights).

    A safetensors file is judged by its header alone, its weights are hashed and not read. A torch
    file is read in a confined child process, which sends back names, types and shapes.

    Raises:
        GenwardenError: ``artifact/not-found`` and the like, when there is nothing to examine.
    """
    if not os.path.isdir(path):
        return _check_content(path, read_once(path))
    if is_diffusers_folder(path):
        return _check_diffusion(path)
    from genwarden.artifacts.manifest import MANIFEST_NAME, WEIGHTS_NAME
    from genwarden.artifacts.model_folder import read_manifest

    manifest = read_manifest(path)
    weights = path / WEIGHTS_NAME
    report = _check_content(weights, read_once(weights, member=True))
    findings = report.findings
    if report.sha256 != manifest.files[WEIGHTS_NAME]:
        mismatch = CheckFinding(
            "artifact/hash-mismatch",
            f"{weights} does not have the sha256 that its manifest states.",
            "The file was changed or damaged after it was written; fetch the folder again.",
        )
        findings = [mismatch, *findings]
    unread = unread_files(path, (weights, path / MANIFEST_NAME))
    return replace(report, findings=findings, unread=unread)


def _check_diffusion(folder: Path) -> CheckReport:
    """A diffusers folder: its configurations, then the weights file."""
    from genwarden.artifacts.diffusers_folder import read_outline, require_stated

    try:
        outline = read_outline(folder)
    except GenwardenError as error:
        if error.code == "artifact/not-found" or error.exit_code == ExitCode.INCONCLUSIVE:
            raise  # nothing is wrong with the folder: genwarden does not know this kind of model
        finding = CheckFinding.of(error)
        return CheckReport(str(folder), "diffusers folder", 0, "-", [], [finding])
    report = _check_content(outline.weights, read_once(outline.weights, member=True))
    findings = report.findings
    if not findings:
        try:
            require_stated(folder, {**outline.hashes, outline.role: report.sha256})
        except GenwardenError as error:
            findings = [CheckFinding.of(error)]
    unread = unread_files(folder, (outline.weights, *outline.read))
    return replace(report, findings=findings, unread=unread)


def describe(report: CheckReport, *, most_tensors: int = _MOST_TENSORS) -> str:
    """The report as plain lines for a terminal; names from the file are escaped."""
    lines = [
        f"File:    {shown(report.path, limit=_LONGEST_LINE)}",
        f"Format:  {report.format}, {report.size_bytes:,} bytes"
        if report.size_bytes
        else f"Format:  {report.format}; its weights were not read",
    ]
    if report.size_bytes:
        lines.append(f"sha256:  {report.sha256}")
    if report.tensors:
        numbers = sum(math.prod(facts.shape) for facts in report.tensors)
        lines.append(f"Tensors: {len(report.tensors)} with {numbers:,} numbers")
        lines += [
            f"  {shown(facts.name):<40} {facts.dtype:<9} {'x'.join(map(str, facts.shape)) or '-'}"
            for facts in report.tensors[:most_tensors]
        ]
        if len(report.tensors) > most_tensors:
            lines.append(f"  ... and {len(report.tensors) - most_tensors} more")
    if report.metadata:
        told = ", ".join(
            f"{shown(k, limit=30)}={shown(v, limit=40)}" for k, v in _few(report.metadata)
        )
        lines.append(f"It says of itself: {told}")
    if report.confined:
        lines.append(f"Read in a child process confined by {', '.join(report.confined)}.")
    lines.append(f"Limits:  {in_words()}")
    if report.unread:
        lines.append("Not looked at, since genwarden does not open it; other software may:")
        lines += [f"  {shown(name):<40} {what}" for name, what in report.unread[:_MOST_UNREAD]]
        if len(report.unread) > _MOST_UNREAD:
            lines.append(f"  ... and {len(report.unread) - _MOST_UNREAD} more")
    lines.append(report.sentence)
    for finding in report.findings:
        # One line each: a path may hold line breaks, and a sentence of its own behind them.
        lines.append(f"  [{finding.code}] {shown(finding.cause, limit=_LONGEST_LINE)}")
        lines.append(f"    -> {shown(finding.remedy, limit=_LONGEST_LINE)}")
    return "\n".join(lines)


def _few(metadata: dict[str, str]) -> list[tuple[str, str]]:
    return list(metadata.items())[:_MOST_METADATA]


def _check_content(path: Path, content: bytes) -> CheckReport:
    where = str(path)
    findings: list[CheckFinding] = []
    tensors: list[TensorFacts] = []
    metadata: dict[str, str] = {}
    confined: tuple[str, ...] = ()
    kind = "unknown"
    try:
        kind = identify(content, where)
        if kind == "safetensors":
            tensors = read_header(content, where)
            metadata = read_metadata(content)
        else:
            tensors, confined = _torch_facts(content, where)
        if not tensors:
            raise no_tensors(where)
    except GenwardenError as error:
        findings = [CheckFinding.of(error)]
    return CheckReport(
        path=where,
        format=kind,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        tensors=tensors,
        findings=findings,
        metadata=metadata,
        confined=confined,
    )


def _torch_facts(content: bytes, where: str) -> tuple[list[TensorFacts], tuple[str, ...]]:
    reading = read_in_child(content, where, "facts")
    facts = [
        TensorFacts(w.name, w.dtype, w.shape, math.prod(w.shape) * BYTES_OF[w.dtype])
        for w in reading.windows
    ]
    return facts, reading.confined
