"""How many of the events that wait in a lane make its next turn: one, a batch, a digest; or whether to wait, or pass.

An event is stale when it was sent longer ago than the catch-up policy allows. Stale mail comes together, since it is
what piled up while nobody was here: a policy looks at the whole stretch of it, once no more of it arrives.

Always true: what is passed over or shown is a stretch from the head of the lane on, without a hole. A turn that failed
is repeated with the events that it had (`frozen`), whatever came since. Fresh events are never passed over.
Not here: the clock (callers pass Unix seconds), what became of the events (the dispatcher).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

_SETTLE_SPANS = 10  # a batch waits at most so many times its settling time for the lane to fall quiet

Form = Literal["event", "batch", "digest"]


class CatchUp(Protocol):
    """What happens to stale mail. See config.CatchUp."""

    @property
    def policy(self) -> Literal["replay", "latest", "digest", "hold"]:
        """What is done about it."""
        ...

    @property
    def after_s(self) -> float:
        """An event is stale when it was sent longer ago."""
        ...

    @property
    def settle_s(self) -> float:
        """How long no stale mail has come before the stretch is judged."""
        ...


class Batch(msgspec.Struct, frozen=True):
    """A handler that takes many at once: at most `size`, after the lane has been quiet for `settle_s`."""

    size: int
    settle_s: float


class Waiting(NamedTuple):
    """An event that waits. sent_at, received_at: Unix seconds; sent_at None where the platform did not say.

    batch: of the one handler that wants it, or None. handler: tells apart the handlers of batches.
    """

    sent_at: float | None
    received_at: float
    batch: Batch | None
    handler: object


class Take(NamedTuple):
    """The first `size` are the next turn."""

    size: int
    form: Form


class Pass(NamedTuple):
    """The first `size` are not handled: newer mail says more."""

    size: int


class Wait(NamedTuple):
    """Look again after so many seconds: more may come."""

    seconds: float


class Hold(NamedTuple):
    """Somebody has to say what becomes of the first `count`, and of what is behind them."""

    size: int


Next = Take | Pass | Wait | Hold


def next_turn(
    waiting: Sequence[Waiting], now: float, policy: CatchUp | None, *, frozen: int = 0, more: bool = False
) -> Next:
    """What the lane does next.

    waiting: its first events, at least one. policy: None for "replay". frozen: how many events a turn had that is
    repeated, else 0. more: others lie behind these.
    """
    if frozen:
        count = min(frozen, len(waiting))
        return Take(count, "batch" if waiting[0].batch is not None else "digest" if count > 1 else "event")
    if policy is not None and (stale := _stale(waiting, now, policy.after_s)):
        verdict = _caught_up(waiting, stale, now, policy, more)
        if verdict is not None:
            return verdict
    if waiting[0].batch is None:
        return Take(1, "event")
    return _batched(waiting, waiting[0].batch, now)


def _stale(waiting: Sequence[Waiting], now: float, after_s: float) -> int:
    """How many from the first on are stale."""
    for count, each in enumerate(waiting):
        if each.sent_at is None or now - each.sent_at <= after_s:
            return count
    return len(waiting)


def _caught_up(waiting: Sequence[Waiting], stale: int, now: float, policy: CatchUp, more: bool) -> Next | None:
    """None where the first is to be handled like any other."""
    last = stale == len(waiting) and not more
    quiet_s = now - waiting[stale - 1].received_at
    if last and 0 <= quiet_s < policy.settle_s:
        return Wait(policy.settle_s - quiet_s)
    if policy.policy == "hold":
        return Hold(stale)
    if policy.policy == "digest":
        return Take(stale, "digest") if stale > 1 else None
    passed = stale - 1 if last else stale
    return Pass(passed) if policy.policy == "latest" and passed else None


def _batched(waiting: Sequence[Waiting], batch: Batch, now: float) -> Next:
    count = 0
    for each in waiting[: batch.size]:
        if each.batch is None or each.handler != waiting[0].handler:
            return Take(count, "batch")
        count += 1
    if count < batch.size and count == len(waiting):
        due = min(waiting[-1].received_at + batch.settle_s, waiting[0].received_at + batch.settle_s * _SETTLE_SPANS)
        # The bound is for a calendar clock that was set back meanwhile.
        if (wait_s := min(due - now, batch.settle_s)) > 0:
            return Wait(wait_s)
    return Take(count, "batch")
