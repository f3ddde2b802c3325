"""What the parts of the daemon tell of an event on its way.

Each method is called on the loop, where the thing happens, and returns at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from agentd.core.events import Event, Record, Send, Timer


class Settled(Protocol):
    """What became of a send. See journal.storage.Carried."""

    @property
    def client_msg_id(self) -> str:
        """Its key."""
        ...

    @property
    def state(self) -> str:
        """What it is now."""
        ...

    @property
    def attempts(self) -> int:
        """How often it was tried."""
        ...

    @property
    def code(self) -> str:
        """Why it is not sent, as the platform put it, or ""."""
        ...

    @property
    def result_id(self) -> str | None:
        """Its id on the platform, once sent."""
        ...

    @property
    def result_seq(self) -> int | None:
        """Its place there."""
        ...


class Joins(Protocol):
    """What the spans that a handler makes itself become children of. traceparent: the same as a header has it."""

    @property
    def traceparent(self) -> str:
        """See above."""
        ...

    def enter(self) -> None:
        """Be what is current from now on, in the context variables of whoever calls."""
        ...


class TurnTrace(Joins, Protocol):
    """One attempt of a plugin at one event or more."""

    def ended(
        self, outcome: str, error: BaseException | None = None, handler: str = "", sends: Iterable[Send] = ()
    ) -> None:
        """Its fate is known. handler: name of the one that failed. sends: what it staged."""
        ...


class Traces(Protocol):
    """Who follows events. Where there is nobody, nobody is told."""

    # --- in

    def offered(self, record: Record, plugins: Sequence[str]) -> None:
        """A record is on disk, and these plugins may want it."""
        ...

    def through(self, plugin: str, identity: str, event_id: str) -> None:
        """A plugin is through with a timer, or with an event that it did not want."""
        ...

    def finished(self, plugin: str, record: Record, pending: Sequence[str], *, again: bool) -> None:
        """A plugin is through with an event that it wanted. pending, again: see `began`."""
        ...

    def passed_over(self, plugin: str, record: Record, pending: Sequence[str]) -> None:
        """A plugin does not handle an event that it would want, since newer ones say more. pending: see `began`."""
        ...

    def parted(self, plugin: str, identity: str) -> None:
        """A plugin does not serve an identity any more."""
        ...

    # --- turns

    def began(
        self,
        plugin: str,
        about: Event | Timer,
        attempt: int,
        *,
        records: Sequence[Record] = (),
        pending: Sequence[str] = (),
        due_at: float = 0.0,
        again: bool = False,
        handlers: Sequence[str] = (),
    ) -> TurnTrace:
        """A turn begins. about: what an answer would answer.

        records: all that it is about. pending: plugins that are not through with `about`. due_at: of a timer, Unix
        seconds. again: somebody wants it a second time.
        """
        ...

    # --- out

    def queued(self, sends: Iterable[Send]) -> None:
        """These are in the outbox on disk."""
        ...

    def leaves(self, send: Send) -> None:
        """The request for it is made."""
        ...

    def answered(self, send: Send, status: int) -> None:
        """The platform has answered, with this status of HTTP."""
        ...

    def kept(self, send: Send, why: str) -> None:
        """The attempt came to nothing, and says nothing of the send. why: a word."""
        ...

    def became(self, carried: Settled) -> None:
        """What the attempt came to, or what it became without one."""
        ...

    def settled(self, carried: Settled) -> None:
        """It has reached its end, and the disk says so."""
        ...
