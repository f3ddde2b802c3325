"""The process that hands over lets its journal go, and has it again only where nobody can have written to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.config import JournalSettings
from agentd.errors import JournalError
from agentd.handover import Departure, messages
from agentd.handover import departing as module
from agentd.handover.departing import SuccessorLost
from agentd.handover.line import Line
from agentd.journal.sqlite import SqliteJournal
from agentd.journal.storage import StatePut
from tests.test_dispatcher import Rig


class Successor:
    """Its end of the line. then: what it does when the journal is let go."""

    def __init__(self, then: str) -> None:
        self.then = then
        self.called_off: list[str] = []
        self.line = Line(msgspec.msgpack.Decoder(messages.ToSuccessor).decode, self._take)

    def _take(self, message: messages.ToSuccessor) -> None:
        if isinstance(message, messages.CalledOff):
            self.called_off.append(message.why)
            return
        assert isinstance(message, messages.Released)
        match self.then:
            case "takes":
                self.line.tell(messages.Taken())
            case "babbles":
                self.line.opened.result().write(b"\x00\x00\x00\x01\xc1")
            case "goes":
                self.line.close()


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    made = SqliteJournal(tmp_path / "journal.db", JournalSettings())
    await made.open()
    yield made
    await made.close()


@asynccontextmanager
async def departing(successor: Successor, folder: Path) -> AsyncIterator[Departure]:
    path = str(folder / "line")
    server = await asyncio.get_running_loop().create_unix_server(lambda: successor.line, path)
    departure = Departure(1)
    try:
        await departure.connect(path)
        yield departure
    finally:
        departure.forget()
        server.close()


async def let_go(journal: SqliteJournal, folder: Path, then: str) -> tuple[bool, list[Any]]:
    """Hand over to a successor that does this. Returns what comes of it."""
    moved: list[Any] = []
    async with departing(Successor(then), folder) as departure, Rig().running() as dispatcher:
        handing = asyncio.ensure_future(departure.hand_over(dispatcher, journal, lambda: moved.append(True)))
        await asyncio.wait((handing,))
    return handing.result(), moved


async def test_one_that_takes_it_has_it(journal: SqliteJournal, tmp_path: Path) -> None:
    assert await let_go(journal, tmp_path, "takes") == (True, [True])
    with pytest.raises(JournalError):
        await journal.commit()


async def test_from_one_that_goes_without_a_word_it_comes_back(journal: SqliteJournal, tmp_path: Path) -> None:
    assert await let_go(journal, tmp_path, "goes") == (False, [True])
    await journal.commit(StatePut("echo", 0, "key", b"1"))
    assert await journal.state_get("echo", 0, "key") == b"1"


async def test_from_one_whose_word_cannot_be_read_it_does_not(journal: SqliteJournal, tmp_path: Path) -> None:
    with pytest.raises(SuccessorLost):
        await let_go(journal, tmp_path, "babbles")
    with pytest.raises(JournalError):
        await journal.commit()


async def test_what_is_not_on_disk_in_time_stays_here_with_everything_else(
    journal: SqliteJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HOLD_S", 0.05)
    room, write = asyncio.Event(), journal._group._write

    async def slow(calls: Any) -> Any:
        await room.wait()
        return await write(calls)

    journal._group._write = slow
    left = journal.commit(StatePut("echo", 0, "key", b"1"))
    successor = Successor("is told why")
    moved: list[bool] = []
    async with departing(successor, tmp_path) as departure, Rig().running() as dispatcher:
        handing = asyncio.ensure_future(departure.hand_over(dispatcher, journal, lambda: moved.append(True)))
        await asyncio.wait((handing, successor.line.ended), return_when=asyncio.FIRST_COMPLETED, timeout=5)
        room.set()
        assert (await handing, moved) == (False, [])
    assert successor.called_off == ["the disk takes no commits; see: agentd doctor"]
    await left
    assert await journal.state_get("echo", 0, "key") == b"1"


@pytest.mark.parametrize("serves", [True, False])
async def test_one_that_ends_before_it_serves_is_told_of_though_no_turn_was_open(
    journal: SqliteJournal, tmp_path: Path, serves: bool
) -> None:
    successor = Successor("takes")
    async with departing(successor, tmp_path) as departure, Rig().running() as dispatcher:
        assert await departure.hand_over(dispatcher, journal, lambda: None)
        if serves:
            successor.line.tell(messages.Serves())
        successor.line.close()
        with contextlib.nullcontext() if serves else pytest.raises(SuccessorLost):
            await departure.drain(dispatcher, 1.0, asyncio.Event().wait())
