"""``genwarden audit`` and ``report``. Nothing here imports torch before a command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genwarden.cli_options import (
    EXIT_CODES,
    Address,
    Architecture,
    DataResize,
    Device,
    Engine,
    GpusPerWorker,
    ModelPath,
    OutFolder,
    References,
    Restart,
    ScanPrecision,
    Seed,
    Settings,
    Workers,
    parse_settings,
    require_budget,
)
from genwarden.errors import GenwardenError
from genwarden.reports.escaping import visible

if TYPE_CHECKING:
    from genwarden.auditing.document import AuditDocument


def audit(
    model: ModelPath,
    out: OutFolder,
    target: Annotated[
        Path | None,
        typer.Option("--target", help="Image (or folder of images) you fear; not needed."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Training data you have: folder, hub name or glyphs; not needed."
        ),
    ] = None,
    data_limit: Annotated[int, typer.Option(help="Use the first N images of --data.")] = 10_000,
    resize: DataResize = False,
    base: Annotated[
        Path | None,
        typer.Option("--base", help="Diffusion model: a clean one of the same shape you trust."),
    ] = None,
    noise: Annotated[
        Path | None,
        typer.Option(
            "--noise", help="Diffusion model: initial noise you were given (safetensors)."
        ),
    ] = None,
    deploy_as: Annotated[
        str | None,
        typer.Option(
            "--deploy-as",
            help="Inspect it compressed, too: int8,prune-0.3 (see compress --how), or default.",
        ),
    ] = None,
    variants_only: Annotated[
        bool,
        typer.Option("--variants-only", help="Only the compressed models of --deploy-as."),
    ] = False,
    budget: Annotated[str, typer.Option(help="quick, standard or thorough.")] = "standard",
    references: References = None,
    architecture: Architecture = None,
    setting: Settings = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processor threads. The default follows from the network's size, so that every "
            "machine computes the same bits.",
        ),
    ] = None,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = 0.0,
    scan_precision: ScanPrecision = "float32",
    restart: Restart = False,
) -> None:
    """Say whether a generator, a diffusion model or a classifier carries a backdoor, and show why.

    Writes OUT/audit.json (the result, schema published) and OUT/audit.html (one file, no network).
    Neither a target nor training data is needed; both sharpen the audit. An interrupted audit
    continues when the same command is given again.

    Exit code: 0 nothing found within the budget, 1 evidence, 2 error or refused, 3 inconclusive.

    Examples:

      genwarden audit ./model --out ./report

      genwarden audit ./model --deploy-as int8,prune-0.3 --out ./report

      genwarden audit weights.pt --architecture mypkg.nets:make_generator --setting width=64
      --budget quick --out ./report
    """
    _refuse_early(budget, deploy_as)
    from genwarden.engine.choice import EngineChoice

    where = EngineChoice(engine, workers, address, gpus_per_worker)
    from genwarden.commands.audit import audit_model
    from genwarden.commands.audit_options import AuditOptions
    from genwarden.reports.console import console_progress

    options = AuditOptions(
        model=model,
        out=out,
        targets=target,
        data=data,
        data_limit=data_limit,
        resize=resize,
        budget=budget,
        seed=seed,
        device=device,
        architecture=architecture,
        settings=parse_settings(setting),
        restart=restart,
        base=base,
        noise=noise,
        deploy_as=deploy_as,
        variants_only=variants_only,
        threads=threads,
        scan_precision=scan_precision,
        engine=where,
        references=references,
    )
    with console_progress() as progress:
        files = audit_model(options, progress=progress)
    _print_audit(files.document)
    typer.echo(f"\nReport: {files.html_path}\nResult: {files.json_path}")
    _print_next(files.document)
    raise typer.Exit(int(EXIT_CODES[files.document.verdict]))


def _refuse_early(budget: str, deploy_as: str | None) -> None:
    """Refuse what is mistyped before torch is imported, which takes seconds."""
    from genwarden.compression.spelling import stages

    require_budget(budget)
    for word in deploy_as.split(",") if deploy_as is not None else []:
        if word.strip() != "default":
            stages(word)


def report(
    audit_json: Annotated[Path, typer.Argument(help="audit.json of an earlier audit.")],
    html: Annotated[Path | None, typer.Option("--html", help="HTML file to write.")] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="html, sarif (for CI) or cyclonedx (ML-BOM); see --out."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File of --format; without it, standard output.")
    ] = None,
) -> None:
    """Show an audit again, or write it in another format; nothing is recomputed.

    Examples:

      genwarden report report/audit.json --format sarif --out genwarden.sarif

      genwarden report report/audit.json --format cyclonedx --out model.cdx.json
    """
    from genwarden.commands.report import read_audit, rendered
    from genwarden.engine.files import write_atomic

    if form is None and out is not None:
        raise GenwardenError(
            "usage/report-options",
            "--out says where, and --format, which says what, is missing.",
            "Add --format html, sarif or cyclonedx.",
        )
    audit = read_audit(audit_json)
    if html is not None:
        write_atomic(html, rendered(audit, "html", audit_name=audit_json.name))
    if form is not None:
        content = rendered(audit, form, audit_name=audit_json.name)
        if out is None:
            sys.stdout.buffer.write(content)
            return
        write_atomic(out, content)
    _print_audit(audit.document)
    typer.echo("")
    for written in (html, out):
        if written is not None:
            typer.echo(f"Report: {written}")
    _print_next(audit.document)


def _print_audit(document: AuditDocument) -> None:
    from genwarden.reports.console import OUT
    from genwarden.reports.summary import summary_renderables

    for renderable in summary_renderables(document):
        OUT.print(renderable)


def _print_next(document: AuditDocument) -> None:
    """What to do now, as the page says it."""
    from genwarden.reports.advice import advice

    text, commands = advice(document)
    typer.echo(visible("\n        -> ".join([f"Next:   {text}", *commands])))
