"""Documents for the tests of this folder; :mod:`.documents` builds them."""

from __future__ import annotations

import pytest

from genwarden.auditing.document import AuditDocument

from . import documents


@pytest.fixture(scope="session")
def by_verdict() -> dict[str, AuditDocument]:
    """One document per verdict."""
    return {
        "evidence": documents.document(candidates=[documents.candidate()]),
        "none_found": documents.quiet_document(),
        "inconclusive": documents.inconclusive_document(),
        "refused": documents.refused_document(),
    }
