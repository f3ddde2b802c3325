"""A moment as text is the same moment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.core.moments import iso, unix


@given(st.floats(min_value=0, max_value=4e9))
def test_what_is_written_is_read_back_to_the_millisecond(moment: float) -> None:
    assert abs(unix(iso(moment)) - moment) <= 0.001


def test_a_moment_is_utc_unless_it_says_otherwise() -> None:
    assert iso(1_767_225_600.5) == "2026-01-01T00:00:00.500Z"
    assert unix("2026-01-01") == unix("2026-01-01T00:00") == unix("2026-01-01T01:00+01:00") == 1_767_225_600.0


def test_what_is_no_moment_is_refused() -> None:
    with pytest.raises(ValueError, match="yesterday"):
        unix("yesterday")
