"""What waits, what was refused and what died, against a hub: seen, decided on, and never lost or doubled."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from agentd import config
from agentd.control.client import Client
from agentd.control.refusal import ControlError
from agentd.core.events import Content, Send
from agentd.hub.faults import Action, Point, Rule
from agentd.journal.storage import Queued
from agentd.transport.rest import Rest
from agentd.wire.agentchat import AgentChat

if TYPE_CHECKING:
    from agentd.hub.mailbox import LedgerRow
    from tests.whole.conftest import Rig

HELD = ("ready", "sending", "unknown", "refused", "expired")
GIVES_UP = """
from agentd.plugin import Context, GiveUp, Message, Plugin

plugin = Plugin("picky", version="1.2")

@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    if message.text == "poison":
        raise GiveUp("will not touch that")
"""


TELLS_BACKLOG = """
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("teller")

@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    ctx.reply(f"backlog {ctx.peer_backlog}", expires_s=600)
"""


async def begin(rig: Rig, *peers: str) -> dict[str, str]:
    """An identity, and peers without a connection. Returns the peers' keys."""
    rig.identity("agent")
    keys = {peer: rig.hub.create_agent(peer) for peer in peers}
    await rig.start()
    return keys


async def say(rig: Rig, target: str, *texts: str) -> None:
    """Put messages into the outbox; their keys are their texts."""
    assert rig.daemon is not None
    for text in texts:
        await rig.daemon.operations.send("agent", target, Content(text=text), 0.0, text)


def said(rig: Rig) -> list[LedgerRow]:
    """What the hub has taken from the identity, in order over all conversations."""
    return [row for row in rig.hub.ledger() if row.sender == "agent"]


def keys_of(rows: list[LedgerRow]) -> list[str]:
    return [row.client_msg_id for row in rows]


async def state_of(rig: Rig, key: str) -> str:
    assert rig.daemon is not None
    return str((await rig.daemon.operations.outbox_show(None, key))["state"])


async def read_all(rig: Rig, peer: str, key: str) -> None:
    """Let the peer fetch and acknowledge what waits for it."""
    platform = AgentChat(peer, rig.hub.url, lambda: key, peer, version="0")
    async with Rest(rig.hub.url, lambda: key, config.Rest()) as rest:
        while (page := platform.read_drain(await rest.perform(platform.drain_request(None)))).cursor is not None:
            await rest.perform(platform.drain_ack_request(page.cursor))


async def test_a_recipient_with_a_backlog_is_slowed_parked_and_taken_up_again_and_nobody_else_waits(
    make_rig: Callable[..., Any],
) -> None:
    async with make_rig(backlog_soft=4, backlog_hard=6) as rig:
        keys = await begin(rig, "slow", "quick")
        to_slow, to_quick = [f"slow-{n}" for n in range(10)], [f"quick-{n}" for n in range(3)]
        await say(rig, "@slow", *to_slow)
        await say(rig, "@quick", *to_quick)
        await rig.until(lambda: rig.hub.undelivered("slow") == 6)
        parked = {row["client_msg_id"]: row for row in await rig.daemon.operations.outbox("agent", HELD, 100)}
        await rig.until(lambda: rig.status()[0]["outbox_ready"] == 4)
        # The hub's order: who came later but has no backlog was served before the slowed one was through.
        order = keys_of(said(rig))
        assert max(order.index(key) for key in to_quick) < order.index(to_slow[5])
        assert set(parked) <= set(to_slow)
        assert rig.daemon._supervisors["agent"].sender.peer_backlog("@slow") >= 4
        await say(rig, "@quick", "quick-later")
        await rig.until(lambda: "quick-later" in keys_of(said(rig)))
        assert rig.hub.undelivered("slow") == 6, "what is parked stays parked"
        await read_all(rig, "slow", keys["slow"])
        await rig.until(lambda: rig.status()[0]["outbox_ready"] == 0)
        taken = [key for key in keys_of(said(rig)) if key.startswith("slow")]
        assert taken == to_slow, "every message once, in order"
        await rig._journal.commit()
        assert await rig.daemon.operations.outbox("agent", HELD, 100) == []


async def test_a_refused_send_tells_the_platforms_answer_and_leaves_when_it_is_retried(rig: Rig) -> None:
    await begin(rig)
    assert rig.daemon is not None
    await say(rig, "@nobody", "hello")
    await rig.until(lambda: rig.status()[0]["outbox_refused"] == 1)
    row = await rig.daemon.operations.outbox_show("agent", "hello")
    assert (row["state"], row["code"], row["attempts"]) == ("refused", "AGENT_NOT_FOUND", 1)
    assert row["request_id"]
    assert row["content"] == {"text": "hello"}
    await rig.stop()
    await rig.start()
    assert rig.status()[0]["outbox_refused"] == 1
    rig.hub.create_agent("nobody")
    await rig.daemon.operations.outbox_retry(None, "hello")
    await rig.until(lambda: keys_of(said(rig)) == ["hello"])
    await rig.until(lambda: rig.status()[0]["outbox_sent"] == 1)
    assert rig.status()[0]["outbox_refused"] == 0
    row = await rig.daemon.operations.outbox_show(None, "hello")
    assert (row["state"], row["seq"], row["error"]) == ("sent", 1, None)
    with pytest.raises(ControlError, match="hello is sent; nothing is left to do"):
        await rig.daemon.operations.outbox_retry(None, "hello")
    with pytest.raises(ControlError, match="hello is sent"):
        await rig.daemon.operations.outbox_drop(None, "hello")
    with pytest.raises(ControlError, match="no send has the key 'helo'"):
        await rig.daemon.operations.outbox_show(None, "helo")


async def test_what_two_people_decide_at_a_time_on_a_send_is_decided_once(rig: Rig) -> None:
    await begin(rig)
    assert rig.daemon is not None
    await say(rig, "@nobody", "twice", "both")
    await rig.until(lambda: rig.status()[0]["outbox_refused"] == 2)
    drop, retry = rig.daemon.operations.outbox_drop, rig.daemon.operations.outbox_retry
    told = await asyncio.gather(drop(None, "twice"), drop(None, "twice"), return_exceptions=True)
    assert [type(each) for each in told] == [dict, ControlError], "the second is told that it is dropped"
    assert rig.status()[0]["outbox_refused"] == 1
    rig.hub.create_agent("nobody")
    done = await asyncio.gather(retry(None, "both"), drop(None, "both"), return_exceptions=True)
    assert type(done[0]) is dict
    if isinstance(done[1], dict):
        await rig.until(lambda: rig.status()[0]["outbox_ready"] == 0)
        assert said(rig) == [], "what is told to be dropped never leaves"
    else:
        await rig.until(lambda: keys_of(said(rig)) == ["both"])
    await rig.until(lambda: rig.status()[0]["outbox_refused"] == 0)


async def asked_and_gone(rig: Rig, call: str, body: dict[str, Any]) -> None:
    """Ask through the control socket while the disk takes no commit, and hang up before it does again."""
    path = rig.folder / "state" / "control.sock"
    write, room, reached = rig._journal._group._write, asyncio.Event(), asyncio.Event()

    async def slow(calls: Any) -> Any:
        reached.set()
        await room.wait()
        return await write(calls)

    rig._journal._group._write = slow
    _, leaving = await asyncio.open_unix_connection(path)
    content = json.dumps(body).encode()
    leaving.write(f"POST {call} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
    await reached.wait()
    leaving.close()
    await leaving.wait_closed()
    for _ in range(3):  # whoever is answered now came after that was noticed
        await asyncio.to_thread(Client(path).status)
    rig._journal._group._write = write
    room.set()


async def test_what_was_asked_for_is_done_whole_also_if_who_asked_has_gone(rig: Rig) -> None:
    await begin(rig, "bob")
    await asked_and_gone(rig, "/v1/send", {"target": "@bob", "content": {"text": "hi"}, "client_msg_id": "said"})
    await rig.until(lambda: keys_of(said(rig)) == ["said"])
    await say(rig, "@nobody", "again")
    await rig.until(lambda: rig.status()[0]["outbox_refused"] == 1)
    rig.hub.create_agent("nobody")
    await asked_and_gone(rig, "/v1/outbox/retry", {"client_msg_id": "again"})
    await rig.until(lambda: keys_of(said(rig)) == ["said", "again"])
    await rig.until(lambda: rig.status()[0]["outbox_refused"] == 0)


async def test_a_send_that_is_dropped_while_it_waits_never_leaves_and_what_is_behind_it_does(
    make_rig: Callable[..., Any],
) -> None:
    async with make_rig(cold_rule=True) as rig:
        await begin(rig, "stranger")
        await say(rig, "@stranger", "first", "second", "third", "fourth")
        await rig.until(lambda: rig.daemon._supervisors["agent"].sender.pacing.awaiting == {"@stranger"})
        assert (await rig.daemon.operations.outbox_drop("agent", "second"))["state"] == "dropped"
        assert (await rig.daemon.operations.outbox_drop("agent", "fourth"))["state"] == "dropped"
        with pytest.raises(ControlError, match="nothing is left to drop"):
            await rig.daemon.operations.outbox_drop("agent", "second")
        with pytest.raises(ControlError, match="it goes on by itself"):
            await rig.daemon.operations.outbox_retry("agent", "third")
        rig.hub.post("stranger", "agent", "hello")
        await rig.until(lambda: keys_of(said(rig))[:2] == ["first", "third"])
        await rig.until(lambda: rig.status()[0]["outbox_ready"] == 0)
        await rig.stop()
        await rig.start()
        assert await state_of(rig, "second") == "dropped"
        assert {"second", "fourth"}.isdisjoint(keys_of(said(rig)))
        assert (await rig.daemon.operations.outbox_retry("agent", "fourth"))["state"] in ("ready", "sent")
        await rig.until(lambda: "fourth" in keys_of(said(rig)))


async def test_a_send_whose_time_is_over_never_leaves_and_is_shown(rig: Rig) -> None:
    await begin(rig, "peer")
    assert rig.daemon is not None
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.STATUS, status=503, route="send", times=None, for_s=60.0))
    stale = Send(
        identity="agent", target="@peer", content=Content(text="x"), client_msg_id="stale", expires_at=time.time() + 0.3
    )
    await rig._journal.commit(Queued(stale, time.time()))
    rig.daemon._queued((stale,))
    await say(rig, "@peer", "fresh")
    await rig.until(lambda: rig.status()[0]["outbox_expired"] == 1)
    assert await state_of(rig, "stale") == "expired"
    rig.hub.faults.replace()
    await rig.until(lambda: keys_of(said(rig)) == ["fresh"])
    await rig.daemon.operations.outbox_retry(None, "stale")
    await rig.until(lambda: keys_of(said(rig)) == ["fresh", "stale"])


async def test_a_dead_letter_is_shown_with_its_event_and_taken_off_the_list(rig: Rig) -> None:
    file = rig.folder / "picky.py"
    file.write_text(GIVES_UP)
    rig.plugin = {"use": str(file)}
    await begin(rig, "peer")
    assert rig.daemon is not None
    rig.hub.post("peer", "agent", "fine", "poison")
    await rig.until(lambda: rig.status()[0]["dead"] == 1)
    await rig._journal.commit()
    (letter,) = await rig.daemon.operations.dead("agent", False, 10)
    assert (letter["plugin"], letter["attempts"], letter["plugin_version"]) == ("plugin", 1, "1.2")
    shown = await rig.daemon.operations.dead_show(letter["number"])
    assert (shown["event"]["text"], shown["event"]["seq"]) == ("poison", 2)
    assert "will not touch that" in shown["traceback"]
    twice = await asyncio.gather(*(rig.daemon.operations.dead_drop(letter["number"]) for _ in range(2)))
    assert all(told["dropped_at"] is not None for told in twice)
    assert (await rig.daemon.operations.dead(None, False, 10), rig.status()[0]["dead"]) == ([], 0)
    await rig.stop()
    await rig.start()
    assert rig.status()[0]["dead"] == 0
    assert [row["number"] for row in await rig.daemon.operations.dead(None, True, 10)] == [letter["number"]]
    with pytest.raises(ControlError, match="there is no dead letter 99"):
        await rig.daemon.operations.dead_drop(99)


async def test_a_full_outbox_makes_turns_that_send_wait_and_every_answer_leaves_in_the_end(rig: Rig) -> None:
    rig.settings = msgspec.structs.replace(
        rig.settings, sending=config.Sending(rate_per_s=1_000.0, retry_first_s=0.05, retry_max_s=0.2, outbox_max=3)
    )
    peers = [f"peer-{number}" for number in range(8)]
    await begin(rig, *peers)
    assert rig.daemon is not None
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.STATUS, status=503, route="send", times=None, for_s=60.0))
    for peer in peers:
        rig.hub.post(peer, "agent", "hello")
    await rig.until(lambda: rig.status()[0]["outbox_full"] and len(rig.daemon._dispatcher._engine.room) == 5)
    assert rig.status()[0]["outbox_ready"] == 3
    assert rig.status()[0]["pending"] == 5, "what waits is not handled yet"
    with pytest.raises(ControlError, match="the outbox of agent is full; see what it holds: agentd outbox ls"):
        await say(rig, "@peer-0", "one more")
    rig.hub.faults.replace()
    await rig.until(lambda: len(said(rig)) == len(peers))
    await rig.until(lambda: rig.status()[0]["pending"] == 0)
    assert len({row.conversation for row in said(rig)}) == len(peers), "one answer in each"
    assert not rig.status()[0]["outbox_full"]


async def test_turns_that_wait_for_a_full_outbox_are_run_again_after_a_restart_and_answer_once(rig: Rig) -> None:
    rig.settings = msgspec.structs.replace(
        rig.settings, sending=config.Sending(rate_per_s=1_000.0, retry_first_s=0.05, retry_max_s=0.2, outbox_max=1)
    )
    peers = [f"peer-{number}" for number in range(4)]
    await begin(rig, *peers)
    assert rig.daemon is not None
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.STATUS, status=503, route="send", times=None, for_s=60.0))
    for peer in peers:
        rig.hub.post(peer, "agent", "hello")
    await rig.until(lambda: len(rig.daemon._dispatcher._engine.room) == 3)
    await rig.stop()
    rig.hub.faults.replace()
    await rig.start()
    await rig.until(lambda: len(said(rig)) >= len(peers))
    await rig.until(lambda: rig.status()[0]["pending"] == rig.status()[0]["outbox_ready"] == 0)
    assert sorted(row.reply_to for row in said(rig)) == sorted(
        row.id for row in rig.hub.ledger() if row.sender in peers
    )


async def test_a_handler_sees_the_backlog_of_whom_it_answers(make_rig: Callable[..., Any]) -> None:
    async with make_rig(backlog_soft=1) as rig:
        file = rig.folder / "teller.py"
        file.write_text(TELLS_BACKLOG)
        rig.plugin = {"use": str(file)}
        await begin(rig, "peer")
        for count in (1, 2):
            rig.hub.post("peer", "agent", "well?")
            await rig.until(lambda count=count: rig.status()[0]["outbox_sent"] == count)
        await rig._journal.commit()
        (first,) = await rig.daemon.operations.outbox("agent", ["sent"], 1)
        assert first["content"]["text"] == "backlog 1"
        assert first["expires_at"] is not None
        assert rig.daemon._supervisors["agent"].sender.peer_backlog("@peer") == 2


@pytest.mark.parametrize("first", ["retry", "drop"])
async def test_two_who_decide_on_one_send_at_the_same_moment_are_not_both_told_that_it_is_done(
    rig: Rig, first: str
) -> None:
    await begin(rig)
    await say(rig, "@nobody-of-this-name", "x")
    await rig.until(lambda: rig.status()[0]["outbox_refused"] == 1)
    assert rig.daemon is not None
    decisions = {"retry": rig.daemon.operations.outbox_retry, "drop": rig.daemon.operations.outbox_drop}
    order = [decisions[first], *(each for name, each in decisions.items() if name != first)]
    rig.hub.create_agent("nobody-of-this-name")
    await asyncio.gather(*(each(None, "x") for each in order), return_exceptions=True)
    await rig.until(lambda: rig.status()[0]["outbox_ready"] == 0)
    sender = rig.daemon._supervisors["agent"].sender
    assert sender is not None
    assert {state: count for state, count in sender.counts.items() if count} == {await state_of(rig, "x"): 1}
