"""The pipe between the daemon and a worker: which messages there are, and how they are framed.

    length (4 bytes, the high one first) | msgpack of one message

Always true: a frame longer than FRAME_MAX_BYTES is neither written nor read. What cannot be decoded raises, and ends
the worker: the two sides are the same version of the same program.
Not here: sockets, and what a message makes one do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from agentd.config import PluginSettings
from agentd.host.faults import Fault
from agentd.host.shipped import Declaration, TurnIn, TurnOut

FRAME_MAX_BYTES = 67_108_864
"""One turn with all that it staged; the largest message of a platform takes some 10 MB."""

_HEAD_BYTES = 4


class FrameTooLarge(Exception):
    """A message does not fit into a frame."""

    def __init__(self, size: int) -> None:
        super().__init__(
            f"{size:,} bytes between the daemon and its worker are more than the {FRAME_MAX_BYTES:,} that may pass "
            "at once; stage less in one turn"
        )


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One message."""


# --- to the worker


class Start(_Message, frozen=True):
    """Load this plugin. base: where its relative paths start. path: of modules. log_level: below it nobody listens."""

    name: str
    settings: PluginSettings
    base: str
    path: list[str]
    log_level: int


class SetUp(_Message, frozen=True):
    """Run its setups."""


class Serves(_Message, frozen=True):
    """These identities list it, from now on."""

    identities: list[str]


class Call(_Message, frozen=True):
    """Run a turn. id: of this call."""

    id: int
    turn: TurnIn


class Cancel(_Message, frozen=True):
    """Nobody waits for this call any more."""

    id: int


class Answer(_Message, frozen=True):
    """To an ask: what it is, or why not."""

    id: int
    value: bytes | None = None
    fault: Fault | None = None


class TearDown(_Message, frozen=True):
    """End in order."""


# --- from the worker


class Declares(_Message, frozen=True):
    """It is loaded. steps: how many middlewares, setups and teardowns it has, each of which may take a timeout."""

    version: str
    watches: bool
    handlers: list[Declaration]
    middlewares: int
    setups: int
    teardowns: int


class Refused(_Message, frozen=True):
    """It cannot be loaded or set up. problems: of its settings; or reason: what else is wrong."""

    problems: list[str] | None = None
    reason: str = ""


class IsSetUp(_Message, frozen=True):
    """It takes calls."""


class AskState(_Message, frozen=True):
    """What is stored under this key? Its answer: JSON, or nothing."""

    id: int
    conversation: int
    key: str


class AskSend(_Message, frozen=True):
    """Send this (a Send as JSON) for a call, and tell what became of it. Its answer: a Sent as JSON."""

    id: int
    call: int
    send: bytes


class AskApi(_Message, frozen=True):
    """Make this call of `ctx.api` for a call. arguments: by name, as msgpack. Its answer: what came, as JSON."""

    id: int
    call: int
    name: str
    arguments: bytes
    key: str | None


class Progress(_Message, frozen=True):
    """A call is getting on. noted: JSON, for the next attempt at it."""

    id: int
    noted: bytes


class Done(_Message, frozen=True):
    """A call has ended."""

    id: int
    turn: TurnOut


class OverrunEnded(_Message, frozen=True):
    """The thread of a call that had passed its deadline has ended."""

    id: int


class Said(_Message, frozen=True):
    """A line for the log: `texts` as of agentd.logs.entry."""

    level: int
    created: float
    logger: str
    texts: dict[str, str]


class Dying(_Message, frozen=True):
    """The worker ends itself."""

    why: str


class TornDown(_Message, frozen=True):
    """Its teardowns have run."""


ToWorker = Start | SetUp | Serves | Call | Cancel | Answer | TearDown
FromWorker = (
    Declares
    | Refused
    | IsSetUp
    | AskState
    | AskSend
    | AskApi
    | Progress
    | Done
    | OverrunEnded
    | Said
    | Dying
    | TornDown
)

_encode = msgspec.msgpack.Encoder().encode
to_worker = msgspec.msgpack.Decoder(ToWorker).decode
from_worker = msgspec.msgpack.Decoder(FromWorker).decode


def framed(message: ToWorker | FromWorker) -> bytes:
    """A message as it is written. Raises FrameTooLarge."""
    body = _encode(message)
    if len(body) > FRAME_MAX_BYTES:
        raise FrameTooLarge(len(body))
    return len(body).to_bytes(_HEAD_BYTES, "big") + body


class Frames:
    """Finds the frames in what is read, however it was cut."""

    def __init__(self) -> None:
        self._unread = bytearray()

    def fed(self, content: bytes | memoryview) -> Iterator[Any]:
        """The bodies that are whole with this. Raises FrameTooLarge."""
        unread = self._unread
        unread += content
        at = 0
        try:
            while len(unread) - at >= _HEAD_BYTES:
                begin = at + _HEAD_BYTES
                length = int.from_bytes(unread[at:begin], "big")
                if length > FRAME_MAX_BYTES:
                    raise FrameTooLarge(length)
                if len(unread) - begin < length:
                    return
                at = begin + length
                yield bytes(unread[begin:at])
        finally:
            del unread[:at]
