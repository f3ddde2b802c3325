"""How deep JSON from outside may be nested.

Every decoder and encoder recurses, and gives up at a depth that hangs on how deep its caller is: what could be read
when it came might not be read when it is handled, or not be sent on. So what is nested deeper than DEPTH_MAX is cut to
it first, and from then on the same bytes are read everywhere.

Always true: what is not nested too deeply is left as it came, byte for byte. A cut leaves JSON that can be read: each
array or object that lies too deep becomes null. Neither recurses.
"""

from __future__ import annotations

import re
from itertools import accumulate

DEPTH_MAX = 100
"""More than any message that people or programs mean; a tenth of what the decoders take."""

# What has no end reaches to the end of everything, or looking for it would begin again at each quote.
_QUOTED = rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)'
_STRING = re.compile(_QUOTED, re.DOTALL)
_TOKEN = re.compile(_QUOTED + rb"|[\[\]{}]", re.DOTALL)
_NO_BRACKET = bytes(byte for byte in range(256) if byte not in b"[]{}")
_STEP = [1 if byte in b"[{" else -1 if byte in b"]}" else 0 for byte in range(256)]


def cut(json: bytes, depth_max: int = DEPTH_MAX) -> bytes:
    """The same JSON, nested no deeper than that. What is no JSON comes back as something that is none either."""
    # Nearly always the answer: so few brackets cannot be nested that deep.
    if json.count(b"{") + json.count(b"[") <= depth_max or _depth(json) <= depth_max:
        return json
    return _cut(json, depth_max)


def _depth(json: bytes) -> int:
    brackets = _STRING.sub(b"", json).translate(None, _NO_BRACKET)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)


def _cut(json: bytes, depth_max: int) -> bytes:
    kept, depth, done = bytearray(), 0, 0
    for token in _TOKEN.finditer(json):
        step = _STEP[token[0][0]]
        depth += step
        if step == 1 and depth == depth_max + 1:
            kept += json[done : token.start()] + b"null"
        elif step == -1 and depth == depth_max:
            done = token.end()
    if depth <= depth_max:
        kept += json[done:]
    return bytes(kept)
