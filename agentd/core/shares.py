"""How much of what all share one of them may take, so that whoever has none of it finds some.

A bound that moves with what is free (dynamic thresholds, as switches share their buffers): one that wants everything
gets three quarters, the second gets most of the rest, and as the first gives back they come to have the same. What
nobody wants is not kept for anybody.

Always true: who has none may take while anything is free. Who has the most may not take what it would leave the others
without.
Not here: what is shared (calls of a plugin, memory), who counts it.
"""

from __future__ import annotations

_TIMES_FREE = 3


def most(free: int) -> int:
    """What one may have while so much is free of what it shares with others."""
    return _TIMES_FREE * free
