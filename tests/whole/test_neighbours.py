"""Plugins that raise, hang, overstay or end the process: a healthy one on the same identity never stops for them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentd.config import JournalSettings
from agentd.demo.proof import Proof
from agentd.journal.sqlite import open_journal

PEERS = 8
ROUNDS = 6

_PRELUDE = """
import asyncio
import os
import time
from pathlib import Path

from agentd.plugin import Context, Message, Plugin

plugin = Plugin("bad")
began = Path(__file__).with_suffix(".began")


def note(message: Message) -> None:
    with began.open("a") as file:
        print(message.id, file=file)


"""

BAD = {
    "raises": """
@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    note(message)
    raise ValueError("always")
""",
    "hangs": """
@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    note(message)
    await asyncio.sleep(3600)
""",
    "hangs-in-a-thread": """
@plugin.on(Message)
def handle(message: Message, ctx: Context) -> None:
    note(message)
    time.sleep(3600)
""",
    "overstays": """
@plugin.on(Message, timeout_s=0.05)
async def handle(message: Message, ctx: Context) -> None:
    note(message)
    await asyncio.sleep(3600)
""",
    "overstays-in-a-thread": """
@plugin.on(Message, timeout_s=0.05)
def handle(message: Message, ctx: Context) -> None:
    note(message)
    time.sleep(0.5)
""",
}

DEADLY = """
@plugin.on(Message)
async def handle(message: Message, ctx: Context) -> None:
    note(message)
    if message.text.startswith("die"):
        os._exit(7)
"""


class Neighbourhood(Proof):
    """A daemon with the ledger, which is healthy, and others beside it."""

    def __init__(self, folder: Path, **neighbours: str) -> None:
        super().__init__(folder, 1)
        self._neighbours = {name.replace("_", "-"): source for name, source in neighbours.items()}

    def _configuration(self) -> str:
        text = super()._configuration()
        for name, source in self._neighbours.items():
            file = self.folder / f"{name}.py"
            file.write_text(_PRELUDE + source)
            text += f'[plugin.{name}]\nuse = "{file}"\n'
        listed = ", ".join(f'"{name}"' for name in ("ledger", *self._neighbours))
        return text.replace('plugins = ["ledger"]', f"plugins = [{listed}]")

    def began(self, name: str) -> list[str]:
        """What a neighbour was given so far, in order."""
        file = self.folder / f"{name}.began"
        return file.read_text().splitlines() if file.exists() else []

    async def until_began(self, name: str) -> None:
        async with asyncio.timeout(30):
            while not self.began(name):
                await asyncio.sleep(0.01)

    async def talk(self) -> None:
        """Round after round: the next one comes when the healthy plugin has answered all of this one."""
        for number in range(ROUNDS):
            for peer in range(PEERS):
                self.hub.post(self.peer(f"peer-{peer}"), "agent-1", f"round {number}", "and another")
            assert await self.until_answered(60.0), self.unanswered()

    async def until_nothing_is_pending(self) -> None:
        async with asyncio.timeout(60):
            while not ((status := await self.status()) and not status["identities"][0]["pending"]):
                await asyncio.sleep(0.05)

    def assert_healthy(self) -> None:
        verdict = self.verdict()
        assert verdict.clean, verdict
        assert verdict.handled == verdict.messages
        assert verdict.handled_again == 0

    async def dead(self) -> dict[str, int]:
        """Dead letters by plugin, of a daemon that has stopped."""
        journal = await open_journal(self.folder / "state" / "journal.db", JournalSettings())
        try:
            rows = await journal.dead(None, 10_000)
        finally:
            await journal.close()
        return {name: sum(row.plugin == name for row in rows) for name in {row.plugin for row in rows}}


@pytest.mark.parametrize("kind", BAD)
async def test_a_plugin_in_trouble_stops_no_lane_of_the_healthy_one_beside_it(tmp_path: Path, kind: str) -> None:
    async with Neighbourhood(tmp_path, bad=BAD[kind]) as proof:
        proof.start()
        await proof.until_live()
        proof.hub.post(proof.peer("peer-0"), "agent-1", "the first")
        await proof.until_began("bad")
        await proof.talk()
        proof.assert_healthy()
        status = await proof.status()
        assert status is not None
        assert status["identities"][0]["pending"] > 0, "it is still in trouble"
        assert status["identities"][0]["state"] == "live"


async def test_all_of_them_together_stop_no_lane_of_the_healthy_one(tmp_path: Path) -> None:
    neighbours = {name.replace("-", "_"): source for name, source in BAD.items()}
    async with Neighbourhood(tmp_path, **neighbours) as proof:
        proof.start()
        await proof.until_live()
        proof.hub.post(proof.peer("peer-0"), "agent-1", "the first")
        for name in BAD:
            await proof.until_began(name)
        await proof.talk()
        proof.assert_healthy()


async def test_a_plugin_that_ends_the_process_costs_the_healthy_one_no_event(tmp_path: Path) -> None:
    async with Neighbourhood(tmp_path, deadly=DEADLY) as proof:
        supervising = asyncio.create_task(_restart_whenever_gone(proof))
        # One culprit at a time: the next poison comes when the one before is quarantined.
        for number in range(3):
            for peer in range(PEERS):
                text = "die" if peer == number else "live"
                proof.hub.post(proof.peer(f"peer-{peer}"), "agent-1", "before", text, "after")
            assert await proof.until_answered(60.0), proof.unanswered()
            await proof.until_nothing_is_pending()
        supervising.cancel()
        assert await proof.stop() == 0
        verdict = proof.verdict()
        assert verdict.clean, verdict
        assert await proof.dead() == {"deadly": 3}
        assert len(set(proof.began("deadly"))) == 3 * 3 * PEERS, "nor did the deadly one miss anything"


async def _restart_whenever_gone(proof: Neighbourhood) -> None:
    """What systemd does."""
    while True:
        proof.start()
        assert await proof.until_gone(3_600) == 7
