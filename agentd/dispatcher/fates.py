"""What became of a turn, as changes for the journal and lines for the log.

Always true: nothing that could hold a key, grow without bound or not be stored leaves here: errors and tracebacks are
redacted, cut, and text.
Not here: which fate it is (the actor, core/retry).
"""

from __future__ import annotations

import logging
import math
import traceback
from typing import Any

from agentd import logs
from agentd.core.events import Event
from agentd.dispatcher.backlog import Lane
from agentd.dispatcher.suspects import ProcessDied
from agentd.errors import GiveUp, RetryLater, Unavailable
from agentd.host.calls import WorkerDied
from agentd.host.context import TurnContext
from agentd.host.isolated import Hosted
from agentd.host.turns import DeadlinePassed, Failure
from agentd.journal.storage import Attempt, Change, Dead, Outcome, Queued, StatePut, TimerSet

log = logging.getLogger("agentd.dispatcher")

_ERROR_MAX_CHARS = 500
_TRACEBACK_MAX_CHARS = 8_000
_WAIT_MAX_S = 31_536_000.0  # a year: what is asked for beyond that is a mistake, and may be past what a date can say

_EXPECTED = (RetryLater, Unavailable, GiveUp, DeadlinePassed, ProcessDied, WorkerDied)


def effects(ctx: TurnContext[Any], now: float, first: int, last: int) -> list[Change]:
    """What a turn staged. now: Unix seconds. first, last: positions of its events, 0 for none."""
    changes: list[Change] = []
    if ctx.puts:
        changes += [StatePut(ctx.name, number, key, value) for (number, key), value in ctx.puts.items()]
    if ctx.sends:
        changes += [Queued(send, now) for send in ctx.sends]
    if ctx.reminders:
        # The time is settled once: the disk and the memory of it must agree.
        settled = [
            each if each.at is not None else each._replace(at=now + (each.after_s or 0.0)) for each in ctx.reminders
        ]
        ctx.reminders = settled
        changes += reminders(ctx)
    if ctx.outcomes:
        number = ctx.conversation or 0
        changes += [Outcome(ctx.name, number, first, last, word, data, now) for word, data in ctx.outcomes]
    return changes


def reminders(ctx: TurnContext[Any]) -> list[TimerSet]:
    """The wake-ups that a turn asked for, once `effects` has settled their times."""
    return [
        TimerSet(
            id=each.id,
            plugin=ctx.name,
            identity=ctx.identity,
            conversation=ctx.conversation or 0,
            conversation_id=(ctx.event.conversation or "") if ctx.conversation else "",
            name="",
            due_at=each.at or 0.0,
            data=each.data,
        )
        for each in ctx.reminders or ()
    ]


def attempt(lane: Lane, position: int, error: BaseException | None, not_before: float) -> Attempt:
    """What is known of the turn at the head of a lane. error: its last failure. not_before: Unix seconds."""
    return Attempt(
        plugin=lane.served.plugin.name,
        conversation=lane.line.number,
        position=position,
        count=lane.failures,
        error="" if error is None else told(error),
        not_before=not_before,
        deaths=lane.deaths,
        until=lane.until,
        progress=lane.progress,
    )


def dead_letter(
    plugin: Hosted, conversation: int, position: int, attempts: int, error: BaseException, now: float
) -> Dead:
    """A failure that was the last. now: Unix seconds."""
    return Dead(
        plugin=plugin.name,
        conversation=conversation,
        position=position,
        attempts=attempts,
        error=told(error),
        # The innermost frames come last, and say the most.
        traceback=_kept("".join(traceback.format_exception(error)))[-_TRACEBACK_MAX_CHARS:],
        plugin_version=plugin.version,
        died_at=now,
    )


def asked_wait_s(error: BaseException) -> float | None:
    """How long to wait before the next attempt, if the failure says so: the plugin's word, or the platform's.

    None as well where what it says is no span of time, as in `RetryLater("the service is down")`.
    """
    asked: Any = None
    if isinstance(error, RetryLater):
        asked = error.after_s
    elif isinstance(error, Unavailable):
        asked = error.retry_after_s
    try:
        asked_s = float(asked)
    except (TypeError, ValueError, OverflowError):
        return None
    return min(asked_s, _WAIT_MAX_S) if math.isfinite(asked_s) else None


def told(error: BaseException) -> str:
    """An error in one short line."""
    try:
        text = str(error)
    except Exception:
        text = "its text cannot be told"
    name = type(error).__name__
    return _kept(f"{name}: {text}" if text else name)[:_ERROR_MAX_CHARS]


def _kept(text: str) -> str:
    # The journal holds text only, and a commit that it cannot hold would end the daemon, at each start anew.
    return logs.encodable(logs.redacted(text))


def log_failure(what: str, ctx: TurnContext[Any], failure: Failure) -> None:
    """Tell people, with the traceback unless the failure explains itself."""
    error, handler = failure
    event = ctx.event
    fields = {"plugin": ctx.name, "identity": event.identity, "conversation": event.conversation}
    if isinstance(event, Event):
        fields["event_id"] = event.id
    nameless = "its turn" if isinstance(error, WorkerDied) else "a filter or middleware"
    name = handler.name if handler is not None else nameless
    trace = None if isinstance(error, _EXPECTED) else error
    log.warning("%s: %s: %s", what, name, told(error), extra=fields, exc_info=trace)
