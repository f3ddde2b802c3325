"""Talk that should stop, or be left to a person: loops between agents, takeovers, mail that grew stale while away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentd import config
from agentd.control.refusal import ControlError
from agentd.hub.mailbox import Stored
from agentd.journal.storage import Paused

if TYPE_CHECKING:
    from tests.whole.conftest import Rig

ECHO = {"use": "echo"}
ALWAYS = """
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("always")

@plugin.on(Message)
async def answer(message: Message, ctx: Context) -> None:
    ctx.reply("and you?")
"""
STALE_AFTER_S = 1.0


def pauses(rig: Rig) -> list[Paused]:
    assert rig.daemon is not None
    return rig.daemon._dispatcher.pauses()


def answered(rig: Rig) -> list[str]:
    """Ids of the messages that the agent has answered, in the order of its answers."""
    return [row.reply_to for row in rig.hub.ledger() if row.sender == "agent" and row.reply_to]


def ids(stored: list[Stored]) -> list[str]:
    return [each.id for each in stored]


async def an_agent(rig: Rig) -> None:
    rig.plugin = ECHO
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()


async def test_two_identities_that_answer_each_other_stop_by_themselves(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "always.py").write_text(ALWAYS)
    rig.plugin = {"use": str(tmp_path / "always.py")}
    rig.conduct = {"loop_guard": config.LoopGuard(answers_max=20, window_s=600.0)}
    for name in ("left", "right"):
        rig.identity(name)
    await rig.start()
    rig.hub.post("left", "right", "hello")
    await rig.until(lambda: bool(pauses(rig)))
    # Each answers as often as it may; what came last is kept, and is still there after a restart.
    await rig.until(lambda: len(rig.hub.ledger()) == 41 and any(each["pending"] for each in rig.status()))
    assert "loop guard: 20 answers" in pauses(rig)[0].reason
    await rig.stop()
    await rig.start()
    assert pauses(rig)
    assert len(rig.hub.ledger()) == 41


async def test_a_person_who_steps_in_is_left_alone_until_they_have_gone(rig: Rig) -> None:
    rig.conduct = {"takeover_idle_s": 2.0}
    await an_agent(rig)
    first = rig.hub.post("peer", "agent", "hello")
    await rig.until(lambda: answered(rig) == ids(first))
    assert pauses(rig) == []  # its own answer is no takeover
    rig.hub.post("agent", "peer", "this is Ann, a person")
    second = rig.hub.post("peer", "agent", "fine")
    await rig.until(lambda: bool(pauses(rig)))
    assert pauses(rig)[0].reason == "somebody else speaks as this identity"
    third = rig.hub.post("peer", "agent", "are you still there?")
    await rig.until(lambda: rig.status()[0]["pending"] >= 1)
    await rig.until(lambda: not pauses(rig))
    await rig.until(lambda: answered(rig)[-1:] == ids(third))
    assert set(answered(rig)) == {*ids(first), *ids(second), *ids(third)}


async def test_where_takeovers_are_off_a_person_pauses_nothing(rig: Rig) -> None:
    rig.conduct = {"takeover_idle_s": 0.0}
    await an_agent(rig)
    rig.hub.post("peer", "agent", "one")
    rig.hub.post("agent", "peer", "this is Ann, a person")
    last = rig.hub.post("peer", "agent", "two")
    await rig.until(lambda: answered(rig)[-1:] == ids(last))
    assert pauses(rig) == []


async def test_of_what_grew_stale_while_we_were_away_only_the_newest_is_answered(rig: Rig) -> None:
    rig.conduct = {"catch_up": config.CatchUp(policy="latest", after_s=STALE_AFTER_S, settle_s=0.3)}
    await an_agent(rig)
    first = rig.hub.post("peer", "agent", "first")
    await rig.until(lambda: answered(rig) == ids(first))
    await rig.stop()
    missed = rig.hub.post("peer", "agent", *(f"missed {number}" for number in range(30)))
    await asyncio.sleep(STALE_AFTER_S)  # the wall clock decides what is stale
    await rig.start()
    await rig.until(lambda: answered(rig) == [*ids(first), ids(missed)[-1]])
    await rig.until(lambda: rig.status()[0]["pending"] == 0)
    fresh = rig.hub.post("peer", "agent", "fresh")
    await rig.until(lambda: answered(rig)[-1:] == ids(fresh))


async def test_a_pause_by_command_keeps_mail_over_a_restart(rig: Rig, tmp_path: Path) -> None:
    await an_agent(rig)
    first = rig.hub.post("peer", "agent", "first")
    await rig.until(lambda: answered(rig) == ids(first))
    assert rig.daemon is not None
    conversation = rig.hub.conversation("peer", "agent")
    await rig.daemon.operations.pause("agent", conversation, None)
    waiting = rig.hub.post("peer", "agent", "second", "third")
    await rig.until(lambda: rig.status()[0]["pending"] == 2)
    await rig.stop()
    daemon = await rig.start()
    assert answered(rig) == ids(first)
    await daemon.operations.resume("agent", conversation)
    await rig.until(lambda: answered(rig) == [*ids(first), *ids(waiting)])


async def refused(operation: Awaitable[object]) -> ControlError:
    with pytest.raises(ControlError) as told:
        await operation
    return told.value


async def test_a_conversation_may_be_named_by_the_peer_once_something_was_sent_there(rig: Rig) -> None:
    await an_agent(rig)
    assert rig.daemon is not None
    operations = rig.daemon.operations
    stranger = await refused(operations.pause(None, "@peer", None))
    assert (stranger.status, stranger.code) == (404, "UNKNOWN_CONVERSATION")
    assert "name its id" in stranger.remedy
    first = rig.hub.post("peer", "agent", "first")
    await rig.until(lambda: answered(rig) == ids(first) and rig.status()[0]["journaled"] == 2)
    async with asyncio.timeout(20.0):
        while await rig._journal.conversation_with("agent", "@peer") is None:
            await asyncio.sleep(0.01)
    pause = await operations.pause(None, "@Peer", 2.0)
    assert (pause["identity"], pause["conversation"]) == ("agent", rig.hub.conversation("peer", "agent"))
    assert operations.status()["pauses"] == [pause]
    second = rig.hub.post("peer", "agent", "second")
    await rig.until(lambda: answered(rig) == [*ids(first), *ids(second)])
    assert operations.status()["pauses"] == []  # it ended by itself


async def test_what_is_not_paused_or_not_known_cannot_be_resumed(rig: Rig) -> None:
    await an_agent(rig)
    first = rig.hub.post("peer", "agent", "first")
    await rig.until(lambda: answered(rig) == ids(first))
    assert rig.daemon is not None
    resume = rig.daemon.operations.resume
    idle = await refused(resume("agent", rig.hub.conversation("peer", "agent")))
    assert (idle.status, idle.code) == (409, "NOT_PAUSED")
    assert "agentd release" in idle.remedy
    assert (await refused(resume(None, "conv_nowhere"))).code == "UNKNOWN_CONVERSATION"
