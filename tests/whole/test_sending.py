"""The way out against a hub that warns, refuses, fails and hangs up: every answer arrives once, in order."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from agentd import config
from agentd.core.events import Content
from agentd.hub.faults import Action, FaultPlan, Point, Rule
from agentd.transport.rest import Rest
from agentd.wire.agentchat import AgentChat

if TYPE_CHECKING:
    from agentd.hub.mailbox import LedgerRow
    from tests.whole.conftest import Rig

TEXTS = [f"message {number}" for number in range(12)]


async def begin(rig: Rig, *peers: str) -> dict[str, str]:
    """An identity that answers everything, and peers without a connection. Returns the peers' keys."""
    rig.identity("agent")
    keys = {peer: rig.hub.create_agent(peer) for peer in peers}
    await rig.start()
    return keys


def said(rig: Rig, target: str) -> list[LedgerRow]:
    """What the identity has said in a conversation, in order."""
    conversation = target if target.startswith("grp_") else rig.hub.conversation("agent", target)
    return [row for row in rig.hub.ledger(conversation) if row.sender == "agent"]


async def until_answered(rig: Rig, peer: str, asked: list[str], timeout_s: float = 20.0) -> None:
    """Wait for an answer to each of these messages; then there is one to each, in their order."""
    await rig.until(lambda: len(said(rig, peer)) >= len(asked), timeout_s)
    await rig.until(lambda: outbox(rig) == (0, 0))
    assert [row.reply_to for row in said(rig, peer)] == asked


def outbox(rig: Rig) -> tuple[int, int]:
    status = rig.status()[0]
    return status["outbox_ready"], status["outbox_unknown"]


async def read_all(rig: Rig, peer: str, key: str) -> int:
    """Let the peer fetch and acknowledge what waits for it. Returns how much that was."""
    platform = AgentChat(peer, rig.hub.url, lambda: key, peer, version="0")
    read = 0
    async with Rest(rig.hub.url, lambda: key, config.Rest()) as rest:
        while True:
            page = platform.read_drain(await rest.perform(platform.drain_request(None)))
            if page.cursor is None:
                return read
            read += page.count
            await rest.perform(platform.drain_ack_request(page.cursor))


def ids(stored: list[Any]) -> list[str]:
    return [each.id for each in stored]


async def test_a_backlog_warning_slows_the_answers_to_its_recipient_and_no_others(
    make_rig: Callable[..., Any],
) -> None:
    async with make_rig(backlog_soft=3) as rig:
        await begin(rig, "busy", "idle")
        asked = ids(rig.hub.post("busy", "agent", *TEXTS[:5]))
        await until_answered(rig, "busy", asked)
        at = [datetime.fromisoformat(row.created_at).timestamp() for row in said(rig, "busy")]
        # The third answer is the first that was warned about: 5 a second from then on, then 2.5.
        assert at[3] - at[2] >= 0.19
        assert at[4] - at[3] >= 0.39
        pacing = rig.daemon._supervisors["agent"]._life.sender.pacing
        assert pacing.backlog_of("@busy") == 5
        assert pacing.rate_of("@idle") is None
        await until_answered(rig, "idle", ids(rig.hub.post("idle", "agent", *TEXTS[:2])))
        assert pacing.rate_of("@idle") is None


async def test_answers_to_a_backlogged_recipient_wait_until_it_has_read_and_then_all_arrive_once(
    make_rig: Callable[..., Any],
) -> None:
    async with make_rig(backlog_soft=0, backlog_hard=5) as rig:
        keys = await begin(rig, "asleep", "awake")
        asked = ids(rig.hub.post("asleep", "agent", *TEXTS))
        await rig.until(lambda: outbox(rig)[0] == len(TEXTS) - 5)
        assert len(said(rig, "asleep")) == 5
        await until_others_answered(rig, "awake")
        await rig.until(lambda: outbox(rig)[0] == len(TEXTS) - 5)  # the refusals have used up nothing
        while len(said(rig, "asleep")) < len(asked):
            before = len(said(rig, "asleep"))
            assert await read_all(rig, "asleep", keys["asleep"]) > 0
            await rig.until(lambda before=before: len(said(rig, "asleep")) >= min(before + 5, len(asked)))
        await until_answered(rig, "asleep", asked)
        assert rig.status()[0]["outbox_refused"] == 0
        await rig.assert_accounted()


async def until_others_answered(rig: Rig, peer: str) -> None:
    """This peer is answered, whatever goes on elsewhere."""
    asked = ids(rig.hub.post(peer, "agent", *TEXTS[:3]))
    await rig.until(lambda: [row.reply_to for row in said(rig, peer)] == asked)


async def test_an_answer_that_was_accepted_but_cut_off_is_said_once(rig: Rig) -> None:
    await begin(rig, "peer")
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.DISCONNECT_AFTER, route="send", times=6))
    asked = ids(rig.hub.post("peer", "agent", *TEXTS))
    await until_answered(rig, "peer", asked)
    assert rig.hub.counters()["faults.rest.disconnect_after"] == 6
    assert rig.hub.counters()["rest.send"] == len(TEXTS) + 6
    await rig.assert_accounted()


async def test_an_answer_whose_request_was_lost_on_the_way_is_said_once(rig: Rig) -> None:
    await begin(rig, "peer")
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.DISCONNECT, route="send", times=6))
    await until_answered(rig, "peer", ids(rig.hub.post("peer", "agent", *TEXTS)))
    await rig.assert_accounted()


async def test_an_answer_in_a_group_goes_to_the_group_once(rig: Rig) -> None:
    await begin(rig, "peer", "third")
    group = rig.hub.create_group("peer", "friends", ["agent", "third"])
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.DISCONNECT_AFTER, route="send", times=2))
    await until_answered(rig, group, ids(rig.hub.post("peer", group, *TEXTS[:4])))
    await rig.assert_accounted()


async def test_storms_of_server_errors_are_outlived(rig: Rig) -> None:
    await begin(rig, "one", "other")
    storm = Rule(point=Point.REST, action=Action.STATUS, status=503, route="send", times=None, for_s=0.5)
    rig.hub.faults.replace(FaultPlan(seed=5, rest_5xx=0.3, rest_disconnect_after=0.1), [storm])
    asked = {peer: ids(rig.hub.post(peer, "agent", *TEXTS)) for peer in ("one", "other")}
    for peer, messages in asked.items():
        await until_answered(rig, peer, messages)
    rig.hub.faults.replace(FaultPlan())
    assert rig.hub.counters()["faults.rest.status"] > 4
    assert rig.status()[0]["outbox_refused"] == 0
    await rig.assert_accounted()


async def test_a_rate_limit_is_waited_out_as_long_as_the_server_asks(rig: Rig) -> None:
    await begin(rig, "peer")
    limited = Rule(point=Point.REST, action=Action.STATUS, status=429, retry_after_s=1.0, route="send")
    rig.hub.faults.add(limited)
    await until_answered(rig, "peer", ids(rig.hub.post("peer", "agent", *TEXTS)))
    assert rig.hub.counters()["rest.send"] == len(TEXTS) + 1, "nothing was tried before the time was over"


async def test_a_refused_answer_is_kept_with_the_reason_and_holds_up_nothing(rig: Rig) -> None:
    await begin(rig, "peer")
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.STATUS, status=403, route="send"))
    asked = ids(rig.hub.post("peer", "agent", *TEXTS[:3]))
    await until_answered(rig, "peer", asked[1:])
    assert rig.status()[0]["outbox_refused"] == 1


async def start_a_cold_talk(rig: Rig) -> list[str]:
    """Three messages to a stranger, of which the platform takes one. Returns their keys."""
    await begin(rig, "stranger", "friend")
    keys = [f"key-{number}" for number in range(3)]
    for key in keys:
        await rig.daemon.operations.send("agent", "@stranger", Content(text=key), 0.0, key)
    await rig.until(lambda: rig.hub.counters().get("rest.send", 0) == 2)
    assert [row.client_msg_id for row in said(rig, "stranger")] == keys[:1]
    await until_others_answered(rig, "friend")
    assert len(said(rig, "stranger")) == 1, "it waits for the reply, not for a clock"
    return keys


async def test_messages_to_a_stranger_wait_for_its_reply_and_leave_as_soon_as_it_comes(
    make_rig: Callable[..., Any],
) -> None:
    async with make_rig(cold_rule=True) as rig:
        keys = await start_a_cold_talk(rig)
        answered = rig.hub.post("stranger", "agent", "who is there?")[0]
        await rig.until(lambda: len(said(rig, "stranger")) == 4)
        assert [row.client_msg_id for row in said(rig, "stranger")][:3] == keys
        assert said(rig, "stranger")[3].reply_to == answered.id
        await rig.assert_accounted()


async def test_a_strangers_reply_that_came_while_the_daemon_was_away_frees_what_waited_for_it(
    make_rig: Callable[..., Any],
) -> None:
    async with make_rig(cold_rule=True) as rig:
        keys = await start_a_cold_talk(rig)
        await rig.stop()
        rig.hub.post("stranger", "agent", "who is there?")
        await rig.start()
        await rig.until(lambda: len(said(rig, "stranger")) == 4)
        assert [row.client_msg_id for row in said(rig, "stranger")][:3] == keys
        await rig.assert_accounted()


async def test_an_answer_that_was_under_way_when_the_daemon_stopped_is_said_once_after_its_return(rig: Rig) -> None:
    await begin(rig, "peer")
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.HANG, route="send"))
    asked = ids(rig.hub.post("peer", "agent", *TEXTS))
    await rig.until(lambda: rig.hub.counters().get("faults.rest.hang", 0) == 1)
    await rig.until(lambda: outbox(rig)[0] == len(TEXTS))
    await rig.stop()
    await rig.start()
    await until_answered(rig, "peer", asked)
    await rig.assert_accounted()


async def test_status_counts_what_waits_in_the_outbox_while_the_server_cannot_be_reached(rig: Rig) -> None:
    await begin(rig, "peer")
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.STATUS, status=503, route="send", times=None))
    asked = ids(rig.hub.post("peer", "agent", *TEXTS))
    await rig.until(lambda: outbox(rig)[0] == len(TEXTS))
    await rig.stop()
    rig.hub.faults.replace(None, [Rule(point=Point.REST, action=Action.STATUS, status=503, times=None)])
    await rig.start(live=False)
    await rig.until(lambda: rig.hub.counters().get("rest.me", 0) > 1)
    assert outbox(rig) == (len(TEXTS), 0)
    rig.hub.faults.replace()
    await until_answered(rig, "peer", asked)


@pytest.mark.parametrize("capability", [True, False], ids=["with acks", "without acks"])
async def test_a_talk_back_and_forth_in_many_conversations_loses_and_doubles_nothing(
    make_rig: Callable[..., Any], capability: bool
) -> None:
    async with make_rig(ack_capability=capability) as rig:
        peers = [f"peer-{number}" for number in range(10)]
        await begin(rig, *peers)
        rig.hub.faults.replace(FaultPlan(seed=8, rest_disconnect_after=0.1, rest_disconnect=0.1, rest_5xx=0.1))
        asked: dict[str, list[str]] = {peer: [] for peer in peers}
        for text in TEXTS:
            for peer in peers:
                asked[peer] += ids(rig.hub.post(peer, "agent", text))
        for peer in peers:
            await until_answered(rig, peer, asked[peer])
        rig.hub.faults.replace()
        await rig.assert_accounted()


async def test_a_direct_conversation_named_by_its_id_shares_the_order_of_its_handle_also_after_a_restart(
    rig: Rig,
) -> None:
    await begin(rig, "peer")
    await until_answered(rig, "peer", ids(rig.hub.post("peer", "agent", "hello")))
    conversation = rig.hub.conversation("agent", "peer")
    await rig.stop()
    daemon = await rig.start()
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.STATUS, status=503, route="send", times=3))
    expected = []
    for number in range(3):
        for target in ("@peer", conversation):
            expected.append(f"{target} {number}")
            await daemon.operations.send("agent", target, Content(text=expected[-1]), 0.0, expected[-1])
    await rig.until(lambda: rig.status()[0]["outbox_sent"] == 7)
    assert [row.client_msg_id for row in said(rig, "peer")][1:] == expected


_SHOUTER = """
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("shouter")


@plugin.on(Message)
async def shout(message: Message, ctx: Context) -> None:
    for target in ("@Friend", "@friend", "@FRIEND"):
        ctx.send(target, f"to {target}")
"""


async def test_a_handle_in_any_case_is_one_target_with_one_order(rig: Rig) -> None:
    (rig.folder / "shouter.py").write_text(_SHOUTER)
    rig.plugin = {"use": str(rig.folder / "shouter.py")}
    await begin(rig, "peer", "friend")
    # Whoever is another target would overtake the first, which is held up.
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.DELAY, route="send", delay_s=0.5, nth=1))
    rig.hub.post("peer", "agent", "say it")
    await rig.until(lambda: len(said(rig, "friend")) == 3)
    assert [rig.hub.content(row).text for row in said(rig, "friend")] == ["to @Friend", "to @friend", "to @FRIEND"]
