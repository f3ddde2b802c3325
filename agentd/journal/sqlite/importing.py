"""Exported conversations come into a journal that no daemon holds.

For a command, not for the daemon: everything here blocks. The file is read once, line by line, and written in one
transaction as it is read, so that its size costs no memory.

Always true: all of it is there afterwards, or nothing. Only conversations that the journal does not know are added;
one that it knows must hold the very same events, which makes a repeat harmless. A plugin that serves the identity
already counts as through with what is added; one that comes later begins behind it anyway.
Not here: the lines (core/exported.py), what marks follow from them (core/adopted.py).
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from agentd.config import JournalSettings
from agentd.core.adopted import Adopted
from agentd.core.events import Event, Record
from agentd.core.exported import Exported
from agentd.errors import ExportMisfit, JournalUnusable
from agentd.journal.sqlite import cursors, events, marks, opening, plugin_state
from agentd.journal.sqlite.copies import owned
from agentd.journal.sqlite.names import Names
from agentd.journal.sqlite.statements import SQL
from agentd.journal.storage import (
    IMPORTS,
    SUBSCRIPTIONS,
    Account,
    Appended,
    Conversation,
    CursorMoved,
    GapNoted,
    StatePut,
)

NOT_IN_THE_FILE = "not in the imported file"
"""Reason of what an imported conversation lacks."""

_ROWS_PER_WRITE = 512

Fit = Callable[[Event], str | None]
"""Says why an event cannot be one of this installation's, or None."""


class Imported(msgspec.Struct, frozen=True):
    """What came of a file. known: events of conversations that were there already, and are the same."""

    conversations: int
    events: int
    known: int


def import_events(
    path: Path,
    lines: Iterable[tuple[int, Exported]],
    *,
    identity: str | None,
    platform: str,
    fit: Fit,
    now: float,
    settings: JournalSettings,
) -> Imported:
    """Put these events into the journal, which is made if there is none.

    identity: whose they become; None leaves them to those who have them in the file. platform: theirs. now: Unix
    seconds.
    Raises ExportMisfit or ExportUnreadable, which name the line, and JournalUnusable if a daemon holds the journal.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with owned(path):
            found = path.exists()
            opened = opening.open_writer(path, settings)
            with contextlib.closing(opened) as connection, opening.told(path):
                imported = _in_one_transaction(connection, lines, _Importing(connection, identity, platform, fit, now))
            if not found:
                shutil.chown(path, path.parent.stat().st_uid, path.parent.stat().st_gid)  # root imports for the daemon
            return imported
    except OSError as error:
        raise JournalUnusable(f"{path} cannot be written: {error.strerror}. Check its folder and owner.") from error


def _in_one_transaction(
    connection: sqlite3.Connection, lines: Iterable[tuple[int, Exported]], importing: _Importing
) -> Imported:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for number, told in lines:
            importing.take(number, told)
        imported = importing.end()
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return imported


class _New:
    """A conversation that the journal did not know. position: of its last event."""

    def __init__(self, number: int, identity: str, conversation: str) -> None:
        self.number = number
        self.identity = identity
        self.conversation = conversation
        self.standing = Adopted()
        self.position = 0


class _Importing:
    """One file on its way in."""

    def __init__(
        self, connection: sqlite3.Connection, identity: str | None, platform: str, fit: Fit, now: float
    ) -> None:
        self._connection = connection
        self._identity = identity
        self._platform = platform
        self._fit = fit
        self._now = now
        self._identities = Names(connection, "identity")
        self._plugins = Names(connection, "plugin")
        self._absences = marks.Absences(connection)
        self._handles = marks.handles(connection)
        self._accounts: list[Account] = []
        self._position = events.last_position(connection)
        self._number = marks.last_conversation(connection)
        self._met: dict[tuple[str, str], _New | Conversation] = {}
        self._speaker: str | None = None
        self._rows: list[Appended] = []
        self._events = self._known = 0

    def take(self, line: int, told: Exported) -> None:
        """The next event of the file. Raises ExportMisfit."""
        event = self._readdressed(line, told.event)
        if why := self._fit(event) or self._speaks_as_another(event):
            raise ExportMisfit(line, why)
        place = self._met.get((event.identity, event.conversation)) or self._meet(event)
        if isinstance(place, Conversation):
            self._compare(line, place, event)
            return
        try:
            place.standing.take(event)
        except ValueError as error:
            raise ExportMisfit(line, f"conversation {event.conversation}: {error}; export it anew") from None
        self._position += 1
        place.position = self._position
        self._rows.append(Appended(Record(self._position, place.number, event, told.received_at)))
        self._events += 1
        if len(self._rows) == _ROWS_PER_WRITE:
            self._write_rows()

    def _readdressed(self, line: int, event: Event) -> Event:
        if self._identity is None:
            return event
        if self._speaker not in (None, event.identity):
            raise ExportMisfit(
                line,
                f"it is of identity {event.identity}, and those before it are of {self._speaker}; "
                f"only one can become {self._identity}: export each with `agentd export --as`",
            )
        self._speaker = event.identity
        return msgspec.structs.replace(event, identity=self._identity)

    def _speaks_as_another(self, event: Event) -> str | None:
        """What an identity said itself is told by its handle, so another account's conversations are not its own.

        Where the journal has none yet, the file tells whose account it is; a key of another one is refused then.
        """
        if not event.own:
            return None
        handle = self._handles.get(event.identity)
        if handle is None:
            self._handles[event.identity] = event.sender
            self._accounts.append(Account(event.identity, self._platform, event.sender))
            return None
        if event.sender == handle:
            return None
        return f"{event.sender} said it as itself, and {event.identity} is {handle}; name the right one with --as"

    def _meet(self, event: Event) -> _New | Conversation:
        place: _New | Conversation | None = marks.find(self._connection, event.identity, event.conversation)
        if place is None:
            self._number += 1
            place = _New(self._number, event.identity, event.conversation)
            # Events refer to it, so it is there before them; how far it goes is known at the end.
            self._put(Conversation(place.number, place.identity, place.conversation, event.epoch, 1, 0, "", 0, 0))
        self._met[event.identity, event.conversation] = place
        return place

    def _compare(self, line: int, known: Conversation, event: Event) -> None:
        [recorded] = events.ids_at(self._connection, [(known.number, event.epoch, event.seq)])
        if recorded != event.id:
            has = "nothing" if recorded is None else "another event"
            raise ExportMisfit(
                line,
                f"this journal knows conversation {event.conversation} of {event.identity} and has {has} at seq "
                f"{event.seq} of epoch {event.epoch}; take such conversations out of the file, or import it into a "
                "journal that does not know them",
            )
        self._known += 1

    def _write_rows(self) -> None:
        events.write(self._connection, self._identities, self._rows)
        self._rows.clear()

    def _put(self, conversation: Conversation) -> None:
        marks.write_conversations(self._connection, self._identities, self._absences, [conversation])

    def end(self) -> Imported:
        """That was all: note how far each conversation goes, where it stands, and that no plugin waits for it."""
        self._write_rows()
        marks.write_accounts(self._connection, self._identities, self._accounts)
        new = [place for place in self._met.values() if isinstance(place, _New)]
        gap = marks.last_gap(self._connection)
        for place in new:
            standing = place.standing
            self._put(
                Conversation(
                    place.number,
                    place.identity,
                    place.conversation,
                    standing.epoch,
                    standing.anchor,
                    standing.mark,
                    standing.mark_id,
                    standing.mark,
                    place.position,
                    standing.absent.as_tuple(),
                    standing.address,
                )
            )
            noted = [self._noted(gap + index, place, *hole) for index, hole in enumerate(standing.holes, start=1)]
            marks.write_gaps(self._connection, noted)
            gap += len(noted)
        handled = [
            CursorMoved(plugin, place.number, place.position)
            for place in new
            for plugin in self._serving(place.identity)
        ]
        cursors.write(self._connection, self._plugins, cursors.FailedLanes(self._connection), handled)
        if self._events:
            stretch = f"{self._position - self._events}/{self._position}"
            sizes = plugin_state.sizes(self._connection)
            plugin_state.write(self._connection, self._plugins, sizes, [StatePut(IMPORTS, 0, stretch, b"true")])
        return Imported(len(new), self._events, self._known)

    def _noted(self, number: int, place: _New, start: int, stop: int) -> GapNoted:
        """What is missing is said like any other absence."""
        return GapNoted(
            number,
            place.number,
            place.standing.epoch,
            start,
            stop,
            found_at=self._now,
            closed_at=self._now,
            outcome="absent",
            absent=stop - start,
            reason=NOT_IN_THE_FILE,
        )

    def _serving(self, identity: str) -> list[str]:
        """The plugins that have begun to serve this identity."""
        keys = [row[0] for row in self._connection.execute(SQL["state_keys"], (SUBSCRIPTIONS,))]
        return [key.removeprefix(f"{identity}/") for key in keys if key.startswith(f"{identity}/")]
