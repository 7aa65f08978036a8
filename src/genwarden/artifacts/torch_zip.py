"""Is this zip one that ``torch.save`` wrote? Asked before any loader sees it (R-4, C-1 to C-9).

Zip readers disagree with each other on damaged archives, and torch 2.13 loads members whose
checksum is wrong. So the rules here are stricter than torch's: members stored, named as torch names
them, once, back to back, equal in both directories, with the right checksum; and a pickle that uses
only the operations and the names that a state dict needs. Nothing is unpickled here.
"""

from __future__ import annotations

import io
import pickletools  # lists opcodes; it never executes them
import re
import struct
import warnings
import zipfile
from typing import Any

from genwarden.artifacts.shown import reason, shown
from genwarden.errors import GenwardenError

_MEMBER = re.compile(
    r"data\.pkl|version|byteorder|data/\d+|\.data/serialization_id"
    r"|\.format_version|\.storage_alignment"
)
_END_MAGIC, _END_BYTES = b"PK\x05\x06", 22
_MAX_END_DISTANCE_BYTES = _END_BYTES + (1 << 16)
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
#: Longest data descriptor (zip64 with signature) between two members.
_DESCRIPTOR_BYTES = 24
_ENCRYPTED = 1

# fmt: off
_OPCODES = frozenset({
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST",
    "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET",
    "LONG_BINGET", "GLOBAL", "BINPERSID", "REDUCE", "BUILD",
})
_TYPES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_DTYPES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
)
# fmt: on
#: Exact names that a checkpoint may ask for. Everything else is refused, known or not (C-1, C-2).
_NAMES = frozenset(
    [
        "collections OrderedDict",
        "collections Counter",
        "torch Size",
        "torch device",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        *(f"torch {kind}Storage" for kind in _TYPES),
        *(f"torch {dtype}" for dtype in _DTYPES),
    ]
)
_UNSUPPORTED = {
    "torch._utils _rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils _rebuild_qtensor": "a quantized tensor",
    "torch._utils _rebuild_nested_tensor": "a nested tensor",
    "torch._utils _rebuild_tensor_v3": "a tensor of an unusual element type",
    "torch._utils _rebuild_meta_tensor_no_storage": "a tensor without data",
    "torch._utils _rebuild_wrapper_subclass": "a tensor subclass",
    "torch._tensor _rebuild_from_type_v2": "a tensor subclass",
    "torch ComplexFloatStorage": "complex numbers",
    "torch ComplexDoubleStorage": "complex numbers",
}


def require_plain_state_dict(content: bytes, where: str) -> None:
    """Refuse every zip that is not exactly what ``torch.save`` writes for a state dict.

    Raises:
        GenwardenError: ``artifact/truncated``, ``artifact/corrupt``, ``artifact/zip-refused``,
            ``artifact/torchscript``, ``artifact/pickle-refused``, ``artifact/unsupported-tensor``.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            root = _check_members(content, archive, where)
            damaged = archive.testzip()
            pickled = b"" if damaged else archive.read(f"{root}/data.pkl")
    except GenwardenError:
        raise
    except Exception as error:
        # zipfile raises at least eight unrelated types on damaged archives; a parse failure
        # means refused, whatever its type (C-6).
        if content.rfind(_END_MAGIC, max(0, len(content) - _MAX_END_DISTANCE_BYTES)) < 0:
            raise GenwardenError(
                "artifact/truncated",
                f"{where} begins as a zip archive and has no end.",
                "The download stopped early; fetch the file again.",
            ) from error
        raise _corrupt(where, reason(error)) from error
    if damaged:
        raise _corrupt(where, f"member {shown(damaged)!r} has a wrong checksum")
    _check_pickle(pickled, where)


def _check_members(content: bytes, archive: zipfile.ZipFile, where: str) -> str:
    """Check form and names of all members; returns the name of the folder that holds them."""
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    names = [member.orig_filename for member in members]
    root = names[0].partition("/")[0] if names else ""
    inner = [name.removeprefix(f"{root}/") for name in names]
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise GenwardenError(
            "artifact/torchscript",
            f"{where} is a TorchScript archive, which carries code.",
            "Ask its author for the state dict as safetensors.",
        )
    if len(set(names)) != len(names):
        raise _refused(where, "a member occurs twice")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _refused(where, "a member is compressed")
    if any(member.flag_bits & _ENCRYPTED for member in members):
        raise _refused(where, "a member is encrypted")
    odd = next(
        (n for n, i in zip(names, inner, strict=True) if not _is_torch_name(n, i, root)), None
    )
    if odd is not None:
        raise _refused(where, f"it holds {shown(odd)!r}")
    if "data.pkl" not in inner:
        raise _refused(where, "it has no data.pkl")

    position = 0
    for member in members:
        gap = member.header_offset - position
        if gap < 0 or gap > (_DESCRIPTOR_BYTES if position else 0):
            raise _refused(where, f"there is something before member {shown(member.filename)!r}")
        position = _end_of_member(content, member, where)
    if not 0 <= archive.start_dir - position <= _DESCRIPTOR_BYTES:
        raise _refused(where, "there is something before its directory")
    (stated,) = struct.unpack("<L", content[-6:-2])
    if content[-_END_BYTES:-18] != _END_MAGIC or stated not in {archive.start_dir, 0xFFFFFFFF}:
        raise _refused(where, "there is something after its directory")
    return root


def _is_torch_name(name: str, inner: str, root: str) -> bool:
    return name == f"{root}/{inner}" and root not in {"", "."} and bool(_MEMBER.fullmatch(inner))


def _end_of_member(content: bytes, member: zipfile.ZipInfo, where: str) -> int:
    """Where the data of a member ends; both directories must say the same about it."""
    start = member.header_offset
    magic, _, flags, method, *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(content, start)
    name_at = start + _LOCAL_HEADER.size
    name = content[name_at : name_at + name_bytes]
    if (
        magic != b"PK\x03\x04"
        or method != member.compress_type
        or flags != member.flag_bits
        or name != member.orig_filename.encode()
        or member.compress_size != member.file_size
    ):
        raise _refused(where, f"its directories disagree about {shown(member.filename)!r}")
    end: int = name_at + name_bytes + extra_bytes + member.compress_size
    return end


def _check_pickle(pickled: bytes, where: str) -> None:
    """Only the opcodes and names that a state dict of dense tensors needs."""
    end = 0
    for opcode, argument, position in _opcodes(pickled, where):
        if opcode not in _OPCODES:
            raise _not_plain(where, f"it uses the pickle operation {opcode}")
        if opcode == "GLOBAL":
            # pickletools undoes escapes that the loader takes literally, so compare the bytes.
            plain = b"c" + str(argument).replace(" ", "\n").encode() + b"\n"
            if not pickled.startswith(plain, position):
                raise _not_plain(where, f"it spells the name {shown(argument)!r} in disguise")
            if argument not in _NAMES:
                if argument in _UNSUPPORTED:
                    raise GenwardenError(
                        "artifact/unsupported-tensor",
                        f"{where} holds {_UNSUPPORTED[argument]}.",
                        "Save the weights as dense float tensors.",
                    )
                name = shown(str(argument).replace(" ", "."))
                raise _not_plain(where, f"it asks for {name!r}")
        end = position + 1
    if end != len(pickled):
        raise _not_plain(where, "bytes follow the end of its pickle")


def _opcodes(pickled: bytes, where: str) -> list[tuple[str, Any, int]]:
    """Name, argument and position of every operation."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns about odd escapes in a string
            return [(op.name, arg, at or 0) for op, arg, at in pickletools.genops(pickled)]
    except (ValueError, IndexError, OverflowError) as error:
        raise _corrupt(where, f"its pickle cannot be read: {reason(error)}") from error


def _not_plain(where: str, problem: str) -> GenwardenError:
    return GenwardenError(
        "artifact/pickle-refused",
        f"{where} is more than a dictionary of tensors: {problem}.",
        "Do not load it by other means, its loading may run code; ask its author for safetensors.",
    )


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
