"""``genwarden demo``: audits the shipped models without being told any target."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import NamedTuple

from genwarden.commands.audit import AuditFiles, audit_model
from genwarden.commands.audit_options import AuditOptions
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


class DemoResult(NamedTuple):
    """One audited demo model."""

    name: str
    description: str
    files: AuditFiles


def demo_model_folder(name: str) -> Path:
    """Folder of a model that ships with the package."""
    return Path(str(resources.files("genwarden").joinpath("assets", "models", name)))


def run_demo(
    out: Path, *, seed: int, progress: Progress, restart: bool = False
) -> tuple[list[DemoResult], Path]:
    """Audit all demo models into ``out`` and write the page that shows them side by side."""
    results = []
    for name, description in DEMO_MODELS:
        progress.message(f"== {name} ==")
        options = AuditOptions(
            model=demo_model_folder(name),
            out=out / name,
            budget="quick",
            seed=seed,
            restart=restart,
        )
        results.append(DemoResult(name, description, audit_model(options, progress=progress)))
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
