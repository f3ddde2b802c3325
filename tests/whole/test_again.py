"""What went wrong, or was handled before, is handled again by command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from agentd import config
from agentd.control.refusal import ControlError

if TYPE_CHECKING:
    from tests.whole.conftest import Rig

MENDABLE = """
from pathlib import Path

from agentd.plugin import Context, GiveUp, Message, Plugin

plugin = Plugin("mendable")


@plugin.on(Message, text="^(say|poison)")
async def say(message: Message, ctx: Context) -> None:
    if message.text == "poison" and not (Path(__file__).parent / "mended").exists():
        raise GiveUp("not yet")
    count = await ctx.state.get("count", int, 0) + 1
    ctx.state.put("count", count)
    words = f"{message.text} {count}{' late' if message.late else ''}"
    with open(Path(__file__).parent / "said", "a") as said:
        print(words, file=said)
    ctx.reply(words)
    ctx.outcome("said", {"count": count})
"""


_TOGETHER = """
from pathlib import Path

from agentd.plugin import Context, GiveUp, Message, Plugin

plugin = Plugin("together")


@plugin.on(Message, batch=3, settle_s=10)
async def say(messages: tuple[Message, ...], ctx: Context) -> None:
    if not (Path(__file__).parent / "mended").exists():
        raise GiveUp("not yet")
    words = ", ".join(message.text for message in messages)
    with open(Path(__file__).parent / "said", "a") as said:
        print(words, file=said)
    ctx.reply(words)
"""


def use_mendable(rig: Rig, **settings: Any) -> None:
    (rig.folder / "mendable.py").write_text(MENDABLE)
    rig.plugin = {"use": str(rig.folder / "mendable.py"), **settings}


def mend(rig: Rig) -> None:
    (rig.folder / "mended").touch()


def said(rig: Rig) -> list[str]:
    """What the agent said, as far as it has arrived: once each."""
    file = rig.folder / "said"
    words = file.read_text().splitlines() if file.exists() else []
    return words[: sum(row.sender == "agent" for row in rig.hub.ledger())]


async def talk(rig: Rig, *texts: str, **settings: Any) -> None:
    """An agent, and what a peer says to it."""
    use_mendable(rig, **settings)
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()
    rig.hub.post("peer", "agent", *texts)


async def refused(operation: Awaitable[object]) -> ControlError:
    with pytest.raises(ControlError) as told:
        await operation
    return told.value


async def until_known(rig: Rig, handle: str) -> None:
    """A send has arrived there, and that is on disk."""
    async with asyncio.timeout(20.0):
        while await rig._journal.conversation_with("agent", handle) is None:
            await asyncio.sleep(0.01)


# dead letters


async def test_a_dead_letter_is_delivered_again_by_itself_while_its_conversation_has_gone_on(rig: Rig) -> None:
    await talk(rig, "poison", "say")
    await rig.until(lambda: said(rig) == ["say 1"] and rig.status()[0]["dead"] == 1)
    assert rig.daemon is not None
    operations = rig.daemon.operations
    (letter,) = await operations.dead(None, False, 9)
    assert (await operations.dead_show(letter["number"]))["held"] is False
    mend(rig)
    done = await operations.dead_replay(letter["number"])
    assert done["dropped_at"] is not None
    await rig.until(lambda: said(rig) == ["say 1", "poison 2 late"])
    assert await operations.dead(None, False, 9) == []
    assert rig.status()[0]["dead"] == 0


async def test_a_dead_letter_that_holds_its_conversation_is_tried_in_its_place(rig: Rig) -> None:
    await talk(rig, "poison", "say", on_dead="hold")
    assert rig.daemon is not None
    operations = rig.daemon.operations
    await rig.until(lambda: bool(operations.status()["plugins"][0]["held"]))
    await rig.until(lambda: rig.status()[0]["dead"] == 1)
    (letter,) = await operations.dead(None, False, 9)
    assert (await operations.dead_show(letter["number"]))["held"] is True
    mend(rig)
    await operations.dead_replay(letter["number"])
    await rig.until(lambda: said(rig) == ["poison 1", "say 2"])
    assert operations.status()["plugins"][0]["held"] == []


async def test_letters_of_one_turn_that_holds_its_conversation_are_tried_again_together_and_once(rig: Rig) -> None:
    (rig.folder / "together.py").write_text(_TOGETHER)
    rig.plugin = {"use": str(rig.folder / "together.py"), "on_dead": "hold"}
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()
    rig.hub.post("peer", "agent", "one", "two", "three")
    assert rig.daemon is not None
    operations = rig.daemon.operations
    await rig.until(lambda: rig.status()[0]["dead"] == 3)
    mend(rig)
    letters = await operations.dead(None, False, 9)
    for letter in letters:
        assert (await operations.dead_replay(letter["number"]))["dropped_at"] is not None
    assert await operations.dead(None, False, 9) == []
    rig.hub.post("peer", "agent", "four", "five", "six")
    await rig.until(lambda: said(rig) == ["one, two, three", "four, five, six"])
    assert operations.status()["plugins"][0]["timers"] == 0, "nor does one of them come by itself"


async def test_a_dead_letter_that_nobody_can_handle_any_more_is_refused_with_the_remedy(rig: Rig) -> None:
    await talk(rig, "poison")
    await rig.until(lambda: rig.status()[0]["dead"] == 1)
    await rig.stop()
    rig.plugin_name = "newcomer"
    daemon = await rig.start()
    (letter,) = await daemon.operations.dead(None, False, 9)
    gone = await refused(daemon.operations.dead_replay(letter["number"]))
    assert (gone.status, gone.code) == (409, "NOT_SERVED")
    assert "agentd dead drop" in gone.remedy
    assert (await refused(daemon.operations.dead_replay(999))).code == "UNKNOWN_LETTER"


# replays


async def lines(rig: Rig, step: str, *asked: Any) -> list[dict[str, Any]]:
    """What a step of a replay tells, but for how far it is: plugin, identity, conversation, from_seq, since."""
    assert rig.daemon is not None
    told = await rig.daemon.operations.replay(step, *asked, *[None] * (5 - len(asked)))
    return [line async for line in told if "read" not in line]


def counts(line: dict[str, Any]) -> tuple[int, int, int]:
    return line["events"], line["matches"], line["conversations"]


async def test_a_replay_is_counted_shown_and_done_and_sends_again_in_order(rig: Rig) -> None:
    await talk(rig, "say a", "not this", "say b")
    await rig.until(lambda: said(rig) == ["say a 1", "say b 2"] and rig.status()[0]["journaled"] == 5)
    assert counts((await lines(rig, "count", "plugin"))[-1]) == (5, 2, 1)
    first, shown, other, last = await lines(rig, "rehearse", "plugin")
    assert (first["events"], first["conversations"], first["waits"]) == (5, 1, [])
    assert [each["event"]["text"] for each in (shown, other)] == ["say a", "say b"]
    assert [send["content"]["text"] for send in shown["sends"]] == ["say a 3"], "what is stored now is what it reads"
    assert shown["state"] == [{"key": "count", "shared": False, "value": 3}]
    assert (shown["handlers"], shown["outcomes"]) == (["say"], [{"word": "said", "data": {"count": 3}}])
    assert (last["sends"], last["failed"]) == (2, 0)
    await rig.until(lambda: rig.status()[0]["outbox_ready"] == 0)
    assert sum(row.sender == "agent" for row in rig.hub.ledger()) == 2, "a rehearsal sends nothing"
    (rig.folder / "said").write_text("say a 1\nsay b 2\n")  # but what a handler writes by itself is written
    _, back, last = await lines(rig, "set_back", "plugin")
    assert back["set_back"]["conversation"] == rig.hub.conversation("peer", "agent")
    assert (last["conversations"], last["events"], last["waiting"]) == (1, 5, 0)
    await rig.until(lambda: said(rig) == ["say a 1", "say b 2", "say a 3", "say b 4"])
    await rig.until(lambda: rig.status()[0]["pending"] == 0)
    assert len(rig.hub.ledger()) == 7


async def test_a_replay_begins_at_a_seq_or_a_moment_and_may_be_of_one_conversation(rig: Rig) -> None:
    await talk(rig, "say a", "say b")
    rig.hub.create_agent("other")
    rig.hub.post("other", "agent", "say c")
    await rig.until(lambda: len(said(rig)) == 3 and rig.status()[0]["journaled"] == 6)
    await until_known(rig, "@peer")
    conversation, beside = rig.hub.conversation("peer", "agent"), rig.hub.conversation("other", "agent")
    records = await rig._journal.read_log("agent", 0, 9)
    second = next(each for each in records if b"say b" in each.payload)
    assert counts((await lines(rig, "count", "plugin", "agent", None, None, second.received_at))[-1])[1] < 3
    assert counts((await lines(rig, "count", "plugin", None, "@peer", 2))[-1])[1:] == (1, 1)
    assert counts((await lines(rig, "count", "plugin", None, conversation, 99))[-1]) == (0, 0, 0)
    assert counts((await lines(rig, "count", "plugin", None, None, None, second.received_at + 3_600))[-1]) == (0, 0, 0)
    back, last = (await lines(rig, "set_back", "plugin", None, beside))[1:]
    assert (back["set_back"]["conversation"], last["conversations"]) == (beside, 1)
    await rig.until(lambda: len(said(rig)) == 4)
    assert said(rig)[3] == "say c 2"


async def test_a_replay_tells_which_conversations_it_waits_for_and_goes_on_with_them(rig: Rig) -> None:
    await talk(rig, "say a", "poison", on_dead="hold")
    rig.hub.create_agent("other")
    rig.hub.post("other", "agent", "say c")
    assert rig.daemon is not None
    operations = rig.daemon.operations
    await rig.until(lambda: len(said(rig)) == 2 and bool(operations.status()["plugins"][0]["held"]))
    await until_known(rig, "@other")
    await operations.pause(None, "@other", None)
    first, last = await lines(rig, "set_back", "plugin")
    waits = {each["conversation"]: (each["why"], each["remedy"].split()[1]) for each in last["waits"]}
    assert waits == {
        rig.hub.conversation("peer", "agent"): ("held behind a dead letter", "release"),
        rig.hub.conversation("other", "agent"): ("paused (by command)", "resume"),
    }
    assert first["waits"] == last["waits"]
    assert (last["conversations"], last["waiting"]) == (0, 2)
    await operations.resume(None, "@other")
    await rig.until(lambda: said(rig)[2:] == ["say c 2"])
    mend(rig)
    operations.release("plugin", None, rig.hub.conversation("peer", "agent"))
    await rig.until(lambda: said(rig)[3:] == ["say a 2", "poison 3"])


async def test_a_replay_of_thousands_is_read_page_by_page(rig: Rig) -> None:
    await talk(rig, *(f"no {number}" for number in range(1_000)), "say a")
    await rig.until(lambda: said(rig) == ["say a 1"] and rig.status()[0]["journaled"] == 1_002)
    assert rig.daemon is not None
    told = [line async for line in await rig.daemon.operations.replay("count", "plugin", None, None, None, None)]
    assert [line["read"] for line in told if "read" in line] == [200, 400, 600, 800, 1_000, 1_002]
    assert counts(told[-1]) == (1_002, 1, 1)
    back = (await lines(rig, "set_back", "plugin"))[1]
    assert back["set_back"]["events"] == 2, "it goes back no further than to the first that matches"


async def test_a_replay_for_whom_the_plugin_does_not_serve_is_refused_with_the_remedy(rig: Rig) -> None:
    await talk(rig, "say a")
    await rig.until(lambda: len(said(rig)) == 1)
    unknown = await refused(lines(rig, "count", "plugn"))
    assert (unknown.code, unknown.remedy) == ("UNKNOWN_PLUGIN", "there are: plugin")
    assert (await refused(lines(rig, "count", "plugin", "stranger"))).code == "NOT_SERVED"
    assert (await refused(lines(rig, "count", "plugin", None, "conv_nowhere"))).code == "UNKNOWN_CONVERSATION"


# explained


async def explained(rig: Rig, position: int) -> dict[str, Any]:
    assert rig.daemon is not None
    (found,) = (await rig.daemon.operations.explain(str(position), None, None))["events"]
    (lane,) = found["plugins"]
    return lane


async def until_state(rig: Rig, position: int, state: str) -> dict[str, Any]:
    await rig.until(lambda: rig.status()[0]["journaled"] >= position)
    async with asyncio.timeout(20.0):
        while (lane := await explained(rig, position))["fate"]["state"] != state:
            await asyncio.sleep(0.01)
    return lane


async def test_what_was_done_about_an_event_is_told_with_what_came_of_it(rig: Rig) -> None:
    await talk(rig, "poison", "say")
    assert rig.daemon is not None
    operations = rig.daemon.operations
    fate = (await until_state(rig, 1, "dead"))["fate"]
    mend(rig)
    await operations.dead_replay(fate["letter"])
    lane = await until_state(rig, 1, "handled")
    assert [each["word"] for each in lane["outcomes"]] == ["tried again", "said"]
    assert lane["fate"]["replays"] == 1
    await operations.pause(None, rig.hub.conversation("peer", "agent"), None)
    rig.hub.post("peer", "agent", "say more")
    await rig.until(lambda: rig.status()[0]["pending"] == 1)
    last = (await rig._journal.read_log("agent", 0, 99))[-1].position
    paused = await until_state(rig, last, "paused")
    assert paused["pause"]["reason"] == "by command"


async def test_an_event_that_is_delivered_later_by_itself_is_told_with_its_time(rig: Rig) -> None:
    (rig.folder / "rash.py").write_text(
        "from agentd.plugin import Message, Plugin\n\nplugin = Plugin('rash')\n\n"
        "@plugin.on(Message)\nasync def fail(message, ctx):\n    raise ValueError('no')\n"
    )
    rig.plugin = {"use": str(rig.folder / "rash.py"), "attempts": 1, "on_dead": "detach"}
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()
    rig.hub.post("peer", "agent", "x")
    fate = (await until_state(rig, 1, "aside"))["fate"]
    assert fate["not_before"] is not None


async def test_a_turn_that_notes_its_progress_is_told_as_running(rig: Rig) -> None:
    (rig.folder / "slow.py").write_text(
        "import asyncio\nfrom agentd.plugin import Message, Plugin\n\nplugin = Plugin('slow')\n\n"
        "@plugin.on(Message)\nasync def work(message, ctx):\n    ctx.progress(1)\n    await asyncio.sleep(600)\n"
    )
    rig.plugin = {"use": str(rig.folder / "slow.py")}
    rig.settings = msgspec.structs.replace(rig.settings, dispatch=config.Dispatch(drain_timeout_s=0.1))
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()
    rig.hub.post("peer", "agent", "x", "y")
    await until_state(rig, 1, "running")
    assert (await until_state(rig, 2, "waiting"))["fate"]["behind"] is None
