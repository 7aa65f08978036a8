"""How much a file may ask for before it is refused (R-7). ``genwarden check`` prints these.

Chosen so that a refusal costs at most 2 seconds and 512 MB (goal 1), and far above what real models
need: a checkpoint of 10,000 tensors with its optimiser has a pickle of 2 MB and 700,000 operations.
"""

from __future__ import annotations

from typing import Final

#: Largest file that is read into memory. Reference models are megabytes, StyleGAN 0.3 GB.
MAX_FILE_BYTES: Final = 16 << 30
#: The format itself allows 100 MB of header; 24 MB hold more than MAX_TENSORS entries.
MAX_HEADER_BYTES: Final = 24_000_000
MAX_TENSORS: Final = 100_000
#: Of all tensors together.
MAX_NAMES_CHARACTERS: Final = 8_000_000
#: torch's own limit in most of its kernels.
MAX_DIMENSIONS: Final = 64
MAX_ELEMENTS: Final = 1 << 62

MAX_MEMBERS: Final = 2 * MAX_TENSORS
MAX_PICKLE_BYTES: Final = 32 << 20
MAX_PICKLE_OPERATIONS: Final = 1_000_000
#: Values that wait for others at one time; picklers hand over a thousand entries at once.
MAX_PICKLE_STACK: Final = 100_000

#: Of configurations and manifests; ours are nested five deep.
MAX_DOCUMENT_BYTES: Final = 1 << 20
MAX_DOCUMENT_DEPTH: Final = 32
MAX_DOCUMENT_VALUES: Final = 100_000
#: Digits of a number. float64 needs 17, int64 19; Python's own limit (4300) comes much later.
MAX_DIGITS: Final = 64

#: Of the child process that reads torch files: beside the file itself, and per byte of it.
CHILD_MEMORY_BYTES: Final = 384 << 20
CHILD_SECONDS: Final = 20.0
CHILD_BYTES_PER_SECOND: Final = 50e6


def child_seconds(file_bytes: int) -> float:
    """Wall-clock limit of reading a file in the child process, in seconds."""
    return CHILD_SECONDS + file_bytes / CHILD_BYTES_PER_SECOND


def in_words() -> str:
    """The limits on one line, for people."""
    return (
        f"file {MAX_FILE_BYTES >> 30} GiB, safetensors header {MAX_HEADER_BYTES // 10**6} MB, "
        f"{MAX_TENSORS:,} tensors, pickle {MAX_PICKLE_BYTES >> 20} MiB, "
        f"{MAX_PICKLE_OPERATIONS:,} operations and {MAX_PICKLE_STACK:,} values at once, "
        f"JSON {MAX_DOCUMENT_BYTES >> 20} MiB and {MAX_DOCUMENT_DEPTH} levels, child process "
        f"{CHILD_MEMORY_BYTES >> 20} MiB beyond the file and {CHILD_SECONDS:g} s"
    )
