"""configuration.md: every table and key of agentd/config/settings.py, with type, default and reason.

The types and defaults come from the classes, the reasons from the comments beside the defaults, which only the source
has.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import tokenize
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from agentd.config import settings

_TABLES: tuple[tuple[str, type[msgspec.Struct]], ...] = (
    *(
        (f"agentd.{field.name}", field.type)
        for field in msgspec.structs.fields(settings.Agentd)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
    ),
)

_HEAD = """\
# Configuration

One TOML file: `--config FILE`, else `AGENTD_CONFIG`, `./agentd.toml`, `/etc/agentd/agentd.toml`. Every table and key
may be left out, except an identity's `url` and `key` and a plugin's `use`. `agentd check` tells every problem at once,
with its line and its remedy; a key that is not known is a problem, so that a slip of the pen changes nothing silently.

Paths are relative to the file. Units end the names: `_s` seconds, `_ms` milliseconds, `_mb` mebibytes. Names of
identities and plugins have letters, digits, `_`, `-` and `.`.
"""


def configuration() -> str:
    """The page."""
    return "\n".join((_HEAD, *_lines()))


def _lines() -> Iterator[str]:
    yield from _table("agentd", settings.Agentd)
    for name, kind in _TABLES:
        yield from _table(name, kind)
    yield from _table("identity.NAME", settings.Identity)
    yield from _table("identity.NAME.catch_up", settings.CatchUp)
    yield from _table("identity.NAME.loop_guard", settings.LoopGuard)
    yield from _table("plugin.NAME", settings.PluginSettings)
    yield from _table("plugin.NAME.secrets.SECRET", settings.KeySource, "and an identity's `key`")


def _table(name: str, kind: type[msgspec.Struct], also: str = "") -> Iterator[str]:
    reasons = _reasons(kind)
    yield f"## `[{name}]`" + (f" {also}" if also else "")
    yield ""
    yield _as_markdown(inspect.getdoc(kind) or "", kind)
    yield ""
    yield "| key | value | default | why |"
    yield "|---|---|---|---|"
    for field in msgspec.structs.fields(kind):
        if _is_table(field.type):
            continue
        why = reasons[field.name] or "see above"
        yield f"| `{field.name}` | {_words(field.type)} | {_default(field)} | {_cell(why)} |"
    yield ""


def _is_table(kind: Any) -> bool:
    """A key that has a heading of its own."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not settings.KeySource


def _words(kind: Any) -> str:
    """What may stand there."""
    origin, given = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return next(str(meta.description) for meta in given[1:] if isinstance(meta, msgspec.Meta))
    if origin is Literal:
        return " or ".join(f'`"{each}"`' for each in given)
    if origin in (Union, UnionType):
        return " or ".join(_words(each) for each in given if each is not NoneType)
    if origin is tuple:
        return f"an array of {_words(given[0])}"
    if kind is settings.KeySource:
        return "a table with one of `env`, `file`, `credential`, `command`"
    if kind is settings.CatchUp:
        return "a table as `[identity.NAME.catch_up]`"
    if origin is dict:
        return "a table" if given[1] is Any else "a table of such"
    return {str: "text", bool: "`true` or `false`", int: "a whole number", float: "a number"}[kind]


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "must be given"
    value = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
    if value is None:
        return "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"`{value:_}`"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def _reasons(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The comment beside each default, those of the base classes included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__ == settings.__name__:
            found |= _comments(inspect.getsource(base))
    return found


def _comments(source: str) -> dict[str, str]:
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    [declared] = ast.parse(source).body
    assert isinstance(declared, ast.ClassDef)
    return {
        node.target.id: " ".join(comments[line] for line in range(node.lineno, _end(node) + 1) if line in comments)
        for node in declared.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _end(node: ast.AnnAssign) -> int:
    return node.end_lineno or node.lineno


def _as_markdown(docstring: str, kind: type[msgspec.Struct]) -> str:
    """What a class says of itself, the names of its keys and their words as code."""
    names = [field.name for field in msgspec.structs.fields(kind)]
    names += [each for field in msgspec.structs.fields(kind) for each in _alternatives(field.type)]
    return re.sub(rf"\b({'|'.join(names)}): ", r"`\1`: ", docstring)


def _alternatives(kind: Any) -> tuple[str, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _cell(text: str) -> str:
    """A comment as a sentence."""
    escaped = text.replace("|", "\\|").removesuffix(".")
    return f"{escaped[:1].upper()}{escaped[1:]}." if escaped else ""
