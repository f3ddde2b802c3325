"""The Context that handlers get: it stages what a turn does, and gives each send its key for good.

Always true: nothing staged here has any effect until the dispatcher commits it. A send's client_msg_id depends on its
cause and its place among the turn's sends alone, so a repeated turn repeats it. What was staged cannot be changed
afterwards, and can be written to disk.
Not here: running handlers (turns.py), the commit (the dispatcher).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import msgspec

from agentd.apis import Api
from agentd.core.events import Content, Event, Message, Send, Sent, Signal, Timer
from agentd.core.loop_guard import HOPS_KEY, hops_of
from agentd.host.api import Port, api_of
from agentd.host.state import PLUGIN_WIDE, PluginState, Puts, Scope
from agentd.plugin import C, Log, State
from agentd.tracing import Joins

T = TypeVar("T")

_WORD_MAX_CHARS = 64  # an outcome is a word that people count by
_OUTCOMES_MAX = 16


class Reminder(NamedTuple):
    """A wake-up that a turn asked for: seconds from its commit, or Unix seconds. data: JSON."""

    id: str
    after_s: float | None
    at: float | None
    data: bytes


class Home(Protocol):
    """What a turn knows of the plugin it runs in."""

    name: str
    config: Any
    serves: frozenset[str]
    timers: int
    timers_max: int
    minds_timers: bool
    send_now: Callable[[Send], Awaitable[Sent]]
    backlog_of: Callable[[str, str], int | None]
    api_of: Callable[[str], Port | None]
    state: PluginState
    loop: asyncio.AbstractEventLoop

    def secret(self, name: str) -> str:
        """See agentd.plugin.PluginContext."""
        ...


class Owner(Protocol):
    """Who keeps what a turn says of itself before it ends."""

    def got_on(self, ctx: TurnContext[Any], noted: bytes) -> None:
        """It told `progress` this, as JSON; on the loop."""
        ...

    async def says_now(self, ctx: TurnContext[Any]) -> None:
        """It is about to say something at once."""
        ...


class Running(Protocol):
    """The call that a turn is in."""

    def put_off(self) -> None:
        """The context's deadline has moved."""
        ...


class TurnContext(Generic[C]):
    """One turn. The surface is `agentd.plugin.Context`.

    event: what it is about; of a batch the newest, which is what `reply` answers. cause: the event that its keys are
    derived from; of a batch the oldest. again: sets the keys of a repeat that was asked for apart, else "".
    sends, puts, reminders, outcomes: what it staged, or None if nothing. said: how many messages, at once or staged.
    called: how many calls of `api` it made that change something.
    conversation: the journal's number, or None for a signal. deadline_at: monotonic seconds, set before each call.
    progressed: JSON of what was last told to `progress`. running: what must know when the deadline moves. owner: who
    keeps progress, or None where nobody does; about: what the owner tells the turn by. joins: the trace that spans of
    its handlers belong to, or None.
    """

    __slots__ = (
        "_again",
        "_began_at",
        "_cause",
        "_cause_key",
        "_ceiling_at",
        "_ended",
        "_timeout_s",
        "about",
        "attempt",
        "called",
        "conversation",
        "deadline_at",
        "event",
        "home",
        "joins",
        "outcomes",
        "owner",
        "progressed",
        "puts",
        "reminders",
        "running",
        "said",
        "sends",
    )

    def __init__(
        self,
        home: Home,
        event: Event | Signal,
        conversation: int | None,
        attempt: int,
        *,
        cause: Event | Signal | None = None,
        again: str = "",
        progressed: bytes | None = None,
        owner: Owner | None = None,
        about: object = None,
    ) -> None:
        self.home = home
        self.event = event
        self.conversation = conversation
        self.attempt = attempt
        self.deadline_at = self._began_at = self._ceiling_at = self._timeout_s = 0.0
        self.sends: list[Send] | None = None
        self.puts: Puts | None = None
        self.reminders: list[Reminder] | None = None
        self.outcomes: list[tuple[str, bytes | None]] | None = None
        self.said = 0
        self.called = 0
        self.progressed = progressed
        self.running: Running | None = None
        self.owner = owner
        self.about = about
        self.joins: Joins | None = None
        self._cause = cause or event
        self._again = again
        self._cause_key: str | None = None
        self._ended = False

    @property
    def cause(self) -> Event | Signal:
        """See above."""
        return self._cause

    @property
    def again(self) -> str:
        """See above."""
        return self._again

    @property
    def staged(self) -> bool:
        """There is something to commit besides "handled"."""
        return bool(self.puts or self.sends or self.reminders or self.outcomes)

    @property
    def peer(self) -> str:
        """The agent whose message this turn answers, or "": what the guard against loops counts by.

        Not of a repeat that somebody asked for, which is no loop however many there are.
        """
        event = self.event
        if isinstance(event, Message) and not event.own and not self._again and event.context.sender_kind == "agent":
            return event.sender
        return ""

    def allow(self, now: float, timeout_s: float, ceiling_s: float) -> None:
        """A call begins that may take so long, and with `progress` up to the ceiling. now: monotonic seconds."""
        self._began_at = now
        self._timeout_s = timeout_s
        self._ceiling_at = now + ceiling_s
        self.deadline_at = now + timeout_s

    @property
    def allowed_s(self) -> float:
        """How long the running call may take as things stand."""
        return self.deadline_at - self._began_at

    def end(self) -> None:
        """From now on nothing can be staged: whoever still holds this context outlived its turn."""
        self._ended = True
        self.running = None  # which knows this context: no cycle is left for the collector

    @property
    def name(self) -> str:
        """See agentd.plugin.PluginContext."""
        return self.home.name

    @property
    def config(self) -> C:
        """See agentd.plugin.PluginContext."""
        config: C = self.home.config
        return config

    def secret(self, name: str) -> str:
        """See agentd.plugin.PluginContext."""
        return self.home.secret(name)

    @property
    def identity(self) -> str:
        """See agentd.plugin.Context."""
        return self.event.identity

    @property
    def log(self) -> Log:
        """See agentd.plugin.PluginContext."""
        return plugin_log(
            self.name,
            identity=self.event.identity,
            conversation=self.event.conversation,
            event_id=self.event.id if isinstance(self.event, (Event, Timer)) else None,
        )

    @property
    def deadline(self) -> float:
        """See agentd.plugin.Context."""
        return time.time() + self.deadline_at - time.monotonic()

    @property
    def state(self) -> State:
        """See agentd.plugin.Context."""
        if self.conversation is None:
            raise RuntimeError("a signal has no place in a conversation's order; use ctx.plugin_state")
        return Scope(self.home.state, self.conversation, self._staged_puts)

    @property
    def plugin_state(self) -> State:
        """See agentd.plugin.Context."""
        return Scope(self.home.state, PLUGIN_WIDE, self._staged_puts)

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
        """See agentd.plugin.Context."""
        message = self.event
        if not isinstance(message, Message):
            raise TypeError(f"a {type(message).__name__} cannot be replied to; use ctx.send(target, ...)")
        if not message.answer_to:
            raise ValueError("this identity said it itself; use ctx.send with the handle of the other side")
        parented = {"reply_to": message.id, **(metadata or {})}
        content = self._content(text, data, attachment_id, kind, parented)
        return self._stage_send(_address(message.answer_to), content, message.identity, _expiry(expires_s))

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
        """See agentd.plugin.Context."""
        content = self._content(text, data, attachment_id, kind, metadata)
        return self._stage_send(_address(target), content, self._speaker(identity), _expiry(expires_s))

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
        """See agentd.plugin.Context."""
        content = self._content(text, data, attachment_id, kind, metadata)
        send = self._next_send(_address(target), content, self._speaker(identity), _expiry(expires_s))
        await self.says_now()
        return await self.home.send_now(send)

    @property
    def api(self) -> Api:
        """See agentd.plugin.Context."""
        port = self.home.api_of(self.event.identity)
        if port is None:
            raise RuntimeError(f"the platform of {self.event.identity} offers plugins no calls")
        return api_of(port, self)

    def next_call_key(self) -> str:
        """See host.api.Turn."""
        self.must_be_open()
        ordinal = self.called
        self.called += 1
        return f"{self._key()}-a{ordinal}"

    async def says_now(self) -> None:
        """See host.api.Turn."""
        if self.owner is not None:
            await self.owner.says_now(self)

    @property
    def peer_backlog(self) -> int | None:
        """See agentd.plugin.Context."""
        if not isinstance(self.event, Message):
            return None
        return self.home.backlog_of(self.event.identity, self.event.answer_to)

    def remind(self, after_s: float | None = None, *, at: datetime | None = None, data: object = None) -> str:
        """See agentd.plugin.Context."""
        self.must_be_open()
        if (after_s is None) == (at is None):
            raise ValueError("give after_s or at")
        if after_s is not None and not (math.isfinite(after_s) and after_s >= 0):
            raise ValueError(f"after_s={after_s!r}: give seconds, 0 or more")
        if at is not None and at.tzinfo is None:
            raise ValueError("at has no time zone; write for example datetime.now(UTC) + timedelta(hours=1)")
        if not self.home.minds_timers:
            raise RuntimeError(f"{self.name} would not notice; add a handler with @plugin.on(Timer)")
        if self.reminders is None:
            self.reminders = []
        if self.home.timers + len(self.reminders) >= self.home.timers_max:
            raise RuntimeError(f"{self.name} has {self.home.timers_max} timers, which is timers_max of its settings")
        id_ = f"{self._key()}-t{len(self.reminders)}"
        when = None if at is None else at.timestamp()
        self.reminders.append(Reminder(id_, after_s, when, msgspec.json.encode(data)))
        return id_

    def progress(self, data: object = None) -> None:
        """See agentd.plugin.Context."""
        self.must_be_open()
        encoded = msgspec.json.encode(data)
        if len(encoded) > self.home.state.value_max_bytes:
            raise ValueError(
                f"progress of {len(encoded):,} bytes is more than the {self.home.state.value_max_bytes:,} of "
                "state_value_max_bytes; note where to go on, and keep the rest elsewhere"
            )
        if _on_a_loop():
            self._get_on(encoded)
        else:
            self.home.loop.call_soon_threadsafe(self._get_on, encoded)

    def _get_on(self, encoded: bytes) -> None:
        if self._ended:
            return
        self.progressed = encoded
        self.deadline_at = max(self.deadline_at, min(time.monotonic() + self._timeout_s, self._ceiling_at))
        if self.running is not None:
            self.running.put_off()
        if self.owner is not None:
            self.owner.got_on(self, encoded)

    @property
    def last_progress(self) -> Any:
        """See agentd.plugin.Context."""
        return None if self.progressed is None else msgspec.json.decode(self.progressed)

    def outcome(self, word: str, data: object = None) -> None:
        """See agentd.plugin.Context."""
        self.must_be_open()
        if not isinstance(word, str) or not word or len(word) > _WORD_MAX_CHARS or not word.isprintable():
            raise ValueError(f"outcome {word!r}: give a word of 1 to {_WORD_MAX_CHARS} characters")
        if self.outcomes is None:
            self.outcomes = []
        if len(self.outcomes) >= _OUTCOMES_MAX:
            raise RuntimeError(f"a turn has {_OUTCOMES_MAX} outcomes at most; put them into the data of one")
        self.outcomes.append((word, None if data is None else msgspec.json.encode(data)))

    def wait(self, awaitable: Awaitable[T]) -> T:
        """See agentd.plugin.Context."""
        if _on_a_loop():
            raise RuntimeError("ctx.wait is for `def` handlers; in `async def` write await")
        return asyncio.run_coroutine_threadsafe(_result_of(awaitable), self.home.loop).result()

    def _speaker(self, identity: str | None) -> str:
        if identity is None or identity == self.event.identity:
            return self.event.identity
        if identity not in self.home.serves:
            raise ValueError(f"{self.name} does not serve {identity!r}; add it to plugins in [identity.{identity}]")
        return identity

    def _stage_send(self, target: str, content: Content, identity: str, expires_at: float | None) -> str:
        send = self._next_send(target, content, identity, expires_at)
        if self.sends is None:
            self.sends = []
        self.sends.append(send)
        return send.client_msg_id

    def _next_send(self, target: str, content: Content, identity: str, expires_at: float | None) -> Send:
        self.must_be_open()
        ordinal = self.said
        self.said += 1
        peer = self.peer
        return Send(
            identity=identity,
            target=target,
            content=content,
            client_msg_id=f"{self._key()}-{ordinal}",
            cause=f"{self.home.name} {_event_id(self.event)} {ordinal}",
            expires_at=expires_at,
            caused_in=(self.event.conversation or "") if peer else "",
            caused_by=peer,
        )

    def _content(
        self,
        text: str | None,
        data: Mapping[str, Any] | None,
        attachment_id: str | None,
        kind: str | None,
        metadata: Mapping[str, Any] | None,
    ) -> Content:
        if isinstance(self.event, Message) and not self.event.own:
            metadata = {**(metadata or {}), HOPS_KEY: hops_of(self.event.metadata) + 1}
        return _content(text, data, attachment_id, kind, metadata)

    def _key(self) -> str:
        if self._cause_key is None:
            self._cause_key = cause_key(self.home.name, self._cause, self._again)
        return self._cause_key

    def _staged_puts(self) -> Puts:
        self.must_be_open()
        if self.puts is None:
            self.puts = Puts()
        return self.puts

    def must_be_open(self) -> None:
        """Raises RuntimeError once the turn has ended."""
        if self._ended:
            raise RuntimeError("this turn has ended; whatever a handler does, it does before it returns")


def cause_key(plugin: str, event: Event | Signal, again: str = "") -> str:
    """What the keys of one turn's sends begin with: at most 100 characters of [a-z0-9-].

    The same for the same event and plugin name, on any machine and in any version; again: another one on purpose, for
    a replay. A signal is never seen again, so its key is drawn at random; only a timer is durable, and has an id.
    """
    if isinstance(event, Timer):
        fired = msgspec.json.encode([event.id, plugin])
        return f"agentd-{hashlib.blake2b(fired, digest_size=16).hexdigest()}"
    if isinstance(event, Signal):
        return f"agentd-{uuid.uuid4().hex}"
    # JSON keeps the parts apart: no two lists of names give the same text.
    parts = [event.identity, event.epoch, event.conversation, event.id, plugin]
    cause = msgspec.json.encode([*parts, again] if again else parts)
    return f"agentd-{hashlib.blake2b(cause, digest_size=16).hexdigest()}"


def plugin_log(plugin: str, **fields: str | None) -> logging.LoggerAdapter[logging.Logger]:
    """The log of a plugin; its lines carry these fields."""
    known = {name: value for name, value in fields.items() if value is not None}
    return logging.LoggerAdapter(logging.getLogger(f"agentd.plugins.{plugin}"), {"plugin": plugin, **known})


def _event_id(event: Event | Signal) -> str:
    return event.id if isinstance(event, (Event, Timer)) else type(event).__name__


def _address(target: str) -> str:
    if not isinstance(target, str) or not target.isprintable() or not target.removeprefix("@") or " " in target:
        raise ValueError(f'{target!r} is no target; give a handle such as "@bob" or a conversation id')
    return target


def _expiry(expires_s: float | None) -> float | None:
    """Unix seconds."""
    if expires_s is None:
        return None
    if not expires_s > 0:
        raise ValueError(f"expires_s is {expires_s!r}; give the seconds for which the message is worth sending")
    return time.time() + expires_s


def _content(
    text: str | None,
    data: Mapping[str, Any] | None,
    attachment_id: str | None,
    kind: str | None,
    metadata: Mapping[str, Any] | None,
) -> Content:
    if text is None and data is None and attachment_id is None:
        raise ValueError("nothing to say; give text, data or attachment_id")
    content = Content(
        text=text,
        data=None if data is None else dict(data),
        attachment_id=attachment_id,
        kind=kind,
        metadata=dict(metadata or {}),
    )
    # There and back: what JSON cannot hold fails in the author's line, and nobody else holds the copy.
    return msgspec.json.decode(msgspec.json.encode(content), type=Content)


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _result_of(awaitable: Awaitable[T]) -> T:
    return await awaitable
