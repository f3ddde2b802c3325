"""What passes between the process that hands over and its successor.

Always true: the two may be different versions of this program, so that whatever is changed here, or in what is sent
(`Turn`, `TurnOut`, `TimerSet`), makes another PROTOCOL; where theirs differ, the request is refused.
Not here: framing and the socket (line.py).
"""

from __future__ import annotations

import msgspec

from agentd.dispatcher import Turn
from agentd.host.faults import Fault
from agentd.host.shipped import TurnOut

PROTOCOL = 1


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One message."""


# --- to the successor


class Released(_Message, frozen=True):
    """The journal is closed and unlocked. turns: what runs, each with the number that it is called by from here on."""

    turns: list[tuple[int, Turn]]


class CalledOff(_Message, frozen=True):
    """The journal stays where it is. why: for people."""

    why: str


class Ended(_Message, frozen=True):
    """A turn has ended. handler: the name of the one that failed, or ""."""

    id: int
    out: TurnOut
    handler: str


class GaveBack(_Message, frozen=True):
    """A turn was broken off, and has no fate."""

    id: int


class OverrunEnded(_Message, frozen=True):
    """The thread of a turn that ran on past its deadline has ended."""

    id: int


class Progressed(_Message, frozen=True):
    """A turn is getting on. noted: JSON, for the next attempt at it."""

    id: int
    noted: bytes


class SaysNow(_Message, frozen=True):
    """A turn is about to say something at once: it is to be repeated with the same events. Its answer: nothing."""

    ask: int
    id: int


class AskSend(_Message, frozen=True):
    """Send this (a Send as JSON), and tell what became of it. Its answer: a Sent as JSON."""

    ask: int
    send: bytes


class AskState(_Message, frozen=True):
    """What has a plugin stored under this key? Its answer: JSON, or nothing."""

    ask: int
    plugin: str
    conversation: int
    key: str


# --- to the predecessor


class Taken(_Message, frozen=True):
    """The journal is open here, and nothing was written to it yet."""


class Serves(_Message, frozen=True):
    """Everything runs here, and the control socket is ours."""


class Answer(_Message, frozen=True):
    """To an ask: what it is, or why not."""

    ask: int
    value: bytes | None = None
    fault: Fault | None = None


class Heard(_Message, frozen=True):
    """The end of this turn is known here."""

    id: int


class Declined(_Message, frozen=True):
    """Nobody here wants to know how this turn ends."""

    id: int


ToSuccessor = Released | CalledOff | Ended | GaveBack | OverrunEnded | Progressed | SaysNow | AskSend | AskState
ToPredecessor = Taken | Serves | Answer | Heard | Declined
