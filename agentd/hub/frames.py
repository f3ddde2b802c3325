"""WebSocket frames as a server writes them: whole, unmasked, uncompressed.

The hub writes them to the transport by itself: many in one write, half of one, or none, as a test wants it.
Source: RFC 6455, section 5.2.
"""

from __future__ import annotations

import struct

_FINAL_TEXT, _FINAL_CLOSE, _FINAL_PING, _FINAL_PONG = 0x81, 0x88, 0x89, 0x8A
_CONTROL_MAX_BYTES = 125


def text_frame(payload: bytes) -> bytes:
    """One text frame of UTF-8 bytes."""
    size = len(payload)
    if size <= _CONTROL_MAX_BYTES:
        return bytes((_FINAL_TEXT, size)) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", _FINAL_TEXT, 126, size) + payload
    return struct.pack("!BBQ", _FINAL_TEXT, 127, size) + payload


def close_frame(code: int, reason: str) -> bytes:
    """A close frame. The reason is cut to what a control frame may hold."""
    return _control(_FINAL_CLOSE, struct.pack("!H", code) + reason.encode())


def ping_frame() -> bytes:
    """A ping without payload."""
    return _control(_FINAL_PING, b"")


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping."""
    return _control(_FINAL_PONG, payload)


def _control(first: int, payload: bytes) -> bytes:
    payload = payload[:_CONTROL_MAX_BYTES]
    return bytes((first, len(payload))) + payload
