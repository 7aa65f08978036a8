"""What lies in a model folder that genwarden does not open, but other software may.

Loaders differ in what they open: a folder whose safetensors are sound may hold a pickle that an
older loader prefers. Named is everything but what genwarden has examined, texts and pictures; of
those, too, what begins like an archive, a program or a pickle. The files of a version control
(``.git``) are passed over: no loader looks for a model there.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

_BEGINNINGS: Final = (
    (b"PK\x03\x04", "a zip archive (torch files are)"),
    (b"\x1f\x8b", "a compressed file"),
    (b"\x7fELF", "a program"),
    (b"\xcf\xfa\xed\xfe", "a program"),
    (b"\xca\xfe\xba\xbe", "a program"),
    (b"#!", "a script"),
    (b"\x89HDF", "an HDF5 file (Keras weights)"),
    (b"\x93NUMPY", "a NumPy file"),
)
#: Pickles of protocol 2 to 5; a safetensors header of certain lengths begins alike.
_PICKLES: Final = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_SUFFIXES: Final = {
    **dict.fromkeys((".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".joblib"), "a pickle"),
    **dict.fromkeys((".py", ".pyc", ".sh", ".so", ".dll", ".dylib", ".pyd", ".ipynb"), "code"),
    **dict.fromkeys((".safetensors", ".onnx", ".gguf", ".pb", ".h5", ".msgpack"), "other weights"),
}
#: Runs nothing, wherever it is opened; ``""`` is a name without a dot, such as LICENSE.
_HARMLESS: Final = {
    *(".json", ".jsonl", ".md", ".txt", ".yaml", ".yml", ".csv", ".tsv", ".cff", ".log"),
    *(".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".wav"),
    *(".gitattributes", ".gitignore", ""),
}
_VERSION_CONTROL: Final = ".git"
_FIRST: Final = 64
#: A folder with more files is no model folder; the rest is told as one line.
_MOST_FILES: Final = 10_000


def unread_files(folder: Path, examined: Collection[Path]) -> tuple[tuple[str, str], ...]:
    """Relative names of what was not examined and may be opened elsewhere, with what it is.

    Args:
        examined: files whose content was looked at.
    """
    found: list[tuple[str, str]] = []
    known = {os.path.relpath(path, folder) for path in examined}
    seen = 0

    def not_listed(error: OSError) -> None:
        found.append((os.path.relpath(error.filename, folder), "a folder that cannot be listed"))

    for place, folders, files in os.walk(folder, onerror=not_listed, followlinks=False):
        if _VERSION_CONTROL in folders:
            folders.remove(_VERSION_CONTROL)
        folders.sort()
        for name in sorted([*folders, *files]):
            path = os.path.join(place, name)
            relative = os.path.relpath(path, folder)
            seen += 1
            if seen > _MOST_FILES:
                return (*found, ("...", f"more than {_MOST_FILES:,} files; the rest is unknown"))
            if relative not in known and (what := _kind(path)):
                found.append((relative, what))
    return tuple(found)


def _kind(path: str) -> str:
    """What it is; "" for a folder and for what runs nothing."""
    if os.path.islink(path):
        return "a link"
    if os.path.isdir(path):
        return ""
    if not os.path.isfile(path):
        return "not a plain file"
    try:
        with open(path, "rb") as opened:
            first = opened.read(_FIRST)
    except OSError:
        return "not readable"
    name = os.path.basename(path)
    suffix = os.path.splitext(name)[1].lower() or (name if name.startswith(".") else "")
    if first.startswith(_PICKLES) and suffix != ".safetensors":
        return "a pickle"
    for beginning, what in _BEGINNINGS:
        if first.startswith(beginning):
            return what
    if suffix in _HARMLESS:
        return ""
    return _SUFFIXES.get(suffix, "of a kind that genwarden does not open")
