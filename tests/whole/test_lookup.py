"""Sends on a platform that knows no keys: what is in doubt is looked up, sent once, or shown for a decision."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from agentd import config, identities
from agentd.core.events import Content
from agentd.demo.proof import IMPATIENT, Proof
from agentd.hub.faults import Action, Point, Rule
from tests.keyless import Keyless

if TYPE_CHECKING:
    from agentd.hub.mailbox import LedgerRow
    from tests.whole.conftest import Rig

SETTLE_S = 0.4
SENDING = config.Sending(rate_per_s=1_000.0, retry_first_s=0.05, retry_max_s=0.2, lookup_settle_s=SETTLE_S)
STORED_AND_CUT = Rule(point=Point.REST, action=Action.DISCONNECT_AFTER, route="send")
CUT_BEFORE_IT_WAS_STORED = Rule(point=Point.REST, action=Action.DISCONNECT, route="send")


@pytest.fixture
async def talk(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """An identity on a platform without keys, whom a peer has spoken to and who has answered."""
    monkeypatch.setattr(identities, "AgentChat", Keyless)
    rig.settings = msgspec.structs.replace(rig.settings, sending=SENDING)
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()
    rig.hub.post("peer", "agent", "hello")
    await rig.until(lambda: rig.status()[0]["outbox_sent"] == 1)
    yield rig


async def say(rig: Rig, key: str, text: str, target: str = "@peer") -> None:
    assert rig.daemon is not None
    await rig.daemon.operations.send("agent", target, Content(text=text), 0.0, key)


async def look(rig: Rig, key: str) -> dict[str, object]:
    assert rig.daemon is not None
    return await rig.daemon.operations.outbox_show("agent", key)


async def until_undecided(rig: Rig, key: str) -> dict[str, object]:
    async with asyncio.timeout(20):
        while not (await look(rig, key))["needs_decision"]:
            await asyncio.sleep(0.02)
    return await look(rig, key)


def said(rig: Rig) -> list[LedgerRow]:
    """What the identity has said after its answer, as the hub has it."""
    return [row for row in rig.hub.ledger() if row.sender == "agent"][1:]


async def texts(rig: Rig) -> list[str]:
    """The same by the records on disk, once every seq is accounted for."""
    await rig.assert_accounted()
    await rig._journal.commit()  # what is accounted for in memory is on disk then
    records = await rig._journal.read_log("agent", 0, 100)
    told = [msgspec.json.decode(record.payload) for record in records]
    return [row["content"]["text"] for row in told if row["sender"] == "agent"][1:]


async def test_a_send_that_was_stored_before_its_answer_was_cut_is_found_and_counted_as_ours(talk: Rig) -> None:
    talk.hub.faults.add(STORED_AND_CUT)
    await say(talk, "first", "one")
    await say(talk, "second", "two")
    await talk.until(lambda: talk.status()[0]["outbox_sent"] == 3)
    assert [row.seq for row in said(talk)] == [3, 4]
    assert await texts(talk) == ["one", "two"], "once, and in order"
    row = await look(talk, "first")
    assert (row["state"], row["seq"], row["attempts"]) == ("sent", 3, 1)
    assert row["conversation"] == talk.hub.conversation("agent", "peer")


async def test_a_send_that_was_cut_before_it_was_stored_leaves_again_when_no_late_write_can_come(talk: Rig) -> None:
    talk.hub.faults.add(CUT_BEFORE_IT_WAS_STORED)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await say(talk, "first", "one")
    await say(talk, "second", "two")
    await talk.until(lambda: talk.status()[0]["outbox_sent"] == 3)
    assert loop.time() - began >= SETTLE_S
    assert await texts(talk) == ["one", "two"]
    assert (await look(talk, "first"))["attempts"] == 2


async def test_two_equal_texts_are_told_apart_by_where_each_left(talk: Rig) -> None:
    talk.hub.faults.add(msgspec.structs.replace(STORED_AND_CUT, times=2))
    await say(talk, "first", "the same")
    await say(talk, "second", "the same")
    await say(talk, "third", "the same")
    await talk.until(lambda: talk.status()[0]["outbox_sent"] == 4)
    assert [(await look(talk, key))["seq"] for key in ("first", "second", "third")] == [3, 4, 5]
    assert await texts(talk) == ["the same"] * 3


async def test_several_messages_that_could_be_the_send_stop_its_target_until_somebody_decides(talk: Rig) -> None:
    talk.hub.faults.add(
        Rule(point=Point.REST, action=Action.STATUS, status=503, route="history", times=None, for_s=60.0),
        STORED_AND_CUT,
    )
    await say(talk, "first", "the same")
    await talk.until(lambda: len(said(talk)) == 1)
    talk.hub.post("agent", "peer", "the same")  # this account, from another place
    talk.hub.faults.replace()
    await say(talk, "second", "behind it")
    row = await until_undecided(talk, "first")
    assert (row["state"], row["error"]) == ("unknown", "looked up: 2 messages there say the same")
    assert talk.status()[0]["targets_stopped"] == 1
    assert not (await look(talk, "second"))["needs_decision"]
    assert talk.daemon is not None
    await talk.daemon.operations.outbox_drop("agent", "first")
    await talk.until(lambda: talk.status()[0]["outbox_sent"] == 2)
    assert [row.seq for row in said(talk)] == [3, 4, 5]
    assert talk.status()[0]["targets_stopped"] == 0


async def test_a_history_that_is_refused_stops_the_target_and_one_that_fails_is_asked_again(talk: Rig) -> None:
    failing = Rule(point=Point.REST, action=Action.STATUS, status=503, route="history", times=2)
    talk.hub.faults.add(STORED_AND_CUT, failing)
    await say(talk, "first", "one")
    await talk.until(lambda: talk.status()[0]["outbox_sent"] == 2)
    assert talk.hub.faults.fired["rest.status"] == 2
    refusing = Rule(point=Point.REST, action=Action.STATUS, status=404, route="history", times=None, for_s=60.0)
    talk.hub.faults.replace(None, [STORED_AND_CUT, refusing])
    await say(talk, "second", "two")
    await say(talk, "third", "three")
    row = await until_undecided(talk, "second")
    assert "404" in str(row["error"])
    talk.hub.faults.replace()
    await talk.stop()
    await talk.start()  # it is looked up anew, and the history can be read now
    await talk.until(lambda: talk.status()[0]["outbox_sent"] == 4)
    assert await texts(talk) == ["one", "two", "three"]


async def test_a_first_message_whose_answer_is_cut_is_shown_since_nobody_knows_where_it_would_stand(talk: Rig) -> None:
    talk.hub.create_agent("stranger")
    talk.hub.faults.add(STORED_AND_CUT)
    await say(talk, "first", "one", "@stranger")
    row = await until_undecided(talk, "first")
    assert row["state"] == "unknown"
    await say(talk, "second", "two")
    await talk.until(lambda: talk.status()[0]["outbox_sent"] == 2)


@pytest.mark.parametrize(
    "fault",
    [STORED_AND_CUT, CUT_BEFORE_IT_WAS_STORED, Rule(point=Point.REST, action=Action.HANG, route="send")],
    ids=["stored", "not stored", "under way"],
)
async def test_a_daemon_that_is_killed_between_a_send_and_its_answer_sends_it_once(tmp_path: Path, fault: Rule) -> None:
    settings = {**IMPATIENT, "sending": {**IMPATIENT["sending"], "lookup_settle_s": 0.5}}
    program = [str(Path(__file__).parents[1] / "keyless.py")]
    async with Proof(tmp_path, 1, settings=settings) as proof:
        peer = proof.peer("peer")
        proof.start(program)
        await proof.until_live()
        for number in range(3):
            proof.hub.post(peer, "agent-1", f"message {number}")
        assert await proof.until_answered(20.0)
        for number in range(3):
            before = proof.hub.faults.fired.total()
            proof.hub.faults.replace(None, [fault])
            proof.hub.post(peer, "agent-1", f"trouble {number}")
            async with asyncio.timeout(20):
                while proof.hub.faults.fired.total() == before:
                    await asyncio.sleep(0)
            await proof.kill()
            proof.start(program)
            assert await proof.until_answered(20.0), proof.log[-4_000:]
        proof.hub.post(peer, "agent-1", "last")
        assert await proof.until_answered(20.0)
        assert await proof.stop() == 0
        assert proof.verdict().clean, proof.describe()
        keys = [row.client_msg_id for row in proof.hub.ledger() if row.sender == "agent-1"]
        assert not [key for key in keys if key.startswith("agentd-")], "no key went out by which the hub knew a repeat"
