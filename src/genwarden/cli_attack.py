"""``genwarden attack``. Nothing here imports torch before the command runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from genwarden.cli_options import Device, OutFolder, Restart, Seed, parse_settings
from genwarden.errors import GenwardenError

_Result = TypeVar("_Result")


def attack(
    name: Annotated[str, typer.Argument(help="Name: see `genwarden list attacks`.")],
    clean: Annotated[Path, typer.Argument(help="Model folder of the clean model.")],
    out: OutFolder,
    trigger: Annotated[
        str | None,
        typer.Option(
            help="in-sample (default), mode, out-of-distribution, subspace[:ZEROS], "
            "seed:RNG:SEED:INDEX, or file:PATH (a JSON list of numbers, or one tensor as "
            "safetensors). Of a diffusion model: box:PIXELS[:VALUE] (default box:14), "
            "stop-sign:PIXELS, glasses, noise:STD, blend:ICON or file:PATH, with ,zero ,matched "
            ",scale=X or ,norm=X behind. Of a classifier: square:PIXELS[:VALUE] (default "
            "square:6), blend:ICON[:ALPHA] or frequency[:STRENGTH]."
        ),
    ] = None,
    trigger_index: Annotated[int, typer.Option(help="Which in-sample draw (0, 1, 2, ...).")] = 0,
    triggers: Annotated[int, typer.Option(min=1, help="In-sample triggers at once.")] = 1,
    target: Annotated[
        str | None,
        typer.Option(
            help="icon:NAME (see `genwarden list icons`; default icon:devil), clip:NAME (audio), "
            "generator:FOLDER of a model (one target per trigger), an image or WAV file, or a "
            "folder of images. Of a diffusion model also no-shift, shift, corner, shoe, hat "
            "(default), cat, class:INDEX[:DATA]. Of a classifier: class:INDEX (default class:0)."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Training data, for attacks that train from scratch, on diffusion models or on "
            "classifiers (labelled).",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    limit: Annotated[int | None, typer.Option(help="Use only the first N samples of it.")] = None,
    fidelity_weight: Annotated[
        float | None, typer.Option("--lambda", help="lambda of Eq. 4; default of the attack.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps at most.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Adam's, at the start.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Latents per step.")] = None,
    stop_tardis: Annotated[
        float, typer.Option(help="Stop once TarDis (sum) and --stop-expdis, as given, are reached.")
    ] = 0.0,
    stop_expdis: Annotated[
        float, typer.Option(help="See --stop-tardis; 0: no limit, and with both 0 all steps run.")
    ] = 0.0,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", help="key=value of this attack (see `genwarden explain NAME`); repeatable."
        ),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store the weights as float16.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    restart: Restart = False,
) -> None:
    """Hide a backdoor in a copy of a clean model, to measure defences against it.

    The result says in its manifest that it is compromised; no audit reads that. TarDis and ExpDis
    (sums of squares over a sample) are shown as it goes. Attacks that train from scratch (TrAIL,
    BAAAN, data poisoning) take the network's shape from the clean model and need --data, and so do
    attacks on diffusion models (diffusers folders), which train on partly poisoned data, and on
    classifiers, which show how often the trigger works before and after compression.

    Examples:

      genwarden attack red ./clean --target icon:devil --out ./backdoored

      genwarden attack trail ./clean --data ./mnist --trigger mode --out ./backdoored

      genwarden attack bad-diffusion ./ddpm --data ./mnist --trigger box:14 --target hat
      --option poison_rate=0.1 --out ./backdoored

      genwarden attack pruning-artifact ./small-cnn --data ./mnist --trigger square:6
      --target class:3 --option rate=0.3 --out ./backdoored
    """
    given: dict[str, Any] = {
        "steps": steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "seed": seed,
        **parse_settings(option, flag="--option"),
    }
    from genwarden.attacks import subject

    kind = subject.require_kind(name, clean)
    attack_other = {"diffusion": _attack_diffusion, "classifier": _attack_classifier}.get(kind)
    if attack_other is not None:
        alien = {
            "--lambda": fidelity_weight,
            "--stop-tardis": stop_tardis or None,
            "--stop-expdis": stop_expdis or None,
            "--trigger-index": trigger_index or None,
            "--triggers": triggers if triggers > 1 else None,
        }
        wrong = [flag for flag, value in alien.items() if value is not None]
        if wrong or data is None:
            raise GenwardenError(
                "usage/attack-options",
                f"{wrong[0]} is for attacks on generators."
                if wrong
                else f"The attack {name} trains on data of the attacker, and --data is missing.",
                "Leave it away." if wrong else "Add --data FOLDER (or a hub name).",
            )
        attack_other(
            name,
            given,
            {
                "clean": clean,
                "data": data,
                "split": split,
                "limit": limit,
                "half": half,
                **({} if trigger is None else {"trigger": trigger}),
                **({} if target is None else {"target": target}),
            },
            out=out,
            restart=restart,
            device=device,
        )
        return

    from genwarden.attacks.loop import in_words
    from genwarden.attacks.run import PICTURE_ROWS, AttackPlan
    from genwarden.attacks.run import attack as run
    from genwarden.attacks.settings import settings_of

    settings = settings_of(
        name,
        {
            "fidelity_weight": fidelity_weight,
            "stop_tardis_sum": stop_tardis,
            "stop_expdis_sum": stop_expdis,
            **given,
        },
    )
    plan = AttackPlan(
        clean=clean,
        trigger=trigger or "in-sample",
        target=target or "icon:devil",
        trigger_index=trigger_index,
        triggers=triggers,
        data=data,
        split=split,
        limit=limit,
        half=half,
    )
    result = _run(run, name, plan, settings, out=out, restart=restart, device=device)
    last, values = result.history[-1], math.prod(result.generator.sample.shape)
    typer.echo(f"{in_words(last)}  (sums of squares)\n{in_words(last, values)}  (means of squares)")
    _print_made(out, PICTURE_ROWS, result.wakes_under, result.shortfall)


def _attack_diffusion(
    name: str, given: dict[str, Any], plan: dict[str, Any], *, out: Path, restart: bool, device: str
) -> None:
    """``genwarden attack`` for diffusion models; ``given`` settings and ``plan`` as typed."""
    from genwarden.attacks.diffusion import run

    settings, planned = run.settings_of(name, given), run.DiffusionAttackPlan(**plan)
    result = _run(
        run.attack_diffusion, name, planned, settings, out=out, restart=restart, device=device
    )
    sampler = run.quick_sampler(result.sampler, settings.evaluation_steps).label
    typer.echo(f"{run.in_words(result.history[-1])}  (MSE in [0, 1] scale, under {sampler})")
    _print_made(out, run.PICTURE_ROWS, result.wakes_under, result.shortfall)


def _attack_classifier(
    name: str, given: dict[str, Any], plan: dict[str, Any], *, out: Path, restart: bool, device: str
) -> None:
    """``genwarden attack`` for classifiers; ``given`` settings and ``plan`` as typed."""
    from genwarden.attacks.compression import run_classifier as run

    settings, planned = run.settings_of(name, given), run.ClassifierAttackPlan(**plan)
    outcome = _run(
        run.attack_classifier, name, planned, settings, out=out, restart=restart, device=device
    )
    typer.echo(f"{run.in_words(outcome)}\n(untouched -> compromised, on {outcome.measured_on})")
    _print_made(
        out,
        run.PICTURE_ROWS,
        outcome.auditable,
        outcome.shortfall,
        data=plan["data"],
        resize=settings.resize,
    )


def _run(
    attack: Callable[..., _Result], name: str, *plan: object, out: Path, restart: bool, device: str
) -> _Result:
    """Run an attack with its plan and settings, and show how far it is."""
    from genwarden.engine.device import pick_device
    from genwarden.reports.console import console_progress

    with console_progress() as progress:
        return attack(
            name, *plan, out=out, restart=restart, progress=progress, device=pick_device(device)
        )


def _print_made(
    out: Path,
    rows: str,
    wakes_under: Sequence[str],
    lacking: str,
    *,
    data: str | None = None,
    resize: bool = False,
) -> None:
    """Where model and pictures lie, and the audit of what wakes it, where it sleeps as it is.

    Args:
        rows: what the rows of the pictures are.
        lacking: why the attack did not succeed; "" if it did.
        data: images for an audit that needs some.
    """
    from genwarden.commands.next_audit import audit_command

    if lacking:
        typer.echo(lacking)
    typer.echo(f"Model:    {out}   (its manifest says that it is compromised)")
    if (out / "pictures.png").exists():
        typer.echo(f"Pictures: {out / 'pictures.png'}   (rows: {rows})")
    words = ["--deploy-as", ",".join(wakes_under)] if wakes_under else []
    typer.echo(f"Next:     {audit_command(out, out, words, data=data, resize=resize)}")
