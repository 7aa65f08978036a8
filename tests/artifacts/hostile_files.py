"""Makers of hostile weight files and of their benign twins: bytes made on the spot, no samples."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

Members = dict[str, bytes]


def state_dict() -> dict[str, Tensor]:
    """A few small tensors with distinct values."""
    return {
        "layer.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 10,
        "layer.bias": torch.tensor([0.5, -0.5, 0.25]),
        "count": torch.tensor(7),
    }


def safetensors_file() -> bytes:
    """The state dict as safetensors."""
    return save_safetensors(state_dict())


def torch_file(content: Any = None) -> bytes:
    """What ``torch.save`` writes; the state dict by default."""
    buffer = io.BytesIO()
    torch.save(state_dict() if content is None else content, buffer)
    return buffer.getvalue()


def raw_safetensors(header: str | bytes | dict[str, Any], data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = json.dumps(header) if isinstance(header, dict) else header
    encoded = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(encoded)) + encoded + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    """A header entry."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def members_of(content: bytes) -> Members:
    """The members of a torch file by name."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rezip(
    members: Members | list[tuple[str, bytes]], *, compression: int = zipfile.ZIP_STORED
) -> bytes:
    """Members as a zip archive, in order."""
    pairs = list(members.items()) if isinstance(members, dict) else members
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in pairs:
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            archive.writestr(info, content)
    return buffer.getvalue()


def with_pickle(pickled: bytes) -> bytes:
    """A torch file whose data.pkl is replaced."""
    members = members_of(torch_file())
    return rezip({n: pickled if n.endswith("data.pkl") else c for n, c in members.items()})


def calling(module: str, name: str, argument: str) -> bytes:
    """A protocol-2 pickle that calls ``module.name(argument)`` when it is loaded."""
    text = argument.encode()
    call = f"c{module}\n{name}\n".encode()
    return b"\x80\x02" + call + b"X" + struct.pack("<I", len(text)) + text + b"\x85R."


def twice_the_same_member() -> bytes:
    """Two members called data.pkl: the first is harmless, readers disagree on which one counts."""
    members = list(members_of(torch_file()).items())
    name, harmless = next(pair for pair in members if pair[0].endswith("data.pkl"))
    del harmless
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for other, content in members:
            archive.writestr(other, content)
        archive.NameToInfo.pop(name)  # keeps zipfile from warning about the duplicate
        archive.writestr(name, calling("os", "system", "true"))
    return buffer.getvalue()


def wrong_checksum() -> bytes:
    """One byte of a weight changed; torch loads this without a word."""
    content = bytearray(torch_file())
    weights = state_dict()["layer.weight"].numpy().tobytes()
    content[content.index(weights) + 5] ^= 0x40
    return bytes(content)


def different_names_in_the_two_directories() -> bytes:
    """The local header says ``data/0``, the central directory something else."""
    content = bytearray(rezip(members_of(torch_file())))
    first = content.index(b"archive/data/0")
    content[first : first + 14] = b"archive/data/9"
    return bytes(content)


def encrypted_flag() -> bytes:
    """The flag bit of encryption set in both directories (CVE-2025-1945's trick)."""
    content = bytearray(rezip(members_of(torch_file())))
    at_local = content.index(b"PK\x03\x04") + 6
    at_central = content.index(b"PK\x01\x02") + 8
    content[at_local] |= 1
    content[at_central] |= 1
    return bytes(content)


def data_between_members() -> bytes:
    """A second file hidden behind the last member."""
    content = rezip(members_of(torch_file()))
    at = content.index(b"PK\x01\x02")
    hidden = b"MZ" + bytes(200)
    end = bytearray(content[at:])
    (offset,) = struct.unpack("<L", end[-6:-2])
    end[-6:-2] = struct.pack("<L", offset + len(hidden))
    return content[:at] + hidden + bytes(end)


def stride_zero() -> bytes:
    """A tensor of 10^12 elements in a file of a few hundred bytes."""
    return torch_file({"huge": torch.zeros(1).expand(10**6, 10**6)})


def overlapping_views() -> bytes:
    """Many different windows of one storage, each small enough by itself."""
    storage = torch.arange(4096.0)
    return torch_file({f"w{i}": storage[i : i + 4000] for i in range(96)})


def tied() -> dict[str, Tensor]:
    """Fifty names for one tensor: legitimate, and larger in sum than the file."""
    weight = torch.arange(4096.0)
    return {f"block{i}.weight": weight for i in range(50)}


class NotATensor:
    """Something that pickles to a class of ours."""


# Name -> (content, code). Every row must be refused with exactly this code.
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "an empty file": (lambda: b"", "artifact/empty"),
    "one byte": (lambda: b"\x00", "artifact/unknown-format"),
    "an HTML page": (
        lambda: b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
        "artifact/html-page",
    ),
    "a Git LFS pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "artifact/lfs-pointer",
    ),
    "a legacy torch file": (
        lambda: _legacy_torch_file(),
        "artifact/legacy-pickle",
    ),
    "a bare malicious pickle": (
        lambda: calling("posix", "system", "true"),
        "artifact/legacy-pickle",
    ),
    "a malicious protocol-0 pickle": (
        lambda: b"cposix\nsystem\n(S'true'\ntR.",
        "artifact/unknown-format",
    ),
    "a gzip archive": (lambda: b"\x1f\x8b\x08" + bytes(20), "artifact/unknown-format"),
    "a 7z archive": (lambda: b"7z\xbc\xaf\x27\x1c" + bytes(30), "artifact/unknown-format"),
    "an HDF5 file": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(30), "artifact/unknown-format"),
    "a JSON document": (lambda: b'{"weights": [1, 2, 3, 4]}', "artifact/unknown-format"),
    "random bytes": (lambda: bytes(range(7, 250)), "artifact/unknown-format"),
    # safetensors
    "a header longer than the file": (
        lambda: struct.pack("<Q", 5000) + b'{"a":1}',
        "artifact/truncated",
    ),
    "weights cut off": (lambda: safetensors_file()[:-5], "artifact/truncated"),
    "a nesting bomb": (lambda: raw_safetensors('{"a":' * 100_000), "artifact/corrupt"),
    "a header that is no JSON": (lambda: raw_safetensors("{not json"), "artifact/corrupt"),
    "a header that is not UTF-8": (lambda: raw_safetensors(b'{"\xff\xfe":1}'), "artifact/corrupt"),
    "a header with a number of a million digits": (
        lambda: raw_safetensors('{"a":' + "9" * 1_000_000 + "}"),
        "artifact/corrupt",
    ),
    "a tensor named twice": (
        lambda: raw_safetensors(
            f'{{"a":{json.dumps(entry([1], 0, 4))},"a":{json.dumps(entry([1], 0, 4))}}}', bytes(4)
        ),
        "artifact/corrupt",
    ),
    "overlapping tensors": (
        lambda: raw_safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        "artifact/corrupt",
    ),
    "a hole between tensors": (
        lambda: raw_safetensors({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
        "artifact/corrupt",
    ),
    "data that belongs to no tensor": (lambda: safetensors_file() + b"MZ", "artifact/corrupt"),
    "an absurd shape": (
        lambda: raw_safetensors({"a": entry([1 << 40, 1 << 40], 0, 4)}, bytes(4)),
        "artifact/corrupt",
    ),
    "an absurd shape made empty": (
        lambda: raw_safetensors({"a": entry([0, 1 << 62, 1 << 62], 0, 0)}),
        "artifact/corrupt",
    ),
    "a negative shape": (
        lambda: raw_safetensors({"a": entry([-1, -1], 0, 4)}, bytes(4)),
        "artifact/corrupt",
    ),
    "a shape that lies": (
        lambda: raw_safetensors({"a": entry([100], 0, 4)}, bytes(4)),
        "artifact/corrupt",
    ),
    "metadata that is not text": (
        lambda: raw_safetensors({"__metadata__": {"a": {}}, "b": entry([1], 0, 4)}, bytes(4)),
        "artifact/corrupt",
    ),
    "an entry that is a list": (lambda: raw_safetensors({"a": [1, 2]}), "artifact/corrupt"),
    "complex numbers in safetensors": (
        lambda: raw_safetensors({"a": entry([1], 0, 8, "C64")}, bytes(8)),
        "artifact/unsupported-tensor",
    ),
    "an unknown element type": (
        lambda: raw_safetensors({"a": entry([1], 0, 4, "\x1b[2J")}, bytes(4)),
        "artifact/unsupported-tensor",
    ),
    "no tensor at all": (lambda: raw_safetensors("{}"), "artifact/no-tensors"),
    # torch zip
    "a zip cut off": (lambda: torch_file()[: len(torch_file()) // 2], "artifact/truncated"),
    "a deflated member": (
        lambda: rezip(members_of(torch_file()), compression=zipfile.ZIP_DEFLATED),
        "artifact/zip-refused",
    ),
    "a zip bomb": (
        lambda: rezip(
            members_of(torch_file({"a": torch.zeros(1 << 20)})), compression=zipfile.ZIP_DEFLATED
        ),
        "artifact/zip-refused",
    ),
    "a member twice": (twice_the_same_member, "artifact/zip-refused"),
    "a wrong checksum": (wrong_checksum, "artifact/corrupt"),
    "two directories that disagree": (
        different_names_in_the_two_directories,
        "artifact/zip-refused",
    ),
    "an encryption flag": (encrypted_flag, "artifact/zip-refused"),
    "data hidden between members": (data_between_members, "artifact/zip-refused"),
    "data before the archive": (
        lambda: b"PK\x03\x04" + bytes(60) + rezip(members_of(torch_file())),
        "artifact/zip-refused",
    ),
    "data after the archive": (lambda: torch_file() + b"MZ", "artifact/zip-refused"),
    "a path that climbs out": (
        lambda: rezip(members_of(torch_file()) | {"archive/../../evil": b"x"}),
        "artifact/zip-refused",
    ),
    "a second folder": (
        lambda: rezip(members_of(torch_file()) | {"other/data.pkl": b"."}),
        "artifact/zip-refused",
    ),
    "an ordinary zip": (lambda: rezip({"readme.txt": b"hello"}), "artifact/zip-refused"),
    "a zip without a pickle": (
        lambda: rezip({"archive/version": b"3\n"}),
        "artifact/zip-refused",
    ),
    "a TorchScript archive": (
        lambda: rezip(members_of(torch_file()) | {"archive/code/net.py": b"", "archive/x": b""}),
        "artifact/torchscript",
    ),
    "a pickle that calls os.system": (
        lambda: with_pickle(calling("posix", "system", "true")),
        "artifact/pickle-refused",
    ),
    "a pickle that calls an unknown function": (
        lambda: with_pickle(calling("some.module", "function", "true")),
        "artifact/pickle-refused",
    ),
    "a pickle with a name in disguise": (
        lambda: with_pickle(calling("torch", "S\\x69ze", "true")),
        "artifact/pickle-refused",
    ),
    "a pickle that fills memory": (
        lambda: with_pickle(b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R."),
        "artifact/pickle-refused",
    ),
    "a pickle with an instance opcode": (
        lambda: with_pickle(b"(iposix\nsystem\n."),
        "artifact/pickle-refused",
    ),
    "a pickle with bytes after its end": (
        lambda: with_pickle(members_of(torch_file())["archive/data.pkl"] + b"cos\nsystem\n."),
        "artifact/pickle-refused",
    ),
    "a pickle that stops early": (
        lambda: with_pickle(members_of(torch_file())["archive/data.pkl"][:40]),
        "artifact/corrupt",
    ),
    "a whole pickled module": (lambda: torch_file(nn.Linear(2, 2)), "artifact/pickle-refused"),
    "an object of another class": (
        lambda: torch_file({"a": NotATensor()}),
        "artifact/pickle-refused",
    ),
    "a list of tensors": (lambda: torch_file([torch.ones(2)]), "artifact/not-a-state-dict"),
    "a single tensor": (lambda: torch_file(torch.ones(2)), "artifact/not-a-state-dict"),
    "numbers instead of tensors": (lambda: torch_file({"a": 1.5}), "artifact/not-a-state-dict"),
    "an empty dictionary": (lambda: torch_file({}), "artifact/no-tensors"),
    "a tensor of stride zero": (stride_zero, "artifact/tensor-exceeds-file"),
    "many overlapping views": (overlapping_views, "artifact/tensor-exceeds-file"),
    "a sparse tensor": (
        lambda: torch_file({"a": torch.eye(3).to_sparse()}),
        "artifact/unsupported-tensor",
    ),
    "a quantized tensor": (
        lambda: _quantized(),
        "artifact/unsupported-tensor",
    ),
    "a complex tensor": (
        lambda: torch_file({"a": torch.ones(2, dtype=torch.complex64)}),
        "artifact/unsupported-tensor",
    ),
    "a tensor without data": (
        lambda: torch_file({"a": torch.ones(2, device="meta")}),
        "artifact/unsupported-tensor",
    ),
}


def _quantized() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of this type; files remain
        return torch_file({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)})


def _legacy_torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save(state_dict(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


# Name -> content. Each of these must load.
BENIGN: dict[str, Callable[[], bytes]] = {
    "safetensors": safetensors_file,
    "safetensors with metadata": lambda: save_safetensors(state_dict(), {"format": "pt"}),
    "safetensors with a padded header": lambda: raw_safetensors(
        json.dumps({"a": entry([1], 0, 4)}) + " " * 4096, bytes(4)
    ),
    "an empty tensor beside others": lambda: save_safetensors(
        state_dict() | {"none": torch.zeros(0, 4)}
    ),
    "a scalar": lambda: save_safetensors({"a": torch.tensor(1.5)}),
    "half precision": lambda: save_safetensors({"a": torch.ones(3, dtype=torch.float16)}),
    "bfloat16": lambda: save_safetensors({"a": torch.ones(3, dtype=torch.bfloat16)}),
    "double precision": lambda: save_safetensors({"a": torch.ones(3, dtype=torch.float64)}),
    "float8": lambda: save_safetensors({"a": torch.ones(3).to(torch.float8_e4m3fn)}),
    "not finite": lambda: save_safetensors({"a": torch.tensor([1.0, float("nan"), float("inf")])}),
    "torch.save": torch_file,
    "torch.save of tied weights": lambda: torch_file(tied()),
    "torch.save of an empty tensor": lambda: torch_file(state_dict() | {"none": torch.zeros(0, 4)}),
    "torch.save of a transposed view": lambda: torch_file({"a": torch.rand(3, 5).t()}),
    "torch.save of views of one storage": lambda: torch_file(
        dict(zip("ab", torch.arange(10.0).reshape(2, 5), strict=True))
    ),
    "torch.save of parameters": lambda: torch_file({"a": nn.Parameter(torch.ones(3))}),
    "torch.save of bfloat16": lambda: torch_file({"a": torch.ones(3, dtype=torch.bfloat16)}),
    "a module's state dict": lambda: torch_file(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()
    ),
    "a training checkpoint": lambda: torch_file(
        {"state_dict": state_dict(), "epoch": 3, "optimizer": _optimizer_state(), "name": "x"}
    ),
    "a name outside ASCII": lambda: torch_file({"grüße.重み": torch.ones(2)}),
}


def _optimizer_state() -> dict[str, Any]:
    network = nn.Linear(2, 2)
    adam = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    adam.step()
    return adam.state_dict()


def put(folder: Path, content: bytes, name: str = "weights.bin") -> Path:
    """Write bytes to a file whose name says nothing about them."""
    path = folder / name
    path.write_bytes(content)
    return path
