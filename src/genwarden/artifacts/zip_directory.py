"""The members of a zip archive, with every byte of the file accounted for (R-4, C-5).

Zip readers differ in what they overlook: Python's and torch's take the directory's word for names,
sizes and checksums, unzip the local headers'. This one takes both and refuses where they differ.
What it accepts is a subset of APPNOTE 6.3: members stored, back to back from the first byte on,
then the directory, then its end record, then nothing. Standard library only: it runs in the child
process that :mod:`genwarden.artifacts.reading_child` starts.
"""

from __future__ import annotations

import stat
import struct
import zlib
from typing import Final, NamedTuple

from genwarden.artifacts.limits import MAX_MEMBERS

_LOCAL: Final = struct.Struct("<4s5H3L2H")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_END: Final = struct.Struct("<4s4H2LH")
_LOCATOR: Final = struct.Struct("<4sLQL")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_DESCRIPTOR: Final = struct.Struct("<4s3L")
_DESCRIPTOR64: Final = struct.Struct("<4sL2Q")
_ENCRYPTED: Final = 0x0001
_HAS_DESCRIPTOR: Final = 0x0008
_UTF8: Final = 0x0800
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_ZIP64_FIELD: Final = 0x0001
#: torch pads the data of members to 64 bytes with an extra field "FB" full of Z.
_PADDING_FIELD: Final = 0x4246
_DOS_FOLDER: Final = 0x10
_CHUNK_BYTES: Final = 1 << 20


class ZipRefusedError(Exception):
    """The archive is well formed, or nearly, and not of the accepted form."""


class ZipDamagedError(Exception):
    """The archive cannot be read, or its content does not match its checksum."""


class ZipTruncatedError(Exception):
    """The archive has no end."""


class Member(NamedTuple):
    """A stored member: ``content[start:start + size]``."""

    name: str
    start: int
    size: int


class _Entry(NamedTuple):
    """What the central directory says about a member."""

    raw_name: bytes
    flags: int
    checksum: int
    size: int
    offset: int


def read_members(content: bytes | memoryview) -> list[Member]:
    """All members in the order of their place, their checksums verified.

    Args:
        content: the whole file.

    Raises:
        ZipTruncatedError, ZipRefusedError, ZipDamagedError: with the reason as message.
    """
    view = memoryview(content)
    try:
        start, end, count = _directory(view)
        entries = sorted(_entries(view, start, end, count), key=lambda entry: entry.offset)
        position = 0
        members = []
        seen: set[str] = set()
        for entry in entries:
            name = _name(entry)
            if name in seen:
                raise ZipRefusedError("a member occurs twice")
            seen.add(name)
            if entry.offset != position:
                raise ZipRefusedError(f"there is something before member {name!r}, or two overlap")
            member, position = _member(view, entry, name, start)
            members.append(member)
    except struct.error as error:
        raise ZipDamagedError("a record is cut off") from error
    if position != start:
        raise ZipRefusedError("there is something before its directory")
    for entry, member in zip(entries, members, strict=True):
        if _checksum(view, member) != entry.checksum:
            raise ZipDamagedError(f"member {member.name!r} has a wrong checksum")
    return members


def _directory(view: memoryview) -> tuple[int, int, int]:
    """Start and end of the central directory, and the number of its entries."""
    if len(view) < _END.size or bytes(view[-_END.size : -_END.size + 4]) != b"PK\x05\x06":
        if b"PK\x05\x06" in bytes(view[-_END.size - _FULL16 :]):
            raise ZipRefusedError("there is something after its directory")
        raise ZipTruncatedError
    at = len(view) - _END.size
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(view, at)
    if disk or first_disk or here != count or comment:
        raise ZipRefusedError("it has several parts or a comment")
    end = at
    if at >= _LOCATOR.size and bytes(view[at - _LOCATOR.size :][:4]) == b"PK\x06\x07":
        end, size, start, count = _directory64(view, at - _LOCATOR.size, (count, size, start))
    elif count == _FULL16 or _FULL32 in (size, start):
        raise ZipRefusedError("its directory is larger than it says")
    if start + size != end:
        raise ZipRefusedError("its directory is not where it says")
    if not 0 < count <= MAX_MEMBERS:
        raise ZipRefusedError(f"it has {count:,} members")
    return start, end, count


def _directory64(
    view: memoryview, locator: int, small: tuple[int, int, int]
) -> tuple[int, int, int, int]:
    """The same from the records of large archives, which torch writes always."""
    _, disk, at, disks = _LOCATOR.unpack_from(view, locator)
    if disk or disks > 1 or at != locator - _END64.size:
        raise ZipRefusedError("its end record is not where it says")
    magic, length, _, _, disk, first_disk, here, count, size, start = _END64.unpack_from(view, at)
    if magic != b"PK\x06\x06" or length != _END64.size - 12 or disk or first_disk:
        raise ZipRefusedError("its end record is malformed")
    for few, many, full in zip(small, (count, size, start), (_FULL16, _FULL32, _FULL32)):  # noqa: B905
        if few not in {many, full}:
            raise ZipRefusedError("its two end records disagree")
    if here != count:
        raise ZipRefusedError("it has several parts")
    return at, size, start, count


def _entries(view: memoryview, start: int, end: int, count: int) -> list[_Entry]:
    entries = []
    position = start
    for _ in range(count):
        magic, _, _, flags, method, _, _, checksum, stored, size, *lengths, _, outer, offset = (
            _CENTRAL.unpack_from(view, position)
        )
        name_bytes, extra_bytes, comment_bytes, disk = lengths
        if magic != b"PK\x01\x02":
            raise ZipRefusedError("its directory is malformed")
        position += _CENTRAL.size
        raw_name = bytes(view[position : position + name_bytes])
        extra = bytes(view[position + name_bytes : position + name_bytes + extra_bytes])
        position += name_bytes + extra_bytes + comment_bytes
        if position > end:
            raise ZipRefusedError("its directory is longer than it says")
        if flags & _ENCRYPTED:
            raise ZipRefusedError("a member is encrypted")
        if method:
            raise ZipRefusedError("a member is compressed")
        if flags & ~(_HAS_DESCRIPTOR | _UTF8) or comment_bytes or disk:
            raise ZipRefusedError("a member is stored in an unusual way")
        if outer & _DOS_FOLDER or stat.S_IFMT(outer >> 16) not in {0, stat.S_IFREG}:
            raise ZipRefusedError("a member is a link or a folder")
        sizes = _wide(_fields(extra).get(_ZIP64_FIELD, b""), [size, stored, offset])
        size, stored, offset = sizes
        if size != stored:
            raise ZipRefusedError("a member has two sizes")
        entries.append(_Entry(raw_name, flags, checksum, size, offset))
    if position != end:
        raise ZipRefusedError("there is something behind its directory")
    return entries


def _member(view: memoryview, entry: _Entry, name: str, limit: int) -> tuple[Member, int]:
    """A member by its local header, which must say the same; and where the next one begins."""
    disagree = ZipRefusedError(f"its directories disagree about {name!r}")
    if entry.offset + _LOCAL.size > limit:
        raise disagree
    magic, _, flags, method, _, _, checksum, stored, size, name_bytes, extra_bytes = (
        _LOCAL.unpack_from(view, entry.offset)
    )
    at = entry.offset + _LOCAL.size
    raw_name = bytes(view[at : at + name_bytes])
    if (magic, flags, method, raw_name) != (b"PK\x03\x04", entry.flags, 0, entry.raw_name):
        raise disagree
    at += name_bytes
    extra = _fields(bytes(view[at : at + extra_bytes]))
    if not set(extra.get(_PADDING_FIELD, b"")) <= set(b"Z\x00"):
        raise ZipRefusedError(f"something hides in the padding of {name!r}")
    size, stored = _wide_local(extra.get(_ZIP64_FIELD, b""), size, stored, entry)
    start = at + extra_bytes
    end = start + entry.size
    later = (0, 0, 0)
    facts = (entry.checksum, entry.size, entry.size)
    if (checksum, stored, size) != facts and not (
        flags & _HAS_DESCRIPTOR and (checksum, stored, size) == later
    ):
        raise disagree
    if flags & _HAS_DESCRIPTOR:
        expected = (b"PK\x07\x08", *facts)
        # The wide form is for members of 4 GB, but writers may use it always.
        if end + _DESCRIPTOR.size <= limit and _DESCRIPTOR.unpack_from(view, end) == expected:
            end_of_all = end + _DESCRIPTOR.size
        elif _DESCRIPTOR64.unpack_from(view, end) == expected:
            end_of_all = end + _DESCRIPTOR64.size
        else:
            raise disagree
    else:
        end_of_all = end
    if end_of_all > limit:
        raise ZipRefusedError(f"member {name!r} reaches beyond the file")
    return Member(name, start, entry.size), end_of_all


def _fields(extra: bytes) -> dict[int, bytes]:
    """Extra fields by number; only the two that torch writes are known."""
    fields: dict[int, bytes] = {}
    position = 0
    while position < len(extra):
        if position + 4 > len(extra):
            raise ZipRefusedError("a member carries malformed extra data")
        number, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if number in fields or number not in {_ZIP64_FIELD, _PADDING_FIELD}:
            raise ZipRefusedError("a member carries extra data")
        if position + length > len(extra):
            raise ZipRefusedError("a member carries malformed extra data")
        fields[number] = extra[position : position + length]
        position += length
    return fields


def _wide(field: bytes, values: list[int]) -> list[int]:
    """32-bit values, those that are all ones replaced by 64-bit ones of the extra field."""
    wanted = [place for place, value in enumerate(values) if value == _FULL32]
    if len(field) != 8 * len(wanted):
        raise ZipRefusedError("a member carries sizes that nobody asks for")
    for place, (value,) in zip(wanted, struct.iter_unpack("<Q", field), strict=True):
        values[place] = value
    return values


def _wide_local(field: bytes, size: int, stored: int, entry: _Entry) -> tuple[int, int]:
    """The sizes of a local header; torch's writer adds the field where they stay zero, too."""
    if _FULL32 in (size, stored) or not field:
        size, stored = _wide(field, [size, stored])
        return size, stored
    stated = tuple(value for (value,) in struct.iter_unpack("<Q", field))
    if stated not in {(entry.size,) * 2, (entry.size, entry.size, entry.offset)}:
        raise ZipRefusedError("a member carries sizes that nobody asks for")
    return size, stored


def _name(entry: _Entry) -> str:
    try:
        return entry.raw_name.decode("utf-8" if entry.flags & _UTF8 else "ascii")
    except UnicodeDecodeError as error:
        raise ZipRefusedError("a member's name is not text") from error


def _checksum(view: memoryview, member: Member) -> int:
    value = 0
    for start in range(member.start, member.start + member.size, _CHUNK_BYTES):
        stop = min(start + _CHUNK_BYTES, member.start + member.size)
        value = zlib.crc32(view[start:stop], value)
    return value
