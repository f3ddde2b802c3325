"""Turns whose sends find an outbox full: each waits with its effects, as it returned, until there is room.

Always true: a turn that sends nothing never waits here, nor does one for the outbox of another identity. Turns that
wait for the same outbox are let go in the order in which they came. An outbox is exceeded by the sends of one turn at
most, or by what waited when the process handed over.
Not here: how much an outbox holds (the sender), the commit (the actor).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from agentd.core.events import Send

T = TypeVar("T")


class Room(Generic[T]):
    """free: how many more sends an identity's outbox takes, without those of turns that are being committed."""

    def __init__(self, free: Callable[[str], int]) -> None:
        self._free = free
        self._under_way: Counter[str] = Counter()
        self._waiting: list[tuple[T, Sequence[Send]]] = []

    def __len__(self) -> int:
        """Turns that wait."""
        return len(self._waiting)

    def fits(self, sends: Sequence[Send]) -> bool:
        """Whether every outbox that these go to has room for one more turn."""
        return all(self._free(identity) > self._under_way[identity] for identity in {send.identity for send in sends})

    def admit(self, turn: T, sends: Sequence[Send]) -> bool:
        """Whether the turn may be committed now; call `committed` in the end. If not, it waits until `pop` gives it."""
        if self.fits(sends):
            self._begin(sends)
            return True
        self._waiting.append((turn, sends))
        return False

    def committed(self, sends: Sequence[Send]) -> None:
        """The commit of an admitted turn has ended; from now on the outbox counts its sends."""
        self._under_way.subtract(send.identity for send in sends)

    def pop(self) -> T | None:
        """The first waiting turn that has room now, which is admitted by that; None if there is none."""
        for place, (turn, sends) in enumerate(self._waiting):
            if self.fits(sends):
                del self._waiting[place]
                self._begin(sends)
                return turn
        return None

    def let_all_go(self) -> list[T]:
        """Every waiting turn, admitted whatever there is room for: this process has no other time for them."""
        waiting, self._waiting = self._waiting, []
        for _, sends in waiting:
            self._begin(sends)
        return [turn for turn, _ in waiting]

    def _begin(self, sends: Sequence[Send]) -> None:
        self._under_way.update(send.identity for send in sends)
