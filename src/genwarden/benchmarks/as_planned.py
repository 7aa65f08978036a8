"""Whether a compromised model that lies in a study's folder is the one that the plan asks for.

Models outlive plans: a kind gets more steps, a scale another trigger, and the folder keeps its
name. Measured as what it is not, an old model would fill a row with the figures of another attack.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genwarden.backdoors.image_backdoor import RECORD_NAME
from genwarden.benchmarks.results import read_document
from genwarden.errors import GenwardenError


def require_as_planned(
    folder: Path,
    attack: str,
    settings: Mapping[str, Any],
    *,
    trigger: str,
    target: str,
) -> None:
    """Refuse a model that was attacked otherwise than planned.

    Args:
        folder: of the compromised model, with its record.
        settings: of the attack, those that the plan fixes.
        trigger: as a user would type it, like ``target``.

    Raises:
        GenwardenError: ``benchmark/other-orders``, with what differs.
    """
    record = read_document(folder / RECORD_NAME)
    # As a record gives them back: lists, not tuples.
    planned = json.loads(json.dumps(dict(settings)))
    planned |= {"attack": attack, "trigger": trigger, "target": target}
    named = {name: record["backdoor"][name] for name in ("trigger", "target")}
    found = {**record["settings"], "attack": record["attack"], **named}
    other = [
        f"{name} = {found.get(name)!r}, planned {value!r}"
        for name, value in planned.items()
        if found.get(name) != value
    ]
    if other:
        raise GenwardenError(
            "benchmark/other-orders",
            f"{folder} was not made as planned: {'; '.join(other)}.",
            "Remove the folder (and its audit and facts), or choose another --out.",
        )
