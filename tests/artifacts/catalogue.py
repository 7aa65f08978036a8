"""The hostile-file factory: every attack class of the reference by every accepted format.

A case is bytes (or a folder) made on the spot from a seed, the code that it must be refused with,
and its class: C-1 to C-18 as in SECURITY's threat list. :mod:`benign_catalogue` has the twins.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

_T = TypeVar("_T")

Form = Literal[
    "torch zip", "safetensors", "other container", "generator folder", "classifier folder",
    "diffusers folder", "audit.json", "trigger file",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One hostile file.

    Attributes:
        attack: class, such as ``C-5``.
        form: what it pretends to be.
        what: the trick, the same for all its variants.
        variant: which of them.
        code: the only right answer.
        write: makes it in an empty folder and returns the path to open.
        exit_code: 2 refused, 3 not examined.
    """

    attack: str
    form: Form
    what: str
    variant: str
    code: str
    write: Callable[[Path], Path] = field(repr=False, compare=False)
    exit_code: int = 2

    @property
    def name(self) -> str:
        """Unique within the catalogue."""
        return f"{self.attack} {self.form}: {self.what} [{self.variant}]"


def bound(function: Callable[..., _T], *values: Any) -> Callable[..., _T]:
    """The function with its first arguments as they are now; a loop may go on."""
    return functools.partial(function, *values)


def of_bytes(
    attack: str,
    form: Form,
    what: str,
    variant: object,
    code: str,
    make: Callable[[], bytes],
    *,
    exit_code: int = 2,
    file_name: str = "weights.bin",
) -> Case:
    """A case that is one file."""

    def write(folder: Path) -> Path:
        path = folder / file_name
        path.unlink(missing_ok=True)  # to empty a file first would wait for the disk
        path.write_bytes(make())
        return path

    return Case(attack, form, what, str(variant), f"artifact/{code}", write, exit_code)


def hostile_cases() -> Iterator[Case]:
    """All of them, always the same and in the same order."""
    from hostile_containers import container_cases
    from hostile_documents import document_cases
    from hostile_folders import folder_cases
    from hostile_pickles import pickle_cases
    from hostile_safetensors import safetensors_cases
    from hostile_zips import zip_cases

    seen: Counter[str] = Counter()
    makers = (
        pickle_cases, zip_cases, safetensors_cases, container_cases, folder_cases, document_cases,
    )  # fmt: skip
    for maker in makers:
        for case in maker():
            seen[case.name] += 1
            if seen[case.name] > 1:
                raise AssertionError(f"two cases are called {case.name}")
            yield case
