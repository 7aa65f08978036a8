"""How each form of file is opened: by the public functions, or by the parsers alone."""

from __future__ import annotations

from pathlib import Path

from catalogue import Case

from genwarden.artifacts.check import check_file
from genwarden.artifacts.formats import identify
from genwarden.artifacts.open_classifier import open_classifier
from genwarden.artifacts.open_model import open_model
from genwarden.artifacts.read_once import read_once
from genwarden.artifacts.safetensors_header import read_header
from genwarden.artifacts.torch_zip import no_tensors, read_plan
from genwarden.artifacts.weights_file import read_weights
from genwarden.backdoors.trigger import make_trigger
from genwarden.errors import ExitCode, GenwardenError
from genwarden.models.protocol import LatentLaw


def open_case(case: Case, path: Path, *, confined: bool) -> None:
    """Open what a case wrote, as a command would; raises what it is refused with.

    Args:
        confined: read weights by the public functions, torch files in the child process; otherwise
            decide about them in this process, which is what the child does.
    """
    match case.form:
        case "generator folder":
            open_model(path)
        case "classifier folder":
            open_classifier(path)
        case "diffusers folder":
            from genwarden.artifacts.diffusers_folder import read_diffusion

            read_diffusion(path)
        case "audit.json":
            from genwarden.commands.report import read_document

            read_document(path)
        case "trigger file":
            make_trigger(f"file:{path}", LatentLaw((4,), "normal"))
        case _ if confined:
            read_weights(path)
        case _:
            decide(read_once(path))


def decide(content: bytes) -> None:
    """What the gate decides about the content of a weights file, without a child process."""
    if identify(content, "it") == "safetensors":
        if not read_header(content, "it"):
            raise no_tensors("it")
    else:
        read_plan(content, "it")


def checked(path: Path) -> tuple[str, ExitCode]:
    """The first code that ``genwarden check`` names, "" if safe to open, and its exit code."""
    try:
        report = check_file(path)
    except GenwardenError as error:
        return error.code, error.exit_code
    return (report.findings[0].code if report.findings else ""), report.exit_code
