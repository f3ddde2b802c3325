"""From what is told of events to spans: which are open, and since when each of them waits for what.

    receive IDENTITY     from when it was taken in order to the last thing that came of it; the root of all others
      journal            until it is on disk
      wait PLUGIN        in the lane, before each attempt
      process PLUGIN     each attempt
      outbox IDENTITY    an answer on disk, before each attempt to send it
      send IDENTITY      each attempt

An event is open while a plugin may want it, or a send that answers it has not come to its end. A root span is exported
once, at that moment, by the process that sees it. What comes later (a replay, a dead letter that is tried again) joins
the trace without a root of its own; only a plugin that begins to serve after a restart, with mail that others are
through with, makes it be exported again.

Always true: at most `open_max` events are followed; of those that began first the root is given up. An event that is
not sampled costs its name, and is remembered nowhere. Attributes are ids, names, numbers and words of a fixed set.
Not here: OpenTelemetry (spans.py), the ids (naming.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol

from agentd.core.events import Event, Record, Send, Timer
from agentd.tracing.naming import Name, cause_of, name_of, name_of_send
from agentd.tracing.observing import Joins, Settled, TurnTrace

Kind = Literal["inside", "in", "out"]
Attributes = Mapping[str, str | int | bool | Sequence[str]]

_NANOS = 1_000_000_000
_FAILURES = ("retried", "postponed", "dead", "failed")
_LINKS_MAX = 100  # of a batch to its other events; a span has room for 128


class Live(Joins, Protocol):
    """A span that has begun. as_link: how others are linked to it."""

    @property
    def as_link(self) -> Name:
        """See above."""
        ...

    def ended(self, at: int, attributes: Attributes, *, failed: bool) -> None:
        """It is over."""
        ...


class Spans(Protocol):
    """Where spans go. Times are nanoseconds since 1970."""

    def is_sampled(self, trace: int) -> bool:
        """Whether this trace is wanted."""
        ...

    def put(
        self,
        name: str,
        of: Name,
        began: int,
        ended: int,
        attributes: Attributes,
        *,
        kind: Kind = "inside",
        root: bool = False,
        failed: bool = False,
        links: Sequence[Name] = (),
    ) -> None:
        """One that is over: the root of its trace, or a child of that."""
        ...

    def begin(self, name: str, of: Name, began: int, attributes: Attributes, links: Sequence[Name]) -> Live:
        """One that a plugin's own spans become children of."""
        ...

    def unsampled(self, of: Name) -> Joins:
        """What a plugin's own spans join in a trace that nobody wants: they are not wanted either."""
        ...


class _Open:
    """An event that something may come of.

    waiting: plugins that may want it, with since when. turns: that run. sends: keys of those that answer it.
    """

    __slots__ = ("attributes", "began", "identity", "name", "sends", "title", "turns", "waiting")

    def __init__(self, name: Name, identity: str, title: str, began: int, attributes: Attributes) -> None:
        self.name = name
        self.identity = identity
        self.title = title
        self.began = began
        self.attributes = attributes
        self.waiting: dict[str, int] = {}
        self.turns: set[_Turn] = set()
        self.sends: set[str] = set()


class _Out:
    """A send on its way. since: when it began to wait. left: when the request was made, 0 while none is."""

    __slots__ = ("left", "name", "send", "since", "status")

    def __init__(self, name: Name, send: Send, since: int) -> None:
        self.name = name
        self.send = send
        self.since = since
        self.left = 0
        self.status = 0


class Follower:
    """See observing.Traces. system_of: the platform of an identity. given_up: root spans that there was no room for."""

    def __init__(self, spans: Spans, open_max: int, system_of: Callable[[str], str]) -> None:
        self._spans = spans
        self._open_max = open_max
        self._system_of = system_of
        self._open: dict[int, _Open] = {}
        self._closed: dict[int, None] = {}
        """Traces whose root was exported lately."""
        self._out: dict[str, _Out] = {}
        self._said_elsewhere: dict[str, Name] = {}
        """Of sends that another identity says than the one whose event they answer."""
        self.given_up = 0

    def __len__(self) -> int:
        """Events that are followed."""
        return len(self._open)

    # --- in

    def offered(self, record: Record, plugins: Sequence[str]) -> None:
        """See observing.Traces."""
        event = record.event
        if event.own:
            return
        name = name_of(event.identity, event.id)
        if not self._spans.is_sampled(name.trace) or (opened := self._open_event(name, record)) is None:
            return
        now = max(time.time_ns(), opened.began)
        self._spans.put("journal", name, opened.began, now, self._about(event))
        opened.waiting = dict.fromkeys(plugins, now)
        self._close_if_over(opened)

    def through(self, plugin: str, identity: str, event_id: str) -> None:
        """See observing.Traces."""
        opened = self._open.get(name_of(identity, event_id).trace)
        if opened is not None and opened.waiting.pop(plugin, None) is not None:
            self._close_if_over(opened)

    def finished(self, plugin: str, record: Record, pending: Sequence[str], *, again: bool) -> None:
        """See observing.Traces."""
        name = name_of(record.event.identity, record.event.id)
        if not self._spans.is_sampled(name.trace):
            return
        opened = self._open.get(name.trace)
        if opened is None:
            # No turn of this process was about it: it was given up, or held, before that began.
            if again or (opened := self._open_event(name, record)) is None:
                return
            opened.waiting = dict.fromkeys(pending, opened.began)
        opened.waiting.pop(plugin, None)
        self._close_if_over(opened)

    def passed_over(self, plugin: str, record: Record, pending: Sequence[str]) -> None:
        """See observing.Traces."""
        name, told = name_of(record.event.identity, record.event.id), {"agentd.outcome": "passed over"}
        self._waited(plugin, name, record, pending, time.time_ns(), told)

    def parted(self, plugin: str, identity: str) -> None:
        """See observing.Traces."""
        for opened in [each for each in self._open.values() if each.identity == identity and plugin in each.waiting]:
            del opened.waiting[plugin]
            self._close_if_over(opened)

    # --- turns

    def began(
        self,
        plugin: str,
        about: Event | Timer,
        attempt: int,
        *,
        records: Sequence[Record] = (),
        pending: Sequence[str] = (),
        due_at: float = 0.0,
        again: bool = False,
        handlers: Sequence[str] = (),
    ) -> TurnTrace:
        """See observing.Traces."""
        now = time.time_ns()
        name = name_of(about.identity, about.id)
        names = [name_of(record.event.identity, record.event.id) for record in records]
        links = [each for each in names if each != name and self._spans.is_sampled(each.trace)][-_LINKS_MAX:]
        attributes: dict[str, str | int | bool | Sequence[str]] = {
            **self._about(about),
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.destination.name": about.identity,
            "agentd.plugin": plugin,
            "agentd.handlers": tuple(handlers),
            "agentd.attempt": attempt,
        }
        if len(records) > 1:
            attributes["messaging.batch.message_count"] = len(records)
        joins: Joins
        live: Live | None = None
        if self._spans.is_sampled(name.trace):
            joins = live = self._spans.begin(f"process {plugin}", name, now, attributes, links)
        else:
            joins = self._spans.unsampled(name)
        turn = _Turn(self, plugin, name, joins, live, links, now, attributes)
        if due_at:
            self._open_timer(name, about, plugin, due_at)
        for each, record in zip(names, records, strict=True):
            self._waited(plugin, each, record, pending, now, {"agentd.attempt": attempt}, again=again)
        for each in (name, *links):
            if (opened := self._open.get(each.trace)) is not None:
                opened.turns.add(turn)
        return turn

    def _waited(
        self,
        plugin: str,
        name: Name,
        record: Record,
        pending: Sequence[str],
        now: int,
        told: Attributes,
        *,
        again: bool = False,
    ) -> None:
        """An event's time in its lane is over for now. told: what its span says besides."""
        if not self._spans.is_sampled(name.trace):
            return
        opened = self._open.get(name.trace)
        if opened is None:
            # It was recorded before this process began, or there was no room for it.
            if again or (opened := self._open_event(name, record)) is None:
                return
            since = opened.began
            opened.waiting = dict.fromkeys((*pending, plugin), since)
        since = opened.waiting.get(plugin, opened.began)
        attributes = {**self._about(record.event), "agentd.plugin": plugin, **told}
        self._spans.put(f"wait {plugin}", name, min(since, now), now, attributes)
        opened.waiting = {**dict.fromkeys(pending, now), **opened.waiting, plugin: now}

    def over(
        self,
        turn: _Turn,
        outcome: str,
        error: BaseException | None,
        handler: str,
        sends: Iterable[Send],
    ) -> None:
        """A turn has its fate."""
        now = max(time.time_ns(), turn.began)
        attributes: dict[str, str | int | bool | Sequence[str]] = {"agentd.outcome": outcome}
        if error is not None:
            attributes["error.type"] = type(error).__qualname__
        if handler:
            attributes["agentd.handler"] = handler
        failed = outcome in _FAILURES
        if turn.live is not None:
            turn.live.ended(now, attributes, failed=failed)
        for each in turn.others:
            links = () if turn.live is None else (turn.live.as_link,)
            told = {**turn.attributes, **attributes, "agentd.with": "another event of the batch"}
            told.pop("messaging.message.id", None)
            self._spans.put(
                f"process {turn.plugin}", each, turn.began, now, told, kind="in", failed=failed, links=links
            )
        for send in sends:
            if send.identity != turn.attributes["agentd.identity"] and self._spans.is_sampled(turn.name.trace):
                self._said_elsewhere[send.client_msg_id] = turn.name
        for name in (turn.name, *turn.others):
            if (opened := self._open.get(name.trace)) is not None:
                opened.turns.discard(turn)
                if turn.plugin in opened.waiting:
                    opened.waiting[turn.plugin] = now
                self._close_if_over(opened)

    # --- out

    def queued(self, sends: Iterable[Send]) -> None:
        """See observing.Traces."""
        now = time.time_ns()
        for send in sends:
            self._take_out(send, now)

    def resumed(self, send: Send, queued_at: float, record: Record | None) -> None:
        """A send that an earlier process put into the outbox. queued_at: Unix seconds. record: of what it answers."""
        name = name_of_send(send)
        if not self._spans.is_sampled(name.trace):
            return
        if record is not None and name.trace not in self._open:
            self._open_event(name, record)
        elif cause_of(send) and name.trace not in self._open:
            attributes = {**self._of(send.identity), "messaging.message.id": cause_of(send)}
            self._opened(_Open(name, send.identity, f"receive {send.identity}", _nanos(queued_at), attributes))
        self._take_out(send, _nanos(queued_at))

    def _take_out(self, send: Send, since: int) -> _Out | None:
        """Follow a send; None if nobody wants its trace."""
        key = send.client_msg_id
        if (out := self._out.get(key)) is not None:
            return out
        name = self._said_elsewhere.pop(key, None) or name_of_send(send)
        if not self._spans.is_sampled(name.trace):
            return None
        out = self._out[key] = _Out(name, send, since)
        opened = self._open.get(name.trace)
        if opened is None and not cause_of(send):
            opened = self._opened(_Open(name, send.identity, f"say {send.identity}", since, self._saying(send)))
        if opened is not None:
            opened.sends.add(key)
        return out

    def leaves(self, send: Send) -> None:
        """See observing.Traces."""
        now = time.time_ns()
        if (out := self._take_out(send, now)) is None:
            return
        began = min(out.since, now)
        attributes = {**self._saying(send), "agentd.attempt": send.attempts + 1}
        self._spans.put(f"outbox {send.identity}", out.name, began, now, attributes)
        out.left, out.status = now, 0

    def answered(self, send: Send, status: int) -> None:
        """See observing.Traces."""
        if (out := self._out.get(send.client_msg_id)) is not None:
            out.status = status

    def kept(self, send: Send, why: str) -> None:
        """See observing.Traces."""
        if (out := self._out.get(send.client_msg_id)) is not None:
            self._tried(out, send.attempts + 1, why, {})

    def became(self, carried: Settled) -> None:
        """See observing.Traces."""
        if (out := self._out.get(carried.client_msg_id)) is None:
            return
        told: dict[str, str | int] = {}
        if carried.code:
            told["error.type"] = carried.code
        if carried.result_id is not None:
            told["messaging.message.id"] = carried.result_id
        if carried.result_seq is not None:
            told["agentd.seq"] = carried.result_seq
        outcome = "later" if carried.state == "ready" else carried.state
        if out.left:
            self._tried(out, carried.attempts, outcome, told)
        elif outcome not in ("later", "unknown", "sending"):
            now = max(time.time_ns(), out.since)
            attributes = {**self._saying(out.send), **told, "agentd.outcome": outcome}
            failed = outcome != "sent"
            self._spans.put(f"outbox {out.send.identity}", out.name, out.since, now, attributes, failed=failed)

    def _tried(self, out: _Out, attempt: int, outcome: str, told: Mapping[str, str | int]) -> None:
        """One attempt to send is over."""
        now = max(time.time_ns(), out.left)
        attributes: dict[str, str | int | bool | Sequence[str]] = {
            **self._saying(out.send),
            "messaging.operation.type": "send",
            "messaging.operation.name": "send",
            "agentd.attempt": attempt,
            "agentd.outcome": outcome,
            **told,
        }
        if out.status:
            attributes["http.response.status_code"] = out.status
        failed = outcome != "sent"
        if failed:
            attributes.setdefault("error.type", outcome)
        self._spans.put(f"send {out.send.identity}", out.name, out.left, now, attributes, kind="out", failed=failed)
        out.left, out.since = 0, now

    def settled(self, carried: Settled) -> None:
        """See observing.Traces."""
        out = self._out.pop(carried.client_msg_id, None)
        if out is not None and (opened := self._open.get(out.name.trace)) is not None:
            opened.sends.discard(carried.client_msg_id)
            self._close_if_over(opened)

    # --- which are open

    def _open_event(self, name: Name, record: Record) -> _Open | None:
        """Follow an event; None if its root was exported already."""
        if name.trace in self._closed:
            return None
        event = record.event
        attributes = {
            **self._about(event),
            "messaging.operation.type": "receive",
            "messaging.operation.name": "receive",
            "messaging.destination.name": event.identity,
            "messaging.message.envelope.size": len(event.payload),
        }
        title = f"receive {event.identity}"
        return self._opened(_Open(name, event.identity, title, _nanos(record.received_at), attributes))

    def _open_timer(self, name: Name, about: Event | Timer, plugin: str, due_at: float) -> None:
        if name.trace in self._open or name.trace in self._closed or not self._spans.is_sampled(name.trace):
            return
        opened = _Open(name, about.identity, f"timer {plugin}", _nanos(due_at), self._about(about))
        opened.waiting[plugin] = opened.began
        self._opened(opened)

    def _opened(self, opened: _Open) -> _Open:
        while len(self._open) >= self._open_max:
            del self._open[next(iter(self._open))]
            self.given_up += 1
        self._open[opened.name.trace] = opened
        return opened

    def _close_if_over(self, opened: _Open) -> None:
        trace = opened.name.trace
        if opened.waiting or opened.turns or opened.sends or self._open.get(trace) is not opened:
            return
        del self._open[trace]
        while len(self._closed) >= self._open_max:
            del self._closed[next(iter(self._closed))]
        self._closed[trace] = None
        now = max(time.time_ns(), opened.began)
        self._spans.put(opened.title, opened.name, opened.began, now, opened.attributes, kind="in", root=True)

    # --- what a span says

    def _of(self, identity: str) -> dict[str, str | int | bool | Sequence[str]]:
        return {"messaging.system": self._system_of(identity), "agentd.identity": identity}

    def _about(self, about: Event | Timer) -> dict[str, str | int | bool | Sequence[str]]:
        told = {**self._of(about.identity), "messaging.message.id": about.id}
        if about.conversation:
            told["messaging.message.conversation_id"] = about.conversation
        if isinstance(about, Event):
            told |= {"agentd.seq": about.seq, "agentd.epoch": about.epoch, "agentd.source": _source(about)}
        return told

    def _saying(self, send: Send) -> dict[str, str | int | bool | Sequence[str]]:
        return {
            **self._of(send.identity),
            "messaging.destination.name": send.target,
            "agentd.client_msg_id": send.client_msg_id,
        }


class _Turn:
    """See observing.TurnTrace. live: its span, None where its trace is not sampled. others: of its batch."""

    __slots__ = ("_follower", "_joins", "attributes", "began", "live", "name", "others", "plugin")

    def __init__(
        self,
        follower: Follower,
        plugin: str,
        name: Name,
        joins: Joins,
        live: Live | None,
        others: Sequence[Name],
        began: int,
        attributes: Attributes,
    ) -> None:
        self._follower = follower
        self._joins = joins
        self.plugin = plugin
        self.name = name
        self.live = live
        self.others = others
        self.began = began
        self.attributes = attributes

    @property
    def traceparent(self) -> str:
        """See observing.Joins."""
        return self._joins.traceparent

    def enter(self) -> None:
        """See observing.Joins."""
        self._joins.enter()

    def ended(
        self, outcome: str, error: BaseException | None = None, handler: str = "", sends: Iterable[Send] = ()
    ) -> None:
        """See observing.TurnTrace."""
        self._follower.over(self, outcome, error, handler, sends)


def _nanos(unix: float) -> int:
    return int(unix * _NANOS)


def _source(event: Event) -> str:
    return "late" if event.late else event.source.value
