"""What a file is, decided by its first bytes; its name and suffix are not asked (R-1)."""

from __future__ import annotations

import struct
from typing import Literal

from genwarden.errors import GenwardenError

Format = Literal["safetensors", "torch zip"]

#: Limit of the safetensors format itself.
MAX_HEADER_BYTES = 100_000_000
_ZIP_MAGIC = b"PK\x03\x04"
_SAFETENSORS_ADVICE = (
    "Give safetensors, or a state dict saved by torch.save (zip format, torch >= 1.6)."
)

_HTML_STARTS = (b"<!doctype", b"<html")
_LFS_START = b"version https://git-lfs"
_OTHER_MAGIC = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\xfd7zXZ": "an xz archive",
    b"PK\x05\x06": "an empty zip archive",
    b"\x89HDF": "an HDF5 file (Keras weights)",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a NumPy array",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"{": "a JSON document",
}


def identify(content: bytes, where: str) -> Format:
    """The format of a weights file that genwarden opens.

    Raises:
        GenwardenError: ``artifact/html-page``, ``artifact/lfs-pointer``,
            ``artifact/legacy-pickle`` or ``artifact/unknown-format``.
    """
    if content.startswith(_ZIP_MAGIC):
        return "torch zip"
    if looks_like_safetensors(content):
        return "safetensors"
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(_HTML_STARTS):
        raise GenwardenError(
            "artifact/html-page",
            f"{where} is a web page (an expired link or a login page), not a weights file.",
            "Open the download link in a browser, sign in if asked, and fetch the file itself.",
        )
    if start.startswith(_LFS_START):
        raise GenwardenError(
            "artifact/lfs-pointer",
            f"{where} is a Git LFS pointer; the weights themselves were not fetched.",
            "Run `git lfs pull` in the repository it came from.",
        )
    if content[:1] == b"\x80" and content[1:2] <= b"\x05":
        raise GenwardenError(
            "artifact/legacy-pickle",
            f"{where} is a bare pickle, a format that runs code when it is loaded.",
            "Do not load it; ask its author for safetensors.",
        )
    what = next((text for magic, text in _OTHER_MAGIC.items() if content.startswith(magic)), None)
    if what is None and content[257:262] == b"ustar":
        what = "a tar archive"
    if what is None and len(content) < 16:
        what = f"only {len(content)} bytes long"
    raise GenwardenError(
        "artifact/unknown-format",
        f"{where} is {what or 'of an unknown format'}, not a weights file that genwarden opens.",
        _SAFETENSORS_ADVICE,
    )


def looks_like_safetensors(content: bytes) -> bool:
    """Eight bytes of a plausible header length, then the header's opening brace."""
    return (
        len(content) > 8
        and content[8:9] == b"{"
        and struct.unpack("<Q", content[:8])[0] <= MAX_HEADER_BYTES
    )
