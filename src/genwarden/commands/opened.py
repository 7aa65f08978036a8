"""An opened model of any kind, before the user's other inputs are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from genwarden.auditing.document import AuditDocument
from genwarden.auditing.given_references import GivenReferences
from genwarden.auditing.own_references import Suspected
from genwarden.engine.executor import Executor

#: From the folder of unfinished work, and where to compute, to the document.
Run = Callable[[Path, Executor], AuditDocument]


class Opened(NamedTuple):
    """An opened model: hash of its weights, and what reads the user's other inputs.

    Attributes:
        threads: with which it is audited, the same on every machine.
        suspected: what decides which references suit it.
        prepare: from these references, or None, to what audits it.
    """

    sha256: str
    threads: int
    suspected: Callable[[], Suspected]
    prepare: Callable[[GivenReferences | None], Run]


def whole(run: Callable[[Path], AuditDocument]) -> Run:
    """An audit that is not split into pieces."""
    return lambda work, _: run(work)
