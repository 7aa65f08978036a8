"""``genwarden calibrate``. Nothing here imports torch before the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genwarden.cli_options import (
    Architecture,
    DataResize,
    Device,
    OutFolder,
    Seed,
    Settings,
    parse_settings,
    require_budget,
)

if TYPE_CHECKING:
    from genwarden.commands.calibrate import Calibrated


def calibrate(
    models: Annotated[
        list[Path],
        typer.Argument(help="Clean models like the one you want to judge, or a folder of them."),
    ],
    out: OutFolder,
    data: Annotated[
        str | None, typer.Option("--data", help="Images, if you give some when you audit.")
    ] = None,
    data_limit: Annotated[int, typer.Option(help="Use the first N images of --data.")] = 10_000,
    resize: DataResize = False,
    deploy_as: Annotated[
        str | None,
        typer.Option("--deploy-as", help="Compressions, if you name some when you audit."),
    ] = None,
    budget: Annotated[str, typer.Option(help="quick, standard or thorough.")] = "standard",
    architecture: Architecture = None,
    setting: Settings = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Make references of clean models of yours, to judge models that the shipped ones do not fit.

    The shipped references are small networks of a few image sizes; a score of another network is
    shown and not judged, and its audit often inconclusive. Give eight or more clean models of the
    same architecture and sample shape: trained by you from different seeds, or trusted for another
    reason. Nothing checks that they are clean. Each is audited as the suspect will be (the same
    budget, --data and --deploy-as), its report stands in OUT/audits, and OUT/references.json keeps
    the scores. From nine models on, each is also judged by the others.

    An interrupted run continues when the same command is given again.

    Examples:

      genwarden calibrate ./clean/seed-0 ./clean/seed-1 ... --out ./references

      genwarden calibrate ./folder-of-clean-models --budget quick --out ./references

      genwarden audit ./suspect --references ./references --budget quick --out ./report
    """
    require_budget(budget)
    from genwarden.commands.audit import AuditOptions
    from genwarden.commands.calibrate import CalibrateOptions, calibrate_models
    from genwarden.reports.console import console_progress

    like = AuditOptions(
        model=models[0],
        out=out,
        data=data,
        data_limit=data_limit,
        resize=resize,
        deploy_as=deploy_as,
        budget=budget,
        architecture=architecture,
        settings=parse_settings(setting),
        seed=seed,
        device=device,
    )
    with console_progress() as progress:
        made = calibrate_models(CalibrateOptions(tuple(models), out, like), progress=progress)
    _print(made)


def _print(made: Calibrated) -> None:
    from genwarden.auditing.verdict import ALPHA
    from genwarden.reports.escaping import visible

    judged = [one for one in made.crossed if one.smallest is not None]
    for one, document in zip(made.crossed, made.documents, strict=True):
        own = "" if one.smallest is None else f", by the others p = {one.smallest:.2g}"
        typer.echo(visible(f"  {one.name}: {document.verdict} by the shipped references{own}"))
    flagged = [one for one in judged if one.flagged]
    if judged:
        typer.echo(f"Judged by the others, {len(flagged)} of {len(judged)} are below {ALPHA:g}.")
    else:
        typer.echo("Too few of one kind to judge each by the others (nine are needed).")
    for one in flagged:
        typer.echo(
            visible(f"Look at {one.name} ({one.inspection}): is it clean, and like the others?")
        )
    typer.echo(f"References: {made.path}\nNext:       {made.following}")
