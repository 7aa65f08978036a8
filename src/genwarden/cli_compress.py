"""``genwarden compress``. Nothing here imports torch before the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genwarden.cli_options import (
    Architecture,
    Device,
    ModelPath,
    OutFolder,
    Restart,
    Seed,
    Settings,
    parse_settings,
)
from genwarden.reports.escaping import visible

if TYPE_CHECKING:
    from genwarden.commands.compress import CompressFiles


def compress(
    model: ModelPath,
    how: Annotated[
        str,
        typer.Option(
            "--how",
            help="int8, int8-per-channel, int4-group32, nf4, prune-0.3, prune-0.3+int8 ...: "
            "genwarden list compressions.",
        ),
    ],
    out: OutFolder,
    fold: Annotated[
        bool,
        typer.Option("--fold", help="Fold batch norm into the weights of the written model, too."),
    ] = False,
    confirm: Annotated[
        str | None,
        typer.Option(
            "--confirm",
            help="onnxruntime: quantise (int8, int8-per-channel) and run it there as well.",
        ),
    ] = None,
    remedy: Annotated[
        str | None,
        typer.Option(
            "--remedy",
            help="Compress so that a backdoor which compression wakes stays asleep: finetuned, "
            "stochastic-rounding ...: genwarden list remedies.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", help="key=value of the remedy (see `genwarden explain NAME`); repeatable."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help="Folder of images of the model's shape (or glyphs), without labels, for "
            "classifiers and diffusion models: some hundred of what the model is used on.",
        ),
    ] = None,
    resize: Annotated[
        bool, typer.Option("--resize", help="Scale the --calibration images to that shape.")
    ] = False,
    audit: Annotated[
        Path | None,
        typer.Option(
            "--audit",
            help="audit.json of this model: the triggers that it recovered under this compression "
            "are tried on what is made (of a classifier, on the --calibration images).",
        ),
    ] = None,
    architecture: Architecture = None,
    setting: Settings = None,
    seed: Seed = 0,
    device: Device = "auto",
    restart: Restart = False,
) -> None:
    """Make the model that a device would run: prune or quantise its weights.

    OUT is a model folder of the same architecture whose weights are the compressed ones,
    decompressed again, so that every other command takes it. OUT/compress.json says how much was
    covered and how far the outputs moved. Quantisation folds batch norm into the weights to find
    its grid, as deployment tools do; the written model keeps its batch norms unless --fold.

    With --confirm, the model is exported to ONNX, quantised and run by the runtime, too, after its
    kernels were tested on the layers at hand; OUT/int8.onnx is what it ran.

    With --remedy, codes that a publisher may have chosen are not the ones used; what that costs
    beside plain compression is shown. A remedy says nothing about whether there was a backdoor.
    With --audit as well, you see whether what the audit found still wakes: it is tried on the full
    model, under plain compression and with the remedy.

    Exit code: 0 done, 2 error, 3 nothing in this network can be compressed in this way.

    Examples:

      genwarden compress ./model --how int8-per-channel --out ./small

      genwarden compress ./model --how prune-0.3+int8 --confirm onnxruntime --out ./small

      genwarden compress ./model --how int4 --remedy finetuned --out ./small

      genwarden compress ./model --how int4 --remedy finetuned --audit ./report --out ./small
    """
    from genwarden.compression.spelling import stages

    stages(how)  # refused before torch is imported, which takes seconds
    from genwarden.commands.compress import CompressOptions, compress_model
    from genwarden.reports.console import console_progress

    options = CompressOptions(
        model=model,
        out=out,
        how=how,
        fold=fold,
        confirm=confirm,
        calibration=calibration,
        resize=resize,
        architecture=architecture,
        settings=parse_settings(setting),
        seed=seed,
        device=device,
        remedy=remedy,
        given=parse_settings(option, flag="--option"),
        audit=audit,
        restart=restart,
    )
    with console_progress() as progress:
        files = compress_model(options, progress=progress)
    _print(files)


def _print(files: CompressFiles) -> None:
    typer.echo(visible(f"Coverage: {files.coverage}"))
    if (found := files.fidelity) is not None:
        classes = "" if found.same_class is None else f"; {found.same_class:.1%} keep their class"
        typer.echo(
            f"Outputs:  mean squared distance {found.mse_mean:.3g} to the original on "
            f"{found.samples} ordinary samples{classes}"
        )
        if files.damaged:
            typer.echo(
                "Warning:  so many answers change that an audit says little of what this wakes.\n"
                "          Compress it less, or train it afterwards and audit what comes out."
            )
    else:
        typer.echo("Outputs:  not compared: give images (--calibration) that the classifier reads")
    if (plain := files.plain_fidelity) is not None and found is not None:
        share = f" ({found.mse_mean / plain.mse_mean:.2f} times)" if plain.mse_mean else ""
        typer.echo(
            f"Remedy:   plain compression is {plain.mse_mean:.3g} from the original; "
            f"the remedy {found.mse_mean:.3g}{share}"
        )
    for first, tried in enumerate(files.trial):
        typer.echo(f"{'          ' if first else 'Tried:    '}{visible(str(tried))}")
    if (real := files.confirmation) is not None:
        errors = [e for layer in real.self_test if (e := layer["error_lsb"]) is not None]
        typer.echo(
            f"Runtime:  {real.backend}: {len(real.layers)} of "
            f"{len(real.layers) + len(real.left_out)} layers in 8 bits, {real.codes_equal:.2%} of "
            f"their codes as simulated\n"
            f"          self-test: {len(errors)} distinct layers, {max(errors):.1f} steps off at "
            f"most\n"
            f"          outputs: mean squared distance {real.to_original.mse_mean:.3g} to the "
            f"original, {real.to_simulated.mse_mean:.3g} to the simulation\n"
            f"ONNX:     {files.onnx_path}"
        )
    typer.echo(f"Model:    {files.model_path}\nResult:   {files.json_path}")
    if files.next_command:
        typer.echo(f"Next:     {files.next_command}")
