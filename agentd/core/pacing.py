"""When the next send may leave: per identity a steady rate, per target what its recipient can take.

A backlog warning halves a target's rate unless its backlog falls already; an answer without one raises the rate a
little, until there is no limit again (additive increase, multiplicative decrease). A refusal parks the target or the
whole identity for as long as the platform asks, or for growing intervals where it does not. A group takes a steady rate
of its own. A warning about the identity halves the identity's rate, which then rises with time.

Always true: one target's trouble delays no other target, unless the platform named the identity. A parked target is
tried again; a target that waits for a reply is not, until `replied` or its longest wait. At most `targets_max` targets
are remembered: those without a limit are forgotten, and past that the one that was quiet longest, which costs one more
refusal and never a message.
Not here: the clock (callers pass `now`, monotonic seconds), chance (callers pass it, from 0 to 1), requests, order
(core/lanes).
"""

from __future__ import annotations

import msgspec


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds. Rates in sends per second, times in seconds.

    jitter: the share by which a wait is lengthened at most, so that parked targets do not come back in step.
    """

    rate_per_s: float = 50.0
    burst: int = 20
    slowest_identity_per_s: float = 1.0
    identity_recovery_per_s: float = 1.0
    warned_rate_per_s: float = 5.0
    slowest_rate_per_s: float = 0.1
    recovery_per_s: float = 0.5
    group_rate_per_s: float = 20.0
    retry_first_s: float = 0.5
    retry_max_s: float = 60.0
    reply_wait_max_s: float = 3_600.0
    jitter: float = 0.25
    forget_after_s: float = 3_600.0
    targets_max: int = 10_000


_SWEPT = 2
"""Quiet targets that are looked at whenever one is met: more than one, so that there are fewer in the end."""

_WARNINGS_APART_S = 1.0
"""Warnings about the identity that come faster speak of the same burst."""


class _Target:
    __slots__ = ("backlog", "failures", "not_before", "rate", "seen_at")

    def __init__(self) -> None:
        self.rate: float | None = None
        self.not_before = 0.0
        self.failures = 0
        self.backlog: int | None = None
        self.seen_at = 0.0


class Pacing:
    """The pace of one identity's sends. awaiting: targets that must speak before they are sent to again."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._targets: dict[str, _Target] = {}
        """In the order in which something was last heard of them."""
        self.awaiting: set[str] = set()
        self._identity_until = 0.0
        self._identity_failures = 0
        self._rate = pace.rate_per_s
        self._warned_at: float | None = None
        self._tokens = float(pace.burst)
        self._tokens_at: float | None = None

    def __len__(self) -> int:
        """Targets that are remembered."""
        return len(self._targets)

    def may_leave_at(self, target: str, now: float) -> float:
        """The earliest time at which the next send to this target may leave; `now` or earlier means at once."""
        at = max(self._identity_until, self._token_at(now))
        known = self._targets.get(target)
        return at if known is None else max(at, known.not_before)

    def leaves(self, target: str, now: float) -> None:
        """A send to this target leaves now."""
        self._token_at(now)
        self._tokens -= 1
        known = self._met(target, now) if _is_group(target) else self._targets.get(target)
        if known is not None and (rate := self._rate_to(target, known)) is not None:
            known.not_before = max(known.not_before, now + 1 / rate)

    def accepted(self, target: str, now: float, backlog: int | None) -> None:
        """The platform took it. backlog: the recipient's undelivered count, where it warned."""
        self._identity_failures = 0
        self.awaiting.discard(target)
        if backlog is not None:
            known = self._met(target, now)
            known.failures = 0
            known.not_before = max(known.not_before, now + 1 / self._backlogged(known, backlog))
        elif (clear := self._targets.get(target)) is not None:
            self._recover(target, clear, now)

    def refused_for_now(
        self,
        target: str,
        scope: str,
        now: float,
        retry_after_s: float | None,
        backlog: int | None = None,
        *,
        chance: float,
    ) -> float:
        """Nothing was stored. Parks the target, the identity, or the target until it replies; returns until when.

        scope: "target", "identity" or "reply". retry_after_s: what the platform asked for, or None.
        """
        stretch = 1 + self._pace.jitter * chance
        if scope == "identity":
            wait_s = retry_after_s if retry_after_s is not None else self._growing(self._identity_failures)
            self._identity_failures += 1
            self._identity_until = max(self._identity_until, now + wait_s * stretch)
            return self._identity_until
        known = self._met(target, now)
        if backlog is not None:
            # No lower than that: trials become rarer by themselves, and it must get going when it has read.
            known.backlog = backlog
            known.rate = known.rate or self._pace.warned_rate_per_s
        if scope == "reply":
            self.awaiting.add(target)
            wait_s = retry_after_s if retry_after_s is not None else self._pace.reply_wait_max_s
        else:
            wait_s = retry_after_s if retry_after_s is not None else self._growing(known.failures)
            known.failures += 1
        known.not_before = max(known.not_before, now + wait_s * stretch)
        return known.not_before

    def rejected(self, target: str) -> None:
        """The platform will never take this send, which says nothing against the next one."""
        self._identity_failures = 0
        self.awaiting.discard(target)
        if (known := self._targets.get(target)) is not None:
            known.failures = 0

    def replied(self, target: str) -> bool:
        """The target spoke. True if sends to it were waiting for that and may leave now."""
        if target not in self.awaiting:
            return False
        self.awaiting.discard(target)
        self._targets[target].not_before = 0.0
        return True

    def warned(self, now: float) -> None:
        """The platform warned that this identity nears its limit: half the rate, and no burst."""
        self._token_at(now)
        self._tokens = min(self._tokens, 1.0)
        if self._warned_at is None or now - self._warned_at >= _WARNINGS_APART_S:
            self._rate = max(self._pace.slowest_identity_per_s, self._rate / 2)
            self._warned_at = now

    @property
    def identity_rate(self) -> float:
        """The identity's rate in sends per second as it was when it was last asked for."""
        return self._rate

    def backlog_of(self, target: str) -> int | None:
        """The recipient's undelivered count by the last warning, None if the last answer carried none."""
        known = self._targets.get(target)
        return None if known is None else known.backlog

    def rate_of(self, target: str) -> float | None:
        """The target's own rate in sends per second, None if it has no limit of its own."""
        known = self._targets.get(target)
        return None if known is None else known.rate

    # -- one target -------------------------------------------------------------------------------------------------

    def _backlogged(self, known: _Target, backlog: int) -> float:
        """Lower the rate of a recipient with so many undelivered messages; returns it."""
        falling = known.backlog is not None and backlog < known.backlog
        known.backlog = backlog
        if known.rate is None:
            known.rate = self._pace.warned_rate_per_s
        elif not falling:
            known.rate = max(self._pace.slowest_rate_per_s, known.rate / 2)
        return known.rate

    def _recover(self, target: str, known: _Target, now: float) -> None:
        known.failures, known.backlog = 0, None
        if known.rate is not None:
            known.rate += self._pace.recovery_per_s
            known.not_before = min(known.not_before, now + 1 / known.rate)
            if known.rate >= self._pace.rate_per_s:
                known.rate = None
        if known.rate is None and not _is_group(target):
            del self._targets[target]

    def _rate_to(self, target: str, known: _Target) -> float | None:
        if not _is_group(target):
            return known.rate
        return self._pace.group_rate_per_s if known.rate is None else min(known.rate, self._pace.group_rate_per_s)

    # -- memory -----------------------------------------------------------------------------------------------------

    def _met(self, target: str, now: float) -> _Target:
        """What is known of a target, which is the newest from now on."""
        known = self._targets.pop(target, None) or _Target()
        known.seen_at = now
        self._targets[target] = known
        for _ in range(_SWEPT):
            quiet = next(iter(self._targets))
            if len(self._targets) > self._pace.targets_max or self._is_free(self._targets[quiet], quiet, now):
                del self._targets[quiet]
                self.awaiting.discard(quiet)
        return known

    def _is_free(self, known: _Target, target: str, now: float) -> bool:
        """Nothing is lost by forgetting this target: it has no limit, or nothing was heard of it for long."""
        if known.not_before > now or known.seen_at == now:
            return False
        limited = known.rate is not None or known.failures or target in self.awaiting
        return not limited or now - known.seen_at >= self._pace.forget_after_s

    # -- the identity -----------------------------------------------------------------------------------------------

    def _growing(self, failures: int) -> float:
        return float(min(self._pace.retry_first_s * 2 ** min(failures, 16), self._pace.retry_max_s))

    def _token_at(self, now: float) -> float:
        if self._tokens_at is not None:
            elapsed_s = now - self._tokens_at
            self._tokens = min(float(self._pace.burst), self._tokens + elapsed_s * self._rate)
            self._rate = min(self._pace.rate_per_s, self._rate + elapsed_s * self._pace.identity_recovery_per_s)
        self._tokens_at = now
        return now if self._tokens >= 1 else now + (1 - self._tokens) / self._rate


def _is_group(target: str) -> bool:
    """A single recipient is addressed by handle; what is addressed by a conversation's id is a group."""
    return not target.startswith("@")
