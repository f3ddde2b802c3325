"""Whether mail is flowing: what is known of a process and its identities, as facts, to a list of reasons against it.

Ready means that nothing speaks against it. Silence alone does not: an idle night brings pongs and audits, and a turn of
ten minutes holds up its own lane and nothing else.

Always true: the same facts give the same reasons. Each carries the time since which it holds, and goes by itself when
its facts do: nothing is remembered here. A short reconnect is no reason, a connection that never was one is.
Not here: the clock (callers pass `now`, monotonic seconds), where facts come from, who is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import msgspec

State = Literal["off", "connecting", "catching_up", "live", "throttled", "parked", "deaf"]
STATES: tuple[State, ...] = get_args(State)
"""What an identity can be doing. docs/operating.md says what each means."""

Code = Literal[
    "key_refused",
    "deaf",
    "not_connected",
    "silent",
    "not_audited",
    "shedding",
    "disk_full",
    "commit_hangs",
    "loop_blocked",
]
CODES: tuple[Code, ...] = get_args(Code)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long what may pass by itself may last.

    reconnect_s: without a connection that has caught up. silent_s: without a pong or a new connection. audit_s:
    without a finished audit of a live connection. commit_s: for one commit. lag_s: for the loop.
    """

    reconnect_s: float = 20.0
    silent_s: float = 40.0
    audit_s: float = 120.0
    commit_s: float = 10.0
    lag_s: float = 2.0


class IdentityFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one identity. Times are monotonic seconds, None for never.

    state: as the supervisor tells it; since: of that state; why: its reason, in words. began: when it was taken up.
    live_at: when mail could last come in over its connection, which is `now` while it can. deaf: mail was found that
    had not been pushed, and nothing has disproved it since. proved_at: the last pong or the last connection made.
    audited_at: the end of the last audit. shedding: why its messages alone are left with the server, or "".
    """

    name: str
    state: State
    since: float
    began: float
    why: str = ""
    live_at: float | None = None
    deaf: bool = False
    proved_at: float | None = None
    audited_at: float | None = None
    shedding: str = ""
    shedding_since: float | None = None


class ProcessFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the process. Times are monotonic seconds.

    shedding: why all messages are left with the server, or ""; shedding_since: since when. full_since: since when the
    disk has no room. commit_since: since when the oldest commit waits. lag_s: the worst of the loop's lags of late,
    lag_at: when that was.
    """

    shedding: str = ""
    shedding_since: float | None = None
    full_since: float | None = None
    commit_since: float | None = None
    lag_s: float = 0.0
    lag_at: float = 0.0


class Reason(msgspec.Struct, frozen=True):
    """Why mail is not flowing. identity: whose, or None for all. words: for people. since: monotonic seconds."""

    code: Code
    identity: str | None
    words: str
    since: float


def reasons(process: ProcessFacts, identities: Iterable[IdentityFacts], limits: Limits, now: float) -> list[Reason]:
    """Everything that speaks against "mail is flowing"; empty when it is."""
    found = list(_of_process(process, limits, now))
    for identity in identities:
        found += _of_identity(identity, limits, now)
    return found


def _of_process(process: ProcessFacts, limits: Limits, now: float) -> Iterator[Reason]:
    if process.full_since is not None:
        yield Reason("disk_full", None, "the disk has no room for the journal; make room", process.full_since)
    elif process.commit_since is not None and now - process.commit_since > limits.commit_s:
        waited_s = now - process.commit_since
        yield Reason("commit_hangs", None, f"a commit waits for the disk for {waited_s:.0f} s", process.commit_since)
    if process.lag_s > limits.lag_s:
        yield Reason(
            "loop_blocked",
            None,
            f"the event loop stood still for {process.lag_s:.1f} s; the log names the code that blocked it",
            process.lag_at - process.lag_s,
        )
    if process.shedding:
        yield _shedding(None, process.shedding, process.shedding_since, now)


def _of_identity(identity: IdentityFacts, limits: Limits, now: float) -> Iterator[Reason]:
    if identity.state == "parked":
        yield Reason("key_refused", identity.name, identity.why or "the platform refused the key", identity.since)
        return
    if identity.deaf:
        told = identity.why if identity.state == "deaf" else ""
        yield Reason("deaf", identity.name, told or "the server pushes nothing although it has mail", identity.since)
    elif (broken := _connection(identity, limits, now)) is not None:
        yield broken
    if identity.shedding:
        yield _shedding(identity.name, identity.shedding, identity.shedding_since, now)


def _shedding(identity: str | None, why: str, since: float | None, now: float) -> Reason:
    return Reason("shedding", identity, f"{why}: new messages stay with the server", now if since is None else since)


def _connection(identity: IdentityFacts, limits: Limits, now: float) -> Reason | None:
    # What has just begun is not ready before it was live once; what was, may reconnect in peace.
    if identity.live_at is None or now - identity.live_at > limits.reconnect_s:
        told = f"{identity.state}: {identity.why}" if identity.why else identity.state
        since = identity.began if identity.live_at is None else identity.live_at
        return Reason("not_connected", identity.name, told, since)
    if identity.proved_at is not None and now - identity.proved_at > limits.silent_s:
        told = f"no ping was answered for {now - identity.proved_at:.0f} s"
        return Reason("silent", identity.name, told, identity.proved_at)
    audited_at = identity.since if identity.audited_at is None else max(identity.since, identity.audited_at)
    if identity.state == "live" and now - audited_at > limits.audit_s:
        told = f"marks could not be compared with the server's for {now - audited_at:.0f} s; the log tells why"
        return Reason("not_audited", identity.name, told, audited_at)
    return None


class Pressure:
    """Why messages are left with the server, and since when there is any reason. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._reasons: set[str] = set()
        self._since = 0.0

    @property
    def why(self) -> str:
        """All reasons, or ""."""
        return ", ".join(sorted(self._reasons))

    def press(self, reason: str, pressed: bool, now: float) -> None:
        """There is this reason, or is not any more."""
        if pressed and not self._reasons:
            self._since = now
        (self._reasons.add if pressed else self._reasons.discard)(reason)

    def age_s(self, now: float) -> float | None:
        """For how long there has been a reason; None if there is none."""
        return round(now - self._since, 3) if self._reasons else None


class Lags:
    """How late the loop woke somebody who sleeps for `period_s` at a time, and the worst of the last `window_s`."""

    def __init__(self, period_s: float, window_s: float) -> None:
        self._period_s = period_s
        self._window_s = window_s
        self._slept_at: float | None = None
        self._recent: deque[tuple[float, float]] = deque()
        """(when, lag), with falling lags: what a later and worse one has overtaken is never the worst again."""

    def slept(self, now: float) -> None:
        """A sleep begins."""
        self._slept_at = now

    def woke(self, now: float) -> float:
        """It ended; returns by how much too late."""
        lag_s = 0.0 if self._slept_at is None else max(0.0, now - self._slept_at - self._period_s)
        while self._recent and self._recent[-1][1] <= lag_s:
            self._recent.pop()
        self._recent.append((now, lag_s))
        self._forget(now)
        return lag_s

    def worst(self, now: float) -> tuple[float, float]:
        """When the worst lag of the window ended, and how long it was; a sleep that is overdue by now counts."""
        self._forget(now)
        at, lag_s = self._recent[0] if self._recent else (now, 0.0)
        overdue_s = 0.0 if self._slept_at is None else now - self._slept_at - self._period_s
        return (now, overdue_s) if overdue_s > lag_s else (at, lag_s)

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - self._window_s:
            self._recent.popleft()
