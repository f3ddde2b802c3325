"""The log of events.

Always true: rows are only added; a payload is stored as the bytes that came.
Not here: decoding them again (`Platform.revive`).
"""

from __future__ import annotations

import collections
import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from agentd.errors import ValueDamaged
from agentd.journal.sqlite.names import Names
from agentd.journal.sqlite.sealing import Seals, seals_of
from agentd.journal.sqlite.statements import SQL, Row, write_rows
from agentd.journal.storage import IMPORTS, Appended, StoredRecord

# An event that came early has waited for those before it, and stands behind others that were received after it. The
# search by times looks back so far, and may miss one that has waited longer.
_EARLY_MAX_S = 600.0


class Part(NamedTuple):
    """A part of a table, half-open at its start. rises: so do, or nearly, the times in it."""

    after: int
    upto: int
    rises: bool


def write(connection: sqlite3.Connection, identities: Names, changes: Sequence[Appended]) -> None:
    """Append the records and count them for their identities."""
    seals = seals_of(connection)
    write_rows(connection, SQL["event_append"], [_row(change, seals) for change in changes])
    counts = collections.Counter([change.record.event.identity for change in changes])
    for identity, count in counts.items():
        connection.execute(SQL["identity_count_events"], (count, identities.number(identity)))


def _row(change: Appended, seals: Seals) -> Row:
    record = change.record
    event = record.event
    # Plain int and str: sqlite3 looks for an adapter for anything else, which costs more than the binding.
    return (
        record.position,
        record.conversation,
        event.epoch,
        event.seq,
        1 if event.late else 0,
        str(event.source),
        record.received_at,
        event.id,
        seals.seal(event.payload, "event.payload", record.position),
    )


def ids_at(connection: sqlite3.Connection, places: Iterable[tuple[int, int, int]]) -> list[str | None]:
    """Platform ids at (conversation, epoch, seq); None where nothing is recorded."""
    found = [connection.execute(SQL["event_id_at"], place).fetchone() for place in places]
    return [row[0] if row else None for row in found]


def ids_of(connection: sqlite3.Connection, conversation: int) -> set[str]:
    """Every platform id of one conversation."""
    return {row[0] for row in connection.execute(SQL["event_ids"], (conversation,))}


def read_lane(connection: sqlite3.Connection, conversation: int, after: int, limit: int) -> list[StoredRecord]:
    """Records of one conversation behind a position."""
    return _records(connection.execute(SQL["event_lane"], (conversation, after, limit)))


def read_log(connection: sqlite3.Connection, identity: str | None, after: int, limit: int) -> list[StoredRecord]:
    """Records behind a position, of one identity or of all."""
    if identity is None:
        return _records(connection.execute(SQL["event_log"], (after, limit)))
    return _records(connection.execute(SQL["event_log_of_identity"], (identity, after, limit)))


def _records(rows: sqlite3.Cursor) -> list[StoredRecord]:
    unseal = seals_of(rows.connection).open
    found = []
    for position, conversation, identity, id_, epoch, late, source, payload, received_at in rows:
        damage = ""
        try:
            payload = unseal(payload, "event.payload", position)
        except ValueDamaged as error:
            payload, damage = b"", str(error)
        place = position, conversation, identity, id_, epoch, bool(late), source
        found.append(StoredRecord(*place, payload, received_at, damage))
    return found


def count_behind(connection: sqlite3.Connection, conversation: int, after: int) -> int:
    """How many records of a conversation lie behind a position."""
    count: int = connection.execute(SQL["event_count_behind"], (conversation, after)).fetchone()[0]
    return count


def count_between(connection: sqlite3.Connection, conversation: int, after: int, upto: int) -> int:
    """How many records of a conversation lie behind a position, up to another."""
    count: int = connection.execute(SQL["event_count_between"], (conversation, after, upto)).fetchone()[0]
    return count


def positions_of(connection: sqlite3.Connection, id_: str, after: int, up_to: int) -> list[int]:
    """Where an event with this platform id stands."""
    return [row[0] for row in connection.execute(SQL["event_positions_of"], (after, up_to, id_))]


def position_of_seq(connection: sqlite3.Connection, conversation: int, epoch: int, seq: int) -> int | None:
    """The first position in a conversation at or above a seq."""
    position: int | None = connection.execute(SQL["event_position_of_seq"], (conversation, epoch, seq)).fetchone()[0]
    return position


def position_since(connection: sqlite3.Connection, moment: float) -> int | None:
    """The first position in the log that was not received before a moment, Unix seconds."""
    for part in parts(connection):
        low = _searched(connection, part, moment) if part.rises else part.after + 1
        found = connection.execute(SQL["event_position_since"], (low, part.upto, moment)).fetchone()
        if found is not None:
            return int(found[0])
    return None


def _searched(connection: sqlite3.Connection, part: Part, moment: float) -> int:
    """From where on a part holds what was received from a moment on."""
    low, high = part.after + 1, part.upto + 1
    while low < high:
        middle = (low + high) // 2
        row = connection.execute(SQL["event_received_at"], (middle, part.upto)).fetchone()
        if row is None or row[0] >= moment - _EARLY_MAX_S:
            high = middle
        else:
            low = middle + 1
    return low


def parts(connection: sqlite3.Connection) -> list[Part]:
    """The log in parts: what was imported, and what lies between."""
    keys = [row[0].split("/") for row in connection.execute(SQL["state_keys"], (IMPORTS,))]
    found, after = [], 0
    for start, stop in sorted((int(start), int(stop)) for start, stop in keys):
        found += [Part(after, start, True), Part(start, stop, False)]
        after = stop
    return [each for each in (*found, Part(after, last_position(connection), True)) if each.after < each.upto]


def last_position(connection: sqlite3.Connection) -> int:
    """The highest position ever given to a record, or 0."""
    position: int = connection.execute(SQL["last_position"]).fetchone()[0]
    return position
