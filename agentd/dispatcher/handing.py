"""Turns that outlive their process's journal: one process runs them to the end, its successor decides what follows.

The process that hands over lists what it runs (`Turn`). From then on whatever one of these turns ends with goes to a
`Successor`. There it is `Elsewhere`: a turn like any other, but for where it runs.

Always true: the fate of a turn is decided once, in the process that has the journal. A turn of which nothing is heard
any more runs again, and no attempt is counted.
Not here: what passes between the processes (handover/), how lanes wait (engine), what follows (predecessor).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from agentd.host.context import TurnContext
from agentd.host.shipped import Parcel, TurnOut
from agentd.host.turns import Failure
from agentd.journal.storage import TimerSet

Kind = Literal["events", "timer", "signal", "overrun"]


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """A turn under way. kind: what it is about; "overrun": its fate is known, but a thread of it runs on.

    conversation: the journal's number, 0 for none. first, last: positions of its events, 0 for none. timer: its row as
    it is on disk; of an overrun only its id is told, as timer_id. signal: what a signal was.
    """

    kind: Kind
    plugin: str
    identity: str = ""
    conversation: int = 0
    first: int = 0
    last: int = 0
    attempt: int = 1
    timer: TimerSet | None = None
    timer_id: str = ""
    signal: Parcel | None = None

    @property
    def until(self) -> int:
        """See backlog.Stretch."""
        return self.last if self.last > self.first else 0

    @property
    def key(self) -> int | tuple[str, str]:
        """Under which it runs: what has the same key waits for it. "" in it tells a signal, for which nothing waits."""
        return self.conversation or ("timer", self.timer_id or (self.timer.id if self.timer is not None else ""))


class Successor(Protocol):
    """Who decides about turns from now on, in the process that hands over."""

    async def takes(self, ctx: TurnContext[Any], failure: Failure | None) -> bool:
        """A turn has ended. False if it is ours to decide after all: there is no successor."""
        ...


class Over(NamedTuple):
    """How a turn elsewhere ended. handler: name of the one that failed, or "". overrun: a thread of it runs on."""

    out: TurnOut
    handler: str = ""
    overrun: asyncio.Future[Any] | None = None


class Elsewhere:
    """A turn that the process before this one runs. decline: tell it that nobody wants to know how it ends.

    over: how it ended; None where it was given back, or its process is gone. taken_up: its context here, once its lane
    has come to it.
    """

    def __init__(self, turn: Turn, decline: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self.turn = turn
        self.over: asyncio.Future[Over | None] = loop.create_future()
        self.taken_up: asyncio.Future[TurnContext[Any]] = loop.create_future()
        self._decline = decline
        self._noted: bytes | None = None

    def take_up(self, ctx: TurnContext[Any]) -> None:
        """From now on what it tells of itself is kept."""
        self.taken_up.set_result(ctx)
        if self._noted is not None:
            self.got_on(self._noted)

    def decline(self) -> None:
        """Nobody here knows what it is about: let it end, and nothing come of it."""
        self.taken_up.cancel()
        self._decline()

    def got_on(self, noted: bytes) -> None:
        """It told `progress` this."""
        if not self.taken_up.done():
            self._noted = noted
        elif not self.taken_up.cancelled() and not self.over.done():
            ctx = self.taken_up.result()
            ctx.progressed = noted
            if ctx.owner is not None:
                ctx.owner.got_on(ctx, noted)

    async def says_now(self) -> None:
        """It is about to say something at once."""
        await asyncio.wait((self.taken_up,))
        if self.taken_up.cancelled():
            raise RuntimeError("this plugin is not served any more; nothing comes of this turn")
        ctx = self.taken_up.result()
        if ctx.owner is not None:
            await ctx.owner.says_now(ctx)

    def ended(self, over: Over | None) -> None:
        """It has ended; what it says of itself a second time is not heard."""
        if not self.over.done():
            self.over.set_result(over)
