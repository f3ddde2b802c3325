"""The settings as frozen values. Units end the names; the reason stands beside each default.

Always true: a value never changes after it was made.
Not here: reading them from a file (loader.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

PLATFORMS = ("agentchat",)
"""What `platform` may say: one name per module of wire/."""

# The descriptions complete the sentence "expected ..." in the loader's answers.
Seconds = Annotated[float, Meta(ge=0, description="a number of seconds, 0 or more")]
Interval = Annotated[float, Meta(gt=0, description="a number of seconds above 0")]
Days = Annotated[float, Meta(ge=0, description="a number of days, 0 or more")]
Milliseconds = Annotated[float, Meta(ge=0, description="a number of milliseconds, 0 or more")]
Rate = Annotated[float, Meta(gt=0, description="a number per second, above 0")]
Count = Annotated[int, Meta(ge=0, description="a whole number, 0 or more")]
Limit = Annotated[int, Meta(ge=1, description="a whole number, 1 or more")]
Ratio = Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")]


OnDead = Literal["skip", "hold", "detach"]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file."""


class Intake(_Section, frozen=True, kw_only=True):
    """How events come in."""

    gap_grace_s: Seconds = 0.75  # most holes close by themselves: a reordered push, the answer to a send of ours
    held_max: Limit = 2_000  # early events kept per conversation; what overflows is fetched again
    held_total_max: Limit = 20_000  # the same over one identity
    backfill: Count = 0  # seqs to fetch from before the first one offered; history is asked for, never assumed
    refetch_concurrency: Limit = 4  # ranges fetched at once per identity: gaps are rare, the API is shared
    refetch_retry_max_s: Interval = 30.0  # an open gap is asked for so often, if the platform wants no longer wait
    audit_interval_s: Interval = 30.0  # with its jitter, a lost last message is found and told within a minute
    audit_conversations: Limit = 20  # tops compared per audit, the longest unaudited first
    on_reset: Literal["replay", "adopt"] = "replay"  # the new numbering from its start, so that nothing is lost
    undispatched_high: Limit = (
        50_000  # events waiting for handlers in memory (about 100 MB); who has most of them sheds
    )
    undispatched_low: Count = 10_000  # and below which an identity fetches what it shed
    questions_max: Limit = 10_000  # repeats waiting for the disk to tell them; more stay with the server until later
    unreadable_tries: Limit = 3  # requests that a malformed history row holds its conversation for; then it is absent
    undispatched_high_mb: Limit = 256  # the same by the size of what they hold, whichever comes first
    undispatched_low_mb: Count = 64  # a quarter, so that shedding neither begins nor ends with each event


class Link(_Section, frozen=True, kw_only=True):
    """How a connection is held."""

    connect_timeout_s: Interval = 10.0  # DNS, TCP, TLS and upgrade together
    hello_timeout_s: Interval = 4.0  # the official client's figure; the server closes at 5
    ping_interval_s: Interval = 20.0  # under every proxy's idle limit that we know (30 s and more)
    ping_timeout_s: Interval = 20.0  # a half-open socket is found within interval + timeout
    backoff_first_s: Interval = 0.5  # with jitter: a deploy cuts everybody at once
    backoff_max_s: Interval = 30.0  # an outage that ends is noticed within half a minute
    stable_s: Seconds = 30.0  # a connection must live this long before backoff starts over
    dials_per_s: Rate = 20.0  # over all identities, so that hundreds do not dial at once
    take_over_dials_per_s: Rate = 500.0  # the same for what replaces connections that were there a moment ago
    frame_max_bytes: Limit = 4_194_304  # twice the largest frame that a client of the platform sends
    write_buffer_max_bytes: Limit = 1_048_576  # 15,000 unread acks and more; further ones are made up for later


class Rest(_Section, frozen=True, kw_only=True):
    """How REST calls are made."""

    timeout_s: Interval = 30.0  # one attempt, connect to last byte
    retries: Count = 3  # the official client's table
    backoff_first_s: Interval = 0.25  # the official client's, too
    backoff_max_s: Interval = 8.0  # the caller has patience for `timeout_s` only
    answer_max_bytes: Limit = 33_554_432  # 500 rows of the largest message the platform takes, twice over
    attachment_max_bytes: Limit = 26_214_400  # the largest file that AgentChat takes; it is held in memory
    transfer_timeout_s: Interval = 120.0  # one file, at 2 Mbit/s
    connections_per_host_max: Limit = 100  # over all identities; a request waits for one within its deadline


class Dispatch(_Section, frozen=True, kw_only=True):
    """How handlers run."""

    concurrency: Limit = 64  # handler calls at once over all plugins
    lane_memory: Limit = 4_096  # records in memory per lane: a busy commit brings 1,000; the rest is decoded again
    signals_max: Limit = 1_000  # typing and the like waiting per plugin; more are dropped, since they are best effort
    stall_s: Interval = 0.25  # the loop blocked for this long is logged with its stack
    retry_first_s: Interval = 1.0  # after a handler's first failure: long enough to make a dropped connection again
    retry_max_s: Interval = 300.0  # the delay doubles up to here; a mended dependency is noticed within five minutes
    breaker_lanes: Limit = 5  # conversations that fail in a row before their plugin pauses; fewer may be poison
    breaker_first_s: Interval = 1.0  # the first pause; each one after a failed trial is twice as long
    breaker_max_s: Interval = 60.0  # a mended dependency is noticed within a minute
    trial_s: Interval = 3.0  # alone, for what ran when the process died; most of what ends a process does so at once
    trials_s: Interval = 30.0  # for all of that together, while nothing else runs; the rest is tried at the next crash
    drain_timeout_s: Seconds = 20.0  # how long a stop waits for running handlers
    hand_over_timeout_s: Seconds = 3_600.0  # how long they may go on in a process that was taken over; nobody waits


class Sending(_Section, frozen=True, kw_only=True):
    """How sends go out."""

    concurrency: Limit = 16  # requests at once per identity
    rate_per_s: Rate = 50.0  # under the platform's 60 a second per agent
    group_rate_per_s: Rate = 20.0  # to one group; the platform's limit, which all who speak there share
    outbox_max: Limit = 10_000  # sends that wait per identity; a turn that would add to a full outbox waits for room
    paced_targets_max: Limit = 10_000  # recipients whose limits are remembered; a few hundred bytes each
    retry_first_s: Interval = 0.5  # most failures of a platform are over by then
    retry_max_s: Interval = 60.0  # an outage that ends is noticed within a minute
    reply_wait_max_s: Interval = 3_600.0  # a stranger who owes a reply is tried again then, should its notice be lost
    lookup_settle_s: Seconds = 60.0  # an unanswered request may still be stored that late; then "not there" is final


class KeySource(_Section, frozen=True, kw_only=True):
    """Where an identity's key or a plugin's secret lies: exactly one of these.

    env: name of an environment variable. file: a path, readable by its owner only. credential: a name under
    $CREDENTIALS_DIRECTORY. command: what prints the key; a string is split into words, and no shell is run.
    """

    env: str | None = None
    file: str | None = None
    credential: str | None = None
    command: tuple[str, ...] | str | None = None


class Encryption(_Section, frozen=True, kw_only=True):
    """What people wrote and plugins keep, encrypted in the journal and its backups. Needs `agentd[encryption]`.

    A key is 32 bytes in base64 or hexadecimal; `openssl rand -base64 32` makes one.
    """

    key: KeySource | None = None  # where it lies, best not on the same disk; without it nothing is encrypted
    old_key: KeySource | None = None  # what was written under it can be read until `agentd vacuum` has written it anew


class JournalSettings(_Section, frozen=True, kw_only=True):
    """How the disk is used."""

    linger_ms: Milliseconds = 2.0  # under a steady stream a commit waits this long for company; a lone event never
    full_retry_s: Interval = 1.0  # how often a full disk is tried again
    waiting_max: Limit = 20_000  # commits before a disk that is slow or full, at which intake sheds (about 40 MB)
    max_mb: Count = 0  # size of journal.db at which it counts as a full disk; 0 leaves that to the disk
    encryption: Encryption = Encryption()
    wal_max_mb: Limit = 64  # what a burst leaves of the file beside it; larger is given back at the next checkpoint


class Control(_Section, frozen=True, kw_only=True):
    """How the daemon answers its operator."""

    tail_queue_max: Limit = 1_000  # records that a waiting `send` may have unread; a `tail` reads the journal anyway


class Retention(_Section, frozen=True, kw_only=True):
    """How long the journal keeps what nobody needs any more: the text of handled events and of settled sends.

    Their rows stay, a hundred bytes each, since ids and keys are taken for ever. 0: no bound.
    """

    events_max_age_days: Days = 0.0  # nothing goes for its age unless asked for: that is a matter of law and taste
    outbox_max_age_days: Days = 0.0  # the same; a refused send cannot be retried afterwards
    journal_max_mb: Count = 10_240  # pages in use; above it the oldest handled go. Said in the log from 80 % on
    forget_plugins: tuple[str, ...] = ()  # were removed for good: their cursors hold nothing back
    every_s: Interval = 3_600.0  # a run over a journal without news costs milliseconds


class Http(_Section, frozen=True, kw_only=True):
    """The page, /metrics, /healthz and /readyz for other programs and for a browser."""

    listen: str = ""  # off unless it names an address, as "127.0.0.1:8788"; port 0 takes a free one
    allow_remote: bool = False  # an address that other machines reach: only behind something that encrypts
    hosts: tuple[str, ...] = ()  # names it is asked under besides addresses and localhost: others may be rebound DNS
    body_max_bytes: Limit = 65_536  # the largest message of the talk box, several times over
    header_max_bytes: Limit = 8_190  # one header field; a cookie, a token and what a browser says of itself
    connections_max: Limit = 64  # at once, so that another user of this machine cannot take all file descriptors
    streams_max: Limit = 16  # pages that are kept up to date at once; each costs a reader of the journal
    sessions_max: Limit = 64  # browsers that are let in; the one that came first makes room
    session_max_s: Interval = 43_200.0  # a working day; a stolen cookie is worth no more


class Health(_Section, frozen=True, kw_only=True):
    """What may pass by itself before /readyz says that mail does not flow. All of it together stays under a minute."""

    reconnect_s: Seconds = 20.0  # without a live connection: a deploy of the server takes less
    commit_s: Seconds = 10.0  # for one commit: ten times the worst sync of a slow disk
    lag_s: Seconds = 2.0  # the loop standing still: a page of large messages takes a tenth
    lag_window_s: Interval = 30.0  # how long it speaks against us: longer than most probes are apart


class Tracing(_Section, frozen=True, kw_only=True):
    """Traces of what becomes of each event, for a collector that speaks OTLP over HTTP. Needs `agentd[otel]`.

    What is empty here is taken from the variables that OpenTelemetry names, OTEL_EXPORTER_OTLP_ENDPOINT and so on.
    """

    enabled: bool = False  # whoever wants traces says so; the variables alone, which a cluster may set, do not
    endpoint: str = ""  # of the collector, as "http://127.0.0.1:4318", which is also what nothing at all means
    headers: dict[str, KeySource] = {}  # where the value of each lies that the collector wants, as of authorization
    service_name: str = ""  # under which traces are found; "agentd" where OTEL_SERVICE_NAME says nothing either
    sample_ratio: Ratio | None = None  # of events; the same ones after a restart, and in every process
    timeout_s: Interval = 10.0  # for one batch, its repeats included; OpenTelemetry's own figure
    queue_max: Limit = 8_192  # spans that wait for the collector, some 2 kB each; more are lost, and counted
    every_s: Interval = 1.0  # how often what waits is delivered: a crash loses no more than that
    open_max: Limit = 20_000  # events that are followed to their end at once; the root span of the oldest is given up
    flush_timeout_s: Seconds = 3.0  # how long a stop waits for the collector, behind everything else


class Agentd(_Section, frozen=True, kw_only=True):
    """The daemon itself."""

    state: str = "./state"  # journal, lock, control socket; of /etc/agentd/agentd.toml, the service's: /var/lib/agentd
    log_level: Literal["debug", "info", "warning", "error"] = "info"  # "debug" adds what plugins and libraries tell
    log_backlog_max_bytes: Limit = 1_048_576  # kept while nobody reads the log; then lines are dropped, and counted
    intake: Intake = Intake()
    link: Link = Link()
    rest: Rest = Rest()
    dispatch: Dispatch = Dispatch()
    sending: Sending = Sending()
    journal: JournalSettings = JournalSettings()
    retention: Retention = Retention()
    control: Control = Control()
    http: Http = Http()
    health: Health = Health()
    tracing: Tracing = Tracing()


class CatchUp(_Section, frozen=True, kw_only=True):
    """What happens to mail that grew stale before it could be handled.

    replay: handled like any other, oldest first. latest: of a conversation's stale mail only the newest is handled, and
    only if nothing fresh follows. digest: handlers of Digest get it in one piece. hold: the conversation waits for
    `agentd resume`. What is not handled stays in the journal with the reason.
    """

    policy: Literal["replay", "latest", "digest", "hold"] = "replay"  # nothing is passed over unless asked for
    after_s: Interval = 3_600.0  # who asked more than an hour ago may have stopped waiting
    settle_s: Seconds = 2.0  # a backlog comes page by page; it is judged when its last page is there
    digest_max: Limit = 100  # messages in one digest, the newest


class LoopGuard(_Section, frozen=True, kw_only=True):
    """When answers between two agents are a loop: the conversation is paused until `agentd resume`."""

    answers_max: Count = 120  # to one agent in one conversation within the window; 0 turns the guard off
    window_s: Interval = 600.0  # an answer every five seconds for ten minutes: nobody reads that
    hops_max: Limit = 200  # answers to answers in a row, however slow, over any number of conversations


class Conduct(_Section, frozen=True, kw_only=True):
    """How an identity carries itself in conversations.

    takeover_idle_s: when its own words arrive that agentd did not send, somebody else is speaking for it, and handlers
    stay out of that conversation until it has said nothing for so long; 0 for never.
    """

    catch_up: CatchUp = CatchUp()
    loop_guard: LoopGuard = LoopGuard()
    takeover_idle_s: Seconds = 900.0  # a person who thinks for a quarter of an hour has gone


class Identity(Conduct, frozen=True, kw_only=True):
    """One account on one platform. plugins: names of [plugin.NAME] tables, all of which get its events."""

    platform: str = "agentchat"  # the one there is
    url: str  # of its API, as "https://api.agentchat.me"; plain http only on this machine
    key: KeySource  # where it lies, never the key itself; read again at each connection
    plugins: tuple[str, ...] = ()  # none: its mail is journaled, acknowledged and handled by nobody


class PluginSettings(_Section, frozen=True, kw_only=True):
    """One plugin. use: "./file.py", "module:attribute" or the name of an entry point. config: passed on to it."""

    use: str  # where it is
    config: dict[str, Any] = {}  # checked by the Struct that the plugin names
    secrets: dict[
        str, KeySource
    ] = {}  # what `ctx.secret(name)` gives; read when the plugin is loaded, and anew at a reload
    concurrency: Limit = 16  # calls at once of this plugin
    timeout_s: Interval = 60.0  # a handler's deadline, unless it names its own
    timeout_max_s: Interval = 600.0  # how far `ctx.progress` may put the deadline off in all
    attempts: Limit = 5  # before a failing event becomes a dead letter
    state_value_max_bytes: Limit = 1_048_576  # one value of `ctx.state` as JSON; it is written whole at each put
    state_max_mb: Limit = 1_024  # all of its `ctx.state`; far above what is kept on purpose, far below a disk
    timers_max: Limit = 10_000  # wake-ups that may be waiting; a few hundred bytes each
    isolate: Literal["none", "process"] = "none"  # a process of its own costs some 28 MB, and 0.2 ms a call
    memory_max_mb: Limit | None = None  # what its process may write to (RLIMIT_DATA); a thread's stack counts in full
    cpu_max_s: Interval | None = None  # CPU that its process may burn from the begin of one call to that of another
    start_timeout_s: Interval = 30.0  # for its process to begin and import it; half of what the service may take
    kill_grace_s: Seconds = 5.0  # past a deadline that its process does not even notice, before it is killed
    on_dead: OnDead = (
        "skip"  # what its conversation does then: go on, wait for `agentd release`, or go on and try later
    )
    catch_up: CatchUp | None = None  # instead of the identity's, for example to see all mail in an audit


class Settings(_Section, frozen=True, kw_only=True):
    """The whole tree."""

    agentd: Agentd = Agentd()
    identity: dict[str, Identity] = {}
    plugin: dict[str, PluginSettings] = {}

    @property
    def embedded(self) -> bool:
        """No identity is configured: the daemon brings its own hub."""
        return not self.identity
