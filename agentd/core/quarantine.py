"""Which event killed the process: judged by what was running whenever it died.

Many handlers run at once, and the process may die from outside as well, so that a death proves nothing about one of
several. Whatever ran when it died is suspect. What was suspected twice is tried: it runs with nothing beside it, before
anything else does. Only who was alone when the process died, and suspect already, is condemned.

Always true: nothing is condemned for a single death, nor for one at which anything else ran.
Not here: how it is known what was running (journal/running.py), the trials, what becomes of the condemned (the
dispatcher).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

_DEATHS_TO_TRY = 2
_DEATHS_TO_CONDEMN = 2


class Judgement(NamedTuple, Generic[K]):
    """What follows from one death. deaths: how often each that ran was there by now. condemned: not to be run again."""

    deaths: dict[K, int]
    condemned: K | None


def judge(running: Collection[K], deaths: Mapping[K, int]) -> Judgement[K]:
    """Count one death of the process. running: what was under way. deaths: at how many deaths each was there before."""
    counted = {each: deaths.get(each, 0) + 1 for each in running}
    alone = next(iter(counted)) if len(counted) == 1 else None
    return Judgement(counted, alone if alone is not None and is_condemned(counted[alone]) else None)


def is_condemned(deaths: int) -> bool:
    """Whether an event that ran alone, and was there so often, is not to be run again."""
    return deaths >= _DEATHS_TO_CONDEMN


def is_tried(deaths: int) -> bool:
    """Whether an event that was there so often runs alone next."""
    return deaths >= _DEATHS_TO_TRY
