"""Conversations, gaps, accounts and their counts through a real file."""

import msgspec

from agentd.journal.sqlite import open_journal
from agentd.journal.storage import Account, Conversation, GapNoted, Queued, Totals

A = Conversation(1, "alice", "conv_a", 1, 5, 9, "msg_9", 12, 0, absent=((1, 5), (7, 8)), address="@peer")
GAP = GapNoted(1, 1, 1, 10, 12, 1.5)


async def test_a_conversation_comes_back_as_it_was_written(journal):
    await journal.commit(A)
    assert await journal.conversations("alice") == [A]
    assert await journal.conversations("bob") == []


async def test_the_last_of_several_marks_in_one_group_stands(journal):
    further = msgspec.structs.replace(A, mark=11, epoch=2, anchor=1, top=40, position=0, mark_id="msg_11")
    journal.commit(A)
    await journal.commit(further)
    assert await journal.conversations("alice") == [further]


async def test_absent_ranges_may_grow_vanish_and_come_back(journal, path, settings):
    for absent in (((1, 5), (7, 8), (10, 12)), (), ((1, 2),)):
        await journal.commit(msgspec.structs.replace(A, absent=absent))
        assert (await journal.conversations("alice"))[0].absent == absent
    await journal.close()
    reopened = await open_journal(path, settings)
    await reopened.commit(msgspec.structs.replace(A, absent=((1, 2),), mark=10))
    assert (await reopened.conversations("alice"))[0].absent == ((1, 2),)
    await reopened.close()


async def test_absent_ranges_are_right_whatever_a_broken_commit_of_the_group_undid(journal):
    grown = msgspec.structs.replace(A, absent=((1, 9),))
    await journal.commit(A)
    journal.commit(grown)
    broken = journal.commit(msgspec.structs.replace(A, number=2))
    await journal.commit(A)
    assert broken.exception() is not None
    assert (await journal.conversations("alice"))[0].absent == A.absent


async def test_a_gap_is_kept_as_it_stands_now(journal):
    await journal.commit(A, GAP)
    assert await journal.gaps("alice", open_only=True, limit=9) == [("conv_a", GAP)]
    closed = msgspec.structs.replace(
        GAP, attempts=2, rows=1, closed_at=3.0, outcome="mixed", absent=1, reason="deleted"
    )
    await journal.commit(closed)
    assert await journal.gaps("alice", open_only=True, limit=9) == []
    assert await journal.gaps(None, open_only=False, limit=9) == [("conv_a", closed)]


async def test_gaps_are_told_newest_first_up_to_a_limit(journal):
    b = Conversation(2, "bob", "conv_b", 1, 1, 1, "", 1, 0)
    gaps = [msgspec.structs.replace(GAP, number=number, conversation=1 + number % 2) for number in (1, 2, 3, 4)]
    await journal.commit(A, b, *gaps)
    assert [gap.number for _, gap in await journal.gaps(None, open_only=True, limit=3)] == [4, 3, 2]
    assert [(id_, gap.number) for id_, gap in await journal.gaps("bob", open_only=True, limit=9)] == [
        ("conv_b", 3),
        ("conv_b", 1),
    ]


async def test_the_handle_of_an_account_is_the_last_one_given(journal):
    await journal.commit(Account("alice", "agentchat", "@old"), Account("bob", "agentchat", "@bob"))
    await journal.commit(Account("alice", "agentchat", "@alice"))
    assert await journal.handles() == {"alice": "@alice", "bob": "@bob"}


async def test_an_identity_that_was_only_mentioned_has_no_handle_yet(journal):
    await journal.commit(A)
    assert await journal.handles() == {}


async def test_totals_count_one_identity_and_survive_a_restart(journal, arrived, send, path, settings):
    await journal.commit(*arrived("conv_a", 1), *arrived("conv_a", 2), *arrived("conv_b", 1, identity="bob"))
    await journal.commit(
        *arrived("conv_a", 3),
        msgspec.structs.replace(GAP, absent=4, outcome="absent"),
        Queued(send("k1"), 1.0),
        Queued(send("k2", state="unknown"), 1.0),
    )
    expected = Totals(3, 4, {"ready": 1, "unknown": 1})
    assert await journal.totals("alice") == expected
    assert await journal.totals("bob") == Totals(1, 0, {})
    assert await journal.totals("nobody") == Totals(0, 0, {})
    await journal.close()
    reopened = await open_journal(path, settings)
    assert await reopened.totals("alice") == expected
    await reopened.close()


async def test_numbers_go_on_after_a_restart_where_they_were(journal, arrived, path, settings):
    await journal.commit(*arrived("conv_a", 1), *arrived("conv_b", 1))
    await journal.commit(msgspec.structs.replace(GAP, number=journal.next_gap()))
    await journal.close()
    reopened = await open_journal(path, settings)
    assert (reopened.next_position(), reopened.next_conversation(), reopened.next_gap()) == (3, 3, 2)
    assert (reopened.next_position(), reopened.next_conversation(), reopened.next_gap()) == (4, 4, 3)
    await reopened.close()
