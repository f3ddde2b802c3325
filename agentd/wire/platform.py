"""What every platform answers about its own wire.

A `Platform` turns frames and response bodies into events, describes requests as values, and says what an answer
means. Performing the requests is transport/'s work, deciding when is core/'s. One Platform serves one identity.

Always true: what a platform lacks is said (`acks`, `deduplicates_sends`, `lookup`), not papered over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from agentd.core.events import Event, Position, Send, Signal, Source
from agentd.core.reconnect import CloseMeaning
from agentd.errors import Unavailable

T = TypeVar("T")


WAIT_MAX_S = 86_400.0
"""The longest window in which a platform counts; who asks for more is broken, and would hold what waits for good."""


def wait_asked_for(seconds: float) -> float | None:
    """What a far end asks for, within reason. 0 s is no wait: it is what a date says where clocks differ."""
    return min(seconds, WAIT_MAX_S) if seconds > 0 else None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One REST call. `path` starts at the platform's base and is percent-encoded; `body`: JSON bytes or None.

    repeatable: carrying it out twice is the same as once, so transport may retry it. headers: besides transport's own.
    """

    method: str
    path: str
    query: Mapping[str, str] = {}
    body: bytes | None = None
    repeatable: bool = True
    headers: Mapping[str, str] = {}


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes to or from an address that the platform named, which is not the platform's own and must not see the key."""

    method: str
    url: str
    body: bytes | None = None
    content_type: str | None = None


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """What came back. `headers` have lowercase names; retry_after_s: its `Retry-After`, dates made into seconds."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    retry_after_s: float | None = None


class Say(msgspec.Struct, frozen=True):
    """A frame for the socket, to which no answer comes."""

    frame: bytes


class Call(msgspec.Struct, Generic[T], frozen=True):
    """One call of a plugin: what is asked, and what its answer means.

    read: gives the result, or the call that comes next. Raises Refused, Unavailable (InProgress among it),
    WireViolation.
    """

    ask: Request | Transfer
    read: Callable[[Response], T | Call[T]]


class InProgress(Unavailable):
    """The first attempt at a call under this key has not ended: asking again after `retry_after_s` tells its answer."""


class Calls(Protocol):
    """What plugins may ask of one identity's platform; `agentd.apis` names it."""

    platform: str

    def call(self, name: str, arguments: Mapping[str, Any], key: str | None) -> Call[Any] | Say:
        """How a call such as "contacts.add" is made. key: of one that is carried out once.

        Raises ValueError for what cannot be asked.
        """
        ...


class Hello(msgspec.Struct, frozen=True):
    """The far end accepted this connection. `acks`: it keeps a message until it is acknowledged."""

    acks: bool


class Rejected(msgspec.Struct, frozen=True):
    """The far end refused this connection in a frame. `reason`: its words, without credentials."""

    reason: str


class Malformed(msgspec.Struct, frozen=True):
    """A frame or row that is not what the contract says. `what`: path and type, never content."""

    what: str


class Unknown(msgspec.Struct, frozen=True):
    """A well-formed frame of a type that this version does not know."""

    type: str


Frame = Event | Signal | Hello | Rejected | Malformed | Unknown


class Page(msgspec.Struct, frozen=True):
    """Rows of a drain or of a conversation's history, in the server's order.

    events: the clean prefix. malformed: the row that ended it, or None. behind: what could be read after that row.
    cursor: where the next drain page starts. count: rows the server sent, clean or not.
    """

    events: list[Event]
    malformed: Malformed | None = None
    behind: list[Event] = []
    cursor: str | None = None
    count: int = 0


class Accepted(msgspec.Struct, frozen=True):
    """The send is in the conversation; `event` is its place there. backlog: (handle, undelivered count) or None."""

    event: Event
    replayed: bool = False
    backlog: tuple[str, int] | None = None
    skipped: tuple[str, ...] = ()


class Later(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing was stored; try the same key again.

    scope: who waits — "identity", "target", or "reply" (the target, until it has spoken).
    """

    code: str
    scope: str
    retry_after_s: float | None = None
    backlog: tuple[str, int] | None = None
    request_id: str | None = None


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing was stored, and repeating cannot mend it. credentials: the key itself was refused."""

    status: int
    code: str
    message: str = ""
    request_id: str | None = None
    credentials: bool = False


SendAnswer = Accepted | Later | Rejection


class Standing(msgspec.Struct, frozen=True):
    """A conversation as the server lists it. Seqs are None where it does not say.

    oldest_unread, newest_unread: seqs that this identity has not been given, as far as the server knows.
    """

    conversation: str
    oldest_unread: int | None = None
    newest_unread: int | None = None


class Sighting(msgspec.Struct, frozen=True):
    """A page of a history, looked through for a send.

    seen: messages of this identity that say what it says. beyond: where the next page begins, None after the last.
    """

    seen: list[Event]
    beyond: Position | None = None


class Lookup(Protocol):
    """Looks for a send whose answer never came, by its content and its position. For platforms that know no keys."""

    def request(self, send: Send, after: Position) -> Request | None:
        """What stands behind this position; None where that cannot be asked for."""
        ...

    def read(self, response: Response, send: Send, after: Position) -> Sighting:
        """Raises Refused where the conversation is not ours to read, Unavailable, WireViolation."""
        ...


class Platform(Protocol):
    """One identity's view of its platform. Every `*_request` pairs with the reader of its answer.

    deduplicates_sends: a send that is repeated under its key is stored once. lookup: None where it is not needed, or
    where the platform offers nothing to look at.
    """

    name: str
    deduplicates_sends: bool
    lookup: Lookup | None
    handle: str

    def account_request(self) -> Request: ...
    def read_account(self, response: Response) -> str:
        """The handle of this key. Raises Refused, WireViolation."""
        ...

    def link_url(self) -> str: ...
    def hello(self) -> bytes:
        """The first frame of a connection; it carries the key, so it is never logged."""
        ...

    def close_meaning(self, code: int | None, reason: str) -> CloseMeaning:
        """What the end of a connection says about the next one. code: None where it was cut without one."""
        ...

    def decode(self, frame: str | bytes) -> Frame:
        """What a frame says. Never raises: what cannot be read is Malformed."""
        ...

    def ack(self, event: Event) -> bytes: ...
    def revive(self, payload: bytes, *, epoch: int, late: bool, source: Source) -> Event:
        """The event that was journaled with this payload."""
        ...

    def drain_request(self, after: str | None) -> Request: ...
    def read_drain(self, response: Response) -> Page: ...
    def drain_ack_request(self, cursor: str) -> Request: ...

    def history_request(self, conversation: str, after_seq: int, limit: int) -> Request:
        """Rows with seq > after_seq, rising, own ones included."""
        ...

    def newest_request(self, conversation: str) -> Request:
        """The last row of a conversation."""
        ...

    def read_history(self, response: Response) -> Page:
        """Raises Refused where the conversation is not ours to read (any more): its rows are absent."""
        ...

    def conversations_request(self) -> Request: ...
    def read_conversations(self, response: Response) -> list[Standing]: ...

    def mute_requests(self, conversation: str, sender: str) -> tuple[Request, ...]:
        """What to ask to learn whether this identity has muted either, which keeps their mail from being pushed."""
        ...

    def read_mute(self, response: Response) -> bool:
        """Whether that is muted. Raises Unavailable."""
        ...

    def address(self, target: str) -> str:
        """The one way of writing this target: two that mean the same have the same."""
        ...

    def send_request(self, send: Send) -> Request: ...
    def read_send(self, response: Response, send: Send) -> SendAnswer: ...
