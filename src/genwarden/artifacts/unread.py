"""What lies in a model folder that genwarden does not open, but other software may.

Loaders differ in what they open: a folder whose safetensors are sound may hold a pickle that an
older loader prefers. Such files are named, by their first bytes or their name; pictures, texts and
whatever else runs nothing are passed over.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_BEGINNINGS: Final = (
    (b"PK\x03\x04", "a zip archive (torch files are)"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"\xcf\xfa\xed\xfe", "a program"),
    (b"#!", "a script"),
    (b"\x89HDF", "an HDF5 file (Keras weights)"),
)
#: A pickle of protocol 2 to 5 begins with these; protocols 0 and 1 have no mark of their own.
_PICKLES: Final = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_SUFFIXES: Final = {
    **dict.fromkeys((".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".joblib"), "a pickle"),
    **dict.fromkeys((".py", ".pyc", ".sh", ".so", ".dll", ".dylib", ".pyd"), "code"),
}
_FIRST: Final = 64
#: A folder with more files is no model folder; the rest is told as one line.
_MOST_FILES: Final = 10_000


def unread_files(folder: Path) -> tuple[tuple[str, str], ...]:
    """Relative names of links, pickles, archives, programs and code, with what they are."""
    found: list[tuple[str, str]] = []
    seen = 0
    for place, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = os.path.join(place, name)
            seen += 1
            if seen > _MOST_FILES:
                return (*found, ("...", f"more than {_MOST_FILES:,} files; the rest is unknown"))
            if what := _kind(path):
                found.append((os.path.relpath(path, folder), what))
    return tuple(found)


def _kind(path: str) -> str:
    """What may run or be opened by others; "" for everything else."""
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
    if first.startswith(_PICKLES):
        return "a pickle"
    for beginning, what in _BEGINNINGS:
        if first.startswith(beginning):
            return what
    return _SUFFIXES.get(os.path.splitext(path)[1].lower(), "")
