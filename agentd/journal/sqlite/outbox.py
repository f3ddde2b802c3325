"""Sends on their way out.

Always true: a client_msg_id of an identity is taken for ever, and the first send under it stands.
Not here: when a send may leave (core/pacing.py).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from agentd.core.events import Content, Position, Send
from agentd.journal.sqlite.faults import BrokenChange
from agentd.journal.sqlite.names import Names
from agentd.journal.sqlite.sealing import Seals, seals_of
from agentd.journal.sqlite.statements import SQL, Row, write_rows
from agentd.journal.storage import Carried, OutboxRow, Queued, Retried

_SEND_COLUMNS = 12
_decode_content = msgspec.json.Decoder(Content).decode
_decode_position = msgspec.json.Decoder(Position).decode


def write(connection: sqlite3.Connection, identities: Names, changes: Sequence[Queued | Carried | Retried]) -> None:
    """Put sends at the end of the outbox, then keep what became of them.

    Raises BrokenChange for news of a send that was never queued.
    """
    queued = [change for change in changes if isinstance(change, Queued)]
    seals = seals_of(connection)
    write_rows(connection, SQL["outbox_queue"], [_row(identities, change, seals) for change in queued])
    for change in changes:
        if isinstance(change, Carried):
            _write_carried(connection, identities, change)
        elif isinstance(change, Retried):
            _update(connection, identities, change, SQL["outbox_retried"], (change.at,))


def _row(identities: Names, change: Queued, seals: Seals) -> Row:
    send = change.send
    return (
        identities.number(send.identity),
        send.client_msg_id,
        send.target,
        seals.seal_text(msgspec.json.encode(send.content).decode(), "outbox.content", send.client_msg_id),
        send.cause,
        send.state,
        send.attempts,
        send.not_before,
        send.expires_at,
        send.caused_in,
        send.caused_by,
        change.queued_at,
        change.queued_at,
    )


def _write_carried(connection: sqlite3.Connection, identities: Names, c: Carried) -> None:
    outcome = (c.state, c.attempts, c.not_before, c.result_id, c.result_seq, c.conversation, c.error, c.at)
    after = None if c.after is None else msgspec.json.encode(c.after).decode()
    _update(connection, identities, c, SQL["outbox_carried"], (*outcome, c.code, c.request_id, after))


def _update(
    connection: sqlite3.Connection, identities: Names, change: Carried | Retried, statement: str, values: Row
) -> None:
    key = (change.client_msg_id, identities.number(change.identity))
    result = connection.execute(statement, (*values, *key))
    if result.rowcount != 1:
        raise BrokenChange("no send is queued under this client_msg_id")


def open_sends(connection: sqlite3.Connection, identity: str) -> list[Send]:
    """Sends that are not settled, in the order of queueing."""
    seals = seals_of(connection)
    return [_send(seals, *row) for row in connection.execute(SQL["outbox_open"], (identity,))]


def answers_since(connection: sqlite3.Connection, identity: str, since: float) -> list[tuple[str, str, float]]:
    """(conversation id, peer, Unix seconds) of sends that a peer's messages caused, oldest first."""
    return connection.execute(SQL["outbox_answers"], (identity, since)).fetchall()


def find(connection: sqlite3.Connection, client_msg_id: str, identity: str) -> OutboxRow | None:
    """The send under this key, with what became of it."""
    row = connection.execute(SQL["outbox_find"], (client_msg_id, identity)).fetchone()
    return _outbox_row(seals_of(connection), row) if row else None


def listed(connection: sqlite3.Connection, identity: str, states: Sequence[str], limit: int) -> list[OutboxRow]:
    """Sends in any of these states, newest first."""
    wanted = msgspec.json.encode(list(states)).decode()
    seals = seals_of(connection)
    return [_outbox_row(seals, row) for row in connection.execute(SQL["outbox_list"], (identity, wanted, limit))]


def _outbox_row(seals: Seals, row: Sequence[Any]) -> OutboxRow:
    return OutboxRow(_send(seals, *row[:_SEND_COLUMNS]), *row[_SEND_COLUMNS:])


def _send(
    seals: Seals,
    identity: str,
    target: str,
    content: str,
    client_msg_id: str,
    cause: str,
    attempts: int,
    not_before: float,
    state: str,
    expires_at: float | None,
    left_after: str | None,
    caused_in: str,
    caused_by: str,
) -> Send:
    return Send(
        identity=identity,
        target=target,
        content=_decode_content(seals.open_text(content, "outbox.content", client_msg_id)),
        client_msg_id=client_msg_id,
        cause=cause,
        attempts=attempts,
        not_before=not_before,
        state=state,
        expires_at=expires_at,
        after=None if left_after is None else _decode_position(left_after),
        caused_in=caused_in,
        caused_by=caused_by,
    )


def conversation_with(connection: sqlite3.Connection, identity: str, handle: str) -> str | None:
    """Id of the conversation in which a send to this handle arrived lately."""
    row = connection.execute(SQL["outbox_conversation_with"], (identity, handle)).fetchone()
    return None if row is None else str(row[0])
