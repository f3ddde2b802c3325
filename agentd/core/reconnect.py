"""Decides when an identity dials: now, later, or never again until its key has changed.

One `Reconnect` follows one identity through dialling, open, waiting and parked. `Throttle` spreads the dials of all
identities, so that hundreds do not start at once.

Always true: a delay lies within JITTER of first x 2^n, capped at max, unless the far end asked for longer. The count
behind n starts over only after a connection lived `stable_s`, so a server that accepts and then drops does not get a
dial storm. A parked identity stays parked until its key has changed.
Not here: the clock and chance (callers pass monotonic seconds and a number in [0, 1)), sockets, waiting, and what a
close code means (wire/).
"""

from __future__ import annotations

import enum
import math

import msgspec

JITTER = 0.25
"""Delays spread by this share in both directions: clients cut off together must not come back together."""

ASKED_DELAY_MAX_S = 3_600.0
"""The longest wait before a dial, or a look at the history, that a far end may ask for; beyond it a broken header would
silence an identity or a conversation for good."""


class CloseMeaning(enum.Enum):
    """What the end of a connection says about the next one."""

    AGAIN = "again"
    REFUSED = "refused"


class Dial(msgspec.Struct, frozen=True):
    """Dial `after_s` seconds from now; 0.0 is at once."""

    after_s: float = 0.0


class Park(msgspec.Struct, frozen=True):
    """Do not dial: the key was refused, and only another key can mend that."""


Decision = Dial | Park


def backoff_s(failures: int, first_s: float, max_s: float, chance: float) -> float:
    """Seconds to wait after the n-th failure in a row (from 1): first x 2^(n-1), capped at max, then jittered.

    chance: in [0, 1); the result lies in [1 - JITTER, 1 + JITTER) times the capped value.
    """
    # 2.0 ** 1024 overflows, and no sensible cap is reached later than this.
    nominal_s: float = min(max_s, first_s * 2.0 ** min(failures - 1, 60))
    return nominal_s * (1.0 + JITTER * (2.0 * chance - 1.0))


class _State(enum.Enum):
    WAITING = enum.auto()
    DIALLING = enum.auto()
    OPEN = enum.auto()
    PARKED = enum.auto()


class Reconnect:
    """The life of one identity's dialling. Each method is one thing that happened; `now` never falls."""

    def __init__(self, *, first_s: float, max_s: float, stable_s: float) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._stable_s = stable_s
        self._state = _State.WAITING
        self._failures = 0
        self._opened_at = 0.0
        self._newer_key = False

    @property
    def parked(self) -> bool:
        """The key was refused and has not changed since."""
        return self._state is _State.PARKED

    @property
    def failures(self) -> int:
        """Dials and short lives in a row since the last stable connection."""
        return self._failures

    def dialling(self) -> None:
        """A dial has started, with the key as it is now."""
        assert self._state is _State.WAITING, self._state
        self._state = _State.DIALLING
        self._newer_key = False

    def opened(self, now: float) -> None:
        """The far end accepted the connection. Only a life of `stable_s` from here forgives what came before."""
        assert self._state is _State.DIALLING, self._state
        self._state = _State.OPEN
        self._opened_at = now

    def ended(self, now: float, meaning: CloseMeaning, chance: float, asked_delay_s: float | None = None) -> Decision:
        """The dial failed, or the open connection is gone.

        asked_delay_s: what the far end asked for (Retry-After), or None. It lengthens the delay, never shortens it,
        and is spread upwards only.
        """
        assert self._state in (_State.DIALLING, _State.OPEN), self._state
        if meaning is CloseMeaning.REFUSED:
            return self._refused()
        if self._state is _State.OPEN and now - self._opened_at >= self._stable_s:
            self._failures = 0
        self._state = _State.WAITING
        self._failures += 1
        delay_s = backoff_s(self._failures, self._first_s, self._max_s, chance)
        if asked_delay_s is not None:
            asked_delay_s = min(asked_delay_s, ASKED_DELAY_MAX_S)
            delay_s = max(delay_s, asked_delay_s * (1.0 + JITTER * chance))
        return Dial(delay_s)

    def key_changed(self) -> Dial | None:
        """The identity has another key: a parked one dials at once. None: whatever it is doing goes on."""
        self._newer_key = True
        return self._start_over() if self.parked else None

    def _refused(self) -> Decision:
        # Rotating a key closes the sockets of the old one, and the new one may be here before that close is.
        if self._newer_key:
            return self._start_over()
        self._state = _State.PARKED
        return Park()

    def _start_over(self) -> Dial:
        self._state = _State.WAITING
        self._failures = 0
        return Dial()


class Throttle:
    """Start times for dials, at most `rate_per_s` of them a second, shared by all identities.

    The first so many may come faster, at `first_per_s`: where connections are replaced that were there a moment ago.
    """

    def __init__(self, rate_per_s: float, *, first: int = 0, first_per_s: float = math.inf) -> None:
        self._spacing_s = 1.0 / rate_per_s
        self._first = first
        self._first_spacing_s = 1.0 / first_per_s
        self._free_at = 0.0

    def reserve(self, now: float) -> float:
        """Take the next free start time, in the clock of `now`; never before `now`, never twice the same slot."""
        start = max(now, self._free_at)
        self._free_at = start + (self._first_spacing_s if self._first > 0 else self._spacing_s)
        self._first -= 1
        return start
