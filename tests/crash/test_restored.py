"""A journal is copied while everything goes on, and much later that copy is put back: nothing is lost, or done twice.

What the daemon had not sent when the copy was made it has sent since, and what came since the copy does not know.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from agentd.journal.sqlite import copies
from tests.crash.rig import Books


async def test_a_backup_made_under_load_and_put_back_later_repeats_no_effect(tmp_path: Path) -> None:
    journal, backup = tmp_path / "state" / "journal.db", tmp_path / "backup.db"
    async with Books(tmp_path) as books:
        books.start()
        await books.until_started()
        for _ in range(3):
            books.say_everything()
            await asyncio.sleep(0.05)
        await asyncio.to_thread(copies.back_up, journal, backup)
        for _ in range(3):
            books.say_everything()
        await books.settle()
        assert await books.stop() == 0
        await asyncio.to_thread(copies.restore, backup, journal)
        books.start()
        await books.until_started()
        books.say_everything()
        await books.settle()
        await books.close_the_books()
        assert books.verdict().handled_again > 0, "what came after the backup"
