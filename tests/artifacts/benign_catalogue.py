"""The benign twins of the hostile-file factory: what honest writers write must be accepted.

Writers: torch.save with its options, safetensors for torch and for NumPy, a header written by hand,
and archives laid out as torch 1.6 to 2.13 did, as Python's zipfile does, or with large-file
records.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from catalogue import bound
from hostile_folders import FORMS, edit, fresh
from hostile_safetensors import entry, file_with
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from zip_maker import Part, archive, descriptor

from genwarden.artifacts.manifest import MANIFEST_NAME, WEIGHTS_NAME
from genwarden.engine.files import sha256_bytes

TORCH_TYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
MORE_TYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64)
SHAPES = ((), (0,), (1,), (3,), (2, 3), (4, 0, 2), (2, 3, 4), (1, 2, 3, 4), (1,) * 8, (40, 30))


@dataclass(frozen=True)
class Benign:
    """One honest file. ``write`` makes it in an empty folder and returns the path to open."""

    form: str
    what: str
    variant: str
    write: Callable[[Path], Path]

    @property
    def name(self) -> str:
        """Unique within the catalogue."""
        return f"{self.form}: {self.what} [{self.variant}]"


def benign_cases() -> Iterator[Benign]:
    """All of them, always the same and in the same order."""
    yield from _torch_writers()
    yield from _layouts()
    yield from _safetensors_writers()
    yield from _names()
    yield from _folders()


def _bytes(form: str, what: str, variant: object, make: Callable[[], bytes]) -> Benign:
    def write(folder: Path) -> Path:
        path = folder / "weights.bin"
        path.unlink(missing_ok=True)
        path.write_bytes(make())
        return path

    return Benign(form, what, str(variant), write)


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A tensor of any type with distinct, exactly representable values."""
    count = int(np.prod(shape, dtype=np.int64))
    values = (torch.arange(count) * 7 + seed) % (2 if dtype == torch.bool else 97)
    return values.to(torch.float32).to(dtype).reshape(shape)


def torch_file(content: Any, **options: Any) -> bytes:
    """What ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def network() -> nn.Sequential:
    """A small network with buffers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _torch_writers() -> Iterator[Benign]:
    for dtype in TORCH_TYPES:
        for shape in SHAPES:
            yield _bytes(
                "torch zip", "torch.save", f"{dtype} {shape}",
                bound(lambda d, s: torch_file({"a": numbers(s, d), "b": numbers((2,), d)}), dtype,
                shape),
            )  # fmt: skip
    a = numbers((4, 6), torch.float32)
    views: dict[str, Any] = {
        "a transposed view": {"a": a.t()},
        "a slice": {"a": a[1:3, 2:5]},
        "a slice with steps": {"a": a[::2, ::3]},
        "a column": {"a": a[:, 1]},
        "the last number": {"a": a[-1, -1]},
        "an empty slice at the end": {"a": a[4:]},
        "an expanded axis of one": {"a": a[:, :1].expand(4, 1)},
        "channels last": {"a": torch.rand(2, 3, 4,
        5).contiguous(memory_format=torch.channels_last)},
        "a permuted tensor": {"a": torch.rand(2, 3, 4).permute(2, 0, 1)},
        "halves of one storage": dict(zip("ab", a.reshape(2, 12), strict=True)),
        "a tensor and its transposed view": {"a": a, "b": a.t()},
        "fifty names for one tensor": {f"block{i}.weight": a for i in range(50)},
        "tied parameters": (lambda p: {"a": p, "b": p})(nn.Parameter(a)),
        "a parameter": {"a": nn.Parameter(a)},
        "a parameter without gradient": {"a": nn.Parameter(a, requires_grad=False)},
        "a tensor that wants a gradient": {"a": a.clone().requires_grad_()},
        "not finite": {"a": torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])},
        "subnormal numbers": {"a": torch.tensor([1e-45, -1e-45])},
        "a state dict": network().state_dict(),
        "a module's parameters": OrderedDict(network().named_parameters()),
        "an ordered dictionary": OrderedDict(a=a, b=a + 1),
        "a checkpoint": {"state_dict": network().state_dict(), "epoch": 3},
        "a checkpoint with an optimiser": _checkpoint(torch.optim.Adam),
        "a checkpoint with momentum": _checkpoint(torch.optim.SGD, momentum=0.9),
        "a checkpoint with AdamW": _checkpoint(torch.optim.AdamW),
        "a checkpoint with a schedule": _checkpoint(torch.optim.SGD) | _schedule(),
        "a checkpoint with many notes": {
            "state_dict": {"a": a}, "none": None, "yes": True, "number": 1 << 70, "negative": -5,
            "fraction": 1.5e300, "text": "x" * 300, "tuple": (1, (2, (3, ()))), "list": [[], [1,
            [2]]],
            "size": torch.Size([1, 2]), "device": torch.device("cuda:1"), "dtype": torch.float16,
            "numbers": {1: "a", (2, 3): "b", None: "c"}, "loss": [0.1] * 5000,
        },
        "a hundred tensors": {f"layer.{i}.weight": torch.full((3,), float(i)) for i in range(100)},
        "a thousand tensors": {f"layer.{i}.weight": torch.full((1,),
        float(i)) for i in range(1000)},
        "a storage that is hardly used": {"a": torch.zeros(10_000)[5:6]},
    }  # fmt: skip
    for what, content in views.items():
        yield _bytes("torch zip", "torch.save", what, bound(lambda c: torch_file(c), content))


def _checkpoint(kind: type[torch.optim.Optimizer], **options: Any) -> dict[str, Any]:
    trained = network()
    optimiser = kind(trained.parameters(), lr=0.1, **options)  # type: ignore[call-arg]
    trained(torch.ones(3, 3)).sum().backward()
    optimiser.step()
    return {"state_dict": trained.state_dict(), "optimizer": optimiser.state_dict(), "step": 1}


def _schedule() -> dict[str, Any]:
    optimiser = torch.optim.SGD(network().parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [3, 5])
    return {"schedule": schedule.state_dict()}


def _members(content: bytes) -> list[Part]:
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        return [Part(name, opened.read(name)) for name in opened.namelist()]


def _padded(part: Part, offset: int) -> Part:
    """A member as torch pads it, its data at a multiple of 64."""
    fill = -(offset + 30 + len(part.name) + 4) % 64
    return replace(part, local={"extra": struct.pack("<2H", 0x4246, fill) + b"Z" * fill})


def _layouts() -> Iterator[Benign]:
    """Archives as other versions and other tools lay them out."""
    state = {"layer.weight": numbers((3, 4), torch.float32), "count": torch.tensor(7)}
    parts = _members(torch_file(state))
    old = [p for p in parts if "/." not in p.name and not p.name.endswith("byteorder")]

    def later(part: Part, *, wide: bool) -> Part:
        zeros = {"flags": 8, "crc": 0, "size": 0, "stored": 0}
        tail = descriptor(part.data, wide=wide)
        return replace(part, local=zeros, central={"flags": 8}, descriptor=tail)

    layouts: dict[str, bytes] = {
        "torch 1.6 (data.pkl, data, version)": archive([_padded(p, 0) for p in old]),
        "torch 1.13": archive([p for p in parts if "/." not in p.name]),
        "torch 2.1 (byteorder)": archive([p for p in parts if "/.f" not in p.name]),
        "with descriptors": archive([later(p, wide=False) for p in parts]),
        "with wide descriptors": archive([later(p, wide=True) for p in parts]),
        "with large-file records": archive(parts, zip64={}),
        "with a text flag": archive(
            [replace(p, local={"flags": 0x800}, central={"flags": 0x800}) for p in parts]
        ),
        "with Unix rights": archive([replace(p, central={"outer": 0o100644 << 16}) for p in parts]),
        "with times": archive(
            [replace(p, local={"time": 5, "date": 9}, central={"time": 5,
            "date": 9}) for p in parts]
        ),
        "in another order": archive(parts[::-1]),
        "directory in another order": _shuffled_directory(parts),
        "by Python's zipfile": _by_zipfile(parts),
        "by Python's zipfile with large sizes": _by_zipfile(parts, large=True),
        "by Python's zipfile to a pipe": _by_zipfile(parts, pipe=True),
        "version without a line break": archive(
            [replace(p, data=b"3") if p.name.endswith("version") else p for p in old]
        ),
    }  # fmt: skip
    for what, content in layouts.items():
        yield _bytes("torch zip", "layout", what, bound(lambda c: c, content))
    for root in ("archive", "model", "my model", "grüße", "重み", "a.b-c_d", "epoch=3", "x" * 200):
        renamed = [
            replace(p, name=p.name.replace("archive", root, 1), local={"flags": 0x800},
                    central={"flags": 0x800})
            for p in parts
        ]  # fmt: skip
        yield _bytes("torch zip", "folder name", root[:20], bound(lambda r: archive(r), renamed))


def _shuffled_directory(parts: list[Part]) -> bytes:
    content = archive(parts)
    size, start = struct.unpack("<2L", content[-10:-2])
    records, position = [], start
    while position < start + size:
        names, extras, comments = struct.unpack_from("<3H", content, position + 28)
        length = 46 + names + extras + comments
        records.append(content[position : position + length])
        position += length
    return content[:start] + b"".join(reversed(records)) + content[start + size :]


class _Pipe(io.BytesIO):
    """Bytes that can only be written one after the other."""

    def tell(self) -> int:
        """Not possible in a pipe; zipfile then writes descriptors behind the members."""
        raise OSError

    def seekable(self) -> bool:
        """No."""
        return False


def _by_zipfile(parts: list[Part], *, large: bool = False, pipe: bool = False) -> bytes:
    buffer = _Pipe() if pipe else io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for part in parts:
            with out.open(zipfile.ZipInfo(part.name), "w", force_zip64=large) as member:
                member.write(part.data)
    return buffer.getvalue()


def _safetensors_writers() -> Iterator[Benign]:
    for dtype in (*TORCH_TYPES, *MORE_TYPES):
        for shape in SHAPES:
            yield _bytes(
                "safetensors", "safetensors.torch", f"{dtype} {shape}",
                bound(lambda d, s: save_safetensors({"a": numbers(s, d), "b": numbers((2,), d)}),
                dtype, shape),
            )  # fmt: skip
    for kind in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"):
        yield _bytes(
            "safetensors", "safetensors.numpy", kind,
            bound(lambda k: safetensors.numpy.save({"a": np.arange(6).reshape(2, 3).astype(k)}),
            kind),
        )  # fmt: skip
    view = np.arange(12, dtype="f4").reshape(3, 4)
    yield _bytes(
        "safetensors", "safetensors.numpy", "a copied view",
        lambda: safetensors.numpy.save({"a": np.ascontiguousarray(view[:, ::2].T)}),
    )  # fmt: skip
    sound = {"b": entry([1], 0, 4), "a": entry([2], 4, 12)}
    texts: dict[str, str] = {
        "sorted by place": json.dumps(sound),
        "sorted otherwise": json.dumps(dict(reversed(sound.items()))),
        "indented": json.dumps(sound, indent=4),
        "without spaces": json.dumps(sound, separators=(",", ":")),
        "padded": json.dumps(sound) + " " * 4096,
        "padded by line breaks": json.dumps(sound) + "\n" * 64,
        "fields in another order": '{"a":{"shape":[3],"data_offsets":[0,12],"dtype":"F32"}}',
        "escaped names": '{"\\u0061":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}',
        "an escaped pair": '{"\\ud83d\\ude00":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}',
        "metadata": json.dumps({"__metadata__": {"format": "pt", "note": "x" * 1000}, **sound}),
        "empty metadata": json.dumps({"__metadata__": {}, **sound}),
        "brackets in metadata": json.dumps({"__metadata__": {"a": "[{" * 5000}, **sound}),
        "nested JSON in metadata": json.dumps({"__metadata__": {"a": json.dumps(sound)}, **sound}),
        "empty tensors between": json.dumps({"e": entry([0], 0, 0), "f": entry([5, 0], 4, 4),
        **sound}),
        "an empty name": json.dumps({"": entry([3], 0, 12)}),
        "64 dimensions": json.dumps({"a": entry([1] * 63 + [3], 0, 12)}),
    }  # fmt: skip
    for what, text in texts.items():
        yield _bytes("safetensors", "by hand", what, bound(lambda t: file_with(t, bytes(12)), text))
    for count in (1000, 20_000):
        header = {
            f"model.layers.{i}.mlp.weight": entry([1], 4 * i, 4 * i + 4) for i in range(count)
        }
        yield _bytes(
            "safetensors", "large headers", f"{count} tensors",
            bound(lambda h, n: file_with(h, bytes(4 * n)), header, count),
        )  # fmt: skip
    yield _bytes(
        "safetensors", "large headers", "1 MB of metadata",
        lambda: save_safetensors({"a": torch.ones(1)}, {"note": "x" * 1_000_000}),
    )  # fmt: skip


#: C-18: names are data. They are accepted, and escaped wherever they are shown.
STRANGE_NAMES = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\x1b[2J\x1b[31m", "a\nb", "a\rb",
    "=cmd|' /C calc'!A0", "@SUM(1+1)", "+1", "-1", "../../etc/passwd", "/etc/passwd", "C:\\x",
    "%s%n%d", "{0.__class__}", "${jndi:ldap://x}", "`id`", "$(id)", "'; DROP TABLE x; --", "\0",
    "\u202egpj.exe", "\u200b", "grüße.重み", "\U0001f600", "x" * 5000, "", " ", "__class__",
    "__proto__", "state", "a.b.c.d.e.f", "file:///etc/passwd", "javascript:alert(1)", "]]>",
    "&amp;",
    "\ufeff", "\u2028", "NaN", "null", "true", "'\"\\", "\t", "\x7f", "\x9b", "os.system",
)  # fmt: skip


def _names() -> Iterator[Benign]:
    for name in STRANGE_NAMES:
        state = {name: torch.ones(2), "weight": torch.zeros(1)}
        yield _bytes(
            "safetensors",
            "a strange name",
            repr(name[:40]),
            bound(lambda s: save_safetensors(s), state),
        )
        yield _bytes(
            "torch zip", "a strange name", repr(name[:40]), bound(lambda s: torch_file(s), state)
        )


def _folders() -> Iterator[Benign]:
    for form in FORMS:
        yield Benign(form, "as written", "", bound(lambda f, folder: fresh(f, folder), form))
    for form in ("generator folder", "classifier folder"):
        for what, provenance in {
            "hostile words": {"note": "<script>\x1b[2J", "_target_": "os.system"},
            "deep words": {"a": {"b": {"c": [1, [2, [3]]]}}},
            "no words": {},
        }.items():

            def write(folder: Path, form: Any = form, provenance: Any = provenance) -> Path:
                path = fresh(form, folder)
                edit(path / MANIFEST_NAME, provenance=provenance)
                return path

            yield Benign(form, "provenance", what, write)

        def halves(folder: Path, form: Any = form) -> Path:
            from safetensors.torch import load

            path = fresh(form, folder)
            state = load((path / WEIGHTS_NAME).read_bytes())
            content = save_safetensors(
                {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
            )
            (path / WEIGHTS_NAME).write_bytes(content)
            edit(path / MANIFEST_NAME, files={WEIGHTS_NAME: sha256_bytes(content)})
            return path

        yield Benign(form, "weights", "half precision", halves)
    for what, name in {
        "a readme": "README.md",
        "a picture": "unet/x.png",
        "git": ".git/config",
    }.items():

        def beside(folder: Path, name: str = name) -> Path:
            path = fresh("diffusers folder", folder)
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text("x")
            return path

        yield Benign("diffusers folder", "something beside", what, beside)
