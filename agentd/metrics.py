"""Every number that agentd counts, named once, by the conventions of Prometheus.

Counting is one dictionary entry, cheap enough for the hot path: `EVENTS.inc("alice", "live")`. Labels are given by
position, in the order in which the metric names them.

What is a state rather than an occurrence is not counted but read when somebody asks: a `Gauge` knows its name and
meaning, and whoever has the state `watch`es it.

Always true: a metric's name is unique; a counter only rises; every label has few values (names from the
configuration, words of a fixed set, close codes), so that nothing here grows with traffic.
Not here: locks: count on the event loop only. The text form that a scraper reads (control/exposition.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

Labels = tuple[str, ...]

ALL: dict[str, Metric] = {}
"""Every metric by its name."""


class Metric:
    """What all kinds share: a name, a sentence on its meaning, the names of the labels."""

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


Readings = Mapping[Labels, float]


class Gauge(Metric):
    """A number that rises and falls, read at the moment at which somebody asks."""

    kind = "gauge"

    def __init__(self, name: str, meaning: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, meaning, labels)
        self._read: Callable[[], Readings] | None = None

    def watch(self, read: Callable[[], Readings]) -> None:
        """From now on `read` tells the values; the last one who watches is asked."""
        self._read = read

    def unwatch(self) -> None:
        """Nobody can tell any more."""
        self._read = None

    def values(self) -> Readings:
        """The numbers as they are now; none while nobody watches."""
        return {} if self._read is None else self._read()


class Total(Gauge):
    """A number that only rises and that somebody else counts already: the kernel, a part with counts of its own."""

    kind = "counter"


# From a commit on a fast disk to a turn of ten minutes.
_COMMIT_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_HANDLER_BOUNDS_S = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_LAG_BOUNDS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCH_BOUNDS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500)

EVENTS = Counter("agentd_events_total", "Events on disk, by how they came.", ["identity", "source"])
DUPLICATES = Counter("agentd_duplicates_total", "Events that were accounted for already.", ["identity"])
SHED = Counter("agentd_shed_total", "Frames left with the server since too much waits for handlers.", ["identity"])
MALFORMED = Counter("agentd_malformed_total", "Frames and rows that break the platform's contract.", ["identity"])
UNKNOWN_FRAMES = Counter(
    "agentd_unknown_frames_total", "Frames of a kind that this version does not know, passed over.", ["identity"]
)
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
BACKLOG_WARNINGS = Counter(
    "agentd_backlog_warnings_total", "Accepted sends whose recipient had a backlog, by the platform.", ["identity"]
)
LOOP_LAG_SECONDS = Histogram(
    "agentd_loop_lag_seconds", "How much later than asked for the event loop woke a sleeper.", bounds=_LAG_BOUNDS_S
)
LOOP_STALLS = Counter("agentd_loop_stalls_total", "Times the event loop was blocked past its limit.")
TRIMMED_ROWS = Counter("agentd_trimmed_rows_total", "Rows whose content retention let go, by table.", ["table"])

# Read when somebody asks; control/readings.py knows where from.
BUILD_INFO = Gauge("agentd_build_info", "Always 1; the labels tell the versions.", ["version", "python"])
READY = Gauge("agentd_ready", "1 while mail is flowing, as /readyz tells it, else 0.")
NOT_READY = Gauge("agentd_not_ready", "Reasons why mail is not flowing, by word; absent while ready.", ["reason"])
IDENTITY_STATE = Gauge(
    "agentd_identity_state", "1 for the state that an identity is in, 0 for the others.", ["identity", "state"]
)
CONVERSATIONS = Gauge("agentd_conversations", "Conversations that are known.", ["identity"])
HELD_EARLY = Gauge("agentd_held_early", "Events in memory that came before what they follow.", ["identity"])
GAPS_OPEN = Gauge("agentd_gaps_open", "Gaps that are not closed yet.", ["identity"])
ABSENT = Gauge("agentd_absent_seqs", "Seqs that never came, with a reason on disk.", ["identity"])
PENDING = Gauge("agentd_pending_events", "Events on disk that not every plugin is through with.", ["identity"])
DEAD_LETTERS = Gauge("agentd_dead_letters", "Events that a plugin gave up and nobody has dropped.", ["identity"])
OUTBOX = Gauge("agentd_outbox_sends", "Sends in the outbox, by state.", ["identity", "state"])
PACING_RATE = Gauge("agentd_pacing_sends_per_second", "The rate at which an identity may send now.", ["identity"])
LAST_PONG = Gauge("agentd_last_pong_timestamp_seconds", "When a connection last proved alive.", ["identity"])
LAST_INBOUND = Gauge("agentd_last_inbound_timestamp_seconds", "When the last frame came in.", ["identity"])
LAST_AUDIT = Gauge("agentd_last_audit_timestamp_seconds", "When marks were last compared.", ["identity"])
LAST_COMMIT = Gauge("agentd_last_commit_timestamp_seconds", "When a commit last reached the disk.")
LANES = Gauge("agentd_lanes", "Conversations in which a plugin has something to do.", ["plugin"])
LANE_DEPTH = Gauge("agentd_lane_depth", "Events that wait in a plugin's deepest lane.", ["plugin"])
LANES_HELD = Gauge("agentd_lanes_held", "Conversations that stand still behind a dead letter.", ["plugin"])
BREAKER = Gauge(
    "agentd_breaker_standing", "1 for the standing of a plugin's breaker, 0 for the others.", ["plugin", "standing"]
)
UNDISPATCHED = Gauge("agentd_undispatched", "Deliveries in memory that wait for a handler.")
SHEDDING = Gauge("agentd_shedding", "1 while new messages are left with the server, else 0.")
LOG_DROPPED = Gauge("agentd_log_lines_dropped", "Lines that the log lacks since the start, as nobody read it.")
JOURNAL_BYTES = Gauge("agentd_journal_bytes", "Size of the journal's file; what was not checkpointed yet is not in it.")
JOURNAL_WAL_BYTES = Gauge(
    "agentd_journal_wal_bytes", "Size of the file beside it; a reader that does not end lets it grow."
)
JOURNAL_FULL = Gauge("agentd_journal_full", "1 while the disk has no room for a commit, else 0.")
JOURNAL_WAITING = Gauge("agentd_journal_waiting_seconds", "How long the oldest commit waits for the disk; 0 for none.")
TRACE_SPANS = Total(
    "agentd_trace_spans_total",
    "Spans by what became of them: delivered, or lost on the way to the collector.",
    ["fate"],
)
TRACE_WAITING = Gauge("agentd_trace_spans_waiting", "Spans that the collector has not been offered yet.")
PROCESS_CPU = Total("process_cpu_seconds_total", "Processor time used, user and system, in seconds.")
PROCESS_RESIDENT = Gauge("process_resident_memory_bytes", "Memory in use.")
PROCESS_VIRTUAL = Gauge("process_virtual_memory_bytes", "Address space in use.")
PROCESS_START = Gauge("process_start_time_seconds", "When the process began.")
PROCESS_FDS = Gauge("process_open_fds", "Open file descriptors.")
PROCESS_FDS_MAX = Gauge("process_max_fds", "How many file descriptors may be open.")
