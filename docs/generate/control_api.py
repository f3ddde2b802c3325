"""control-api.md: every call of the control socket, from agentd/control/api.py.

The module's own words say what a call is and what it answers; what it takes is read off the code that takes it.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from agentd.control import api
from agentd.operations.explaining import STATES

_HEAD = """\
# The control socket

What the verbs of the command ask is open to every program of the daemon's user: HTTP/1.1 with JSON over a Unix socket,
control.sock in the state folder, and /run/agentd/control.sock under systemd. The socket has mode 0600, and the kernel
is asked who is on the other end: the daemon's user and root are answered, anybody else gets 403 `NOT_OWNER`.

```python
# ask.py
import http.client
import json
import socket
import sys


class Control(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])


connection = Control("localhost")
connection.request("GET", "/v1/status")
for identity in json.load(connection.getresponse())["identities"]:
    print(identity["name"], identity["state"])
```

Within version {version}, fields and calls are only added: pass over what you do not know. Times are ISO 8601 in UTC,
ages seconds. `identity` may be left out: the answer is then about all of them, or the only one is meant.

## What goes wrong

An answer with a status from 400 on is `{{"code", "message", "remedy"}}`, the last two for people.

| status | codes |
|---|---|
{refusals}
"""


_MOMENT = "a moment, ISO 8601"


class _Call(NamedTuple):
    method: str
    path: str
    told: str
    handler: str


def control_api() -> str:
    """The page."""
    refusals = "\n".join(f"| {status} | {codes} |" for status, codes in _refusals())
    return "\n".join((_HEAD.format(version=api.API, refusals=refusals), *_lines()))


def calls() -> list[_Call]:
    """Every call in the order of the module's words."""
    handlers = _handlers()
    told = [
        _Call(method, path, _sentence(words), handlers[method, path])
        for method, path, words in re.findall(
            r"^ {4}(GET|POST) +(/v1[\w/-]*)(.*(?:\n {20,}.*)*)", api.__doc__ or "", re.MULTILINE
        )
    ]
    assert {(each.method, each.path) for each in told} == handlers.keys(), "a call that the module does not speak of"
    return told


def _sentence(words: str) -> str:
    """What is said behind the query: `[?limit=N]  {gaps: [...]}, newest first`."""
    told = re.sub(r"^(?:\[?[?&]\S*)*\s*", "", " ".join(words.split()))
    # What is said for programmers of agentd: the daemon's own words follow anyway.
    return re.sub(r" \(see [\w.]+\)", "", told).replace("what `Daemon.status` gives", "the daemon and all identities")


def _handlers() -> dict[tuple[str, str], str]:
    source = inspect.getsource(api)
    found = re.findall(r'router\.add_(get|post)\("(/v1[\w/-]*)", self\.(\w+)\)', source)
    return {(method.upper(), path): handler for method, path, handler in found}


def _refusals() -> Iterator[tuple[str, str]]:
    words = re.search(r"remedy\}: (.*?)\.\n", api.__doc__ or "", re.DOTALL)
    assert words is not None
    for part in re.split(r", (?=\d{3} )", " ".join(words[1].split())):
        status, codes = part.split(" ", 1)
        yield status, re.sub(r"\b([A-Z][A-Z_]+)\b", r"`\1`", codes)


def _lines() -> Iterator[str]:
    for call in calls():
        yield f"## {call.method} {call.path}"
        yield ""
        source = textwrap.dedent(inspect.getsource(getattr(api.ControlServer, call.handler)))
        yield _code(f"{call.told[:1].upper()}{call.told[1:]}.")
        yield ""
        parameters = [*_query(source), *_body(source)]
        if parameters:
            yield "| given | value |"
            yield "|---|---|"
            yield from (f"| `{name}` | {words} |" for name, words in parameters)
            yield ""
        if method := _asked(source):
            yield from _answered(method)


def _code(text: str) -> str:
    """The text with its shapes, `{...}`, as code."""
    out: list[str] = []
    depth = 0
    for char in text.replace("None", "null"):
        out += "`{" if char == "{" and not depth else "}`" if char == "}" and depth == 1 else char
        depth += (char == "{") - (char == "}")
    return "".join(out)


def _query(source: str) -> Iterator[tuple[str, str]]:
    """Names in the query, in the order of the code."""
    found = re.findall(r'request\.query\.get\("(\w+)"|_number\(request, "(\w+)"|_(limit)\(request\)', source)
    for text, number, limit in found:
        if limit:
            yield "limit", "at most this many; 100 unless given"
        elif number:
            yield number, "a whole number"
        elif f'_read_moment("{text}"' in source:
            yield text, _MOMENT
        else:
            yield text, "`1` or `0`" if f'"{text}", "0")' in source or f'"{text}", "1")' in source else "text"


def _body(source: str) -> Iterator[tuple[str, str]]:
    found = re.search(r"_body\(request, (\w+)\)|type=(\w+)\)", source)
    if found is None:
        return
    shape: type[msgspec.Struct] = getattr(api, found[1] or found[2])
    for field in msgspec.structs.fields(shape):
        default = "" if field.required else f"; {_plain(field.default)} unless given"
        kind = _MOMENT if f'_read_moment("{field.name}"' in source else _type(field.type)
        yield field.name, f"in the body: {kind}{default}"


def _plain(value: Any) -> str:
    return "nothing" if value in (None, "") else str(value).lower() if isinstance(value, bool) else str(value)


def _type(kind: Any) -> str:
    described = msgspec.inspect.type_info(kind)
    if isinstance(described, msgspec.inspect.UnionType):
        return " or ".join(_told(each) for each in described.types if not isinstance(each, msgspec.inspect.NoneType))
    return _told(described)


def _told(kind: msgspec.inspect.Type) -> str:
    match kind:
        case msgspec.inspect.StrType():
            return "text"
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.IntType():
            return "a whole number"
        case msgspec.inspect.FloatType(ge=ge, le=le):
            return f"seconds, {ge:g} to {le:g}" if ge is not None and le is not None else "a number"
        case msgspec.inspect.StructType(fields=fields):
            return f"an object of {', '.join(f'`{each.name}`' for each in fields)}"
        case msgspec.inspect.LiteralType(values=values):
            return " or ".join(f'`"{each}"`' for each in values)
        case _:
            return "an array"


def _asked(source: str) -> str | None:
    names = [
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "_daemon"
    ]
    return names[-1] if names else None


def _answered(method: str) -> Iterator[str]:
    """What the daemon does, in its own words, those for its programmers left out."""
    words = (inspect.getdoc(getattr(api.Daemon, method)) or "").replace(
        "operations.explaining.STATES", ", ".join(f"`{state}`" for state in STATES)
    )
    for paragraph in words.split("\n\n"):
        sentences = re.split(r"(?<=\.) (?=[a-zA-Z{])", " ".join(paragraph.split()))
        told = [kept for each in sentences if not each.startswith("Raises ") and (kept := _for_callers(each))]
        if told:
            yield _code(" ".join(told))
            yield ""


def _for_callers(sentence: str) -> str:
    """The sentence without what is meant for programmers: a moment is text to who calls."""
    parts = sentence.replace("since: Unix seconds", f"since: {_MOMENT}").removesuffix(".").split("; ")
    told = "; ".join(each for each in parts if not re.match("raises |Returns as ", each))
    return told and f"{told}."
