"""Which event killed the process: judged by what was running whenever it died.

Many handlers run at once, and the process may die from outside as well, so that one death proves little. What was
running is suspect; of what is running at the next death, those suspected most are blamed, since only they were there
each time. Whoever stands alone in that, and for at least the second time, is condemned. Where several are left, they
run one at a time from then on, so that the death after that has one culprit.

Always true: nothing is condemned for a single death, nor together with another.
Not here: how it is known what was running (journal/running.py), what becomes of the condemned (the dispatcher).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

_DEATHS_TO_CONDEMN = 2
SUSPECTS_MAX = 10_000
"""What is blamed runs again at once, so that more can only be what never came back; the oldest is forgotten first."""


class Judgement(NamedTuple, Generic[K]):
    """What follows from one death. deaths: new counts of those that are blamed. condemned: not to be run again."""

    deaths: dict[K, int]
    condemned: K | None


def judge(running: Collection[K], deaths: Mapping[K, int]) -> Judgement[K]:
    """Blame one death of the process. running: events under way at that time. deaths: how many each was blamed for."""
    most = max((deaths.get(each, 0) for each in running), default=0)
    blamed = {each: most + 1 for each in running if deaths.get(each, 0) == most}
    alone = next(iter(blamed)) if len(blamed) == 1 else None
    return Judgement(blamed, alone if is_condemned(most + 1) else None)


def is_condemned(deaths: int) -> bool:
    """Whether an event that alone is blamed, and so often, is not to be run again."""
    return deaths >= _DEATHS_TO_CONDEMN


class Deaths(Generic[K]):
    """How often each event was blamed, in memory, from its first death until it is through."""

    def __init__(self) -> None:
        self._counts: dict[K, int] = {}

    def died(self, running: Iterable[K]) -> Judgement[K]:
        """Blame one more death on what was running, and remember it. Who is condemned is not run again: forgotten."""
        judgement = judge(frozenset(running), self._counts)
        self._counts.update(judgement.deaths)
        if judgement.condemned is not None:
            self.forget(judgement.condemned)
        while len(self._counts) > SUSPECTS_MAX:
            del self._counts[next(iter(self._counts))]
        return judgement

    def forget(self, event: K) -> None:
        """It is through, however."""
        self._counts.pop(event, None)


def runs_alone(deaths: int) -> bool:
    """Whether an event so often blamed may run beside others that are blamed as often."""
    return deaths >= _DEATHS_TO_CONDEMN
