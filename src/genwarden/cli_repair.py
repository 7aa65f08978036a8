"""``genwarden repair``. Nothing here imports torch before the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from genwarden.cli_options import (
    EXIT_CODES,
    Architecture,
    DataResize,
    Device,
    ModelPath,
    OutFolder,
    Restart,
    Seed,
    Settings,
    parse_settings,
)

if TYPE_CHECKING:
    from genwarden.commands.repairing import RepairOptions


def repair(
    model: ModelPath,
    out: OutFolder,
    audit_json: Annotated[
        Path | None,
        typer.Option("--audit", help="audit.json of this model; made first if not given."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(help="auto (by the audit's findings), or a name: genwarden list repairs."),
    ] = "auto",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", help="key=value of the method (see `genwarden explain NAME`); repeatable."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Of the audits: quick, standard or thorough; default that of --audit, or standard."
        ),
    ] = None,
    precaution: Annotated[
        bool, typer.Option("--precaution", help="Let auto go on when nothing was found.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Clean images you have (folder, hub name or glyphs). Diffusion model: not needed; "
            "classifier: needed, with a class each.",
        ),
    ] = None,
    resize: DataResize = False,
    architecture: Architecture = None,
    setting: Settings = None,
    seed: Seed = 0,
    device: Device = "auto",
    restart: Restart = False,
) -> None:
    """Take a backdoor out of a model and audit the result; the input is never touched.

    Writes OUT/model (the repaired model), OUT/repair.json, OUT/repair.html (both verdicts, what was
    changed, pictures before and after) and the audits OUT/before (unless --audit gave one) and
    OUT/after. Needs no trigger and no target. Give the same command again after an interruption.

    A diffusion model (diffusers folder) gets remedies of its own and is fine-tuned on --data, or on
    its own samples; OUT/model is a diffusers folder again.

    A model repaired by latent-guard or unit-clipping keeps its weights and gets a wrapper
    (architecture "guarded"); all other methods give a network of the same architecture.

    What only wakes once a model is compressed is not reached: auto leaves such a model alone and
    names the remedy (`genwarden compress MODEL --how X --remedy finetuned --out DIR`).

    A classifier is trained on --data by the --method you name (`genwarden list
    classifier-repairs`); OUT/repair.json has its accuracy before and after on images that were held
    out. It is audited only with --budget; without, there is no verdict (exit code 3).

    Exit code: 0 the repaired model shows nothing, 1 it still shows evidence, 2 error, 3 no verdict
    (also: nothing was found in the model, so nothing was repaired and nothing written).

    Examples:

      genwarden repair ./model --audit report/audit.json --out ./repaired

      genwarden repair ./model --method pruning --option share=0.3 --budget quick --out ./repaired

      genwarden repair ./classifier --method fine-pruning --data ./images --out ./repaired
    """
    from genwarden.artifacts.open_classifier import opens_as_classifier
    from genwarden.commands.repair import RepairOptions, repair_model
    from genwarden.reports.console import console_progress

    options = RepairOptions(
        model=model,
        out=out,
        audit_json=audit_json,
        method=method,
        given=parse_settings(option, flag="--option"),
        budget=budget,
        precaution=precaution,
        seed=seed,
        device=device,
        architecture=architecture,
        settings=parse_settings(setting),
        restart=restart,
        data=data,
        resize=resize,
    )
    if opens_as_classifier(model, architecture, options.settings):
        _repair_classifier(options)
    with console_progress() as progress:
        files = repair_model(options, progress=progress)
    document = files.document
    before, after = document.before.verdict, document.after.verdict
    taken = ", then ".join(step.method for step in document.steps)
    typer.echo(
        f"Before: {before.replace('_', ' ')}\n"
        f"After:  {after.replace('_', ' ')}   ({taken})\n"
        f"ExpDis: {document.expdis_sum:.4f}   (to the suspect on ordinary latents or noise, sum of "
        f"squares over a sample)\n"
        f"Model:  {files.model_path}\n"
        f"Report: {files.html_path}\n"
        f"Result: {files.json_path}"
    )
    if after != "none_found":
        if document.after.flagged:
            typer.echo(f"Found:  {', '.join(document.after.flagged)}")
        typer.echo(
            "Next:   read the report; then another --method (genwarden list repairs), or do not "
            "use the model"
        )
    raise typer.Exit(int(EXIT_CODES[after]))


def _repair_classifier(options: RepairOptions) -> NoReturn:
    """Repair a classifier, print what was measured, and exit."""
    from genwarden.commands.next_audit import audit_command
    from genwarden.commands.repair_classifier import repair_classifier
    from genwarden.errors import ExitCode
    from genwarden.reports.console import console_progress

    with console_progress() as progress:
        files = repair_classifier(options, progress=progress)
    verdict = "not audited" if files.verdict is None else files.verdict.replace("_", " ")
    typer.echo(
        f"Accuracy: {files.before:.3f} before, {files.after:.3f} after   (held-out images)\n"
        f"Classes:  {files.same_class:.1%} of these images keep theirs\n"
        f"After:    {verdict}   ({files.method})\n"
        f"Model:    {files.model_path}\n"
        f"Result:   {files.json_path}"
    )
    if files.verdict is None:
        model = files.model_path
        words = ["--deploy-as", "default"]
        following = audit_command(model, model, words, data=options.data, resize=options.resize)
        typer.echo(f"Next:     {following}")
        raise typer.Exit(int(ExitCode.INCONCLUSIVE))
    raise typer.Exit(int(EXIT_CODES[files.verdict]))
