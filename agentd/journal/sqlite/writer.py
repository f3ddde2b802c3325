"""Carries out groups of commits; everything here runs in the writing connection's thread.

A group is one transaction. Its changes are sorted by kind and written kind by kind, what others refer to first, so
that a group costs a few wide statements however many commits it holds.

Always true: a commit is written whole or not at all, and to the file that has the journal's name. If a commit is broken
(a place that is taken, a conversation that nobody knows), only that one is left out, and the others of its group are
written in their order.
Not here: when a group is written, and waiting for room (group_commit.py).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from agentd.errors import JournalError, JournalUnusable
from agentd.journal.sqlite import (
    cursors,
    dead_letters,
    events,
    faults,
    marks,
    outbox,
    outcomes,
    pauses,
    plugin_state,
    timers,
    trimming,
)
from agentd.journal.sqlite.names import Names
from agentd.journal.sqlite.tallies import Tally
from agentd.journal.storage import (
    Account,
    Appended,
    Attempt,
    Carried,
    Change,
    Conversation,
    CursorMoved,
    Dead,
    DeadDropped,
    GapNoted,
    Outcome,
    Paused,
    Queued,
    Resumed,
    Retried,
    Rewound,
    Shrink,
    StatePut,
    TimerGone,
    TimerSet,
    Trim,
)


class Writer:
    """Writes groups through one connection, and remembers what saves it from asking the disk.

    limited: the file may not grow past a bound of its own.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, *, limited: bool) -> None:
        self._connection = connection
        self._path = path
        self._limited = limited
        self._file = _file_at(path)
        self._identities = Names(connection, "identity")
        self._plugins = Names(connection, "plugin")
        self._absences = marks.Absences(connection)
        self._failed = cursors.FailedLanes(connection)
        self.state_sizes = plugin_state.sizes(connection)
        self.dead_counts = dead_letters.counts(connection)

    def write(self, calls: Sequence[Sequence[Change]]) -> dict[int, JournalError]:
        """Write a group of commits in one transaction.

        Returns the commits that cannot ever be written, by their index in the group.
        Raises MustWait if nothing was written and the same group can be written later, JournalUnusable if the file
        must be given up.
        """
        try:
            self._transaction(lambda: self._apply(change for call in calls for change in call))
        except _Offence:
            return self._write_each(calls)
        return {}

    def _write_each(self, calls: Sequence[Sequence[Change]]) -> dict[int, JournalError]:
        """The same group again, each commit in a savepoint, to find out which of them is to blame."""
        offences: dict[int, JournalError] = {}

        def each() -> None:
            offences.clear()
            for index, call in enumerate(calls):
                try:
                    self._savepoint(call)
                except _Offence as offence:
                    offences[index] = JournalError(str(offence))

        self._transaction(each)
        return offences

    def _transaction(self, work: Callable[[], None]) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            work()
            self._must_be_there()
            self._connection.execute("COMMIT")
        except BaseException as error:
            if self._connection.in_transaction:  # SQLite ends it by itself when the disk fails
                self._connection.execute("ROLLBACK")
            self._rolled_back()
            if isinstance(error, sqlite3.Error) and (verdict := self._verdict(error)):
                raise verdict from error
            raise
        for memory in self._memories():
            memory.committed()

    def _must_be_there(self) -> None:
        # SQLite would go on writing to a file that has no name any more, and nothing of that is there after the end.
        if _file_at(self._path) != self._file:
            raise JournalUnusable(
                f"{self._path} was moved, removed or replaced while agentd had it open. Put the file back that it had, "
                "then start again; a backup is put in its place by agentd restore, with the daemon stopped."
            )

    def _savepoint(self, call: Sequence[Change]) -> None:
        self._connection.execute("SAVEPOINT one_commit")
        try:
            self._apply(call)
        except _Offence:
            self._connection.execute("ROLLBACK TO one_commit")
            self._rolled_back()
            raise
        finally:
            if self._connection.in_transaction:
                self._connection.execute("RELEASE one_commit")

    def _verdict(self, error: sqlite3.Error) -> faults.MustWait | JournalUnusable | None:
        return faults.verdict(error, self._path, limited=self._limited)

    def _rolled_back(self) -> None:
        for memory in self._memories():
            memory.rolled_back()

    def _memories(self) -> tuple[Names | marks.Absences | cursors.FailedLanes | Tally, ...]:
        return self._identities, self._plugins, self._absences, self._failed, self.state_sizes, self.dead_counts

    def _apply(self, changes: Iterable[Change]) -> None:
        families: dict[str, list[Any]] = {}
        for change in changes:
            table = _TABLE_OF.get(type(change))
            if table is None:
                raise _Offence("?", f"{type(change).__name__} is no change")
            families.setdefault(table, []).append(change)
        for table in _ORDER:
            if table in families:
                self._apply_family(table, families[table])

    def _apply_family(self, table: str, changes: list[Any]) -> None:
        try:
            self._write_family(table, changes)
        except sqlite3.Error as error:
            if verdict := self._verdict(error):
                raise verdict from error
            raise _Offence(table, getattr(error, "sqlite_errorname", type(error).__name__)) from error
        except faults.BrokenChange as error:
            raise _Offence(table, str(error)) from error
        except (ValueError, TypeError, OverflowError) as error:  # a value that SQLite or JSON cannot hold
            raise _Offence(table, type(error).__name__) from error

    def _write_family(self, table: str, changes: list[Any]) -> None:
        connection = self._connection
        match table:
            case "identity":
                marks.write_accounts(connection, self._identities, changes)
            case "conversation":
                marks.write_conversations(connection, self._identities, self._absences, changes)
            case "event":
                events.write(connection, self._identities, changes)
            case "gap":
                marks.write_gaps(connection, changes)
            case "cursor":
                cursors.write(connection, self._plugins, self._failed, changes)
            case "outcome":
                outcomes.write(connection, self._plugins, changes)
            case "pause":
                pauses.write(connection, changes)
            case "dead":
                dead_letters.write(connection, self._plugins, self.dead_counts, changes)
            case "state":
                plugin_state.write(connection, self._plugins, self.state_sizes, changes)
            case "timer":
                timers.write(connection, self._plugins, self._identities, changes)
            case "outbox":
                outbox.write(connection, self._identities, changes)
            case "trimmed":
                trimming.write(connection, changes)
            case "room":
                trimming.give_back(connection, changes)


def _file_at(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class _Offence(Exception):
    """A change that this journal cannot ever hold. Carries the table and the kind of fault, never the values."""

    def __init__(self, table: str, fault: str) -> None:
        super().__init__(f"the journal cannot hold this change to `{table}`: {fault}")


# What a row refers to is written before it. Cursors and attempts are one family, since a cursor clears the attempts
# that came before it; so are queued sends and what became of them.
_TABLE_OF: dict[type, str] = {
    Account: "identity",
    Conversation: "conversation",
    Appended: "event",
    GapNoted: "gap",
    CursorMoved: "cursor",
    Rewound: "cursor",
    Attempt: "cursor",
    Outcome: "outcome",
    Paused: "pause",
    Resumed: "pause",
    Dead: "dead",
    DeadDropped: "dead",
    StatePut: "state",
    TimerSet: "timer",
    TimerGone: "timer",
    Queued: "outbox",
    Carried: "outbox",
    Retried: "outbox",
    Trim: "trimmed",
    Shrink: "room",
}
_ORDER = tuple(dict.fromkeys(_TABLE_OF.values()))
