"""Files of other kinds, under every suffix: C-4, C-8, C-14, C-17."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator

import numpy as np
from catalogue import Case, bound, of_bytes
from hostile_pickles import TRAP
from pickle_maker import call, text

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pkl", ".onnx", ".txt", "")


def _pickled(protocol: int) -> bytes:
    return pickle.dumps({"a": [1.0, 2.0]}, protocol=protocol)


def _malicious() -> bytes:
    return b"\x80\x02" + call("posix", "system", text(f"touch {TRAP}")) + b"."


def _tar(name: str = "x") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        info = tarfile.TarInfo(name)
        payload = _malicious()
        info.size = len(payload)
        out.addfile(info, io.BytesIO(payload))
    return buffer.getvalue()


def _numpy(*, objects: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object) if objects else np.arange(3.0), allow_pickle=True)
    return buffer.getvalue()


def _zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for name, content in members.items():
            out.writestr(name, content)
    return buffer.getvalue()


def _onnx() -> bytes:
    """The start of an ONNX model: version 8, a producer, an empty graph."""
    return b"\x08\x08\x12\x07pytorch\x1a\x052.1.0\x3a\x02\x12\x00" + bytes(40)


def contents() -> dict[str, tuple[str, str, bytes]]:
    """Name -> (attack class, code, content)."""
    evil = _malicious()
    found: dict[str, tuple[str, str, bytes]] = {
        "a malicious pickle": ("C-8", "legacy-pickle", evil),
        "a gzip archive": ("C-8", "unknown-format", gzip.compress(evil)),
        "a bzip2 archive": ("C-8", "unknown-format", bz2.compress(evil)),
        "an xz archive": ("C-8", "unknown-format", lzma.compress(evil)),
        "a raw lzma stream": ("C-8", "unknown-format", lzma.compress(evil, lzma.FORMAT_ALONE)),
        "a tar archive": ("C-14", "unknown-format", _tar()),
        "a legacy tar of torch": ("C-14", "unknown-format", _tar("storages")),
        "a 7z archive": ("C-8", "unknown-format", b"7z\xbc\xaf\x27\x1c" + bytes(60)),
        "a RAR archive": ("C-8", "unknown-format", b"Rar!\x1a\x07\x01\x00" + bytes(60)),
        "a Zstandard archive": ("C-8", "unknown-format", b"\x28\xb5\x2f\xfd" + bytes(60)),
        "an LZ4 archive": ("C-8", "unknown-format", b"\x04\x22\x4d\x18" + bytes(60)),
        "an empty zip": ("C-8", "unknown-format", _zip_of({})),
        "a zip of a pickle": ("C-8", "zip-refused", _zip_of({"model.pkl": evil})),
        "a Java archive": ("C-8", "zip-refused", _zip_of({"META-INF/MANIFEST.MF": b"x"})),
        "a NumPy archive": ("C-8", "zip-refused", _zip_of({"arr_0.npy": _numpy(objects=True)})),
        "a Keras archive": ("C-8", "zip-refused", _zip_of({"config.json": b"{}"})),
        "a zip with a password": (
            "C-8", "zip-refused",
            b"PK\x03\x04" + _zip_of({"archive/data.pkl": evil})[4:6] + b"\x01" + _zip_of(
                {"archive/data.pkl": evil})[7:],
        ),
        "a NumPy array": ("C-8", "unknown-format", _numpy(objects=False)),
        "a NumPy array of objects": ("C-7", "unknown-format", _numpy(objects=True)),
        "an HDF5 file": ("C-8", "unknown-format", b"\x89HDF\r\n\x1a\n" + bytes(60)),
        "a GGUF file": ("C-8", "unknown-format", b"GGUF\x03\0\0\0" + bytes(60)),
        "a TensorFlow graph": ("C-8", "unknown-format", b"\x0a\x0c\x0a\x05input" + bytes(60)),
        "a Parquet file": ("C-8", "unknown-format", b"PAR1" + bytes(60) + b"PAR1"),
        "a database": ("C-8", "unknown-format", b"SQLite format 3\0" + bytes(60)),
        "a program": ("C-8", "unknown-format", b"\x7fELF\x02\x01\x01" + bytes(60)),
        "a Windows program": ("C-8", "unknown-format", b"MZ\x90\0" + bytes(60)),
        "a shell script": ("C-8", "unknown-format", b"#!/bin/sh\ntouch " + TRAP.encode()),
        "a Python program": ("C-8", "unknown-format", b"import os\nos.system('true')\n"),
        "a YAML document": ("C-8", "unknown-format", b"!!python/object/apply:os.system [true]\n"),
        "a JSON document": ("C-8", "unknown-format", b'{"_target_": "os.system"}'),
        "a PDF document": ("C-8", "unknown-format", b"%PDF-1.7\n" + bytes(60)),
        "a PNG image": ("C-8", "unknown-format", b"\x89PNG\r\n\x1a\n" + bytes(60)),
        "a JPEG image": ("C-8", "unknown-format", b"\xff\xd8\xff\xe0" + bytes(60)),
        "zero bytes": ("C-8", "unknown-format", bytes(1000)),
        "one byte": ("C-8", "unknown-format", b"\x80"),
        "random bytes": ("C-8", "unknown-format", bytes((7 * i + 3) % 251 for i in range(999))),
        "a web page": ("C-8", "html-page", b"\n <!DOCTYPE html><html><script>x</script></html>"),
        "a Git LFS pointer": (
            "C-8", "lfs-pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        ),
    }  # fmt: skip
    for protocol in (2, 3, 4, 5):
        found[f"a pickle of protocol {protocol}"] = ("C-8", "legacy-pickle", _pickled(protocol))
    for protocol in (0, 1):
        found[f"a pickle of protocol {protocol}"] = ("C-8", "unknown-format", _pickled(protocol))
    return found


def container_cases() -> Iterator[Case]:
    """Every content under every suffix: the name must change nothing."""
    for what, (attack, code, content) in contents().items():
        for suffix in SUFFIXES:
            yield of_bytes(
                attack, "other container", what, suffix, code, bound(lambda c: c, content),
                file_name=f"weights{suffix}",
            )  # fmt: skip
    for suffix in SUFFIXES:
        yield of_bytes(
            "C-17", "other container", "an ONNX model", suffix, "onnx", _onnx, exit_code=3,
            file_name=f"weights{suffix}",
        )  # fmt: skip
    yield of_bytes("C-8", "other container", "an empty file", "", "empty", bytes)
    for length in range(1, 9):
        yield of_bytes(
            "C-8", "other container", "the start of a safetensors file", length, "unknown-format",
            bound(lambda n: struct.pack("<Q", 64)[:n], length),
        )  # fmt: skip
