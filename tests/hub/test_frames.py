"""WebSocket frames as bytes, read back by another implementation."""

from __future__ import annotations

import pytest
from websockets.frames import Close, Frame, Opcode
from websockets.streams import StreamReader

from agentd.hub.frames import close_frame, ping_frame, pong_frame, text_frame


def parse(frame: bytes) -> Frame:
    stream = StreamReader()
    stream.feed_data(frame)
    stream.feed_eof()
    parsing = Frame.parse(stream.read_exact, mask=False)
    with pytest.raises(StopIteration) as result:
        while True:
            next(parsing)
    assert stream.buffer == b""
    return result.value.value


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 200_000])
def test_a_text_frame_of_any_size_is_read_back(size: int) -> None:
    frame = parse(text_frame(b"x" * size))
    assert (frame.opcode, frame.fin, len(frame.data)) == (Opcode.TEXT, True, size)


def test_control_frames_are_read_back_and_fit() -> None:
    assert Close.parse(parse(close_frame(1008, "API key rotated")).data) == Close(1008, "API key rotated")
    assert len(parse(close_frame(1001, "r" * 500)).data) == 125
    assert parse(ping_frame()).opcode is Opcode.PING
    assert parse(pong_frame(b"abc")).data == b"abc"
