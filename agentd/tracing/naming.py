"""The ids of a trace and of its root span, derived from what the trace is about.

So that whoever works on an event joins the same trace, whenever and in whichever process that is: a process that was
killed, the one after it, and a send that leaves hours later. A send on disk knows its identity and, in `cause`, the
event that it answers, and nothing else of it: that, and not epoch and conversation too, makes the name. It suffices,
since an identity has each id once.

Always true: the same name on any machine and in any version. An id tells nothing of what it was made from.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec

from agentd.core import events
from agentd.core.events import Send, Signal

_SIGNALS = frozenset(name for name, each in vars(events).items() if isinstance(each, type) and issubclass(each, Signal))


class Name(NamedTuple):
    """Of a trace, and of its root span."""

    trace: int
    root: int


def name_of(identity: str, about: str) -> Name:
    """Of what an identity makes of an event, a timer or a send, by its id."""
    place = msgspec.json.encode([identity, about])
    digest = hashlib.blake2b(place, digest_size=24, person=b"agentd trace").digest()
    # All zeros would be no id.
    return Name(int.from_bytes(digest[:16], "big") or 1, int.from_bytes(digest[16:], "big") or 1)


def cause_of(send: Send) -> str:
    """Id of the event that a send answers, as `cause` has it: plugin, id, ordinal; "" where no event caused it."""
    about, _, ordinal = send.cause.partition(" ")[2].rpartition(" ")
    return about if ordinal.isdecimal() and about not in _SIGNALS else ""


def name_of_send(send: Send) -> Name:
    """Of the trace that a send belongs to: that of its cause, or one of its own."""
    return name_of(send.identity, cause_of(send) or send.client_msg_id)
