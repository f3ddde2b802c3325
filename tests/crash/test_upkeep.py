"""A daemon that keeps its journal small while mail flows: retention, vacuum and backup, and kills in the midst of each.

Retention lets go of everything that was handled a moment ago, again and again; the books must balance all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import pytest

from agentd.control.client import Client
from agentd.control.refusal import ControlError, UnreachableError
from agentd.journal.sqlite import copies
from tests.crash.points import COPYING, UPKEEP
from tests.crash.rig import ROOT, Books

A_MOMENT_DAYS = 0.2 / 86_400


class Kept(Books):
    padding = "x" * 2_000 + " "
    settings: ClassVar[dict[str, dict[str, float]]] = {
        "retention": {
            "events_max_age_days": A_MOMENT_DAYS,
            "outbox_max_age_days": A_MOMENT_DAYS,
            "every_s": 0.1,
        }
    }

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.journal = folder / "state" / "journal.db"
        self.client = Client(folder / "state" / "control.sock")
        self.given_back = 0

    @contextlib.asynccontextmanager
    async def vacuuming(self) -> AsyncIterator[None]:
        """`agentd vacuum` again and again, whoever is there to be asked."""

        async def again_and_again() -> None:
            while True:
                await asyncio.sleep(0.02)
                with contextlib.suppress(UnreachableError, ControlError):
                    told = (await asyncio.to_thread(lambda: list(self.client.vacuum())))[-1]
                    self.given_back += max(0, told["bytes_before"] - told["bytes"])

        task = asyncio.create_task(again_and_again())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))

    def rows_gone(self) -> dict[str, int]:
        gone: dict[str, int] = {}
        for trace in copies.trimmed(self.journal, 10_000):
            gone[trace.what] = gone.get(trace.what, 0) + trace.rows
        return gone

    def texts(self, peer: str) -> list[bool]:
        """Of this peer's messages in the journal, the oldest first: whether their texts are there."""
        query = """
            SELECT length(e.payload) > 0 FROM event AS e JOIN conversation AS c ON c.number = e.conversation
             WHERE c.id = ? AND e.source <> 'own' ORDER BY e.position
        """
        conversation = self.hub.conversation(peer, self.identities[0])
        with copies.reading(self.journal) as connection:
            return [bool(row[0]) for row in connection.execute(query, (conversation,))]


async def test_retention_vacuum_and_backup_run_while_mail_flows_and_the_books_balance(tmp_path: Path) -> None:
    async with Kept(tmp_path) as books:
        books.start()
        await books.until_started()
        books.say_everything()
        await books.settle()
        conversation = books.hub.conversation("peer-2", books.identities[0])
        await asyncio.to_thread(books.client.pause, conversation)
        waiting = len(books.texts("peer-2"))
        async with books.vacuuming():
            for number in range(12):
                books.say_everything()
                await asyncio.to_thread(copies.back_up, books.journal, tmp_path / f"backup-{number}")
                await asyncio.sleep(0.1)
            async with asyncio.timeout(30):
                while not (set(books.rows_gone()) >= {"event", "outbox"} and books.given_back):
                    books.say("peer-0", "plain")
                    await asyncio.sleep(0.1)
            # What a plugin has not handled is as old, and there.
            assert len(books.texts("peer-2")) == waiting + 48
            assert all(books.texts("peer-2")[waiting:])
            assert not all(books.texts("peer-0")), "what was handled beside it has gone"
            await asyncio.to_thread(books.client.resume, conversation)
            await books.settle()
        await books.close_the_books()
    for number in range(12):
        with contextlib.closing(sqlite3.connect(tmp_path / f"backup-{number}")) as backup:
            assert backup.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("point", UPKEEP)
async def test_a_kill_in_the_midst_of_upkeep_loses_nothing_and_repeats_nothing(tmp_path: Path, point: str) -> None:
    async with Kept(tmp_path) as books, books.vacuuming():
        for nth in (1, 4):
            books.start_to_die_at(point, nth)
            await books.until_started()
            await books.until_dead_at(point)
            with contextlib.closing(sqlite3.connect(books.journal)) as journal:
                assert journal.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            books.start()
            await books.settle()
            await books.kill()
        books.start()
        await books.close_the_books()


@pytest.mark.parametrize("point", COPYING)
async def test_a_backup_that_is_killed_has_no_name_and_harms_neither_the_daemon_nor_the_next(
    tmp_path: Path, point: str
) -> None:
    async with Kept(tmp_path) as books:
        books.start()
        await books.until_started()
        books.say_everything()
        await books.settle()
        target, reached = tmp_path / "backup.db", tmp_path / "reached"
        command = [
            sys.executable,
            "-m",
            "tests.crash.launcher",
            "backup",
            str(target),
            "--state",
            str(tmp_path / "state"),
        ]
        killed = await asyncio.to_thread(
            subprocess.run,
            command,
            env={"PYTHONPATH": str(ROOT), "CRASH_AT": f"1 {point}", "CRASH_REACHED": str(reached)},
            check=False,
            capture_output=True,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert reached.read_text() == f"{point}\n"
        assert not target.exists()
        books.say_everything()
        await books.settle()
        await asyncio.to_thread(copies.back_up, books.journal, target)
        assert target.exists()
        assert [each.name for each in tmp_path.glob("backup.db*")] == ["backup.db"], "what the killed one left has gone"
        await books.close_the_books()
