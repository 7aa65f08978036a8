"""The header of a safetensors file: every tensor's name, type and shape, without its data.

Layout (github.com/huggingface/safetensors, README): 8 bytes little-endian header length, the header
as JSON, then one buffer. Offsets count from the start of the buffer, must not overlap and must
cover it without holes. The reader here refuses whatever the library refuses, and says which rule
was broken; the library then reads the data.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

from genwarden.artifacts.json_object import load_json
from genwarden.artifacts.limits import (
    MAX_DIMENSIONS,
    MAX_ELEMENTS,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
)
from genwarden.artifacts.shown import reason, shown
from genwarden.errors import GenwardenError

#: safetensors name -> (torch name, bytes per element). Complex and sub-byte types are refused.
_DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
#: torch name -> bytes per element.
BYTES_OF = dict(_DTYPES.values())
#: A header entry has a name, three fields and on average fewer than twenty numbers.
_MAX_VALUES = 20 * MAX_TENSORS
_LEVELS = 3
_METADATA = "__metadata__"


class TensorFacts(NamedTuple):
    """A tensor as it is stored; ``dtype`` is torch's name of the type."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


def read_header(content: bytes | bytearray, where: str) -> list[TensorFacts]:
    """The tensors of a safetensors file in the order of their data.

    Raises:
        GenwardenError: ``artifact/truncated`` if data is missing at the end,
            ``artifact/unsupported-tensor`` for an element type that genwarden does not open,
            ``artifact/corrupt`` for anything else.
    """
    header, end_of_header = _load(content, where)
    header.pop(_METADATA, None)
    if len(header) > MAX_TENSORS:
        raise _too_complex(where, f"it holds {len(header):,} tensors")
    available = len(content) - 8
    length = end_of_header - 8
    spans = []
    for name, entry in header.items():
        facts, start, end = _read_entry(name, entry, where)
        spans.append((start, end, facts))
    spans.sort(key=lambda span: span[:2])
    position = 0
    for start, end, facts in spans:
        if start != position:
            raise _corrupt(
                where, f"the data of tensor {shown(facts.name)!r} leaves a hole or overlaps"
            )
        position = end
    buffer = available - length
    if position > buffer:
        raise _truncated(f"{where} should hold {position:,} bytes of weights and has {buffer:,}.")
    if position < buffer:
        raise _corrupt(where, f"{buffer - position:,} bytes belong to no tensor")
    return [facts for _, _, facts in spans]


def read_metadata(content: bytes | bytearray) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors; data, never instructions.

    Raises:
        GenwardenError: as :func:`read_header`.
    """
    metadata: dict[str, str] = _load(content, "the file")[0].get(_METADATA, {})
    return metadata


def _load(content: bytes | bytearray, where: str) -> tuple[dict[str, Any], int]:
    """The header as JSON, its metadata checked, and where the data begins."""
    if len(content) < 8:
        raise _truncated(f"{where} has only {len(content)} bytes.")
    (length,) = struct.unpack("<Q", content[:8])
    available = len(content) - 8
    if length > available:
        raise _truncated(f"{where} announces a header of {length:,} bytes and has {available:,}.")
    if length > MAX_HEADER_BYTES:
        raise _too_complex(where, f"its header has {length:,} bytes")
    try:
        header = load_json(
            memoryview(content)[8 : 8 + length],
            most_bytes=MAX_HEADER_BYTES,
            most_values=_MAX_VALUES,
            most_levels=_LEVELS,
        )
    except ValueError as error:
        raise _corrupt(where, f"its header is not JSON: {reason(error)}") from error
    if not isinstance(header, dict):
        raise _corrupt(where, "its header is not a JSON object")
    metadata = header.get(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _corrupt(where, "its metadata is not a table of strings")
    return header, 8 + length


def _read_entry(name: str, entry: Any, where: str) -> tuple[TensorFacts, int, int]:
    label = shown(name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _corrupt(where, f"the header entry of tensor {label!r} is malformed")
    shape, offsets, stored = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise _corrupt(where, f"the shape or place of tensor {label!r} is malformed")
    if not isinstance(stored, str) or stored not in _DTYPES:
        raise GenwardenError(
            "artifact/unsupported-tensor",
            f"Tensor {label!r} of {where} has elements of type {shown(stored)!r}.",
            "Convert the weights to float32, float16 or bfloat16 first.",
        )
    if len(shape) > MAX_DIMENSIONS:
        raise GenwardenError(
            "artifact/unsupported-tensor",
            f"Tensor {label!r} of {where} has {len(shape)} dimensions.",
            "Reshape the weights first.",
        )
    dtype, itemsize = _DTYPES[stored]
    start, end = offsets
    if math.prod(max(1, n) for n in shape) > MAX_ELEMENTS:
        raise _corrupt(where, f"tensor {label!r} claims an absurd shape")
    if end - start != math.prod(shape) * itemsize:
        raise _corrupt(where, f"tensor {label!r} does not have the size that its shape needs")
    return TensorFacts(name, dtype, tuple(shape), end - start), start, end


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _truncated(cause: str) -> GenwardenError:
    return GenwardenError(
        "artifact/truncated", cause, "The download stopped early; fetch the file again."
    )


def _too_complex(where: str, problem: str) -> GenwardenError:
    return GenwardenError(
        "artifact/too-complex",
        f"{where} is refused: {problem}.",
        "Save the weights alone, without an optimiser's state, or in several files.",
    )


def _corrupt(where: str, problem: str) -> GenwardenError:
    return GenwardenError(
        "artifact/corrupt",
        f"{where} is not valid safetensors: {problem}.",
        "The file is damaged or was not made by safetensors; fetch it again.",
    )
