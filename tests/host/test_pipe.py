"""Frames come out as they went in, however they are cut, and none is longer than it may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.host import pipe


@given(st.lists(st.integers(0, 2**63)), st.lists(st.integers(1, 40), min_size=1))
def test_frames_are_found_however_they_were_cut(ids: list[int], cuts: list[int]) -> None:
    stream = b"".join(pipe.framed(pipe.Cancel(each)) for each in ids)
    frames, found, at = pipe.Frames(), [], 0
    while at < len(stream):
        size = cuts[at % len(cuts)]
        found += [pipe.to_worker(body) for body in frames.fed(stream[at : at + size])]
        at += size
    assert found == [pipe.Cancel(each) for each in ids]


def test_a_frame_that_is_too_long_is_neither_written_nor_read(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pipe.framed(pipe.Dying("x" * 1_000))
    monkeypatch.setattr(pipe, "FRAME_MAX_BYTES", 900)
    with pytest.raises(pipe.FrameTooLarge, match="more than the 900 that may pass at once; stage less"):
        pipe.framed(pipe.Dying("x" * 1_000))
    with pytest.raises(pipe.FrameTooLarge):
        list(pipe.Frames().fed(frame))
