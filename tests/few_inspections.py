"""Audits of generators with a few of their inspections, where these say as much as all."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from genwarden.auditing import audit
from genwarden.registry import INSPECTIONS


def keep_only(monkeypatch: pytest.MonkeyPatch, names: Collection[str]) -> None:
    """Audits run these, in the order of the registry; each must be there."""
    few = {name: row for name, row in INSPECTIONS.items() if name in names}
    assert set(few) == set(names)
    monkeypatch.setattr(audit, "INSPECTIONS", few)
