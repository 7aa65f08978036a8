"""Audits of several models, one after the other or side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from genwarden.commands.audit import AuditFiles, audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.engine.choice import local_executor
from genwarden.engine.executor import Lost, Nothing
from genwarden.engine.progress import Progress, Silent


def audit_several(
    wanted: Mapping[str, AuditOptions], *, workers: int, progress: Progress
) -> Iterator[tuple[str, AuditFiles]]:
    """Audit the models of ``wanted``, begun in its order; each with its name, as they end.

    Args:
        workers: models at a time, in processes of their own; the audits are the same for any
            number. One: in this process, with each audit's own progress.

    Raises:
        GenwardenError: those of :func:`genwarden.commands.audit.audit_model`;
            ``engine/worker-lost``.
    """
    whole = progress.task("models", len(wanted))
    if workers == 1:
        for number, (name, options) in enumerate(wanted.items(), start=1):
            progress.message(f"== {number} of {len(wanted)}: {name} ==")
            yield name, audit_model(options, progress=progress)
            whole.advance(note=name)
        return
    pieces = list(wanted.items())
    for (name, _), files in local_executor(workers).each(_audited, pieces, Nothing()):
        if isinstance(files, Lost):
            raise files.error(f"The audit of {name}")
        yield name, files
        whole.advance(note=name)


def _audited(_: None, piece: tuple[str, AuditOptions]) -> AuditFiles:
    return audit_model(piece[1], progress=Silent())
