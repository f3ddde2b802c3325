"""One dispatcher hands its turns over, another has their fates, on a journal in memory, with no line between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from agentd.core.events import Content, Send
from agentd.dispatcher import Dispatcher, Elsewhere, Over, Turn
from agentd.dispatcher.room import Room
from agentd.host.context import TurnContext
from agentd.host.faults import taken_apart
from agentd.host.shipped import TurnOut
from agentd.host.turns import Failure
from agentd.journal.storage import Attempt
from agentd.plugin import Context, Message
from tests.test_dispatcher import Rig

SEND = Send(identity="me", target="@peer", content=Content(text="from there"), client_msg_id="k-0")


class Successor:
    """Takes what ends, or, if there is none after all, nothing."""

    def __init__(self, takes: bool) -> None:
        self.ended: list[tuple[TurnContext[Any], Failure | None]] = []
        self._takes = takes

    async def takes(self, ctx: TurnContext[Any], failure: Failure | None) -> bool:
        self.ended.append((ctx, failure))
        return self._takes


class Gate:
    """A handler that waits for its gate, and answers."""

    def __init__(self) -> None:
        self.begun: list[str | None] = []
        self.attempts: list[int] = []
        self.open = asyncio.Event()

    async def __call__(self, message: Message, ctx: Context) -> None:
        self.begun.append(message.text)
        self.attempts.append(ctx.attempt)
        await self.open.wait()
        ctx.reply(f"to {message.text}")


async def serving(*handlers: Any, **settings: Any) -> Rig:
    """A rig whose plugin "echo" serves what comes from now on."""
    rig = Rig()
    rig.plugin("echo", *handlers, **settings)
    async with rig.running():
        return rig


@asynccontextmanager
async def inheriting(rig: Rig, *turns: Turn) -> AsyncIterator[tuple[Dispatcher, list[Elsewhere]]]:
    """A dispatcher that starts while these turns run elsewhere."""
    for plugin in rig.plugins.values():
        await plugin.setup()
    there = [Elsewhere(turn, lambda: None) for turn in turns]
    async with asyncio.TaskGroup() as tasks:
        dispatcher = rig.dispatcher()
        await dispatcher.start(tasks, there)
        try:
            yield dispatcher, there
        finally:
            await dispatcher.stop(0.2)


async def until(reached: Any) -> None:
    async with asyncio.timeout(10):
        while not reached():
            await asyncio.sleep(0.001)


async def test_the_turns_that_run_are_listed_with_the_places_of_their_events() -> None:
    rig, gate = Rig(), Gate()
    rig.plugin("echo", gate)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("a"), rig.said("b"), rig.said("a")])
        await until(lambda: len(gate.begun) == 2)
        await dispatcher.hold(1.0)
        successor = Successor(takes=True)
        turns = dispatcher.hand_over(successor).values()
        assert {(turn.kind, turn.plugin, turn.identity, turn.first, turn.last) for turn in turns} == {
            ("events", "echo", "me", 1, 1),
            ("events", "echo", "me", 2, 2),
        }
        gate.open.set()
        await until(lambda: len(successor.ended) == 2)
        await asyncio.sleep(0.01)
        assert rig.queued == []
        assert len(gate.begun) == 2, "nothing is handed out any more"


async def test_nothing_is_let_go_before_what_has_ended_is_on_disk() -> None:
    rig, gate = Rig(), Gate()
    rig.plugin("echo", gate)
    gate.open.set()
    async with rig.running() as dispatcher:
        rig.journal.full = True
        dispatcher.offer([rig.said("a")])
        await until(rig.journal.waiting_effects)
        holding = asyncio.create_task(dispatcher.hold(10.0))
        await asyncio.sleep(0.02)
        assert not holding.done()
        rig.journal.has_room()
        await holding
        assert [send.content.text for send in rig.queued] == ["to 1"]
        dispatcher.take_back()


async def test_a_turn_that_waits_for_room_in_the_outbox_does_not_keep_the_journal_here() -> None:
    rig, gate = Rig(), Gate()
    rig.plugin("echo", gate)
    gate.open.set()
    async with rig.running() as dispatcher:
        dispatcher._engine.room = Room(lambda identity: 0)
        dispatcher.offer([rig.said("a")])
        await until(lambda: len(dispatcher._engine.room))
        await dispatcher.hold(1.0)
        assert [send.content.text for send in rig.queued] == ["to 1"]
        dispatcher.take_back()


async def test_what_ends_is_decided_here_if_there_is_no_successor_after_all() -> None:
    rig, gate = Rig(), Gate()
    rig.plugin("echo", gate)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("a"), rig.said("a")])
        await until(lambda: gate.begun)
        await dispatcher.hold(1.0)
        dispatcher.hand_over(Successor(takes=False))
        gate.open.set()
        await asyncio.sleep(0.01)
        dispatcher.take_back()
        await dispatcher.quiet()
        assert [send.content.text for send in rig.queued] == ["to 1", "to 2"]


async def test_what_a_turn_did_elsewhere_is_committed_with_its_cursor_and_its_lane_goes_on() -> None:
    gate = Gate()
    gate.open.set()
    rig = await serving(gate)
    records = [rig.said("a") for _ in range(3)]
    turn = Turn("events", "echo", "me", records[0].conversation, records[0].position, records[1].position)
    async with inheriting(rig, turn) as (dispatcher, [there]):
        await until(there.taken_up.done)
        await asyncio.sleep(0.01)
        assert gate.begun == []
        assert dispatcher.inherited == 1
        sends = TurnOut.of(_staged(there.taken_up.result()), None, ())
        there.ended(Over(sends))
        await dispatcher.quiet()
        assert gate.begun == ["3"]
        assert [send.content.text for send in rig.queued] == ["from there", "to 3"]
        assert (dispatcher.pending["me"], dispatcher.inherited) == (0, 0)


def _staged(ctx: TurnContext[Any]) -> TurnContext[Any]:
    ctx.sends = [SEND]
    return ctx


async def test_a_turn_elsewhere_takes_one_of_its_plugins_places() -> None:
    gate = Gate()
    gate.open.set()
    rig = await serving(gate, concurrency=1)
    held, other = rig.said("a"), rig.said("b")
    async with inheriting(rig, Turn("events", "echo", "me", held.conversation, 1, 1)) as (dispatcher, [there]):
        await until(there.taken_up.done)
        await asyncio.sleep(0.01)
        assert gate.begun == []
        there.ended(Over(TurnOut()))
        await dispatcher.quiet()
        assert isinstance(other.event, Message)
        assert gate.begun == [other.event.text]


async def test_a_turn_that_was_given_back_runs_here_and_no_attempt_is_counted() -> None:
    gate = Gate()
    gate.open.set()
    rig = await serving(gate)
    record = rig.said("a")
    async with inheriting(rig, Turn("events", "echo", "me", record.conversation, 1, 1)) as (dispatcher, [there]):
        there.ended(None)
        await dispatcher.quiet()
        assert (gate.begun, gate.attempts) == (["1"], [1])


async def test_a_failure_elsewhere_is_an_attempt_like_any_other() -> None:
    gate = Gate()
    gate.open.set()
    rig = await serving(gate)
    record = rig.said("a")
    async with inheriting(rig, Turn("events", "echo", "me", record.conversation, 1, 1)) as (dispatcher, [there]):
        there.ended(Over(TurnOut(fault=taken_apart(ValueError("there"))), "gate"))
        await until(lambda: gate.begun)
        await dispatcher.quiet()
        assert gate.attempts == [2]


async def test_attempts_that_failed_before_one_elsewhere_count_with_it() -> None:
    gate = Gate()
    rig = await serving(gate, attempts=3)
    record = rig.said("a")
    await rig.journal.commit(Attempt("echo", record.conversation, 1, 2, "ValueError: here, twice", 0.0))
    turn = Turn("events", "echo", "me", record.conversation, 1, 1, 3)
    async with inheriting(rig, turn) as (dispatcher, [there]):
        there.ended(Over(TurnOut(fault=taken_apart(ValueError("there"))), "gate"))
        await until(lambda: rig.journal.dead)
        await dispatcher.quiet()
        assert [(dead.attempts, dead.error) for dead in rig.journal.dead] == [(3, "ValueError: there")]
        assert gate.begun == []


async def test_a_turn_of_a_plugin_that_is_not_served_is_declined() -> None:
    rig = await serving(Gate())
    record = rig.said("a")
    declined = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        dispatcher = rig.dispatcher()
        for plugin in rig.plugins.values():
            await plugin.setup()
        turn = Turn("events", "gone", "me", record.conversation, 1, 1)
        await dispatcher.start(tasks, [Elsewhere(turn, declined.set)])
        assert declined.is_set()
        await dispatcher.stop(0.0)


async def test_what_a_turn_noted_before_its_lane_came_to_it_is_not_forgotten() -> None:
    elsewhere = Elsewhere(Turn("signal", "echo", "me"), lambda: None)
    elsewhere.got_on(b"[1]")
    elsewhere.got_on(b"[2]")
    ctx: Any = SimpleNamespace(progressed=None, owner=None)
    elsewhere.take_up(ctx)
    assert ctx.progressed == b"[2]"


async def test_a_turn_that_nobody_wants_does_not_wait_to_say_something() -> None:
    elsewhere = Elsewhere(Turn("signal", "echo", "me"), lambda: None)
    saying = asyncio.create_task(elsewhere.says_now())
    await asyncio.sleep(0)
    elsewhere.decline()
    with pytest.raises(RuntimeError, match="not served any more"):
        await asyncio.wait_for(saying, 10)
