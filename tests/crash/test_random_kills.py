"""Killed at random, uniformly in time and at random points: replies, state, timers and `send_now` each exactly once.

Everything random comes from a seed, which a failure prints.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.crash.points import POINTS
from tests.crash.rig import WISHES, Books

POINT_WITHIN_S = 2.0


class RandomKills:
    """After each kill everything is answered before the next one: an event during which the process died twice would be
    quarantined, rightly."""

    def __init__(self, books: Books, seed: int) -> None:
        self.books = books
        self.chance = random.Random(seed)

    async def one(self) -> None:
        await self.chance.choice([self.while_it_works, self.while_it_starts, self.at_a_point])()
        self.books.start()
        await self.books.settle()

    async def while_it_works(self) -> None:
        await self._talk_for(self.chance.uniform(0.0, 0.5))
        await self.books.kill()

    async def while_it_starts(self) -> None:
        await self._leave_it_mail()
        self.books.start()
        await asyncio.sleep(self.chance.uniform(0.0, 1.0))
        await self.books.kill()

    async def at_a_point(self) -> None:
        await self._leave_it_mail()
        point, nth = self.chance.choice(list(POINTS)), self.chance.randint(1, 8)
        self.books.start_to_die_at(point, nth)
        await self.books.died_at(point, POINT_WITHIN_S)

    async def _leave_it_mail(self) -> None:
        """It is killed while it has nothing to do, and finds this when it is back."""
        await self.books.kill()
        for _ in range(self.chance.randint(1, 6)):
            self._say()

    async def _talk_for(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (now := loop.time()) < until:
            self._say()
            await asyncio.sleep(min(until - now, self.chance.expovariate(50.0)))

    def _say(self) -> None:
        peer = self.chance.choice(list(self.books.said))
        self.books.say(peer, *self.chance.choices(WISHES, k=self.chance.randint(1, 3)))


async def kill_at_random(folder: Path, seed: int, kills: int) -> None:
    async with Books(folder, peers=4) as books:
        kill = RandomKills(books, seed)
        try:
            books.start()
            books.say_everything()
            await books.settle()
            while books.kills < kills:
                await kill.one()
            await books.close_the_books()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


@pytest.mark.parametrize("seed", [1, 2])
async def test_kills_at_random_lose_no_effect_and_repeat_none(tmp_path: Path, seed: int) -> None:
    await kill_at_random(tmp_path, seed, kills=8)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(5))
async def test_five_hundred_kills_at_random_lose_no_effect_and_repeat_none(
    tmp_path: Path, part: int, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    with capsys.disabled():
        print(f"\npart {part}: seed {seed}")
    await kill_at_random(tmp_path, seed, kills=100)
