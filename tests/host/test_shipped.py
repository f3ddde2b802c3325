"""What crosses to a worker and back is what it was."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.core import events
from agentd.core.events import Digest, Event, Message, Signal, Timer
from agentd.core.stretches import Batch
from agentd.errors import PluginLoadError
from agentd.host import pipe
from agentd.host.api import no_api
from agentd.host.context import TurnContext
from agentd.host.handlers import Handlers
from agentd.host.shipped import TurnIn, TurnOut, declarations, declared_again, packed, unpacked
from agentd.host.state import PluginState
from agentd.plugin import Context, Plugin

KINDS = [
    each
    for each in vars(events).values()
    if isinstance(each, type) and issubclass(each, (Event, Signal)) and each not in (Message, Timer, Digest)
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class Home:
    """A plugin as far as a turn knows it."""

    name = "trial"
    config = None
    serves = frozenset({"me"})
    timers = 3
    timers_max = 9
    minds_timers = True

    def __init__(self) -> None:
        self.backlog_of = lambda identity, target: 77
        self.api_of = no_api
        self.state = PluginState(self.name, self.read)
        self.loop = asyncio.new_event_loop()
        self.loop.close()

    async def read(self, plugin: str, conversation: int, key: str) -> bytes | None:
        return None

    async def send_now(self, send: Any) -> Any:
        raise AssertionError


def sent_over(message: Any) -> Any:
    [body] = pipe.Frames().fed(pipe.framed(message))
    decode = pipe.from_worker if isinstance(message, pipe.Done) else pipe.to_worker
    return decode(body)


@given(st.sampled_from(KINDS).flatmap(st.from_type))
def test_every_other_kind_of_event_arrives_as_it_left(event: Any) -> None:
    assert unpacked(packed(event)) == event
    assert type(unpacked(packed(event))) is type(event)


@given(st.dictionaries(st.text(), JSON, max_size=3), st.binary())
def test_whatever_a_peer_says_arrives_as_it_left(data: dict[str, Any], payload: bytes) -> None:
    said = Message(
        identity="me", conversation="c", seq=1, id="m", sender="bob", data=data, metadata=data, payload=payload
    )
    assert unpacked(packed(said)) == said
    timer = Timer(identity="me", id="t", data=data)
    assert unpacked(packed(timer)) == timer


def test_a_turn_arrives_with_all_that_it_knows_and_leaves_with_all_that_it_did() -> None:
    message = Message(identity="me", conversation="c", seq=1, id="m", sender="bob", text="hello", answer_to="@bob")
    here: TurnContext[Any] = TurnContext(Home(), message, 7, 3)
    call = sent_over(pipe.Call(1, TurnIn.of(message, here, None)))
    home: Any = Home()
    home.backlog_of = None
    shown, there = call.turn.turn(home)
    assert shown == message
    assert (there.event, there.conversation, there.attempt, there.peer_backlog) == (message, 7, 3, 77)
    assert there.home.timers == 3
    there.reply("one", data={"n": 10**30})
    there.state.put("k", [1])
    there.plugin_state.delete("gone")
    there.remind(5, data={"a": 1})
    there.outcome("answered", {"b": 2})
    there.outcome("done")
    done = sent_over(pipe.Done(1, TurnOut.of(there, None, ())))
    done.turn.stage(here)
    assert (here.sends, here.puts, here.reminders) == (there.sends, there.puts, there.reminders)
    assert (here.outcomes, done.turn.said) == ([("answered", b'{"b":2}'), ("done", None)], 1)
    assert here.sends
    assert here.puts == {(7, "k"): b"[1]", (0, "gone"): None}


def test_a_batch_and_a_digest_arrive_with_the_events_that_keys_and_answers_are_about() -> None:
    oldest, newest = (
        Message(identity="me", conversation="c", seq=seq, id=f"m{seq}", sender="bob", text="hello") for seq in (1, 2)
    )
    batch: TurnContext[Any] = TurnContext(Home(), newest, 7, 1, cause=oldest, again="replay 1", progressed=b"[3]")
    shown, there = sent_over(pipe.Call(1, TurnIn.of((oldest, newest), batch, 4))).turn.turn(Home())
    assert (shown, there.event, there.cause, there.again) == ((oldest, newest), newest, oldest, "replay 1")
    assert there.last_progress == [3]
    assert there.send("@ann", "x") == batch.send("@ann", "x")
    digest = Digest(identity="me", conversation="c", messages=(oldest, newest), count=9, first_seq=1, last_seq=9)
    about: TurnContext[Any] = TurnContext(Home(), newest, 7, 1, cause=oldest)
    shown, there = sent_over(pipe.Call(1, TurnIn.of(digest, about, None))).turn.turn(Home())
    assert (shown, there.event, there.cause) == (digest, newest, oldest)


def test_nothing_staged_is_nothing() -> None:
    message = Message(identity="me", conversation="c", seq=1, id="m", sender="bob")
    ctx: TurnContext[Any] = TurnContext(Home(), message, 7, 1)
    sent_over(pipe.Done(1, TurnOut.of(ctx, None, ()))).turn.stage(ctx)
    assert (ctx.sends, ctx.puts, ctx.reminders) == (None, None, None)


def test_declarations_are_the_same_but_for_their_functions() -> None:
    plugin = Plugin("trial")

    @plugin.on(Message, own=True, timeout_s=2, attempts=3, on_dead="hold", where=lambda message: False)
    @plugin.on(Message, sender={"ann"}, text=re.compile("^go", re.I), mentioned=False)
    async def handle(message: Message, ctx: Context) -> None: ...

    @plugin.on(Message, batch=30, settle_s=0.2)
    async def many(messages: tuple[Message, ...], ctx: Context) -> None: ...

    @plugin.every("5m")
    async def beat(timer: Timer, ctx: Context) -> None: ...

    told = msgspec.msgpack.decode(
        msgspec.msgpack.encode(declarations("trial", plugin.declared)), type=list[pipe.Declaration]
    )
    again = Handlers("trial", declared_again(told)).all
    first, second, batch, third = again
    assert (first.batch, batch.batch) == (None, Batch(30, 0.2))
    assert first.function is second.function is not third.function
    assert [each.where for each in told] == [False, True, False, False]
    assert [each.name.rpartition(".")[2] for each in again] == ["handle", "handle", "many", "beat"]
    assert [each.name for each in first.filters] == ["sender", "text", "mentioned"]
    assert first.filters[1].wanted == re.compile("^go", re.I)
    assert (second.own, second.timeout_s, second.attempts, second.on_dead) == (True, 2, 3, "hold")
    assert third.every_s == 300.0
    plain = Handlers("trial", plugin.declared).all
    assert [each.place for each in told] == [each.place for each in plain]


def test_an_event_that_is_no_event_of_ours_is_refused() -> None:
    class Own(Signal, frozen=True):
        pass

    plugin = Plugin("trial")

    @plugin.on(Own)
    async def handle(event: Own, ctx: Context) -> None: ...

    with pytest.raises(PluginLoadError, match="Own is not one of the events"):
        declarations("trial", plugin.declared)
