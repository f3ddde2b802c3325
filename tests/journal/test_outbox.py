"""Sends through a real file."""

import msgspec
import pytest

from agentd.core.events import Content, Position
from agentd.errors import JournalError
from agentd.journal.sqlite import open_journal
from agentd.journal.storage import Carried, OutboxRow, Queued, Retried


async def test_a_send_comes_back_as_it_was_queued(journal, send):
    content = Content(text="süß", data={"n": [1, None, "x"]}, attachment_id="f", kind="file", metadata={"hop": 1})
    one = msgspec.structs.replace(
        send("k1", cause="echo/1", attempts=2, not_before=7.5, expires_at=99.5), content=content
    )
    await journal.commit(Queued(one, 3.0))
    assert await journal.outbox_open("alice") == [one]
    assert await journal.outbox_find("k1", "alice") == OutboxRow(one, "", 3.0, None, None, None, 3.0)
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


async def test_where_a_conversation_stood_when_a_send_left_is_kept_until_there_is_other_news(journal, send):
    await journal.commit(Queued(send("k1"), 1.0))
    place = Position("conv_a", 2, 17)
    await journal.commit(Carried("k1", "alice", "sending", 1, after=place))
    assert [open_send.after for open_send in await journal.outbox_open("alice")] == [place]
    assert (await journal.outbox_find("k1", "alice")).send.after == place
    await journal.commit(Carried("k1", "alice", "ready", 1))
    assert (await journal.outbox_find("k1", "alice")).send.after is None


async def test_the_last_word_on_a_send_in_a_group_stands(journal, send):
    await journal.commit(Queued(send("k1"), 1.0))
    journal.commit(Carried("k1", "alice", "sending", 1))
    await journal.commit(Carried("k1", "alice", "ready", 1, 8.0, error="RATE_LIMITED req_1"))
    row = await journal.outbox_find("k1", "alice")
    assert (row.send.state, row.send.not_before, row.error) == ("ready", 8.0, "RATE_LIMITED req_1")


async def test_a_refusal_keeps_what_the_platform_called_it(journal, send):
    await journal.commit(Queued(send("k1"), 1.0))
    refused = Carried("k1", "alice", "refused", 2, error="403 BLOCKED", at=9.0, code="BLOCKED", request_id="req_7")
    await journal.commit(refused)
    row = await journal.outbox_find("k1", "alice")
    assert (row.send.state, row.send.attempts, row.changed_at) == ("refused", 2, 9.0)
    assert (row.error, row.code, row.request_id) == ("403 BLOCKED", "BLOCKED", "req_7")


async def test_sends_are_listed_newest_first_by_state_and_identity(journal, send):
    states = ["ready", "sent", "refused", "expired"]
    await journal.commit(*[Queued(send(f"k{n}", state=state), float(n)) for n, state in enumerate(states)])
    await journal.commit(Queued(send("k0", identity="bob"), 1.0))
    found = await journal.outbox_list("alice", ["ready", "refused", "expired"], 2)
    assert [(row.send.client_msg_id, row.send.state) for row in found] == [("k3", "expired"), ("k2", "refused")]
    assert [row.queued_at for row in await journal.outbox_list("bob", ["ready"], 9)] == [1.0]


async def test_a_send_that_is_retried_is_open_again_and_keeps_the_reason_of_its_refusal(journal, send):
    await journal.commit(Queued(send("k1", expires_at=5.0), 1.0))
    await journal.commit(Carried("k1", "alice", "refused", 2, 8.0, error="403 BLOCKED", code="BLOCKED"))
    await journal.commit(Retried("k1", "alice", 9.0))
    row = await journal.outbox_find("k1", "alice")
    assert await journal.outbox_open("alice") == [row.send]
    assert (row.send.not_before, row.send.expires_at, row.send.attempts) == (0.0, None, 2)
    assert (row.error, row.code, row.changed_at) == ("403 BLOCKED", "BLOCKED", 9.0)


async def test_news_of_a_send_that_was_never_queued_is_refused(journal):
    with pytest.raises(JournalError, match="outbox"):
        await journal.commit(Carried("k1", "alice", "sent", 1))


async def test_a_handle_tells_the_conversation_in_which_the_newest_send_to_it_arrived(journal, send):
    sends = [("k1", "@bob", "conv_a"), ("k2", "@Bob", "conv_b"), ("k3", "@eve", "conv_c"), ("k4", "@bob", None)]
    for key, target, conversation in sends:
        journal.commit(Queued(msgspec.structs.replace(send(key), target=target), 1.0))
        await journal.commit(Carried(key, "alice", "sent", 1, conversation=conversation))
    assert await journal.conversation_with("alice", "@BOB") == "conv_b"
    assert await journal.conversation_with("alice", "@nobody") is None
    assert await journal.conversation_with("bob", "@bob") is None
