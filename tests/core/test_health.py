"""Whether mail is flowing, decided from numbers."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agentd.core.health import CODES, STATES, IdentityFacts, Lags, Limits, ProcessFacts, Reason, reasons

NOW = 100_000.0
LIMITS = Limits()
TURN_S = 600.0
NIGHT_S = 8 * 3_600.0


def identity(**facts: Any) -> IdentityFacts:
    """One that has been live for a day: pinged, audited, quiet."""
    usual = {
        "name": "alice",
        "state": "live",
        "since": NOW - 86_400,
        "began": NOW - 86_400,
        "live_at": NOW,
        "proved_at": NOW - 12,
        "audited_at": NOW - 25,
    }
    return IdentityFacts(**{**usual, **facts})


def told(process: ProcessFacts | None = None, *identities: IdentityFacts, now: float = NOW) -> list[str]:
    return [each.code for each in reasons(process or ProcessFacts(), identities or (identity(),), LIMITS, now)]


def test_a_quiet_identity_is_ready() -> None:
    assert told() == []


def test_a_daemon_with_no_identity_is_ready() -> None:
    assert reasons(ProcessFacts(), (), LIMITS, NOW) == []


def test_a_refused_key_counts_at_once_and_says_what_the_platform_said() -> None:
    parked = identity(state="parked", why="the platform refused the key: 401", since=NOW, live_at=NOW)
    [reason] = reasons(ProcessFacts(), [parked], LIMITS, NOW)
    assert reason == Reason("key_refused", "alice", "the platform refused the key: 401", NOW)


def test_a_deaf_connection_counts_through_its_reconnect_until_an_audit_finds_nothing() -> None:
    assert told(None, identity(state="deaf", deaf=True, since=NOW)) == ["deaf"]
    assert told(None, identity(state="connecting", deaf=True, since=NOW)) == ["deaf"]
    assert told(None, identity(state="live", deaf=False, since=NOW)) == []


def test_an_identity_is_not_ready_before_it_was_live_once() -> None:
    [reason] = reasons(
        ProcessFacts(), [identity(state="connecting", why="refused", began=NOW - 2, live_at=None)], LIMITS, NOW
    )
    assert reason == Reason("not_connected", "alice", "connecting: refused", NOW - 2)


def test_a_short_reconnect_is_no_reason_and_a_long_one_is() -> None:
    for state in ("connecting", "catching_up", "off", "throttled"):
        assert told(None, identity(state=state, since=NOW - 1, live_at=NOW - LIMITS.reconnect_s)) == []
        assert told(None, identity(state=state, since=NOW - 1, live_at=NOW - LIMITS.reconnect_s - 1)) == [
            "not_connected"
        ]


def test_a_connection_that_looks_alive_and_answers_no_ping_is_silent() -> None:
    assert told(None, identity(proved_at=NOW - LIMITS.silent_s)) == []
    assert told(None, identity(proved_at=NOW - LIMITS.silent_s - 1)) == ["silent"]


def test_an_audit_that_cannot_finish_counts_from_the_last_one_or_from_when_it_became_live() -> None:
    assert told(None, identity(audited_at=NOW - LIMITS.audit_s - 1)) == ["not_audited"]
    assert told(None, identity(audited_at=None, since=NOW - LIMITS.audit_s - 1)) == ["not_audited"]
    assert told(None, identity(audited_at=NOW - 5_000, since=NOW - 3)) == []
    assert told(None, identity(state="throttled", audited_at=NOW - 5_000, live_at=NOW)) == []


def test_a_full_disk_counts_at_once_and_a_commit_only_when_it_takes_long() -> None:
    assert told(ProcessFacts(full_since=NOW, commit_since=NOW)) == ["disk_full"]
    assert told(ProcessFacts(commit_since=NOW - LIMITS.commit_s)) == []
    assert told(ProcessFacts(commit_since=NOW - LIMITS.commit_s - 1)) == ["commit_hangs"]


def test_a_backlog_past_its_mark_counts_with_its_own_words() -> None:
    [reason] = reasons(ProcessFacts(shedding="handlers are too far behind", shedding_since=NOW - 5), (), LIMITS, NOW)
    assert reason.code == "shedding"
    assert reason.words.startswith("handlers are too far behind")
    assert reason.since == NOW - 5


def test_a_blocked_loop_counts_from_when_it_stood_still() -> None:
    [reason] = reasons(ProcessFacts(lag_s=8.0, lag_at=NOW - 1), (), LIMITS, NOW)
    assert (reason.code, reason.since) == ("loop_blocked", NOW - 9)
    assert told(ProcessFacts(lag_s=LIMITS.lag_s, lag_at=NOW)) == []


def test_a_turn_of_ten_minutes_is_no_reason() -> None:
    """Pings are answered and audits done while the handler runs: nothing in the facts tells of the turn."""
    for at in range(0, int(TURN_S), 5):
        now = NOW + at
        facts = identity(live_at=now, proved_at=NOW + at // 20 * 20, audited_at=NOW + at // 36 * 36)
        assert told(None, facts, now=now) == []


def test_an_idle_night_is_no_reason() -> None:
    for at in range(0, int(NIGHT_S), 7):
        now = NOW + at
        facts = identity(live_at=now, proved_at=NOW + at // 20 * 20, audited_at=NOW + at // 36 * 36)
        assert told(None, facts, now=now) == []


def test_one_identitys_trouble_names_that_identity_alone() -> None:
    found = reasons(ProcessFacts(), [identity(), identity(name="bob", state="parked")], LIMITS, NOW)
    assert [(each.identity, each.code) for each in found] == [("bob", "key_refused")]


# --- for any facts

times = st.none() | st.floats(0, NOW)
facts = st.builds(
    IdentityFacts,
    name=st.just("alice"),
    state=st.sampled_from(STATES),
    since=st.floats(0, NOW),
    began=st.floats(0, NOW),
    why=st.sampled_from(["", "because"]),
    live_at=times,
    deaf=st.booleans(),
    proved_at=times,
    audited_at=times,
)
processes = st.builds(
    ProcessFacts,
    shedding=st.sampled_from(["", "too far behind"]),
    shedding_since=times,
    full_since=times,
    commit_since=times,
    lag_s=st.floats(0, 100),
    lag_at=st.floats(200, NOW),
)


@given(processes, st.lists(facts, max_size=4), st.floats(0, 1e6))
def test_every_reason_has_a_known_code_words_and_a_since_that_is_past(
    process: ProcessFacts, identities: list[IdentityFacts], later_s: float
) -> None:
    for reason in reasons(process, identities, LIMITS, NOW + later_s):
        assert reason.code in CODES
        assert reason.words
        assert reason.since <= NOW + later_s


@given(facts, st.floats(0, 1e5))
def test_waiting_alone_never_makes_an_identity_ready(one: IdentityFacts, later_s: float) -> None:
    if told(None, one):
        assert told(None, one, now=NOW + later_s)


@given(facts)
def test_an_identity_gives_at_most_one_reason_and_a_cure_ends_it(one: IdentityFacts) -> None:
    assert len(told(None, one)) <= 1
    cured = msgspec.structs.replace(
        one, state="live", deaf=False, since=NOW, live_at=NOW, proved_at=NOW, audited_at=NOW
    )
    assert told(None, cured) == []


# --- the loop's lags


def test_a_lag_is_how_much_later_than_asked_for_the_sleeper_woke() -> None:
    lags = Lags(0.25, 30)
    lags.slept(10.0)
    assert lags.woke(10.25) == 0
    lags.slept(10.25)
    assert lags.woke(13.5) == 3.0
    assert lags.worst(13.5) == (13.5, 3.0)


def test_a_sleep_that_is_overdue_counts_before_it_ends() -> None:
    lags = Lags(0.25, 30)
    lags.slept(10.0)
    assert lags.worst(15.25) == (15.25, 5.0)


@given(st.lists(st.floats(0, 20), min_size=1))
def test_the_worst_is_the_worst_of_the_window_and_no_older_one(asleep_s: list[float]) -> None:
    lags, now, seen = Lags(0.25, 30), 0.0, []
    for each in asleep_s:
        lags.slept(now)
        now += each
        seen.append((now, lags.woke(now)))
        lags.slept(now)
    assert lags.worst(now)[1] == max(lag for at, lag in seen if at >= now - 30)


def test_a_lag_is_forgotten_after_the_window() -> None:
    lags = Lags(0.25, 30)
    lags.slept(0.0)
    lags.woke(10.0)
    lags.slept(41.0)
    assert lags.worst(41.0)[1] == 0.0
