"""Says what became of a send whose answer never came, from what a history shows behind the place where it left.

For platforms without a key of their own: there a repeat is stored a second time, so a send is looked for by what it
says and by what it must stand behind.

Always true: a send is found only where exactly one message can be it. It is not there only when so much time has passed
that its request cannot be carried out any more.
Not here: asking the history (sender), recognising a message (wire/), the clock.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from agentd.core.events import Event


class Found(msgspec.Struct, frozen=True):
    """It was stored, at this place."""

    event: Event


class NotThere(msgspec.Struct, frozen=True):
    """It was not stored, and will not be: it may leave again."""


class TooEarly(msgspec.Struct, frozen=True):
    """It is not there yet; look again in so many seconds."""

    after_s: float


class Undecided(msgspec.Struct, frozen=True):
    """Nobody but a person can tell. why: for people to read."""

    why: str


Verdict = Found | NotThere | TooEarly | Undecided


def judge(seen: Sequence[Event], *, silent_s: float, settle_s: float) -> Verdict:
    """What a look at everything behind the place where a send left says of it.

    seen: the messages there that say the same and are ours. silent_s: how long before this look its request had ended.
    settle_s: how long a request without an answer may still be carried out.
    """
    if len(seen) > 1:
        return Undecided(f"{len(seen)} messages there say the same")
    if seen:
        return Found(seen[0])
    return NotThere() if silent_s >= settle_s else TooEarly(settle_s - silent_s)
