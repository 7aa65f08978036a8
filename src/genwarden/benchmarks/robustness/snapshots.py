"""What a command leaves: every file, without what may differ from run to run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import genwarden
from genwarden.engine.files import json_bytes, sha256_bytes

#: How long it took and on what; the only keys that may differ.
VOLATILE = {"timing", "environment", "seconds"}


def snapshot(folder: Path) -> dict[str, Any]:
    """Files by path: JSON without what is volatile, pages as complete or not, others as bytes.

    Temporary files and unfinished work count, so that what is left behind is a difference.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            found[f"{name}/"] = ""
        elif path.suffix == ".json":
            found[name] = stable(json.loads(path.read_text("utf-8")))
        elif path.suffix == ".html":  # made from the JSON beside it, with seconds
            found[name] = path.read_text("utf-8").rstrip().endswith("</html>")
        else:
            found[name] = path.read_bytes()
    return found


def stable(value: Any) -> Any:
    """JSON without what may differ."""
    if isinstance(value, dict):
        return {key: stable(item) for key, item in value.items() if key not in VOLATILE}
    return [stable(item) for item in value] if isinstance(value, list) else value


def digests(folder: Path) -> dict[str, str]:
    """The same as hashes, by path."""
    return {
        name: sha256_bytes(content if isinstance(content, bytes) else json_bytes(content))
        for name, content in snapshot(folder).items()
    }


def differing(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Paths that are missing, surplus or different."""
    return sorted(p for p in {*expected, *found} if expected.get(p) != found.get(p))


def code_digest() -> str:
    """Hexadecimal, 16 digits: every module of this package, so that nothing is mixed up."""
    package = Path(genwarden.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
