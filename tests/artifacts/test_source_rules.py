"""What the source itself promises: nothing is unpickled, nothing runs what a file says."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import genwarden

SOURCE = Path(genwarden.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
FORBIDDEN_IMPORTS = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml",
    "runpy", "code", "imp",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
# Where a module is imported by name: names come from our own table and from the command line.
IMPORTERS = {"registry/row.py", "artifacts/open_model.py"}


CHILD_MODULES = {
    "errors.py",
    *(
        f"artifacts/{name}.py"
        for name in (
            "child_main",
            "confinement",
            "limits",
            "shown",
            "state_pickle",
            "state_records",
            "torch_zip",
            "zip_directory",
        )
    ),
}


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def called(path: Path, function: str) -> list[ast.Call]:
    return [
        node
        for node in nodes(path)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == function
    ]


def test_torch_load_is_called_nowhere() -> None:
    assert not [name_of(path) for path in MODULES if called(path, "torch.load")]


def test_modules_of_the_reading_child_import_the_standard_library_and_each_other_only() -> None:
    for name in CHILD_MODULES:
        for node in ast.walk(ast.parse((SOURCE / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted = {alias.name.split(".")[0] for alias in node.names}
                assert wanted <= sys.stdlib_module_names, name
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                own = module.replace(".", "/").removeprefix("genwarden/") + ".py"
                assert module.split(".")[0] in sys.stdlib_module_names or own in CHILD_MODULES, name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_cannot_run_what_a_file_says(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_IMPORTS
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_IMPORTS
            # Another name for torch.load would escape the test above.
            assert not (node.module == "torch" and any(a.name == "load" for a in node.names))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"add_safe_globals", "allow_pickle", "_target_"}
        if isinstance(node, ast.keyword):
            assert node.arg not in {"allow_pickle", "trust_remote_code", "custom_pipeline"}
        if isinstance(node, ast.Attribute) and node.attr == "import_module":
            assert name_of(path) in IMPORTERS
