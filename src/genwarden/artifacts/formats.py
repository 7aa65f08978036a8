"""What a file is, decided by its first bytes; its name and suffix are not asked (R-1)."""

from __future__ import annotations

import re
import struct
from typing import Literal

from genwarden.errors import ExitCode, GenwardenError

Format = Literal["safetensors", "torch zip"]

#: Limit of the safetensors format itself; what genwarden reads of it is less.
_FORMAT_HEADER_BYTES = 100_000_000
_ZIP_MAGIC = b"PK\x03\x04"
#: Field numbers 1 to 14 of ONNX's ModelProto as protobuf tags: version, texts, graph, lists.
_ONNX_START = re.compile(rb"\x08[\x03-\x14][\x12\x1a\x22\x28\x32\x3a\x42\x72]")
_SAFETENSORS_ADVICE = (
    "Give safetensors, or a state dict saved by torch.save (zip format, torch >= 1.6)."
)

#: The end record of an archive without comment, exactly at the end of the file.
_END_OF_ZIP = re.compile(rb"PK\x05\x06.{16}\x00\x00", re.DOTALL)

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
    b"GGML": "a GGML file",
    b"\x93NUMPY": "a NumPy array",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"\x04\x22\x4d\x18": "an LZ4 archive",
    b"MZ": "a Windows program",
    b"\x7fELF": "a program",
    b"%PDF": "a PDF document",
    b"SQLite format 3\x00": "a database",
    b"PAR1": "a Parquet file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"{": "a JSON document",
}


def identify(content: bytes, where: str) -> Format:
    """The format of a weights file that genwarden opens.

    Raises:
        GenwardenError: ``artifact/html-page``, ``artifact/lfs-pointer``,
            ``artifact/legacy-pickle``, ``artifact/polyglot``, ``artifact/unknown-format``, or
            ``artifact/onnx`` (exit code "inconclusive": nothing was examined).
    """
    if content.startswith(_ZIP_MAGIC):
        return "torch zip"
    if looks_like_safetensors(content):
        if _END_OF_ZIP.fullmatch(content[-22:]):
            raise GenwardenError(
                "artifact/polyglot",
                f"{where} is safetensors and a zip archive at once: what it holds depends on who "
                "reads it.",
                "Do not use it; nobody makes such a file by accident.",
            )
        return "safetensors"
    if _ONNX_START.match(content):
        raise GenwardenError(
            "artifact/onnx",
            f"{where} looks like an ONNX model, which genwarden writes and does not read; nothing "
            "in it was examined.",
            "Give the weights that it was exported from, as safetensors; do not take this for a "
            "clean result.",
            ExitCode.INCONCLUSIVE,
        )
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
    if content[:1] == b"\x80" and b"\x00" <= content[1:2] <= b"\x05":
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
        and struct.unpack("<Q", content[:8])[0] <= _FORMAT_HEADER_BYTES
    )
