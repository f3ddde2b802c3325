"""What the plugins make of an event: which handlers match it and why, and what became of it in each lane.

Always true: nothing changes by asking, and what is not on disk has not happened. The filters are asked as they are now,
which after a change of a plugin may not be what they said when the event came.
Not here: matching (host/handlers.py), what happens next (dispatcher).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from agentd.control.refusal import ControlError
from agentd.core.events import Event, Record
from agentd.core.moments import iso
from agentd.host.handlers import Handler, Verdict
from agentd.journal.storage import Attempt, DeadRow, StoredRecord
from agentd.operations.parts import Parts
from agentd.operations.rows import record_row

STATES = ("handled", "passed_over", "waiting", "failing", "held", "dead", "never_offered")
"""What can have become of an event in a lane. passed_over: no handler wants it. held: dead, and the lane waits behind
it. never_offered: it was recorded before the plugin began to serve the identity."""

_STRIDE = 20_000  # positions read at once in search of an id, so that the dispatcher's reads come in between
_LOOK_BACK = 1_000_000  # positions looked through for an id, the newest: some seconds; a position is found at once


class Fate(NamedTuple):
    """What became of an event in a lane. state: one of STATES. attempts, error: where it failed.

    not_before: Unix seconds of the next attempt. letter: number of its dead letter. behind: position of the failing
    event that it waits for.
    """

    state: str
    attempts: int | None = None
    error: str | None = None
    not_before: float | None = None
    letter: int | None = None
    behind: int | None = None


def fate_of(
    position: int, *, since: int, cursor: int, failed: Sequence[Attempt], letter: DeadRow | None, wanted: bool
) -> Fate:
    """What became of the event at this position.

    since, cursor: from where on the lane is served, and how far it has handled. failed: its failed events. letter: the
    event's dead letter. wanted: a handler matches it, or raised in trying.
    """
    failure = next((each for each in failed if each.position == position), None)
    if letter is not None:
        held = failure is not None and failure.not_before == math.inf
        return Fate("held" if held else "dead", letter.attempts, letter.error, letter=letter.number)
    if position <= since:
        return Fate("never_offered")
    if position <= cursor:
        return Fate("handled" if wanted else "passed_over")
    if failure is not None:
        return Fate("failing", failure.count, failure.error, failure.not_before)
    ahead = [each.position for each in failed if cursor < each.position < position]
    return Fate("waiting", behind=min(ahead, default=None))


class Explaining:
    """See control.api.Daemon."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._journal = parts.journal

    async def explain(self, event: str, identity: str | None, plugin: str | None) -> dict[str, Any]:
        """See control.api.Daemon."""
        if plugin is not None and plugin not in self._parts.plugins:
            known = ", ".join(self._parts.plugins) or "none"
            raise ControlError(404, "UNKNOWN_PLUGIN", f"no identity has a plugin {plugin!r}", f"there are: {known}")
        found = await self._find(event, identity)
        return {"events": [await self._explained(record, plugin) for record in found]}

    async def _find(self, event: str, identity: str | None) -> list[Record]:
        rows = await self._at(int(event)) if event.isdecimal() and len(event) <= 18 else []
        rows = rows or await self._with_id(event)
        rows = [row for row in rows if identity in (None, row.identity)]
        if not rows:
            raise ControlError(
                404,
                "UNKNOWN_EVENT",
                f"no event {event!r} is among the newest {_LOOK_BACK:,} records",
                "name its id, or its position as `agentd tail --json` and `agentd export` tell it",
            )
        records = [record for row in rows if (record := self._parts.record(row)) is not None]
        if not records:
            raise ControlError(
                409,
                "UNREADABLE_EVENT",
                f"event {event!r} of identity {rows[0].identity} cannot be read",
                "is the identity still in the configuration?",
            )
        return records

    async def _at(self, position: int) -> list[StoredRecord]:
        rows = await self._journal.read_log(None, position - 1, 1)
        return [row for row in rows if row.position == position]

    async def _with_id(self, id_: str) -> list[StoredRecord]:
        up_to = await self._journal.last_position()
        oldest = max(0, up_to - _LOOK_BACK)
        positions: list[int] = []
        while up_to > oldest:
            after = max(oldest, up_to - _STRIDE)
            positions += await self._journal.positions_of(id_, after, up_to)
            up_to = after
        return [row for position in sorted(positions) for row in await self._at(position)]

    async def _explained(self, record: Record, plugin: str | None) -> dict[str, Any]:
        names = self._parts.settings.identity[record.event.identity].plugins
        letters = {each.plugin: each for each in await self._journal.dead_at(record.conversation, record.position)}
        return {
            "event": record_row(record),
            "plugins": [
                await self._in_lane(name, record, letters.get(name)) for name in names if plugin in (None, name)
            ],
        }

    async def _in_lane(self, plugin: str, record: Record, letter: DeadRow | None) -> dict[str, Any]:
        event = record.event
        handlers = [_handler_row(handler, event) for handler in self._parts.plugins[plugin].handlers.all]
        since = self._parts.dispatcher.since(event.identity, plugin)
        fate = fate_of(
            record.position,
            since=since,
            cursor=(await self._journal.cursors(plugin)).get(record.conversation, since),
            failed=[each for each in await self._journal.attempts(plugin) if each.conversation == record.conversation],
            letter=letter,
            wanted=any(row["matches"] is not False for row in handlers),
        )
        not_before = None if fate.not_before is None else iso(fate.not_before)
        return {
            "plugin": plugin,
            "breaker": self._parts.dispatcher.standing(plugin)["breaker"],
            "fate": {**fate._asdict(), "not_before": not_before},
            "handlers": handlers,
        }


def _handler_row(handler: Handler, event: Event) -> dict[str, Any]:
    verdicts = handler.explain(event)
    refused = any(verdict.passed is False for verdict in verdicts)
    raised = any(verdict.error is not None for verdict in verdicts)
    return {
        "name": handler.name,
        "place": handler.place,
        "event": handler.event.__name__,
        "matches": None if raised and not refused else not refused,
        "filters": [_filter_row(verdict) for verdict in verdicts],
    }


def _filter_row(verdict: Verdict) -> dict[str, Any]:
    error = verdict.error
    return {
        "name": verdict.name,
        "wanted": _told(verdict.wanted),
        "had": verdict.had,
        "passed": verdict.passed,
        "error": None if error is None else f"{type(error).__name__}: {error}",
    }


def _told(wanted: object) -> Any:
    """What an author wrote, as JSON can hold it."""
    match wanted:
        case str() | bool():
            return wanted
        case set() | frozenset() | list() | tuple():
            return sorted(map(str, wanted))
        case _:
            pattern = getattr(wanted, "pattern", None)  # a compiled expression
            return pattern if isinstance(pattern, str) else getattr(wanted, "__qualname__", repr(wanted))
