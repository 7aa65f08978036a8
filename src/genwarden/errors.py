"""The one error class that reaches a user: a stable code, one sentence of cause, one of remedy."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line (ClamAV-compatible)."""

    NONE_FOUND = 0
    EVIDENCE = 1
    ERROR = 2
    INCONCLUSIVE = 3


class GenwardenError(Exception):
    """A failure that the user can act on.

    Args:
        code: stable identifier such as ``artifact/hash-mismatch``; scripts may rely on it.
        cause: one sentence that says what is wrong and where.
        remedy: one sentence that says what to do about it.
        exit_code: 2 for errors and refused files, 3 where something could not be tested.
    """

    def __init__(
        self, code: str, cause: str, remedy: str, exit_code: ExitCode = ExitCode.ERROR
    ) -> None:
        super().__init__(f"[{code}] {cause} {remedy}")
        self.code = code
        self.cause = cause
        self.remedy = remedy
        self.exit_code = exit_code
