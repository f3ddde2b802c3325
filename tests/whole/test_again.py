"""What went wrong, or was handled before, is handled again by command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

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


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20.0):
        while not await condition():
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
    (letter,) = await operations.dead(None, False, 9)
    assert (await operations.dead_show(letter["number"]))["held"] is True
    mend(rig)
    await operations.dead_replay(letter["number"])
    await rig.until(lambda: said(rig) == ["poison 1", "say 2"])
    assert operations.status()["plugins"][0]["held"] == []


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
