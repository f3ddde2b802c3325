"""What is recorded, as JSON for people and programs.

Always true: fields are only added; what they mean is told in control.api.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agentd.core.events import Message, Record
from agentd.core.moments import iso
from agentd.journal.storage import DeadRow, GapNoted, OutboxRow, Outcome, Paused


def gap_row(identity: str, conversation: str, gap: GapNoted) -> dict[str, Any]:
    """A gap, as `agentd gaps` shows it."""
    return {
        "identity": identity,
        "conversation": conversation,
        "epoch": gap.epoch,
        "start": gap.start,
        "stop": gap.stop,
        "found_at": iso(gap.found_at),
        "closed_at": None if gap.closed_at is None else iso(gap.closed_at),
        "attempts": gap.attempts,
        "rows": gap.rows,
        "outcome": gap.outcome,
        "absent": gap.absent,
        "reason": gap.reason,
    }


def outbox_row(row: OutboxRow) -> dict[str, Any]:
    """A send with what became of it."""
    send = row.send
    return {
        "client_msg_id": send.client_msg_id,
        "identity": send.identity,
        "target": send.target,
        "state": send.state,
        "attempts": send.attempts,
        "error": row.error or None,
        "code": row.code or None,
        "request_id": row.request_id,
        "queued_at": iso(row.queued_at),
        "changed_at": iso(row.changed_at),
        "not_before": iso(send.not_before) if send.not_before else None,
        "expires_at": None if send.expires_at is None else iso(send.expires_at),
        "cause": send.cause,
        "content": msgspec.to_builtins(send.content),
        "result_id": row.result_id,
        "seq": row.result_seq,
        "conversation": row.conversation,
    }


def dead_row(row: DeadRow) -> dict[str, Any]:
    """A dead letter without its traceback."""
    return {
        "number": row.number,
        "identity": row.identity,
        "conversation": row.conversation_id,
        "position": row.position,
        "plugin": row.plugin,
        "plugin_version": row.plugin_version,
        "attempts": row.attempts,
        "error": row.error,
        "died_at": iso(row.died_at),
        "dropped_at": None if row.dropped_at is None else iso(row.dropped_at),
    }


def outcome_row(outcome: Outcome) -> dict[str, Any]:
    """What a turn came to, or what was decided about its events."""
    data = None if outcome.data is None else msgspec.json.decode(outcome.data)
    return {"word": outcome.word, "data": data, "at": iso(outcome.at), "first": outcome.first, "last": outcome.last}


def pause_row(pause: Paused) -> dict[str, Any]:
    """A conversation in which no handler runs."""
    return {
        "identity": pause.identity,
        "conversation": pause.conversation,
        "paused_at": iso(pause.at),
        "until": None if pause.until is None else iso(pause.until),
        "reason": pause.reason,
    }


def record_row(record: Record) -> dict[str, Any]:
    """A record, as `agentd tail` shows it."""
    event = record.event
    message = event if isinstance(event, Message) else None
    return {
        "position": record.position,
        "identity": event.identity,
        "conversation": event.conversation,
        "epoch": event.epoch,
        "seq": event.seq,
        "id": event.id,
        "sender": event.sender,
        "source": event.source.value,
        "own": event.own,
        "late": event.late,
        "type": message.kind if message is not None else type(event).__name__.lower(),
        "text": message.text if message is not None else None,
        "received_at": iso(record.received_at),
    }
