"""From what is told of events to spans: one root for each event, when all that came of it has ended."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.core.events import Content, Message, Record, Send, Timer
from agentd.journal.storage import Carried
from agentd.tracing.following import Attributes, Follower, Kind
from agentd.tracing.naming import Name, name_of


class Put(NamedTuple):
    name: str
    of: Name
    began: int
    ended: int
    attributes: dict[str, Any]
    root: bool = False
    failed: bool = False
    links: Sequence[Name] = ()


class Ledger:
    """Keeps the spans it is given. wants: which traces."""

    def __init__(self) -> None:
        self.puts: list[Put] = []
        self.unwanted: set[int] = set()
        self.joined: list[Name] = []

    def is_sampled(self, trace: int) -> bool:
        return trace not in self.unwanted

    def put(
        self,
        name: str,
        of: Name,
        began: int,
        ended: int,
        attributes: Attributes,
        *,
        kind: Kind = "inside",
        root: bool = False,
        failed: bool = False,
        links: Sequence[Name] = (),
    ) -> None:
        assert began <= ended
        self.puts.append(Put(name, of, began, ended, dict(attributes), root, failed, links))

    def begin(self, name: str, of: Name, began: int, attributes: Attributes, links: Sequence[Name]) -> Begun:
        return Begun(self, name, of, began, dict(attributes), links)

    def unsampled(self, of: Name) -> Begun:
        return Begun(self, "", of, 0, {}, ())

    def names(self) -> list[str]:
        return [each.name for each in self.puts]


class Begun:
    def __init__(
        self, ledger: Ledger, name: str, of: Name, began: int, attributes: dict[str, Any], links: Sequence[Name]
    ) -> None:
        self._ledger = ledger
        self._put = Put(name, of, began, began, attributes, links=links)
        self.as_link = Name(of.trace, 7)
        self.traceparent = ""

    def enter(self) -> None:
        self._ledger.joined.append(self._put.of)

    def ended(self, at: int, attributes: Attributes, *, failed: bool) -> None:
        told = {**self._put.attributes, **attributes}
        self._ledger.puts.append(self._put._replace(ended=at, attributes=told, failed=failed))


class Told:
    """A follower, with what the daemon would tell it."""

    def __init__(self, open_max: int = 100) -> None:
        self.ledger = Ledger()
        self.follower = Follower(self.ledger, open_max, lambda identity: "agentchat")

    def roots(self) -> list[str]:
        return [each.attributes["messaging.message.id"] for each in self.ledger.puts if each.root]


@pytest.fixture
def told() -> Told:
    return Told()


def record(number: int, **fields: Any) -> Record:
    event = Message(
        identity="alice", conversation="conv_1", seq=number, id=f"msg_{number}", sender="bob", text="hello", **fields
    )
    return Record(number, 1, event, 1_700_000_000.0 + number)


def answer(to: int, ordinal: int = 0, plugin: str = "a", identity: str = "alice") -> Send:
    return Send(
        identity=identity,
        target="@bob",
        content=Content(text="hi"),
        client_msg_id=f"key-{to}-{plugin}-{ordinal}",
        cause=f"{plugin} msg_{to} {ordinal}",
    )


def carried(send: Send, state: str, **fields: Any) -> Carried:
    return Carried(send.client_msg_id, send.identity, state, 1, **fields)


def test_an_event_that_no_plugin_wants_ends_with_its_commit(told: Told) -> None:
    told.follower.offered(record(1), ["a", "b"])
    for plugin in ("a", "b"):
        assert told.roots() == []
        told.follower.through(plugin, "alice", "msg_1")
    assert told.ledger.names() == ["journal", "receive alice"]
    assert len(told.follower) == 0


def test_own_words_are_not_followed(told: Told) -> None:
    told.follower.offered(record(1, own=True), ["a"])
    assert (told.ledger.puts, len(told.follower)) == ([], 0)


def test_an_event_that_nobody_samples_leaves_no_span_and_no_memory_but_its_handlers_are_told(told: Told) -> None:
    told.ledger.unwanted = {name_of("alice", "msg_1").trace}
    told.follower.offered(record(1), ["a"])
    turn = told.follower.began("a", record(1).event, 1, records=[record(1)])
    turn.enter()
    turn.ended("handled", sends=[answer(1)])
    told.follower.queued([answer(1)])
    told.follower.leaves(answer(1))
    told.follower.became(carried(answer(1), "sent"))
    told.follower.settled(carried(answer(1), "sent"))
    assert told.ledger.puts == []
    assert told.ledger.joined == [name_of("alice", "msg_1")]
    assert len(told.follower) == 0


def test_a_replay_joins_the_trace_without_a_second_root(told: Told) -> None:
    told.follower.offered(record(1), [])
    assert told.roots() == ["msg_1"]
    for again in (True, False):
        turn = told.follower.began("a", record(1).event, 1, records=[record(1)], pending=["a"], again=again)
        turn.ended("handled", sends=[answer(1)])
        told.follower.queued([answer(1)])
        told.follower.leaves(answer(1))
        told.follower.became(carried(answer(1), "sent"))
        told.follower.settled(carried(answer(1), "sent"))
    assert told.roots() == ["msg_1"]
    assert {each.of for each in told.ledger.puts} == {name_of("alice", "msg_1")}
    assert len(told.follower) == 0


def test_what_another_identity_says_belongs_to_the_trace_of_the_event(told: Told) -> None:
    told.follower.offered(record(1), ["a"])
    elsewhere = answer(1, identity="carol")
    turn = told.follower.began("a", record(1).event, 1, records=[record(1)])
    turn.ended("handled", sends=[elsewhere])
    told.follower.queued([elsewhere])
    told.follower.through("a", "alice", "msg_1")
    told.follower.leaves(elsewhere)
    told.follower.became(carried(elsewhere, "sent"))
    assert told.roots() == []
    told.follower.settled(carried(elsewhere, "sent"))
    assert told.roots() == ["msg_1"]
    assert {each.of for each in told.ledger.puts} == {name_of("alice", "msg_1")}
    assert "send carol" in told.ledger.names()


@pytest.mark.parametrize("state", ["expired", "dropped"])
def test_a_send_that_ends_without_leaving_says_so(told: Told, state: str) -> None:
    send = answer(1)
    told.follower.offered(record(1), [])
    told.follower.queued([send])
    told.follower.became(carried(send, state))
    told.follower.settled(carried(send, state))
    last = told.ledger.puts[-1]
    assert (last.name, last.failed, last.attributes["agentd.outcome"]) == ("outbox alice", True, state)


@pytest.mark.parametrize(
    ("state", "fields", "outcome", "error"),
    [
        ("sent", {"result_id": "msg_9", "result_seq": 4}, "sent", None),
        ("ready", {"code": "RATE_LIMITED"}, "later", "RATE_LIMITED"),
        ("unknown", {"error": "no answer came from https://host"}, "unknown", "unknown"),
        ("refused", {"code": "BLOCKED", "error": "403 you are blocked"}, "refused", "BLOCKED"),
    ],
)
def test_each_attempt_to_send_tells_what_it_came_to_in_words_of_a_fixed_set(
    told: Told, state: str, fields: dict[str, Any], outcome: str, error: str | None
) -> None:
    send = answer(1)
    told.follower.queued([send])
    told.follower.leaves(send)
    told.follower.answered(send, 207)
    told.follower.became(carried(send, state, **fields))
    attempt = told.ledger.puts[-1]
    assert attempt.name == "send alice"
    assert attempt.attributes["agentd.outcome"] == outcome
    assert attempt.attributes.get("error.type") == error
    assert attempt.attributes["http.response.status_code"] == 207
    assert attempt.failed == (state != "sent")
    assert not any("blocked" in str(value) or "no answer" in str(value) for value in attempt.attributes.values())


def test_a_refused_key_ends_an_attempt_and_the_next_one_waits_from_there(told: Told) -> None:
    send = answer(1)
    told.follower.queued([send])
    told.follower.leaves(send)
    told.follower.kept(send, "credentials refused")
    told.follower.leaves(send)
    told.follower.became(carried(send, "sent"))
    outbox, first, waited, _ = told.ledger.puts
    assert (first.name, first.attributes["error.type"]) == ("send alice", "credentials refused")
    assert (outbox.ended, waited.began) == (first.began, first.ended)


def test_an_event_that_was_held_before_a_restart_has_its_root_when_it_is_let_go(told: Told) -> None:
    told.follower.finished("a", record(1), ["a", "b"], again=False)
    assert told.roots() == []
    told.follower.finished("b", record(1), ["b"], again=False)
    assert told.roots() == ["msg_1"]
    told.follower.finished("b", record(1), ["b"], again=False)
    told.follower.finished("b", record(2), ["b"], again=True)
    assert told.roots() == ["msg_1"]


def test_an_event_that_is_passed_over_tells_how_long_it_waited_for_that(told: Told) -> None:
    told.follower.passed_over("a", record(1), ["a"])
    told.follower.finished("a", record(1), ["a"], again=False)
    wait, root = told.ledger.puts
    assert (wait.name, wait.attributes["agentd.outcome"], root.root) == ("wait a", "passed over", True)


def test_a_plugin_that_leaves_an_identity_is_not_waited_for(told: Told) -> None:
    told.follower.offered(record(1), ["a", "b"])
    told.follower.through("b", "alice", "msg_1")
    told.follower.parted("a", "carol")
    assert told.roots() == []
    told.follower.parted("a", "alice")
    assert told.roots() == ["msg_1"]


def test_of_too_many_events_the_oldest_are_given_up_and_met_again_at_their_turn() -> None:
    told = Told(open_max=3)
    for number in range(1, 6):
        told.follower.offered(record(number), ["a"])
    assert len(told.follower) == 3
    assert told.follower.given_up == 2
    turn = told.follower.began("a", record(1).event, 1, records=[record(1)], pending=["a"])
    turn.ended("handled")
    told.follower.through("a", "alice", "msg_1")
    assert told.roots() == ["msg_1"]


def test_a_timer_has_a_root_from_when_it_was_due(told: Told) -> None:
    timer = Timer(identity="alice", id="t-1")
    for attempt, outcome in ((1, "failed"), (2, "handled")):
        told.follower.began("a", timer, attempt, due_at=1_700_000_000.0).ended(outcome)
    told.follower.through("a", "alice", "t-1")
    *_, root = told.ledger.puts
    assert (root.name, root.began, root.root) == ("timer a", 1_700_000_000_000_000_000, True)
    assert told.ledger.names() == ["process a", "process a", "timer a"]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 3), st.integers(0, 2))
def test_in_whatever_order_things_happen_each_event_has_one_root_behind_all_else(
    seed: int, events: int, plugins: int, answers: int
) -> None:
    """Every plugin handles every event in order, at the second attempt, and its answers settle whenever they do."""
    chance = random.Random(seed)
    told = Told()
    follower = told.follower
    names = [f"plugin-{number}" for number in range(plugins)]
    for number in range(1, events + 1):
        follower.offered(record(number), names)
    lanes = {name: [(number, attempt) for number in range(1, events + 1) for attempt in (1, 2)] for name in names}
    under_way: list[Send] = []
    while any(lanes.values()) or under_way:
        busy = [name for name in names if lanes[name]]
        if under_way and (not busy or chance.random() < 0.5):
            send = under_way.pop(chance.randrange(len(under_way)))
            follower.leaves(send)
            if chance.random() < 0.3:
                follower.became(carried(send, "ready"))
                under_way.append(send)
            else:
                follower.became(carried(send, "sent"))
                follower.settled(carried(send, "sent"))
            continue
        name = chance.choice(busy)
        number, attempt = lanes[name].pop(0)
        turn = follower.began(name, record(number).event, attempt, records=[record(number)], pending=[name])
        if attempt == 1:
            turn.ended("retried", ValueError("no"), "handler")
            continue
        sends = [answer(number, ordinal, name) for ordinal in range(answers)]
        if sends:
            turn.ended("handled", sends=sends)
            follower.queued(sends)
            under_way += sends
            follower.finished(name, record(number), [name], again=False)
        else:  # a turn without effects is through before its end is told
            follower.finished(name, record(number), [name], again=False)
            turn.ended("handled")
    assert sorted(told.roots()) == sorted(f"msg_{number}" for number in range(1, events + 1))
    assert len(follower) == 0
    for root in [each for each in told.ledger.puts if each.root]:
        mine = [each for each in told.ledger.puts if each.of == root.of]
        assert mine[-1] is root
        assert (
            len(mine)
            == 2
            + plugins * (4 + 2 * answers)
            + sum(each.attributes.get("agentd.outcome") == "later" for each in mine) * 2
        )
        assert all(root.began <= each.began and each.ended <= root.ended for each in mine)
