"""Whether two agents do nothing but answer each other.

Every answer to an agent's message counts against a rolling budget per (conversation, peer). A chain of answers to
answers carries its length along (`hops`), so that a loop which turns slowly, or over several conversations, ends too.

Always true: the budget looks at the last `window_s` only. At most `answers_max` times are kept per pair, and pairs
that were quiet for a window are forgotten.
Not here: the clock (callers pass Unix seconds, since the budget outlives the process), what to do about it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any

import msgspec

HOPS_KEY = "agentd_hops"
"""The key of a message's metadata that says how many answers led to it."""

_SWEPT = 2
"""Quiet pairs that are looked at whenever one answers: more than one, so that there are fewer in the end."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """answers_max: to one peer in one conversation within `window_s`; 0 turns the guard off. hops_max: in a chain."""

    answers_max: int
    window_s: float
    hops_max: int


class LoopGuard:
    """The guard of one identity."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._answers: dict[tuple[Hashable, str], deque[float]] = {}

    def __len__(self) -> int:
        """Pairs that are remembered."""
        return len(self._answers)

    def answered(self, conversation: Hashable, peer: str, now: float, hops: int = 0) -> str | None:
        """An answer to this peer is on its way. Returns why it should be the last for now, or None.

        hops: of the message that is answered.
        """
        budget = self._budget
        if not budget.answers_max:
            return None
        times = self._answers.pop((conversation, peer), None) or deque(maxlen=budget.answers_max)
        times.append(now)
        self._answers[conversation, peer] = times
        self._sweep(now)
        if len(times) == budget.answers_max and now - times[0] < budget.window_s:
            return f"{budget.answers_max} answers to @{peer} within {budget.window_s:g} s"
        if hops >= budget.hops_max:
            return f"a chain of {hops} answers with @{peer}"
        return None

    def forgive(self, conversation: Hashable) -> None:
        """Somebody has looked at it: the conversation begins with a full budget."""
        for pair in [each for each in self._answers if each[0] == conversation]:
            del self._answers[pair]

    def _sweep(self, now: float) -> None:
        for _ in range(_SWEPT):
            quiet = next(iter(self._answers))
            if now - self._answers[quiet][-1] < self._budget.window_s:
                return
            del self._answers[quiet]


def hops_of(metadata: Mapping[str, Any]) -> int:
    """How many answers led to a message, by its sender's word; 0 where it says nothing sensible."""
    hops = metadata.get(HOPS_KEY)
    return hops if isinstance(hops, int) and not isinstance(hops, bool) and hops > 0 else 0
