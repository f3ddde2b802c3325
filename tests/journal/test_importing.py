"""Exported conversations in another journal: all of them or none, and as if they had come there."""

import msgspec
import pytest

from agentd.config import Encryption, JournalSettings, Retention
from agentd.core import exported
from agentd.core.events import Message, Record
from agentd.errors import ExportMisfit, ExportUnreadable, JournalUnusable
from agentd.journal.retention import SLICE
from agentd.journal.retention import Retention as Keeper
from agentd.journal.sqlite import open_journal
from agentd.journal.sqlite.importing import NOT_IN_THE_FILE, Imported, import_events
from agentd.journal.storage import SUBSCRIPTIONS, Account, Appended, StatePut

NOW = 1_767_225_600.0
DAY = 86_400.0


@pytest.fixture
def encryption():
    """None; test_sealing imports with it."""
    return Encryption()


def event(seq, *, identity="alice", conversation="conv_a", epoch=1, payload_bytes=0, **fields):
    return Message(
        identity=identity,
        conversation=conversation,
        seq=seq,
        epoch=epoch,
        id=f"msg_{conversation}_{epoch}_{seq}",
        sender="peer",
        answer_to="@peer",
        payload=b'{"n":%d}' % seq if not payload_bytes else b'{"n":"%s"}' % (b"x" * payload_bytes),
        **fields,
    )


def lines(*events):
    return [exported.line(Record(40 + n, 9, each, NOW + n)) for n, each in enumerate(events)]


def take(path, *given, identity=None, fit=lambda event: None):
    return import_events(
        path,
        exported.numbered(given),
        identity=identity,
        platform="agentchat",
        fit=fit,
        now=NOW,
        settings=JournalSettings(),
    )


async def read(path, settings, question):
    journal = await open_journal(path, settings)
    try:
        return await question(journal)
    finally:
        await journal.close()


async def test_a_journal_is_made_of_a_file_and_has_its_events_and_marks(path, settings):
    given = lines(event(1), event(1, conversation="conv_b"), event(2), event(5))
    assert take(path, *given) == Imported(conversations=2, events=4, known=0)
    assert path.stat().st_mode & 0o777 == 0o600

    async def look(journal):
        rows = await journal.read_log(None, 0, 100)
        assert [(row.position, row.conversation_id, row.payload) for row in rows] == [
            (1, "conv_a", b'{"n":1}'),
            (2, "conv_b", b'{"n":1}'),
            (3, "conv_a", b'{"n":2}'),
            (4, "conv_a", b'{"n":5}'),
        ]
        assert [row.received_at for row in rows] == [NOW, NOW + 1, NOW + 2, NOW + 3]
        line = await journal.conversation_find("alice", "conv_a")
        assert (line.anchor, line.mark, line.mark_id, line.top) == (1, 5, "msg_conv_a_1_5", 5)
        assert (line.position, line.absent, line.address) == (4, ((3, 5),), "@peer")
        [(_, gap)] = await journal.gaps("alice", open_only=False, limit=9)
        assert (gap.start, gap.stop, gap.outcome, gap.absent, gap.reason) == (3, 5, "absent", 2, NOT_IN_THE_FILE)
        totals = await journal.totals("alice")
        assert (totals.journaled, totals.absent) == (4, 2)
        assert (journal.next_position(), journal.next_conversation(), journal.next_gap()) == (5, 3, 2)

    await read(path, settings, look)


async def test_what_is_there_stays_and_only_what_is_unknown_is_added_behind_it(path, settings, arrivals):
    async def write(journal):
        await journal.commit(*arrivals(journal)("conv_old", seq=1))

    await read(path, settings, write)
    assert take(path, *lines(event(1), event(2))).events == 2

    async def look(journal):
        found = [(row.position, row.conversation_id) for row in await journal.read_log(None, 0, 9)]
        assert found == [(1, "conv_old"), (2, "conv_a"), (3, "conv_a")]

    await read(path, settings, look)


async def test_a_plugin_that_serves_the_identity_is_through_with_it_and_no_other_lane_moves(path, settings, arrivals):
    async def write(journal):
        await journal.commit(
            *arrivals(journal)("conv_old", seq=1),
            StatePut(SUBSCRIPTIONS, 0, "alice/greeter", b"0"),
            StatePut(SUBSCRIPTIONS, 0, "alicette/other", b"0"),
        )

    await read(path, settings, write)
    take(path, *lines(event(1), event(2)))

    async def look(journal):
        assert await journal.cursors("greeter") == {2: 3}
        assert await journal.cursors("other") == {}

    await read(path, settings, look)


async def test_the_same_file_twice_is_the_same_once(path, settings):
    given = lines(event(1), event(2), event(4))
    take(path, *given)
    assert take(path, *given) == Imported(conversations=0, events=0, known=3)

    async def look(journal):
        assert await journal.last_position() == 3

    await read(path, settings, look)


@pytest.mark.parametrize(
    ("given", "error", "why"),
    [
        (lines(event(1), event(2), event(2)), ExportMisfit, "line 3: .*seq 2 of epoch 1 is in the file twice"),
        (lines(event(1), event(5), event(3)), ExportMisfit, "line 3: .*not marked late"),
        ([*lines(event(1)), b"{}"], ExportUnreadable, "line 2 is no event"),
    ],
)
async def test_nothing_is_half_imported(path, settings, given, error, why):
    with pytest.raises(error, match=why):
        take(path, *given)

    async def look(journal):
        assert await journal.last_position() == 0
        assert await journal.conversations("alice") == []

    await read(path, settings, look)


async def test_a_long_file_is_taken_back_whole_if_its_last_line_does_not_fit(path, settings):
    given = lines(*(event(seq) for seq in range(1, 2_001)), event(2_000))
    with pytest.raises(ExportMisfit, match=r"line 2001: .*\(nothing was imported\)"):
        take(path, *given)
    assert take(path, *given[:-1]).events == 2_000


@pytest.mark.parametrize(("other", "has"), [(event(3), "nothing"), (event(2, epoch=2), "nothing")])
async def test_a_conversation_that_is_known_takes_no_event_that_it_lacks(path, settings, other, has):
    take(path, *lines(event(1), event(2)))
    with pytest.raises(ExportMisfit, match=f"line 2: this journal knows conversation conv_a of alice and has {has} at"):
        take(path, *lines(event(1), other))


async def test_a_conversation_that_is_known_takes_no_other_event_in_a_place_that_is_taken(path, settings):
    take(path, *lines(event(1)))
    given = lines(event(1))[0].replace(b"msg_conv_a_1_1", b"msg_of_another_talk")
    with pytest.raises(ExportMisfit, match="has another event at seq 1 of epoch 1"):
        take(path, given)


async def test_events_become_another_identitys_if_they_were_of_one(path, settings):
    assert take(path, *lines(event(1)), identity="work").events == 1

    async def look(journal):
        assert [row.identity for row in await journal.read_log(None, 0, 9)] == ["work"]

    await read(path, settings, look)
    with pytest.raises(ExportMisfit, match="line 2: it is of identity bob, and those before it are of alice"):
        take(path, *lines(event(1, conversation="x"), event(1, conversation="y", identity="bob")), identity="work")


async def test_what_another_account_said_itself_is_refused(path, settings):
    async def write(journal):
        await journal.commit(Account("alice", "agentchat", "alice-1"))

    await read(path, settings, write)
    with pytest.raises(ExportMisfit, match=r"line 2: peer said it as itself, and alice is alice-1; .* --as"):
        take(path, *lines(event(1), event(2, own=True)))


async def test_a_journal_that_knows_no_account_takes_it_from_the_file_and_no_second_one(path, settings):
    spoken = event(2, own=True)
    take(path, *lines(event(1), spoken))

    async def look(journal):
        assert await journal.handles() == {"alice": "peer"}

    await read(path, settings, look)
    other = event(1, conversation="conv_b", own=True)
    text = lines(other)[0].replace(b'"sender":"peer"', b'"sender":"somebody"')
    with pytest.raises(ExportMisfit, match="somebody said it as itself, and alice is peer"):
        take(path, text)


async def test_what_does_not_fit_this_installation_is_refused_with_its_reason(path, settings):
    with pytest.raises(ExportMisfit, match="line 1: not ours"):
        take(path, *lines(event(1)), fit=lambda event: "not ours")


async def test_a_journal_that_a_daemon_holds_is_left_alone(path, settings):
    async def look(journal):
        with pytest.raises(JournalUnusable, match=r"is in use by .* Stop that one first"):
            take(path, *lines(event(1)))
        assert await journal.last_position() == 0

    await read(path, settings, look)


def at(received_at, *events):
    return [exported.line(Record(40 + n, 9, each, received_at + n)) for n, each in enumerate(events)]


async def received(path, settings, arrivals, *moments):
    """Events of another conversation that came here at these moments."""

    async def write(journal):
        arrive = arrivals(journal)
        for seq, moment in enumerate(moments, start=1):
            mark, appended = arrive("conv_here", seq)
            await journal.commit(mark, Appended(msgspec.structs.replace(appended.record, received_at=moment)))

    await read(path, settings, write)


@pytest.mark.parametrize("days_ago", [400, 0])
async def test_what_was_imported_hides_nothing_from_who_looks_for_what_came_since(path, settings, arrivals, days_ago):
    """A search by halves that met an old event in the middle took all before it for older still."""
    here = [NOW - 100 + n for n in range(10)]
    await received(path, settings, arrivals, *here)
    take(path, *at(NOW - days_ago * DAY, *[event(seq) for seq in range(1, 31)]))

    async def look(journal):
        assert await journal.position_since(here[0] - 1) == 1
        assert await journal.position_since(here[4]) == 5
        assert await journal.position_since(NOW) == (None if days_ago else 11)
        assert await journal.position_since(NOW - 500 * DAY) == 1

    await read(path, settings, look)


async def test_imported_texts_go_for_their_age_however_young_what_lies_before_them_is(path, settings, arrivals):
    await received(path, settings, arrivals, *[NOW - 100] * (SLICE + 1))
    take(path, *at(NOW - 400 * DAY, *[event(seq) for seq in range(1, 4)]))
    assert take(path, *at(NOW - 100, event(1, conversation="conv_young"))).events == 1

    async def look(journal):
        aged = Retention(events_max_age_days=30, journal_max_mb=0)
        assert await Keeper(journal, aged).once(NOW) == 3
        assert len(await journal.read_log(None, 0, 9_999)) == SLICE + 2

    await read(path, settings, look)


async def test_imported_texts_are_among_the_oldest_where_the_journal_is_too_large(path, settings, arrivals):
    await received(path, settings, arrivals, *[NOW - 100] * SLICE)
    take(path, *at(NOW - 400 * DAY, event(1, conversation="conv_large", payload_bytes=900_000)))

    async def look(journal):
        used_mb = (await journal.room()).used_bytes / 1_000_000
        assert used_mb > 1
        assert await Keeper(journal, Retention(journal_max_mb=1)).once(NOW) == 1

    await read(path, settings, look)
