"""All that a plugin may import.

A plugin is a `Plugin` with handlers; a handler gets an event and a `Context`. What a handler reads is awaited; what it
does is a plain call that is staged, and committed with "this event is handled" when the handler returns. A handler
that raises leaves nothing behind.

    return                  handled
    raise RetryLater(s)     the same event again, not before s seconds from now; with whole_plugin=True every event
                            waits for so long, and it costs no attempt
    raise GiveUp(reason)    a dead letter
    Unavailable             which calls of `ctx.api` raise, is as RetryLater(its retry_after_s); while the identity is
                            not connected, or its key is refused, it costs no attempt
    anything else raised    again after a growing delay; a dead letter when the attempts are spent

Always true: declaring costs nothing and starts nothing. What is declared wrongly is refused when the plugin is loaded,
with file and line.
Not here: checking, matching and calling handlers (host/), what becomes of their effects (the dispatcher).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, overload

import msgspec

from agentd.apis import Api
from agentd.core.events import (
    Digest,
    Event,
    Gap,
    GroupDeleted,
    GroupInvite,
    Message,
    Presence,
    RateLimitWarning,
    ReadReceipt,
    Sent,
    Signal,
    StreamReset,
    Timer,
    Typing,
    portable,
)
from agentd.errors import GiveUp, NotSent, PluginLoadError, Refused, RetryLater, Unavailable

if TYPE_CHECKING:
    # Only a type checker needs the default, which the standard library knows from Python 3.13 on.
    from typing_extensions import TypeVar as TypeVarWithDefault

    C = TypeVarWithDefault("C", default=Any)
    C_co = TypeVarWithDefault("C_co", covariant=True, default=Any)
else:
    C = TypeVar("C")
    C_co = TypeVar("C_co", covariant=True)

__all__ = [
    "Context",
    "Digest",
    "Event",
    "Gap",
    "GiveUp",
    "GroupDeleted",
    "GroupInvite",
    "Log",
    "Message",
    "NotSent",
    "Plugin",
    "PluginContext",
    "PluginLoadError",
    "Presence",
    "RateLimitWarning",
    "ReadReceipt",
    "Refused",
    "RetryLater",
    "Sent",
    "Signal",
    "State",
    "StreamReset",
    "Timer",
    "Typing",
    "Unavailable",
    "portable",
]

E = TypeVar("E", bound="Event | Signal")
T = TypeVar("T")
D = TypeVar("D")
R = TypeVar("R")
H = TypeVar("H", bound="Callable[[PluginContext[Any]], object]")
M = TypeVar("M", bound="Callable[[Any, Context[Any]], AsyncIterator[None]]")

Names = str | Collection[str]
"""One name, a glob ("build-*"), or several of either."""


class Log(Protocol):
    """The plugin's log. Lines carry plugin, identity, conversation and event by themselves; `%s` as in `logging`."""

    def debug(self, message: object, /, *args: object) -> None:
        """For whoever is hunting something."""
        ...

    def info(self, message: object, /, *args: object) -> None:
        """Ordinary news."""
        ...

    def warning(self, message: object, /, *args: object) -> None:
        """Something is off; it goes on."""
        ...

    def error(self, message: object, /, *args: object) -> None:
        """Something failed."""
        ...

    def exception(self, message: object, /, *args: object) -> None:
        """Something failed, with the traceback of the exception being handled."""
        ...


class State(Protocol):
    """Durable values by key. Values are what JSON can hold, msgspec Structs and dataclasses included."""

    @overload
    async def get(self, key: str, shape: type[T]) -> T | None: ...
    @overload
    async def get(self, key: str, shape: type[T], default: D) -> T | D: ...
    async def get(self, key: str, shape: type[Any], default: Any = None) -> Any:
        """The value under a key, this turn's own puts included, or `default`.

        shape: its type. Raises msgspec.ValidationError if the stored value is of another one.
        """
        ...

    def put(self, key: str, value: object) -> None:
        """Stage a copy of a value. Raises TypeError if JSON cannot hold it, ValueError if it is too large."""
        ...

    def delete(self, key: str) -> None:
        """Stage the removal of a key, whether or not it is there."""
        ...


class PluginContext(Protocol[C_co]):
    """What setup and teardown get."""

    @property
    def name(self) -> str:
        """The plugin's name in the configuration."""
        ...

    @property
    def config(self) -> C_co:
        """The plugin's settings as the Struct that it named, or None."""
        ...

    @property
    def log(self) -> Log:
        """The plugin's log."""
        ...

    def secret(self, name: str) -> str:
        """What lies where `[plugin.NAME.secrets]` says, such as the key of a service; no log and no status shows it.

        Raises LookupError if the configuration has none of this name.
        """
        ...


class Context(PluginContext[C_co], Protocol[C_co]):
    """One turn: one event, given to the handlers that asked for it. It ends when they have returned.

    Everything staged here is committed in one transaction with "handled", or not at all. Staging after the turn has
    ended raises RuntimeError.
    """

    @property
    def identity(self) -> str:
        """Name of the identity that got the event."""
        ...

    @property
    def attempt(self) -> int:
        """1 on the first try of this event, and so on."""
        ...

    @property
    def deadline(self) -> float:
        """Unix seconds at which the running handler will be cancelled."""
        ...

    @property
    def state(self) -> State:
        """This plugin's values in this conversation. One turn at a time: reading, changing and putting back is safe.

        Signals have no place in a conversation's order, so their handlers have `plugin_state` only.
        """
        ...

    @property
    def plugin_state(self) -> State:
        """This plugin's values over all conversations. Turns of several conversations overlap; the last put wins."""
        ...

    def reply(
        self,
        text: str | None = None,
        *,
        data: Mapping[str, Any] | None = None,
        attachment_id: str | None = None,
        kind: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expires_s: float | None = None,
    ) -> str:
        """Stage an answer to the message: to its sender, or to the group it was said in.

        `metadata.reply_to` becomes the message's id unless given. expires_s: as for `send`. Returns the client_msg_id.
        Raises TypeError or ValueError for what cannot be said, and where there is nobody to answer.
        """
        ...

    def send(
        self,
        target: str,
        text: str | None = None,
        *,
        data: Mapping[str, Any] | None = None,
        attachment_id: str | None = None,
        kind: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        identity: str | None = None,
        expires_s: float | None = None,
    ) -> str:
        """Stage a message to a handle ("@bob") or a conversation id. Returns the client_msg_id.

        identity: who says it, if not the one that got the event; it must have this plugin among its plugins, else
        ValueError. expires_s: seconds from now after which it is not worth sending any more: if it still waits then,
        it never leaves, and `agentd outbox ls` shows it.
        """
        ...

    async def send_now(
        self,
        target: str,
        text: str | None = None,
        *,
        data: Mapping[str, Any] | None = None,
        attachment_id: str | None = None,
        kind: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        identity: str | None = None,
        expires_s: float | None = None,
    ) -> Sent:
        """Send a message in the middle of the turn, and wait until the platform has taken it.

        The exception to "nothing leaves before the turn commits": it stays said if the turn fails afterwards, and it
        overtakes what the turn has staged. A repeat of the turn sends nothing again: it gets what the first one got,
        as long as it sends in the same order. Arguments as for `send`. Raises NotSent if it will never arrive.
        """
        ...

    @property
    def api(self) -> Api:
        """Every call of the identity's platform that is of use here, awaited: `await ctx.api.contacts.list()`.

        Like `send_now` an exception: a call happens at once, stays done if the turn fails afterwards, and is made again
        when the turn is repeated. agentd.apis lists the calls, and says what a repeat does. `ctx.api.platform` names
        the platform, for plugins that serve several. Raises RuntimeError where it offers none.
        """
        ...

    @property
    def peer_backlog(self) -> int | None:
        """How many messages whoever `reply` answers had not taken yet when the platform last warned of it, or None."""
        ...

    def remind(self, after_s: float | None = None, *, at: datetime | None = None, data: object = None) -> str:
        """Stage a wake-up: `on(Timer)` runs then, in this turn's conversation, with what JSON makes of `data`.

        after_s: seconds from the commit of this turn; or at: a time with a time zone. It survives restarts; what was
        due meanwhile comes at once. Returns its id. Raises ValueError for no time or two, RuntimeError if the plugin
        has no handler for it, or `timers_max` of them.
        """
        ...

    def progress(self, data: object = None) -> None:
        """Say that the turn is getting on: its deadline is put off by as long as the handler may take.

        `timeout_max_s` of the plugin's settings is where that ends. data: what the next attempt should know if this one
        fails or the process dies, as JSON; it is on disk at once, and the newest counts.
        """
        ...

    @property
    def last_progress(self) -> Any:
        """What an earlier attempt at this event told `progress` last, or None."""
        ...

    def outcome(self, word: str, data: object = None) -> None:
        """Stage a note on what this turn came to, for people and audits: "answered", "escalated", and so on.

        data: what JSON can hold. `agentd explain` shows it with the event.
        """
        ...

    def wait(self, awaitable: Awaitable[T]) -> T:
        """For `def` handlers, which run in threads: the result of what others await, as `ctx.wait(ctx.state.get(...))`.

        Raises RuntimeError on the event loop, where waiting would stop everything.
        """
        ...


_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def _seconds(interval: str | float) -> float:
    """An interval as a number; what is none becomes 0, which is refused with file and line at the plugin's load."""
    if not isinstance(interval, str):
        return interval
    number, unit = interval[:-1], interval[-1:]
    return float(number) * _UNITS_S[unit] if unit in _UNITS_S and number.replace(".", "", 1).isdecimal() else 0.0


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """One use of `@plugin.on`, as written. `filters`: by the name of the argument, only those given.

    batch, settle_s: for handlers that take many events at once, else None.
    """

    event: type[Any]
    function: Callable[..., Any]
    filters: Mapping[str, Any]
    own: bool
    timeout_s: float | None
    attempts: int | None
    on_dead: str | None
    every_s: float | None = None
    batch: int | None = None
    settle_s: float | None = None


class Plugin(Generic[C]):
    """A named set of handlers. `config`: a msgspec Struct for its settings. `version`: kept with what failed.

    watches: it does not answer but looks on, like a log: it goes on while a person speaks as the identity, and sees
    stale mail too.
    """

    @overload
    def __init__(self: Plugin[None], name: str, *, version: str = "", watches: bool = False) -> None: ...
    @overload
    def __init__(self, name: str, *, config: type[C], version: str = "", watches: bool = False) -> None: ...
    def __init__(self, name: str, *, config: type[Any] | None = None, version: str = "", watches: bool = False) -> None:
        self.name = name
        self.version = version
        self.watches = watches
        self.config = config
        self.declared: list[Declared] = []
        self.middlewares: list[Callable[[Any, Context[Any]], AsyncIterator[None]]] = []
        self.setups: list[Callable[[PluginContext[Any]], object]] = []
        self.teardowns: list[Callable[[PluginContext[Any]], object]] = []

    @overload
    def on(
        self,
        event: type[E],
        *,
        identity: Names | None = None,
        conversation: Names | None = None,
        sender: Names | None = None,
        text: str | re.Pattern[str] | None = None,
        mentioned: bool | None = None,
        direct: bool | None = None,
        kind: Names | None = None,
        where: Callable[[E], object] | None = None,
        own: bool = False,
        timeout_s: float | None = None,
        attempts: int | None = None,
        on_dead: Literal["skip", "hold", "detach"] | None = None,
    ) -> Callable[[Callable[[E, Context[C]], R]], Callable[[E, Context[C]], R]]: ...
    @overload
    def on(
        self,
        event: type[E],
        *,
        batch: int,
        settle_s: float = 0.1,
        identity: Names | None = None,
        conversation: Names | None = None,
        sender: Names | None = None,
        text: str | re.Pattern[str] | None = None,
        mentioned: bool | None = None,
        direct: bool | None = None,
        kind: Names | None = None,
        where: Callable[[E], object] | None = None,
        own: bool = False,
        timeout_s: float | None = None,
        attempts: int | None = None,
        on_dead: Literal["skip", "hold", "detach"] | None = None,
    ) -> Callable[[Callable[[tuple[E, ...], Context[C]], R]], Callable[[tuple[E, ...], Context[C]], R]]: ...
    def on(
        self,
        event: type[E],
        *,
        batch: int | None = None,
        settle_s: float = 0.1,
        identity: Names | None = None,
        conversation: Names | None = None,
        sender: Names | None = None,
        text: str | re.Pattern[str] | None = None,
        mentioned: bool | None = None,
        direct: bool | None = None,
        kind: Names | None = None,
        where: Callable[[E], object] | None = None,
        own: bool = False,
        timeout_s: float | None = None,
        attempts: int | None = None,
        on_dead: Literal["skip", "hold", "detach"] | None = None,
    ) -> Callable[[Callable[..., R]], Callable[..., R]]:
        """Run the function for every such event that passes all filters; several of them in the order of definition.

        identity, conversation, sender, kind: a name, a glob, or several. text: a regular expression found anywhere in
        the text. where: called with the event, must be quick. own: this identity's own words too. timeout_s, attempts,
        on_dead: instead of the plugin's settings. The function: `async def`, or `def`, which runs in a thread.

        batch: the function gets a tuple of events of one conversation, oldest first: what waits there, at most so many,
        after no other has come for `settle_s` seconds. A repeat gets the same ones; what comes meanwhile waits for the
        next turn. `ctx.reply` answers the newest. An event that other handlers want too comes alone.
        """
        given = {
            "identity": identity,
            "conversation": conversation,
            "sender": sender,
            "text": text,
            "mentioned": mentioned,
            "direct": direct,
            "kind": kind,
            "where": where,
        }

        def declare(function: Callable[..., R]) -> Callable[..., R]:
            self.declared.append(
                Declared(
                    event=event,
                    function=function,
                    filters={name: value for name, value in given.items() if value is not None},
                    own=own,
                    timeout_s=timeout_s,
                    attempts=attempts,
                    on_dead=on_dead,
                    batch=batch,
                    settle_s=None if batch is None else settle_s,
                )
            )
            return function

        return declare

    def every(
        self, interval: str | float, *, timeout_s: float | None = None, attempts: int | None = None
    ) -> Callable[[Callable[[Timer, Context[C]], R]], Callable[[Timer, Context[C]], R]]:
        """Run the function again and again, once per identity: every "30s", "5m", "2h", "1d", or number of seconds.

        The beat outlives restarts. What was missed meanwhile is made up for by one run. There is no conversation.
        """

        def declare(function: Callable[[Timer, Context[C]], R]) -> Callable[[Timer, Context[C]], R]:
            self.declared.append(
                Declared(
                    event=Timer,
                    function=function,
                    filters={},
                    own=False,
                    timeout_s=timeout_s,
                    attempts=attempts,
                    on_dead=None,
                    every_s=_seconds(interval),
                )
            )
            return function

        return declare

    def middleware(self, function: M) -> M:
        """Wrap every turn: an async generator of (event, ctx) that yields once, where the handlers run.

        Their exception is raised at the yield; swallowing it makes the event handled. The first declared is outermost.
        """
        self.middlewares.append(function)
        return function

    def setup(self, function: H) -> H:
        """Run once before the first event. What it raises keeps the plugin from starting."""
        self.setups.append(function)
        return function

    def teardown(self, function: H) -> H:
        """Run once after the last event."""
        self.teardowns.append(function)
        return function
