"""Letting a plugin handle again what is recorded: counted first, shown what would happen, or done.

Always true: read from the journal page by page, lane by lane, so that a long log costs no memory. A lane is set back
to right before the first event there that a handler matches, and not at all if none is.
Not here: what it takes to set a lane back, and what a turn of which nothing comes is (dispatcher).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any, Literal, NamedTuple

import msgspec

from agentd.control.refusal import ControlError
from agentd.core.events import Record, Send
from agentd.core.moments import iso
from agentd.dispatcher.fates import told
from agentd.dispatcher.rehearsal import Rehearsed
from agentd.host.handlers import matching
from agentd.journal.storage import Conversation, StoredRecord
from agentd.operations.naming import find_conversation
from agentd.operations.parts import Parts
from agentd.operations.rows import record_row

Step = Literal["count", "rehearse", "set_back"]

_PAGE = 200
_WAITS_TOLD = 20  # lanes that cannot go back at once are named up to so many; all of a plugin may be paused
_PATIENCE_S = (
    5.0  # a lane that is not set back for so long waits for a turn that takes its time, and is told as waiting
)


class Lane(NamedTuple):
    """A conversation that a plugin serves. after: the position behind which it is handled again.

    since: Unix seconds; what leads there and was received before, as what was imported may be, is left alone.
    """

    conversation: Conversation
    after: int
    since: float

    @property
    def place(self) -> dict[str, str]:
        """Where it is, for people."""
        return {"identity": self.conversation.identity, "conversation": self.conversation.conversation}


_Read = tuple[Lane, StoredRecord, Record] | int
"""An event that was read, or how many were read so far."""


class Tally:
    """What was met so far. read: events. matched: those that a handler matches. places: conversations of these."""

    def __init__(self) -> None:
        self.read = self.matched = self.unreadable = 0
        self.sends = self.sends_at_once = self.failed = 0
        self.places: set[int] = set()

    def rehearsed(self, shown: Rehearsed) -> None:
        """A handler matched, and this is what came of it."""
        self.matched += 1
        self.failed += shown.failure is not None
        self.sends += len(shown.sends) if shown.failure is None else 0
        self.sends_at_once += len(shown.now)

    def row(self) -> dict[str, int]:
        """As the last line tells it."""
        return {
            "events": self.read,
            "matches": self.matched,
            "conversations": len(self.places),
            "unreadable": self.unreadable,
        }


class Replaying:
    """See control.api.Daemon."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._journal = parts.journal

    async def replay(
        self,
        step: Step,
        plugin: str,
        identity: str | None,
        conversation: str | None,
        from_seq: int | None,
        since: float | None,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """See control.api.Daemon."""
        if plugin not in self._parts.plugins:
            known = ", ".join(self._parts.plugins) or "none"
            raise ControlError(404, "UNKNOWN_PLUGIN", f"no identity has a plugin {plugin!r}", f"there are: {known}")
        lanes = await self._lanes(self._serving(plugin, identity), conversation, from_seq, since)
        match step:
            case "count":
                return self._count(plugin, lanes)
            case "rehearse":
                return self._rehearse(plugin, lanes)
            case "set_back":
                return self._set_back(plugin, lanes)

    # --- which lanes

    def _serving(self, plugin: str, identity: str | None) -> list[str]:
        serving = self._parts.served_by(plugin)
        if identity is None:
            return serving
        if identity not in serving:
            raise ControlError(
                409,
                "NOT_SERVED",
                f"plugin {plugin} does not serve identity {identity}",
                f"it serves: {', '.join(serving)}",
            )
        return [identity]

    async def _lanes(
        self, names: list[str], conversation: str | None, from_seq: int | None, since: float | None
    ) -> list[Lane]:
        after = 0
        if since is not None:
            first = await self._journal.position_since(since)
            if first is None:
                return []
            after = first - 1
        if conversation is None:
            found = [each for name in names for each in await self._journal.conversations(name)]
        else:
            found = [await find_conversation(self._parts, names, conversation)]
        if from_seq is not None:
            assert conversation is not None
            first = await self._journal.position_of_seq(found[0].number, found[0].epoch, from_seq)
            after = max(after, found[0].position if first is None else first - 1)
        return [Lane(each, after, since or 0.0) for each in found if each.position > after]

    def _why_waiting(self, plugin: str, lanes: list[Lane]) -> list[dict[str, str]]:
        """The lanes that cannot be set back now, with the reason and the remedy."""
        dispatcher = self._parts.dispatcher
        standing = dispatcher.standing(plugin)
        held = {(each["identity"], each["conversation"]) for each in standing["held"]}
        waits = []
        for lane in lanes:
            id_, name = lane.conversation.conversation, lane.conversation.identity
            if (name, id_) in held:
                why, remedy = "held behind a dead letter", f"agentd release {plugin} {id_} --as {name}"
            elif (pause := dispatcher.pause_for(plugin, lane.conversation.number)) is not None:
                why, remedy = f"paused ({pause.reason})", f"agentd resume {id_} --as {name}"
            elif dispatcher.breaker(plugin, name)["breaker"] != "closed":
                why, remedy = "the plugin is out of order", "agentd status"
            else:
                continue
            waits.append({**lane.place, "why": why, "remedy": remedy})
        return waits

    # --- reading

    async def _records(self, lanes: list[Lane], tally: Tally) -> AsyncGenerator[_Read, None]:
        """Every event of these lanes that can be read; after each page the number of events read so far."""
        for lane in lanes:
            async with contextlib.aclosing(self._records_of(lane, tally)) as records:
                async for each in records:
                    yield each

    async def _records_of(self, lane: Lane, tally: Tally) -> AsyncGenerator[_Read, None]:
        position, last = lane.after, lane.conversation.position
        begun = False
        while position < last:
            page = await self._journal.read_lane(lane.conversation.number, position, _PAGE)
            for stored in page:
                if stored.position > last:
                    break
                begun = begun or stored.received_at >= lane.since
                if not begun:
                    continue
                tally.read += 1
                if (record := self._parts.record(stored)) is None:
                    tally.unreadable += 1
                else:
                    yield lane, stored, record
            if not page:
                break
            position = page[-1].position
            yield tally.read

    async def _begin(self, plugin: str, lanes: list[Lane]) -> dict[str, Any]:
        counts = [await self._journal.count_behind(each.conversation.number, each.after) for each in lanes]
        waits = self._why_waiting(plugin, lanes)
        return {
            "plugin": plugin,
            "events": sum(counts),
            "conversations": len(lanes),
            "waiting": len(waits),
            "waits": waits[:_WAITS_TOLD],
        }

    # --- the steps

    async def _count(self, plugin: str, lanes: list[Lane]) -> AsyncGenerator[dict[str, Any], None]:
        yield await self._begin(plugin, lanes)
        tally, loaded = Tally(), self._parts.plugins[plugin]
        async with contextlib.aclosing(self._records(lanes, tally)) as records:
            async for each in records:
                if isinstance(each, int):
                    yield {"read": each}
                elif matching(loaded, each[2].event) != ():
                    tally.matched += 1
                    tally.places.add(each[0].conversation.number)
        yield {"done": True, **tally.row()}

    async def _rehearse(self, plugin: str, lanes: list[Lane]) -> AsyncGenerator[dict[str, Any], None]:
        yield await self._begin(plugin, lanes)
        tally = Tally()
        async with contextlib.aclosing(self._records(lanes, tally)) as records:
            async for each in records:
                if isinstance(each, int):
                    yield {"read": each}
                elif (shown := await self._parts.dispatcher.rehearse(plugin, each[1])) is not None:
                    tally.rehearsed(shown)
                    tally.places.add(each[0].conversation.number)
                    yield _rehearsed_row(shown)
        yield {
            "done": True,
            **tally.row(),
            "sends": tally.sends,
            "sends_at_once": tally.sends_at_once,
            "failed": tally.failed,
        }

    async def _set_back(self, plugin: str, lanes: list[Lane]) -> AsyncGenerator[dict[str, Any], None]:
        yield await self._begin(plugin, lanes)
        tally, loaded = Tally(), self._parts.plugins[plugin]
        chosen = []
        for lane in lanes:
            async with contextlib.aclosing(self._records_of(lane, tally)) as records:
                async for each in records:
                    if isinstance(each, int):
                        yield {"read": each}
                    elif matching(loaded, each[2].event) != ():
                        chosen.append(lane._replace(after=each[1].position - 1))
                        break
        pending: dict[asyncio.Future[int], Lane] = {}
        done: asyncio.Queue[asyncio.Future[int]] = asyncio.Queue()
        for lane in chosen:
            place = lane.conversation
            future = self._parts.dispatcher.rewind(plugin, place.identity, place.number, lane.after)
            pending[future] = lane
            future.add_done_callback(done.put_nowait)
        blocked = len(self._why_waiting(plugin, chosen))
        events = 0
        while len(pending) > blocked or not done.empty():
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    future = await done.get()
            except TimeoutError:
                break
            lane = pending.pop(future)
            events += future.result()
            yield {"set_back": {**lane.place, "events": future.result()}}
        waiting = list(pending.values())
        known = self._why_waiting(plugin, waiting)
        named = {(each["identity"], each["conversation"]) for each in known}
        known += [
            {**lane.place, "why": "a turn comes first that runs or is tried again", "remedy": "agentd status"}
            for lane in waiting
            if (lane.conversation.identity, lane.conversation.conversation) not in named
        ]
        yield {
            "done": True,
            "conversations": len(chosen) - len(waiting),
            "events": events,
            "waiting": len(waiting),
            "waits": known[:_WAITS_TOLD],
        }


def _rehearsed_row(shown: Rehearsed) -> dict[str, Any]:
    failure = shown.failure
    return {
        "event": record_row(shown.record),
        "handlers": list(shown.handlers),
        "sends": [_send_row(send) for send in shown.sends],
        "sends_at_once": [_send_row(send) for send in shown.now],
        "state": [
            {"key": key, "shared": number == 0, "value": None if value is None else json.loads(value)}
            for (number, key), value in shown.puts.items()
        ],
        "reminders": [
            {"after_s": each.after_s, "at": None if each.at is None else iso(each.at), "data": json.loads(each.data)}
            for each in shown.reminders
        ],
        "outcomes": [
            {"word": word, "data": None if data is None else json.loads(data)} for word, data in shown.outcomes
        ],
        "failure": None
        if failure is None
        else {"error": told(failure.error), "handler": failure.handler.name if failure.handler is not None else None},
    }


def _send_row(send: Send) -> dict[str, Any]:
    return {"identity": send.identity, "target": send.target, "content": msgspec.to_builtins(send.content)}
