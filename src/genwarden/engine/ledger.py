"""The ledger of a run: finished pieces of work, so that a stopped command resumes.

A ledger is a folder of small JSON files, each written atomically under the name of the piece of
work. It belongs to exactly one run: its identity (command, model hash, settings, seed, versions)
is written first and compared on the next start. Each file names its run and holds a checksum: one
that was left by another run, or that is damaged, is work that must be done again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genwarden.engine.files import (
    remove_file,
    remove_folder,
    sha256_bytes,
    write_atomic,
    write_json,
)
from genwarden.errors import GenwardenError


class Ledger:
    """Finished pieces of one run.

    Args:
        folder: where the ledger lives; made if missing.
        identity: JSON-able description of everything that the results depend on.

    Raises:
        GenwardenError: ``ledger/other-run`` if the folder belongs to a run of another identity.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        text = json.dumps(identity, sort_keys=True)
        self.run_id = sha256_bytes(text.encode())[:16]
        marker = folder / "run.json"
        if marker.exists():
            previous = _read_json(marker)
            if previous is None or previous.get("run_id") != self.run_id:
                raise GenwardenError(
                    "ledger/other-run",
                    f"{folder.parent} holds an unfinished run with other settings"
                    f"{_difference(previous, identity)}.",
                    "Choose another --out folder, repeat the first command to finish it, "
                    "or add --restart to throw it away.",
                )
        else:
            write_json(marker, {"run_id": self.run_id, "identity": dict(identity)})

    def get(self, key: str) -> dict[str, Any] | None:
        """The recorded result of a piece of work, or None if it must (again) be done."""
        path = self._path(key)
        kept = _read_json(path) if path.exists() else None
        if kept is None or not isinstance(kept.get("record"), dict):
            return None
        record: dict[str, Any] = kept["record"]
        whole = kept.get("sha256") == self._checksum(key, record)
        return record if whole else None

    def put(self, key: str, record: Mapping[str, Any]) -> None:
        """Record a finished piece of work, atomically."""
        plain = json.loads(json.dumps(dict(record)))  # as it will be read
        kept = {"run_id": self.run_id, "sha256": self._checksum(key, plain), "record": plain}
        write_json(self._path(key), kept)

    def get_bytes(self, key: str) -> bytes | None:
        """Recorded bytes, or None if they are missing, damaged or another run's."""
        try:
            checksum, _, content = self._bytes_path(key).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        whole = checksum.decode("ascii", "replace") == self._bytes_checksum(key, content)
        return content if whole else None

    def put_bytes(self, key: str, content: bytes) -> None:
        """Record bytes, atomically, in the place of earlier ones."""
        checksum = self._bytes_checksum(key, content)
        write_atomic(self._bytes_path(key), checksum.encode() + b"\n" + content)

    def drop_bytes(self, key: str) -> None:
        """Forget recorded bytes, if there are any."""
        remove_file(self._bytes_path(key))

    def discard(self) -> None:
        """Remove the ledger once the final result is written."""
        remove_folder(self.folder)

    def _checksum(self, key: str, record: Mapping[str, Any]) -> str:
        text = json.dumps([self.run_id, key, record], sort_keys=True)
        return sha256_bytes(text.encode())

    def _bytes_checksum(self, key: str, content: bytes) -> str:
        return sha256_bytes(f"{self.run_id}\x1f{key}\x1f".encode() + content)

    def _bytes_path(self, key: str) -> Path:
        return self.folder / f"{key}.bin"

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None if the file is damaged (its piece of work is then done again)."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _difference(previous: dict[str, Any] | None, identity: Mapping[str, Any]) -> str:
    if previous is None or not isinstance(previous.get("identity"), dict):
        return ""
    old = previous["identity"]
    identity = json.loads(json.dumps(identity))  # as the old one was: tuples are lists there
    changed = sorted(k for k in set(old) | set(identity) if old.get(k) != identity.get(k))
    return f" ({', '.join(changed)} differ)" if changed else ""
