"""Groups through a real file: whole or not at all, and one broken commit harms no other."""

import asyncio

import msgspec
import pytest

from agentd.errors import JournalError
from agentd.journal.sqlite import open_journal
from agentd.journal.storage import Appended, CursorMoved, Journal, Queued, StatePut


async def outcomes(*futures):
    return [type(result) for result in await asyncio.gather(*futures, return_exceptions=True)]


async def test_the_journal_answers_the_whole_interface(journal):
    asked = {name for name in vars(Journal) if not name.startswith("_")}
    assert asked <= set(dir(journal))


async def test_a_commit_is_there_whole_when_its_future_is_done(journal, arrived, send):
    await journal.commit(
        *arrived(seq=1), CursorMoved("echo", 1, 1), StatePut("echo", 1, "k", b"1"), Queued(send("k1"), 1.0)
    )
    assert await journal.last_position() == 1
    assert await journal.cursors("echo") == {1: 1}
    assert await journal.state_get("echo", 1, "k") == b"1"
    assert len(await journal.outbox_open("alice")) == 1


async def test_a_broken_commit_leaves_nothing_and_its_neighbours_stand(journal, arrived):
    before = journal.commit(*arrived("conv_a", 1), StatePut("echo", 0, "a", b"1"))
    broken = journal.commit(*arrived("conv_b", 1), *arrived("conv_a", 1), StatePut("echo", 0, "b", b"1"))
    after = journal.commit(*arrived("conv_c", 1), StatePut("echo", 0, "c", b"1"))
    assert await outcomes(before, broken, after) == [type(None), JournalError, type(None)]
    assert [row.conversation_id for row in await journal.read_log(None, 0, 9)] == ["conv_a", "conv_c"]
    assert [await journal.state_get("echo", 0, key) for key in "abc"] == [b"1", None, b"1"]
    assert {row.conversation for row in await journal.conversations("alice")} == {"conv_a", "conv_c"}
    assert (await journal.totals("alice")).journaled == 2


async def test_the_whole_group_shares_one_sync_even_if_one_of_it_is_broken(journal, arrived):
    good = [journal.commit(*arrived("conv_a", seq)) for seq in range(1, 20)]
    broken = journal.commit(*arrived("conv_a", 3))
    await outcomes(*good, broken)
    assert journal.commits == 1


async def test_a_place_in_a_conversation_is_taken_once(journal, arrived):
    await journal.commit(*arrived(seq=1))
    with pytest.raises(JournalError, match="`event`"):
        await journal.commit(*arrived(seq=1))
    assert await journal.last_position() == 1


async def test_an_event_of_an_unknown_conversation_is_refused(journal, arrived):
    _, appended = arrived(seq=1)
    with pytest.raises(JournalError, match="`event`"):
        await journal.commit(appended)


async def test_a_value_that_cannot_be_stored_is_refused_without_naming_it(journal, arrived):
    mark, appended = arrived(seq=1)
    record = appended.record
    for event in (
        msgspec.structs.replace(record.event, id="secret \ud800"),
        msgspec.structs.replace(record.event, seq=1 << 70),
        msgspec.structs.replace(record.event, id=b"secret"),
    ):
        with pytest.raises(JournalError, match="`event`") as caught:
            await journal.commit(mark, Appended(msgspec.structs.replace(record, event=event)))
        assert "secret" not in str(caught.value)
    await journal.commit(mark, appended)


async def test_what_is_no_change_is_refused_and_nothing_else_is(journal, arrived):
    broken, good = journal.commit("nonsense"), journal.commit(*arrived(seq=1))
    assert await outcomes(broken, good) == [JournalError, type(None)]


async def test_a_name_that_only_a_broken_commit_brought_can_be_used_by_the_next(journal, arrived, path, settings):
    broken = journal.commit(StatePut("fresh", 0, "a", b"1"), CursorMoved("fresh", 99, 1))
    good = journal.commit(StatePut("fresh", 0, "b", b"2"))
    assert await outcomes(broken, good) == [JournalError, type(None)]
    await journal.commit(StatePut("fresh", 0, "c", b"3"))
    await journal.close()
    reopened = await open_journal(path, settings)
    assert [await reopened.state_get("fresh", 0, key) for key in "abc"] == [None, b"2", b"3"]
    await reopened.close()


async def test_an_empty_commit_is_done_when_everything_before_it_is_on_disk(journal, arrived):
    first = journal.commit(*arrived(seq=1))
    await journal.commit()
    assert first.done()


async def test_a_group_of_thousands_keeps_every_row(journal, arrived):
    calls = [journal.commit(*arrived(f"conv_{seq % 7}", 1 + seq // 7)) for seq in range(3_000)]
    await asyncio.gather(*calls)
    assert [row.position for row in await journal.read_log(None, 0, 9_999)] == list(range(1, 3_001))
    assert journal.commits == 1


async def test_a_read_sees_all_that_was_committed_before_it(journal, arrived):
    for seq in range(1, 60):
        await journal.commit(*arrived(seq=seq))
        assert await journal.last_position() == seq
