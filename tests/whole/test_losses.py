"""What a hub can lose, cut, repeat and renumber; each case ends with every seq accounted for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
import pytest

from agentd.core.reconnect import CloseMeaning
from agentd.core.sequencer import Refetch
from agentd.hub.faults import Action, FaultPlan, Point, Rule

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tests.whole.conftest import Rig


def texts(count: int) -> list[str]:
    return [f"message {number}" for number in range(count)]


async def begin(rig: Rig) -> str:
    """An identity that is live, and a peer that has said one thing to it. Returns the conversation."""
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()
    rig.hub.post("peer", "agent", "first")
    await rig.until_handled(1)
    await rig.until(lambda: rig.status()[0]["journaled"] == 2)  # the answer has taken its seq
    return rig.hub.conversation("peer", "agent")


def lose(rig: Rig, start: int, stop: int, times: int | None = None) -> None:
    rig.hub.faults.add(
        Rule(point=Point.PUSH, action=Action.DROP, identity="agent", seqs=(start, stop), times=times or stop - start)
    )


async def test_a_seq_lost_after_an_in_order_message_is_fetched_before_the_next_is_handled(rig: Rig) -> None:
    await begin(rig)
    lose(rig, 3, 4)
    rig.hub.post("peer", "agent", "lost", "after")
    await rig.until_handled(3)
    await rig.assert_accounted()
    assert rig.status()[0]["gaps_found"] == 1
    assert rig.status()[0]["seqs_refetched"] == 1


async def test_a_thousand_seqs_lost_in_a_row_are_fetched_page_by_page(rig: Rig) -> None:
    await begin(rig)
    lose(rig, 3, 1003)
    await rig.hub.post_many("peer", "agent", texts(1_000))
    rig.hub.post("peer", "agent", "after")
    await rig.until_handled(1_002, timeout_s=40)
    await rig.assert_accounted()
    assert rig.status()[0]["seqs_refetched"] == 1_000


async def test_the_very_last_message_being_lost_is_found_without_another_one(rig: Rig) -> None:
    rig.audit_interval_s = 0.5
    await begin(rig)
    lose(rig, 3, 4)
    rig.hub.post("peer", "agent", "the last words")
    await rig.until_handled(2)
    await rig.assert_accounted()


async def test_a_socket_cut_between_two_messages_loses_neither(rig: Rig) -> None:
    conversation = await begin(rig)
    rig.hub.faults.add(
        Rule(point=Point.PUSH, action=Action.CUT_MID_FRAME, identity="agent", conversation=conversation, seqs=(4, 5))
    )
    rig.hub.post("peer", "agent", "three", "four", "five")
    await rig.until_handled(4)
    await rig.assert_accounted()
    assert rig.status()[0]["reconnects"] >= 1


async def test_a_conversation_that_is_numbered_anew_is_replayed_in_a_new_epoch(rig: Rig) -> None:
    conversation = await begin(rig)
    rig.hub.post("peer", "agent", "second", "third")
    await rig.until_handled(3)
    rig.hub.reset_conversation(conversation)
    rig.hub.post("peer", "agent", "a new first", "a new second")
    await rig.until_handled(5)
    await rig.assert_accounted()
    assert [entry.epoch for entry in rig.handled()] == [1, 1, 1, 2, 2]
    assert rig.status()[0]["resets"] == 1


async def test_a_reset_while_the_daemon_was_away_is_noticed_after_its_return(rig: Rig) -> None:
    rig.audit_interval_s = 0.5
    conversation = await begin(rig)
    rig.hub.post("peer", "agent", "second", "third")
    await rig.until_handled(3)
    await rig.until(lambda: rig.status()[0]["outbox_ready"] == 0)
    await rig.stop()
    rig.hub.reset_conversation(conversation)
    await rig.hub.post_many("peer", "agent", texts(20))
    await rig.start()
    await rig.until_handled(23)
    await rig.assert_accounted()


async def test_a_refetch_answered_with_500_for_long_is_repeated_until_it_succeeds(rig: Rig) -> None:
    long_s = 6.0  # several times the longest wait here, `refetch_retry_max_s`, as minutes are with the defaults
    conversation = await begin(rig)
    other = rig.hub.create_agent("other")
    assert other
    lose(rig, 3, 4)
    rig.hub.faults.add(
        Rule(point=Point.REST, action=Action.STATUS, status=500, route="history", times=None, for_s=long_s),
        Rule(point=Point.REST, action=Action.STATUS, status=500, route="sync", times=None, for_s=long_s),
    )
    rig.hub.post("peer", "agent", "lost", "held")
    rig.hub.post("other", "agent", "not held up")
    await rig.until(lambda: len(rig.handled()) == 2)
    assert rig.seqs(conversation) == [1], "what follows the hole waits for it"
    await rig.until_handled(4)
    await rig.assert_accounted()
    once = 1 + rig.settings.rest.retries
    assert rig.hub.counters()["faults.rest.status"] > 2 * once, "more than one request and its own repeats"


async def test_everything_at_once_ends_with_every_seq_accounted_for(rig: Rig) -> None:
    rig.audit_interval_s = 0.5
    rig.identity("agent")
    peers = [f"peer-{number}" for number in range(8)]
    for peer in peers:
        rig.hub.create_agent(peer)
    await rig.start()
    rig.hub.faults.replace(
        FaultPlan(
            seed=7,
            push_drop=0.05,
            push_duplicate=0.05,
            push_reorder=0.05,
            push_delay=0.05,
            push_cut=0.01,
            push_cut_mid_frame=0.01,
            rest_5xx=0.05,
            rest_disconnect=0.02,
            rest_disconnect_after=0.02,
        )
    )
    for number in range(50):
        for peer in peers:
            rig.hub.post(peer, "agent", f"message {number}")
        await asyncio.sleep(0.005)
    await rig.until(lambda: len({entry.id for entry in rig.handled()}) == 400, timeout_s=60)
    rig.hub.faults.replace(FaultPlan())
    await rig.until(lambda: rig.status()[0]["outbox_ready"] + rig.status()[0]["outbox_unknown"] == 0)
    await rig.assert_accounted()
    replies = [row.reply_to for row in rig.hub.ledger() if row.sender == "agent"]
    assert len(replies) == len(set(replies)) == 400


async def test_a_backlog_from_before_the_start_is_drained_in_order_and_acknowledged(rig: Rig) -> None:
    rig.identity("agent")
    for number in range(5):
        rig.hub.create_agent(f"peer-{number}")
        await rig.hub.post_many(f"peer-{number}", "agent", texts(300))
    await rig.start()
    await rig.until_handled(1_500, timeout_s=40)
    await rig.assert_accounted()
    await rig.until(lambda: rig.hub.undelivered("agent") == 0)


async def test_mail_that_came_while_the_daemon_was_stopped_is_handled_once_after_it_returns(rig: Rig) -> None:
    await begin(rig)
    await rig.stop()
    await rig.hub.post_many("peer", "agent", texts(250))
    await rig.start()
    await rig.until_handled(251)
    await rig.assert_accounted()


async def test_a_server_without_acks_is_served_in_order_too(make_rig: Callable[..., Any]) -> None:
    async with make_rig(ack_capability=False) as rig:
        await begin(rig)
        lose(rig, 4, 5)
        rig.hub.post("peer", "agent", "three", "four, lost", "five")
        await rig.until_handled(4)
        await rig.assert_accounted()


async def test_a_connection_that_hears_nothing_is_called_deaf_and_loses_nothing(rig: Rig) -> None:
    rig.audit_interval_s = 0.5
    await begin(rig)
    rig.hub.afflict(Action.DEAF, "agent")
    rig.hub.post("peer", "agent", "nobody pushes this")
    await rig.until(lambda: any(change["state"] == "deaf" for change in rig.status()[0]["history"]))
    await rig.until_handled(2)
    await rig.assert_accounted()
    rig.hub.post("peer", "agent", "heard again")
    await rig.until(lambda: rig.states() == ["live"])


@pytest.mark.parametrize("mute", [{"target_kind": "agent"}, {"target_kind": "conversation"}])
async def test_muted_mail_which_no_server_pushes_is_handled_and_makes_no_connection_deaf(
    rig: Rig, mute: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.intake.audit._PUSH_GRACE_S", 0.1)
    rig.audit_interval_s = 0.5
    conversation = await begin(rig)
    target = {"target_handle": "peer"} if mute["target_kind"] == "agent" else {"target_id": conversation}
    as_owner = {"Authorization": f"Bearer {rig.keys['agent']}"}
    body = {**mute, **target, "muted_until": None}
    async with (
        aiohttp.ClientSession(headers=as_owner) as client,
        client.post(f"{rig.hub.url}/v1/mutes", json=body) as made,
    ):
        assert made.status == 201
    assert rig.daemon is not None
    life = rig.daemon._supervisors["agent"]._life
    assert life is not None

    def deaf() -> bool:
        return any(change["state"] == "deaf" for change in rig.status()[0]["history"])

    for count in (2, 3):
        rig.hub.post("peer", "agent", "nobody pushes this")
        await rig.until_handled(count)
        clean = life._clean_audits
        await rig.until(lambda clean=clean: deaf() or life._clean_audits > clean)
    assert not deaf()
    assert rig.status()[0]["reconnects"] == 0
    await rig.assert_accounted()


async def test_a_rotated_key_parks_the_identity_until_it_has_the_new_one(rig: Rig) -> None:
    await begin(rig)
    new_key = rig.hub.rotate_key("agent")
    await rig.until(lambda: rig.states() == ["parked"])
    rig.hub.post("peer", "agent", "said meanwhile")
    rig.keys["agent"] = new_key
    await rig.until(lambda: rig.states() == ["live"], timeout_s=20)
    await rig.until_handled(2)
    await rig.assert_accounted()


async def test_what_an_identity_has_still_to_ask_is_not_asked_under_a_refused_key(rig: Rig) -> None:
    conversation = await begin(rig)
    new_key = rig.hub.rotate_key("agent")
    await rig.until(lambda: rig.states() == ["parked"])
    calls = rest_calls(rig)
    assert rig.daemon is not None
    life = rig.daemon._supervisors["agent"]._life
    assert life is not None
    lines = life.intake.sequencer.lines
    life._questions.ask(Refetch(conversation, lines[conversation].epoch, 3, 4))
    await rig.until(lambda: lines[conversation].failures == 1)
    assert rest_calls(rig) == calls
    rig.keys["agent"] = new_key
    await rig.until(lambda: rig.states() == ["live"])
    await rig.assert_accounted()


def rest_calls(rig: Rig) -> int:
    return sum(count for name, count in rig.hub.counters().items() if name.startswith("rest."))


async def test_every_close_code_is_survived_and_loses_nothing(rig: Rig) -> None:
    await begin(rig)
    assert rig.daemon is not None
    platform = rig.daemon._identities.platforms["agent"]
    for number, code in enumerate((1000, 1001, 1011, 1013, 4409), start=1):
        assert platform.close_meaning(code, "") is CloseMeaning.AGAIN
        rig.hub.afflict(Action.CLOSE, "agent", code=code)
        rig.hub.post("peer", "agent", f"around close {code}")
        await rig.until_handled(1 + number)
        await rig.until(lambda: rig.states() == ["live"])
    await rig.assert_accounted()


async def test_a_malformed_sync_row_stops_the_drain_before_it_and_is_not_acknowledged(rig: Rig) -> None:
    rig.audit_interval_s = 0.5
    await begin(rig)
    await rig.stop()
    rig.hub.post("peer", "agent", "readable", "unreadable", "behind it")
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.MALFORMED_ROW, route="sync", row=1, times=2))
    rig.hub.faults.add(Rule(point=Point.DRAIN, action=Action.DROP, times=None, for_s=3.0))
    await rig.start(live=False)
    await rig.until(lambda: rig.status()[0].get("malformed", 0) > 0)
    await rig.until_handled(4)
    await rig.assert_accounted()
    await rig.until(lambda: rig.hub.undelivered("agent") == 0)


async def test_own_sends_leave_no_gap_in_a_talk_of_two(rig: Rig) -> None:
    conversation = await begin(rig)
    for number in range(20):
        rig.hub.post("peer", "agent", f"question {number}")
        await rig.until_handled(2 + number)
        await rig.until(lambda number=number: rig.status()[0]["outbox_sent"] == 2 + number)
    await rig.assert_accounted()
    assert rig.status()[0]["gaps_found"] == 0, "the answer to a send tells its seq; nothing has to be asked for"
    assert rig.seqs(conversation) == list(range(1, 42, 2))


async def test_words_that_the_identity_says_through_another_client_are_accounted_for_as_its_own(rig: Rig) -> None:
    await begin(rig)
    rig.hub.post("agent", "peer", "said by a human at another client")
    rig.hub.post("peer", "agent", "an answer to that")
    await rig.until_handled(2)
    await rig.assert_accounted()


async def test_a_message_that_its_reader_has_hidden_is_absent_and_said_to_be(rig: Rig) -> None:
    await begin(rig)
    lose(rig, 3, 4)
    (hidden,) = rig.hub.post("peer", "agent", "hidden before it was seen")
    as_owner = {"Authorization": f"Bearer {rig.keys['agent']}"}
    async with aiohttp.ClientSession(headers=as_owner) as other_client:
        answer = await other_client.delete(f"{rig.hub.url}/v1/messages/{hidden.id}")
        assert answer.status == 200
    rig.hub.post("peer", "agent", "after it")
    await rig.until_handled(2)
    await rig.until(lambda: rig.status()[0]["absent"] == 1)
    assert rig.daemon is not None
    (gap,) = await rig.daemon.operations.gaps("agent", open_only=False, limit=10)
    assert (gap["start"], gap["stop"], gap["outcome"], gap["reason"]) == (3, 4, "absent", "not in history")


async def test_a_row_that_nobody_can_read_does_not_hold_its_conversation_for_ever(rig: Rig) -> None:
    await begin(rig)
    lose(rig, 3, 4)
    # Row 0 is the one at the mark, which is asked for to see whether the numbering still is the one we know.
    rig.hub.faults.add(Rule(point=Point.REST, action=Action.MALFORMED_ROW, route="history", row=1, times=None))
    rig.hub.post("peer", "agent", "unreadable", "behind it")
    await rig.until_handled(2)
    await rig.until(lambda: rig.status()[0]["absent"] == 1)
    assert rig.daemon is not None
    (gap,) = await rig.daemon.operations.gaps("agent", open_only=False, limit=10)
    assert gap["reason"] == "unreadable"
    assert rig.status()[0]["malformed"] == 3
    assert rig.status()[0]["unknown_frames"] == 0
