"""Dead letters through a real file."""

import msgspec
import pytest

from agentd.errors import JournalError
from agentd.journal.sqlite import open_journal
from agentd.journal.storage import Conversation, Dead, DeadDropped, DeadRow

LETTER = Dead("echo", 1, 4, 5, "ValueError: no", "Traceback ...", "1.2", 10.0)


def as_read(letter, number, identity="alice", conversation_id="conv_a", dropped_at=None):
    fields = msgspec.structs.asdict(letter)
    return DeadRow(**fields, number=number, identity=identity, conversation_id=conversation_id, dropped_at=dropped_at)


async def test_dead_letters_are_told_newest_first_of_one_identity_or_of_all(journal):
    await journal.commit(
        Conversation(1, "alice", "conv_a", 1, 1, 1, "", 1, 0), Conversation(2, "bob", "conv_b", 1, 1, 1, "", 1, 0)
    )
    later = msgspec.structs.replace(LETTER, position=5, died_at=30.0)
    of_bob = msgspec.structs.replace(LETTER, conversation=2, died_at=20.0)
    await journal.commit(LETTER, later, of_bob)
    first, second, third = as_read(LETTER, 1), as_read(later, 2), as_read(of_bob, 3, "bob", "conv_b")
    assert await journal.dead(None, 9) == [second, third, first]
    assert await journal.dead("alice", 9) == [second, first]
    assert await journal.dead("alice", 1) == [second]
    assert await journal.dead_find(3) == third
    assert await journal.dead_find(4) is None


async def test_the_letters_of_one_event_are_told_one_for_each_plugin(journal):
    await journal.commit(Conversation(1, "alice", "conv_a", 1, 1, 1, "", 1, 0))
    of_log, later = msgspec.structs.replace(LETTER, plugin="log"), msgspec.structs.replace(LETTER, position=5)
    await journal.commit(LETTER, of_log, later)
    assert {row.plugin: row.number for row in await journal.dead_at(1, 4)} == {"echo": 1, "log": 2}
    assert await journal.dead_at(1, 6) == []


async def test_a_delivery_that_dies_again_is_one_letter_with_the_newest_death(journal):
    await journal.commit(Conversation(1, "alice", "conv_a", 1, 1, 1, "", 1, 0), LETTER)
    again = msgspec.structs.replace(LETTER, attempts=2, error="KeyError", plugin_version="1.3", died_at=40.0)
    await journal.commit(again)
    assert await journal.dead(None, 9) == [as_read(again, 1)]
    assert journal.dead_count("alice") == 1


async def test_a_dropped_letter_is_kept_but_neither_counted_nor_listed_until_it_dies_again(journal):
    await journal.commit(Conversation(1, "alice", "conv_a", 1, 1, 1, "", 1, 0), LETTER)
    await journal.commit(DeadDropped(1, 20.0))
    assert await journal.dead(None, 9) == []
    assert journal.dead_count("alice") == 0
    assert await journal.dead(None, 9, dropped_too=True) == [as_read(LETTER, 1, dropped_at=20.0)]
    await journal.commit(msgspec.structs.replace(LETTER, died_at=30.0))
    assert [row.dropped_at for row in await journal.dead(None, 9)] == [None]
    assert journal.dead_count("alice") == 1


async def test_a_letter_that_is_dropped_and_dies_again_in_one_group_is_on_the_list(journal):
    """As when its turn was let begin anew and failed at once, while the disk was slow."""
    await journal.commit(Conversation(1, "alice", "conv_a", 1, 1, 1, "", 1, 0), LETTER)
    again = msgspec.structs.replace(LETTER, died_at=30.0)
    await journal.commit(DeadDropped(1, 20.0), again, DeadDropped(1, 40.0), again)
    assert [row.dropped_at for row in await journal.dead(None, 9)] == [None]
    assert journal.dead_count("alice") == 1


async def test_the_count_is_that_of_the_list_after_a_broken_commit_and_a_restart(journal, path, settings):
    other = msgspec.structs.replace(LETTER, position=9)
    await journal.commit(Conversation(1, "alice", "conv_a", 1, 1, 1, "", 1, 0), LETTER)
    good, bad = journal.commit(other), journal.commit(msgspec.structs.replace(LETTER, position=10), DeadDropped(7, 1.0))
    await good
    with pytest.raises(JournalError):
        await bad
    assert journal.dead_count("alice") == 2
    await journal.close()
    again = await open_journal(path, settings)
    assert (again.dead_count("alice"), again.dead_count("bob")) == (2, 0)
    await again.close()


async def test_dropping_a_letter_that_there_is_not_is_refused(journal):
    with pytest.raises(JournalError, match="dead"):
        await journal.commit(DeadDropped(7, 20.0))
