"""Seqs, envelopes and the ledger, on a database of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agentd.hub.accounts import Account, Accounts
from agentd.hub.conversations import Conversation, Conversations
from agentd.hub.database import Database
from agentd.hub.mailbox import Draft, Mailbox
from agentd.wire.agentchat import types as wire


class Office:
    """The storage half of a hub."""

    def __init__(self, path: str = ":memory:", backlog_hard: int = 100) -> None:
        self.database = Database(path)
        self.accounts = Accounts(self.database, otp_life_s=60.0)
        self.conversations = Conversations(self.database, self.accounts)
        self.mailbox = Mailbox(self.database, self.accounts, self.conversations, backlog_hard)

    def agents(self, *handles: str) -> list[Account]:
        for handle in handles:
            if self.accounts.find(handle) is None:
                self.accounts.create(handle, f"{handle}@example.com", None, None)
        return [self.accounts.get(handle) for handle in handles]

    def say(self, conversation: Conversation, sender: Account, *texts: str) -> list[Any]:
        return self.mailbox.post(conversation, sender, [Draft(wire.MessageContent(text=text)) for text in texts])

    def waiting(self, account: Account) -> list[int]:
        return [envelope.seq for envelope in self.mailbox.envelopes(account.number, None, 1_000) or []]


@pytest.fixture
def office() -> Iterator[Office]:
    made = Office()
    yield made
    made.database.close()


def test_seqs_are_consecutive_from_one_and_own_sends_take_them(office: Office) -> None:
    alice, bob = office.agents("alice", "bob")
    talk = office.conversations.open_direct(alice, bob)
    stored = office.say(talk, alice, "1") + office.say(talk, bob, "2", "3") + office.say(talk, alice, "4")
    assert [m.seq for m in stored] == [1, 2, 3, 4]
    assert office.waiting(alice) == [2, 3]
    assert office.waiting(bob) == [1, 4]


def test_a_failed_post_takes_no_seq(office: Office) -> None:
    alice, bob = office.agents("alice", "bob")
    talk = office.conversations.open_direct(alice, bob)
    draft = Draft(wire.MessageContent(text="x"), client_msg_id="same")
    with pytest.raises(Exception, match="UNIQUE"):
        office.mailbox.post(talk, alice, [draft, draft])
    assert [m.seq for m in office.say(talk, alice, "first")] == [1]
    assert office.mailbox.undelivered(bob.number) == 1


def test_everything_is_found_again_after_closing_the_file(tmp_path: Path) -> None:
    path = str(tmp_path / "hub.db")
    office = Office(path)
    alice, bob = office.agents("alice", "bob")
    key = office.accounts.rekey(alice)
    talk = office.conversations.open_direct(alice, bob)
    before = office.say(talk, bob, "one", "two")
    office.mailbox.settle(alice.number, before[0].id)
    office.mailbox.flush()
    ledger = office.mailbox.ledger(None, 0, -1)
    office.database.close()

    office = Office(path)
    alice, bob = office.agents("alice", "bob")
    assert office.accounts.by_key(key) is alice
    assert office.waiting(alice) == [2]
    assert office.mailbox.undelivered(alice.number) == 1
    assert office.mailbox.ledger(None, 0, -1) == ledger
    again = office.conversations.find(talk.id)
    assert again is not None
    after = office.say(again, bob, "three")
    assert after[0].seq == 3
    assert after[0].id not in {m.id for m in before}
    office.database.close()


def test_keys_are_not_in_the_database(tmp_path: Path) -> None:
    path = tmp_path / "hub.db"
    office = Office(str(path))
    key = office.accounts.create("alice", "a@example.com", None, None)
    office.database.close()
    assert key.encode() not in path.read_bytes()
    assert key.removeprefix("ac_live_").encode() not in path.read_bytes()


def test_a_reset_starts_at_one_again_with_new_ids_and_the_ledger_keeps_both(office: Office) -> None:
    alice, bob = office.agents("alice", "bob")
    talk = office.conversations.open_direct(alice, bob)
    old = office.say(talk, bob, "one", "two")
    assert office.mailbox.reset(talk) == 2
    assert office.waiting(alice) == []
    assert office.mailbox.undelivered(alice.number) == 0
    assert office.mailbox.history(alice, talk, limit=10) == []
    new = office.say(talk, bob, "again")
    assert new[0].seq == 1
    assert new[0].id not in {m.id for m in old}
    ledger = office.mailbox.ledger(talk, 0, -1)
    assert [(row.seq, row.former) for row in ledger] == [(1, True), (2, True), (1, False)]
    assert office.mailbox.repeated(bob, old[0].client_msg_id) == old[0].payload


def test_a_full_group_member_gets_no_envelope_and_is_named(office: Office) -> None:
    creator, idle, busy = office.agents("creator", "idle", "busy")
    group = office.conversations.create_group(creator, wire.CreateGroupRequest(name="Group"))
    for account in (idle, busy):
        office.conversations.join(group, account)
    office.mailbox = Mailbox(office.database, office.accounts, office.conversations, backlog_hard=2)
    stored = office.say(group, creator, "1", "2", "3")
    assert [m.skipped for m in stored] == [(), (), (idle.number, busy.number)]
    for envelope in office.mailbox.envelopes(busy.number, None, 10) or []:
        office.mailbox.settle(busy.number, envelope.message_id)
    stored = office.say(group, creator, "4")
    assert stored[0].recipients == (busy.number,)
    assert stored[0].skipped == (idle.number,)
    assert len(office.mailbox.history(idle, group, limit=10)) == 4


def test_the_cursor_commits_everything_at_or_before_it_over_all_conversations(office: Office) -> None:
    alice, bob, eve = office.agents("alice", "bob", "eve")
    first, second = (office.conversations.open_direct(alice, other) for other in (bob, eve))
    office.say(first, bob, "1", "2")
    office.say(second, eve, "3")
    office.say(first, bob, "4")
    rows = office.mailbox.envelopes(alice.number, None, 3)
    assert rows is not None
    cursor = rows[-1].delivery_id
    assert [e.seq for e in office.mailbox.envelopes(alice.number, cursor, 10) or []] == [3]
    assert office.mailbox.settle_until(alice.number, cursor) == 3
    assert office.mailbox.settle_until(alice.number, cursor) == 0
    assert office.mailbox.undelivered(alice.number) == 1


@pytest.mark.parametrize("cursor", ["", "del_", "del_" + "0" * 32, "nonsense"])
def test_an_unknown_cursor_finds_and_commits_nothing(office: Office, cursor: str) -> None:
    alice, bob = office.agents("alice", "bob")
    office.say(office.conversations.open_direct(alice, bob), bob, "1")
    assert office.mailbox.envelopes(alice.number, cursor, 10) is None
    assert office.mailbox.settle_until(alice.number, cursor) == 0


def test_anothers_cursor_is_unknown(office: Office) -> None:
    alice, bob = office.agents("alice", "bob")
    talk = office.conversations.open_direct(alice, bob)
    office.say(talk, bob, "1")
    office.say(talk, alice, "2")
    rows = office.mailbox.envelopes(bob.number, None, 1)
    assert rows is not None
    assert office.mailbox.settle_until(alice.number, rows[0].delivery_id) == 0


class AnyOrderOfPostsAcksAndResets(RuleBasedStateMachine):
    """Whatever happens, seqs have no holes and the backlog count is the number of envelopes."""

    def __init__(self) -> None:
        super().__init__()
        self.office = Office(backlog_hard=5)
        self.people = self.office.agents("one", "two", "three")
        creator = self.people[0]
        self.talks = [
            self.office.conversations.open_direct(*self.people[:2]),
            self.office.conversations.create_group(creator, wire.CreateGroupRequest(name="All")),
        ]
        for account in self.people[1:]:
            self.office.conversations.join(self.talks[1], account)
        self.seqs: dict[str, list[int]] = {}

    @rule(talk=st.integers(0, 1), sender=st.integers(0, 1), count=st.integers(1, 4))
    def post(self, talk: int, sender: int, count: int) -> None:
        conversation = self.talks[talk]
        for stored in self.office.say(conversation, self.people[sender], *["text"] * count):
            self.seqs.setdefault(conversation.id, []).append(stored.seq)

    @rule(reader=st.integers(0, 2), data=st.data())
    def ack_some(self, reader: int, data: st.DataObject) -> None:
        number = self.people[reader].number
        for envelope in self.office.mailbox.envelopes(number, None, 10) or []:
            for _ in range(data.draw(st.integers(0, 2))):
                self.office.mailbox.settle(number, envelope.message_id)

    @rule(reader=st.integers(0, 2), at=st.integers(0, 5))
    def ack_until(self, reader: int, at: int) -> None:
        number = self.people[reader].number
        rows = self.office.mailbox.envelopes(number, None, 10) or []
        if at < len(rows):
            assert self.office.mailbox.settle_until(number, rows[at].delivery_id) == at + 1

    @rule(reader=st.integers(0, 1), through=st.integers(0, 9))
    def read(self, reader: int, through: int) -> None:
        self.office.mailbox.settle_read(self.people[reader].number, self.talks[0], through)

    @rule(talk=st.integers(0, 1))
    def reset(self, talk: int) -> None:
        self.office.mailbox.reset(self.talks[talk])
        self.seqs[self.talks[talk].id] = []

    @invariant()
    def seqs_have_no_holes(self) -> None:
        for seqs in self.seqs.values():
            assert seqs == list(range(1, len(seqs) + 1))

    @invariant()
    def the_backlog_is_what_waits(self) -> None:
        for account in self.people:
            assert self.office.mailbox.undelivered(account.number) == len(self.office.waiting(account))

    def teardown(self) -> None:
        self.office.database.close()


TestAnyOrder = AnyOrderOfPostsAcksAndResets.TestCase
TestAnyOrder.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


def test_a_stored_payload_is_what_every_reader_gets(office: Office) -> None:
    alice, bob = office.agents("alice", "bob")
    talk = office.conversations.open_direct(alice, bob)
    stored = office.say(talk, bob, "hi @Alice, not @nobody or me@alice")[0]
    message = wire.decode_message(stored.payload)
    assert message.context is not None
    assert message.context.mentions == ["alice"]
    row = msgspec.json.decode(office.mailbox.history(alice, talk, limit=1)[0])
    assert row.pop("status") == "stored"
    assert row == msgspec.json.decode(stored.payload)
