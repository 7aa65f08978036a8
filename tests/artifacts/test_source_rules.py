"""What the source itself promises: one restricted loader, no other way to run what a file says."""

from __future__ import annotations

import ast
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


def test_torch_load_is_called_once_and_always_weights_only() -> None:
    calls = {name_of(path): called(path, "torch.load") for path in MODULES}
    found = {name: rows for name, rows in calls.items() if rows}
    assert set(found) == {"artifacts/weights_file.py"}
    (call,) = found["artifacts/weights_file.py"]
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    assert options["weights_only"] == "True"


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
