"""How often somebody may do something.

Pure: the time comes in. One bucket per key, filled at the rate and holding one second's worth.
"""

from __future__ import annotations


class RateLimit:
    """At most `per_s` acts a second for each key; 0 sets no limit."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._capacity = max(1.0, per_s)
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: str, now: float) -> float:
        """Count one act. Returns 0, or the seconds after which it would be allowed (and then does not count it)."""
        if self._per_s <= 0:
            return 0.0
        level, since = self._buckets.get(key, (self._capacity, now))
        level = min(self._capacity, level + (now - since) * self._per_s)
        if level < 1.0:
            self._buckets[key] = (level, now)
            return (1.0 - level) / self._per_s
        self._buckets[key] = (level - 1.0, now)
        return 0.0
