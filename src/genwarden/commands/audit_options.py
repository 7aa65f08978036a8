"""What a user asks of ``genwarden audit``, and the command lines that say it again."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genwarden.engine.choice import EngineChoice


@dataclass(frozen=True)
class AuditOptions:
    """What the user asked for; see ``genwarden audit --help``.

    Attributes:
        keep: the finished work stays in ``out``, so that the same audit again computes nothing.
    """

    model: Path
    out: Path
    targets: Path | None = None
    data: str | None = None
    data_limit: int = 10_000
    resize: bool = False
    budget: str = "standard"
    seed: int = 0
    device: str = "auto"
    architecture: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    restart: bool = False
    base: Path | None = None
    noise: Path | None = None
    deploy_as: str | None = None
    variants_only: bool = False
    scan_precision: str = "float32"
    threads: int | None = None
    engine: EngineChoice = field(default_factory=EngineChoice)
    references: Path | None = None
    keep: bool = False


def repeat_command(options: AuditOptions) -> str:
    """The command line that repeats the audit."""
    words = _model_words("audit", options)
    if options.targets:
        words += ["--target", str(options.targets)]
    if options.data:
        words += ["--data", options.data, "--data-limit", str(options.data_limit)]
        words += ["--resize"] * options.resize
    if options.base:
        words += ["--base", str(options.base)]
    if options.noise:
        words += ["--noise", str(options.noise)]
    if options.deploy_as:
        words += ["--deploy-as", options.deploy_as]
    if options.variants_only:
        words += ["--variants-only"]
    if options.references:
        words += ["--references", str(options.references)]
    words += ["--budget", options.budget, "--seed", str(options.seed)]
    if options.device != "auto":
        words += ["--device", options.device]
    if options.threads is not None:
        words += ["--threads", str(options.threads)]
    if options.scan_precision != "float32":
        words += ["--scan-precision", options.scan_precision]
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
