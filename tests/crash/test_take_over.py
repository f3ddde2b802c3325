"""A new process takes over from one that runs, under load: nothing is lost, nothing handled twice, all in order.

Turns of every length are under way meanwhile, with timers, `send_now`, progress and state that is counted up; some
outlast the take-over, and are finished by the process that began them. The books are those of the crash tests.
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from tests.crash.rig import WISHES
from tests.crash.succession import Succession

PEERS = [f"peer-{number}" for number in range(12)]


async def taken_over_under_load(folder: Path, times: int) -> None:
    async with Succession(folder, peers=len(PEERS)) as books:
        books.start()
        await books.until_identity(lambda it: it["state"] == "live")
        over = asyncio.Event()

        async def talk() -> None:
            for number in itertools.count():
                if over.is_set():
                    return
                books.say(PEERS[number % len(PEERS)], WISHES[number // len(PEERS) % len(WISHES)])
                await asyncio.sleep(0.05)

        talking = asyncio.create_task(talk())
        for _ in range(times):
            await asyncio.sleep(0.3)
            await books.take_over()
            await books.until_former_ended()
        over.set()
        await talking
        await books.settle()
        await books.close_the_books()
        assert books.handled_again() == 0


async def test_three_take_overs_under_load_lose_nothing_and_handle_nothing_twice(tmp_path: Path) -> None:
    await taken_over_under_load(tmp_path, 3)


@pytest.mark.soak
async def test_twenty_take_overs_under_load_lose_nothing_and_handle_nothing_twice(tmp_path: Path) -> None:
    await taken_over_under_load(tmp_path, 20)
