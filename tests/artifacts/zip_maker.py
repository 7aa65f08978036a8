"""Zip archives with full control over every field, to make what no zip library would write."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL_FIELDS = (
    "magic", "needs", "flags", "method", "time", "date", "crc", "stored", "size", "names", "extras",
)  # fmt: skip
_CENTRAL_FIELDS = (
    "magic", "made", "needs", "flags", "method", "time", "date", "crc", "stored", "size", "names",
    "extras", "comments", "disk", "inner", "outer", "offset",
)  # fmt: skip


@dataclass
class Part:
    """A member and what its headers say instead of the truth.

    Attributes:
        data: as stored.
        local, central: fields by name; ``name`` and ``extra`` are bytes.
        before: bytes in front of it.
        descriptor: what follows the data; None for nothing.
        listed: whether the directory names it.
    """

    name: str
    data: bytes
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    before: bytes = b""
    descriptor: bytes | None = None
    listed: bool = True


def archive(
    parts: list[Part],
    *,
    end: dict[str, int] | None = None,
    before_directory: bytes = b"",
    after_directory: bytes = b"",
    comment: bytes = b"",
    tail: bytes = b"",
    zip64: dict[str, int] | None = None,
) -> bytes:
    """The archive; without overrides a plain one as Python's ``zipfile`` writes it."""
    body = bytearray()
    directory = bytearray()
    listed = 0
    for part in parts:
        body += part.before
        offset = len(body)
        crc, size = zlib.crc32(part.data), len(part.data)
        truth = {"needs": 20, "crc": crc, "stored": size, "size": size}
        body += _header(_LOCAL, _LOCAL_FIELDS, b"PK\x03\x04", part, truth | part.local)
        body += part.data
        body += part.descriptor or b""
        if part.listed:
            listed += 1
            directory += _header(
                _CENTRAL,
                _CENTRAL_FIELDS,
                b"PK\x01\x02",
                part,
                truth | {"offset": offset} | part.central,
            )
    body += before_directory
    facts = {"disk": 0, "first": 0, "here": listed, "count": listed, "size": len(directory)}
    facts |= {"start": len(body), "comment": len(comment)} | (end or {})
    body += directory
    body += after_directory
    if zip64 is not None:
        large = {"length": 44, "count": listed, "size": facts["size"], "start": facts["start"]}
        large |= {"at": len(body), "disks": 1} | zip64
        at = large["at"]
        body += struct.pack(
            "<4sQ2H2L4Q", b"PK\x06\x06", large["length"], 45, 45, 0, 0, large["count"],
            large["count"], large["size"], large["start"],
        )  # fmt: skip
        body += struct.pack("<4sLQL", b"PK\x06\x07", 0, at, large["disks"])
    body += struct.pack(
        "<4s4H2LH", b"PK\x05\x06", facts["disk"], facts["first"], facts["here"], facts["count"],
        facts["size"], facts["start"], facts["comment"],
    )  # fmt: skip
    return bytes(body) + comment + tail


def _header(
    form: struct.Struct, names: tuple[str, ...], magic: bytes, part: Part, values: dict[str, Any]
) -> bytes:
    name: bytes = values.get("name", part.name.encode())
    extra: bytes = values.get("extra", b"")
    comment: bytes = values.get("comment", b"")
    values = {"names": len(name), "extras": len(extra), "comments": len(comment)} | values
    return form.pack(*(values.get(key, magic if key == "magic" else 0) for key in names)) + (
        name + extra + comment
    )


def descriptor(data: bytes, *, wide: bool = False, signed: bool = True, **lies: int) -> bytes:
    """What follows the data of a member whose sizes were not known when it began."""
    facts = {"crc": zlib.crc32(data), "stored": len(data), "size": len(data)} | lies
    form = "<LQQ" if wide else "<LLL"
    return (b"PK\x07\x08" if signed else b"") + struct.pack(form, *facts.values())
