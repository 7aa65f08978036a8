"""What the pickle of a state dict may consist of, and what its few calls mean.

A closed world: texts, numbers, tuples, lists, and the records below. :mod:`.state_pickle` makes
them; nothing here looks a name up or calls what a file names. Standard library only.

Sources: ``torch/_utils.py`` (``_rebuild_tensor_v2``, ``_rebuild_parameter``), ``torch/storage.py``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from genwarden.artifacts.limits import MAX_DIMENSIONS, MAX_ELEMENTS

#: torch's storage class -> (name of the element type in torch, in safetensors, bytes).
STORAGE_TYPES: Final = {
    "DoubleStorage": ("float64", "F64", 8),
    "FloatStorage": ("float32", "F32", 4),
    "HalfStorage": ("float16", "F16", 2),
    "BFloat16Storage": ("bfloat16", "BF16", 2),
    "LongStorage": ("int64", "I64", 8),
    "IntStorage": ("int32", "I32", 4),
    "ShortStorage": ("int16", "I16", 2),
    "CharStorage": ("int8", "I8", 1),
    "ByteStorage": ("uint8", "U8", 1),
    "BoolStorage": ("bool", "BOOL", 1),
}
#: Exact names that a checkpoint may ask for. Everything else is refused, known or not (C-1, C-2).
NAMES: Final = frozenset(
    [
        "collections OrderedDict",
        "collections Counter",
        "torch Size",
        "torch device",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        *(f"torch {storage}" for storage in STORAGE_TYPES),
        *(f"torch {dtype}" for dtype, _, _ in STORAGE_TYPES.values()),
    ]
)
UNSUPPORTED: Final = {
    "torch._utils _rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils _rebuild_qtensor": "a quantized tensor",
    "torch._utils _rebuild_nested_tensor": "a nested tensor",
    "torch._utils _rebuild_tensor_v3": "a tensor of an unusual element type",
    "torch._utils _rebuild_meta_tensor_no_storage": "a tensor without data",
    "torch._utils _rebuild_wrapper_subclass": "a tensor subclass",
    "torch._utils _rebuild_parameter_with_state": "a parameter with attributes",
    "torch._tensor _rebuild_from_type_v2": "a tensor subclass",
    "torch ComplexFloatStorage": "complex numbers",
    "torch ComplexDoubleStorage": "complex numbers",
}
_KEY: Final = re.compile(r"[0-9]{1,9}")
_LOCATION: Final = re.compile(r"[a-z]{1,16}(:[0-9]{1,4})?")


class StateRefusedError(Exception):
    """The pickle is refused.

    Args:
        code: the part behind ``artifact/``.
        problem: why, as the end of a sentence.
    """

    def __init__(self, code: str, problem: str) -> None:
        super().__init__(code, problem)
        self.code, self.problem = code, problem


class Storage(NamedTuple):
    """A run of numbers: member ``data/<key>`` of the archive."""

    key: str
    kind: str
    numel: int


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: a strided window of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)


@dataclass(slots=True)
class Table:
    """A dictionary: what lies under texts, and whether other keys occur."""

    ordered: bool = False
    entries: dict[str, Any] = field(default_factory=dict)
    other_keys: bool = False


@dataclass(frozen=True, slots=True)
class Name:
    """A name of the list, unresolved."""

    name: str


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A persistent identifier, so that a plain tuple of the same content is none."""

    storage: Storage


class Other:
    """A device, a size, a counter: nothing that weights need."""


OTHER: Final = Other()


def storage_of(identity: Any) -> Storage:
    """The storage that a persistent identifier names."""
    match identity:
        case ("storage", Name(name), str(key), str(location), int(numel)) if (
            type(numel) is int and 0 <= numel <= MAX_ELEMENTS
        ):
            kind = name.removeprefix("torch ")
        case _:
            raise odd("it refers to something that is no storage")
    if kind not in STORAGE_TYPES or not _KEY.fullmatch(key):
        raise odd("it refers to something that is no storage")
    if not _LOCATION.fullmatch(location):
        raise odd("it puts a storage on something that is no device")
    if location == "meta":
        raise StateRefusedError("unsupported-tensor", "a tensor without data")
    return Storage(key, kind, numel)


def rebuild(name: str, arguments: tuple[Any, ...]) -> Any:
    """The value of a call; only the two functions of tensors matter, the rest has known forms."""
    match name, arguments:
        case "torch._utils _rebuild_tensor_v2", (storage, offset, shape, stride, bool(), hooks):
            _no_hooks(hooks)
            return _view(storage, offset, shape, stride)
        case "torch._utils _rebuild_parameter", (View() as view, bool(), hooks):
            _no_hooks(hooks)
            return view
        case "collections OrderedDict", ():
            return Table(ordered=True)
        case "collections Counter", (Table(),):
            return OTHER
        case "torch Size", (tuple() as sizes,) if all(type(n) is int for n in sizes):
            return OTHER
        case "torch device", (str(),) | (str(), int()):
            return OTHER
    raise odd(f"it calls {name.replace(' ', '.')} in an unusual way")


def _no_hooks(hooks: Any) -> None:
    if type(hooks) is not Table or hooks.entries or hooks.other_keys:
        raise odd("a tensor has hooks")


def _view(storage: Any, offset: Any, shape: Any, stride: Any) -> View:
    """A tensor whose numbers all lie within its storage, each its own (C-9)."""
    if type(storage) is not StorageRef or type(offset) is not int:
        raise odd("a tensor is described in an unusual way")
    if not _counts(shape) or not _counts(stride) or len(shape) != len(stride):
        raise odd("the shape of a tensor is malformed")
    if len(shape) > MAX_DIMENSIONS:
        raise StateRefusedError("unsupported-tensor", f"a tensor of {len(shape)} dimensions")
    if math.prod(max(1, n) for n in shape) > MAX_ELEMENTS:
        raise StateRefusedError("tensor-exceeds-file", "")
    numbers = math.prod(shape)
    last = offset + (
        sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if numbers else -1
    )
    if offset < 0 or last >= storage.storage.numel or numbers > storage.storage.numel:
        raise StateRefusedError("tensor-exceeds-file", "")
    return View(storage.storage, offset, shape, stride)


def _counts(value: Any) -> bool:
    return type(value) is tuple and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def odd(problem: str) -> StateRefusedError:
    return StateRefusedError("pickle-refused", problem)
