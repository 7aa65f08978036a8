"""Options and printing that several groups of commands share. Nothing here imports torch."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from genwarden.errors import ExitCode, GenwardenError

#: By the verdict of an audit.
EXIT_CODES = {
    "none_found": ExitCode.NONE_FOUND,
    "evidence": ExitCode.EVIDENCE,
    "refused": ExitCode.ERROR,
    "inconclusive": ExitCode.INCONCLUSIVE,
}

ModelPath = Annotated[
    Path,
    typer.Argument(
        help="Model folder, diffusers folder, or a .safetensors/.pt/.pth/.ckpt state dict."
    ),
]
Architecture = Annotated[
    str | None,
    typer.Option(
        help="For a bare weights file: a listed name, or package.module:factory of yours."
    ),
]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder of the results (made if missing).")]
Seed = Annotated[int, typer.Option("--seed", help="Run seed; every random act derives from it.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--setting", help="key=value of the architecture; may be repeated."),
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Throw an unfinished or earlier run in --out away.")
]
Engine = Annotated[
    str, typer.Option("--engine", help="Where to compute: local, or ray (an extra).")
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Of a Ray cluster, HOST:PORT or auto; else this machine."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Pieces of work at a time (generators, studies); default 1, or what fits into Ray.",
    ),
]
GpusPerWorker = Annotated[
    float,
    typer.Option("--gpus-per-worker", min=0, help="Ray: share of a GPU for each worker, as 0.25."),
]

References = Annotated[
    Path | None,
    typer.Option(
        "--references",
        help="Clean models of yours to judge by: what genwarden calibrate made (file or folder).",
    ),
]
DataResize = Annotated[
    bool, typer.Option("--resize", help="Scale the --data images to the model's shape.")
]
ScanPrecision = Annotated[
    Literal["float32", "bfloat16"],
    typer.Option(
        "--scan-precision",
        help="Of the brute-force scan; bfloat16 is faster where the processor has units for it. "
        "The samples that it shows are computed again in float32.",
    ),
]

#: As in ``auditing.budgets``, which needs torch.
BUDGETS = ("quick", "standard", "thorough")


def flowed(text: str | None) -> str:
    """A docstring with one line per paragraph: the terminal wraps it to its own width.

    >>> flowed("One sentence\\n    on two lines.\\n\\n      genwarden list")
    'One sentence on two lines.\\n\\n  genwarden list'
    """
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(
        paragraph[: len(paragraph) - len(paragraph.lstrip())] + " ".join(paragraph.split())
        for paragraph in paragraphs
    )


def require_budget(name: str) -> None:
    """Refuse a budget that does not exist.

    Raises:
        GenwardenError: ``usage/budget``.
    """
    if name not in BUDGETS:
        raise GenwardenError(
            "usage/budget", f"There is no budget {name!r}.", f"Choose one of: {', '.join(BUDGETS)}."
        )


def parse_settings(
    pairs: list[str] | None, flag: str = "--setting", *, dotted: bool = False
) -> dict[str, Any]:
    """``key=value`` pairs; values are numbers, true/false, comma-separated numbers, or text.

    ``dotted`` allows keys such as ``data-poisoning@mnist-vae.steps``.
    """
    settings: dict[str, Any] = {}
    for pair in pairs or []:
        key, separator, text = pair.partition("=")
        plain = re.sub(r"[-.@]", "_", key) if dotted else key
        if not separator or not plain.isidentifier():
            raise GenwardenError(
                "usage/setting",
                f"{flag} {pair!r} is not key=value.",
                "Write e.g. channels=64,32,16.",
            )
        settings[key] = _value(text)
    return settings


def _value(text: str) -> Any:
    if "," in text:
        return [_value(part) for part in text.split(",")]
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def print_methods(kind: str | None) -> None:
    """Print the registry's rows, all or of one kind.

    Raises:
        GenwardenError: ``usage/unknown-kind``.
    """
    from genwarden import registry

    tables = registry.tables()
    if kind is not None and kind not in tables:
        raise GenwardenError(
            "usage/unknown-kind", f"There is no kind {kind!r}.", f"Choose: {', '.join(tables)}."
        )
    for title, table in tables.items():
        if kind in {None, title}:
            typer.echo(f"{title}:")
            wide = max(26, *(len(name) + 2 for name in table))
            for row in table.values():
                typer.echo(f"  {row.name:<{wide}}{row.summary}")
