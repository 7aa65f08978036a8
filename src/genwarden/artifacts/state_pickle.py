"""The pickle inside a torch file, read as a description of tensors; nothing is ever unpickled.

``torch.load(weights_only=True)`` is an unpickler with a short list of names: it still builds
objects, and it still had a remote code execution (CVE-2025-32434) and a memory corruption
(CVE-2026-24747). A state dict needs none of that. The 31 operations that ``torch.save`` writes are
interpreted here over texts, numbers, tuples, lists, tables and three kinds of records; a name from
the file is compared with a list and never looked up, and no function of the file's choosing is
called. Whatever this reader accepts, torch's restricted loader accepts with the same numbers (a
test); the reverse does not hold, on purpose.

Source of the operations: CPython's ``Lib/pickle.py`` (protocol 2). Standard library only.
"""

from __future__ import annotations

import gc
import struct
from typing import Any, Final, NamedTuple

from genwarden.artifacts.limits import (
    MAX_PICKLE_BYTES,
    MAX_PICKLE_OPERATIONS,
    MAX_PICKLE_STACK,
    MAX_TENSORS,
)
from genwarden.artifacts.shown import shown
from genwarden.artifacts.state_records import (
    NAMES,
    UNSUPPORTED,
    Name,
    StateRefusedError,
    Storage,
    StorageRef,
    Table,
    View,
    odd,
    rebuild,
    storage_of,
)

_INT32, _UINT16, _UINT32 = struct.Struct("<i"), struct.Struct("<H"), struct.Struct("<I")
_DOUBLE: Final = struct.Struct(">d")
#: Operations after which the height of the stack is looked at; a look at each costs time.
_BETWEEN_LOOKS: Final = 10_000


class State(NamedTuple):
    """The tensors of a state dict by name, and all storages that the pickle mentions."""

    tensors: dict[str, View]
    storages: dict[str, Storage]


def read_state(pickled: bytes) -> State:
    """The state dict that a pickle of ``torch.save`` describes.

    A dictionary ``{"state_dict": {...}, ...}``, as training scripts write it, counts as the inner
    one.

    Raises:
        StateRefusedError: ``pickle-refused``, ``unsupported-tensor``, ``too-complex``,
            ``corrupt`` or ``not-a-state-dict``.
    """
    if len(pickled) > MAX_PICKLE_BYTES:
        raise StateRefusedError("too-complex", f"its pickle has {len(pickled):,} bytes")
    reader = _Reader(pickled)
    # A million small objects make Python look for cycles again and again; their number is bounded.
    collecting = gc.isenabled()
    gc.disable()
    try:
        root = reader.run()
    except (struct.error, IndexError) as error:
        raise StateRefusedError("corrupt", "its pickle is cut off") from error
    finally:
        if collecting:
            gc.enable()
    return State(_tensors(root), reader.storages)


def _tensors(root: Any) -> dict[str, View]:
    if type(root) is Table and type(root.entries.get("state_dict")) is Table:
        root = root.entries["state_dict"]
    if (
        type(root) is not Table
        or root.other_keys
        or any(type(value) is not View for value in root.entries.values())
    ):
        raise StateRefusedError("not-a-state-dict", "")
    return root.entries


class _Reader:
    """One pass over the operations; a value popped below the innermost mark is an error."""

    def __init__(self, pickled: bytes) -> None:
        self.pickled = pickled
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.base = 0
        self.memo: list[Any] = []
        self.storages: dict[str, Storage] = {}
        self.tables = 0

    def run(self) -> Any:
        """Interpret to the end; returns the one value that is left."""
        if self.pickled[:2] != b"\x80\x02":
            raise odd("it does not begin as protocol 2")
        self.position = 2
        operations = _OPERATIONS
        pickled = self.pickled
        for _ in range(MAX_PICKLE_OPERATIONS // _BETWEEN_LOOKS):
            for _ in range(_BETWEEN_LOOKS):
                code = pickled[self.position]
                self.position += 1
                if code == 0x2E:  # STOP
                    return self._end()
                operation = operations[code]
                if operation is None:
                    raise odd(f"it uses the pickle operation 0x{code:02x}")
                operation(self)
            if len(self.stack) + len(self.marks) > MAX_PICKLE_STACK:
                raise StateRefusedError(
                    "too-complex", f"its pickle holds over {MAX_PICKLE_STACK:,} values at once"
                )
        raise StateRefusedError(
            "too-complex", f"its pickle has over {MAX_PICKLE_OPERATIONS:,} steps"
        )

    def _end(self) -> Any:
        if self.position != len(self.pickled):
            raise odd("bytes follow the end of its pickle")
        if len(self.stack) != 1 or self.marks:
            raise odd("values are left over at its end")
        return self.stack[0]

    # Reading arguments.

    def _take(self, count: int) -> bytes:
        start = self.position
        self.position = end = start + count
        if end > len(self.pickled):
            raise IndexError
        return self.pickled[start:end]

    def _byte(self) -> int:
        self.position += 1
        return self.pickled[self.position - 1]

    def _line(self) -> str:
        end = self.pickled.find(b"\n", self.position)
        if end < 0:
            raise IndexError
        line = self.pickled[self.position : end]
        self.position = end + 1
        return line.decode("latin-1")

    # The stack.

    def _pop(self) -> Any:
        if len(self.stack) <= self.base:
            raise odd("it takes a value that is not there")
        return self.stack.pop()

    def _top(self) -> Any:
        if len(self.stack) <= self.base:
            raise odd("it takes a value that is not there")
        return self.stack[-1]

    def _to_mark(self) -> list[Any]:
        if not self.marks:
            raise odd("it takes a mark that is not there")
        start = self.marks.pop()
        self.base = self.marks[-1] if self.marks else 0
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _tuple(self, count: int) -> None:
        if len(self.stack) - count < self.base:
            raise odd("it takes a value that is not there")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(values)

    # Operations, by their names in pickle.py.

    def mark(self) -> None:
        self.marks.append(len(self.stack))
        self.base = len(self.stack)

    def none(self) -> None:
        self.stack.append(None)

    def newtrue(self) -> None:
        self.stack.append(True)

    def newfalse(self) -> None:
        self.stack.append(False)

    def binint(self) -> None:
        self.stack.append(_INT32.unpack(self._take(4))[0])

    def binint1(self) -> None:
        self.stack.append(self._byte())

    def binint2(self) -> None:
        self.stack.append(_UINT16.unpack(self._take(2))[0])

    def long1(self) -> None:
        self.stack.append(int.from_bytes(self._take(self._byte()), "little", signed=True))

    def binfloat(self) -> None:
        self.stack.append(_DOUBLE.unpack(self._take(8))[0])

    def binunicode(self) -> None:
        raw = self._take(_UINT32.unpack(self._take(4))[0])
        try:
            self.stack.append(raw.decode())
        except UnicodeDecodeError as error:
            raise StateRefusedError("corrupt", "its pickle holds text that is no UTF-8") from error

    def empty_tuple(self) -> None:
        self.stack.append(())

    def tuple_(self) -> None:
        self.stack.append(tuple(self._to_mark()))

    def tuple1(self) -> None:
        if len(self.stack) <= self.base:
            raise odd("it takes a value that is not there")
        self.stack[-1] = (self.stack[-1],)

    def tuple2(self) -> None:
        self._tuple(2)

    def tuple3(self) -> None:
        self._tuple(3)

    def empty_list(self) -> None:
        self.stack.append([])

    def append(self) -> None:
        value = self._pop()
        self._extend([value])

    def appends(self) -> None:
        self._extend(self._to_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise odd("it appends to something that is no list")
        target.extend(values)

    def empty_dict(self) -> None:
        self.tables += 1
        if self.tables > MAX_TENSORS:  # an optimiser has one for every parameter
            raise StateRefusedError("too-complex", f"its pickle has over {MAX_TENSORS:,} tables")
        self.stack.append(Table())

    def setitem(self) -> None:
        value = self._pop()
        key = self._pop()
        self._fill([key, value])

    def setitems(self) -> None:
        self._fill(self._to_mark())

    def _fill(self, flat: list[Any]) -> None:
        table = self._top()
        if type(table) is not Table or len(flat) % 2:
            raise odd("it fills something that is no dictionary")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if type(key) is not str:
                if type(key) not in {int, float, bool, tuple, type(None)}:
                    raise odd("it uses something as a key that can be none")
                table.other_keys = True  # and dropped: optimisers count their parameters so
            elif key in table.entries:
                raise odd(f"the name {shown(key)!r} occurs twice")
            else:
                table.entries[key] = value

    def binput(self) -> None:
        self._remember(self._byte())

    def long_binput(self) -> None:
        self._remember(_UINT32.unpack(self._take(4))[0])

    def _remember(self, place: int) -> None:
        if place != len(self.memo):
            raise odd("it numbers its values out of order")
        self.memo.append(self._top())

    def binget(self) -> None:
        self._recall(self._byte())

    def long_binget(self) -> None:
        self._recall(_UINT32.unpack(self._take(4))[0])

    def _recall(self, place: int) -> None:
        if place >= len(self.memo):
            raise odd("it recalls a value that is not there")
        self.stack.append(self.memo[place])

    def global_(self) -> None:
        name = f"{self._line()} {self._line()}"
        if name not in NAMES:
            if name in UNSUPPORTED:
                raise StateRefusedError("unsupported-tensor", UNSUPPORTED[name])
            raise odd(f"it asks for {shown(name.replace(' ', '.'))!r}")
        self.stack.append(Name(name))

    def binpersid(self) -> None:
        storage = storage_of(self._pop())
        if self.storages.setdefault(storage.key, storage) != storage:
            raise odd(f"storage {storage.key} is described in two ways")
        self.stack.append(StorageRef(storage))

    def reduce(self) -> None:
        arguments = self._pop()
        function = self._pop()
        if type(function) is not Name or type(arguments) is not tuple:
            raise odd("it calls something that is no function")
        self.stack.append(rebuild(function.name, arguments))

    def build(self) -> None:
        state = self._pop()
        table = self._top()
        # A module's state dict carries the versions of its parts as an attribute.
        if not (type(table) is Table and table.ordered and type(state) is Table):
            raise odd("it sets the state of something that has none")


_OPERATIONS: Final[list[Any]] = [None] * 256
for _code, _operation in {
    0x28: _Reader.mark,
    0x4E: _Reader.none,
    0x88: _Reader.newtrue,
    0x89: _Reader.newfalse,
    0x4A: _Reader.binint,
    0x4B: _Reader.binint1,
    0x4D: _Reader.binint2,
    0x8A: _Reader.long1,
    0x47: _Reader.binfloat,
    0x58: _Reader.binunicode,
    0x29: _Reader.empty_tuple,
    0x74: _Reader.tuple_,
    0x85: _Reader.tuple1,
    0x86: _Reader.tuple2,
    0x87: _Reader.tuple3,
    0x5D: _Reader.empty_list,
    0x61: _Reader.append,
    0x65: _Reader.appends,
    0x7D: _Reader.empty_dict,
    0x73: _Reader.setitem,
    0x75: _Reader.setitems,
    0x71: _Reader.binput,
    0x72: _Reader.long_binput,
    0x68: _Reader.binget,
    0x6A: _Reader.long_binget,
    0x63: _Reader.global_,
    0x51: _Reader.binpersid,
    0x52: _Reader.reduce,
    0x62: _Reader.build,
}.items():
    _OPERATIONS[_code] = _operation
