"""What the actors may ask of the journal, and the changes they may hand it.

A change is a frozen value; `Journal.commit` takes any number of them as one atomic whole. Commits are carried out in
the order in which they were handed in, many per transaction, and a commit's future is done only after the fsync.

Always true: one writer; a commit is on disk whole or not at all; positions rise in the order of commits.
Not here: SQL (sqlite/), and every decision about what to write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec

from agentd.core.events import Event, Position, Record, Send

SUBSCRIPTIONS = "agentd.subscriptions"
"""Whose state says from which position on a plugin serves an identity, under IDENTITY/PLUGIN. No plugin's name has a
dot."""

IMPORTS = "agentd.imports"
"""Whose state says which stretches of the log were imported, under AFTER/UPTO: when their events were received does not
follow from where they stand."""


class Conversation(msgspec.Struct, frozen=True, gc=False):
    """Change: how far a conversation is accounted for. Also what is read back at start.

    number: the journal's own number for it. anchor: its first seq that we answer for. mark: every seq in
    [anchor, mark] is accounted for and on disk. mark_id: platform id of the event at the mark, or "". top: the highest
    seq known to exist. position: of its last record. absent: half-open ranges below the mark that never came, the
    stretch before the anchor included, so that a latecomer is told from a repeat. address: where an answer goes, if
    that is not the conversation's id, or "".
    """

    number: int
    identity: str
    conversation: str
    epoch: int
    anchor: int
    mark: int
    mark_id: str
    top: int
    position: int
    absent: tuple[tuple[int, int], ...] = ()
    address: str = ""


class Appended(msgspec.Struct, frozen=True, gc=False):
    """Change: a record joins the log. Its position comes from `Journal.next_position`; its payload is never empty."""

    record: Record


class GapNoted(msgspec.Struct, frozen=True, gc=False):
    """Change: a gap as it stands now. Written when found, when asked for, when closed.

    start, stop: half-open seq range. outcome: "" while open, then "filled", "absent", "mixed" or "reset".
    absent: how many of its seqs never came. reason: why the server did not have them.
    """

    number: int
    conversation: int
    epoch: int
    start: int
    stop: int
    found_at: float
    attempts: int = 0
    rows: int = 0
    closed_at: float | None = None
    outcome: str = ""
    absent: int = 0
    reason: str = ""


class CursorMoved(msgspec.Struct, frozen=True, gc=False):
    """Change: a lane has handled everything up to this position. plugin: its name."""

    plugin: str
    conversation: int
    position: int


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """Change and row: an event that failed in a lane, or is running again. Cleared by a cursor that passes it.

    count: attempts that ended in failure. not_before: Unix seconds; infinite for a lane that is parked behind this
    event. deaths: how often the process died while it ran, and it was blamed. until: position of the last event of the
    turn, which is repeated with the same events; 0 where it had this one only. progress: what the last attempt noted,
    JSON.
    """

    plugin: str
    conversation: int
    position: int
    count: int
    error: str
    not_before: float
    deaths: int = 0
    until: int = 0
    progress: bytes | None = None


class Rewound(msgspec.Struct, frozen=True, gc=False):
    """Change: a lane handles recorded events again, from behind this position.

    replay: how often that has happened to this lane. until: where the lane stood; up to there its sends have new keys.
    What had failed in the lane is forgotten.
    """

    plugin: str
    conversation: int
    position: int
    replay: int
    until: int


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """Change and row: what a turn came to, in a word, or why events were passed over. For people and audits.

    conversation: the journal's number, 0 for none. first, last: positions of the turn's events, 0 for none. data: JSON
    or None. at: Unix seconds.
    """

    plugin: str
    conversation: int
    first: int
    last: int
    word: str
    data: bytes | None
    at: float


class Paused(msgspec.Struct, frozen=True, kw_only=True):
    """Change and row: no handler runs in a conversation until it is resumed; its mail is kept.

    number: the journal's. at, until: Unix seconds; until None for "until somebody resumes it". watchers: plugins that
    only watch stand still, too.
    """

    number: int
    identity: str
    conversation: str
    at: float
    until: float | None
    reason: str
    watchers: bool = True


class Resumed(msgspec.Struct, frozen=True):
    """Change: handlers run in this conversation again. number: the journal's."""

    number: int


class Dead(msgspec.Struct, frozen=True):
    """Change and row: a delivery that was given up. The record itself stays in the log."""

    plugin: str
    conversation: int
    position: int
    attempts: int
    error: str
    traceback: str
    plugin_version: str
    died_at: float


class DeadRow(Dead, frozen=True, kw_only=True):
    """A dead letter with its number, for people to read. dropped_at: when somebody was through with it, or None."""

    number: int
    identity: str
    conversation_id: str
    dropped_at: float | None


class DeadDropped(msgspec.Struct, frozen=True):
    """Change: nobody needs to look at this dead letter any more. number: see DeadRow. It stays, and says so."""

    number: int
    at: float


class Queued(msgspec.Struct, frozen=True, gc=False):
    """Change: a send joins the outbox. If its client_msg_id is there already, the first one stands."""

    send: Send
    queued_at: float


class Carried(msgspec.Struct, frozen=True, gc=False):
    """Change: what became of a send.

    state: "ready" (again, not before), "sending", "sent", "unknown", "refused", "expired" or "dropped".
    result_id, result_seq, conversation: where it stands on the platform, once sent. error: why it is not, in words;
    code, request_id: the same as the platform put it, where it did. after: see Send.
    """

    client_msg_id: str
    identity: str
    state: str
    attempts: int
    not_before: float = 0.0
    result_id: str | None = None
    result_seq: int | None = None
    conversation: str | None = None
    error: str = ""
    at: float = 0.0
    code: str = ""
    request_id: str | None = None
    after: Position | None = None


class Retried(msgspec.Struct, frozen=True):
    """Change: somebody wants a send to leave after all: it is "ready" at once, and does not expire any more."""

    client_msg_id: str
    identity: str
    at: float


class StatePut(msgspec.Struct, frozen=True, gc=False):
    """Change: a plugin's durable value, JSON bytes, or None to remove it. conversation 0: the plugin's own."""

    plugin: str
    conversation: int
    key: str
    value: bytes | None


class TimerSet(msgspec.Struct, frozen=True):
    """Change and row: a plugin wants to be woken, again if it failed; or it gets a recorded event out of its order.

    id: derived from its cause. conversation: the journal's number, 0 with conversation_id "" for none. name: of the
    handler that recurs, or "". due_at: Unix seconds; infinite once it was given up, for people to see. data: JSON.
    position: of the recorded event that is delivered instead of a Timer, or 0. again: what sets the keys of its sends
    apart from those of the first delivery, or "" where they are the same. progress: as for Attempt.
    """

    id: str
    plugin: str
    identity: str
    conversation: int
    conversation_id: str
    name: str
    due_at: float
    data: bytes
    failures: int = 0
    error: str = ""
    position: int = 0
    again: str = ""
    progress: bytes | None = None


class TimerGone(msgspec.Struct, frozen=True):
    """Change: a timer has fired, or is not wanted any more."""

    id: str


class Account(msgspec.Struct, frozen=True):
    """Change: the handle that the platform gave this identity's key."""

    identity: str
    platform: str
    handle: str


class Trim(msgspec.Struct, frozen=True):
    """Change: let go of what nobody needs any more in a stretch of the log or of the outbox, and note that it was.

    run: number of the trace that this adds to. what: "event", "outbox" or "outcome". after, upto: positions or numbers,
    the first exclusive. before: Unix seconds; what is younger stays. ignoring: plugins that are not waited for.
    """

    run: int
    what: str
    after: int
    upto: int
    before: float
    ignoring: tuple[str, ...]
    reason: str
    at: float


class Shrink(msgspec.Struct, frozen=True):
    """Change: give up to so many free pages of the file back to the disk."""

    pages: int


class Room(msgspec.Struct, frozen=True):
    """What the journal takes. used_bytes: of pages that hold something. free_bytes: of those that do not.

    gives_back: free pages can be given back while it is open.
    """

    used_bytes: int
    free_bytes: int
    gives_back: bool

    @property
    def size_bytes(self) -> int:
        """All of its pages."""
        return self.used_bytes + self.free_bytes


Change = (
    Conversation
    | Appended
    | GapNoted
    | CursorMoved
    | Rewound
    | Attempt
    | Outcome
    | Paused
    | Resumed
    | Dead
    | DeadDropped
    | Queued
    | Carried
    | Retried
    | StatePut
    | TimerSet
    | TimerGone
    | Account
    | Trim
    | Shrink
)


class OutboxRow(msgspec.Struct, frozen=True):
    """A send with what became of it, for people to read. See Carried. changed_at: Unix seconds of the last news."""

    send: Send
    error: str
    queued_at: float
    result_id: str | None
    result_seq: int | None
    conversation: str | None
    changed_at: float
    code: str = ""
    request_id: str | None = None


class Totals(msgspec.Struct, frozen=True):
    """Counts of one identity, read once at start and kept in memory from then on."""

    journaled: int
    absent: int
    outbox: dict[str, int]


class Journal(Protocol):
    """The storage interface. Reads see every commit whose future was done before they were asked, and never a part."""

    def commit(self, *changes: Change) -> asyncio.Future[None]:
        """Put these on disk together; never blocks. The future raises JournalError if they cannot ever be.

        Without changes it is a barrier: done when everything handed in before it is on disk.
        """
        ...

    def next_position(self) -> int:
        """The next free position; taken by the caller, who appends in the order of taking."""
        ...

    def next_conversation(self) -> int:
        """A number for a conversation that is about to be met."""
        ...

    def next_gap(self) -> int:
        """A number for a gap."""
        ...

    @property
    def last_commit_at(self) -> float | None:
        """When the last commit reached the disk, by the loop's clock, or None."""
        ...

    @property
    def waiting_since(self) -> float | None:
        """Since when a commit has been waiting for the disk, by the loop's clock, or None."""
        ...

    @property
    def full(self) -> bool:
        """The disk has no room; commits wait."""
        ...

    @property
    def at_limit(self) -> bool:
        """The same, since the journal is as large as its own limit lets it become."""
        ...

    @property
    def waiting(self) -> int:
        """Commits that are not yet being written."""
        ...

    @property
    def size_bytes(self) -> int:
        """What the journal takes of the disk."""
        ...

    @property
    def wal_bytes(self) -> int:
        """What it takes besides, for what was committed lately."""
        ...

    async def room(self) -> Room:
        """How much of it holds something."""
        ...

    @property
    def last_commit_s(self) -> float:
        """How long the last group of commits took to reach the disk."""
        ...

    @property
    def commits(self) -> int:
        """Groups of commits that reached the disk since the journal was opened."""
        ...

    @property
    def changes(self) -> int:
        """Changes in them."""
        ...

    async def handles(self) -> dict[str, str]:
        """Identity name to the handle it had last."""
        ...

    async def conversations(self, identity: str) -> list[Conversation]: ...
    async def ids_at(self, places: Sequence[tuple[int, int, int]]) -> list[str | None]:
        """Platform ids at (conversation number, epoch, seq); None where nothing is recorded."""
        ...

    async def ids_of(self, conversation: int) -> set[str]:
        """Every platform id recorded for a conversation, over all epochs."""
        ...

    async def totals(self, identity: str) -> Totals: ...
    async def gaps(self, identity: str | None, *, open_only: bool, limit: int) -> list[tuple[str, GapNoted]]:
        """(conversation id, gap), newest first; of every identity if None."""
        ...

    async def cursors(self, plugin: str) -> dict[int, int]:
        """Conversation number to handled position."""
        ...

    async def replays(self, plugin: str) -> dict[int, tuple[int, int]]:
        """Conversation number to (how many replays, position up to which the last one goes)."""
        ...

    async def attempts(self, plugin: str) -> list[Attempt]: ...
    async def outcomes(self, plugin: str, conversation: int, position: int) -> list[Outcome]:
        """What became of a recorded event with a plugin, oldest first."""
        ...

    async def pauses(self) -> list[Paused]: ...
    async def conversation_find(self, identity: str, conversation: str) -> Conversation | None: ...
    async def conversation_with(self, identity: str, handle: str) -> str | None:
        """Id of the conversation in which a send to this handle arrived lately; None if there was none."""
        ...

    async def read_lane(self, conversation: int, after: int, limit: int) -> list[StoredRecord]:
        """Records of one conversation behind a position, in the order of delivery."""
        ...

    async def count_behind(self, conversation: int, after: int) -> int: ...
    async def count_between(self, conversation: int, after: int, upto: int) -> int:
        """Records of one conversation behind a position, up to another."""
        ...

    async def read_log(self, identity: str | None, after: int, limit: int) -> list[StoredRecord]:
        """Records behind a position over all conversations."""
        ...

    async def position_of_seq(self, conversation: int, epoch: int, seq: int) -> int | None:
        """The first position in a conversation at or above a seq; None if there is none."""
        ...

    async def position_since(self, moment: float) -> int | None:
        """The first position in the log that was received from this moment on, Unix seconds; None if there is none.

        One that waited for longer than ten minutes until it was in order may be missed.
        """
        ...

    async def last_position(self) -> int: ...
    async def positions_of(self, id_: str, after: int, up_to: int) -> list[int]:
        """Where an event with this platform id stands, from behind one position up to another; reads all between."""
        ...

    async def timers(self, plugin: str) -> list[TimerSet]:
        """Every timer of a plugin, the earliest first."""
        ...

    async def state_get(self, plugin: str, conversation: int, key: str) -> bytes | None: ...
    def state_bytes(self, plugin: str) -> int:
        """Bytes of all keys and values that a plugin keeps on disk."""
        ...

    async def answers_since(self, identity: str, since: float) -> list[tuple[str, str, float]]:
        """(conversation id, peer, Unix seconds) of sends that a peer's messages caused, oldest first."""
        ...

    async def outbox_open(self, identity: str) -> list[Send]:
        """Sends that are not settled, in the order in which they were queued."""
        ...

    async def outbox_find(self, client_msg_id: str, identity: str) -> OutboxRow | None: ...
    async def outbox_list(self, identity: str, states: Sequence[str], limit: int) -> list[OutboxRow]:
        """Sends in any of these states, newest first."""
        ...

    async def dead(self, identity: str | None, limit: int, *, dropped_too: bool = False) -> list[DeadRow]:
        """Dead letters, newest first; of every identity if None."""
        ...

    def dead_count(self, identity: str) -> int:
        """How many letters on disk nobody is through with."""
        ...

    async def dead_find(self, number: int) -> DeadRow | None: ...
    async def dead_at(self, conversation: int, position: int) -> list[DeadRow]:
        """The dead letters of one event: at most one for each plugin."""
        ...


class StoredRecord(msgspec.Struct, frozen=True, gc=False):
    """A record as it lies on disk; `Platform.revive` makes its payload an event again.

    damage: why there is no payload to be read, or "".
    """

    position: int
    conversation: int
    identity: str
    conversation_id: str
    epoch: int
    late: bool
    source: str
    payload: bytes
    received_at: float
    damage: str = ""

    def record(self, event: Event) -> Record:
        """The same record with its payload decoded."""
        return Record(self.position, self.conversation, event, self.received_at)
