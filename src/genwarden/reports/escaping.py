"""What stands between names from files and whoever reads them: the page, the terminal, a CI log.

Light, so that the command line has it before anything heavy is imported.
"""

from __future__ import annotations

import unicodedata

_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def visible(text: str) -> str:
    r"""Text with control, direction and other invisible characters spelled out.

    Names come from files: an escape sequence must not reach a terminal, nor a direction override
    turn a file name around on a page. Line breaks and tabs stay.

    >>> visible("a" + chr(27) + "[31m")
    'a\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in _INVISIBLE else _spelled(c) for c in text
    )


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
