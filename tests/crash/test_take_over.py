"""A new process takes over from one that runs, under load: nothing is lost, nothing handled twice, all in order.

Turns of every length are under way meanwhile, with timers, `send_now`, progress and state that is counted up; some
outlast the take-over, and are finished by the process that began them. The books are those of the crash tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.crash.rig import WISHES
from tests.crash.succession import LAUNCHER, Succession
from tests.crash.take_over_points import BEFORE_TAKEN, PREDECESSOR, SUCCESSOR

PEERS = [f"peer-{number}" for number in range(12)]
PATIENT = [f"peer-{number}" for number in range(len(PEERS), len(PEERS) + len(WISHES))]


@contextlib.asynccontextmanager
async def talk(books: Succession) -> AsyncIterator[None]:
    """Every peer says something in turn meanwhile; each has done so when this begins."""
    over, all_have_spoken = asyncio.Event(), asyncio.Event()

    async def say() -> None:
        for number in itertools.count():
            if over.is_set():
                return
            books.say(PEERS[number % len(PEERS)], WISHES[number // len(PEERS) % len(WISHES)])
            await asyncio.sleep(0.05)
            if number + 1 == len(PEERS):
                all_have_spoken.set()

    talking = asyncio.create_task(say())
    await all_have_spoken.wait()
    try:
        yield
    finally:
        over.set()
        await talking


@contextlib.asynccontextmanager
async def turns_that_go_on_in_the_process_before(books: Succession) -> AsyncIterator[None]:
    """Turns of each wish are under way, and go on when the take-over has got so far."""
    await books.begin_patient_turns(PATIENT)
    going_on = asyncio.create_task(books.let_go_on_once_handed_over())
    try:
        yield
    finally:
        going_on.cancel()
        books.let_go_on()


async def taken_over_under_load(folder: Path, times: int) -> None:
    async with Succession(folder, peers=len(PEERS)) as books:
        books.start()
        await books.until_identity(lambda it: it["state"] == "live")
        async with talk(books):
            for _ in range(times):
                await asyncio.sleep(0.3)
                await books.take_over()
                await books.until_former_ended()
        await books.settle()
        await books.close_the_books()
        assert books.handled_again() == 0


async def test_three_take_overs_under_load_lose_nothing_and_handle_nothing_twice(tmp_path: Path) -> None:
    await taken_over_under_load(tmp_path, 3)


@pytest.mark.soak
async def test_twenty_take_overs_under_load_lose_nothing_and_handle_nothing_twice(tmp_path: Path) -> None:
    await taken_over_under_load(tmp_path, 20)


@pytest.mark.parametrize("point", PREDECESSOR)
async def test_a_predecessor_that_is_killed_at_any_point_loses_nothing(tmp_path: Path, point: str) -> None:
    async with Succession(tmp_path, peers=len(PEERS + PATIENT)) as books:
        books.start(LAUNCHER, **books.to_die_at(point))
        await books.until_identity(lambda it: it["state"] == "live")
        predecessor = books.process
        async with talk(books), turns_that_go_on_in_the_process_before(books):
            successor = books.begin_take_over()
            await books.until_killed(predecessor, point)
            await books.until_serving(successor)
            books.succeeded(successor, killed=True)
        await books.settle()
        await books.close_the_books()


@pytest.mark.parametrize("point", SUCCESSOR)
async def test_a_successor_that_is_killed_at_any_point_loses_nothing(tmp_path: Path, point: str) -> None:
    async with Succession(tmp_path, peers=len(PEERS + PATIENT)) as books:
        books.start()
        await books.until_identity(lambda it: it["state"] == "live")
        predecessor = books.process
        async with talk(books), turns_that_go_on_in_the_process_before(books):
            successor = books.begin_take_over(LAUNCHER, **books.to_die_at(point))
            await books.until_killed(successor, point)
            if point in BEFORE_TAKEN:
                await books.until_serving(predecessor)  # it goes on, and is taken over by the next
                await books.take_over()
                await books.until_former_ended()
            else:
                assert await asyncio.to_thread(predecessor.wait, 10.0) in (0, 1)
                books.start()
        await books.settle()
        await books.close_the_books()
        if point in BEFORE_TAKEN:
            assert books.handled_again() == 0
