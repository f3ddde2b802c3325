"""Calls end once, however their worker does; who is blamed for a death is told to each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentd.core.events import Event, Message, Signal
from agentd.host.calls import Bounds, Call, Calls, WorkerDied
from agentd.host.context import TurnContext
from agentd.host.turns import DeadlinePassed


class Rig:
    """Calls of a plugin, and why its worker was to be killed."""

    def __init__(self, grace_s: float = 60.0) -> None:
        self.kills: list[str] = []
        self.calls = Calls("trial", grace_s, self.kills.append)
        self.begun: list[Call] = []

    def begin(self, event: Event | Signal, whole_s: float = 60.0) -> Call:
        home: Any = None
        ctx: TurnContext[Any] = TurnContext(home, event, 7, 1)
        self.begun.append(self.calls.begin(ctx, (), Bounds(whole_s, whole_s, 10 * whole_s)))
        return self.begun[-1]

    def end_all(self) -> list[tuple[bool, bool]]:
        """The worker dies. Of each call that ran: blamed, alone."""
        running = [each for each in self.begun if not each.ended.done()]
        self.calls.end_all("it died")
        told = []
        for call in running:
            failure = call.ended.result()
            assert failure is not None
            assert isinstance(failure.error, WorkerDied)
            told.append((failure.error.blamed, failure.error.alone))
            self.calls.forget(call)
        return told


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    yield made
    for call in made.begun:
        made.calls.forget(call)


def message(id_: str) -> Message:
    return Message(identity="me", conversation="c", seq=1, id=id_, sender="bob")


async def test_whatever_ran_may_have_been_the_reason_and_who_ran_alone_knows_it(rig: Rig) -> None:
    rig.begin(message("a"))
    rig.begin(message("b"))
    assert rig.end_all() == [(True, False), (True, False)]
    rig.calls.through(rig.begin(message("b")), None)
    rig.begin(message("a"))
    assert rig.end_all() == [(True, True)]
    assert len(rig.calls) == 1  # who asked for the one that is through has not forgotten it yet


async def test_who_ran_beside_a_thread_that_had_passed_its_deadline_did_not_run_alone(rig: Rig) -> None:
    late = rig.begin(message("a"))
    rig.calls.overran(late)
    rig.calls.through(late, None)
    rig.begin(message("b"))
    assert rig.end_all() == [(True, False)]


async def test_a_deadline_that_its_worker_does_not_notice_kills_it_and_nobody_else_is_blamed() -> None:
    rig = Rig(grace_s=0.01)
    late = rig.begin(message("late"), 0.0)
    behind = rig.begin(message("behind"), 0.0)
    await asyncio.sleep(0.05)
    failure = late.ended.result()
    assert failure is not None
    assert isinstance(failure.error, DeadlinePassed)
    assert not behind.ended.done()
    assert rig.kills == ["it did not end a call by its deadline (a turn of trial)"]
    assert rig.end_all() == [(False, False)]
    rig.begin(message("behind"))
    assert rig.end_all() == [(True, True)]


@pytest.mark.looptime
async def test_a_call_that_gets_on_may_take_longer_up_to_its_ceiling() -> None:
    rig = Rig(grace_s=0.0)
    call = rig.begin(message("long"), 0.1)
    noted: list[bytes] = []

    class Owner:
        def got_on(self, ctx: TurnContext[Any], note: bytes) -> None:
            assert ctx is call.ctx
            noted.append(note)

        async def says_now(self, ctx: TurnContext[Any]) -> None:
            raise AssertionError

    call.ctx.owner = Owner()
    began_s = asyncio.get_running_loop().time()
    while not call.ended.done():
        rig.calls.got_on(call, b"1")
        await asyncio.sleep(0.01)
    assert asyncio.get_running_loop().time() - began_s > 0.9
    assert set(noted) == {b"1"}
    assert call.ctx.progressed == b"1"
    rig.calls.forget(call)


async def test_a_thread_that_overran_is_over_when_it_ends_or_its_worker_does() -> None:
    rig = Rig(grace_s=0.01)
    first, second = rig.calls.overran(rig.begin(message("a"))), rig.calls.overran(rig.begin(message("b")))
    rig.calls.overrun_ended(rig.begun[0].id)
    assert first.done()
    assert not second.done()
    await asyncio.sleep(0.05)
    assert rig.kills == ["a thread of it did not end after its deadline"]
    rig.end_all()
    assert second.done()
    rig.calls.overrun_ended(rig.begun[1].id)  # told late, to nobody
