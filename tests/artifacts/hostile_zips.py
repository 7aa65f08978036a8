"""Hostile archives around a sound pickle: C-5, C-9, C-16, and archives that are cut off."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from catalogue import Case, bound, of_bytes
from hostile_pickles import file_with
from pickle_maker import sound
from zip_maker import Part, archive, descriptor

NAMES = ("data.pkl", "byteorder", "data/0", "version", ".data/serialization_id")
CONTENTS = (sound(), b"little", bytes(range(16)), b"3\n", b"12345678901234567890")

Edit = Callable[[Part], Part]


def parts() -> list[Part]:
    """The members of a sound file."""
    return [Part(f"archive/{n}", c) for n, c in zip(NAMES, CONTENTS, strict=True)]


def zip_cases() -> Iterator[Case]:
    """Every case of this module."""
    yield from _members()
    yield from _ends()
    yield from _names()
    yield from _contents()
    yield from _cut()


def _case(attack: str, what: str, variant: object, code: str, make: Callable[[], bytes]) -> Case:
    return of_bytes(attack, "torch zip", what, variant, code, make)


def _members() -> Iterator[Case]:
    """One lie about one member, for every member."""

    def both(**fields: Any) -> Edit:
        return lambda p: replace(p, local=fields, central=fields)

    def local(**fields: Any) -> Edit:
        return lambda p: replace(p, local=fields)

    def central(**fields: Any) -> Edit:
        return lambda p: replace(p, central=fields)

    def wrong(part: Part, **lies: int) -> dict[str, int]:
        return {"crc": zlib.crc32(part.data) ^ lies.get("crc", 0), "size": len(part.data)}

    refused: dict[str, Edit] = {
        "another local name": local(name=b"archive/data/9"),
        "a local name of the same length": lambda p: replace(
            p, local={"name": p.name.encode()[:-1] + b"#"}
        ),
        "another central name": central(name=b"archive/data/9"),
        "an empty local name": local(name=b""),
        "an encryption flag": both(flags=1),
        "an encryption flag in the directory alone": central(flags=1),
        "an encryption flag in the member alone": local(flags=1),
        "a strong encryption flag": both(flags=0x40),
        "a patch flag": both(flags=0x20),
        "masked headers": both(flags=0x2000),
        "a reserved flag": both(flags=0x8000),
        "a text flag in the directory alone": central(flags=0x800),
        "a descriptor flag without one": both(flags=8),
        "deflation claimed": both(method=8),
        "deflation claimed in the directory alone": central(method=8),
        "deflation claimed in the member alone": local(method=8),
        "shrinking claimed": both(method=1),
        "bzip2 claimed": both(method=12),
        "lzma claimed": both(method=14),
        "AES claimed": both(method=99),
        "another local checksum": local(crc=7),
        "a local checksum of zero": local(crc=0),
        "another local size": local(size=3),
        "another local stored size": local(stored=3),
        "local sizes of zero": local(size=0, stored=0, crc=0),
        "two sizes in the directory": central(size=1 << 20),
        "two stored sizes in the directory": central(stored=1),
        "a local size of all ones": local(size=0xFFFFFFFF, stored=0xFFFFFFFF),
        "a central size of all ones": central(size=0xFFFFFFFF, stored=0xFFFFFFFF),
        "a central offset of all ones": central(offset=0xFFFFFFFF),
        "a local magic that is none": local(magic=b"PK\x03\x05"),
        "a central magic that is none": central(magic=b"PK\x01\x03"),
        "an offset one byte on": lambda p: replace(p, central={"offset": 1}),
        "a member comment": central(comment=b"hidden"),
        "a disk number": central(disk=1),
        "a symbolic link": central(outer=0o120777 << 16),
        "a folder": central(outer=0x10),
        "a Unix folder": central(outer=0o040755 << 16),
        "a device": central(outer=0o020666 << 16),
        "a pipe": central(outer=0o010666 << 16),
        "a Unicode path field": both(extra=struct.pack("<2HBL", 0x7075, 5, 1, 0)),
        "an unknown central field": central(extra=struct.pack("<2H4s", 0x1234, 4, b"evil")),
        "an unknown local field": local(extra=struct.pack("<2H4s", 0x1234, 4, b"evil")),
        "a Unix field with a link": central(extra=struct.pack("<2H4s", 0x756E, 4, b"evil")),
        "an AES field": both(extra=struct.pack("<2H7s", 0x9901, 7, b"\x02\0AE\x03\0\0")),
        "data in the padding": local(extra=struct.pack("<2H8s", 0x4246, 8, b"ZZevilZZ")),
        "a field longer than it is": local(extra=struct.pack("<2H", 0x4246, 60)),
        "half a field": local(extra=b"FB\x01"),
        "the padding twice": local(extra=struct.pack("<2H", 0x4246, 0) * 2),
        "large sizes that nobody asks for": central(extra=struct.pack("<2HQ", 1, 8, 5)),
        "large local sizes that lie": local(extra=struct.pack("<2H2Q", 1, 16, 5, 5)),
        "bytes before it": lambda p: replace(p, before=b"MZ\x90\0"),
        "an unlisted member before it": lambda p: replace(
            p, before=struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"x"
        ),
        "not listed at all": lambda p: replace(p, listed=False),
        "a descriptor without its flag": lambda p: replace(p, descriptor=descriptor(p.data)),
        "a descriptor with a wrong checksum": lambda p: replace(
            p, local={"flags": 8}, central={"flags": 8},
            descriptor=descriptor(p.data, crc=zlib.crc32(p.data) ^ 1),
        ),
        "a descriptor with a wrong size": lambda p: replace(
            p, local={"flags": 8}, central={"flags": 8},
            descriptor=descriptor(p.data, size=len(p.data) + 1),
        ),
        "a descriptor without a magic": lambda p: replace(
            p, local={"flags": 8}, central={"flags": 8}, descriptor=descriptor(p.data, signed=False)
        ),
        "local lies beside a descriptor": lambda p: replace(
            p, local={"flags": 8, "crc": 0, "size": 1, "stored": 1}, central={"flags": 8},
            descriptor=descriptor(p.data),
        ),
    }  # fmt: skip
    for what, edit in refused.items():
        for place in range(len(NAMES)):
            if place == 0 and what in {"bytes before it", "a local magic that is none"}:
                continue  # an archive that does not begin as one is of an unknown format
            yield _case(
                "C-5", what, NAMES[place], "zip-refused",
                bound(lambda e, k: archive(
                    [e(p) if i == k else p for i, p in enumerate(parts())]
                ), edit, place),
            )  # fmt: skip
    for place in range(len(NAMES)):
        for bit in (0, 7, 31):
            yield _case(
                "C-5", "a wrong checksum in both places", f"{NAMES[place]} bit {bit}", "corrupt",
                bound(lambda k, b: archive(
                    [
                        replace(p, local=wrong(p, crc=1 << b), central=wrong(p, crc=1 << b))
                        if i == k else p
                        for i, p in enumerate(parts())
                    ]
                ), place, bit),
            )  # fmt: skip
        yield _case(
            "C-5", "a member twice", NAMES[place], "zip-refused",
            bound(lambda k: archive([*parts(), parts()[k]]), place),
        )  # fmt: skip
        yield _case(
            "C-5", "a member twice with other content", NAMES[place], "zip-refused",
            bound(lambda k: archive([*parts(), replace(parts()[k], data=b"cposix\nsystem\n.")]),
            place),
        )  # fmt: skip


def _ends() -> Iterator[Case]:
    """Lies of the archive's end."""
    base = archive(parts())
    size, start = struct.unpack("<2L", base[-10:-2])
    for what, options in {
        "several disks": {"disk": 1},
        "a directory on another disk": {"first": 1},
        "more entries here": {"here": 6},
        "fewer entries here": {"here": 4},
        "a directory that starts earlier": {"start": start - 1},
        "a directory that starts later": {"start": start + 1},
        "a directory that is shorter": {"size": size - 1},
        "a directory that is longer": {"size": size + 1},
        "all ones": {"size": 0xFFFFFFFF, "start": 0xFFFFFFFF, "here": 0xFFFF, "count": 0xFFFF},
        "a comment that is not there": {"comment": 5},
        "fewer entries": {"here": 4, "count": 4},
        "no entries": {"here": 0, "count": 0},
        "an earlier directory of the right length": {"start": start - 4, "size": size + 4},
    }.items():
        yield _case(
            "C-5", "an end record that lies", what, "zip-refused",
            bound(lambda o: archive(parts(), end=o), options),
        )  # fmt: skip
    for what, large in {
        "another start": {"start": start + 1},
        "another size": {"size": size + 1},
        "another count": {"count": 6},
        "another length": {"length": 45},
        "another place": {"at": 0},
        "two disks": {"disks": 2},
    }.items():
        yield _case(
            "C-5", "a large end record that lies", what, "zip-refused",
            bound(lambda o: archive(parts(), zip64=o), large),
        )  # fmt: skip
    hidden: dict[str, Callable[[bytes], bytes]] = {
        "before the directory": lambda b: archive(parts(), before_directory=b),
        "behind the directory": lambda b: archive(parts(), after_directory=b),
        "as a comment": lambda b: archive(parts(), comment=b),
        "behind the end": lambda b: archive(parts(), tail=b),
    }
    payloads = {
        "a program": b"\x7fELF" + bytes(60),
        "one byte": b"\0",
        "a pickle": b"cposix\nsystem\n(X\x01\0\0\0xtR.",
        "an archive's end": base[-22:],
        "an archive": base,
        "64 KiB": bytes(65000),
    }
    for where, make in hidden.items():
        for what, payload in payloads.items():
            # Where the hidden bytes are an archive themselves the file is one with a front part.
            yield _case(
                "C-5", f"something hidden {where}", what, "zip-refused",
                bound(lambda m, b: m(b), make, payload),
            )  # fmt: skip


def _names() -> Iterator[Case]:
    """C-16 and C-5: members that are none of torch's."""
    climbing = [
        "../evil", "archive/../evil", "archive/../../evil", "/etc/passwd", "//evil", "C:\\evil",
        "archive/..\\evil", "archive\\data\\1", "archive/./data/1", "archive//data/1",
        "./archive/x",
        "archive/data/../1", "archive/data/", "archive/", "archive", "archive/data/1/", "~/.bashrc",
        "archive/data/1\0.txt", "archive/data/%2e%2e", "archive/data/\u2024\u2024", "\u202eevil",
        "archive/data/1 ", " archive/data/1", "ARCHIVE/data/1", "archive/DATA/1", "archive/data/01",
        "archive/data/x", "archive/data/-1", "archive/data/1e3", "archive/data/\u0661",
        "archive/\n",
        "archive/data.pkl.bak", "archive/data.pkl/", "archive/data.PKL", "archive/evil.pkl",
        "archive/evil.py", "archive/__init__.py", "archive/version/1", "other/data.pkl",
        "archive/archive/data.pkl", "other/data/1", "archive/extra/1", "archive/.data/evil",
        "archive/.format", "archive/model.json", "archive/\x1b[2J", "archive/<script>",
        "archive/" + "x" * 5000, "archive/data/" + "9" * 10,
    ]  # fmt: skip
    for name in climbing:
        for place in ("first", "last"):
            if place == "first" and "/" in name and name.startswith("archive"):
                continue
            yield _case(
                "C-16", f"a strange member {place}", name[:40], "zip-refused",
                bound(lambda n, p: archive(
                    [Part(n, b"x"), *parts()] if p == "first" else [*parts(), Part(n, b"x")]
                ), name, place),
            )  # fmt: skip
    for root in ("..", ".", "", "/", "\\", "a\\b", "\0", "\x1b[2J", "a\nb", "\u202e"):
        yield _case(
            "C-16", "a strange folder", repr(root), "zip-refused",
            bound(lambda r: archive(
                [replace(p, name=p.name.replace("archive", r, 1), local={"flags": 0x800},
                         central={"flags": 0x800}) for p in parts()]
            ), root),
        )  # fmt: skip
    for raw in (b"archive/\xff", b"archive/\xc3\x28", b"\xed\xa0\x80/x"):
        yield _case(
            "C-5", "a name that is no text", raw, "zip-refused",
            bound(lambda r: archive([*parts(), Part("x", b"", {"name": r}, {"name": r})]), raw),
        )  # fmt: skip
    for inner in ("constants.pkl", "code/net.py", "code/__torch__.py", "code/x/y.py.debug_pkl"):
        yield _case(
            "C-4", "TorchScript", inner, "torchscript",
            bound(lambda n: archive([*parts(), Part(f"archive/{n}", b"")]), inner),
        )  # fmt: skip
    for missing in ("data.pkl", "data/0"):
        code = "zip-refused" if missing == "data.pkl" else "tensor-exceeds-file"
        yield _case(
            "C-5", "a member that is missing", missing, code,
            bound(lambda m: archive([p for p in parts() if not p.name.endswith(m)]), missing),
        )  # fmt: skip
    for surplus in range(1, 6):
        yield _case(
            "C-5", "members that no tensor uses", surplus, "zip-refused",
            bound(lambda n: archive(
                [*parts(), *(Part(f"archive/data/{i}", b"hidden") for i in range(1, n + 1))]
            ), surplus),
        )  # fmt: skip


def _contents() -> Iterator[Case]:
    """Members whose content is not what torch writes, and compressed ones (C-9)."""
    for inner, texts in {
        "version": [b"", b"x", b"3\n\n", b"-1", b"3 evil", bytes(100), b"\xff", b"99999"],
        "byteorder": [b"", b"LITTLE", b"little\n", b"middle", bytes(100)],
        ".format_version": [b"", b"x", b"1 ", bytes(100)],
        ".storage_alignment": [b"", b"x", b"64 ", bytes(100)],
        ".data/serialization_id": [b"", b"x", b"1" * 65, bytes(100)],
    }.items():
        for note in texts:
            yield _case(
                "C-5", f"something hidden in {inner}", note[:12], "zip-refused",
                bound(lambda i, n: file_with(sound(), **{i: n}), inner, note),
            )  # fmt: skip
    yield _case(
        "C-9", "numbers in another order", "big-endian", "unsupported-tensor",
        lambda: file_with(sound(), byteorder=b"big"),
    )  # fmt: skip
    methods = {
        "deflated": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA,
    }  # fmt: skip
    for what, method in methods.items():
        for megabytes in (0, 1, 2):
            yield _case(
                "C-9", "a compressed archive", f"{what} {megabytes} MB", "zip-refused",
                bound(lambda m, n: _compressed(m, n << 20), method, megabytes),
            )  # fmt: skip


def _compressed(method: int, size: int) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as out:
        for part in parts():
            content = bytes(size) if part.name.endswith("data/0") and size else part.data
            out.writestr(zipfile.ZipInfo(part.name), content, compress_type=method)
    return buffer.getvalue()


def _cut() -> Iterator[Case]:
    """Downloads that stopped early."""
    for seed in range(2):
        whole = archive([*parts(), Part("archive/data/1", bytes(64 * seed))])
        for share in range(1, 40):
            length = max(4, len(whole) * share // 40)
            yield _case(
                "C-6", "an archive that is cut off", f"{seed}, {length} bytes", "truncated",
                bound(lambda w, n: w[:n], whole, length),
            )  # fmt: skip
