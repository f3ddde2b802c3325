"""How often the parts of the page are made."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentd import config
from agentd.control.feed import Feed
from agentd.control.readings import limits
from tests.control.pages import PageDaemon, gap, identity

TAKES_S = 0.5  # to read gaps, on a slow disk


class SlowDaemon(PageDaemon):
    """Its journal takes its time."""

    takes_s = TAKES_S

    async def gaps(self, identity: str | None, open_only: bool, limit: int) -> list[dict[str, Any]]:
        await asyncio.sleep(self.takes_s)
        return await super().gaps(identity, open_only, limit)


def times_made(daemon: PageDaemon) -> int:
    return sum(asked[:2] == ("gaps", None) for asked in daemon.asked)


@pytest.mark.looptime
async def test_parts_are_made_once_a_second_however_many_look() -> None:
    daemon = SlowDaemon()
    daemon.takes_s = 0.0
    feed = Feed(daemon, limits(config.Agentd()), streams_max=4)
    for _ in range(40):
        await asyncio.gather(*(feed.parts() for _ in range(3)))
        await asyncio.sleep(0.1)
    assert times_made(daemon) == 4


@pytest.mark.looptime
async def test_parts_that_take_long_are_made_more_seldom() -> None:
    daemon = SlowDaemon()
    daemon.identities = [identity("alice", gaps_open=0)]
    feed = Feed(daemon, limits(config.Agentd()), streams_max=4)
    began = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() - began < 60.0:
        await feed.parts()
        await asyncio.sleep(0.1)
    assert 11 <= times_made(daemon) <= 13, "a tenth of the time at most"


@pytest.mark.looptime
async def test_a_disk_that_stood_still_once_does_not_leave_the_page_as_it_was() -> None:
    daemon = SlowDaemon()
    daemon.takes_s = 9.0
    feed = Feed(daemon, limits(config.Agentd()), streams_max=4)
    await feed.parts()
    daemon.takes_s = 0.0
    await asyncio.sleep(1.1)  # ten seconds since it was begun
    await feed.parts()
    assert times_made(daemon) == 2


@pytest.mark.looptime
async def test_gaps_that_are_open_come_before_those_that_were_found_later() -> None:
    daemon = PageDaemon()
    daemon.identities = [identity("alice", gaps_open=1), identity("bob", gaps_open=0)]
    closed = [gap(number, number + 1, closed_at="2026-01-02T03:04:05.000Z") for number in range(100, 200)]
    daemon.gap_list = [*closed, gap(1, 2), gap(3, 4, identity="bob", closed_at="2026-01-02T03:04:05.000Z")]
    html = (await Feed(daemon, limits(config.Agentd()), streams_max=1).parts())["gaps"]
    assert html.count("<li>") == 20
    assert html.index("<b>1</b>") < html.index("<b>100</b>")
    assert [asked[1:3] for asked in daemon.asked if asked[0] == "gaps"] == [("alice", True), (None, False)]
