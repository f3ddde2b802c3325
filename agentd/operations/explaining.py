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
from agentd.dispatcher.deliveries import PASSED, SET_BACK, TRIED_AGAIN
from agentd.host.handlers import Handler, Verdict
from agentd.journal.storage import Attempt, DeadRow, Outcome, StoredRecord, TimerSet
from agentd.operations.parts import Parts
from agentd.operations.rows import outcome_row, pause_row, record_row

STATES = (
    "handled",
    "passed_over",
    "passed",
    "waiting",
    "running",
    "failing",
    "paused",
    "aside",
    "held",
    "dead",
    "never_offered",
)
"""What can have become of an event in a lane. passed_over: no handler wants it. passed: it grew stale, and newer ones
say more. paused: it waits, and its conversation is paused. aside: it comes by itself, and the lane does not wait for
it. held: dead, and the lane waits behind it. never_offered: it was recorded before the plugin began to serve the
identity. An event that a replay goes back to waits again."""

_NOTES = (TRIED_AGAIN, SET_BACK)  # outcomes that tell what somebody asked for, and not what came of it

_STRIDE = 20_000  # positions read at once in search of an id, so that the dispatcher's reads come in between
_LOOK_BACK = 1_000_000  # positions looked through for an id, the newest: some seconds; a position is found at once


class Fate(NamedTuple):
    """What became of an event in a lane. state: one of STATES. attempts, error: where it failed.

    not_before: Unix seconds of the next attempt. letter: number of its dead letter. behind: position of the failing
    event that it waits for. replays: how often somebody wanted it to be handled again.
    """

    state: str
    attempts: int | None = None
    error: str | None = None
    not_before: float | None = None
    letter: int | None = None
    behind: int | None = None
    replays: int = 0


class Known(NamedTuple):
    """What is known of an event and its lane.

    since, cursor: from where on the lane is served, and how far it has handled. failed: its events that failed, or
    noted progress. aside: the row under which this event comes by itself. letter: its dead letter. outcomes: what
    turns about it came to, oldest first. wanted: a handler matches it, or raised in trying. paused: the plugin
    stands still in its conversation. running: a turn about it is under way.
    """

    since: int
    cursor: int
    failed: Sequence[Attempt] = ()
    aside: TimerSet | None = None
    letter: DeadRow | None = None
    outcomes: Sequence[Outcome] = ()
    wanted: bool = True
    paused: bool = False
    running: bool = False


def fate_of(position: int, known: Known) -> Fate:
    """What became of the event at this position."""
    replays = sum(each.word in _NOTES for each in known.outcomes)
    return _fate(position, known)._replace(replays=replays)


def _fate(position: int, known: Known) -> Fate:
    letter, aside = known.letter, known.aside
    failure = next((each for each in known.failed if each.position <= position <= max(each.position, each.until)), None)
    if letter is not None and failure is not None and failure.not_before == math.inf:
        return Fate("held", letter.attempts, letter.error, letter=letter.number)
    if aside is not None:
        return Fate("aside", aside.failures, aside.error or None, aside.due_at)
    if letter is not None and not tried_since(letter, known.outcomes):
        return Fate("dead", letter.attempts, letter.error, letter=letter.number)
    if position > known.cursor:
        return _ahead(position, known, failure)
    if position <= known.since and not any(each.word == SET_BACK for each in known.outcomes):
        return Fate("never_offered")
    came_to = [each.word for each in known.outcomes if each.word not in _NOTES]
    if PASSED in came_to[-1:]:
        return Fate("passed")
    return Fate("handled" if known.wanted else "passed_over")


def _ahead(position: int, known: Known, failure: Attempt | None) -> Fate:
    """Of an event that the lane has not handled yet, or is to handle again."""
    if known.running:
        return Fate("running", failure.count if failure is not None and failure.count else None)
    if failure is not None and (failure.count or failure.deaths):
        return Fate("failing", failure.count + failure.deaths, failure.error or None, failure.not_before)
    if known.paused:
        return Fate("paused")
    ahead = [each.position for each in known.failed if known.cursor < each.position < position and each.count]
    return Fate("waiting", behind=min(ahead, default=None))


def tried_since(letter: DeadRow, outcomes: Sequence[Outcome]) -> bool:
    """Whether somebody wanted the event to be handled again after it had died."""
    return any(each.word in _NOTES and each.at >= letter.died_at for each in outcomes)


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
                rows[0].damage or "is the identity still in the configuration?",
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
        event, number, position = record.event, record.conversation, record.position
        dispatcher, journal = self._parts.dispatcher, self._journal
        handlers = [_handler_row(handler, event) for handler in self._parts.plugins[plugin].handlers.all]
        since = dispatcher.since(event.identity, plugin)
        pause = dispatcher.pause_for(plugin, number)
        asides = [
            each for each in await journal.timers(plugin) if (each.conversation, each.position) == (number, position)
        ]
        outcomes = await journal.outcomes(plugin, number, position)
        known = Known(
            since=since,
            cursor=(await journal.cursors(plugin)).get(number, since),
            failed=[each for each in await journal.attempts(plugin) if each.conversation == number],
            aside=asides[0] if asides else None,
            letter=letter,
            outcomes=outcomes,
            wanted=any(row["matches"] is not False for row in handlers),
            paused=pause is not None,
            running=dispatcher.runs(plugin, number, position),
        )
        fate = fate_of(position, known)
        not_before = None if fate.not_before is None else iso(fate.not_before)
        return {
            "plugin": plugin,
            **dispatcher.breaker(plugin, event.identity),
            "pause": None if pause is None else pause_row(pause),
            "fate": {**fate._asdict(), "not_before": not_before},
            "outcomes": [outcome_row(each) for each in outcomes],
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
