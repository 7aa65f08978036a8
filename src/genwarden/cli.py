"""The command line: parses, calls, prints. Nothing here imports torch before a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genwarden import __version__
from genwarden.cli_attack import attack
from genwarden.cli_audit import audit, report
from genwarden.cli_benchmark import benchmark_app
from genwarden.cli_calibrate import calibrate
from genwarden.cli_compress import compress
from genwarden.cli_explain import explain
from genwarden.cli_options import (
    Device,
    OutFolder,
    Restart,
    Seed,
    Settings,
    flowed,
    parse_settings,
    print_methods,
)
from genwarden.cli_repair import repair
from genwarden.errors import GenwardenError

app = typer.Typer(
    name="genwarden",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"genwarden {__version__}")
        raise typer.Exit


@app.callback()
def genwarden(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Audits generative models for backdoors before they are deployed."""
    del version  # its callback has printed it


def train(
    name: Annotated[str, typer.Argument(help="Architecture: see `genwarden list architectures`.")],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Folder of images or parquet, a hub name, or glyphs (built-in digits).",
        ),
    ],
    out: OutFolder,
    setting: Settings = None,
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the data.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 128,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Default 2e-4; small diffusion networks more, classifiers 0.1."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    limit: Annotated[int | None, typer.Option(help="Use only the first N images.")] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    seed: Seed = 0,
    device: Device = "auto",
    restart: Restart = False,
) -> None:
    """Train a clean reference model and write it as a model folder.

    A GAN, VAE, WaveGAN, diffusion model or classifier. A classifier needs --data with labels (the
    built-in glyphs have some) and states its accuracy on images it was not trained on.

    Sample grids appear in OUT/samples while it runs. Stop it at any time: the same command
    continues from the last checkpoint.

    Examples:

      genwarden train dcgan28 --data ./mnist --out ./clean --setting channels=64,32,16

      genwarden train ddpm --data ./mnist --out ./clean --setting network=tiny --setting size=28

      genwarden train resnet18 --data ./cifar10 --out ./clean --setting augment=crop,flip
    """
    from genwarden import registry
    from genwarden.commands.next_audit import audit_command
    from genwarden.engine.device import pick_device
    from genwarden.reports.console import console_progress
    from genwarden.training.settings import TrainingSettings, best_precision
    from genwarden.training.train import count_steps, learning_rate_of
    from genwarden.training.train import train as run

    if precision not in {"auto", "fp32", "bf16"}:
        raise GenwardenError(
            "usage/precision", f"Unknown precision {precision!r}.", "Use auto, fp32 or bf16."
        )
    where = pick_device(device)
    chosen = best_precision(where) if precision == "auto" else precision
    settings = parse_settings(setting)
    rate = learning_rate_of(name, settings) if learning_rate is None else learning_rate
    with console_progress() as progress:
        run(
            name,
            settings,
            data,
            lambda images: TrainingSettings(
                steps=count_steps(images, epochs, batch_size),
                batch_size=batch_size,
                learning_rate=rate,
                seed=seed,
                precision=chosen,  # type: ignore[arg-type]
            ),
            split=split,
            limit=limit,
            out=out,
            restart=restart,
            progress=progress,
            device=where,
        )
    # What compression wakes is searched thoroughly only in what it makes of the model.
    classifier = name in registry.CLASSIFIER_ARCHITECTURES
    following = audit_command(
        out,
        out,
        ["--deploy-as", "default"] if classifier else [],
        data=data if classifier else None,
        resize=bool(settings.get("resize")),
    )
    typer.echo(f"Model: {out}\nNext:  {following}")


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the reports.")] = Path(
        "genwarden-demo"
    ),
    seed: Seed = 0,
    restart: Restart = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Models at a time; default one per processor, at most three. With 1 every "
            "audit's own progress is shown.",
        ),
    ] = None,
) -> None:
    """Audit six small shipped models (two as trained, four with a backdoor), target unknown.

    The exit code is 0 when all six audits ran, whatever they found.
    """
    from genwarden.commands.demo import demo_model_folder, demo_workers, run_demo
    from genwarden.reports.console import OUT, console_progress
    from genwarden.reports.summary import verdict_table

    with console_progress() as progress:
        results, page = run_demo(
            out, seed=seed, restart=restart, workers=workers or demo_workers(), progress=progress
        )
    OUT.print(verdict_table([(r.name, r.description, r.files.document) for r in results]))
    typer.echo(f"Reports side by side: {page}")
    typer.echo(f"Models of the demo:   {demo_model_folder('')}")
    typer.echo("Next:                 genwarden audit YOUR_MODEL --out report")


def sample(
    model: Annotated[Path, typer.Argument(help="Model folder or weights file.")],
    out: Annotated[Path, typer.Option("--out", help="PNG file to write.")] = Path("samples.png"),
    count: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Number of samples; default 64, diffusion 16."),
    ] = None,
    columns: Annotated[int, typer.Option(min=1, help="Pictures per row.")] = 8,
    architecture: Annotated[str | None, typer.Option(help="For a bare weights file.")] = None,
    setting: Settings = None,
    audit_json: Annotated[
        Path | None,
        typer.Option(
            "--audit",
            help="audit.json of this model: make a candidate of it instead (diffusion model: "
            "add a recovered shift to the noise).",
        ),
    ] = None,
    candidate: Annotated[
        int | None, typer.Option(min=1, help="Which candidate of --audit; default 1.")
    ] = None,
    how: Annotated[
        str | None,
        typer.Option(
            "--how",
            help="Compress the model first (int8, prune-0.3 ...: genwarden list "
            "compressions); with --audit, a candidate found under that compression.",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="Diffusion model: NAME[-STEPS][:ETA], e.g. ddim-50; default its own."),
    ] = None,
    eta: Annotated[
        float | None, typer.Option(min=0, max=1, help="Diffusion model: of ddim.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="Diffusion model: none, x0 (predicted image) or xt (state).")
    ] = None,
    noise: Annotated[
        Path | None,
        typer.Option("--noise", help="Diffusion model: initial noise (safetensors, one tensor)."),
    ] = None,
    launder: Annotated[
        float,
        typer.Option(min=0, max=1, help="Diffusion model: amplitude of fresh noise mixed in."),
    ] = 0.0,
    whiten: Annotated[
        bool, typer.Option("--whiten", help="Diffusion model: whiten the initial noise.")
    ] = False,
    random_eta: Annotated[
        bool, typer.Option("--random-eta", help="Diffusion model: draw eta anew at every step.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Draw ordinary samples of a model as one picture, or what a candidate trigger makes.

    A diffusion model starts from plain noise or from --noise; --clip, --launder, --whiten and
    --random-eta are defences against a trigger in that noise.

    Examples:

      genwarden sample ./model --audit report/audit.json --candidate 1 --out candidate.png

      genwarden sample ./model --how int4 --audit report/audit.json --out woken-by-int4.png

      genwarden sample ./ddpm --sampler ddim-50 --noise given.safetensors --launder 0.5
    """
    from genwarden.commands.sample import sample_grid
    from genwarden.commands.sample_diffusion import DiffusionSampling

    path = sample_grid(
        model,
        out,
        count=count,
        columns=columns,
        seed=seed,
        architecture=architecture,
        settings=parse_settings(setting),
        audit_json=audit_json,
        candidate=candidate,
        diffusion=DiffusionSampling(sampler, eta, clip, noise, launder, whiten, random_eta),
        how=how,
    )
    typer.echo(f"Picture: {path}")


def check(
    file: Annotated[Path, typer.Argument(help="Weights file or model folder.")],
) -> None:
    """Say what a file is and whether it is safe to open, without building a model from it.

    This says nothing about a backdoor in the weights: that is what `genwarden audit` is for.
    """
    from genwarden.artifacts.check import check_file, describe

    examined = check_file(file)
    typer.echo(describe(examined))
    if examined.exit_code:
        raise typer.Exit(int(examined.exit_code))


def list_methods(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="architectures, attacks, inspections, repairs, classifier-repairs, compressions, "
            "remedies, recipes or icons."
        ),
    ] = None,
) -> None:
    """List what genwarden can do, by kind."""
    print_methods(kind)


def doctor() -> None:
    """Print versions, devices and what is missing, for a bug report."""
    import torch

    from genwarden.auditing.audit import environment
    from genwarden.engine.device import pick_device

    for key, value in environment(pick_device("auto")).items():
        typer.echo(f"{key:<12}{value}")
    typer.echo(f"{'cuda':<12}{torch.cuda.is_available()}")


#: As `genwarden --help` shows them: what an auditor needs, then what a researcher adds.
_COMMANDS = (
    *(demo, audit, check, report, sample, repair, compress, calibrate),
    *(train, attack, list_methods, explain, doctor),
)
for _function in _COMMANDS:
    app.command("list" if _function is list_methods else None)(_function)
app.add_typer(benchmark_app, name="benchmark")

for _group in (app, benchmark_app):
    for _command in _group.registered_commands:
        _command.help = flowed(getattr(_command.callback, "__doc__", None))
