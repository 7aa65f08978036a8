"""Hostile pickles in torch zips whose archive is sound: C-1 to C-3, C-6, C-7, C-9 to C-11."""

from __future__ import annotations

import os
import pickle
import struct
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
from catalogue import Case, bound, of_bytes
from pickle_maker import (
    PLACES,
    PROTO,
    call,
    group,
    integer,
    name,
    sound,
    storage,
    table,
    tensor,
    text,
    value_of,
    whole,
)
from zip_maker import Part, archive

#: The file that a payload makes if it ever runs.
TRAP = os.path.join(tempfile.gettempdir(), f"genwarden-trap-{os.getpid()}")

# Calls by attack class: (module, name, arguments). Each was published as a way past a scanner's
# deny-list, or does harm without running code; the sources are in the reference.
CALLS: dict[str, list[tuple[str, str, tuple[object, ...]]]] = {
    "C-1": [
        ("os", "system", (f"touch {TRAP}",)),
        ("posix", "system", (f"touch {TRAP}",)),
        ("nt", "system", ("cmd",)),
        ("os", "popen", (f"touch {TRAP}",)),
        ("os", "execv", ("/bin/sh", ("sh",))),
        ("os", "spawnvp", (0, "sh", ("sh",))),
        ("os", "posix_spawn", ("/bin/sh", ("sh",))),
        ("subprocess", "Popen", (("touch", TRAP),)),
        ("subprocess", "call", (("touch", TRAP),)),
        ("subprocess", "check_output", (("touch", TRAP),)),
        ("subprocess", "getoutput", (f"touch {TRAP}",)),
        ("builtins", "exec", (f"open({TRAP!r},'w')",)),
        ("builtins", "eval", (f"open({TRAP!r},'w')",)),
        ("builtins", "compile", ("1", "x", "exec")),
        ("builtins", "__import__", ("os",)),
        ("builtins", "getattr", ("os", "system")),
        ("builtins", "open", (TRAP, "w")),
        ("builtins", "breakpoint", ()),
        ("builtins", "input", ()),
        ("builtins", "globals", ()),
        ("builtins", "bytearray", (1 << 36,)),
        ("__builtin__", "eval", ("1",)),
        ("pip", "main", (("install", "x"),)),
        ("pip._internal", "main", (("install", "x"),)),
        ("torch.utils.collect_env", "run", (f"touch {TRAP}",)),
        ("multiprocessing.util", "spawnv_passfds", ("sh", ("sh",), ())),
        ("pty", "spawn", ("sh",)),
        ("runpy", "run_path", (TRAP,)),
        ("runpy", "_run_code", ("1",)),
        ("cProfile", "run", ("1",)),
        ("profile", "run", ("1",)),
        ("pdb", "run", ("1",)),
        ("bdb", "Bdb", ()),
        ("timeit", "timeit", ("1",)),
        ("trace", "Trace", ()),
        ("doctest", "debug_script", ("1",)),
        ("ctypes", "CDLL", ("libc.so.6",)),
        ("_ctypes", "dlopen", ("libc.so.6",)),
        ("pydoc", "pipepager", ("x", f"touch {TRAP}")),
        ("pydoc", "locate", ("os.system",)),
        ("_interpreters", "exec", (0, "1")),
        ("code", "interact", ()),
        ("codeop", "compile_command", ("1",)),
        ("idlelib.run", "Executive", ()),
        ("lib2to3.pgen2.pgen", "ParserGenerator", ()),
        ("imp", "load_source", ("x", TRAP)),
        ("importlib", "import_module", ("os",)),
        ("importlib.machinery", "SourceFileLoader", ("x", TRAP)),
        ("zipimport", "zipimporter", (TRAP,)),
        ("ensurepip", "_run_pip", (("x",),)),
        ("venv", "create", (TRAP,)),
        ("webbrowser", "open", ("http://127.0.0.1",)),
        ("antigravity", "geohash", (0, 0, "x")),
        ("asyncio.subprocess", "create_subprocess_shell", ("x",)),
        ("distutils.file_util", "write_file", (TRAP, ("x",))),
        ("numpy.f2py.crackfortran", "getlincoef", ("1", ())),
        ("numpy.testing._private.utils", "runstring", ("1", ())),
        ("numpy", "load", (TRAP,)),
        ("torch", "load", (TRAP,)),
        ("torch.jit", "load", (TRAP,)),
        ("torch.hub", "load", ("x", "y")),
        ("torch.jit.unsupported_tensor_ops", "execWrapper", ("1",)),
        ("torch._inductor.codecache", "compile_file", ("x",)),
        ("torch._dynamo.guards", "eval", ("1",)),
        ("torch.fx.experimental.symbolic_shapes", "eval", ("1",)),
        ("torch.serialization", "add_safe_globals", ((),)),
        ("pickle", "loads", ("x",)),
        ("_pickle", "loads", ("x",)),
        ("dill", "loads", ("x",)),
        ("cloudpickle", "loads", ("x",)),
        ("joblib", "load", (TRAP,)),
        ("marshal", "loads", ("x",)),
        ("shelve", "open", (TRAP,)),
        ("mlflow.pyfunc", "load_model", (TRAP,)),
        ("pandas", "read_pickle", (TRAP,)),
        ("jsonpickle", "decode", ("{}",)),
        ("yaml", "unsafe_load", ("x",)),
        ("types", "FunctionType", ()),
        ("types", "CodeType", ()),
        ("signal", "alarm", (1,)),
        ("sys", "setrecursionlimit", (10**6,)),
        ("gc", "get_objects", ()),
        ("inspect", "stack", ()),
        ("atexit", "register", ("x",)),
        ("threading", "Thread", ()),
        ("_thread", "interrupt_main", ()),
        ("some.unknown", "function", ("x",)),
    ],
    "C-2": [
        ("operator", "attrgetter", ("system",)),
        ("operator", "methodcaller", ("system", "x")),
        ("operator", "itemgetter", (0,)),
        ("functools", "partial", ()),
        ("functools", "reduce", ()),
        ("torch", "FloatStorage.__reduce__", ()),
        ("torch", "Size.__class__", ()),
        ("torch", "_utils._rebuild_tensor_v2", ()),
        ("torch._utils", "_rebuild_tensor_v2.__globals__", ()),
        ("torch._utils", "_rebuild_tensor", ()),
        ("torch._utils", "_rebuild_tensor_v2 ", ()),
        ("torch._utils", " _rebuild_tensor_v2", ()),
        ("torch._utils ", "_rebuild_tensor_v2", ()),
        ("torch._utils.", "_rebuild_tensor_v2", ()),
        ("torch._utils._rebuild_tensor_v2", "", ()),
        ("", "torch._utils._rebuild_tensor_v2", ()),
        ("Torch._utils", "_rebuild_tensor_v2", ()),
        ("torch._utils", "_Rebuild_tensor_v2", ()),
        ("torch._utils\r", "_rebuild_tensor_v2", ()),
        ("torch._utils", "_rebuild_tensor_v2\r", ()),
        ("torch._utils\0", "_rebuild_tensor_v2", ()),
        ("t\u043erch._utils", "_rebuild_tensor_v2", ()),
        ("torch", "S\\x69ze", ()),
        ("torch", "\\u0053ize", ()),
        ("collections", "OrderedDict.fromkeys", ()),
        ("collections.OrderedDict", "fromkeys", ()),
        ("collections", "defaultdict", ()),
        ("collections", "namedtuple", ("x", "y")),
        ("collections.abc", "OrderedDict", ()),
        ("torch.storage", "FloatStorage", ()),
        ("torch.storage", "UntypedStorage", ()),
        ("torch.storage", "_load_from_bytes", ("x",)),
        ("torch.cuda", "FloatStorage", ()),
        ("torch", "Tensor", ()),
        ("torch", "tensor", ((1,),)),
        ("torch.nn.parameter", "Parameter", ()),
        ("torch._tensor", "Tensor", ()),
        ("torch", "device.__init__", ()),
        ("torch", "__builtins__", ()),
        ("torch._utils", "import_module", ("os",)),
        ("torch._utils", "sys", ()),
        ("*", "*", ()),
        ("torch", "*", ()),
    ],
    "C-10": [
        ("logging", "FileHandler", (TRAP,)),
        ("logging.handlers", "RotatingFileHandler", (TRAP,)),
        ("logging.config", "fileConfig", (TRAP,)),
        ("pandas", "read_csv", ("http://127.0.0.1",)),
        ("urllib.request", "urlopen", ("http://127.0.0.1",)),
        ("urllib.request", "urlretrieve", ("http://127.0.0.1", TRAP)),
        ("http.client", "HTTPConnection", ("127.0.0.1",)),
        ("socket", "create_connection", (("127.0.0.1", 9),)),
        ("socket", "getaddrinfo", ("example.org", 80)),
        ("ftplib", "FTP", ("127.0.0.1",)),
        ("smtplib", "SMTP", ("127.0.0.1",)),
        ("ssl", "get_server_certificate", (("127.0.0.1", 9),)),
        ("os", "getenv", ("HOME",)),
        ("os", "putenv", ("A", "B")),
        ("os", "remove", (TRAP,)),
        ("os", "kill", (0, 9)),
        ("os", "_exit", (0,)),
        ("sys", "exit", (0,)),
        ("builtins", "exit", (0,)),
        ("shutil", "rmtree", (TRAP,)),
        ("shutil", "copy", ("/etc/passwd", TRAP)),
        ("pathlib", "PosixPath", (TRAP,)),
        ("io", "open", (TRAP, "w")),
        ("io", "FileIO", (TRAP, "w")),
        ("tempfile", "mktemp", ()),
        ("sqlite3", "connect", (TRAP,)),
        ("dbm.dumb", "open", (TRAP,)),
        ("linecache", "getlines", ("/etc/passwd",)),
        ("fileinput", "input", ("/etc/passwd",)),
        ("numpy", "fromfile", ("/etc/passwd",)),
        ("numpy", "savetxt", (TRAP, (1,))),
        ("torch", "save", ((), TRAP)),
        ("torch", "from_file", (TRAP,)),
        ("time", "sleep", (3600,)),
    ],
    "C-11": [
        ("fickling.fickle", "Pickled", ()),
        ("fickling.loader", "load", ("x",)),
        ("picklescan.scanner", "scan_bytes", ("x",)),
        ("modelscan.modelscan", "ModelScan", ()),
        ("genwarden.cli", "main", ()),
        ("genwarden.artifacts.weights_file", "parse_weights", ("x",)),
        ("genwarden.artifacts.state_records", "NAMES", ()),
        ("genwarden.artifacts.confinement", "confine", (1, 1)),
    ],
}
#: Allowed in a state dict.
_ALLOWED = set(b"\x80.(NIJKM") - set(b"I") | set(b"\x8a\x88\x89GX)t\x85\x86\x87]ae}suqrhjcQRb")


def pickle_cases() -> Iterator[Case]:
    """Every case of this module."""
    yield from _calls()
    yield from _operations()
    yield from _streams()
    yield from _nested()
    yield from _tensors()
    yield from _bombs()


def file_with(pickled: bytes, data: bytes = bytes(16), **more: bytes) -> bytes:
    """A sound archive with a pickle; one storage of four numbers unless told otherwise."""
    members = {
        "data.pkl": pickled,
        "byteorder": b"little",
        "data/0": data,
        "version": b"3\n",
    } | more
    return archive([Part(f"archive/{inner}", content) for inner, content in members.items()])


def _case(attack: str, what: str, variant: object, code: str, pickled: Callable[[], bytes]) -> Case:
    return of_bytes(attack, "torch zip", what, variant, code, lambda: file_with(pickled()))


def _calls() -> Iterator[Case]:
    for attack, calls in CALLS.items():
        for module, attribute, arguments in calls:
            payload = call(module, attribute, *map(value_of, arguments))
            for place, put in PLACES.items():
                if attack != "C-1" or place in {"as the whole", "as a value", "as a storage"}:
                    yield _case(
                        attack, f"a call {place}", f"{module!r} {attribute!r}", "pickle-refused",
                        bound(lambda put, payload: put(payload), put, payload),
                    )  # fmt: skip
            yield _case(
                attack, "a name without a call", f"{module!r} {attribute!r}", "pickle-refused",
                bound(lambda m, a: sound((text("x"), name(m, a))), module, attribute),
            )  # fmt: skip


def _operations() -> Iterator[Case]:
    """C-3: every operation that torch.save does not write, known to pickle or not."""
    for code in sorted(set(range(256)) - _ALLOWED):
        operation = bytes([code])
        for place, pickled in {
            "first": PROTO + operation + sound()[2:],
            "last": sound()[:-1] + operation + b".",
            "with an argument": PROTO + operation + b"\x01\n\n\n" + sound()[2:],
        }.items():
            yield _case(
                "C-3", f"a strange operation {place}", f"0x{code:02x}", "pickle-refused",
                bound(lambda pickled: pickled, pickled),
            )  # fmt: skip
    tricks = {
        "instance": b"(iposix\nsystem\n.",
        "object": b"(cposix\nsystem\nX\x01\x00\x00\x00xo.",
        "new object": b"cposix\nsystem\n)\x81.",
        "stack global": text("posix") + text("system") + b"\x93.",
        "short text": b"\x8c\x01x.",
        "frame": b"\x95" + struct.pack("<Q", 1) + b"N.",
        "memoize": b"]\x94.",
        "extension 1": b"\x82\x01.",
        "extension 2": b"\x83\x01\x00.",
        "extension 4": b"\x84\x01\x00\x00\x00.",
        "textual identifier": b"Pabc\n.",
        "popped payload": name("posix", "system") + b"0" + table() + b".",
        "popped mark": b"(" + name("posix", "system") + b"1" + table() + b".",
        "duplicated": table() + b"2.",
        "value taken from below a mark": b"N(\x85" + b".",
        "value taken from nothing": b"\x85.",
        "pair taken from one": b"N\x86.",
        "mark taken from nothing": b"t.",
        "recall of nothing": b"h\x00.",
        "recall from afar": b"j\xff\xff\xff\xff.",
        "memo out of order": b"}q\x05.",
        "memo twice": b"}q\x00q\x00.",
        "memo of nothing": b"q\x00.",
        "two values left": b"}}.",
        "mark left": b"}(.",
        "a second proto": PROTO + table() + b".",
        "append to a dictionary": b"}Na.",
        "append to a tuple": b")Na.",
        "fill a list": b"](NNu.",
        "fill an odd number": b"}(NNNu.",
        "state of a plain dictionary": b"}}b.",
        "state of a number": b"K\x01}b.",
        "call of a number": b"K\x01)R.",
        "call of a text": text("os") + b")R.",
        "call without a tuple": name("collections", "OrderedDict") + b"]R.",
        "call of a storage": name("torch", "FloatStorage") + b")R.",
        "identifier of a number": b"K\x01Q.",
        "identifier of a list": b"]Q.",
        "identifier that is short": group(text("storage")) + b"Q.",
        "identifier of another kind": group(
            text("module"), name("torch", "FloatStorage"), text("0"), text("cpu"), integer(4)
        ) + b"Q.",
        "a list as a key": b"}(]Nu.",
        "a dictionary as a key": b"}(}Nu.",
        "a key twice": table((text("a"), b"N"), (text("a"), b"N")) + b".",
    }  # fmt: skip
    for what, body in tricks.items():
        yield _case(
            "C-3",
            "a trick with the stack",
            what,
            "pickle-refused",
            bound(lambda b: PROTO + b, body),
        )
    for protocol in (0, 1, 3, 4, 5, 6, 200):
        yield _case(
            "C-3", "another protocol", protocol, "pickle-refused",
            bound(lambda p: b"\x80" + bytes([p]) + sound()[2:], protocol),
        )  # fmt: skip
    yield _case("C-3", "another protocol", "none", "pickle-refused", lambda: sound()[2:])


def _streams() -> Iterator[Case]:
    """C-6: the payload stands before the error, so that a scanner may report the error alone."""
    payload = call("posix", "system", text(f"touch {TRAP}"))
    for length in range(0, 64, 2):
        rubbish = bytes((17 * length + 31 * i) % 256 for i in range(length))
        yield _case(
            "C-6", "a payload before rubbish", length, "pickle-refused",
            bound(lambda r: PROTO + payload + r, rubbish),
        )  # fmt: skip
    for extra in (b"\0", b".", b"N.", b"\n", payload + b".", sound()):
        yield _case(
            "C-6",
            "bytes after the end",
            extra[:8],
            "pickle-refused",
            bound(lambda e: sound() + e, extra),
        )
    complete = sound()
    for length in range(2, len(complete)):
        yield _case(
            "C-6", "a pickle that stops early", length, "corrupt",
            bound(lambda n: complete[:n], length),
        )  # fmt: skip
    for count in (5, 1000, 0x7FFFFFFF, 0xFFFFFFFF):
        yield _case(
            "C-6", "a text longer than the file", count, "corrupt",
            bound(lambda n: PROTO + b"X" + struct.pack("<I", n) + b"abc.", count),
        )  # fmt: skip
    for raw in (b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"):
        yield _case(
            "C-6", "a text that is no UTF-8", raw, "corrupt",
            bound(lambda r: PROTO + b"}X" + struct.pack("<I", len(r)) + r + b"Ns.", raw),
        )  # fmt: skip


def _nested() -> Iterator[Case]:
    """C-7: something else inside."""
    inner = pickle.dumps({"a": 1}, protocol=2)
    things: dict[str, bytes] = {
        "bytes": b"B" + struct.pack("<I", len(inner)) + inner,
        "short bytes": b"C" + bytes([len(inner)]) + inner,
        "long bytes": b"\x8e" + struct.pack("<Q", len(inner)) + inner,
        "bytearray": b"\x96" + struct.pack("<Q", len(inner)) + inner,
        "old string": b"U" + bytes([len(inner)]) + inner,
        "quoted string": b"S'abc'\n",
        "encoded bytes": call("_codecs", "encode", text("abc"), text("latin1")),
        "a set": b"\x8f",
        "a frozen set": b"(\x91",
        "a base64 payload": call("base64", "b64decode", text("gAJ9Lg==")),
        "a zlib payload": call("zlib", "decompress", text("x")),
        "a numpy array": pickle.dumps(np.arange(3), protocol=2)[2:-1],
        "a numpy object array": pickle.dumps(np.array([{}], dtype=object), protocol=2)[2:-1],
        "a numpy number": pickle.dumps(np.float64(1.5), protocol=2)[2:-1],
        "a complex number": pickle.dumps(1j, protocol=2)[2:-1],
        "a slice": pickle.dumps(slice(1), protocol=2)[2:-1],
        "a range": pickle.dumps(range(3), protocol=2)[2:-1],
        "an exception": pickle.dumps(ValueError("x"), protocol=2)[2:-1],
        "a set of numbers": pickle.dumps({1, 2}, protocol=2)[2:-1],
        "a function": pickle.dumps(len, protocol=2)[2:-1],
        "a class": pickle.dumps(Case, protocol=2)[2:-1],
        "a joblib wrapper": call("joblib.numpy_pickle", "NumpyArrayWrapper"),
    }
    for what, value in things.items():
        for place in ("as a value", "in a list", "before the rest"):
            yield _case(
                "C-7", f"something opaque {place}", what, "pickle-refused",
                bound(lambda v, p: PLACES[p](v), value, place),
            )  # fmt: skip


def _tensors() -> Iterator[Case]:
    """C-9 and R-7: tensors that claim what is not there, or are none."""
    claims: dict[str, bytes] = {
        "10^12 numbers by stride 0": tensor((10**6, 10**6), (0, 0)),
        "10^18 numbers by stride 0": tensor((10**9, 10**9), (0, 0)),
        "2^62 numbers and an empty axis": tensor((0, 1 << 62, 2), (1, 1, 1)),
        "one number too many": tensor((5,), (1,)),
        "a stride too long": tensor((2,), (4,)),
        "an offset too far": tensor((4,), (1,), offset=1),
        "an offset far too far": tensor((1,), (1,), offset=1 << 40),
        "a negative offset": tensor((1,), (1,), offset=-1),
        "an empty tensor beyond the end": tensor((0,), (1,), offset=5),
        "overlapping rows": tensor((4, 4), (0, 1)),
        "nearly overlapping rows": tensor((3, 2), (1, 1)),
        "a large window": tensor((2, 2, 2), (1, 1, 1)),
        "a storage longer than its member": tensor(stored=storage(numel=5)),
        "a storage shorter than its member": tensor((3,), stored=storage(numel=3)),
        "a storage of 2^60 numbers": tensor(stored=storage(numel=1 << 60)),
        "a storage without a member": tensor(stored=storage("7")),
        "a storage of another type": tensor((2,), stored=storage(kind="DoubleStorage", numel=4)),
    }
    for what, value in claims.items():
        of_storage = what.startswith("a storage")  # the others would describe it otherwise
        for more in range(1 if of_storage else 3):
            pairs = [(text(f"t{i}"), tensor((1,), offset=0)) for i in range(more)]
            pickled = whole(table(*pairs, (text("x"), value)))
            yield _case(
                "C-9", f"a claim beside {more} sound tensors", what, "tensor-exceeds-file",
                bound(lambda p: p, pickled),
            )  # fmt: skip
    odd: dict[str, bytes] = {
        "a negative shape": tensor((-1,), (1,)),
        "a negative stride": tensor((1,), (-1,)),
        "a shape of 2^70": tensor((1 << 70,), (1,)),
        "fewer strides": tensor((2, 2), (1,)),
        "more strides": tensor((2,), (1, 1)),
        "a shape of texts": tensor((text("4"),), (1,)),
        "a shape of booleans": tensor((b"\x88",), (1,)),
        "a shape of fractions": tensor((b"G" + struct.pack(">d", 4.0),), (1,)),
        "a list as an offset": tensor(offset=b"]"),
        "a boolean as an offset": tensor(offset=b"\x89"),
        "a number instead of a flag": tensor(gradient=b"K\x01"),
        "a tuple that looks like a storage": tensor(
            stored=group(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"),
            b"K\x04")
        ),
        "a tensor as a storage": tensor(stored=tensor()),
        "a negative length": tensor(stored=storage(numel=-4)),
        "a length of 2^100": tensor(stored=storage(numel=1 << 100)),
        "a boolean length": tensor(stored=storage(numel=b"\x88")),
        "a key that climbs": tensor(stored=storage("../0")),
        "a key with a slash": tensor(stored=storage("0/0")),
        "a key with a sign": tensor(stored=storage("-0")),
        "a key in other digits": tensor(stored=storage("\u0660")),
        "a key that is long": tensor(stored=storage("0" * 40)),
        "a key with a line break": tensor(stored=storage("0\n")),
        "a device that is code": tensor(stored=storage(place="cpu;import os")),
        "a device with a path": tensor(stored=storage(place="/dev/sda")),
        "hooks": tensor(hooks=table((text("a"), b"N"))),
        "hooks that are none": tensor(hooks=b"N"),
        "one argument less": call("torch._utils", "_rebuild_tensor_v2", storage(), b"K\x00", b")"),
        "one argument more": name("torch._utils", "_rebuild_tensor_v2")
        + group(storage(), b"K\x00", group(b"K\x04"), group(b"K\x01"), b"\x89", b"}", b"}", b"}")
        + b"R",
        "a parameter of a number": call("torch._utils", "_rebuild_parameter", b"K\x01", b"\x88",
        b"}"),
        "a device of a dictionary": call("torch", "device", b"}"),
        "a size of texts": call("torch", "Size", group(text("x"))),
        "an ordered dictionary with content": call("collections", "OrderedDict", b"]"),
        "a counter of a text": call("collections", "Counter", text("abc")),
    }  # fmt: skip
    for what, value in odd.items():
        for place in ("as a value", "before the rest"):
            yield _case(
                "C-9", f"a malformed tensor {place}", what, "pickle-refused",
                bound(lambda v, p: PLACES[p](v), value, place),
            )  # fmt: skip
    unsupported = {
        "without data": tensor(stored=storage(place="meta")),
        "sparse": call("torch._utils", "_rebuild_sparse_tensor"),
        "quantised": call("torch._utils", "_rebuild_qtensor"),
        "nested": call("torch._utils", "_rebuild_nested_tensor"),
        "of an unusual type": call("torch._utils", "_rebuild_tensor_v3"),
        "of a subclass": call("torch._tensor", "_rebuild_from_type_v2"),
        "of 65 dimensions": tensor((1,) * 65, (1,) * 65),
        "complex": tensor(stored=storage(kind="ComplexFloatStorage")),
    }
    for what, value in unsupported.items():
        yield _case(
            "C-9", "a tensor of a kind that is not read", what, "unsupported-tensor",
            bound(lambda v: sound((text("x"), v)), value),
        )  # fmt: skip
    two = tensor((2,), stored=storage(numel=4)), tensor((1,), stored=storage(numel=2))
    yield _case(
        "C-9", "a storage described in two ways", "length", "pickle-refused",
        lambda: whole(table((text("a"), two[0]), (text("b"), two[1]))),
    )  # fmt: skip
    not_states: dict[str, bytes] = {
        "a list": b"]", "a number": b"K\x01", "nothing": b"N", "a text": text("x"),
        "a tensor": tensor(), "a tuple": group(tensor()),
        "a dictionary of numbers": table((text("a"), b"K\x01")),
        "a number as a key": table((b"K\x01", tensor())),
        "a table of tables": table((text("model"), table((text("a"), tensor())))),
        "a name": name("torch", "float32"),
    }  # fmt: skip
    for what, value in not_states.items():
        yield _case(
            "C-9", "something other than a state dict", what, "not-a-state-dict",
            bound(lambda v: whole(v), value),
        )  # fmt: skip


def _bombs() -> Iterator[Case]:
    """C-9: work and memory out of few bytes."""
    for windows in (20, 40, 80):
        rows = [
            (text(f"w{i}"), tensor((1024,), offset=i, stored=storage(numel=1200)))
            for i in range(windows)
        ]
        yield of_bytes(
            "C-9", "torch zip", "many windows of one storage", windows, "tensor-exceeds-file",
            bound(lambda r: file_with(whole(table(*r)), bytes(4800)), rows),
        )  # fmt: skip
    million = 1_100_000
    for what, operation in {"marks": b"(", "tables": b"}"}.items():
        yield _case(
            "C-9", "a pickle of a million operations", what, "too-complex",
            bound(lambda o: PROTO + o * million + b".", operation),
        )  # fmt: skip
    yield _case(
        "C-9", "a pickle of a million operations", "recalls", "too-complex",
        lambda: PROTO + b"]q\x00(" + b"h\x00" * million + b"e.",
    )  # fmt: skip
    yield _case(
        "C-9", "a pickle of a million operations", "nested lists", "too-complex",
        lambda: PROTO + b"]" * (million // 2) + b"a" * million + b".",
    )  # fmt: skip
    endless = {
        "nested tuples": b"N" + b"\x85" * million,
        "one list": b"]" + b"Na" * million,
        "lists of a thousand": b"]" + (b"(" + b"K\x01" * 1000 + b"e") * 1100,
    }
    for what, operations in endless.items():
        yield _case(
            "C-9", "a pickle of a million operations", what, "too-complex",
            bound(lambda o: PROTO + o + b".", operations),
        )  # fmt: skip
    yield _case(
        "C-9", "a pickle that is too long", "one text", "too-complex",
        lambda: PROTO + text("x" * (33 << 20)) + b".",
    )  # fmt: skip
