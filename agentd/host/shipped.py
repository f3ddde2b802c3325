"""What crosses the pipe about a plugin and its turns: its declarations once, then a turn in and what it staged out.

Whatever a turn knows, or does, is listed in `TurnIn` and `TurnOut` and nowhere else.

Always true: an event arrives as it left: its inner values are what JSON can hold, which is more than msgpack can (whole
numbers of any size), so events and contents cross as JSON. Of a plugin nothing crosses but plain values; a `where`
stays in the worker.
Not here: framing and the other messages (pipe.py), running (worker.py, isolated.py).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from agentd.core import events
from agentd.core.events import Event, Send, Signal
from agentd.errors import PluginLoadError
from agentd.host.context import Reminder, TurnContext
from agentd.host.faults import Fault, taken_apart
from agentd.host.handlers import Handler, place_of
from agentd.host.lifecycle import Loaded
from agentd.host.state import Puts
from agentd.host.turns import Failure
from agentd.plugin import Declared

_EVENTS: dict[str, type[Any]] = {
    name: each
    for name, each in vars(events).items()
    if isinstance(each, type) and issubclass(each, (Event, Signal)) and name == each.__name__
}
_DECODERS = {name: msgspec.json.Decoder(each) for name, each in _EVENTS.items()}
Shown = Event | Signal | tuple[Event, ...]
"""What the handlers of a turn get."""

_encode = msgspec.json.Encoder().encode
_decode_sends = msgspec.json.Decoder(list[Send]).decode


class Parcel(msgspec.Struct, frozen=True, array_like=True):
    """An event: the name of its class, and the event as JSON."""

    kind: str
    body: bytes


def packed(event: Event | Signal) -> Parcel:
    """An event on its way."""
    return Parcel(type(event).__name__, _encode(event))


def unpacked(parcel: Parcel) -> Any:
    """The event."""
    return _DECODERS[parcel.kind].decode(parcel.body)


class TurnIn(msgspec.Struct, frozen=True, array_like=True):
    """All that a turn knows when it begins.

    shown: what its handlers get: one event, or a batch for the handler of this number. event, cause: as of TurnContext,
    where they are not the last and the first of `shown`. backlog: `ctx.peer_backlog` then. timers: how many the plugin
    has. state_bytes: how much it has stored. platform: whose calls `ctx.api` has, or None.
    traceparent: what spans of its handlers become children of, or None.
    """

    shown: list[Parcel]
    batch_for: int | None
    event: Parcel | None
    cause: Parcel | None
    conversation: int | None
    attempt: int
    again: str
    progressed: bytes | None
    backlog: int | None
    timers: int
    state_bytes: int
    platform: str | None
    traceparent: str | None

    @classmethod
    def of(cls, shown: Shown, ctx: TurnContext[Any], batch_for: int | None) -> TurnIn:
        """In the daemon: what to tell the worker of this turn."""
        events = shown if isinstance(shown, tuple) else (shown,)
        port = ctx.home.api_of(ctx.identity)
        return cls(
            shown=[packed(each) for each in events],
            batch_for=batch_for,
            event=None if ctx.event is events[-1] else packed(ctx.event),
            cause=None if ctx.cause is events[0] else packed(ctx.cause),
            conversation=ctx.conversation,
            attempt=ctx.attempt,
            again=ctx.again,
            progressed=ctx.progressed,
            backlog=ctx.peer_backlog,
            timers=ctx.home.timers,
            state_bytes=ctx.home.state.taken_bytes,
            platform=None if port is None else port.platform,
            traceparent=None if ctx.joins is None else ctx.joins.traceparent,
        )

    def turn(self, plugin: Loaded) -> tuple[Shown, TurnContext[Any]]:
        """In the worker: the same turn."""
        home = copy.copy(plugin)
        home.timers = self.timers
        home.state = copy.copy(plugin.state)
        home.state.stored_bytes = lambda: self.state_bytes
        home.backlog_of = lambda identity, target: self.backlog
        events = tuple(unpacked(each) for each in self.shown)
        ctx: TurnContext[Any] = TurnContext(
            home,
            events[-1] if self.event is None else unpacked(self.event),
            self.conversation,
            self.attempt,
            cause=events[0] if self.cause is None else unpacked(self.cause),
            again=self.again,
            progressed=self.progressed,
        )
        return (events[0] if self.batch_for is None else events), ctx


class TurnOut(msgspec.Struct, frozen=True, array_like=True):
    """All that a turn did, or its failure. overruns: a thread of it runs on past its deadline. state_full: a put found
    no room.

    What it tells `ctx.progress` does not wait for its end: pipe.Progress.
    """

    sends: bytes | None = None
    puts: list[tuple[int, str, bytes | None]] | None = None
    reminders: list[Reminder] | None = None
    outcomes: list[tuple[str, bytes | None]] | None = None
    said: int = 0
    fault: Fault | None = None
    overruns: bool = False
    state_full: bool = False

    @classmethod
    def of(cls, ctx: TurnContext[Any], failure: Failure | None, handlers: tuple[Handler, ...]) -> TurnOut:
        """In the worker: how this turn ended. handlers: all of the plugin's."""
        full = ctx.home.state.full
        if failure is not None:
            error, handler = failure
            number = None if handler is None else handlers.index(handler)
            overruns = getattr(error, "overrun", None) is not None
            return cls(fault=taken_apart(error, number), overruns=overruns, state_full=full, said=ctx.said)
        puts = None if ctx.puts is None else [(*place, value) for place, value in ctx.puts.items()]
        sends = None if ctx.sends is None else _encode(ctx.sends)
        return cls(sends, puts, ctx.reminders, ctx.outcomes, ctx.said, state_full=full)

    def stage(self, ctx: TurnContext[Any]) -> None:
        """In the daemon: give the turn what it staged."""
        ctx.sends = None if self.sends is None else _decode_sends(self.sends)
        ctx.puts = None if self.puts is None else Puts(((number, key), value) for number, key, value in self.puts)
        ctx.reminders = self.reminders
        ctx.outcomes = self.outcomes


class Declaration(msgspec.Struct, frozen=True, array_like=True):
    """A handler as declared. function: the same number for the same function. rest: what `Declared` has besides.

    filters: those that are plain values. where: it has one, which is asked in the worker.
    """

    function: int
    name: str
    place: str
    event: str
    filters: dict[str, Any]
    where: bool
    rest: dict[str, Any]

    def anywhere(self) -> Declaration:
        """The same wherever it stands, for comparing."""
        return msgspec.structs.replace(self, place="")


_APART = ("event", "function", "filters")


def declarations(plugin: str, declared: Iterable[Declared]) -> list[Declaration]:
    """In the worker: every handler of the plugin. Raises PluginLoadError for an event that nobody sends."""
    functions: list[Any] = []
    told = []
    for each in declared:
        if _EVENTS.get(each.event.__name__) is not each.event:
            raise PluginLoadError(
                f"{place_of(each.function)}: plugin {plugin}: {each.event.__name__} is not one of the events in "
                "agentd.plugin, which are all that a worker is sent; name one of those"
            )
        if each.function not in functions:
            functions.append(each.function)
        told.append(
            Declaration(
                function=functions.index(each.function),
                name=getattr(each.function, "__qualname__", repr(each.function)),
                place=place_of(each.function),
                event=each.event.__name__,
                filters={name: _plain(wanted) for name, wanted in each.filters.items() if name != "where"},
                where="where" in each.filters,
                rest={name: getattr(each, name) for name in Declared.__struct_fields__ if name not in _APART},
            )
        )
    return told


def declared_again(told: Iterable[Declaration]) -> list[Declared]:
    """In the daemon: the same with functions that stand for the worker's."""
    functions: dict[int, _Absent] = {}
    again = []
    for each in told:
        function = functions.setdefault(each.function, _Absent(each.name))
        filters = {name: _restored(wanted) for name, wanted in each.filters.items()}
        again.append(Declared(event=_EVENTS[each.event], function=function, filters=filters, **each.rest))
    return again


class _Absent:
    """Stands for a function that only the worker has."""

    def __init__(self, name: str) -> None:
        self.__qualname__ = name

    async def __call__(self, event: Any, ctx: Any) -> None:
        raise AssertionError(f"{self.__qualname__} runs in its worker")


def _plain(wanted: Any) -> Any:
    if isinstance(wanted, re.Pattern):
        return {"pattern": wanted.pattern, "flags": wanted.flags}
    return wanted if isinstance(wanted, (str, bool)) else list(wanted)


def _restored(wanted: Any) -> Any:
    return re.compile(wanted["pattern"], wanted["flags"]) if isinstance(wanted, Mapping) else wanted
