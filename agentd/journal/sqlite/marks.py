"""Conversations, gaps and the accounts they belong to.

Always true: absent ranges are written only when they differ from what is on disk.
Not here: what a mark means (core/sequencer.py), events (events.py).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from agentd.journal.sqlite.names import Names
from agentd.journal.sqlite.statements import SQL, Row, write_rows
from agentd.journal.storage import Account, Conversation, GapNoted, Totals

Ranges = tuple[tuple[int, int], ...]

_decode_ranges = msgspec.json.Decoder(Ranges).decode


class Absences:
    """The absent ranges that are on disk, kept so that an unchanged conversation costs a comparison and no write.

    The comparison is usually of a tuple with itself, since a mark moves far more often than its absent ranges grow.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        rows = connection.execute(SQL["absence_list"])
        self._known: dict[int, Ranges | None] = {number: _decode_ranges(text) for number, text in rows}
        self._fresh: dict[int, Ranges] = {}

    def differs(self, conversation: int, ranges: Ranges) -> bool:
        """These ranges are not what the disk has, or nobody knows what it has."""
        on_disk = self._fresh.get(conversation)
        if on_disk is None:
            on_disk = self._known.get(conversation, ())
        return on_disk is not ranges and on_disk != ranges

    def written(self, conversation: int, ranges: Ranges) -> None:
        """The running transaction writes these."""
        self._fresh[conversation] = ranges

    def committed(self) -> None:
        """The transaction is on disk."""
        self._known.update(self._fresh)
        self._fresh.clear()

    def rolled_back(self) -> None:
        """All or a part is undone, so it is not known which ranges the disk will have in the end."""
        self._known.update(dict.fromkeys(self._fresh, None))
        self._fresh.clear()


def write_accounts(connection: sqlite3.Connection, identities: Names, changes: Sequence[Account]) -> None:
    """Keep the handle of each identity."""
    for change in changes:
        number = identities.number(change.identity)
        connection.execute(SQL["identity_account"], (change.platform, change.handle, number))


def write_conversations(
    connection: sqlite3.Connection, identities: Names, absences: Absences, changes: Sequence[Conversation]
) -> None:
    """Keep how far each conversation is accounted for; of several changes to one, the last."""
    newest = {change.number: change for change in changes}.values()
    write_rows(
        connection,
        SQL["conversation_put"],
        [_conversation_row(identities, change) for change in newest],
    )
    changed = [c for c in newest if absences.differs(c.number, c.absent)]
    rows = [(c.number, msgspec.json.encode(c.absent).decode()) for c in changed]
    write_rows(connection, SQL["absence_put"], rows)
    for c in changed:
        absences.written(c.number, c.absent)


def _conversation_row(identities: Names, c: Conversation) -> Row:
    place = (c.number, identities.number(c.identity), c.conversation)
    return (*place, c.epoch, c.anchor, c.mark, c.mark_id, c.top, c.position, c.address)


def write_gaps(connection: sqlite3.Connection, changes: Sequence[GapNoted]) -> None:
    """Keep each gap as it stands now; of several changes to one, the last."""
    newest = {change.number: change for change in changes}.values()
    write_rows(
        connection,
        SQL["gap_put"],
        [_gap_row(change) for change in newest],
    )


def _gap_row(g: GapNoted) -> Row:
    place = (g.number, g.conversation, g.epoch, g.start, g.stop)
    return (*place, g.found_at, g.attempts, g.rows, g.closed_at, g.outcome, g.absent, g.reason)


def handles(connection: sqlite3.Connection) -> dict[str, str]:
    """Identity name to handle."""
    return dict(connection.execute(SQL["identity_handles"]))


def conversations(connection: sqlite3.Connection, identity: str) -> list[Conversation]:
    """Every conversation of an identity, by number."""
    return [_conversation(identity, row) for row in connection.execute(SQL["conversation_list"], (identity,))]


def find(connection: sqlite3.Connection, identity: str, conversation: str) -> Conversation | None:
    """One conversation by the platform's id, or None."""
    row = connection.execute(SQL["conversation_find"], (identity, conversation)).fetchone()
    return _conversation(identity, row) if row else None


def _conversation(identity: str, row: Sequence[Any]) -> Conversation:
    number, id_, epoch, anchor, mark, mark_id, top, position, address, ranges = row
    absent = _decode_ranges(ranges) if ranges else ()
    return Conversation(number, identity, id_, epoch, anchor, mark, mark_id, top, position, absent, address)


def gaps(
    connection: sqlite3.Connection, identity: str | None, *, open_only: bool, limit: int
) -> list[tuple[str, GapNoted]]:
    """(conversation id, gap), newest first."""
    statement = SQL["gap_list_open" if open_only else "gap_list"]
    return [(id_, GapNoted(*fields)) for id_, *fields in connection.execute(statement, (identity, limit))]


def totals(connection: sqlite3.Connection, identity: str) -> Totals:
    """Counts of one identity; all zero if the journal has never heard of it."""
    row = connection.execute(SQL["identity_totals"], (identity,)).fetchone()
    journaled, absent = row or (0, 0)
    return Totals(journaled, absent, dict(connection.execute(SQL["outbox_totals"], (identity,))))


def last_conversation(connection: sqlite3.Connection) -> int:
    """The highest conversation number in use, or 0."""
    number: int = connection.execute(SQL["last_conversation"]).fetchone()[0]
    return number


def last_gap(connection: sqlite3.Connection) -> int:
    """The highest gap number in use, or 0."""
    number: int = connection.execute(SQL["last_gap"]).fetchone()[0]
    return number
