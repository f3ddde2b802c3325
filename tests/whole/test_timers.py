"""Wake-ups of a whole daemon: across its restart, late, and each once at the hub."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.whole.conftest import Rig

_REMINDING = """
from agentd.plugin import Context, Message, Plugin, Timer

plugin = Plugin("reminding")

@plugin.on(Message)
async def ask(message: Message, ctx: Context) -> None:
    ctx.remind(float(message.text), data={"message": message.id})

@plugin.on(Timer)
async def wake(timer: Timer, ctx: Context) -> None:
    ctx.send("@peer", "now", metadata={"reply_to": timer.data["message"]})

@plugin.every("0.2s")
async def beat(timer: Timer, ctx: Context) -> None:
    ctx.plugin_state.put("beats", await ctx.plugin_state.get("beats", int, 0) + 1)
"""


async def begin(rig: Rig) -> None:
    (rig.folder / "reminding.py").write_text(_REMINDING)
    rig.plugin = {"use": str(rig.folder / "reminding.py")}
    rig.identity("agent")
    rig.hub.create_agent("peer")
    await rig.start()


def answered(rig: Rig) -> list[str]:
    return [row.reply_to for row in rig.hub.ledger() if row.sender == "agent"]


def asked(rig: Rig) -> list[str]:
    return [row.id for row in rig.hub.ledger() if row.sender == "peer"]


async def test_a_timer_that_falls_due_while_the_daemon_is_down_fires_once_when_it_is_back(rig: Rig) -> None:
    await begin(rig)
    rig.hub.post("peer", "agent", "0.5", "3600")
    await rig.until(lambda: rig.status()[0]["handled"] == 2)
    due_at = asyncio.get_running_loop().time() + 0.5
    await rig.stop()
    assert answered(rig) == []
    await asyncio.sleep(max(0.0, due_at - asyncio.get_running_loop().time()))
    await rig.start()
    await rig.until(lambda: answered(rig) == asked(rig)[:1])
    await rig.stop()
    await rig.start()
    assert rig.daemon is not None
    assert rig.daemon.operations.status()["plugins"][0]["timers"] == 2  # the one of an hour, and the beat
    assert answered(rig) == asked(rig)[:1]


async def test_a_recurring_handler_keeps_its_beat_over_a_restart(rig: Rig) -> None:
    await begin(rig)

    async def beats() -> int:
        return int(await rig._journal.state_get("plugin", 0, "beats") or b"0")

    async def until_beats(count: int) -> None:
        async with asyncio.timeout(10):
            while await beats() < count:
                await asyncio.sleep(0.02)

    await until_beats(2)
    await rig.stop()
    await rig.start()
    before = await beats()
    await until_beats(before + 2)
