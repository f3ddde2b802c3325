"""When the next send may leave: per identity a steady rate, per target what its recipient can take.

A backlog warning halves a target's rate, an answer without one raises it a little, until there is no limit again
(additive increase, multiplicative decrease). A refusal parks the target or the whole identity for as long as the
platform asks, or for growing intervals where it does not.

Always true: one target's trouble delays no other target, unless the platform named the identity. A parked target is
tried again; a target that waits for a reply is not, until `replied` or its longest wait.
Not here: the clock (callers pass `now`, monotonic seconds), requests, order (core/lanes).
"""

from __future__ import annotations

import msgspec


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds. Rates in sends per second, times in seconds."""

    rate_per_s: float = 50.0
    burst: int = 20
    warned_rate_per_s: float = 5.0
    slowest_rate_per_s: float = 0.1
    recovery_per_s: float = 0.5
    retry_first_s: float = 0.5
    retry_max_s: float = 60.0
    reply_wait_max_s: float = 3_600.0


class _Target:
    __slots__ = ("backlog", "failures", "not_before", "rate")

    def __init__(self) -> None:
        self.rate: float | None = None
        self.not_before = 0.0
        self.failures = 0
        self.backlog: int | None = None


class Pacing:
    """The pace of one identity's sends. awaiting: targets that must speak before they are sent to again."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._targets: dict[str, _Target] = {}
        self.awaiting: set[str] = set()
        self._identity_until = 0.0
        self._identity_failures = 0
        self._tokens = float(pace.burst)
        self._tokens_at: float | None = None

    def may_leave_at(self, target: str, now: float) -> float:
        """The earliest time at which the next send to this target may leave; `now` or earlier means at once."""
        at = max(self._identity_until, self._token_at(now))
        known = self._targets.get(target)
        return at if known is None else max(at, known.not_before)

    def leaves(self, target: str, now: float) -> None:
        """A send to this target leaves now."""
        self._token_at(now)
        self._tokens -= 1
        known = self._targets.get(target)
        if known is not None and known.rate is not None:
            known.not_before = max(known.not_before, now + 1 / known.rate)

    def accepted(self, target: str, now: float, backlog: int | None) -> None:
        """The platform took it. backlog: the recipient's undelivered count, where it warned."""
        self._identity_failures = 0
        self.awaiting.discard(target)
        known = self._targets.get(target)
        if backlog is None:
            if known is None:
                return
            known.failures, known.backlog = 0, None
            if known.rate is not None:
                known.rate += self._pace.recovery_per_s
            if known.rate is None or known.rate >= self._pace.rate_per_s:
                del self._targets[target]
            return
        known = known or self._targets.setdefault(target, _Target())
        known.failures, known.backlog = 0, backlog
        slower = self._pace.warned_rate_per_s if known.rate is None else known.rate / 2
        known.rate = max(self._pace.slowest_rate_per_s, slower)
        known.not_before = now + 1 / known.rate

    def refused_for_now(
        self, target: str, scope: str, now: float, retry_after_s: float | None, backlog: int | None = None
    ) -> float:
        """Nothing was stored. Parks the target, the identity, or the target until it replies; returns until when."""
        if scope == "identity":
            wait_s = retry_after_s if retry_after_s is not None else self._growing(self._identity_failures)
            self._identity_failures += 1
            self._identity_until = max(self._identity_until, now + wait_s)
            return self._identity_until
        known = self._targets.setdefault(target, _Target())
        known.backlog = backlog if backlog is not None else known.backlog
        if scope == "reply":
            self.awaiting.add(target)
            wait_s = retry_after_s if retry_after_s is not None else self._pace.reply_wait_max_s
        else:
            wait_s = retry_after_s if retry_after_s is not None else self._growing(known.failures)
            known.failures += 1
        known.not_before = max(known.not_before, now + wait_s)
        return known.not_before

    def replied(self, target: str) -> bool:
        """The target spoke. True if sends to it were waiting for that and may leave now."""
        if target not in self.awaiting:
            return False
        self.awaiting.discard(target)
        self._targets[target].not_before = 0.0
        return True

    def slow_identity(self, until: float) -> None:
        """The platform warned that this identity nears its limit: let nothing leave before `until`."""
        self._identity_until = max(self._identity_until, until)

    def backlog_of(self, target: str) -> int | None:
        """The recipient's undelivered count by the last warning, None if the last answer carried none."""
        known = self._targets.get(target)
        return None if known is None else known.backlog

    def rate_of(self, target: str) -> float | None:
        """The target's own rate in sends per second, None if it has no limit of its own."""
        known = self._targets.get(target)
        return None if known is None else known.rate

    def _growing(self, failures: int) -> float:
        return float(min(self._pace.retry_first_s * 2 ** min(failures, 16), self._pace.retry_max_s))

    def _token_at(self, now: float) -> float:
        if self._tokens_at is not None:
            earned = (now - self._tokens_at) * self._pace.rate_per_s
            self._tokens = min(float(self._pace.burst), self._tokens + earned)
        self._tokens_at = now
        return now if self._tokens >= 1 else now + (1 - self._tokens) / self._pace.rate_per_s
