"""Every number that agentd counts, named once, by the conventions of Prometheus.

Counting is one dictionary entry, cheap enough for the hot path: `EVENTS.inc("alice", "live")`. Labels are given by
position, in the order in which the metric names them.

Always true: a metric's name is unique; a counter only rises; every label has few values (names from the
configuration, words of a fixed set, close codes), so that nothing here grows with traffic.
Not here: locks: count on the event loop only. The text form that a scraper reads.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

Labels = tuple[str, ...]

ALL: dict[str, Metric] = {}
"""Every metric by its name."""


class Metric:
    """What counters and histograms share: a name, a sentence on its meaning, the names of the labels."""

    kind = ""

    def __init__(self, name: str, meaning: str, labels: Sequence[str] = ()) -> None:
        assert name not in ALL, name
        self.name = name
        self.meaning = meaning
        self.labels = tuple(labels)
        ALL[name] = self


class Counter(Metric):
    """A number that only rises. `values`: labels to count."""

    kind = "counter"

    def __init__(self, name: str, meaning: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, meaning, labels)
        self.values: dict[Labels, int] = {}

    def inc(self, *labels: str, by: int = 1) -> None:
        """Count `by` more."""
        self.values[labels] = self.values.get(labels, 0) + by

    def value(self, *labels: str) -> int:
        """The count under exactly these labels."""
        return self.values.get(labels, 0)


class Histogram(Metric):
    """How observed values spread. `bounds`: inclusive upper bounds; above the last there is one more bucket."""

    kind = "histogram"

    def __init__(
        self,
        name: str,
        meaning: str,
        labels: Sequence[str] = (),
        *,
        bounds: Sequence[float],
    ) -> None:
        super().__init__(name, meaning, labels)
        assert list(bounds) == sorted(set(bounds)), name
        self.bounds = tuple(bounds)
        self.buckets: dict[Labels, list[int]] = {}
        self.sums: dict[Labels, float] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Count one value. Buckets are kept apart here; a reader adds them up."""
        counts = self.buckets.get(labels)
        if counts is None:
            counts = self.buckets[labels] = [0] * (len(self.bounds) + 1)
            self.sums[labels] = 0.0
        counts[bisect_left(self.bounds, value)] += 1
        self.sums[labels] += value

    def count(self, *labels: str) -> int:
        """How many values were observed under exactly these labels."""
        return sum(self.buckets.get(labels, ()))


# From a commit on a fast disk to a turn of ten minutes.
_COMMIT_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_HANDLER_BOUNDS_S = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_BATCH_BOUNDS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500)

EVENTS = Counter("agentd_events_total", "Events on disk, by how they came.", ["identity", "source"])
DUPLICATES = Counter("agentd_duplicates_total", "Events that were accounted for already.", ["identity"])
SHED = Counter("agentd_shed_total", "Frames left with the server since too much waits for handlers.", ["identity"])
MALFORMED = Counter("agentd_malformed_total", "Frames and rows that break the platform's contract.", ["identity"])
GAPS = Counter("agentd_gaps_total", "Gaps closed, by outcome: filled, absent, mixed, reset.", ["identity", "outcome"])
GAPS_FOUND = Counter("agentd_gaps_found_total", "Gaps found.", ["identity"])
REFETCHED_ROWS = Counter("agentd_refetched_rows_total", "Rows fetched to close gaps.", ["identity"])
RESETS = Counter("agentd_stream_resets_total", "Conversations whose numbering began anew.", ["identity"])
RECONNECTS = Counter("agentd_reconnects_total", "Connections that ended, by close code.", ["identity", "code"])
HANDLER_SECONDS = Histogram(
    "agentd_handler_seconds",
    "Handler calls, by outcome: handled, retried, postponed, dead.",
    ["plugin", "outcome"],
    bounds=_HANDLER_BOUNDS_S,
)
PASSED_OVER = Counter("agentd_passed_over_total", "Events not handled, by catch-up policy.", ["identity", "plugin"])
LOOPS_STOPPED = Counter("agentd_loops_stopped_total", "Conversations paused by the guard against loops.", ["identity"])
BREAKER_OPENED = Counter("agentd_breaker_opened_total", "Times a plugin as a whole was paused.", ["plugin"])
WORKER_DEATHS = Counter("agentd_worker_deaths_total", "Deaths of the process of an isolated plugin.", ["plugin"])
SENDS = Counter(
    "agentd_sends_total", "Sends that reached a state: sent, unknown, refused, expired, dropped.", ["identity", "state"]
)
SEND_RETRIES = Counter("agentd_send_retries_total", "Attempts to send that will be repeated.", ["identity"])
COMMIT_SECONDS = Histogram("agentd_commit_seconds", "Journal commits, fsync included.", bounds=_COMMIT_BOUNDS_S)
COMMIT_CHANGES = Histogram("agentd_commit_changes", "Changes per journal commit.", bounds=_BATCH_BOUNDS)
LOOP_STALLS = Counter("agentd_loop_stalls_total", "Times the event loop was blocked past its limit.")
TRIMMED_ROWS = Counter("agentd_trimmed_rows_total", "Rows whose content retention let go, by table.", ["table"])
