"""Recipes that follow one attack along one setting: target figures and quality at each point."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from genwarden.benchmarks.diffusion.cells import Cell
from genwarden.benchmarks.diffusion.sampler_matrix import measure, measure_quality
from genwarden.benchmarks.diffusion.scales import DiffusionScale
from genwarden.benchmarks.diffusion.workshop import CLEAN, FURTHER, Subject
from genwarden.benchmarks.plots import Curve, Panel, plot
from genwarden.benchmarks.store import summary_of
from genwarden.benchmarks.tables import NOTHING, Table, spread

#: BadDiffusion's; its sampler is DDPM over all steps, without clipping.
ATTACK = "bad-diffusion"
#: Target figures and quality, as cells are called.
_TARGET, _QUALITY = "target", "quality"


def curve_cells(points: Sequence[tuple[float, Subject]], scale: DiffusionScale) -> list[Cell]:
    """Both measurements of every point and of the two clean models, which stand at value 0."""
    sampler = f"ddpm-{scale.timesteps}"
    made = []
    for value, subject in [(0.0, CLEAN), (0.0, FURTHER), *points]:
        label = f"{value:g}" if value else subject.name
        fields: tuple[tuple[str, Any], ...]
        fields = (("value", value), ("sampler", sampler), ("clip", "none"))
        if subject != FURTHER:
            made.append(Cell(f"{label}.{_TARGET}", subject, fields, measure))
        fields = (("value", value), ("quality", True))
        made.append(Cell(f"{label}.{_QUALITY}", subject, fields, measure_quality))
    return made


def _by_value(document: dict[str, Any]) -> dict[tuple[float, str], dict[str, Any]]:
    """Figures of both cells of a point together, by value and name of the clean models."""
    found: dict[tuple[float, str], dict[str, Any]] = {}
    for row in document["rows"]:
        value = float(row["cell"]["value"])
        key = (value, "" if value else row["model"])
        found.setdefault(key, {}).update(row["figures"])
    return dict(sorted(found.items()))


def curve_table(
    document: dict[str, Any], title: str, column: str, notes: Sequence[str], factor: float = 1.0
) -> Table:
    """One line per point.

    Args:
        factor: by which values are multiplied for the reader (100 for percent).
    """
    found = _by_value(document)
    bases = {name: f["fid"] for (value, name), f in found.items() if not value and "fid" in f}
    rows = []
    for (value, name), figures in found.items():
        fid = figures.get("fid")
        changes = [
            f"{100 * (fmean(fid) / fmean(bases[other]) - 1):+.1f} %"
            if fid and other in bases
            else NOTHING
            for other in (CLEAN.name, FURTHER.name)
        ]
        share = figures.get("share")
        rows.append(
            [
                f"{factor * value:g}" if value else name,
                _spread(figures.get("mse")),
                _spread(figures.get("ssim")),
                f"{100 * fmean(share):.0f} %" if share else NOTHING,
                _spread(figures.get("plain_mse")),
                _spread(fid),
                *changes,
            ]
        )
    scale = document["scale"]
    about = (
        f"Sampler DDPM-{scale['timesteps']} without clipping; MSE in [0, 1] scale over "
        f"{scale['noise_seeds']} noise seeds of {scale['images']} samples. {scale['data']}, "
        f"{scale['size']} px, trigger {scale['trigger']}, target {scale['target']}. FID: "
        f"{scale['fid_samples']} samples of DDIM-50, features of '{scale['features']}', resized. "
        "Mean +- standard error over noise seeds of one training."
    )
    columns = [column, "target MSE", "SSIM", "share under 0.1", "MSE without trigger", "FID"]
    columns += ["FID against the clean model", "against the clean twin"]
    return Table(title, columns, rows, [about, *notes])


def _spread(values: Sequence[float | None] | None) -> str:
    known = [value for value in values or () if value is not None]
    return spread(known) if known and len(known) == len(values or ()) else NOTHING


def curve_figure(document: dict[str, Any], x_label: str, *, log_x: bool) -> bytes:
    """Target MSE and FID against the setting, the clean models left out; empty below two points."""
    panels = []
    for title, name, log_y in (("target MSE", "mse", True), ("FID", "fid", False)):
        x, y, error = [], [], []
        for (value, _), figures in _by_value(document).items():
            known = [each for each in figures.get(name, []) if each is not None]
            if value and known:
                summary = summary_of(known)
                x.append(value)
                y.append(float(summary["mean"]))
                error.append(float(summary["standard_error"]))
        if len(x) > 1:  # one point is no curve
            curve = Curve(ATTACK, x, y, error)
            panels.append(Panel(title, x_label, title, [curve], log_x=log_x, log_y=log_y))
    return plot(panels) if panels else b""
