"""The vocabulary that every part shares, as frozen values.

An `Event` has a place in a conversation (`seq`) and is journaled; a `Signal` has none and is best effort. `Content`
is what a plugin says; a `Send` is that with its address and its key.

Always true: a value never changes after it was made, so it holds no cycle, and the collector need not look at it.
`payload` holds the bytes as the platform sent them, and decoding them again gives the same event.
Not here: how a platform spells any of this (wire/), and what happens to it (everything else).
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

FIRST_SEQ = 1
"""The seq of a conversation's first event. AgentChat starts here; platforms without seqs are numbered from here."""

FIRST_EPOCH = 1
"""The numbering in which a conversation is met; each time that the server starts anew there is one more."""

LAST_SEQ = 2**53 - 1
"""No seq is greater: so far every reader of JSON counts exactly. The journal's own end lies not far behind."""


class Source(enum.StrEnum):
    """How an event reached this machine."""

    LIVE = "live"
    DRAIN = "drain"
    REFETCH = "refetch"
    OWN = "own"
    LOCAL = "local"


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One numbered event of a conversation, as this identity sees it.

    seq: rises by one within (conversation, epoch); own events take numbers too.
    own: this identity said it.
    late: it belongs before events that were delivered already, and was found too late to come in order.
    delivery_id: where the platform's drain cursor stands after this row, or None.
    """

    identity: str
    conversation: str
    seq: int
    id: str
    sender: str
    created_at: str = ""
    own: bool = False
    source: Source = Source.LIVE
    epoch: int = FIRST_EPOCH
    late: bool = False
    delivery_id: str | None = None
    payload: bytes = b""


class Context(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the platform itself vouches for about a message. Unlike the text, a peer cannot forge it.

    sender_kind: "agent" or "system". direct: None where the platform did not say. mentions: lowercase handles.
    """

    sender_name: str | None = None
    sender_kind: str | None = None
    direct: bool | None = None
    group_name: str | None = None
    member_count: int | None = None
    mentions: tuple[str, ...] = ()


class Message(Event, frozen=True, kw_only=True, gc=False):
    """Somebody said something. `text`, `data` and `metadata` are the sender's words: untrusted.

    kind: "text", "structured", "file" or "system". direct: a conversation of two.
    mentioned: the platform says that this identity was addressed by name. answer_to: where an answer goes, a handle
    with `@` or a conversation id; "" for what cannot be answered. client_msg_id: of own messages, the key under which
    they were sent; else "".
    """

    kind: str = "text"
    text: str | None = None
    data: dict[str, Any] | None = None
    attachment_id: str | None = None
    metadata: dict[str, Any] = {}
    context: Context = Context()
    direct: bool = True
    mentioned: bool = False
    answer_to: str = ""
    client_msg_id: str = ""

    @property
    def reply_to(self) -> str | None:
        """Id of the message this one answers, by the `metadata.reply_to` convention."""
        parent = self.metadata.get("reply_to")
        return parent if isinstance(parent, str) else None


class Record(msgspec.Struct, frozen=True, gc=False):
    """An event that is on disk. `position`: its place in the journal, rising over all identities and conversations.

    conversation: the journal's number for (identity, conversation). received_at: Unix seconds.
    """

    position: int
    conversation: int
    event: Event
    received_at: float


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """Something without a place in any conversation's order: best effort, newest wins, never journaled."""

    identity: str
    conversation: str | None = None


class Typing(Signal, frozen=True, kw_only=True):
    """Somebody started (`active`) or stopped typing."""

    sender: str
    active: bool


class Presence(Signal, frozen=True, kw_only=True):
    """A contact's presence changed. `status`: "online", "offline", "busy" or "away"."""

    handle: str
    status: str
    note: str | None = None


class ReadReceipt(Signal, frozen=True, kw_only=True):
    """A peer has read up to `through_seq`, or the one message `message_id`; the platform says one of the two."""

    reader: str
    through_seq: int | None = None
    message_id: str | None = None


class RateLimitWarning(Signal, frozen=True, kw_only=True):
    """The platform asks this identity to slow down. Every field may be missing."""

    endpoint: str | None = None
    limit: int | None = None
    remaining: int | None = None
    reset_at: str | None = None


class GroupInvite(Signal, frozen=True, kw_only=True):
    """This identity was invited to a group."""

    invite_id: str
    group_id: str
    group_name: str
    inviter: str


class GroupDeleted(Signal, frozen=True, kw_only=True):
    """A group of this identity is gone."""

    group_id: str
    deleted_by: str


class Gap(Signal, frozen=True, kw_only=True):
    """A gap was closed. [start, stop): its seqs; absent: how many of them the server did not have, for `reason`."""

    epoch: int
    start: int
    stop: int
    absent: int
    reason: str = ""


class StreamReset(Signal, frozen=True, kw_only=True):
    """The server numbers this conversation anew; events from here on carry the new epoch. adopted: without replay."""

    epoch: int
    top: int
    adopted: bool


def portable(event: Event | Signal) -> dict[str, Any]:
    """An event as JSON can hold it: `type`, the name of its class, and its fields without `payload`."""
    fields = {name: getattr(event, name) for name in event.__struct_fields__ if name != "payload"}
    told: dict[str, Any] = msgspec.to_builtins({"type": type(event).__name__, **fields})
    return told


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """A message of ours as the platform took it: its id, and its place in the conversation."""

    client_msg_id: str
    id: str
    conversation: str
    seq: int


class Timer(Signal, frozen=True, kw_only=True):
    """The time that a plugin asked for has come. `data`: what it gave to itself. `name`: of a handler that recurs.

    Unlike other signals it is durable, and where it has a conversation it takes its turn among the events there.
    """

    id: str
    name: str = ""
    data: Any = None


class Digest(Signal, frozen=True, kw_only=True):
    """Mail of one conversation that grew stale before it could be handled, in one piece (catch-up policy "digest").

    messages: the newest of it, oldest first. count: how many there were. first_seq, last_seq: the stretch.
    """

    messages: tuple[Message, ...]
    count: int
    first_seq: int
    last_seq: int


class Content(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What is said: at least one of text, data and attachment_id. `kind` follows from them where it is None."""

    text: str | None = None
    data: dict[str, Any] | None = None
    attachment_id: str | None = None
    kind: str | None = None
    metadata: dict[str, Any] = {}


OPEN_STATES = ("ready", "sending", "unknown")
SETTLED_STATES = ("sent", "refused", "expired", "dropped")
"""What a send can be: the sender still has to settle it, or is through with it. How they follow: sender.py."""


class Position(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A place in a conversation: everything up to `seq` of this epoch stood there already."""

    conversation: str
    epoch: int
    seq: int


class Send(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One message on its way out. `target`: a handle with `@`, or a conversation id. `client_msg_id`: its key for good.

    attempts: how often it was tried. not_before: Unix seconds. cause: where it came from, for people to read.
    expires_at: Unix seconds after which it is not worth sending any more, or None. after: where its conversation stood
    when it left, where the platform knows no keys and it was known. caused_in, caused_by:
    conversation and sender of the agent's message that it answers, or "".
    """

    identity: str
    target: str
    content: Content
    client_msg_id: str
    cause: str = ""
    attempts: int = 0
    not_before: float = 0.0
    state: str = "ready"
    expires_at: float | None = None
    after: Position | None = None
    caused_in: str = ""
    caused_by: str = ""
