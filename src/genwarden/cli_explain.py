"""``genwarden explain``: what a method does, for people. Torch is imported once a name is known."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from genwarden.errors import GenwardenError

if TYPE_CHECKING:
    from genwarden.compression.contract import Compressor
    from genwarden.engine.settings import Settings as MethodSettings
    from genwarden.registry import Row

_ROLE = re.compile(r":[a-z]+(?::[a-z]+)?:`(?:[^`<]*<)?[~.]?([^`>]+)>?`")
#: A reference in brackets to a file of the code says nothing to people.
_ASIDE = re.compile(r",?\s*\((?:see\s+)?:mod:`[^`]*`\)|,?\s+see\s+:mod:`[^`]*`")
#: Brackets that cite sections of our own notes on the papers, which users do not have.
_CITED = re.compile(r"\s*\(([^()]*\bsections?\s+\d[^()]*)\)")
_OWN_NOTES = re.compile(r"\bsections?\s+\d|\breference\b|^steps?\s+\d")
_LITERAL = re.compile(r"``([^`]+)``")
_WIDTH = 88


def explain(
    name: Annotated[
        str,
        typer.Argument(help="A listed method or architecture, or a compression: int4, prune-0.3."),
    ],
) -> None:
    """Explain a method: what it does, its source, what it can and cannot see.

    Examples:

      genwarden explain differential-search

      genwarden explain prune-0.3+int8
    """
    from genwarden import registry

    rows = [row for table in registry.tables().values() for row in table.values()]
    named = [row for row in rows if row.name == name]  # an architecture and a recipe may share it
    if not named:
        from genwarden.commands.audit_variants import DEFAULT, DEFAULT_VARIANTS
        from genwarden.compression.how import compressor, is_compression

        if name == DEFAULT:
            typer.echo(
                f"{DEFAULT}: what --deploy-as {DEFAULT} stands for: {DEFAULT_VARIANTS}\n\n"
                "Phones, servers and sparse runtimes make such models. Each has an explanation of "
                "its own,\nand more can stand beside it: --deploy-as default,nf4."
            )
            return
        if is_compression(name):
            _explain_compression(compressor(name), name)
            return
        examples = [row.options["example"] for row in registry.COMPRESSIONS.values()]
        raise _unknown(name, [*(row.name for row in rows), *examples, DEFAULT])
    for row in named:
        _explain(row)


def _unknown(name: str, names: list[str]) -> GenwardenError:
    from typer.main import get_group

    from genwarden.cli import app
    from genwarden.registry import tables
    from genwarden.registry.row import closest

    if name in get_group(app).commands:
        return GenwardenError(
            "usage/unknown-name",
            f"{name} is a command, not a method.",
            f"It is explained by: genwarden {name} --help",
        )
    if name in tables():
        return GenwardenError(
            "usage/unknown-name",
            f"{name} are a kind of methods, not one of them.",
            f"They are listed by: genwarden list {name}",
        )
    like = closest(name, names)
    asked = f"Did you mean {', '.join(like)}? " if like else ""
    return GenwardenError(
        "usage/unknown-name",
        f"There is no method called {name!r}.",
        f"{asked}All names: genwarden list.",
    )


def _explain(row: Row) -> None:
    from genwarden import registry
    from genwarden.commands.explaining import without_errors, without_settings

    if row is registry.COMPRESSIONS.get(row.name):
        from genwarden.compression.how import compressor

        example = row.options["example"]
        typer.echo(f"{row.name}: {row.summary}; for example {example}\n")
        _explain_compression(compressor(example), example)
        return
    typer.echo(f"{row.name}: {row.summary}\n")
    if not row.location:
        return
    method = row.load()
    texts = [inspect.getdoc(inspect.getmodule(method)), inspect.getdoc(method)]
    if "finds" in row.options:
        _print_power(row)
        texts = texts[:1]
    if row is registry.DIFFUSION_ARCHITECTURES.get(row.name):  # its settings follow, with defaults
        texts = [without_settings(text or "") for text in texts]
    for text in dict.fromkeys(texts):
        typer.echo(f"{for_people(without_errors(text or ''))}\n")
    if row is registry.ARCHITECTURES.get(row.name) and "training" in row.options:
        import torch

        with torch.device("meta"):  # the names need no numbers
            layers = method().named_layers()
        typer.echo(f"Layers at the default size: {', '.join(layers)}\n")
    if row is registry.DIFFUSION_ARCHITECTURES.get(row.name):
        _print_settings(method, "--setting")
    if row is registry.CLASSIFIER_ARCHITECTURES.get(row.name):
        from genwarden.training.train_classifier import ClassifierChoice

        _print_settings(ClassifierChoice, "--setting")
    with_options = (
        registry.ATTACKS,
        registry.REPAIRS,
        registry.DIFFUSION_REPAIRS,
        registry.CLASSIFIER_REPAIRS,
        registry.COMPRESSION_REMEDIES,
    )
    if any(row is table.get(row.name) for table in with_options):
        _print_settings(row.load_option("settings"), "--option")


def for_people(text: str) -> str:
    """A docstring without the markup that only programmers and Sphinx read.

    >>> for_people("Errors (:mod:`.bench`) of ``x``; as :func:`~genwarden.engine.run` does::")
    'Errors of x; as run does:'
    >>> for_people("Elijah (An et al., AAAI 2024; section 11.1) and TERD (section 9 of the notes).")
    'Elijah (An et al., AAAI 2024) and TERD.'
    """
    text = "\n\n".join(map(_uncited, text.split("\n\n")))
    text = _ROLE.sub(lambda found: found[1].rpartition(".")[2], text)
    return _LITERAL.sub(r"\1", text).replace("::", ":").rstrip()


def _uncited(paragraph: str) -> str:
    """A paragraph without citations of our notes and files; prose that lost one is wrapped anew."""
    text = _CITED.sub(_without_own_notes, _ASIDE.sub("", paragraph))
    if text == paragraph or any(line[:1] in (" ", "-") for line in paragraph.splitlines()):
        return text
    return _wrapped(text)


def _without_own_notes(found: re.Match[str]) -> str:
    """Brackets without what they cite from our notes; nothing where nothing else is in them."""
    cited, colon, rest = found[1].partition(":")
    kept = [part for part in re.split(r"[;,]\s+", cited) if not _OWN_NOTES.search(part)]
    said = [text for text in (", ".join(kept), rest.strip() if colon else "") if text]
    return f" ({': '.join(said)})" if said else ""


def _print_power(row: Row) -> None:
    """Power and limits of an inspection, before how it works."""
    words = row.options
    by_null = {"population": "against clean reference models; without any it is only shown"}
    usual = by_null.get(words.get("null", ""), "against this model's own behaviour")
    for label, text in (
        ("Finds:", words["finds"]),
        ("Does not find:", words["misses"]),
        ("Judged:", words.get("judged", usual)),
    ):
        typer.echo(_wrapped(f"{label:<15}{text}.", indent=15))
    typer.echo("\nHow it works:\n")


def _wrapped(text: str, *, indent: int = 0) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False)


def _explain_compression(compressor: Compressor, typed: str) -> None:
    """What it does, what audits under it look for, and how to be safe."""
    from genwarden import registry
    from genwarden.compression.chain import stages_of
    from genwarden.compression.in_words import in_words
    from genwarden.compression.pruning import FilterPruning, prunes_only
    from genwarden.compression.remedies.contract import family

    for number, paragraph in enumerate(in_words(compressor).split("\n\n")):
        lead = f"{typed}: " if number == 0 else ""
        typer.echo(_wrapped(lead + paragraph) + "\n")
    typer.echo(
        _wrapped(
            "A backdoor can be built so that it sleeps in the model as it is and wakes in just "
            f"this rounding or pruning. An audit with --deploy-as {compressor.name} compresses the "
            "model, compares it with the full one, and looks for:"
        )
    )
    pruned = prunes_only(compressor)
    filters = any(isinstance(stage, FilterPruning) for stage in stages_of(compressor))

    def of_variants(table: Mapping[str, Row]) -> list[Row]:
        return [row for row in table.values() if row.options.get("needs") == "variant"]

    tables = {
        "Generators": list(registry.COMPRESSION_INSPECTIONS.values()),
        "Diffusion models": of_variants(registry.DIFFUSION_INSPECTIONS),
        "Classifiers": of_variants(registry.CLASSIFIER_INSPECTIONS),
    }
    for title, rows in tables.items():
        typer.echo(f"  {title}:")
        for row in rows:
            if not (pruned and row.name == "rounding-statistics"):  # pruning has no grid
                typer.echo(f"    {row.name:<29}{row.summary}")
    if filters:
        typer.echo(
            _wrapped(
                "Where whole filters go, most of these are shown and nothing clears a model: "
                "without evidence the verdict is inconclusive."
            )
        )
    typer.echo(
        _wrapped(
            "It says nothing of other grids, rates or tools, which may wake what this one does not."
        )
    )
    kind = family(compressor)
    fitting = [n for n, r in registry.COMPRESSION_REMEDIES.items() if kind in r.options["families"]]
    typer.echo(
        f"\nRemedies: {', '.join(fitting)}\n\n"
        f"  genwarden audit MODEL --deploy-as {compressor.name} --out DIR\n"
        f"  genwarden compress MODEL --how {compressor.name} --out DIR\n"
        f"  genwarden compress MODEL --how {compressor.name} --remedy finetuned --out DIR"
    )


def _print_settings(kind: type[MethodSettings], flag: str) -> None:
    """Settings that a command takes: name, default, and meaning beneath."""
    from genwarden.commands.explaining import meanings
    from genwarden.engine.settings import defaults

    typer.echo(f"Settings ({flag} key=value) and their defaults:")
    said = meanings(kind)
    for key, default in defaults(kind).items():
        typer.echo(f"  {key:<22}{_shown(default)}".rstrip())
        if key in said:
            typer.echo(_wrapped(f"      {for_people(said[key])}", indent=6))


def _shown(default: object) -> str:
    """A default as it is typed: none of a list is (none), true and false are small."""
    if isinstance(default, tuple | list):
        return ",".join(map(str, default)) or "(none)"
    if isinstance(default, bool):
        return str(default).lower()
    return str(default) if default != "" else "(none)"
