"""The log of events through a real file."""

import msgspec
import pytest

from agentd.core.events import Source
from agentd.journal.storage import Appended, StoredRecord


async def test_a_record_comes_back_as_it_was_written(journal, arrived):
    payload = b'{"text": "\\ud83d\\ude00", "z":  1}\x00\xff'
    await journal.commit(*arrived(seq=7, epoch=2, payload=payload, late=True, source=Source.REFETCH))
    assert await journal.read_lane(1, 0, 10) == [
        StoredRecord(1, 1, "alice", "conv_a", 2, True, "refetch", payload, 1.5)
    ]


async def test_a_lane_is_read_in_the_order_of_delivery_even_if_a_seq_came_late(journal, arrived):
    for seq in (1, 3, 4, 2):
        await journal.commit(*arrived(seq=seq))
    records = await journal.read_lane(1, 0, 10)
    ids = await journal.ids_at([(1, 1, seq) for seq in (1, 3, 4, 2)])
    assert [record.position for record in records] == [1, 2, 3, 4]
    assert ids == ["msg_conv_a_1_1", "msg_conv_a_1_3", "msg_conv_a_1_4", "msg_conv_a_1_2"]


async def test_a_lane_is_read_from_behind_a_position_up_to_a_limit(journal, arrived):
    for seq in range(1, 7):
        await journal.commit(*arrived("conv_a", seq), *arrived("conv_b", seq))
    assert [record.position for record in await journal.read_lane(1, 3, 2)] == [5, 7]
    assert await journal.count_behind(1, 3) == 4


async def test_the_log_is_read_over_all_conversations_or_of_one_identity(journal, arrived):
    await journal.commit(*arrived("conv_a", 1))
    await journal.commit(*arrived("conv_b", 1, identity="bob"))
    await journal.commit(*arrived("conv_c", 1))
    await journal.commit(*arrived("conv_a", 2))
    assert [r.position for r in await journal.read_log(None, 1, 10)] == [2, 3, 4]
    assert [(r.position, r.conversation_id) for r in await journal.read_log("alice", 1, 10)] == [
        (3, "conv_c"),
        (4, "conv_a"),
    ]
    assert [r.position for r in await journal.read_log("alice", 0, 2)] == [1, 3]
    assert await journal.read_log("nobody", 0, 10) == []


async def test_ids_are_found_by_place_and_none_stands_for_an_empty_place(journal, arrived):
    await journal.commit(*arrived("conv_a", 1), *arrived("conv_a", 1, epoch=2))
    assert await journal.ids_at([(1, 2, 1), (1, 1, 2), (9, 1, 1), (1, 1, 1)]) == [
        "msg_conv_a_2_1",
        None,
        None,
        "msg_conv_a_1_1",
    ]
    assert await journal.ids_of(1) == {"msg_conv_a_1_1", "msg_conv_a_2_1"}


async def test_the_last_position_is_zero_in_an_empty_journal_and_then_the_last_on_disk(journal, arrived):
    assert await journal.last_position() == 0
    await journal.commit(*arrived(seq=1), *arrived(seq=2))
    assert await journal.last_position() == 2


async def test_an_id_is_found_between_two_positions(journal, arrived):
    for seq in (1, 2):
        await journal.commit(*arrived("conv_a", seq), *arrived("conv_a", seq, identity="bob"))
    assert await journal.positions_of("msg_conv_a_1_2", 0, 9) == [3, 4]
    assert await journal.positions_of("msg_conv_a_1_2", 3, 4) == [4]
    assert await journal.positions_of("msg_conv_a_1_2", 0, 2) == []


async def test_a_seq_tells_its_position_or_that_of_the_first_behind_it(journal, arrived):
    for seq in (1, 3, 7, 4):
        await journal.commit(*arrived("conv_a", seq), *arrived("conv_b", seq + 1))
    assert await journal.position_of_seq(1, 1, 3) == 3
    assert await journal.position_of_seq(1, 1, 4) == 5, "what came late stands where it came"
    assert await journal.position_of_seq(1, 1, 8) is None
    assert await journal.position_of_seq(1, 2, 1) is None


@pytest.mark.parametrize("count", [0, 1, 2, 7, 64])
async def test_a_moment_tells_the_first_position_that_was_received_from_then_on(journal, arrived, count):
    for number in range(count):
        mark, appended = arrived(seq=number + 1)
        record = msgspec.structs.replace(appended.record, received_at=1_000.0 + number)
        await journal.commit(mark, Appended(record))
    for number in range(count):
        assert await journal.position_since(999.5 + number) == number + 1
        assert await journal.position_since(1_000.0 + number) == number + 1
    assert await journal.position_since(1_000.0 + count) is None


async def test_what_was_received_early_and_recorded_late_does_not_lead_the_search_astray(journal, arrived):
    for seq, received_at in enumerate((1_000.0, 5_000.0, 4_500.0, 5_001.0, 4_800.0, 9_000.0), start=1):
        mark, appended = arrived(seq=seq)
        await journal.commit(mark, Appended(msgspec.structs.replace(appended.record, received_at=received_at)))
    assert await journal.position_since(4_900.0) == 2
    assert await journal.position_since(5_001.0) == 4
