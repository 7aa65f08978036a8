"""Is this zip one that ``torch.save`` wrote, and which tensors does it hold? (R-4, C-1 to C-9)

Zip readers disagree with each other on damaged archives, and torch 2.13 loads members whose
checksum is wrong. So the rules here are stricter than torch's: members stored, named as torch names
them, once, back to back, equal in both directories, with the right checksum; a pickle that uses
only the operations and the names that a state dict needs; and numbers that fill their members
exactly, with no member that no tensor uses. Nothing is unpickled. Standard library only: it runs in
the child process that :mod:`genwarden.artifacts.reading_child` starts.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from genwarden.artifacts.limits import MAX_NAMES_CHARACTERS, MAX_TENSORS
from genwarden.artifacts.shown import reason
from genwarden.artifacts.state_pickle import State, read_state
from genwarden.artifacts.state_records import STORAGE_TYPES, StateRefusedError
from genwarden.artifacts.zip_directory import (
    Member,
    ZipDamagedError,
    ZipRefusedError,
    ZipTruncatedError,
    read_members,
)
from genwarden.errors import GenwardenError

_STORAGE_MEMBER: Final = re.compile(r"data/(0|[1-9]\d{0,8})", re.ASCII)
#: Small members beside the pickle and what torch writes into them.
_NOTES: Final = {
    "version": re.compile(rb"\d{1,4}\n?"),
    "byteorder": re.compile(rb"little|big"),
    ".format_version": re.compile(rb"\d{1,4}\n?"),
    ".storage_alignment": re.compile(rb"\d{1,6}\n?"),
    ".data/serialization_id": re.compile(rb"\d{1,64}"),
}
_MAX_NOTE_BYTES: Final = 64


class StoredTensor(NamedTuple):
    """A tensor of a torch file: a strided window of the numbers at ``content[start:]``.

    Attributes:
        storage: number of its storage within the file; tied tensors share one.
        kind: torch's storage class, a key of :data:`STORAGE_TYPES`.
        start: first byte of the storage in the file; ``numel`` its length in elements.
        offset: of the window, in elements, as ``stride``.
    """

    storage: str
    kind: str
    start: int
    numel: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_plan(content: bytes | memoryview, where: str) -> dict[str, StoredTensor]:
    """Every tensor of a torch file by name, and where its numbers lie.

    Raises:
        GenwardenError: ``artifact/truncated``, ``artifact/corrupt``, ``artifact/zip-refused``,
            ``artifact/torchscript``, ``artifact/pickle-refused``, ``artifact/unsupported-tensor``,
            ``artifact/too-complex``, ``artifact/not-a-state-dict``,
            ``artifact/tensor-exceeds-file``, ``artifact/no-tensors``.
    """
    try:
        members = read_members(content)
        inner = _torch_members(members, where)
        _check_notes(content, inner)
        pickle = inner["data.pkl"]
        state = read_state(bytes(content[pickle.start : pickle.start + pickle.size]))
        return _place(state, inner, len(content), where)
    except ZipTruncatedError as error:
        raise GenwardenError(
            "artifact/truncated",
            f"{where} begins as a zip archive and has no end.",
            "The download stopped early; fetch the file again.",
        ) from error
    except ZipDamagedError as error:
        raise _corrupt(where, reason(error)) from error
    except ZipRefusedError as error:
        raise _refused(where, reason(error)) from error
    except StateRefusedError as error:
        raise _state_error(error, where) from error


def _torch_members(members: list[Member], where: str) -> dict[str, Member]:
    """Members by their names without the folder that holds them all."""
    root = members[0].name.partition("/")[0]
    inner = {member.name.removeprefix(f"{root}/"): member for member in members}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise GenwardenError(
            "artifact/torchscript",
            f"{where} is a TorchScript archive, which carries code.",
            "Ask its author for the state dict as safetensors.",
        )
    if root in {"", ".", ".."} or not root.isprintable() or "\\" in root:
        raise ZipRefusedError(f"it holds {members[0].name!r}")
    for name, member in inner.items():
        known = name == "data.pkl" or name in _NOTES or _STORAGE_MEMBER.fullmatch(name)
        if not known or member.name != f"{root}/{name}":
            raise ZipRefusedError(f"it holds {member.name!r}")
    if len(inner) != len(members):
        raise ZipRefusedError("a member occurs twice")
    if "data.pkl" not in inner:
        raise ZipRefusedError("it has no data.pkl")
    return inner


def _check_notes(content: bytes | memoryview, inner: dict[str, Member]) -> None:
    for name, form in _NOTES.items():
        if name not in inner:
            continue
        member = inner[name]
        note = bytes(content[member.start : member.start + min(member.size, _MAX_NOTE_BYTES + 1)])
        if not form.fullmatch(note):
            raise ZipRefusedError(f"its member {name!r} is not what torch writes")
        if note == b"big":
            raise StateRefusedError("unsupported-tensor", "numbers in big-endian order")


def _place(
    state: State, inner: dict[str, Member], file_bytes: int, where: str
) -> dict[str, StoredTensor]:
    """Tensors with their members, all of which must be used and be as long as they should be."""
    if not state.tensors:
        raise no_tensors(where)
    if len(state.tensors) > MAX_TENSORS:
        raise StateRefusedError("too-complex", f"it holds {len(state.tensors):,} tensors")
    if sum(map(len, state.tensors)) > MAX_NAMES_CHARACTERS:
        raise StateRefusedError("too-complex", "the names of its tensors are too long")
    for key, storage in state.storages.items():
        member = inner.get(f"data/{key}")
        if member is None or member.size != storage.numel * STORAGE_TYPES[storage.kind][2]:
            raise StateRefusedError("tensor-exceeds-file", "")
    surplus = {name for name in inner if name.startswith("data/")}
    surplus -= {f"data/{key}" for key in state.storages}
    if surplus:
        raise ZipRefusedError(f"no tensor uses its member {min(surplus)!r}")
    # A stride of zero makes 10^12 elements out of one; many overlapping views of one storage do
    # the same in small steps. Two names for the very same view (tied weights) count once.
    claimed = sum(
        view.numel * STORAGE_TYPES[view.storage.kind][2] for view in set(state.tensors.values())
    )
    if claimed > file_bytes:
        raise StateRefusedError("tensor-exceeds-file", "")
    return {
        name: StoredTensor(
            view.storage.key,
            view.storage.kind,
            inner[f"data/{view.storage.key}"].start,
            view.storage.numel,
            view.offset,
            view.shape,
            view.stride,
        )
        for name, view in state.tensors.items()
    }


def no_tensors(where: str) -> GenwardenError:
    """The error for a well-formed file without a tensor."""
    return GenwardenError(
        "artifact/no-tensors", f"{where} holds no tensors.", "Give a file with model weights."
    )


def _state_error(error: StateRefusedError, where: str) -> GenwardenError:
    """The pickle's refusal as a sentence about the file."""
    code = f"artifact/{error.code}"
    match error.code:
        case "corrupt":
            return _corrupt(where, error.problem)
        case "unsupported-tensor":
            cause, remedy = f"holds {error.problem}", "Save the weights as dense float tensors."
        case "too-complex":
            cause, remedy = error.problem, "Save the state dict alone, as safetensors."
            return GenwardenError(code, f"{where} is refused: {cause}.", remedy)
        case "not-a-state-dict":
            cause = "holds something other than a dictionary of named tensors"
            remedy = "Save model.state_dict() and give that file."
        case "tensor-exceeds-file":
            cause = "holds a tensor that claims other data than the file has for it"
            remedy = "The file is malformed; do not use it."
        case _:
            cause = f"is more than a dictionary of tensors: {error.problem}"
            remedy = (
                "Do not load it by other means, its loading may run code; ask its author for "
                "safetensors."
            )
    return GenwardenError(code, f"{where} {cause}.", remedy)


def _refused(where: str, problem: str) -> GenwardenError:
    return GenwardenError(
        "artifact/zip-refused",
        f"{where} is not a zip as torch.save writes it: {problem}.",
        "Ask its author for safetensors.",
    )


def _corrupt(where: str, problem: str) -> GenwardenError:
    return GenwardenError(
        "artifact/corrupt",
        f"{where} is a damaged zip archive ({problem}).",
        "The file is truncated or damaged; fetch it again.",
    )
