"""What a turn told of its progress outlives the process that is killed in its midst."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from agentd.journal.sqlite import copies
from tests.crash.rig import Proofed


class Walk(Proofed):
    plugin = "tests.crash.stepper:plugin"
    isolate = "none"

    def _configuration(self) -> str:
        return super()._configuration().replace("[plugin.ledger]", f'[plugin.ledger]\nisolate = "{self.isolate}"')

    def known(self) -> list[object]:
        """What each turn knew when it began."""
        file = self.folder / "handled.jsonl.known"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def past(self, step: int) -> None:
        (self.folder / f"handled.jsonl.past-{step}").touch()

    async def until_on_disk(self, progress: dict[str, int]) -> None:
        async with asyncio.timeout(20):
            while progress not in self._on_disk():
                await asyncio.sleep(0.01)

    def _on_disk(self) -> list[object]:
        with copies.reading(self.folder / "state" / "journal.db") as connection:
            rows = connection.execute("SELECT progress FROM attempt WHERE length(progress) > 0").fetchall()
        return [json.loads(row[0]) for row in rows]

    def replies(self) -> list[str]:
        rows = self.hub.ledger()
        return [self.hub.content(row).text or "" for row in rows if row.sender == self.identities[0]]


@pytest.mark.parametrize("isolate", ["none", "process"])
async def test_a_turn_that_was_killed_goes_on_behind_the_step_that_it_told_last(tmp_path: Path, isolate: str) -> None:
    async with Walk(tmp_path, 1) as walk:
        walk.isolate = isolate
        walk._config.write_text(walk._configuration())
        peer = walk.peer("peer")
        walk.start()
        await walk.until_live()
        walk.past(1)
        walk.hub.post(peer, walk.identities[0], "go")
        await walk.until_on_disk({"step": 2})
        await walk.kill()
        assert walk.known() == [None]
        assert walk.replies() == [], "nothing of it has left"
        walk.past(2)
        walk.past(3)
        walk.start()
        assert await walk.until_answered(30)
        assert walk.known() == [None, {"step": 2}]
        assert walk.replies() == ["steps [3]"]
        walk.hub.post(peer, walk.identities[0], "again")
        assert await walk.until_answered(30)
        assert walk.known()[2:] == [None], "the next event knows nothing of it"
        assert walk.replies() == ["steps [3]", "steps [1, 2, 3]"]
        assert await walk.stop() == 0
