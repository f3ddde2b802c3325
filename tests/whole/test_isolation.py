"""A plugin that ends its own process, beside a healthy one on the same identity of a daemon that is connected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentd import config

if TYPE_CHECKING:
    from tests.whole.conftest import Rig

DEADLY = """
import os

from agentd.plugin import Context, Message, Plugin

plugin = Plugin("deadly")


@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    if message.text == "die":
        os._exit(1)
    count = await ctx.state.get("count", int, 0) + 1
    ctx.state.put("count", count)
    ctx.reply(f"{message.text} is number {count}")
"""


async def test_a_plugin_that_exits_costs_its_poison_and_the_healthy_one_never_stops(rig: Rig) -> None:
    (rig.folder / "deadly.py").write_text(DEADLY)
    rig.beside = {"deadly": config.PluginSettings(use="./deadly.py", isolate="process")}
    rig.identity("agent")
    for peer in ("peer", "other"):
        rig.hub.create_agent(peer)
    daemon = await rig.start()

    def deadly() -> dict[str, Any]:
        return next(each for each in daemon.operations.status()["plugins"] if each["name"] == "deadly")

    def texts(peer: str) -> list[str]:
        """What the deadly one told this peer, in order."""
        return [text for text in rig.answers(peer) if not text.startswith("noted")]

    for peer in ("peer", "other"):
        rig.hub.post(peer, "agent", "first")
    await rig.until(lambda: len(texts("peer") + texts("other")) == 2)
    assert deadly()["worker"]["up"]
    # It can die, and not start again: whatever the healthy one does now, it does beside a plugin that is down.
    file = rig.folder / "deadly.py"
    file.write_text("import no_such_module_anywhere")
    rig.hub.post("peer", "agent", "die", *(f"after {number}" for number in range(20)))
    rig.hub.post("other", "agent", *(f"beside {number}" for number in range(20)))
    await rig.until_handled(2 + 21 + 20)
    await rig.until(lambda: "no_such_module" in deadly()["worker"]["reason"])
    assert not deadly()["worker"]["up"]
    assert len(texts("peer") + texts("other")) <= 2 + 20
    file.write_text(DEADLY)
    await rig.until(lambda: rig.status()[0]["pending"] == 0)
    [letter] = await daemon.operations.dead(None, dropped_too=False, limit=10)
    assert letter["plugin"] == "deadly"
    assert letter["error"].startswith("WorkerDied: its worker process died while this event was handled: it exited")
    wanted = ["first", *(f"after {number}" for number in range(20))]
    await rig.until(lambda: len(texts("peer")) == len(wanted))
    assert texts("peer") == [f"{text} is number {place}" for place, text in enumerate(wanted, 1)]
    await rig.until(lambda: len(texts("other")) == 21)
    assert texts("other")[1:] == [f"beside {number} is number {number + 2}" for number in range(20)]
    assert deadly()["worker"]["restarts"] >= 2
