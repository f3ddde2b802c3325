"""A blocked loop is noticed while it is blocked, with the culprit's name and stack, once per stall."""

import asyncio
import logging
import time

import pytest

from agentd.host.stalls import StallWatch


def block(seconds: float) -> None:
    """Hold the loop, as a plugin's `requests.get` would."""
    time.sleep(seconds)


async def test_a_blocked_loop_is_logged_with_culprit_stack_and_length(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with StallWatch(0.05, {block.__code__: "plugin p, handler block"}) as watch:
        block(0.4)
        while watch.stalled_s == 0.0:
            await asyncio.sleep(0.01)
    first, last = [record.getMessage() for record in caplog.records]
    assert first.startswith("event loop blocked for more than 0.05 s by plugin p, handler block")
    assert "time.sleep(seconds)" in first
    assert last.startswith("event loop runs again after 0.")
    assert watch.stalls == 1
    assert 0.2 < watch.stalled_s < 5


async def test_a_loop_that_runs_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    with StallWatch(0.5, {}) as watch:
        await asyncio.sleep(0.6)
    assert watch.stalls == 0
    assert caplog.records == []


async def test_code_of_nobodys_is_put_down_to_agentd_itself(caplog: pytest.LogCaptureFixture) -> None:
    with StallWatch(0.05, {}) as watch:
        block(0.3)
        while watch.stalled_s == 0.0:
            await asyncio.sleep(0.01)
    assert "by agentd itself" in caplog.records[0].getMessage()


async def test_leaving_ends_the_thread_even_in_a_stall() -> None:
    with StallWatch(0.02, {}) as watch:
        block(0.1)
    thread = watch._thread
    assert thread is not None
    assert not thread.is_alive()
