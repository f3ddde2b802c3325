"""Where each key of a TOML text stands, so that a problem can name its line.

`tomllib` drops the places of what it reads. This scanner finds keys, strings and brackets and skips every value; it is
meant for text that `tomllib` has accepted.

Always true: it never fails; a key that it does not know has the line of the nearest table around it.
Not here: values.
"""

from __future__ import annotations

import re

KeyPath = tuple[str, ...]

_KEY = re.compile(r"""[ \t]*("(?:\\.|[^"\\\n])*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*(\.?)""")
_OPENING = re.compile(r"\[{1,2}")
_REST_OF_LINE = re.compile(r"[^\n]*")
_BLANK = re.compile(r"(?:\s+|#[^\n]*)*")
# One piece of a value. The multi-line strings come first; up to two quotes may stand right before their end.
_PIECE = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|\#[^\n]*|[\[{]|[\]}]|\n|[^"'\#\[\]{}\n]+''',
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")
_ESCAPED = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b"}


class KeyLines:
    """The line of every key in one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines: dict[KeyPath, int] = {}
        self._line, self._counted = 1, 0
        self._scan()

    def of(self, path: KeyPath) -> int | None:
        """The line, from 1, on which this key or the nearest table around it is written; None for the whole text."""
        while path:
            if path in self._lines:
                return self._lines[path]
            path = path[:-1]
        return None

    def _scan(self) -> None:
        table: KeyPath = ()
        at = self._after_blank(0)
        while at < len(self._text):
            bracket = _OPENING.match(self._text, at)
            path, end = self._key(bracket.end() if bracket else at)
            if bracket:
                table = path
                self._note(path, at)
                end = _end(_REST_OF_LINE, self._text, end)
            else:
                self._note(table + path, at)
                end = self._after_value(end)
            at = self._after_blank(max(end, at + 1))

    def _after_blank(self, at: int) -> int:
        return _end(_BLANK, self._text, at)

    def _key(self, at: int) -> tuple[KeyPath, int]:
        parts: list[str] = []
        while part := _KEY.match(self._text, at):
            parts.append(_unquoted(part[1]))
            at = part.end()
            if not part[2]:
                break
        return tuple(parts), at

    def _after_value(self, at: int) -> int:
        """The end of the line on which the value that starts here ends."""
        depth = 0
        while piece := _PIECE.match(self._text, at):
            if piece[0] == "\n" and depth <= 0:
                break
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(piece[0], 0)
            at = piece.end()
        return at

    def _note(self, path: KeyPath, at: int) -> None:
        self._line += self._text.count("\n", self._counted, at)
        self._counted = at
        for length in range(1, len(path)):
            self._lines.setdefault(path[:length], self._line)
        self._lines[path] = self._line


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _unquoted(part: str) -> str:
    if part.startswith("'"):
        return part[1:-1]
    if part.startswith('"'):
        return _ESCAPE.sub(_unescaped, part[1:-1])
    return part


def _unescaped(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2]
    return chr(int(code, 16)) if code else _ESCAPED.get(escape[3], escape[3])
