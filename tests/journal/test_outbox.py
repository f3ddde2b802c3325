"""Sends through a real file."""

import msgspec
import pytest

from agentd.core.events import Content
from agentd.errors import JournalError
from agentd.journal.sqlite import open_journal
from agentd.journal.storage import Carried, OutboxRow, Queued


async def test_a_send_comes_back_as_it_was_queued(journal, send):
    content = Content(text="süß", data={"n": [1, None, "x"]}, attachment_id="f", kind="file", metadata={"hop": 1})
    one = msgspec.structs.replace(send("k1", cause="echo/1", attempts=2, not_before=7.5), content=content)
    await journal.commit(Queued(one, 3.0))
    assert await journal.outbox_open("alice") == [one]
    assert await journal.outbox_find("k1", "alice") == OutboxRow(one, "", 3.0, None, None, None)
    assert await journal.outbox_find("k1", "bob") is None


async def test_the_first_send_under_a_key_stands_for_ever(journal, send, path, settings):
    journal.commit(Queued(send("k1", text="first"), 1.0))
    await journal.commit(Queued(send("k1", text="second"), 2.0))
    await journal.commit(Carried("k1", "alice", "sent", 1))
    await journal.close()
    reopened = await open_journal(path, settings)
    await reopened.commit(Queued(send("k1", text="third"), 3.0))
    row = await reopened.outbox_find("k1", "alice")
    assert (row.send.content.text, row.send.state, row.queued_at) == ("first", "sent", 1.0)
    assert await reopened.outbox_open("alice") == []
    await reopened.close()


async def test_two_identities_may_use_one_key(journal, send):
    await journal.commit(Queued(send("k1"), 1.0), Queued(send("k1", identity="bob"), 1.0))
    assert [row.identity for row in await journal.outbox_open("bob")] == ["bob"]
    assert [row.identity for row in await journal.outbox_open("alice")] == ["alice"]


async def test_what_is_not_settled_is_open_in_the_order_of_queueing(journal, send):
    states = ["ready", "sent", "unknown", "refused", "sending", "expired", "ready"]
    await journal.commit(*[Queued(send(f"k{9 - n}", state=state), float(n)) for n, state in enumerate(states)])
    assert [row.client_msg_id for row in await journal.outbox_open("alice")] == ["k9", "k7", "k5", "k3"]


async def test_a_send_may_be_queued_and_carried_in_one_group(journal, send):
    journal.commit(Queued(send("k1"), 1.0))
    await journal.commit(Carried("k1", "alice", "sent", 1, 0.0, "msg_9", 9, "conv_a", "", 2.0))
    row = await journal.outbox_find("k1", "alice")
    assert (row.send.state, row.send.attempts) == ("sent", 1)
    assert (row.result_id, row.result_seq, row.conversation) == ("msg_9", 9, "conv_a")


async def test_the_last_word_on_a_send_in_a_group_stands(journal, send):
    await journal.commit(Queued(send("k1"), 1.0))
    journal.commit(Carried("k1", "alice", "sending", 1))
    await journal.commit(Carried("k1", "alice", "ready", 1, 8.0, error="RATE_LIMITED req_1"))
    row = await journal.outbox_find("k1", "alice")
    assert (row.send.state, row.send.not_before, row.error) == ("ready", 8.0, "RATE_LIMITED req_1")


async def test_news_of_a_send_that_was_never_queued_is_refused(journal):
    with pytest.raises(JournalError, match="outbox"):
        await journal.commit(Carried("k1", "alice", "sent", 1))
