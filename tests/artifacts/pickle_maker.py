"""Pickles from single operations: what ``torch.save`` writes, and payloads in every place of it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

PROTO = b"\x80\x02"


def text(value: str) -> bytes:
    """BINUNICODE."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    """The shortest operation for an integer."""
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def group(*values: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(values) + b"t"


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    """A value made by ``module.attribute(*arguments)``."""
    return name(module, attribute) + group(*arguments) + b"R"


def value_of(plain: Any) -> bytes:
    """A text, an integer, None, or a tuple of them."""
    if plain is None:
        return b"N"
    if isinstance(plain, tuple):
        return group(*map(value_of, plain))
    return text(plain) if isinstance(plain, str) else integer(plain)


def storage(
    key: str = "0", numel: Any = 4, kind: str = "FloatStorage", place: str = "cpu"
) -> bytes:
    """A persistent identifier of a storage."""
    count = numel if isinstance(numel, bytes) else integer(numel)
    return group(text("storage"), name("torch", kind), text(key), text(place), count) + b"Q"


def tensor(
    shape: tuple[Any, ...] = (4,),
    stride: tuple[Any, ...] = (1,),
    *,
    offset: Any = 0,
    stored: bytes | None = None,
    gradient: bytes = b"\x89",
    hooks: bytes | None = None,
) -> bytes:
    """A tensor; each argument may be bytes of another operation."""
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        storage() if stored is None else stored,
        offset if isinstance(offset, bytes) else integer(offset),
        group(*(n if isinstance(n, bytes) else integer(n) for n in shape)),
        group(*(n if isinstance(n, bytes) else integer(n) for n in stride)),
        gradient,
        call("collections", "OrderedDict") if hooks is None else hooks,
    )


def table(*pairs: tuple[bytes, bytes]) -> bytes:
    """A dictionary."""
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def whole(value: bytes) -> bytes:
    """The complete pickle of one value."""
    return PROTO + value + b"."


def sound(*more: tuple[bytes, bytes]) -> bytes:
    """A state dict of one tensor of four numbers, and more entries."""
    return whole(table((text("weight"), tensor()), *more))


#: Where a payload may stand in a state dict that looks sound otherwise.
PLACES: dict[str, Callable[[bytes], bytes]] = {
    "as the whole": whole,
    "as a value": lambda p: sound((text("x"), p)),
    "as a key": lambda p: sound((p, b"N")),
    "as a storage": lambda p: whole(table((text("weight"), tensor(stored=p)))),
    "as a state": lambda p: whole(
        call("collections", "OrderedDict") + b"(" + text("w") + tensor() + b"u" + p + b"b"
    ),
    "in a list": lambda p: sound((text("x"), b"]" + p + b"a")),
    "as a shape": lambda p: whole(table((text("weight"), tensor(shape=(p,))))),
    "as hooks": lambda p: whole(table((text("weight"), tensor(hooks=p)))),
    "before the rest": lambda p: whole(table((text("a"), p), (text("weight"), tensor()))),
}
