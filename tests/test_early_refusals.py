"""A mistyped command is refused before torch is imported, in a fraction of a second."""

from __future__ import annotations

import subprocess
import sys

import pytest

from genwarden import cli_options
from genwarden.auditing import budgets

_RUN = """
import sys
from genwarden import start
sys.argv = ["genwarden", *sys.argv[1:]]
try:
    start.main()
except SystemExit as end:
    print("torch" in sys.modules, end.code)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("audit", "model", "--out", "o", "--deploy-as", "int9"), "compress/bits"),
        (("audit", "model", "--out", "o", "--deploy-as", "default,squeeze"), "compress/unknown"),
        (("audit", "model", "--out", "o", "--budget", "large"), "usage/budget"),
        (("compress", "model", "--out", "o", "--how", "prune-2"), "compress/rate"),
    ],
)
def test_what_is_mistyped_is_refused_without_torch(arguments: tuple[str, ...], code: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, check=False
    )
    assert ended.stdout.split() == ["False", "2"]
    assert f"[{code}]" in ended.stderr


def test_the_budgets_that_are_known_without_torch_are_those_that_exist() -> None:
    assert tuple(budgets.BUDGETS) == cli_options.BUDGETS
