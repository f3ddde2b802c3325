"""Which fault happens now: decided by script, by chance from a seed, or by both, and counted.

The hub asks when a client dials (upgrade) and when it has named itself (accept), before it writes a pushed or a
drained row, and around a REST call. The answer is a `Fault` that says what to do, or None.

Always true: the same seed, rules and questions, in the same order per point, give the same faults; each point draws
from its own stream of chance, so more connections do not change which pushes are lost. Every fault returned is counted.
Not here: carrying a fault out (sockets.py, rest.py), and the clock (callers pass `now`).
"""

from __future__ import annotations

import enum
import random
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec


class Point(enum.StrEnum):
    """Where a fault may happen."""

    UPGRADE = "upgrade"
    ACCEPT = "accept"
    PUSH = "push"
    DRAIN = "drain"
    REST = "rest"


class Action(enum.StrEnum):
    """What goes wrong. Each belongs to the points named in `ACTIONS`."""

    DROP = "drop"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    DELAY = "delay"
    CUT = "cut"
    CUT_MID_FRAME = "cut_mid_frame"
    CLOSE = "close"
    RESTART = "restart"
    HANG = "hang"
    DEAF = "deaf"
    NO_PONG = "no_pong"
    SLOW_READER = "slow_reader"
    HALF_OPEN = "half_open"
    STATUS = "status"
    DISCONNECT = "disconnect"
    DISCONNECT_AFTER = "disconnect_after"
    MALFORMED_ROW = "malformed_row"
    NOT_JSON = "not_json"


_ROW_ACTIONS = frozenset(
    {
        Action.DROP,
        Action.DUPLICATE,
        Action.REORDER,
        Action.DELAY,
        Action.CUT,
        Action.CUT_MID_FRAME,
        Action.CLOSE,
        Action.RESTART,
        Action.HALF_OPEN,
        Action.DEAF,
    }
)

ACTIONS: Mapping[Point, frozenset[Action]] = {
    Point.PUSH: _ROW_ACTIONS,
    Point.DRAIN: _ROW_ACTIONS,
    Point.UPGRADE: frozenset({Action.STATUS, Action.HANG, Action.DISCONNECT}),
    Point.ACCEPT: frozenset(
        {
            Action.CLOSE,
            Action.HANG,
            Action.DEAF,
            Action.NO_PONG,
            Action.SLOW_READER,
            Action.HALF_OPEN,
            Action.CUT,
        }
    ),
    Point.REST: frozenset(
        {
            Action.STATUS,
            Action.HANG,
            Action.DELAY,
            Action.DISCONNECT,
            Action.DISCONNECT_AFTER,
            Action.MALFORMED_ROW,
            Action.NOT_JSON,
        }
    ),
}
"""What can go wrong where.

Rows: drop (it stays stored), duplicate, reorder (written after the next row), delay, cut (the connection is aborted
instead), cut_mid_frame (after half the frame), close (with `code`, instead), restart (the hub, instead), half_open (the
hub reads and writes nothing more), deaf (it pushes nothing more).
Upgrade, where the identity is known only if the key came in a header: status (HTTP, instead of 101), hang, disconnect.
Accept, after a good key: close (`code`, instead of `hello.ok`), hang (no `hello.ok`), cut, and connections that are
deaf, answer no ping (no_pong), read nothing (slow_reader), or neither read nor write after `hello.ok` (half_open).
REST: status (with `retry_after_s` if set), hang, delay, disconnect (nothing is carried out), disconnect_after
(carried out, not answered), malformed_row (row number `row` of a page), not_json.
"""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault to carry out now."""

    action: Action
    status: int = 500
    code: int = 1001
    delay_s: float = 0.05
    retry_after_s: float | None = None
    row: int = 0


class Rule(Fault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A scripted fault, with what must match. None matches everything.

    seqs: half-open range. route: name of a REST route ("send", "sync", "sync_ack", "history", ...).
    nth: the match at which it fires first, from 1. times: how often it fires, None: without end.
    for_s: it ends this long after it fired first.
    """

    point: Point
    identity: str | None = None
    conversation: str | None = None
    seqs: tuple[int, int] | None = None
    route: str | None = None
    nth: int = 1
    times: int | None = 1
    for_s: float | None = None

    def __post_init__(self) -> None:
        if self.action not in ACTIONS[self.point]:
            raise ValueError(f"{self.action.value} cannot happen at {self.point.value}")


class FaultPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Faults by chance: each field is the probability per row, connection or call."""

    seed: int = 0
    push_drop: float = 0.0
    push_duplicate: float = 0.0
    push_reorder: float = 0.0
    push_delay: float = 0.0
    push_cut: float = 0.0
    push_cut_mid_frame: float = 0.0
    upgrade_refuse: float = 0.0
    accept_hang: float = 0.0
    rest_5xx: float = 0.0
    rest_429: float = 0.0
    rest_delay: float = 0.0
    rest_hang: float = 0.0
    rest_disconnect: float = 0.0
    rest_disconnect_after: float = 0.0
    delay_max_s: float = 0.2
    retry_after_s: float = 1.0

    def chances(self) -> dict[Point, list[tuple[float, Fault]]]:
        """Per point, the faults with a probability above 0."""
        later = self.retry_after_s
        table = {
            Point.PUSH: [
                (self.push_drop, Fault(action=Action.DROP)),
                (self.push_duplicate, Fault(action=Action.DUPLICATE)),
                (self.push_reorder, Fault(action=Action.REORDER)),
                (self.push_delay, Fault(action=Action.DELAY)),
                (self.push_cut, Fault(action=Action.CUT)),
                (self.push_cut_mid_frame, Fault(action=Action.CUT_MID_FRAME)),
            ],
            Point.DRAIN: [],
            Point.UPGRADE: [(self.upgrade_refuse, Fault(action=Action.STATUS, status=503))],
            Point.ACCEPT: [(self.accept_hang, Fault(action=Action.HANG))],
            Point.REST: [
                (self.rest_5xx, Fault(action=Action.STATUS, status=503)),
                (self.rest_429, Fault(action=Action.STATUS, status=429, retry_after_s=later)),
                (self.rest_delay, Fault(action=Action.DELAY)),
                (self.rest_hang, Fault(action=Action.HANG)),
                (self.rest_disconnect, Fault(action=Action.DISCONNECT)),
                (self.rest_disconnect_after, Fault(action=Action.DISCONNECT_AFTER)),
            ],
        }
        return {point: [chance for chance in chances if chance[0] > 0] for point, chances in table.items()}


class Faults:
    """The faults in force. `fired`: how often each happened, by "<point>.<action>"."""

    def __init__(self, plan: FaultPlan | None = None, rules: Iterable[Rule] = ()) -> None:
        self.fired: Counter[str] = Counter()
        self.replace(plan, rules)

    def replace(self, plan: FaultPlan | None = None, rules: Iterable[Rule] = ()) -> None:
        """Forget the faults in force and take these. What has been counted stays."""
        plan = plan or FaultPlan()
        self._delay_max_s = plan.delay_max_s
        self._chances = plan.chances()
        self._streams = {point: random.Random(f"{plan.seed}:{point.value}") for point in Point}
        self._scripts = [_Script(rule) for rule in rules]

    def add(self, *rules: Rule) -> None:
        """Take further scripted faults. Where two match, the older fires."""
        self._scripts += [_Script(rule) for rule in rules]

    def any_at(self, point: Point) -> bool:
        """Whether `at` could answer anything but None."""
        return bool(self._chances[point]) or any(script.rule.point is point for script in self._scripts)

    def at(
        self,
        point: Point,
        *,
        now: float,
        identity: str = "",
        conversation: str = "",
        seq: int = 0,
        route: str = "",
    ) -> Fault | None:
        """Say what goes wrong here and count it. now: seconds, never less than in an earlier call."""
        fault = self._scripted(point, now, identity, conversation, seq, route) or self._drawn(point)
        if fault is not None:
            self.fired[f"{point.value}.{fault.action.value}"] += 1
        return fault

    def _scripted(
        self, point: Point, now: float, identity: str, conversation: str, seq: int, route: str
    ) -> Fault | None:
        for script in self._scripts:
            rule = script.rule
            if (
                rule.point is point
                and rule.identity in (None, identity)
                and rule.conversation in (None, conversation)
                and (rule.seqs is None or rule.seqs[0] <= seq < rule.seqs[1])
                and rule.route in (None, route)
                and script.fires(now)
            ):
                return rule
        return None

    def _drawn(self, point: Point) -> Fault | None:
        chances = self._chances[point]
        if not chances:
            return None
        stream = self._streams[point]
        draw = stream.random()
        for probability, fault in chances:
            if draw < probability:
                if fault.action is Action.DELAY:
                    return Fault(action=Action.DELAY, delay_s=stream.uniform(0.0, self._delay_max_s))
                return fault
            draw -= probability
        return None


class _Script:
    """A rule and how far it has come."""

    __slots__ = ("_fired", "_first_at", "_matched", "rule")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._matched = 0
        self._fired = 0
        self._first_at: float | None = None

    def fires(self, now: float) -> bool:
        """Count a match and say whether the rule fires on it."""
        rule = self.rule
        self._matched += 1
        if self._matched < rule.nth or (rule.times is not None and self._fired >= rule.times):
            return False
        if self._first_at is None:
            self._first_at = now
        if rule.for_s is not None and now - self._first_at >= rule.for_s:
            return False
        self._fired += 1
        return True
