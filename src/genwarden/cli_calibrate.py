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
    Restart,
    Seed,
    Settings,
    parse_settings,
    require_budget,
)

if TYPE_CHECKING:
    from genwarden.auditing.own_references import OwnReferences
    from genwarden.commands.calibrate import MadeReferences


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
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            min=1,
            help="Models at a time, each in a process of its own. With 1 every audit's own "
            "progress is shown.",
        ),
    ] = 1,
    restart: Restart = False,
) -> None:
    """Make references of clean models of yours, to judge models that the shipped ones do not fit.

    The shipped references are small networks of a few image sizes; a score of another network is
    shown and not judged, and its audit often inconclusive. Give eight or more (better ten) clean
    models of the same architecture and sample shape, trained on such data and for about as long:
    by you from different seeds, or trusted for another reason. Nothing checks that they are clean.
    Each is audited as the suspect will be (the same budget, --data and --deploy-as), its report
    stands in OUT/audits, and OUT/references.json keeps the scores. A model is named that stands
    out from the others, or in which its own audit finds something: it may not be clean.

    An interrupted run continues when the same command is given again.

    Exit code: 0 references written, 2 error, 3 written, but a model is in doubt.

    Examples:

      genwarden calibrate ./clean/seed-0 ./clean/seed-1 ... --out ./references

      genwarden calibrate ./folder-of-clean-models --budget quick --out ./references

      genwarden audit ./suspect --references ./references --budget quick --out ./report
    """
    require_budget(budget)
    from genwarden.commands.audit_options import AuditOptions
    from genwarden.commands.calibrate import CalibrateOptions, calibrate_models
    from genwarden.reports.console import console_progress

    how = AuditOptions(
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
        restart=restart,
    )
    with console_progress() as progress:
        made = calibrate_models(
            CalibrateOptions(tuple(models), out, how, workers), progress=progress
        )
    _print(made)


def _kept(own: OwnReferences) -> str:
    """How much is in the file, and which inspections it judges."""
    scores = [score for model in own.models for score in model.scores]
    judged = ", ".join(sorted({score.inspection for score in scores}))
    return f"{len(scores)} scores of {len(own.models)} models ({judged})"


def _print(made: MadeReferences) -> None:
    from genwarden.errors import ExitCode
    from genwarden.reports.escaping import visible

    for name, why in made.doubted.items():
        typer.echo(visible(f"{name} is in doubt:"))
        for one in why:
            typer.echo(visible(f"  {one}"))
        typer.echo(visible(f"  Its report: {made.reports[name]}"))
    if made.doubted:
        typer.echo(
            "While it is among them, audits by these references that find nothing are "
            "inconclusive. Calibrate without it, with another clean model in its place: what is "
            "audited already is not computed again."
        )
    else:
        typer.echo(f"No model is in doubt ({len(made.reports)} models).")
    typer.echo(visible(f"Kept:       {_kept(made.own)}"))
    if made.too_few:
        typer.echo(visible(f"Too few scores to judge by: {', '.join(made.too_few)}."))
    typer.echo(f"References: {made.path}\nNext:       {made.following}")
    if made.doubted:
        raise typer.Exit(int(ExitCode.INCONCLUSIVE))
