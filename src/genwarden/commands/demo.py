"""``genwarden demo``: audits the shipped models without being told any target."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from genwarden.commands.audit import AuditFiles
from genwarden.commands.audit_options import AuditOptions
from genwarden.commands.audit_several import audit_several
from genwarden.engine.files import write_atomic
from genwarden.engine.progress import Progress
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


#: The longest audits are begun first, so that none is left over at the end.
_BEGUN = ("dcgan-rex", "vae-red", "dcgan-red", "dcgan-clean", "ddpm-bad-diffusion", "ddpm-clean")
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
        GenwardenError: those of :func:`genwarden.commands.audit_several.audit_several`.
    """
    wanted = {
        name: AuditOptions(
            model=demo_model_folder(name),
            out=out / name,
            budget="quick",
            seed=seed,
            restart=restart,
        )
        for name in sorted(dict(DEMO_MODELS), key=_BEGUN.index)
    }
    audited = {}
    for name, files in audit_several(wanted, workers=workers, progress=progress):
        progress.message(f"{name}: {files.document.verdict}")
        audited[name] = files
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
