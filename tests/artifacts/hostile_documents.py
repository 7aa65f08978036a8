"""Hostile documents that commands read: audit.json, and triggers given as files."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from catalogue import Case, Form, bound
from hostile_containers import contents
from hostile_folders import spoilt
from hostile_safetensors import ODD_JSON


@functools.cache
def sound_audit() -> str:
    """A small audit document: a file that was refused."""
    return json.dumps(
        {
            "schema_version": "1.3",
            "genwarden_version": "0",
            "verdict": "refused",
            "suspicion": None,
            "alpha": 0.01,
            "reasons": ["x"],
            "model": None,
            "inputs": {},
            "budget": {"name": "quick"},
            "seed": 0,
            "findings": [],
            "command": "genwarden audit x",
            "limits": [],
        }
    )


def document_cases() -> Iterator[Case]:
    """Every case of this module."""
    yield from _odd_documents()
    yield from _triggers()


def _case(form: Form, what: str, variant: object, code: str, put: Callable[[Path], Any]) -> Case:
    def write(folder: Path) -> Path:
        path = folder / "document.json"
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        put(path)
        return path

    return Case("C-5", form, what, str(variant), code, write)


def _odd_documents() -> Iterator[Case]:
    bombs = {
        "nested lists": "[" * 100_000,
        "nested tables": '{"a":' * 100_000,
        "five million values": "[" + "1," * 5_000_000 + "1]",
        "a list": "[]",
        "null": "null",
        "another schema": '{"schema_version": "9.9"}',
        "an unknown key": sound_audit()[:-1] + ', "_target_": "os.system"}',
    }
    for what, text in {**ODD_JSON, **bombs}.items():
        content = spoilt(sound_audit(), text)
        yield _case(
            "audit.json", "read by parsers differently", what, "report/invalid",
            bound(lambda c, p: p.write_text(c, encoding="utf-8"), content),
        )  # fmt: skip
    for coding in ("utf-16", "utf-32", "utf-8-sig"):
        yield _case(
            "audit.json", "in another coding", coding, "report/invalid",
            bound(lambda c, p: p.write_bytes(sound_audit().encode(c)), coding),
        )  # fmt: skip
    for what, (_, _, other) in contents().items():
        yield _case(
            "audit.json", "of another format", what, "report/invalid",
            bound(lambda c, p: p.write_bytes(c), other),
        )  # fmt: skip
    yield _case("audit.json", "no file", "a pipe", "artifact/not-a-file", os.mkfifo)
    yield _case("audit.json", "no file", "a folder", "artifact/not-a-file", Path.mkdir)
    yield _case("audit.json", "no file", "empty", "artifact/empty", lambda p: p.write_bytes(b""))


def _triggers() -> Iterator[Case]:
    """``--trigger file:PATH`` of a generator with four latent numbers."""
    bad = {
        "nested lists": "[" * 100_000,
        "closed nested lists": "[" * 200 + "]" * 200,
        "a ragged list": "[[1,2],[3]]",
        "texts": '["a","b","c","d"]',
        "tables": '[{"_target_":"os.system"}]',
        "nulls": "[null,null,null,null]",
        "nothing behind a comma": "[1,2,3,]",
        "other brackets": "[1,2,3,4}",
        "a million digits": "[" + "9" * 1_000_000 + ",1,1,1]",
        "code": "[__import__('os').system('true')]",
        "five million numbers": "[" + "1," * 5_000_000 + "1]",
    }
    for what, text in bad.items():
        yield _case(
            "trigger file", "no list of numbers", what, "trigger/not-numbers",
            bound(lambda t, p: p.write_text(t), text),
        )  # fmt: skip
    for what, text in {"three": "[1,2,3]", "none": "[]", "a table": "[[[[1,2,3,4]]]]"}.items():
        yield _case(
            "trigger file", "numbers of another shape", what, "trigger/shape",
            bound(lambda t, p: p.write_text(t), text),
        )  # fmt: skip
    for what, text in {
        "NaN": "[NaN,1,1,1]", "Infinity": "[1,-Infinity,1,1]", "a large exponent": "[1e999,1,1,1]",
    }.items():  # fmt: skip
        yield _case(
            "trigger file", "numbers that are none", what, "trigger/not-finite",
            bound(lambda t, p: p.write_text(t), text),
        )  # fmt: skip
    for what, (_, code, content) in contents().items():
        yield _case(
            "trigger file", "of another format", what, f"artifact/{code}",
            bound(lambda c, p: p.write_bytes(c), content),
        )  # fmt: skip
