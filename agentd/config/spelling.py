"""What a setting has to be, in the words of somebody who writes TOML.

Always true: nothing of Python shows, whatever type a field has.
Not here: what to do about a value that does not fit (loader.py; the host, for the settings of plugins).
"""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

_KINDS: dict[Any, str] = {
    str: "text in quotes",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "a table",
    list: "an array",
    set: "an array",
    frozenset: "an array",
    tuple: "an array",
    Any: "a value",
}
_SPELLED: list[tuple[type, str]] = [  # as TOML names them; bool before int, which it is in Python
    (bool, "true or false"),
    (int, "a whole number"),
    (float, "a number with a fraction"),
    (str, "text"),
    (list, "an array"),
    (dict, "a table"),
]


def expected(kind: Any) -> str:
    """What a field of this type takes."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        described = (meta.description for meta in inner[1:] if isinstance(meta, msgspec.Meta))
        return next((text for text in described if text), None) or expected(inner[0])
    if origin is Literal:
        return " or ".join(f'"{choice}"' for choice in inner)
    if inner in ((str,), (str, ...)) and _KINDS.get(origin) == "an array":
        return "an array of texts"
    if origin in (UnionType, Union):
        return " or ".join(expected(choice) for choice in inner if choice is not type(None))
    is_table = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    return _KINDS.get(origin or kind, "a table" if is_table else "a value")


def spelled(raw: Any) -> str:
    """What a value that was read from TOML is."""
    return next((name for kind, name in _SPELLED if isinstance(raw, kind)), "a date or time")
