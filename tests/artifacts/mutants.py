"""Mutants: sound files changed at random, each a function of (seed, number) alone.

A mutant may be accepted or refused with a code; anything else (another exception, a signal, more
than :func:`pace.too_slow` allows) is a crasher.
"""

from __future__ import annotations

import copy
import json
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benign_catalogue import STRANGE_NAMES, network, torch_file
from catalogue import Form
from hostile_documents import sound_audit
from hostile_folders import CONFIG, INDEX, SCHEDULER, fresh
from hostile_pickles import CALLS, file_with
from hostile_safetensors import ODD_JSON
from openers import decide
from pace import MOST_SECONDS, too_slow
from pickle_maker import PLACES, call, name, sound, storage, table, tensor, text, whole
from safetensors.torch import save as save_safetensors

from genwarden.artifacts.diffusers_folder import read_outline
from genwarden.artifacts.manifest import MANIFEST_NAME, parse_manifest
from genwarden.commands.report import read_document
from genwarden.errors import GenwardenError

ACCEPTED = "accepted"

_TOKENS = [
    b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08",
    b"\xff" * 2, b"\xff" * 4, b"\xff" * 8, b"\0" * 4, b"\0" * 8, b"FB\x04\0ZZZZ", b"\x01\0\x10\0",
    b"../", b"archive/", b"data/0", b"data.pkl", b"version", b"little", b"{", b"}", b"[", b"]",
    b",",
    b'"', b":", b"\\", b"\\u0000", b"\\ud800", b"NaN", b"Infinity", b"-0", b"1e999", b"null",
    b"true",
    b"9" * 20, b"[" * 50, b'{"a":' * 40, b'"__metadata__":', b'"dtype":"F32"', b'"shape":[0]',
    b'"data_offsets":[0,4]', b"\x80\x02", b".", b"Q", b"R", b"b", b"(", b"t", b"\x85", b"\x86",
    b"q\0", b"h\0", b"j\xff\xff\xff\x7f", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"K\0", b"N",
    *(name(module, attribute) for calls in CALLS.values() for module, attribute, _ in calls[:6]),
    *(call(module, attribute) for module, attribute, _ in CALLS["C-1"][:6]),
    name("torch._utils", "_rebuild_tensor_v2"), name("collections", "OrderedDict"),
    name("torch", "FloatStorage"), storage(), tensor(), table(), text("state_dict"),
    *(text(strange) for strange in STRANGE_NAMES[:12]),
]  # fmt: skip


class Mutant(NamedTuple):
    """One changed file and where it came from."""

    form: str
    content: bytes


class Fuzzer:
    """Makes mutants and judges them.

    Args:
        seed: of all mutants.
        folder: for the forms that are opened by path.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed = seed
        self.folder = folder
        self.audit = folder / "audit.json"
        self.diffusers = fresh("diffusers folder", folder)
        state = {"layer.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}
        safetensors = [
            save_safetensors(state),
            save_safetensors(
                {**network().state_dict(), "none": torch.zeros(0, 3)}, {"format": "pt"}
            ),
        ]
        archives = [
            torch_file(state),
            torch_file({"state_dict": network().state_dict(), "epoch": 3, "list": [1.5, None]}),
            file_with(sound()),
        ]
        pickles = [
            sound(),
            whole(table((text("a"), tensor()), (text("b"), tensor((2, 2), (2, 1))))),
            PLACES["as a state"](table()),
            sound((text("x"), b"](K\x01N\x88G" + struct.pack(">d", 1.5) + b"e")),
        ]
        documents = {
            form: (fresh(form, folder / form[:1]) / MANIFEST_NAME).read_bytes()
            for form in _MANIFESTS
        }
        configurations = [(self.diffusers / n).read_bytes() for n in (CONFIG, SCHEDULER, INDEX)]
        self.sound: dict[str, list[bytes]] = {
            "safetensors": safetensors,
            "torch zip": archives,
            "pickle": pickles,
            "manifest": list(documents.values()),
            "diffusers": configurations,
            "audit.json": [sound_audit().encode()],
        }
        self.judges: dict[str, Callable[[bytes], object]] = {
            "safetensors": decide,
            "torch zip": decide,
            "pickle": lambda content: decide(file_with(content)),
            "manifest": lambda content: parse_manifest(content, "it"),
            "diffusers": self._configuration,
            "audit.json": self._audit,
        }
        self._last = ""

    def mutant(self, number: int) -> Mutant:
        """Mutant ``number``; the same for the same seed, whatever was made before."""
        dice = random.Random(f"{self.seed}/{number}")
        form = _SHARES[number % len(_SHARES)]
        originals = self.sound[form]
        content = bytearray(dice.choice(originals))
        for _ in range(min(dice.choice((1, 1, 1, 2, 2, 3, 4, 8)), 8)):
            _MUTATIONS[dice.randrange(len(_MUTATIONS))](content, dice, originals)
        if form in {"manifest", "diffusers", "audit.json"} and dice.random() < 0.3:
            content = bytearray(_json_mutant(dice.choice(originals), dice))
        return Mutant(form, bytes(content[:_LARGEST]))

    def judge(self, mutant: Mutant) -> str:
        """:data:`ACCEPTED` or a code; raises what the gate lets through."""
        try:
            self.judges[mutant.form](mutant.content)
        except GenwardenError as error:
            return error.code
        return ACCEPTED

    def run(self, number: int) -> tuple[str, str]:
        """Form and outcome of a mutant.

        Raises:
            CrasherError: anything but acceptance or a code in time.
        """
        mutant = self.mutant(number)
        # Processor time: a machine that pauses says nothing of the reader, and one that hangs runs
        # into the limit of its block.
        for _ in range(2):  # slow only once: a first import, or a pause of the interpreter
            begun = time.process_time()
            try:
                outcome = self.judge(mutant)
            except Exception as error:
                raise CrasherError(number, mutant, f"{type(error).__name__}: {error}") from error
            if not too_slow(time.process_time() - begun):
                return mutant.form, outcome
        raise CrasherError(number, mutant, f"took over {MOST_SECONDS:g} s, twice")

    def _audit(self, content: bytes) -> None:
        _put(self.audit, content)
        read_document(self.audit)

    def _configuration(self, content: bytes) -> None:
        """One of three documents is the mutant; the others are as they were."""
        names = (CONFIG, SCHEDULER, INDEX)
        if self._last:
            place = names.index(self._last)
            _put(self.diffusers / self._last, self.sound["diffusers"][place])
        likeness = [sum(key in content for key in keys) for keys in _LIKENESS]
        self._last = names[likeness.index(max(likeness))]
        _put(self.diffusers / self._last, content)
        read_outline(self.diffusers)


def _put(path: Path, content: bytes) -> None:
    """Replace a file's content; emptying it first would wait for the disk, every time."""
    with path.open("r+b" if path.exists() else "wb") as handle:
        handle.write(content)
        handle.truncate()


class CrasherError(AssertionError):
    """A mutant that the gate neither accepted nor refused."""

    def __init__(self, number: int, mutant: Mutant, what: str) -> None:
        super().__init__(f"mutant {number} ({mutant.form}): {what}")
        self.number, self.mutant, self.what = number, mutant, what


_LARGEST = 1 << 16
_MANIFESTS: tuple[Form, ...] = ("generator folder", "classifier folder")
#: By number modulo 16; the forms whose parsers are ours get most.
_SHARES = (
    "safetensors", "pickle", "torch zip", "safetensors", "pickle", "torch zip", "safetensors",
    "pickle", "torch zip", "safetensors", "pickle", "safetensors", "pickle", "manifest",
    "diffusers", "audit.json",
)  # fmt: skip
_LIKENESS = (
    (b"block_out_channels", b"down_block_types", b"act_fn"),
    (b"beta_start", b"beta_end", b"prediction_type"),
    (b"Pipeline", b'"unet"', b'"scheduler"'),
)

Mutation = Callable[[bytearray, random.Random, list[bytes]], None]


def _place(content: bytearray, dice: random.Random) -> int:
    return dice.randrange(len(content) + 1)


def _flip(content: bytearray, dice: random.Random, _: list[bytes]) -> None:
    if content:
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)


def _set(content: bytearray, dice: random.Random, _: list[bytes]) -> None:
    if content:
        content[dice.randrange(len(content))] = dice.choice((0, 1, 127, 128, 255, 34, 46, 123))


def _random_byte(content: bytearray, dice: random.Random, _: list[bytes]) -> None:
    content.insert(_place(content, dice), dice.randrange(256))


def _cut(content: bytearray, dice: random.Random, _: list[bytes]) -> None:
    start = _place(content, dice)
    del content[start : start + dice.choice((1, 2, 4, 8, 64, 1 << 20))]


def _repeat(content: bytearray, dice: random.Random, _: list[bytes]) -> None:
    start = _place(content, dice)
    piece = content[start : start + dice.choice((1, 4, 16, 256))]
    content[start:start] = piece * dice.choice((1, 2, 50))


def _move(content: bytearray, dice: random.Random, _: list[bytes]) -> None:
    start = _place(content, dice)
    piece = content[start : start + dice.choice((4, 16, 64))]
    del content[start : start + len(piece)]
    at = _place(content, dice)
    content[at:at] = piece


def _token(content: bytearray, dice: random.Random, _: list[bytes]) -> None:
    at = _place(content, dice)
    token = dice.choice(_TOKENS)
    content[at : at + (len(token) if dice.random() < 0.5 else 0)] = token


def _number(content: bytearray, dice: random.Random, _: list[bytes]) -> None:
    form, width = dice.choice((("<H", 2), ("<I", 4), ("<Q", 8)))
    largest = (1 << 8 * width) - 1
    value = dice.choice((0, 1, largest, largest >> 1, len(content), dice.randint(0, largest)))
    at = _place(content, dice)
    content[at : at + width] = struct.pack(form, min(value, largest))


def _splice(content: bytearray, dice: random.Random, originals: list[bytes]) -> None:
    other = dice.choice(originals)
    start = dice.randrange(len(other) + 1)
    at = _place(content, dice)
    content[at : at + dice.choice((0, 16, 1 << 20))] = other[
        start : start + dice.choice((16, 256, 1 << 20))
    ]


_MUTATIONS: list[Mutation] = [
    _flip, _flip, _set, _random_byte, _cut, _repeat, _move, _token, _token, _number, _splice,
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 1 << 31, 1 << 63, 10**30, 0.5, -1e300, "", "x", "../x", [], {},
    [[]],
    ["os", "system"], {"_target_": "os.system"}, "\x1b[2J", [0] * 100,
]  # fmt: skip


def _json_mutant(original: bytes, dice: random.Random) -> bytes:
    """A document with other values under its own keys, or with an oddity of JSON."""
    document = json.loads(original)
    for _ in range(dice.choice((1, 2, 3))):
        inner = document
        while isinstance(inner, dict) and inner:
            key = dice.choice(list(inner))
            if isinstance(inner[key], dict) and dice.random() < 0.7:
                inner = inner[key]
                continue
            inner[dice.choice((key, key, key, "extra"))] = copy.deepcopy(dice.choice(_VALUES))
            break
    written = json.dumps(document)
    if dice.random() < 0.2:
        written = dice.choice(list(ODD_JSON.values())).replace("@", written)
    return written.encode("utf-8", "surrogatepass")
