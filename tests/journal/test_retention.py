"""What retention lets go, and what it never does: a real file, the daemon's own writer, time as a number."""

import contextlib
import itertools
import re
import sqlite3

import msgspec
import pytest

from agentd.config import Retention as Settings
from agentd.core.events import Content, Send
from agentd.journal.retention import SLICE, STEP_PAGES, Retention, below
from agentd.journal.sqlite import open_journal
from agentd.journal.sqlite.opening import SCHEMA
from agentd.journal.sqlite.statements import SQL
from agentd.journal.sqlite.trimming import Stretch
from agentd.journal.storage import (
    SUBSCRIPTIONS,
    Attempt,
    Carried,
    CursorMoved,
    Dead,
    DeadDropped,
    GapNoted,
    Outcome,
    Queued,
    Rewound,
    StatePut,
    TimerSet,
)

DAY = 86_400.0
NOW = 100 * DAY  # the events of `arrived` came at 1.5 s
AGED = Settings(events_max_age_days=90, outbox_max_age_days=90, journal_max_mb=0)
SIZED = Settings(journal_max_mb=1)


def subscribed(plugin, identity="alice", since=0):
    return StatePut(SUBSCRIPTIONS, 0, f"{identity}/{plugin}", str(since).encode())


async def kept(journal):
    """Positions whose payload is still there."""
    return [row.position for row in await journal.read_log(None, 0, 10_000)]


async def run(journal, settings=AGED, now=NOW):
    return await Retention(journal, settings).once(now)


@pytest.mark.parametrize("encryption", ["plain"], indirect=True)  # it counts bytes
async def test_old_events_that_every_plugin_has_handled_lose_their_payload_and_keep_their_place(journal, arrived):
    for seq in range(1, 6):
        journal.commit(*arrived(seq=seq, payload=bytes([64 + seq]) * 100))
    number = arrived.number("conv_a")
    await journal.commit(subscribed("echo"), CursorMoved("echo", number, 3))
    assert await run(journal) == 3
    assert await kept(journal) == [4, 5]
    assert await journal.ids_at([(number, 1, 2)]) == ["msg_conv_a_1_2"]
    assert len(await journal.ids_of(number)) == 5
    [trace] = await journal.trimmed(10)
    assert (trace.what, trace.start, trace.stop, trace.rows, trace.bytes) == ("event", 1, 4, 3, 300)
    assert trace.reason == "older than 90 days"
    assert trace.at == NOW


async def test_a_second_run_finds_nothing_and_leaves_no_trace(journal, arrived):
    await journal.commit(*arrived())
    assert await run(journal) == 1
    assert await run(journal) == 0
    assert len(await journal.trimmed(10)) == 1


async def test_what_is_younger_stays(journal, arrived):
    await journal.commit(*arrived())
    assert await run(journal, now=90 * DAY) == 0
    assert await kept(journal) == [1]


async def test_zero_days_means_for_ever(journal, arrived):
    await journal.commit(*arrived())
    assert await run(journal, Settings(events_max_age_days=0, outbox_max_age_days=0, journal_max_mb=0)) == 0


async def test_the_slowest_plugin_holds_its_conversation_and_no_other(journal, arrived):
    for conversation in ("conv_a", "conv_b"):
        journal.commit(*arrived(conversation), *arrived(conversation, 2))
    a, b = arrived.number("conv_a"), arrived.number("conv_b")
    await journal.commit(subscribed("echo"), subscribed("audit"))
    await journal.commit(*[CursorMoved("echo", number, 4) for number in (a, b)], CursorMoved("audit", b, 4))
    await run(journal)
    assert await kept(journal) == [1, 2], "audit has no cursor in conv_a, so it stands where it subscribed"


async def test_a_plugin_that_subscribed_later_holds_nothing_of_before(journal, arrived):
    journal.commit(*arrived(), *arrived(seq=2))
    await journal.commit(subscribed("late", since=1))
    await run(journal)
    assert await kept(journal) == [2]


async def test_a_plugin_of_another_identity_holds_nothing(journal, arrived):
    await journal.commit(*arrived(), subscribed("echo", identity="alice2"), subscribed("echo", identity="alic"))
    await run(journal)
    assert await kept(journal) == []


async def test_a_plugin_that_was_removed_holds_until_it_is_to_be_forgotten(journal, arrived):
    await journal.commit(*arrived(), subscribed("old"))
    await run(journal)
    assert await kept(journal) == [1]
    await run(journal, Settings(events_max_age_days=90, journal_max_mb=0, forget_plugins=("old",)))
    assert await kept(journal) == []


async def test_a_dead_letter_keeps_its_event_until_it_is_dropped(journal, arrived):
    journal.commit(*arrived(), *arrived(seq=2))
    number = arrived.number("conv_a")
    journal.commit(subscribed("echo"), CursorMoved("echo", number, 2))
    await journal.commit(Dead("echo", number, 1, 5, "ValueError: what it said", "Traceback, of what it said", "1", 2.0))
    await run(journal)
    assert await kept(journal) == [1]
    await journal.commit(DeadDropped(1, 3.0))
    await run(journal)
    assert await kept(journal) == []
    letter = await journal.dead_find(1)
    assert letter is not None
    assert (letter.error, letter.traceback) == ("", ""), "what it told of the event goes with it"


async def test_a_failed_attempt_keeps_its_event(journal, arrived):
    await journal.commit(*arrived())
    await journal.commit(Attempt("echo", arrived.number("conv_a"), 1, 1, "ValueError", 2.0))
    await run(journal)
    assert await kept(journal) == [1]


async def test_an_event_that_will_be_delivered_late_is_kept(journal, arrived):
    await journal.commit(*arrived(), *arrived(seq=2))
    number = arrived.number("conv_a")
    await journal.commit(TimerSet("t", "echo", "alice", number, "conv_a", "", 9.5, b"null", position=1))
    await run(journal)
    assert await kept(journal) == [1]


async def test_a_lane_that_was_set_back_keeps_what_it_will_handle_again(journal, arrived):
    await journal.commit(*arrived(), *arrived(seq=2), *arrived(seq=3))
    number = arrived.number("conv_a")
    await journal.commit(subscribed("echo"), CursorMoved("echo", number, 3))
    await journal.commit(Rewound("echo", number, 1, 1, 3))
    await run(journal)
    assert await kept(journal) == [2, 3]


async def test_an_open_gap_keeps_its_conversation(journal, arrived):
    journal.commit(*arrived(), *arrived("conv_b"))
    gap = GapNoted(journal.next_gap(), arrived.number("conv_a"), 1, 2, 4, 2.0)
    await journal.commit(gap)
    await run(journal)
    assert await kept(journal) == [1]


async def test_what_became_needed_after_the_look_is_kept(journal, arrived, monkeypatch):
    await journal.commit(*arrived())
    number = arrived.number("conv_a")
    look = journal.trimmable

    async def look_and_die(stretch):
        found = await look(stretch)
        await journal.commit(Dead("echo", number, 1, 5, "ValueError", "Traceback", "1", 2.0))
        return found

    monkeypatch.setattr(journal, "trimmable", look_and_die)
    await run(journal)
    assert await kept(journal) == [1]
    assert await journal.trimmed(10) == []


async def test_a_settled_send_loses_its_content_and_keeps_its_key_and_answer(journal, send):
    for key, state in (("k1", "sent"), ("k2", "ready"), ("k3", "refused")):
        journal.commit(Queued(send(key, text="secret words"), 1.0))
        if state != "ready":
            journal.commit(Carried(key, "alice", state, 1, 0.0, "msg_9", 9, "conv_a", "", 2.0))
    await journal.commit()
    assert await run(journal) == 2
    sent = await journal.outbox_find("k1", "alice")
    assert (sent.send.content, sent.result_id, sent.result_seq) == (Content(), "msg_9", 9)
    assert (await journal.outbox_find("k2", "alice")).send.content.text == "secret words"
    await journal.commit(Queued(send("k1", text="again"), 9.0))
    assert (await journal.outbox_find("k1", "alice")).send.state == "sent", "the key stays taken"


async def test_what_turns_came_to_goes_when_it_is_old(journal, arrived):
    await journal.commit(*arrived())
    number = arrived.number("conv_a")
    rows = [Outcome("echo", number, 1, 1, word, None, at) for word, at in (("answered", 1.5), ("passed", NOW - DAY))]
    await journal.commit(*rows)
    assert await run(journal) == 2
    assert [row.word for row in await journal.outcomes("echo", number, 1)] == ["passed"]
    assert {trace.what: trace.rows for trace in await journal.trimmed(10)} == {"event": 1, "outcome": 1}


async def test_a_large_journal_lets_go_of_the_oldest_first_and_no_more_than_it_must(journal, arrived):
    for seq in range(1, 3 * SLICE + 1):
        journal.commit(*arrived(seq=seq, payload=bytes(2_000)))
    await journal.commit()
    settings = Settings(events_max_age_days=0, outbox_max_age_days=0, journal_max_mb=3)
    assert (await journal.room()).used_bytes > 3_000_000
    rows = await run(journal, settings)
    assert (await journal.room()).used_bytes <= 3_000_000
    assert 0 < rows < 3 * SLICE
    remaining = await kept(journal)
    assert remaining == list(range(3 * SLICE - len(remaining) + 1, 3 * SLICE + 1))
    [trace] = await journal.trimmed(10)
    assert trace.reason == "journal above 3 MB"
    assert trace.rows == rows


@pytest.mark.parametrize(
    ("bound", "full", "expected"), [(100, 0, 100), (100, 50, 40), (10, 50, 10), (0, 50, 40), (0, 1, 1)]
)
def test_the_bound_of_size_lies_below_where_the_journal_is_full(bound, full, expected):
    assert below(Settings(journal_max_mb=bound), full).journal_max_mb == expected


async def test_a_journal_that_may_let_go_of_nothing_says_so_once(journal, arrived, logged):
    for seq in range(1, 1_001):
        journal.commit(*arrived(seq=seq, payload=bytes(2_000)))
    await journal.commit(subscribed("echo"))
    retention = Retention(journal, Settings(events_max_age_days=0, outbox_max_age_days=0, journal_max_mb=1))
    assert await retention.once(NOW) == 0
    assert await retention.once(NOW) == 0
    assert sum("nothing more may go" in line for line in logged.lines) == 1


async def test_by_default_nothing_goes_for_its_age(journal, arrived, send):
    journal.commit(*arrived(), Outcome("echo", arrived.number("conv_a"), 1, 1, "answered", None, 1.5))
    journal.commit(Queued(send("k1"), 1.0), Carried("k1", "alice", "sent", 1, 0.0, "msg_9", 9, "conv_a", "", 2.0))
    await journal.commit()
    assert await run(journal, Settings(), now=100_000 * DAY) == 0


async def test_a_large_journal_lets_go_of_the_oldest_of_every_kind(journal, arrived, send):
    """Of the texts of events alone it could not stay within its bound, once sends and outcomes have filled it."""
    number = None
    for seq in range(1, 2 * SLICE + 1):
        at = 1.5 if seq <= SLICE else NOW
        [mark, appended] = arrived(seq=seq, payload=bytes(2_000))
        number = arrived.number("conv_a")
        record = msgspec.structs.replace(appended.record, received_at=at)
        journal.commit(mark, msgspec.structs.replace(appended, record=record))
        journal.commit(Outcome("echo", number, seq, seq, "answered", bytes(2_000), at))
        key = f"k{seq}"
        journal.commit(Queued(send(key, text="x" * 2_000), at))
        journal.commit(Carried(key, "alice", "sent", 1, 0.0, f"msg_{seq}", seq, "conv_a", "", at))
    await journal.commit()
    used = (await journal.room()).used_bytes
    assert await run(journal, Settings(journal_max_mb=used * 58 // 100_000_000)) > 0
    traces = {trace.what: trace for trace in await journal.trimmed(10)}
    assert set(traces) == {"event", "outbox", "outcome"}
    assert len({trace.number for trace in traces.values()}) == 3
    assert all(row.at == NOW for row in await journal.outcomes("echo", number, 2 * SLICE))
    assert (await journal.outbox_find("k1", "alice")).send.content == Content()
    assert (await journal.outbox_find(f"k{2 * SLICE}", "alice")).send.content.text, "what is young stays"


async def test_that_the_bound_of_size_comes_near_is_said_before_anything_goes(journal, arrived, logged):
    seq = 0
    while (await journal.room()).used_bytes < 0.82e6:
        seq += 1
        await journal.commit(*arrived(seq=seq, payload=bytes(2_000)))
    retention = Retention(journal, SIZED)
    assert await retention.once(NOW) == await retention.once(NOW) == 0
    [told] = [line for line in logged.lines if "journal_max_mb" in line]
    assert "raise the bound" in told


async def test_free_room_is_given_back_in_steps_while_commits_go_on(journal, arrived, path):
    for seq in range(1, 3 * SLICE + 1):
        journal.commit(*arrived(seq=seq, payload=bytes(3_000)))
    await journal.commit()
    await run(journal)
    await journal.settle_file()
    before, steps = path.stat().st_size, []
    async for given_back, of in Retention(journal, AGED).shrink():
        steps.append((given_back, of))
        await journal.commit(*arrived("conv_b", seq=len(steps)))
    assert 3 <= len(steps) <= before // 4_096 // STEP_PAGES + 2, "each step gives back all that it may"
    assert all(later - sooner <= (STEP_PAGES + 1) * 4_096 for (sooner, _), (later, _) in itertools.pairwise(steps))
    room = await journal.room()
    assert path.stat().st_size == room.size_bytes < before / 4
    assert room.free_bytes <= 2 * 4_096
    await journal.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM event").fetchone() == (3 * SLICE + len(steps),)


async def test_a_journal_without_free_room_gives_nothing_back(journal, arrived):
    await journal.commit(*arrived())
    size = (await journal.room()).size_bytes
    assert [step async for step in Retention(journal, AGED).shrink()] == []
    assert (await journal.room()).size_bytes == size


async def test_commits_go_on_between_the_slices(journal, arrived):
    for seq in range(1, 4 * SLICE + 1):
        journal.commit(*arrived(seq=seq))
    await journal.commit()
    before = journal.commits
    assert await run(journal) == 4 * SLICE
    assert journal.commits - before >= 4


async def test_freed_room_is_used_again(journal, arrived):
    for seq in range(1, 1_025):
        journal.commit(*arrived(seq=seq, payload=bytes(3_000)))
    await journal.commit()
    full = (await journal.room()).used_bytes
    await run(journal)
    assert (await journal.room()).used_bytes < full / 4


@pytest.mark.parametrize("encryption", ["plain"], indirect=True)  # it counts bytes
async def test_what_is_found_says_how_much_and_how_old(journal, arrived):
    journal.commit(*arrived(payload=bytes(70)), *arrived(seq=2, payload=bytes(30)))
    await journal.commit()
    found = await journal.trimmable(Stretch("event", 0, 100, NOW, ()))
    assert (found.rows, found.bytes, found.first, found.last, found.oldest) == (2, 100, 1, 2, 1.5)


async def test_a_trimmed_journal_opens_again_and_gives_no_position_twice(journal, arrived, path, settings):
    await journal.commit(*arrived())
    await run(journal)
    await journal.close()
    again = await open_journal(path, settings)
    assert again.next_position() == 2
    assert await again.read_lane(1, 0, 10) == []
    await again.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT payload, id FROM event").fetchall() == [(b"", "msg_conv_a_1_1")]


@pytest.mark.parametrize("state", ["refused", "expired", "dropped"])
async def test_a_send_without_its_text_is_not_sent_again(state):
    from agentd.errors import JournalError
    from agentd.journal.storage import OutboxRow
    from agentd.sender import Sender

    gone = Send(identity="alice", target="@bob", content=Content(), client_msg_id="k1", state=state)
    with pytest.raises(JournalError, match="say it anew"):
        Sender.retry(object.__new__(Sender), OutboxRow(gone, "", 1.0, None, None, None, 2.0))


@pytest.mark.parametrize(("table", "put_back"), [("event", "event_append"), ("outbox", "outbox_put_back")])
def test_what_is_put_back_has_every_column_of_its_table(table, put_back):
    """A column that is added to the table and forgotten here would be lost with the content."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA.create)
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    named = re.search(r"\(([\w,\s]+)\)\s*VALUES", SQL[put_back])[1]
    assert sorted(column.strip() for column in named.split(",")) == sorted(columns)
    assert SQL[f"trimmed_{table}"].split("FROM")[0].count(",") == len(columns) - 1
