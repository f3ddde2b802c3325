"""Stopped in order at any moment: nothing is missing afterwards, and nothing went wrong on the way."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.crash.rig import Books


async def test_a_stop_at_the_moment_of_the_last_answer_ends_in_order(tmp_path: Path) -> None:
    async with Books(tmp_path) as books:
        for _ in range(5):
            books.say_everything()
            books.start()
            await books.settle(look_s=0.0)
            assert await books.stop() == 0
        await finish(books)


async def test_stops_in_the_midst_of_work_lose_no_effect_and_repeat_none(tmp_path: Path) -> None:
    async with Books(tmp_path) as books:
        for stop in range(5):
            books.start()
            await books.until_started()
            books.say_everything()
            await asyncio.sleep(0.03 * stop)
            assert await books.stop() == 0
        await finish(books)


async def finish(books: Books) -> None:
    books.start()
    await books.settle()
    await books.close_the_books()
