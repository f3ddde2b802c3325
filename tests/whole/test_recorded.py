"""What is recorded is taken along whole, and explained as it was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from agentd.control.refusal import ControlError
from agentd.core import exported
from agentd.core.events import Content, Event
from agentd.plugin import Context, Message, Plugin
from agentd.testing import Harness

if TYPE_CHECKING:
    from tests.whole.conftest import Rig

CHOOSY = """
from agentd.plugin import Context, GiveUp, Message, Plugin, RetryLater

plugin = Plugin("choosy")


def even(message: Message) -> bool:
    return int(message.text.split()[1]) % 2 == 0


@plugin.on(Message, text="^number", where=even)
async def number(message: Message, ctx: Context) -> None: ...


@plugin.on(Message, text="^(poison|later)$", sender={"@peer", "admin-*"})
async def refuse(message: Message, ctx: Context) -> None:
    if message.text == "poison":
        raise GiveUp("not to my taste")
    raise RetryLater(600.0, "after lunch")
"""


def use_choosy(rig: Rig, **settings: Any) -> None:
    (rig.folder / "choosy.py").write_text(CHOOSY)
    rig.plugin = {"use": str(rig.folder / "choosy.py"), **settings}


async def lines(pages: AsyncIterator[bytes]) -> list[bytes]:
    return b"".join([page async for page in pages]).splitlines()


async def export(rig: Rig, *asked: Any) -> tuple[list[exported.Exported], dict[str, Any]]:
    """The events of an export, and what its last line says."""
    assert rig.daemon is not None
    _, *events, last = await lines(await rig.daemon.operations.export(*asked))
    return list(exported.read(events)), json.loads(last)


async def explain(rig: Rig, event: str, identity: str | None = None) -> dict[str, Any]:
    assert rig.daemon is not None
    (found,) = (await rig.daemon.operations.explain(event, identity, None))["events"]
    (lane,) = found["plugins"]
    return {**lane, "event": found["event"]}


async def until_fate(rig: Rig, event: str, state: str) -> dict[str, Any]:
    """Its explanation, once this has become of it: a cursor may reach the disk a moment after the handler's end."""
    async with asyncio.timeout(20.0):
        while (lane := await explain(rig, event))["fate"]["state"] != state:
            await asyncio.sleep(0.01)
    return lane


async def refusal(rig: Rig, operation: str, *asked: Any) -> ControlError:
    assert rig.daemon is not None
    with pytest.raises(ControlError) as told:
        await getattr(rig.daemon.operations, operation)(*asked)
    return told.value


def is_answered(rig: Rig, conversation: str, count: int) -> bool:
    return sum(row.sender == "agent" for row in rig.hub.ledger(conversation)) == count


async def test_a_conversation_of_many_pages_is_exported_and_happens_again_in_a_test(rig: Rig) -> None:
    rig.identity("agent")
    for peer in ("peer", "other"):
        rig.hub.create_agent(peer)
    await rig.start()
    rig.hub.post("peer", "agent", *(f"n{number}" for number in range(250)))
    rig.hub.post("other", "agent", "beside")
    conversation = rig.hub.conversation("peer", "agent")
    await rig.until(lambda: is_answered(rig, conversation, 250) and rig.status()[0]["journaled"] == 502)
    told, last = await export(rig, None, conversation, None)
    assert last == {"exported": 500, "unreadable": 0}
    assert [each.event.seq for each in told] == list(range(1, 501))
    assert {each.event.conversation for each in told} == {conversation}
    assert json.loads(told[0].event.payload)["content"]["text"] == "n0"

    seen: list[Event] = []
    plugin = Plugin("seer")

    @plugin.on(Message)
    async def see(message: Message, ctx: Context) -> None:
        seen.append(message)

    assert rig.daemon is not None
    _, *text, _ = await lines(await rig.daemon.operations.export(None, conversation, None))
    async with Harness(plugin, identity="agent") as h:
        await h.replay(text)
    recorded = [row.record(rig.daemon._revive(row)) for row in await rig._journal.read_log("agent", 0, 1_000)]
    asked = [each.event for each in recorded if each.event.conversation == conversation and not each.event.own]
    assert [msgspec.structs.replace(each, payload=b"") for each in seen] == [
        msgspec.structs.replace(each, payload=b"") for each in asked
    ]
    assert [json.loads(each.payload) for each in seen] == [json.loads(each.payload) for each in asked]


async def test_an_export_is_of_everything_of_an_identity_or_from_a_moment_on(rig: Rig) -> None:
    for name in ("alice", "work"):
        rig.identity(name)
    rig.hub.create_agent("peer")
    await rig.start()
    rig.hub.post("peer", "alice", "one")
    await rig.until(lambda: rig.status()[0]["journaled"] == 2)
    rig.hub.post("peer", "work", "two")
    await rig.until(lambda: rig.status()[1]["journaled"] == 2)
    everything, last = await export(rig, None, None, None)
    assert last == {"exported": 4, "unreadable": 0}
    assert [each.event.identity for each in everything] == ["alice", "alice", "work", "work"]
    assert [each.event.identity for each in (await export(rig, "work", None, None))[0]] == ["work", "work"]
    moment = everything[2].received_at
    assert (await export(rig, None, None, moment))[0] == [each for each in everything if each.received_at >= moment]
    assert (await export(rig, None, None, moment + 3_600))[1] == {"exported": 0, "unreadable": 0}


async def test_conversations_are_told_newest_first_by_how_they_begin(rig: Rig) -> None:
    rig.identity("agent")
    for peer in ("first", "second"):
        rig.hub.create_agent(peer)
    await rig.start()
    for peer in ("first", "second", "first"):
        before = rig.status()[0]["journaled"]
        rig.hub.post(peer, "agent", "hello")
        await rig.until(lambda before=before: rig.status()[0]["journaled"] == before + 2)
    assert rig.daemon is not None
    told = await rig.daemon.operations.conversations("agent", "conv_", 10)
    ids = [rig.hub.conversation(peer, "agent") for peer in ("first", "second")]
    assert told == [{"identity": "agent", "conversation": each} for each in ids]
    assert await rig.daemon.operations.conversations(None, ids[1], 10) == told[1:]
    assert await rig.daemon.operations.conversations(None, "", 1) == told[:1]


async def test_a_conversation_that_is_unknown_or_in_two_identities_is_refused_with_the_remedy(rig: Rig) -> None:
    for name in ("alice", "work"):
        rig.identity(name)
    use_choosy(rig)  # which never answers: two that do would not stop
    await rig.start()
    assert rig.daemon is not None
    await rig.daemon.operations.send("alice", "@work", Content(text="hello"), 0.0, None)
    await rig.until(lambda: all(each["journaled"] == 1 for each in rig.status()))
    conversation = rig.hub.conversation("alice", "work")
    both = await refusal(rig, "export", None, conversation, None)
    assert (both.code, both.remedy) == ("WHICH_IDENTITY", "name one with --as: alice, work")
    assert (await export(rig, "work", conversation, None))[0][0].event.identity == "work"
    assert (await refusal(rig, "export", None, "conv_nowhere", None)).code == "UNKNOWN_CONVERSATION"
    # One message, two identities: each has its own side of it.
    id_ = rig.hub.ledger(conversation)[0].id
    found = (await rig.daemon.operations.explain(id_, None, None))["events"]
    assert {(each["event"]["identity"], each["event"]["own"]) for each in found} == {("alice", True), ("work", False)}
    assert (await explain(rig, id_, "work"))["event"]["identity"] == "work"


async def test_events_of_an_identity_that_is_gone_are_counted_and_hold_up_nobody(rig: Rig) -> None:
    for name in ("gone", "stays"):
        rig.identity(name)
    rig.hub.create_agent("peer")
    await rig.start()
    rig.hub.post("peer", "gone", "one")
    await rig.until(lambda: rig.status()[0]["journaled"] == 2)
    rig.hub.post("peer", "stays", "two")
    await rig.until(lambda: rig.status()[1]["journaled"] == 2)
    (first, *_), _ = await export(rig, "gone", None, None)
    await rig.stop()
    del rig.keys["gone"]
    await rig.start()
    told, last = await export(rig, None, None, None)
    assert ([each.event.identity for each in told], last["unreadable"]) == (["stays", "stays"], 2)
    assert rig.daemon is not None
    tail = rig.daemon.operations.tail(None, 0)
    assert [(await anext(tail))["identity"] for _ in range(2)] == ["stays", "stays"]
    await tail.aclose()
    unreadable = await refusal(rig, "explain", first.event.id, None, None)
    assert (unreadable.status, unreadable.code) == (409, "UNREADABLE_EVENT")
    assert "configuration" in unreadable.remedy


# explain


async def choosy(rig: Rig, *texts: str, **settings: Any) -> list[str]:
    """A plugin with filters, and what came to it. Returns the ids."""
    use_choosy(rig, **settings)
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()
    rig.hub.post("peer", "agent", *texts)
    await rig.until(lambda: rig.status()[0]["journaled"] == len(texts))
    return [row.id for row in rig.hub.ledger(rig.hub.conversation("peer", "agent"))]


def filters(lane: dict[str, Any], handler: str) -> dict[str, tuple[Any, ...]]:
    (found,) = [each for each in lane["handlers"] if each["name"] == handler]
    assert found["place"].split(":")[0].endswith("choosy.py")
    return {each["name"]: (each["wanted"], each["had"], each["passed"], each["error"]) for each in found["filters"]}


async def test_an_event_is_explained_filter_by_filter_and_with_what_became_of_it(rig: Rig) -> None:
    even, odd, poison, other = await choosy(rig, "number 2", "number 3", "poison", "other")
    lane = await until_fate(rig, even, "handled")
    assert (lane["plugin"], lane["breaker"]) == ("plugin", "closed")
    assert lane["event"]["seq"] == 1
    assert [each["matches"] for each in lane["handlers"]] == [True, False]
    assert filters(lane, "number") == {
        "text": ("^number", "number 2", True, None),
        "where": ("even", None, True, None),
    }
    assert filters(lane, "refuse") == {
        "text": ("^(poison|later)$", "number 2", False, None),
        "sender": (["@peer", "admin-*"], "peer", True, None),
    }
    lane = await until_fate(rig, odd, "passed_over")
    assert filters(lane, "number")["where"][2] is False
    lane = await until_fate(rig, other, "passed_over")
    assert filters(lane, "number")["where"] == ("even", None, None, None)
    lane = await until_fate(rig, poison, "dead")
    fate = lane["fate"]
    assert rig.daemon is not None
    (letter,) = await rig.daemon.operations.dead("agent", False, 9)
    assert (fate["state"], fate["letter"], fate["attempts"]) == ("dead", letter["number"], 1)
    assert "not to my taste" in fate["error"]
    by_position = await explain(rig, str(lane["event"]["position"]))
    assert by_position == lane


async def test_a_failing_event_tells_when_it_is_tried_again_and_the_next_one_waits_behind_it(rig: Rig) -> None:
    later, after = await choosy(rig, "later", "number 4")

    lane = await until_fate(rig, later, "failing")
    fate, event = lane["fate"], lane["event"]
    assert (fate["attempts"], "after lunch" in fate["error"]) == (1, True)
    assert fate["not_before"] > event["received_at"]
    waiting = (await explain(rig, after))["fate"]
    assert (waiting["state"], waiting["behind"]) == ("waiting", event["position"])


async def test_a_lane_that_is_held_behind_a_dead_letter_is_told_so(rig: Rig) -> None:
    poison, after = await choosy(rig, "poison", "number 4", on_dead="hold")
    await until_fate(rig, poison, "held")
    assert (await explain(rig, after))["fate"]["state"] == "waiting"


async def test_a_filter_that_raises_is_told_with_its_error(rig: Rig) -> None:
    (broken,) = await choosy(rig, "number one", attempts=1)
    lane = await until_fate(rig, broken, "dead")
    assert lane["handlers"][0]["matches"] is None
    _, _, passed, error = filters(lane, "number")["where"]
    assert (passed, error) == (None, "ValueError: invalid literal for int() with base 10: 'one'")


async def test_what_was_recorded_before_the_plugin_served_was_never_offered(rig: Rig) -> None:
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()
    rig.hub.post("peer", "agent", "early")
    await rig.until(lambda: rig.status()[0]["journaled"] == 2)
    await rig.stop()
    rig.plugin_name = "newcomer"
    await rig.start()
    rig.hub.post("peer", "agent", "fresh")
    await rig.until_handled(2)
    early, fresh = await explain(rig, "1"), await explain(rig, "3")
    assert (early["event"]["text"], early["plugin"]) == ("early", "newcomer")
    assert [each["matches"] for each in early["handlers"]] == [True], "it would have wanted it"
    assert (early["fate"]["state"], fresh["event"]["text"]) == ("never_offered", "fresh")
    await until_fate(rig, "3", "handled")


async def test_an_event_or_a_plugin_that_there_is_not_is_refused_with_the_remedy(rig: Rig) -> None:
    (id_,) = await choosy(rig, "number 2")
    for event in ("msg_nowhere", "99", "0", "9" * 30):
        unknown = await refusal(rig, "explain", event, None, None)
        assert (unknown.status, unknown.code) == (404, "UNKNOWN_EVENT")
        assert "agentd tail --json" in unknown.remedy
    unknown = await refusal(rig, "explain", id_, None, "chosy")
    assert (unknown.status, unknown.code, unknown.remedy) == (404, "UNKNOWN_PLUGIN", "there are: plugin")
