"""Dead letters through a real file."""

import msgspec

from agentd.journal.storage import Conversation, Dead

LETTER = Dead("echo", 1, 4, 5, "ValueError: no", "Traceback ...", "1.2", 10.0)


async def test_dead_letters_are_told_newest_first_of_one_identity_or_of_all(journal):
    await journal.commit(
        Conversation(1, "alice", "conv_a", 1, 1, 1, "", 1, 0), Conversation(2, "bob", "conv_b", 1, 1, 1, "", 1, 0)
    )
    later = msgspec.structs.replace(LETTER, position=5, died_at=30.0)
    of_bob = msgspec.structs.replace(LETTER, conversation=2, died_at=20.0)
    await journal.commit(LETTER, later, of_bob)
    assert await journal.dead(None, 9) == [later, of_bob, LETTER]
    assert await journal.dead("alice", 9) == [later, LETTER]
    assert await journal.dead("alice", 1) == [later]


async def test_a_delivery_that_dies_again_is_one_letter_with_the_newest_death(journal):
    await journal.commit(Conversation(1, "alice", "conv_a", 1, 1, 1, "", 1, 0), LETTER)
    again = msgspec.structs.replace(LETTER, attempts=2, error="KeyError", plugin_version="1.3", died_at=40.0)
    await journal.commit(again)
    assert await journal.dead(None, 9) == [again]
    assert (await journal.totals("alice")).dead == 1
