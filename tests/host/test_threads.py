"""Calls run beside each other in daemon threads, and none is left that is not needed."""

import asyncio
import contextvars
import threading

import pytest

from agentd.host.threads import Threads


def mine() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("under-test")]


async def test_calls_run_beside_each_other_up_to_the_limit() -> None:
    threads = Threads("under-test", 2)
    together = threading.Barrier(2, timeout=5)
    await asyncio.gather(threads.submit(together.wait), threads.submit(together.wait))
    assert len(mine()) == 2
    await asyncio.gather(*[threads.submit(int) for _ in range(20)])
    assert len(mine()) == 2
    assert all(thread.daemon for thread in mine())
    left = mine()
    threads.close()
    for thread in left:
        await asyncio.to_thread(thread.join, 5)
        assert not thread.is_alive()


async def test_what_a_call_raises_arrives_even_what_a_future_cannot_hold() -> None:
    threads = Threads("under-test", 1)

    def stop() -> None:
        raise StopIteration

    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.submit(stop)
    with pytest.raises(SystemExit):
        await _kept(threads.submit(leave))
    assert await threads.submit(len, "four") == 4
    threads.close()


async def _kept(future: asyncio.Future[None]) -> None:
    # A SystemExit that leaves a task ends the loop; here it is looked at instead.
    await asyncio.wait((future,))
    future.result()


async def test_a_call_sees_the_context_it_was_submitted_in() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outer")
    threads = Threads("under-test", 1)
    variable.set("inner")
    assert await threads.submit(variable.get) == "inner"
    threads.close()


async def test_a_result_nobody_waits_for_any_more_disturbs_nobody() -> None:
    threads = Threads("under-test", 1)
    release = threading.Event()
    abandoned = threads.submit(release.wait, 5)
    abandoned.cancel()
    release.set()
    assert await threads.submit(int) == 0
    threads.close()
