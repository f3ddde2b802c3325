"""A plugin that kills the process, one whose dependency is down, one that holds: what the whole daemon makes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agentd.demo.proof import Proof

if TYPE_CHECKING:
    from tests.whole.conftest import Rig

_DEADLY = """
import os
from agentd.demo import ledger
from agentd.plugin import Context, Message, Plugin

plugin = Plugin("deadly", config=ledger.Config)

@plugin.on(Message)
def handle(message: Message, ctx: Context[ledger.Config]) -> None:
    if message.text == "die":
        os._exit(7)
    ledger.handle(message, ctx)
"""

_MOODY = """
from pathlib import Path
from agentd.plugin import Context, GiveUp, Message, Plugin

plugin = Plugin("moody")
down = Path(__file__).with_name("down")

@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    if down.exists():
        raise ConnectionError("the database is down")
    if message.text == "poison":
        raise GiveUp("cannot digest it")
    ctx.reply(f"answer to {message.text}")
"""


class DeadlyProof(Proof):
    """A real daemon process with a plugin that ends it when it is told to."""

    def _configuration(self) -> str:
        file = self.folder / "deadly.py"
        file.write_text(_DEADLY)
        return super()._configuration().replace("agentd.demo.ledger:plugin", str(file))


async def test_an_event_that_kills_the_process_twice_is_a_dead_letter_and_everything_else_is_answered(
    tmp_path: Path,
) -> None:
    async with DeadlyProof(tmp_path, 1) as proof:
        for peer in ("bob", "ann"):
            proof.peer(peer)
        proof.start()
        await proof.until_live()
        proof.hub.post("ann", "agent-1", "hello")
        async with asyncio.timeout(20):
            while proof.unanswered():  # were it handled beside the other, that would have to die a third time, alone
                await asyncio.sleep(0.05)
        proof.hub.post("bob", "agent-1", "before", "die", "after")
        assert await proof.until_gone() == 7
        proof.start()
        assert await proof.until_gone() == 7
        proof.start()
        await proof.until_live()
        async with asyncio.timeout(20):
            while proof.unanswered() > 1:
                await asyncio.sleep(0.05)
        status = await proof.status()
        assert status is not None
        assert status["identities"][0]["dead"] == 1
        assert "the process died 2 times while this event was handled" in proof.log
        verdict = proof.verdict()
        assert (verdict.messages, verdict.replies_missing, verdict.replies_duplicated) == (4, 1, 0)
        assert await proof.stop() == 0


async def moody(rig: Rig, **settings: Any) -> None:
    (rig.folder / "moody.py").write_text(_MOODY)
    rig.plugin = {"use": str(rig.folder / "moody.py"), **settings}
    rig.identity("agent")
    rig.settings = msgspec.structs.replace(
        rig.settings,
        dispatch=msgspec.structs.replace(
            rig.settings.dispatch, breaker_lanes=3, breaker_first_s=0.05, breaker_max_s=0.2, retry_first_s=0.05
        ),
    )
    await rig.start()


def answers(rig: Rig) -> list[str]:
    """Ids of the messages that were answered, in the order of the answers."""
    return [row.reply_to for row in rig.hub.ledger() if row.sender == "agent"]


def messages(rig: Rig) -> list[str]:
    return [row.id for row in rig.hub.ledger() if row.sender != "agent"]


def plugin_status(rig: Rig) -> dict[str, Any]:
    assert rig.daemon is not None
    return rig.daemon.operations.status()["plugins"][0]


async def test_a_dependency_that_is_down_opens_the_breaker_and_costs_no_event(rig: Rig) -> None:
    await moody(rig, attempts=2)
    (rig.folder / "down").touch()
    for peer in (f"peer-{number}" for number in range(8)):
        rig.hub.create_agent(peer)
        rig.hub.post(peer, "agent", peer)
    await rig.until(lambda: plugin_status(rig)["breaker"] == "open")
    (rig.folder / "down").unlink()
    await rig.until(lambda: len(answers(rig)) == 8)
    assert sorted(answers(rig)) == sorted(messages(rig))
    assert plugin_status(rig)["breaker"] == "closed"
    assert rig.status()[0]["dead"] == 0


async def test_a_conversation_that_is_held_shows_in_the_status_and_goes_on_when_released(rig: Rig) -> None:
    await moody(rig, on_dead="hold")
    rig.hub.create_agent("peer")
    rig.hub.post("peer", "agent", "poison", "next")
    await rig.until(lambda: bool(plugin_status(rig)["held"]))
    await rig.stop()
    await rig.start()
    await rig.until(lambda: bool(plugin_status(rig)["held"]))
    [held] = plugin_status(rig)["held"]
    assert answers(rig) == []
    assert rig.daemon is not None
    assert rig.daemon.operations.release("plugin", None, held["conversation"]) == 1
    await rig.until(lambda: answers(rig) == messages(rig)[1:])
    assert plugin_status(rig)["held"] == []
