"""Runs a plugin's handlers with no network and no disk, and shows what they did.

    async with Harness(plugin, config={"greeting": "Hi"}) as h:
        await h.message("hello", sender="@bob")
        assert h.texts == ["Hi @bob"]

The dispatcher, the filters, the turns and the context are the daemon's own; only the journal lies in memory, and time
stands still until `advance` moves it.

Always true: what a turn staged shows only after its commit. A crash loses what was not committed, and nothing else.
Not here: platforms, sending. What is in `sent` would be in the outbox.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from agentd.config import CatchUp, Conduct, Dispatch, LoopGuard, PluginSettings, Secret
from agentd.core.events import FIRST_SEQ, Context, Event, Message, Record, Send, Sent, Signal
from agentd.core.exported import Exported
from agentd.core.exported import read as read_exported
from agentd.dispatcher import Dispatcher, Marks
from agentd.errors import ConfigError, ExportUnreadable, PluginLoadError
from agentd.host.api import SURFACES
from agentd.host.lifecycle import Loaded
from agentd.host.state import PLUGIN_WIDE
from agentd.journal.running import Running, Unfinished
from agentd.journal.storage import (
    Attempt,
    Change,
    Conversation,
    CursorMoved,
    Dead,
    DeadDropped,
    Outcome,
    Paused,
    Queued,
    Resumed,
    Rewound,
    StatePut,
    StoredRecord,
    TimerGone,
    TimerSet,
    Totals,
)
from agentd.plugin import Plugin

__all__ = ["ApiCall", "ConfigError", "ExportUnreadable", "Harness", "PluginLoadError", "ScriptedApi"]

T = TypeVar("T")
D = TypeVar("D")

_CALLS_MAX = Dispatch().concurrency
_NEVER_SHED = 1_000_000
_NEVER_SHED_BYTES = 1 << 34
_UNIX_START = 1_767_225_600.0  # a fixed date: what a test shows today it shows tomorrow


class HandClock:
    """Time that moves when it is told to. See dispatcher.Clock."""

    def __init__(self) -> None:
        self._now = 0.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._cancelled: set[int] = set()
        self._numbers = itertools.count()

    def monotonic(self) -> float:
        """Seconds moved so far."""
        return self._now

    def unix(self) -> float:
        """A date that moves along."""
        return _UNIX_START + self._now

    def call_at(self, when: float, callback: Callable[[], None]) -> Callable[[], None]:
        """See Clock."""
        number = next(self._numbers)
        heapq.heappush(self._timers, (when, number, callback))
        return lambda: self._cancelled.add(number)

    def pass_by(self, seconds: float) -> None:
        """Let time pass while nobody is there: nothing that waits for it is called."""
        self._now += seconds

    def next_timer(self, until: float) -> Callable[[], None] | None:
        """Move to the first timer that is due by `until` and take it out, or to `until` if there is none."""
        while self._timers and self._timers[0][0] <= until:
            when, number, callback = heapq.heappop(self._timers)
            if number not in self._cancelled:
                self._now = max(self._now, when)
                return callback
            self._cancelled.discard(number)
        self._now = until
        return None


class MemoryJournal:
    """The dispatcher.Log, in memory. losing: the process dies: commits are lost."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.sent: dict[str, Send] = {}
        self.lost: list[Send] = []
        self.dead: list[Dead] = []
        self.dropped: set[int] = set()
        self.failed: dict[tuple[str, int], Attempt] = {}
        self.values: dict[tuple[str, int, str], bytes] = {}
        self.timer_rows: dict[str, TimerSet] = {}
        self.losing = False
        self.dies_at_next_fate = False
        self.outcomes: list[Outcome] = []
        self.paused: dict[int, Paused] = {}
        self._cursors: dict[tuple[str, int], int] = {}
        self._replays: dict[tuple[str, int], tuple[int, int]] = {}
        self._queued_at: dict[str, float] = {}
        self._numbers: dict[tuple[str, str], int] = {}

    def append(self, event: Event, received_at: float) -> Record:
        """Put an event on disk as intake would."""
        place = (event.identity, event.conversation)
        number = self._numbers.setdefault(place, len(self._numbers) + 1)
        record = Record(len(self.records) + 1, number, event, received_at)
        self.records.append(record)
        return record

    def number_of(self, identity: str, conversation: str) -> int | None:
        """The number of a conversation, or None if nothing was said in it."""
        return self._numbers.get((identity, conversation))

    def next_seq(self, identity: str, conversation: str) -> int:
        """The seq that the next event of a conversation takes."""
        number = self.number_of(identity, conversation)
        seqs = [record.event.seq for record in self.records if record.conversation == number]
        return max(seqs, default=FIRST_SEQ - 1) + 1

    def revive(self, stored: StoredRecord) -> Event:
        """The event of a stored record."""
        return self.records[stored.position - 1].event

    def commit(self, *changes: Change) -> asyncio.Future[None]:
        """Put these down, or lose them. A lost commit's future is cancelled, as by the end of the process."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.dies_at_next_fate and any(isinstance(change, (CursorMoved, TimerGone)) for change in changes):
            self.losing, self.dies_at_next_fate = True, False
        if self.losing:
            self.lost += [change.send for change in changes if isinstance(change, Queued)]
            future.cancel()
        else:
            for change in changes:
                self._apply(change)
            future.set_result(None)
        return future

    def _apply(self, change: Change) -> None:
        match change:
            case CursorMoved(plugin=plugin, conversation=number, position=position):
                self._cursors[plugin, number] = position
                failed = self.failed.get((plugin, number))
                if failed is not None and failed.position <= position:
                    del self.failed[plugin, number]
            case Rewound(plugin=plugin, conversation=number, position=position):
                self._cursors[plugin, number] = position
                self._replays[plugin, number] = change.replay, change.until
                self.failed.pop((plugin, number), None)
            case Attempt():
                self.failed[change.plugin, change.conversation] = change
            case Dead():
                self.dead.append(change)
            case DeadDropped(number=number):
                self.dropped.add(number)
            case Outcome():
                self.outcomes.append(change)
            case Paused(number=number):
                self.paused[number] = change
            case Resumed(number=number):
                self.paused.pop(number, None)
            case Queued(send=send, queued_at=queued_at):
                self.sent.setdefault(send.client_msg_id, send)
                self._queued_at.setdefault(send.client_msg_id, queued_at)
            case TimerSet():
                self.timer_rows[change.id] = change
            case TimerGone():
                self.timer_rows.pop(change.id, None)
            case StatePut(value=None):
                self.values.pop((change.plugin, change.conversation, change.key), None)
            case StatePut(value=bytes() as value):
                self.values[change.plugin, change.conversation, change.key] = value
            case _:
                raise AssertionError(f"the dispatcher never commits {change!r}")

    async def conversations(self, identity: str) -> list[Conversation]:
        """See storage.Journal."""
        found = []
        for (owner, conversation), number in self._numbers.items():
            if owner == identity:
                last = max(record.position for record in self.records if record.conversation == number)
                found.append(Conversation(number, identity, conversation, 1, FIRST_SEQ, 0, "", 0, last))
        return found

    async def totals(self, identity: str) -> Totals:
        """See storage.Journal."""
        return Totals(sum(record.event.identity == identity for record in self.records), 0, {})

    async def cursors(self, plugin: str) -> dict[int, int]:
        """See storage.Journal."""
        return {number: position for (name, number), position in self._cursors.items() if name == plugin}

    async def replays(self, plugin: str) -> dict[int, tuple[int, int]]:
        """See storage.Journal."""
        return {number: replay for (name, number), replay in self._replays.items() if name == plugin}

    async def pauses(self) -> list[Paused]:
        """See storage.Journal."""
        return list(self.paused.values())

    async def answers_since(self, identity: str, since: float) -> list[tuple[str, str, float]]:
        """See storage.Journal."""
        answers = [send for send in self.sent.values() if send.identity == identity and send.caused_by]
        told = [(each.caused_in, each.caused_by, self._queued_at[each.client_msg_id]) for each in answers]
        return [each for each in told if each[2] > since]

    async def attempts(self, plugin: str) -> list[Attempt]:
        """See storage.Journal."""
        return [failed for (name, _), failed in self.failed.items() if name == plugin]

    async def count_behind(self, conversation: int, after: int) -> int:
        """See storage.Journal."""
        return len(self._behind(conversation, after))

    async def count_between(self, conversation: int, after: int, upto: int) -> int:
        """See storage.Journal."""
        return sum(record.position <= upto for record in self._behind(conversation, after))

    async def read_lane(self, conversation: int, after: int, limit: int) -> list[StoredRecord]:
        """See storage.Journal."""
        return [_stored(record) for record in self._behind(conversation, after)[:limit]]

    async def read_log(self, identity: str | None, after: int, limit: int) -> list[StoredRecord]:
        """See storage.Journal."""
        found = [each for each in self.records[after:] if identity in (None, each.event.identity)]
        return [_stored(record) for record in found[:limit]]

    async def last_position(self) -> int:
        """See storage.Journal."""
        return len(self.records)

    async def timers(self, plugin: str) -> list[TimerSet]:
        """See storage.Journal."""
        return [timer for timer in self.timer_rows.values() if timer.plugin == plugin]

    async def state_get(self, plugin: str, conversation: int, key: str) -> bytes | None:
        """See storage.Journal."""
        return self.values.get((plugin, conversation, key))

    def state_bytes(self, plugin: str) -> int:
        """See storage.Journal."""
        kept = [len(key.encode()) + len(value) for (name, _, key), value in self.values.items() if name == plugin]
        return sum(kept)

    def _behind(self, conversation: int, after: int) -> Sequence[Record]:
        return [record for record in self.records[after:] if record.conversation == conversation]


def _stored(record: Record) -> StoredRecord:
    event = record.event
    return StoredRecord(
        position=record.position,
        conversation=record.conversation,
        identity=event.identity,
        conversation_id=event.conversation,
        epoch=event.epoch,
        late=event.late,
        source=event.source,
        payload=event.payload,
        received_at=record.received_at,
    )


def _exported(given: str | Path | Iterable[str | bytes]) -> list[Exported]:
    lines = Path(given).read_bytes().splitlines() if isinstance(given, (str, Path)) else given
    return list(read_exported(lines))


class ApiCall(NamedTuple):
    """A call of `ctx.api`: its name, such as "contacts.add", and its arguments as they were given.

    key: what lets the platform tell a repeat, of a call that changes something; the same at every attempt of a turn.
    """

    name: str
    arguments: dict[str, Any]
    key: str | None


class ScriptedApi:
    """What stands behind `ctx.api` in a test: it answers what the test has said, and keeps what was asked.

    calls: all that were made, in order. A call that nobody has said an answer for fails the test.
    """

    def __init__(self, platform: str) -> None:
        self.platform = platform
        self.calls: list[ApiCall] = []
        self._answers: dict[str, Any] = {}
        self._unanswered: list[ApiCall] = []

    def answers(self, name: str, answer: Any = None) -> None:
        """From now on the call gets this answer. An exception is raised instead; a function is asked each time.

        name: "contacts.list" for ctx.api.contacts.list, and so on. answer: of the type that `agentd.apis` tells, or the
        same as plain values; of a call that is iterated over, all rows. A function gets the arguments by name, and
        gives an answer or raises. Raises ValueError for a call that is not there, msgspec.ValidationError for another
        type.
        """
        method = SURFACES[self.platform].method(name)
        if not callable(answer) and not isinstance(answer, BaseException):
            answer = _as_answered(answer, method.returns)
        self._answers[name] = answer

    async def ask(self, name: str, arguments: Mapping[str, Any], key: str | None) -> Any:
        """See host.api.Port."""
        method, given = SURFACES[self.platform].method(name), dict(arguments)
        page = slice(given.pop("offset"), None) if method.paged else slice(None)
        limit = given.pop("limit") if method.paged else None
        call = ApiCall(name, given, key)
        if not page.start:
            self.calls.append(call)
        if name not in self._answers:
            self._unanswered.append(call)
            raise AssertionError(_unanswered(call))
        answer = self._answers[name]
        if isinstance(answer, BaseException):
            raise answer
        if callable(answer):
            answer = _as_answered(answer(**given), method.returns)
        return answer[page][:limit] if method.paged else answer

    def check(self) -> None:
        """Raises AssertionError for the first call that was made without an answer, once."""
        if self._unanswered:
            call, self._unanswered = self._unanswered[0], []
            raise AssertionError(_unanswered(call))


def _unanswered(call: ApiCall) -> str:
    given = ", ".join(f"{name}={value!r:.80}" for name, value in call.arguments.items())
    return f'the plugin called ctx.api.{call.name}({given}), which has no answer; say h.api.answers("{call.name}", ...)'


def _as_answered(answer: Any, shape: Any) -> Any:
    """There and back, as from the platform."""
    return msgspec.json.decode(msgspec.json.encode(answer), type=shape)


class Harness:
    """One plugin serving one identity, and `others` beside it. Use as an async context manager.

    api: what `ctx.api` finds, of this `platform`. config: what stands in `[plugin.NAME.config]`. secrets: by name, what
    `ctx.secret` gives. The rest: as in `[plugin.NAME]` and, for catch_up and loop_guard, in `[identity.NAME]`.
    Raises ConfigError or PluginLoadError as the daemon would.
    """

    _dispatch = Dispatch()
    _marks = Marks(_NEVER_SHED, _NEVER_SHED // 2, _NEVER_SHED_BYTES, _NEVER_SHED_BYTES // 2)

    def __init__(
        self,
        plugin: Plugin[Any],
        config: Mapping[str, Any] | None = None,
        *,
        identity: str = "me",
        others: Sequence[str] = (),
        timeout_s: float = 60.0,
        attempts: int = 5,
        on_dead: Literal["skip", "hold", "detach"] = "skip",
        timers_max: int = 10_000,
        state_max_mb: int = 1_024,
        timeout_max_s: float = 600.0,
        concurrency: int = 16,
        catch_up: CatchUp | None = None,
        loop_guard: LoopGuard | None = None,
        secrets: Mapping[str, str] | None = None,
        platform: str = "agentchat",
    ) -> None:
        self.identity = identity
        self.identities = (identity, *others)
        self.api = ScriptedApi(platform)
        self.clock = HandClock()
        self.journal = MemoryJournal()
        self._plugin = plugin
        self._secrets = {name: Secret(value) for name, value in (secrets or {}).items()}
        self._conduct = Conduct(catch_up=catch_up or CatchUp(), loop_guard=loop_guard or LoopGuard())
        self._settings = PluginSettings(
            use=plugin.name,
            config=dict(config or {}),
            timeout_s=timeout_s,
            attempts=attempts,
            on_dead=on_dead,
            timers_max=timers_max,
            state_max_mb=state_max_mb,
            timeout_max_s=timeout_max_s,
            concurrency=concurrency,
        )
        self._ids = itertools.count(1)
        self._conversation = ""
        self._group = asyncio.TaskGroup()
        self._lives: list[Loaded] = []
        self._unfinished: list[Unfinished] = []

    async def __aenter__(self) -> Harness:
        self._loaded = await self.load(self._plugin)
        await self._group.__aenter__()
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._dispatcher.stop(0.0)
        # A crash runs no teardown, but it frees what the process held; here that is left to the end.
        for loaded in reversed(self._lives):
            await loaded.teardown()
        # A failed test keeps its own exception; being cancelled is how the group says that the dispatcher failed.
        if kind is asyncio.CancelledError:
            await self._group.__aexit__(kind, error, trace)
        else:
            await self._group.__aexit__(None, None, None)
        if kind is None:
            self.api.check()

    @property
    def sent(self) -> list[Send]:
        """Every send that was committed, in order: `target`, `content`, `client_msg_id`."""
        return list(self.journal.sent.values())

    @property
    def texts(self) -> list[str | None]:
        """The texts of `sent`."""
        return [send.content.text for send in self.sent]

    @property
    def lost(self) -> list[Send]:
        """Sends that were staged by turns whose commit a crash took."""
        return self.journal.lost

    @property
    def failed(self) -> list[Attempt]:
        """Events that failed and will be tried again: `count`, `error`, `not_before`."""
        return list(self.journal.failed.values())

    @property
    def dead(self) -> list[Dead]:
        """Events that were given up: `attempts`, `error`, `traceback`."""
        return self.journal.dead

    @property
    def timers(self) -> list[TimerSet]:
        """Wake-ups that are waiting: `due_at` (Unix seconds), `data` (JSON), `failures`."""
        return list(self.journal.timer_rows.values())

    @property
    def outcomes(self) -> list[Outcome]:
        """What turns came to, and what was passed over: `word`, `data` (JSON), positions `first` and `last`."""
        return self.journal.outcomes

    @property
    def pending(self) -> int:
        """Events that the plugin is not through with."""
        return sum(self._dispatcher.pending[name] for name in self.identities)

    def state(self, key: str, shape: type[T], default: D | None = None, *, conversation: str = "") -> T | D | None:
        """A committed value of `ctx.state`; of the conversation of the last message unless another is named."""
        number = self.journal.number_of(self.identity, conversation or self._conversation)
        return default if number is None else self._value(number, key, shape, default)

    def plugin_state(self, key: str, shape: type[T], default: D | None = None) -> T | D | None:
        """A committed value of `ctx.plugin_state`."""
        return self._value(PLUGIN_WIDE, key, shape, default)

    async def message(
        self,
        text: str | None = None,
        *,
        sender: str = "@peer",
        conversation: str = "",
        direct: bool = True,
        mentioned: bool = False,
        kind: str = "text",
        data: dict[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        own: bool = False,
        agent: bool = False,
        created_at: datetime | None = None,
        identity: str | None = None,
        settle: bool = True,
    ) -> Message:
        """Somebody says something; returns when the plugin is through with it, or waits for time or something outside.

        conversation: "conv_" and the sender, or "grp_group" if it is not direct, unless named. own: this identity says
        it. agent: the platform vouches that the sender is one. created_at: when it was said, with a time zone; now,
        unless given. identity: who gets it, if not the first. settle: False returns at once; call `settle` later.
        """
        getter = identity or self.identity
        handle = getter if own else sender.removeprefix("@")
        self._conversation = conversation or (f"conv_{sender.removeprefix('@')}" if direct else "grp_group")
        message = Message(
            identity=getter,
            conversation=self._conversation,
            seq=self.journal.next_seq(getter, self._conversation),
            id=f"msg_{next(self._ids)}",
            sender=handle,
            created_at=(created_at or datetime.fromtimestamp(self.clock.unix(), UTC)).isoformat(),
            own=own,
            kind=kind,
            text=text,
            data=data,
            metadata=dict(metadata or {}),
            context=Context(sender_kind="agent" if agent else None),
            direct=direct,
            mentioned=mentioned,
            answer_to=self._conversation if not direct else "" if own else f"@{handle}",
        )
        self._dispatcher.offer([self.journal.append(message, self.clock.unix())])
        if settle:
            await self.settle()
        return message

    async def replay(self, exported: str | Path | Iterable[str | bytes]) -> list[Event]:
        """What `agentd export` wrote happens again, line by line; returns the events when the plugin is through.

        exported: the file, or its lines. An identity that the harness does not have becomes its first; all else is as
        it was, own events too, which only those are shown who ask. Time stands still. Raises ExportUnreadable, which
        names the line, before anything happens.
        """
        events = []
        for event, received_at in _exported(exported):
            getter = event.identity if event.identity in self.identities else self.identity
            event = msgspec.structs.replace(event, identity=getter)
            self._conversation = event.conversation
            self._dispatcher.offer([self.journal.append(event, received_at)])
            await self.settle()
            events.append(event)
        return events

    async def signal(self, signal: Signal) -> None:
        """A signal arrives; returns when the plugin is through with it."""
        self._dispatcher.signal(signal)
        await self.settle()

    async def advance(self, seconds: float) -> None:
        """Let time pass, with all that was waiting for it."""
        until = self.clock.monotonic() + seconds
        while (callback := self.clock.next_timer(until)) is not None:
            callback()
            await self.settle()

    async def settle(self) -> None:
        """Return when nothing runs and nothing could run now. If a crash was due, the restart is part of it.

        Raises AssertionError if the plugin has made a call of `ctx.api` that has no answer.
        """
        await self._dispatcher.quiet()
        if self.journal.losing:
            await self.crash()
        self.api.check()

    def crash_after_handler(self) -> None:
        """The process dies when the next handler has returned and nothing of it is on disk; then it starts again."""
        self.journal.dies_at_next_fate = True

    async def crash(self, *, settle: bool = True) -> None:
        """The process dies now and starts again: what was not committed is lost, what was not handled is repeated.

        A handler that runs at that time is suspected of it, as by the daemon: an event that is alone in running at two
        crashes becomes a dead letter. settle: False returns once it has started.
        """
        self._unfinished = self._running.unfinished()
        self.journal.losing = True
        await self._dispatcher.stop(0.0)
        self.journal.losing = False
        self._loaded = await self.load(self._plugin)
        await self._start()
        if settle:
            await self.settle()

    async def load(self, plugin: Plugin[Any]) -> Loaded:
        """Check a plugin against the harness's settings and set it up; it is torn down in the end."""
        loaded = Loaded(plugin.name, plugin, self._settings, "", self.journal.state_get, secrets=self._secrets)
        loaded.state.stored_bytes = partial(self.journal.state_bytes, loaded.name)
        loaded.api_of = lambda identity: self.api
        self._lives.append(loaded)
        await loaded.setup()
        return loaded

    async def _start(self) -> None:
        self._running = Running([self._loaded.name], _CALLS_MAX)
        self._dispatcher = Dispatcher(
            self.journal,
            {self._loaded.name: self._loaded},
            {name: [self._loaded.name] for name in self.identities},
            self._dispatch,
            revive=self.journal.revive,
            on_queued=lambda sends: None,
            on_backlog=lambda identity, is_so: None,
            marks=self._marks,
            conduct=dict.fromkeys(self.identities, self._conduct),
            clock=self.clock,
            chance=lambda: 0.0,
            send_now=self._send_now,
            running=self._running,
            unfinished=self._unfinished,
        )
        await self._dispatcher.start(self._group)

    async def _send_now(self, send: Send) -> Sent:
        if send.client_msg_id not in self.journal.sent:
            await self.journal.commit(Queued(send, self.clock.unix()))
        seq = list(self.journal.sent).index(send.client_msg_id) + 1
        stored = self.journal.sent[send.client_msg_id]
        return Sent(client_msg_id=send.client_msg_id, id=f"msg_sent_{seq}", conversation=stored.target, seq=seq)

    def _value(self, number: int, key: str, shape: type[T], default: D | None) -> T | D | None:
        value = self.journal.values.get((self._plugin.name, number, key))
        return default if value is None else msgspec.json.decode(value, type=shape)
