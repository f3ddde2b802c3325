"""A daemon process whose journal holds a sealed value that does not open any more."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agentd.config import Encryption, JournalSettings, KeySource
from agentd.control.client import Client
from agentd.core.events import Content, Send
from agentd.journal.sqlite import open_journal
from agentd.journal.storage import Attempt, Change, Queued, TimerSet
from tests.crash.rig import ROOT, Proofed

PLUGIN = """
from agentd.demo.ledger import Config
from agentd.plugin import Context, Message, Plugin, RetryLater, Timer

plugin = Plugin("patient", config=Config)


@plugin.on(Timer)
async def wake(timer: Timer, ctx: Context[Config]) -> None:
    pass


@plugin.on(Message)
async def handle(message: Message, ctx: Context[Config]) -> None:
    if message.text == "wait":
        raise RetryLater(3_600)
    ctx.reply(f"noted {message.text}")
"""


class Sealed(Proofed):
    """A daemon process whose journal is encrypted."""

    plugin: ClassVar[str] = "PLUGIN"

    @property
    def journal(self) -> Path:
        return self.folder / "state" / "journal.db"

    @property
    def encryption(self) -> Encryption:
        return Encryption(key=KeySource(file=str(self.folder / "journal.key")))

    def _configuration(self) -> str:
        key, plugin = self.folder / "journal.key", self.folder / "patient.py"
        key.touch(0o600)
        key.write_text("c0" * 32)
        plugin.write_text(PLUGIN)
        sealed = f'\n[agentd.journal.encryption]\nkey = {{ file = "{key}" }}\n'
        return super()._configuration().replace('"PLUGIN"', f'"{plugin}"') + sealed

    async def commit(self, *changes: Change) -> None:
        journal = await open_journal(self.journal, JournalSettings(encryption=self.encryption))
        try:
            await journal.commit(*changes)
        finally:
            await journal.close()

    def run(self, *statements: str) -> None:
        """What an operator does with sqlite3 while the daemon is stopped."""
        with contextlib.closing(sqlite3.connect(self.journal)) as connection:
            for statement in statements:
                assert connection.execute(statement).rowcount == 1
            connection.commit()

    def damage(self, table: str, column: str, where: str) -> None:
        """One byte of the stored value is another one."""
        with contextlib.closing(sqlite3.connect(self.journal)) as connection:
            value: Any = connection.execute(f"SELECT {column} FROM {table} WHERE {where}").fetchone()[0]
            place = len(value) // 2
            if isinstance(value, bytes):
                changed: Any = value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :]
            else:
                changed = value[:place] + ("A" if value[place] != "A" else "B") + value[place + 1 :]
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (changed,))
            connection.commit()


@asynccontextmanager
async def left_with_mail(folder: Path) -> AsyncIterator[Sealed]:
    """One that was stopped while a message waits for its next attempt, and another one behind it."""
    async with Sealed(folder, 1) as sealed:
        sealed.peer("first")
        sealed.peer("second")
        sealed.start()
        await sealed.until_live()
        sealed.hub.post("first", "agent-1", "wait", "behind")
        await sealed.until_identity(lambda status: status["journaled"] == 2)
        async with asyncio.timeout(30):
            while "the next in" not in sealed.log:
                await asyncio.sleep(0.02)
        assert await sealed.stop() == 0
        yield sealed


async def test_an_event_that_does_not_open_is_a_dead_letter_and_everything_else_goes_on(tmp_path: Path) -> None:
    async with left_with_mail(tmp_path) as sealed:
        sealed.damage("event", "payload", "position = 2")
        sealed.start()
        await sealed.until_identity(lambda status: status["dead"] == 1)
        sealed.hub.post("second", "agent-1", "hello")
        await sealed.until_identity(lambda status: status["outbox_sent"] == 1)
        answers = [row for row in sealed.hub.ledger() if row.sender == "agent-1"]
        assert [row.conversation for row in answers] == [sealed.hub.conversation("second", "agent-1")]
        [letter] = await asyncio.to_thread(Client(sealed.folder / "state" / "control.sock").dead, None)
        assert (letter["position"], letter["attempts"]) == (2, 0)
        assert "event.payload of row 2 in the journal does not open" in letter["error"]


@pytest.mark.parametrize(
    ("place", "row"),
    [
        ("outbox.content", {"KEY": "k-1"}),
        ("timer.data", {"ID": "t-1"}),
        ("timer.progress", {"ID": "t-2"}),
        ("attempt.progress", {"P": "2", "C": "1", "N": "1"}),
    ],
)
async def test_what_no_turn_can_do_without_is_named_and_given_up_as_the_documentation_says(
    tmp_path: Path, place: str, row: dict[str, str]
) -> None:
    remedy = documented(place)
    for name, value in row.items():
        remedy = re.sub(rf"\b{name}\b", value, remedy)
    async with left_with_mail(tmp_path) as sealed:
        await sealed.commit(
            Queued(Send(identity="agent-1", target="@first", content=Content(text="x"), client_msg_id="k-1"), 1.0),
            TimerSet("t-1", "ledger", "agent-1", 0, "", "", time.time() + 3_600, b'"x"'),
            TimerSet("t-2", "ledger", "agent-1", 0, "", "", time.time() + 3_600, b"1", progress=b'"x"'),
            Attempt("ledger", 1, 1, 1, "", time.time() + 3_600, progress=b'"x"'),
        )
        sealed.damage(*place.split("."), remedy.rpartition(" WHERE ")[2])
        sealed.start()
        assert await sealed.until_gone() == 1
        last = sealed.log.splitlines()[-1]
        assert f"{place} of row {', '.join(row.values())} in the journal does not open" in last
        assert "A value that does not open" in last
        sealed.run(remedy)
        sealed.start()
        await sealed.until_live()
        sealed.hub.post("second", "agent-1", "hello")
        await sealed.until_identity(lambda status: status["outbox_sent"] >= 1)


def documented(place: str) -> str:
    """The statement that gives up a value of this column."""
    text = (ROOT / "docs" / "operating.md").read_text("utf-8")
    [found] = re.findall(rf"^\| `{re.escape(place)} of row [^|]*\|[^|]*\| `([^`]*)` \|$", text, re.MULTILINE)
    return str(found)
