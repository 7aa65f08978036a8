"""The child's side of :mod:`genwarden.artifacts.reading_child`.

Input: the untrusted file as standard input. Output: one safetensors file whose tensors are the
storages that are used, as flat runs of numbers, and whose metadata holds a small JSON document:
the tensors as windows of these storages, or why the file is refused. Never a pickle.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import struct
import sys
from typing import Any

from genwarden.artifacts.confinement import confine
from genwarden.artifacts.shown import shown
from genwarden.artifacts.state_records import STORAGE_TYPES
from genwarden.artifacts.torch_zip import StoredTensor, read_plan
from genwarden.errors import GenwardenError

_INPUT, _OUTPUT = 0, 1
#: Exit status when the memory that the limits leave is not enough.
OUT_OF_MEMORY = 86


def main() -> None:
    """Confine this process, read, answer. Arguments: bytes, seconds, ``facts`` or ``numbers``."""
    memory_bytes, seconds, wanted = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    content = memoryview(mmap.mmap(_INPUT, 0, prot=mmap.PROT_READ))
    gc.disable()  # it would search millions of values for cycles, again and again
    shown("\x1b")  # Python imports a codec here, and soon no file can be opened any more
    layers = confine(memory_bytes, seconds)
    try:
        _answer(content, wanted, layers)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    os._exit(0)  # nothing of this process needs to be tidied up


def _answer(content: memoryview, wanted: str, layers: list[str]) -> None:
    try:
        plan = read_plan(content, "")
    except GenwardenError as error:
        refused = [error.code, error.cause.strip(), error.remedy]
        _write_all(_header({}, {"refused": refused, "confined": layers}))
        return
    storages = _by_size(plan) if wanted == "numbers" else []
    _write_all(_header(_entries(storages), {"tensors": _windows(plan), "confined": layers}))
    for stored in storages:
        _write_all(content[stored.start : stored.start + _bytes_of(stored)])


def _by_size(plan: dict[str, StoredTensor]) -> list[StoredTensor]:
    """One tensor per storage, wide elements first, so that all runs are aligned."""
    storages = {stored.storage: stored for stored in plan.values()}.values()
    return sorted(storages, key=lambda stored: -STORAGE_TYPES[stored.kind][2])


def _bytes_of(stored: StoredTensor) -> int:
    return stored.numel * STORAGE_TYPES[stored.kind][2]


def _entries(storages: list[StoredTensor]) -> dict[str, Any]:
    entries = {}
    position = 0
    for stored in storages:
        end = position + _bytes_of(stored)
        entries[stored.storage] = {
            "dtype": STORAGE_TYPES[stored.kind][1],
            "shape": [stored.numel],
            "data_offsets": [position, end],
        }
        position = end
    return entries


def _windows(plan: dict[str, StoredTensor]) -> list[list[Any]]:
    return [
        [name, s.storage, STORAGE_TYPES[s.kind][0], s.offset, list(s.shape), list(s.stride)]
        for name, s in plan.items()
    ]


def _header(entries: dict[str, Any], about: dict[str, Any]) -> bytes:
    document = {"__metadata__": {"about": json.dumps(about, ensure_ascii=False)}, **entries}
    text = json.dumps(document, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_all(content: bytes | memoryview) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(_OUTPUT, rest) :]
