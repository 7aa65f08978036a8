"""``--option`` values for a recipe without cells: checked against what its function takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_type_hints

from genwarden.errors import GenwardenError

#: What every recipe gets from options of their own.
_COMMON = {"out", "data", "seed", "device", "progress", "scale", "workers", "restart"}
#: Joins the parts of a list inside one option, as in ``32+64+128``.
_JOINT = "+"


def whole_numbers(text: str | int) -> list[int]:
    """The positive numbers of a list inside one option.

    Raises:
        GenwardenError: ``benchmark/option``.
    """
    try:
        found = [int(part) for part in str(text).split(_JOINT)]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise GenwardenError(
            "benchmark/option",
            f"{text!r} is no list of numbers.",
            f"Join positive numbers by {_JOINT}, as in 64{_JOINT}256.",
        )
    return found


def checked_options(
    name: str, method: Callable[..., Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options in the types of the function's parameters.

    Args:
        name: of the recipe.
        method: its function; keyword parameters with defaults are its options.

    Raises:
        GenwardenError: ``benchmark/option``, with the options that there are.
    """
    parameters = inspect.signature(method).parameters
    types = get_type_hints(method)
    takes = {
        key: each
        for key, each in parameters.items()
        if key not in _COMMON and each.kind in {each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD}
    }
    others = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    remedy = f"It takes: {', '.join(f'{k}={p.default}' for k, p in takes.items()) or 'none'}."
    checked: dict[str, Any] = {}
    for key, value in options.items():
        if key not in takes:
            if not others or key in parameters or not key.isidentifier():
                raise GenwardenError(
                    "benchmark/option", f"The recipe {name} has no option {key!r}.", remedy
                )
            checked[key] = value  # the function checks these
            continue
        fitting = _fitting(value, types[key], takes[key].default)
        if fitting is None:
            raise GenwardenError(
                "benchmark/option", f"{key} = {value!r} does not fit the recipe {name}.", remedy
            )
        checked[key] = fitting
    return checked


def _fitting(value: Any, wanted: Any, default: Any) -> Any:
    """The value in the wanted type; None if it does not fit."""
    kinds = get_args(wanted) or (wanted,)
    joined = isinstance(default, str) and _JOINT in default
    if joined:
        # A list of numbers, such as "32+64+128": each part must be a number of its kind.
        parts, kind = str(value).split(_JOINT), type(_number(default.split(_JOINT)[0]))
        numbers = [_number(part) for part in parts]
        whole = all(isinstance(n, int) or (n is not None and kind is float) for n in numbers)
        return value if whole else None
    if type(value) in kinds:
        return value
    if float in kinds and type(value) is int:
        return float(value)
    if str in kinds and isinstance(value, list):  # a text with commas, such as "standard,quick"
        return ",".join(map(str, value))
    # A folder may have a number for a name.
    return str(value) if str in kinds and type(value) in {int, float} else None


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None
