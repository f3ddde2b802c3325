"""The journal on SQLite: the one writer and the one reader, each a connection with a thread of its own.

Always true: one process has the file (lock.py); the writing connection runs only groups of commits, the reading one
only reads, and neither waits for the other (WAL).
Not here: opening and checking the file (opening.py), grouping (group_commit.py), the tables (one module per family).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import aiosqlite

from agentd.config import JournalSettings
from agentd.core.events import Send
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
from agentd.journal.sqlite.group_commit import Call, GroupCommit
from agentd.journal.sqlite.lock import OwnerLock
from agentd.journal.sqlite.opening import SCHEMA, Schema, open_reader, open_writer
from agentd.journal.sqlite.writer import Writer
from agentd.journal.storage import (
    Attempt,
    Change,
    Conversation,
    DeadRow,
    GapNoted,
    OutboxRow,
    Outcome,
    Paused,
    Room,
    StoredRecord,
    TimerSet,
    Totals,
)

T = TypeVar("T")

_LOCK_LOOK_S = 0.02


class Connection(aiosqlite.Connection):
    """An aiosqlite connection that runs a whole function in its thread.

    aiosqlite offers one await, and so two hops between threads, for each statement; at any size of group that was
    measured to cost five to ten times as much as one hop for all of them.
    """

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        # A process that ends without closing must end all the same; to the file it is a crash, which is survived.
        self._thread.daemon = True

    async def open(self) -> Connection:
        """Start the thread and open the file there. Raises what the connector raises, with the thread ended."""
        try:
            await self
        except BaseException:
            await asyncio.to_thread(self._thread.join)
            raise
        return self

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run this in the connection's thread and give back what it returns."""
        # A closure, not arguments: aiosqlite logs those at debug level, and they hold people's messages.
        result: T = await self._execute(lambda: work(self._conn))  # type: ignore[no-untyped-call] # untyped there
        return result


async def open_journal(path: Path, settings: JournalSettings, *, schema: Schema = SCHEMA) -> SqliteJournal:
    """Open the journal, or make it if there is none; its folder is made too. Close it in the loop that opened it.

    Raises what `SqliteJournal.open` raises.
    """
    journal = SqliteJournal(path, settings, schema=schema)
    await journal.open()
    return journal


async def _lock_taken(path: Path, wait_s: float) -> OwnerLock:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return _take_lock(path)
        except JournalUnusable:
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(_LOCK_LOOK_S)


def _take_lock(path: Path) -> OwnerLock:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return OwnerLock(path)
    except OSError as error:
        raise JournalUnusable(
            f"{path} cannot be opened: {error.strerror}. Check that its folder belongs to the user that runs agentd."
        ) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class Counters:
    """The next free numbers, counted in memory from what the disk had when the journal opened."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.position = itertools.count(events.last_position(connection) + 1)
        self.conversation = itertools.count(marks.last_conversation(connection) + 1)
        self.gap = itertools.count(marks.last_gap(connection) + 1)


class SqliteJournal:
    """`storage.Journal` on one SQLite file. Nothing but `open` may be asked of it while it is closed."""

    _connection: Connection
    _reader: Connection
    _writer: Writer
    _counters: Counters
    _group: GroupCommit
    _task: asyncio.Task[None]

    def __init__(self, path: Path, settings: JournalSettings, *, schema: Schema = SCHEMA) -> None:
        self._path = path
        self._settings = settings
        self._schema = schema
        self._opened: contextlib.AsyncExitStack | None = None

    async def open(self, *, checked: bool = False, wait_s: float = 0.0) -> None:
        """Take the file, and make it if there is none; again after `close`. Close it in the loop that opened it.

        checked: whoever had it has closed it in order just now, so that its pages need not be read to be believed.
        wait_s: for whoever has it to be gone, which is so a moment after a process was killed.
        Raises JournalUnusable if it is in use, damaged, foreign or newer than this program, or JournalFull; both carry
        the remedy.
        """
        path, settings, schema = self._path, self._settings, self._schema
        opened = contextlib.AsyncExitStack()
        try:
            opened.callback((await _lock_taken(path, wait_s)).release)
            self._connection = await Connection(lambda: open_writer(path, settings, schema, checked=checked)).open()
            opened.push_async_callback(self._connection.close)
            self._writer, self._counters = await self._connection.run(
                lambda db: (Writer(db, path, limited=bool(settings.max_mb)), Counters(db))
            )
            self._reader = await Connection(lambda: open_reader(path, encryption=settings.encryption)).open()
            opened.push_async_callback(self._reader.close)
        except BaseException:
            await opened.aclose()
            raise
        self._opened = opened
        self._group = GroupCommit(self._write, settings.linger_ms / 1000, settings.full_retry_s)
        self._task = asyncio.create_task(self._group.run(), name="journal-writer")

    async def close(self) -> None:
        """Write what waits, then close the file and let it go; nothing if it is closed already.

        Without room what waits is refused with JournalFull.
        """
        if (opened := self._opened) is None:
            return
        self._opened = None
        self._group.close()
        try:
            await self._task
        finally:
            await opened.aclose()

    async def _write(self, calls: Sequence[Call]) -> dict[int, JournalError]:
        return await self._connection.run(lambda _: self._writer.write(calls))

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._reader.run(query)
        except sqlite3.Error as error:
            verdict = faults.verdict(error, self._path)
            if isinstance(verdict, JournalUnusable):
                self._group.give_up(verdict)
            raise verdict or JournalError(f"the journal cannot answer ({type(error).__name__})") from error

    def commit(self, *changes: Change) -> asyncio.Future[None]:
        """Put these on disk together; never blocks. Without changes: done when everything before it is on disk."""
        return self._group.commit(changes)

    def next_position(self) -> int:
        """The next free position."""
        return next(self._counters.position)

    def next_conversation(self) -> int:
        """The next free conversation number."""
        return next(self._counters.conversation)

    def next_gap(self) -> int:
        """The next free gap number."""
        return next(self._counters.gap)

    @property
    def last_commit_at(self) -> float | None:
        """When the last commit reached the disk, by the loop's clock, or None."""
        return self._group.last_commit_at

    @property
    def waiting_since(self) -> float | None:
        """Since when a commit has been waiting for the disk, by the loop's clock, or None."""
        return self._group.waiting_since

    @property
    def full(self) -> bool:
        """The disk has no room; commits wait."""
        return self._group.held_up is not None and self._group.held_up.full

    @property
    def at_limit(self) -> bool:
        """Commits wait because the file is as large as `max_mb` lets it become."""
        return self._group.held_up is not None and self._group.held_up.at_limit

    @property
    def size_bytes(self) -> int:
        """Size of the file; what was not checkpointed yet is not in it."""
        return _size(self._path)

    @property
    def wal_bytes(self) -> int:
        """Size of the file beside it, which a reader that does not end lets grow."""
        return _size(self._path.with_name(f"{self._path.name}-wal"))

    @property
    def waiting(self) -> int:
        """Commits that are not yet being written."""
        return self._group.waiting

    @property
    def last_commit_s(self) -> float:
        """How long the last group took to reach the disk."""
        return self._group.last_commit_s

    @property
    def commits(self) -> int:
        """Groups written since the journal was opened: one sync each."""
        return self._group.commits

    @property
    def changes(self) -> int:
        """Changes written since the journal was opened."""
        return self._group.changes

    async def handles(self) -> dict[str, str]:
        """Identity name to the handle it had last."""
        return await self._read(marks.handles)

    async def conversations(self, identity: str) -> list[Conversation]:
        """Every conversation of an identity, in the order in which they were met."""
        return await self._read(lambda db: marks.conversations(db, identity))

    async def ids_at(self, places: Sequence[tuple[int, int, int]]) -> list[str | None]:
        """Platform ids at (conversation number, epoch, seq); None where nothing is recorded."""
        return await self._read(lambda db: events.ids_at(db, places))

    async def ids_of(self, conversation: int) -> set[str]:
        """Every platform id recorded for a conversation, over all epochs."""
        return await self._read(lambda db: events.ids_of(db, conversation))

    async def totals(self, identity: str) -> Totals:
        """Counts of one identity."""
        return await self._read(lambda db: marks.totals(db, identity))

    async def gaps(self, identity: str | None, *, open_only: bool, limit: int) -> list[tuple[str, GapNoted]]:
        """(conversation id, gap), newest first; of every identity if None."""
        return await self._read(lambda db: marks.gaps(db, identity, open_only=open_only, limit=limit))

    async def cursors(self, plugin: str) -> dict[int, int]:
        """Conversation number to handled position."""
        return await self._read(lambda db: cursors.cursors(db, plugin))

    async def attempts(self, plugin: str) -> list[Attempt]:
        """Every failed event of a plugin that no cursor has passed."""
        return await self._read(lambda db: cursors.attempts(db, plugin))

    async def replays(self, plugin: str) -> dict[int, tuple[int, int]]:
        """Conversation number to (how many replays, position up to which the last one goes)."""
        return await self._read(lambda db: cursors.replays(db, plugin))

    async def outcomes(self, plugin: str, conversation: int, position: int) -> list[Outcome]:
        """What became of a recorded event with a plugin, oldest first."""
        return await self._read(lambda db: outcomes.outcomes(db, plugin, conversation, position))

    async def pauses(self) -> list[Paused]:
        """Conversations in which no handler runs, the oldest first."""
        return await self._read(pauses.pauses)

    async def conversation_find(self, identity: str, conversation: str) -> Conversation | None:
        """One conversation by the platform's id, or None."""
        return await self._read(lambda db: marks.find(db, identity, conversation))

    async def conversation_with(self, identity: str, handle: str) -> str | None:
        """Id of the conversation in which a send to this handle arrived lately; None if there was none."""
        return await self._read(lambda db: outbox.conversation_with(db, identity, handle))

    async def read_lane(self, conversation: int, after: int, limit: int) -> list[StoredRecord]:
        """Records of one conversation behind a position, in the order of delivery."""
        return await self._read(lambda db: events.read_lane(db, conversation, after, limit))

    async def count_behind(self, conversation: int, after: int) -> int:
        """How many records of a conversation lie behind a position."""
        return await self._read(lambda db: events.count_behind(db, conversation, after))

    async def count_between(self, conversation: int, after: int, upto: int) -> int:
        """How many records of a conversation lie behind a position, up to another."""
        return await self._read(lambda db: events.count_between(db, conversation, after, upto))

    async def read_log(self, identity: str | None, after: int, limit: int) -> list[StoredRecord]:
        """Records behind a position over all conversations."""
        return await self._read(lambda db: events.read_log(db, identity, after, limit))

    async def position_of_seq(self, conversation: int, epoch: int, seq: int) -> int | None:
        """The first position in a conversation at or above a seq; None if there is none."""
        return await self._read(lambda db: events.position_of_seq(db, conversation, epoch, seq))

    async def position_since(self, moment: float) -> int | None:
        """The first position in the log that was received from this moment on, Unix seconds; None if there is none."""
        return await self._read(lambda db: events.position_since(db, moment))

    async def last_position(self) -> int:
        """The highest position on disk, or 0."""
        return await self._read(events.last_position)

    async def positions_of(self, id_: str, after: int, up_to: int) -> list[int]:
        """Where an event with this platform id stands, from behind one position up to another; reads all between."""
        return await self._read(lambda db: events.positions_of(db, id_, after, up_to))

    async def timers(self, plugin: str) -> list[TimerSet]:
        """Every timer of a plugin, the earliest first."""
        return await self._read(lambda db: timers.timers(db, plugin))

    async def state_get(self, plugin: str, conversation: int, key: str) -> bytes | None:
        """A plugin's value, or None."""
        return await self._read(lambda db: plugin_state.get(db, plugin, conversation, key))

    def state_bytes(self, plugin: str) -> int:
        """What a plugin keeps on disk, keys and values."""
        return self._writer.state_sizes.of(plugin)

    async def answers_since(self, identity: str, since: float) -> list[tuple[str, str, float]]:
        """(conversation id, peer, Unix seconds) of sends that a peer's messages caused, oldest first."""
        return await self._read(lambda db: outbox.answers_since(db, identity, since))

    async def outbox_open(self, identity: str) -> list[Send]:
        """Sends that are not settled, in the order in which they were queued."""
        return await self._read(lambda db: outbox.open_sends(db, identity))

    async def outbox_find(self, client_msg_id: str, identity: str) -> OutboxRow | None:
        """The send under this key, with what became of it."""
        return await self._read(lambda db: outbox.find(db, client_msg_id, identity))

    async def outbox_list(self, identity: str, states: Sequence[str], limit: int) -> list[OutboxRow]:
        """Sends in any of these states, newest first."""
        return await self._read(lambda db: outbox.listed(db, identity, states, limit))

    async def dead(self, identity: str | None, limit: int, *, dropped_too: bool = False) -> list[DeadRow]:
        """Dead letters of one identity or of all, newest first."""
        return await self._read(lambda db: dead_letters.dead(db, identity, limit, dropped_too))

    def dead_count(self, identity: str) -> int:
        """How many dead letters of an identity nobody is through with."""
        return self._writer.dead_counts.of(identity)

    async def dead_find(self, number: int) -> DeadRow | None:
        """The dead letter with this number."""
        return await self._read(lambda db: dead_letters.find(db, number))

    async def dead_at(self, conversation: int, position: int) -> list[DeadRow]:
        """The dead letters of one event: at most one for each plugin."""
        return await self._read(lambda db: dead_letters.at(db, conversation, position))

    async def trimmable(self, stretch: trimming.Stretch) -> trimming.Found:
        """What retention may let go of in a stretch, as things stand."""
        return await self._read(lambda db: trimming.find(db, stretch))

    async def newest_in(self, after: int, upto: int) -> float | None:
        """When the last event of a stretch came, or None if there is none."""
        return await self._read(lambda db: trimming.newest_in(db, after, upto))

    async def parts(self, what: str) -> list[events.Part]:
        """The parts that retention walks a table in."""
        return await self._read(lambda db: trimming.parts(db, what))

    async def last_trim(self) -> int:
        """The number of the last trace of retention, or 0."""
        return await self._read(trimming.last_run)

    async def trimmed(self, limit: int) -> list[trimming.Trimmed]:
        """What retention let go, the last run first."""
        return await self._read(lambda db: trimming.trimmed(db, limit))

    async def room(self) -> Room:
        """How large the file is, and how much of it is free."""
        return await self._read(trimming.room)

    async def settle_file(self) -> None:
        """Let the file follow what was committed, as far as nobody reads what it was before."""
        try:
            await self._connection.run(lambda db: db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone())
        except sqlite3.Error as error:
            raise JournalError(f"the journal's file was not brought up to date ({type(error).__name__})") from error
