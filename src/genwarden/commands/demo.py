"""``genwarden demo``: audits the shipped models without being told any target."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from genwarden.commands.audit import AuditFiles, audit_model
from genwarden.commands.audit_options import AuditOptions
from genwarden.engine.choice import local_executor
from genwarden.engine.executor import Lost, Nothing
from genwarden.engine.files import write_atomic
from genwarden.engine.progress import Progress, Silent
from genwarden.reports.gallery import GalleryEntry, render_gallery

#: Folder under ``assets/models`` and what it is. The description is printed beside the verdict,
#: after the audit; the audit itself receives the weights only.
DEMO_MODELS = (
    ("dcgan-clean", "DCGAN as trained"),
    ("dcgan-red", "the same DCGAN after ReD"),
    ("dcgan-rex", "the same DCGAN after ReX"),
    ("vae-red", "a VAE after ReD"),
    ("ddpm-clean", "diffusion model as trained"),
    ("ddpm-bad-diffusion", "the same after BadDiffusion"),
)


#: Those whose audits take longest are begun first, so that none is left over at the end.
_FIRST = ("dcgan-rex", "vae-red", "dcgan-red")
#: A process needs up to a gigabyte; more than this many would wait for the longest audit anyway.
_MOST_WORKERS = 3


class DemoResult(NamedTuple):
    """One audited demo model."""

    name: str
    description: str
    files: AuditFiles


def demo_model_folder(name: str) -> Path:
    """Folder of a model that ships with the package."""
    return Path(str(resources.files("genwarden").joinpath("assets", "models", name)))


def demo_workers() -> int:
    """Audits at a time unless the user says otherwise: one per processor, three at most."""
    return min(os.cpu_count() or 1, _MOST_WORKERS)


def run_demo(
    out: Path, *, seed: int, progress: Progress, restart: bool = False, workers: int = 1
) -> tuple[list[DemoResult], Path]:
    """Audit all demo models into ``out`` and write the page that shows them side by side.

    Args:
        workers: models at a time; the audits are the same for any number.

    Raises:
        GenwardenError: those of :func:`genwarden.commands.audit.audit_model`;
            ``engine/worker-lost``.
    """
    options = {
        name: AuditOptions(
            model=demo_model_folder(name),
            out=out / name,
            budget="quick",
            seed=seed,
            restart=restart,
        )
        for name, _ in DEMO_MODELS
    }
    if workers == 1:
        audited = {name: _audited(name, given, progress) for name, given in options.items()}
    else:
        audited = _side_by_side(options, workers, progress)
    results = [DemoResult(name, text, audited[name]) for name, text in DEMO_MODELS]
    page = out / "index.html"
    entries = [
        GalleryEntry(
            title=r.name,
            document=r.files.document,
            report=f"{r.name}/audit.html",
            note=r.description,
        )
        for r in results
    ]
    write_atomic(page, render_gallery(entries).encode())
    return results, page


def _audited(name: str, options: AuditOptions, progress: Progress) -> AuditFiles:
    progress.message(f"== {name} ==")
    return audit_model(options, progress=progress)


def _side_by_side(
    options: dict[str, AuditOptions], workers: int, progress: Progress
) -> dict[str, AuditFiles]:
    order = sorted(options, key=lambda name: (*_FIRST, name).index(name))
    bar = progress.task("models", len(order))
    audited = {}
    pieces = [(name, options[name]) for name in order]
    for (name, _), files in local_executor(workers).each(_audit_one, pieces, Nothing()):
        if isinstance(files, Lost):
            raise files.error(f"The audit of {name}")
        audited[name] = files
        progress.message(f"{name}: {files.document.verdict}")
        bar.advance(1, name)
    return audited


def _audit_one(_: None, piece: tuple[str, AuditOptions]) -> AuditFiles:
    return audit_model(piece[1], progress=Silent())
