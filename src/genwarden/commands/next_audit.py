"""The command line of the audit that should follow what another command made."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path


def audit_command(
    model: Path,
    out: Path,
    words: Sequence[str] = (),
    *,
    data: str | Path | None = None,
    resize: bool = False,
) -> str:
    """``genwarden audit`` of a model, with its report beside ``out``.

    Args:
        words: options that the model needs.
        data: images for an audit that needs some.
        resize: scale them, as the command did that was given them.
    """
    images = [] if data is None else ["--data", str(data), *["--resize"] * resize]
    return shlex.join(["genwarden", "audit", str(model), *words, *images, "--out", f"{out}-audit"])
