"""A plugin that keeps state, killed in the midst of many events: what it counted is how many there were."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from agentd.config import JournalSettings
from agentd.hub.settings import HubSettings
from agentd.journal.sqlite import open_journal
from tests.crash.rig import Proofed

CONVERSATIONS = 20
PATIENCE_S = 900.0
AT_ONCE = 50


class Counting(Proofed):
    plugin = "tests.crash.counting:plugin"

    async def counts(self) -> dict[str, int]:
        """What the plugin's state says, by conversation."""
        journal = await open_journal(self.folder / "state" / "journal.db", JournalSettings())
        try:
            assert await journal.dead(None, 10) == []
            return {
                row.conversation: json.loads(await journal.state_get("ledger", row.number, "count") or b"0")
                for row in await journal.conversations(self.identities[0])
            }
        finally:
            await journal.close()


async def count_through_kills(folder: Path, events: int, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    hub = HubSettings(cold_rule=False, sends_per_s=0, backlog_soft=0, backlog_hard=0)
    async with Counting(folder, 1, hub=hub) as proof:
        peers = [proof.peer(f"peer-{number}") for number in range(CONVERSATIONS)]
        posted = dict.fromkeys(peers, 0)

        async def talk() -> None:
            for start in range(0, events, AT_ONCE):
                count = min(AT_ONCE, events - start)
                peer = chance.choice(peers)
                posted[peer] += count
                await proof.hub.post_many(peer, proof.identities[0], ["one more"] * count)

        proof.start()
        await proof.until_identity(lambda it: it["state"] == "live")
        talking = asyncio.create_task(talk())
        moments = sorted(random.Random(seed).sample(range(1, events), kills))
        for moment in moments:
            await proof.until_identity(lambda it, moment=moment: it["handled"] >= moment, PATIENCE_S)
            await proof.kill()
            proof.start()
        await talking
        await proof.until_identity(lambda it: it["handled"] == events and not it["pending"], PATIENCE_S)
        assert await proof.stop() == 0
        wanted = {proof.hub.conversation(peer, proof.identities[0]): count for peer, count in posted.items() if count}
        assert await proof.counts() == wanted, f"seed {seed}"
        assert sum(wanted.values()) == events
        assert proof.kills == kills


async def test_what_a_plugin_counted_through_kills_is_the_number_of_events(tmp_path: Path) -> None:
    await count_through_kills(tmp_path, events=5_000, kills=3, seed=1)


@pytest.mark.soak
async def test_what_a_plugin_counted_of_a_hundred_thousand_events_through_ten_kills_is_their_number(
    tmp_path: Path,
) -> None:
    await count_through_kills(tmp_path, events=100_000, kills=10, seed=random.SystemRandom().randrange(1 << 30))
