"""Hostile safetensors: headers that lie, headers that two parsers read differently, bombs."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

from catalogue import Case, bound, of_bytes


def file_with(header: str | bytes | dict[str, Any], data: bytes = b"") -> bytes:
    """A file with any header."""
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw + data


def entry(shape: list[Any], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    """A header entry."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def safetensors_cases() -> Iterator[Case]:
    """Every case of this module."""
    yield from _lengths()
    yield from _entries()
    yield from _places()
    yield from _json()
    yield from _bombs()
    yield from _polyglots()


def _case(attack: str, what: str, variant: object, code: str, make: Callable[[], bytes]) -> Case:
    return of_bytes(attack, "safetensors", what, variant, code, make)


def _sound(tensors: int = 2) -> bytes:
    header = {f"layer.{i}.weight": entry([2, 3], 24 * i, 24 * i + 24) for i in range(tensors)}
    return file_with(header, bytes(range(24)) * tensors)


def _lengths() -> Iterator[Case]:
    whole = _sound()
    for length in range(9, len(whole)):
        yield _case("C-6", "cut off", length, "truncated", bound(lambda w, n: w[:n], whole, length))
    for more in (1, 2, 7, 8, 100, 4096):
        yield _case(
            "C-5",
            "bytes behind the weights",
            more,
            "corrupt",
            bound(lambda m: _sound() + bytes(m), more),
        )
    for announced in (10**8, 99_999_999, 1 << 20, 5000):
        yield _case(
            "C-6", "a header longer than the file", announced, "truncated",
            bound(lambda a: struct.pack("<Q", a) + b'{"a":1}', announced),
        )  # fmt: skip
    for announced in (10**8 + 1, 1 << 40, (1 << 64) - 1, 1 << 63):
        yield _case(
            "C-4", "a header of an absurd length", announced, "unknown-format",
            bound(lambda a: struct.pack("<Q", a) + b'{"a":1}' + bytes(20), announced),
        )  # fmt: skip


def _entries() -> Iterator[Case]:
    """Every field of an entry with everything that it must not be."""
    sound = entry([2], 0, 8)
    values: list[Any] = [
        None, True, False, 1, 0, -1, 1.5, "x", "", [], {}, [[]], ["1"], [None], [True], [1.0], [-1],
        [[1]], {"a": 1}, [1, 2, 3], [1 << 63], [1 << 64], [10**30],
    ]  # fmt: skip
    for key in ("shape", "data_offsets", "dtype"):
        for place, value in enumerate(values):
            nested = value in ([[]], [[1]])  # deeper than any header
            code = "unsupported-tensor" if key == "dtype" and not nested else "corrupt"
            yield _case(
                "C-5", f"a {key} of another kind", f"{place}: {value!r}", code,
                bound(lambda k, v: file_with({"a": sound | {k: v}}, bytes(8)), key, value),
            )  # fmt: skip
    for dtype in (
        "C64", "C128", "F4", "F6_E2M3", "F8_E8M0", "f32", "F32 ", "FLOAT", "float32", "I4", "Q8",
        "\x1b[2J", "<script>", "../F32", "F32\0", "O", "V", "U1024", "=cmd()", "x" * 5000,
    ):  # fmt: skip
        yield _case(
            "C-9", "a type that is not read", dtype[:20], "unsupported-tensor",
            bound(lambda d: file_with({"a": entry([2], 0, 8, d)}, bytes(8)), dtype),
        )  # fmt: skip
    for missing in ("shape", "dtype", "data_offsets"):
        yield _case(
            "C-5", "an entry without a field", missing, "corrupt",
            bound(lambda m: file_with({"a": {k: v for k, v in sound.items() if k != m}}, bytes(8)),
            missing),
        )  # fmt: skip
    for surplus in ("strides", "__proto__", "Shape", "shape ", "_target_", "offset", ""):
        yield _case(
            "C-5", "an entry with another field", surplus, "corrupt",
            bound(lambda s: file_with({"a": sound | {s: [1]}}, bytes(8)), surplus),
        )  # fmt: skip
    for place, value in enumerate((None, True, 1, 1.5, "x", [], [1, 2], [sound], {})):
        yield _case(
            "C-5", "an entry that is none", f"{place}: {value!r}", "corrupt",
            bound(lambda v: file_with({"a": v}, bytes(8)), value),
        )  # fmt: skip
        if value != {}:
            yield _case(
                "C-5", "metadata that is no table", f"{place}: {value!r}", "corrupt",
                bound(lambda v: file_with({"__metadata__": v, "a": sound}, bytes(8)), value),
            )  # fmt: skip
        if value != "x":
            yield _case(
                "C-5", "metadata that is no text", f"{place}: {value!r}", "corrupt",
                bound(lambda v: file_with({"__metadata__": {"k": v}, "a": sound}, bytes(8)), value),
            )  # fmt: skip


def _places() -> Iterator[Case]:
    """C-9: sizes against the bytes that are there."""
    for seed in range(12):
        a, b = seed + 1, 2 * seed + 3
        claims: dict[str, tuple[dict[str, Any], int, str]] = {
            "an overlap": ({"a": entry([a], 0, 4 * a), "b": entry([b], 2, 2 + 4 * b)}, 4 * b + 2,
            "corrupt"),
            "the same place twice": ({"a": entry([a], 0, 4 * a), "b": entry([a], 0, 4 * a)}, 4 * a,
            "corrupt"),
            "a hole": (
                {"a": entry([a], 0, 4 * a), "b": entry([b], 4 * a + 4, 4 * (a + b) + 4)},
                4 * (a + b) + 4, "corrupt",
            ),
            "a hole in front": ({"a": entry([a], 4, 4 * a + 4)}, 4 * a + 4, "corrupt"),
            "a shape that is larger": ({"a": entry([a + b], 0, 4 * a)}, 4 * a, "corrupt"),
            "a shape that is smaller": ({"a": entry([a], 0, 4 * (a + b))}, 4 * (a + b), "corrupt"),
            "another type's size": ({"a": entry([a], 0, 4 * a, "F64")}, 4 * a, "corrupt"),
            "an end before its start": ({"a": entry([a], 4 * a, 0)}, 4 * a, "corrupt"),
            "an absurd shape": ({"a": entry([1 << (40 + seed), 1 << 40], 0, 4)}, 4, "corrupt"),
            "an absurd shape made empty": ({"a": entry([0, 1 << 50, 1 << (13 + seed)], 0, 0)}, 0,
            "corrupt"),
            "more weights than there are": ({"a": entry([a + b], 0, 4 * (a + b))}, 4 * a,
            "truncated"),
            "far more weights than there are": (
                {"a": entry([1 << (20 + seed)], 0, 4 << (20 + seed))}, 64, "truncated",
            ),
            "an empty tensor in a hole": (
                {"a": entry([a], 0, 4 * a), "b": entry([0], 4 * a + 8, 4 * a + 8)}, 4 * a,
                "corrupt",
            ),
        }  # fmt: skip
        for what, (header, size, code) in claims.items():
            yield _case(
                "C-9",
                what,
                f"seed {seed}",
                code,
                bound(lambda h, n: file_with(h, bytes(n)), header, size),
            )
    for dimensions in (65, 100, 5000):
        yield _case(
            "C-9", "too many dimensions", dimensions, "unsupported-tensor",
            bound(lambda d: file_with({"a": entry([1] * d, 0, 4)}, bytes(4)), dimensions),
        )  # fmt: skip
    for empty in ("{}", '{"__metadata__":{}}', '{"__metadata__":{"a":"b"}}', "{ }"):
        yield _case("C-17", "no tensor", empty, "no-tensors", bound(lambda h: file_with(h), empty))


#: A sound entry in text form.
_ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
#: Texts that JSON parsers read differently, or not at all. ``{}`` stands for a sound value.
ODD_JSON: dict[str, str] = {
    "a key twice": '{"a":@,"a":@}',
    "a key twice by an escape": '{"a":@,"\\u0061":@}',
    "an inner key twice": '{"a":{"dtype":"F64","dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "metadata twice": '{"__metadata__":{},"__metadata__":{},"a":@}',
    "nothing": "{",
    "an open list": '{"a":[',
    "an open text": '{"a":"',
    "an open escape": '{"a":"\\',
    "a bracket too many": '{"a":@}}',
    "the wrong bracket": '{"a":@]',
    "text behind it": '{"a":@} evil',
    "a second document": '{"a":@}{"b":@}',
    "a zero byte behind it": '{"a":@}\0',
    "a comment": '{"a":@/*evil*/}',
    "a line comment": '{"a":@}//evil',
    "a comma at the end": '{"a":@,}',
    "single quotes": "{'a':@}",
    "a bare key": "{a:@}",
    "a number as a key": "{1:@}",
    "a line break in a text": '{"a\n":@}',
    "a tab in a text": '{"a\t":@}',
    "an unknown escape": '{"\\x61":@}',
    "half a character": '{"\\ud800":@}',
    "the other half": '{"\\udc00":@}',
    "halves in the wrong order": '{"\\udc00\\ud800":@}',
    "a vertical tab between": '{\x0b"a":@}',
    "a hard space between": '{\u00a0"a":@}',
    "a mark of order between": '{\ufeff"a":@}',
    "plus one": '{"a":{"dtype":"F32","shape":[+1],"data_offsets":[0,4]}}',
    "minus zero": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}',
    "a leading zero": '{"a":{"dtype":"F32","shape":[01],"data_offsets":[0,4]}}',
    "hexadecimal": '{"a":{"dtype":"F32","shape":[0x1],"data_offsets":[0,4]}}',
    "a fraction": '{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}',
    "an exponent": '{"a":{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}}',
    "a large exponent": '{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}',
    "an underscore": '{"a":{"dtype":"F32","shape":[1_0],"data_offsets":[0,4]}}',
    "NaN": '{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}',
    "Infinity": '{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}',
    "-Infinity": '{"a":{"dtype":"F32","shape":[-Infinity],"data_offsets":[0,4]}}',
    "other digits": '{"a":{"dtype":"F32","shape":[\u0661],"data_offsets":[0,4]}}',
    "True": '{"a":True}',
    "undefined": '{"a":undefined}',
    "a million digits": '{"a":{"dtype":"F32","data_offsets":[0,4],"shape":['
    + "9" * 1_000_000 + "]}}",
    "a hundred digits": '{"a":{"dtype":"F32","shape":[' + "1" * 100 + '],"data_offsets":[0,4]}}',
}  # fmt: skip


def _json() -> Iterator[Case]:
    """C-5 of headers: what two parsers may read differently."""
    for what, text in ODD_JSON.items():
        yield _case(
            "C-5", "a header that parsers read differently", what, "corrupt",
            bound(lambda t: file_with(t.replace("@", _ENTRY), bytes(4)), text),
        )  # fmt: skip
    header = f'{{"a":{_ENTRY}}}'
    for coding in ("utf-16-le", "utf-32-le"):
        yield _case(
            "C-5", "a header in another coding", coding, "corrupt",
            bound(lambda c: file_with(header.encode(c), bytes(4)), coding),
        )  # fmt: skip
    for raw in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc3"):
        for place in ("name", "metadata"):
            told = f'{{"__metadata__":{{"k":"a"}},"b":{_ENTRY}}}'
            written = header if place == "name" else told
            yield _case(
                "C-5", f"a {place} that is no UTF-8", raw, "corrupt",
                bound(
                    lambda r, t: file_with(t.encode().replace(b'"a"', b'"' + r + b'"'), bytes(4)),
                    raw, written,
                ),
            )  # fmt: skip


def _bombs() -> Iterator[Case]:
    """C-9: memory and time out of a header."""
    for depth in (4, 100, 1000, 100_000, 1_000_000):
        for bracket in ('{"a":', "["):
            yield _case(
                "C-9", "nesting", f"{depth} x {bracket}", "corrupt",
                bound(lambda d, b: file_with('{"a":' + b * d, bytes(4)), depth, bracket),
            )  # fmt: skip
    for what, unit in {"lists": "[],", "tables": "{},", "numbers": "1,", "texts": '"",'}.items():
        yield _case(
            "C-9", "values without end", what, "corrupt",
            bound(lambda u: file_with('{"a":[' + u * 2_500_000 + "1]}", bytes(4)), unit),
        )  # fmt: skip
    yield _case(
        "C-9", "a header that is too long", "25 MB", "too-complex",
        lambda: file_with('{"a":"' + "x" * 25_000_000 + '"}', bytes(4)),
    )  # fmt: skip
    yield _case(
        "C-9", "quotes without end", "5 MB", "corrupt",
        lambda: file_with('{"a":"' + '\\"' * 2_500_000, bytes(4)),
    )  # fmt: skip
    yield _case(
        "C-9", "closing brackets without end", "5 MB", "corrupt",
        lambda: file_with("{" + "[" * 20 + "]" * 5_000_000, bytes(4)),
    )  # fmt: skip


def _polyglots() -> Iterator[Case]:
    """C-4: one file, two formats."""
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 46, 0, 0)
    for size in (24, 64, 1024, 4096):
        yield _case(
            "C-4", "safetensors and a zip archive at once", size, "polyglot",
            bound(lambda n: file_with({"a": entry([n], 0, n, "U8")}, bytes(n - 22) + end), size),
        )  # fmt: skip
