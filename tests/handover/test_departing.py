"""Where turns find the journal and the outbox, before, while and after they move."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from agentd.core.events import Content, Send, Sent
from agentd.errors import NotSent
from agentd.handover.departing import Departure, Whereabouts

SEND = Send(identity="alice", target="@bob", content=Content(text="x"), client_msg_id="k")


def sent(where: str) -> Sent:
    return Sent(client_msg_id="k", id=where, conversation="conv_1", seq=1)


class There:
    """A departure, for which it is decided by hand where the journal is."""

    def __init__(self) -> None:
        self.known: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def decided(self) -> bool:
        return await asyncio.shield(self.known)

    async def state_get(self, plugin: str, conversation: int, key: str) -> bytes | None:
        return b"there"

    async def send_now(self, send: Send) -> Sent:
        return sent("there")


async def here(plugin: str, conversation: int, key: str) -> bytes | None:
    return b"here"


async def sent_here(send: Send) -> Sent:
    return sent("here")


async def never(send: Send) -> Sent:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def refused(send: Send) -> Sent:
    raise NotSent("refused", "blocked")


def whereabouts(send_now: Callable[[Send], Awaitable[Sent]] = sent_here) -> tuple[Whereabouts, There, Departure]:
    there = There()
    return Whereabouts(here, send_now), there, cast(Departure, there)


async def ask(find: Whereabouts) -> tuple[Any, Any]:
    return await find.state_get("echo", 1, "count"), (await find.send_now(SEND)).id


async def test_they_are_here_until_they_move_and_there_afterwards() -> None:
    find, there, departure = whereabouts()
    assert await ask(find) == (b"here", "here")
    find.moved(departure)
    there.known.set_result(True)
    assert await ask(find) == (b"there", "there")


@pytest.mark.parametrize(("taken", "where"), [(True, "there"), (False, "here")])
async def test_who_asks_while_nobody_knows_waits_for_that(taken: bool, where: str) -> None:
    find, there, departure = whereabouts()
    find.moved(departure)
    asking = asyncio.ensure_future(ask(find))
    await asyncio.sleep(0.01)
    assert not asking.done()
    there.known.set_result(taken)
    assert await asking == (where.encode(), where)


async def test_a_send_that_waits_here_is_asked_for_there_when_they_move() -> None:
    find, there, departure = whereabouts(never)
    asking = asyncio.ensure_future(find.send_now(SEND))
    await asyncio.sleep(0.01)
    find.moved(departure)
    there.known.set_result(True)
    assert (await asking).id == "there"


async def test_what_became_of_a_send_here_is_told_as_it_is() -> None:
    find, _, _ = whereabouts(refused)
    with pytest.raises(NotSent, match="blocked"):
        await find.send_now(SEND)


async def test_they_are_here_again_when_the_hand_over_is_off() -> None:
    find, there, departure = whereabouts()
    find.moved(departure)
    there.known.set_result(False)
    find.back()
    assert await ask(find) == (b"here", "here")
