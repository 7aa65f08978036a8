"""What a study keeps of each member: its audits, what its attack reached, and who is at work."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from genwarden.auditing.document import AuditDocument
from genwarden.benchmarks.choosing import Keyed
from genwarden.benchmarks.locks import claimed
from genwarden.engine.files import write_atomic, write_json
from genwarden.errors import GenwardenError


class Stored(NamedTuple):
    """A finished audit and what it cost."""

    document: AuditDocument
    spent: dict[str, float]


def document_path(out: Path, key: str, budget: str, seed: int) -> Path:
    """Where the audit of a member is kept."""
    return out / "audits" / f"{key}.{budget}.{seed}.json"


def facts_path(out: Path, key: str) -> Path:
    """Where what an attack reached is kept."""
    return out / "facts" / f"{key}.json"


def read_stored(out: Path, plan: Iterable[Keyed], budget: str, seed: int) -> dict[str, Stored]:
    """The finished audits, by key."""
    found = {}
    for member in plan:
        path = document_path(out, member.key, budget, seed)
        if path.exists():
            content = json.loads(path.read_text("utf-8"))
            document = AuditDocument.model_validate(content["document"])
            found[member.key] = Stored(document, content["spent"])
    return found


def require_audits_of(sha256: str, stored: Iterable[Path]) -> None:
    """Refuse stored audits of another model than the one that lies there now.

    Raises:
        GenwardenError: ``benchmark/other-orders``.
    """
    for path in stored:
        model = json.loads(path.read_text("utf-8"))["document"]["model"]
        if model is None or model["sha256"] != sha256:
            raise GenwardenError(
                "benchmark/other-orders",
                f"{path} is the audit of another model than the one that lies there now.",
                "Remove it (and the facts of its attack), and run the same command again.",
            )


def require_same_orders(out: Path, orders: Mapping[str, Any]) -> None:
    """Let one OUT hold only audits that were given the same.

    Args:
        orders: what every audit of the study is given beside member, budget and seed.

    Raises:
        GenwardenError: ``benchmark/other-orders`` if those that are there were given something
            else: in one table they would look alike.
    """
    path = out / "orders.json"
    if path.exists():
        before = json.loads(path.read_text("utf-8"))
        if before != orders:
            changed = [
                f"{name} = {before.get(name)!r}, now {value!r}"
                for name, value in orders.items()
                if before.get(name) != value
            ]
            raise GenwardenError(
                "benchmark/other-orders",
                f"The audits in {out} were made with {'; '.join(changed)}.",
                "Choose another --out for these options, or repeat those of before.",
            )
    else:
        write_json(path, dict(orders))


def write_audit(path: Path, audit: Callable[[], AuditDocument]) -> None:
    """Audit, and keep the document with what it cost, as :func:`read_stored` takes it."""
    cpu, wall = time.process_time(), time.perf_counter()
    document = audit()
    spent = {
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "seconds": round(time.perf_counter() - wall, 2),
    }
    content = {"spent": spent, "document": document.model_dump(mode="json")}
    write_atomic(path, json.dumps(content).encode())


def once(out: Path, path: Path, act: Callable[[], None]) -> None:
    """Let ``act`` write ``path``, unless it is there or another process is at it."""
    lock = out / "locks" / f"{path.parent.name}.{path.stem}.lock"
    if path.exists():
        return
    with claimed(lock, wait=False) as mine:
        if mine and not path.exists():
            act()
