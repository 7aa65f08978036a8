"""Whether a folder of results may take an audit.

One that holds a verdict on something else is left alone: people keep ``audit.json`` with the model
that it belongs to.
"""

from __future__ import annotations

import shlex
from os.path import normpath
from pathlib import Path

from genwarden.auditing.document import AuditDocument
from genwarden.commands.report import read_document
from genwarden.errors import GenwardenError

#: Options that do not change what is audited or how.
_INDIFFERENT = {"--out", "--device"}


def require_own_folder(out: Path, command: str, sha256: str | None) -> None:
    """Refuse to write over a finished audit, unless it is the same one that is made again.

    The same: the same weights, with the same options, wherever they lie. Of a file that was
    refused, now or then, no weights are known; it is the same if the path is.

    Args:
        command: the command line that repeats the audit that is asked for.
        sha256: of the weights; None for a file that is refused.

    Raises:
        GenwardenError: ``audit/other-audit``.
    """
    path = out / "audit.json"
    if not path.exists():
        return
    try:
        differing = _differing(read_document(path), command, sha256)
    except (GenwardenError, ValueError):  # or its command cannot be split into words
        differing = "it is no audit that this version reads"
    if differing:
        raise GenwardenError(
            "audit/other-audit",
            f"{path} is a finished audit of something else ({differing}).",
            "Choose another --out folder, or add --restart to replace that audit.",
        )


def _differing(before: AuditDocument, command: str, sha256: str | None) -> str:
    """What is not the same, in words; "" if all is."""
    then, now = _asked(before.command), _asked(command)
    if before.model is None or sha256 is None:
        if [normpath(path) for path in then[""]] != [normpath(path) for path in now[""]]:
            return "another file"
    elif before.model.sha256 != sha256:
        return f"other weights: sha256 {before.model.sha256[:12]}, now {sha256[:12]}"
    flags = sorted(
        flag for flag in {*then, *now} - _INDIFFERENT - {""} if then.get(flag) != now.get(flag)
    )
    return f"{', '.join(flags)} differ{'s' * (len(flags) == 1)}" if flags else ""


def _asked(command: str) -> dict[str, list[str]]:
    """Values by flag of a command line; the model is under ""."""
    words = shlex.split(command)
    asked: dict[str, list[str]] = {"": words[2:3]}
    flag = ""
    for word in words[3:]:
        if word.startswith("--"):
            flag = word
            asked.setdefault(flag, [])
        elif flag:
            asked[flag].append(word)
    return asked
