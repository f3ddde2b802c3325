"""A disk that has no room, and a journal that cannot be used: nothing is acknowledged, nothing is started over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from agentd import config
from agentd.control.api import HandOverRequest
from agentd.demo.proof import Proof
from agentd.handover import Departure
from agentd.handover.messages import PROTOCOL
from agentd.journal.sqlite import SCHEMA, SqliteJournal

if TYPE_CHECKING:
    from tests.whole.conftest import Rig

TIMEOUT_S = 20.0
LARGE = "x" * 20_000

Disk = tuple[Callable[[], Awaitable[None]], Callable[[], Awaitable[None]]]
"""What fills the disk under a running daemon, and what makes room again."""


@contextlib.contextmanager
def limited_pages(rig: Rig) -> Iterator[Disk]:
    """SQLite's own limit gives the same error as a full filesystem, and works for every user."""

    async def limit(pages: int) -> None:
        await rig._journal._connection.run(lambda db: db.execute(f"PRAGMA max_page_count = {pages}"))

    yield lambda: limit(1), lambda: limit(1_000_000)  # 1: not one page more than there are


@contextlib.contextmanager
def small_filesystem(rig: Rig) -> Iterator[Disk]:
    """A real filesystem of 2 MB, filled to the last byte."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a filesystem")
    state = rig.folder / "state"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(state)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount a filesystem")

    async def fill() -> None:
        with contextlib.suppress(OSError), open(state / "ballast", "wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4_096))

    async def make_room() -> None:
        subprocess.run(["mount", "-o", "remount,size=64m", str(state)], check=True)

    try:
        yield fill, make_room
    finally:
        # The journal must be closed before, or the filesystem is busy.
        subprocess.run(["umount", "--lazy", str(state)], check=True)


@pytest.mark.parametrize("disk", [limited_pages, small_filesystem])
async def test_a_full_disk_throttles_acknowledges_nothing_and_goes_on_when_there_is_room(
    rig: Rig, disk: Callable[[Rig], contextlib.AbstractContextManager[Disk]]
) -> None:
    link = config.Link(ping_interval_s=0.3, ping_timeout_s=0.3, backoff_first_s=0.05)
    journal = config.JournalSettings(full_retry_s=0.05)
    rig.settings = msgspec.structs.replace(rig.settings, link=link, journal=journal)
    rig.identity("agent")
    peers = [f"peer-{number}" for number in range(4)]
    for peer in peers:
        rig.hub.create_agent(peer)
    with disk(rig) as (fill, make_room):
        await rig.start()
        for peer in peers:
            rig.hub.post(peer, "agent", "while there is room")
        await rig.until(lambda: rig.status()[0]["outbox_sent"] == len(peers))
        await rig.until(lambda: rig.hub.undelivered("agent") == 0)

        await fill()
        for peer in peers:
            rig.hub.post(peer, "agent", *[LARGE] * 10)
        await rig.until(lambda: rig.states() == ["throttled"])
        assert rig.daemon is not None
        assert rig.daemon.operations.status()["journal"]["full"]
        assert "disk" in rig.status()[0]["state_reason"]
        for peer in peers:
            rig.hub.post(peer, "agent", "what comes now", "stays with the server")
        await rig.until(lambda: rig.status()[0]["shed"] == 2 * len(peers))
        pongs = Pongs(rig)
        await rig.until(lambda: pongs.answered >= 3)
        assert rig.hub.undelivered("agent") == 12 * len(peers), "nothing was acknowledged that is not on disk"
        assert len(rig.handled()) == len(peers)
        assert rig.states() == ["throttled"]

        await make_room()
        await rig.until_handled(13 * len(peers))
        await rig.until(lambda: rig.states() == ["live"] and rig.hub.undelivered("agent") == 0)
        await rig.until(lambda: rig.status()[0]["outbox_sent"] == 13 * len(peers))
        await rig.assert_accounted()
        assert rig.status()[0]["reconnects"] == 0
        assert rig.status()[0]["restarts"] == 0
        await rig.stop()


class Pongs:
    """Counts pongs by how old the last one is said to be."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._age_s = 0.0
        self._answered = 0

    @property
    def answered(self) -> int:
        age_s = self._rig.status()[0]["last_pong_age_s"]
        self._answered += age_s < self._age_s
        self._age_s = age_s
        return self._answered


# --- a journal that cannot be used ---


def empty(journal: Path) -> None:
    journal.write_bytes(b"")


def overwrite_its_head(journal: Path) -> None:
    journal.write_bytes(b"no database at all".ljust(4_096) + journal.read_bytes()[4_096:])


def damage_a_page(journal: Path) -> None:
    content = bytearray(journal.read_bytes())
    for at in range(4_096 * 2, len(content), 4_096):
        content[at : at + 64] = b"\xff" * 64
    journal.write_bytes(content)


def cut_it_short(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes()[: 4_096 * 3])


async def exit_code(proof: Proof) -> int:
    """Start a daemon that must end by itself."""
    proof.start()
    async with asyncio.timeout(TIMEOUT_S):
        while proof.running:
            await asyncio.sleep(0.02)
    assert proof._daemon is not None
    return proof._daemon.returncode


async def has_lived(proof: Proof) -> Path:
    """A daemon that has handled and answered something, and was stopped. Returns its journal."""
    proof.peer("peer")
    proof.start()
    await proof.until_live()
    proof.hub.post("peer", "agent-1", *map(str, range(20)))
    assert await proof.until_answered(TIMEOUT_S)
    assert await proof.stop() == 0
    return proof.folder / "state" / "journal.db"


@pytest.mark.parametrize("harm", [empty, overwrite_its_head, damage_a_page, cut_it_short])
async def test_a_damaged_journal_is_refused_with_the_remedy_and_left_as_it_is(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    async with Proof(tmp_path, 1) as proof:
        journal = await has_lived(proof)
        backup = journal.read_bytes()
        harm(journal)
        harmed = journal.read_bytes()
        proof.hub.post("peer", "agent-1", "comes later")
        told_before = len(proof.log)
        assert await exit_code(proof) == 1
        told = proof.log[told_before:]
        assert str(journal) in told
        assert "backup" in told, "the remedy"
        assert "Traceback" not in told
        assert journal.read_bytes() == harmed, "it may be all that is left of somebody's mail"
        assert proof.hub.undelivered("agent-1") == 1
        journal.write_bytes(backup)
        proof.start()
        assert await proof.until_answered(TIMEOUT_S)
        assert await proof.stop() == 0
        assert proof.verdict().clean
        assert proof.verdict().handled_again == 0


async def test_a_journal_that_another_program_has_locked_is_refused_with_the_remedy(tmp_path: Path) -> None:
    async with Proof(tmp_path, 1) as proof:
        journal = await has_lived(proof)
        with contextlib.closing(sqlite3.connect(journal, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            told_before = len(proof.log)
            assert await exit_code(proof) == 1
        told = proof.log[told_before:]
        assert str(journal) in told
        assert "fuser" in told, "how to find out who"
        assert "Traceback" not in told
        proof.start()
        await proof.until_live()
        assert await proof.stop() == 0


async def test_a_journal_that_went_missing_beside_its_last_commits_is_not_made_anew(tmp_path: Path) -> None:
    async with Proof(tmp_path, 1) as proof:
        journal = await has_lived(proof)
        proof.start()
        await proof.until_live()
        proof.hub.post("peer", "agent-1", "in the write-ahead log")
        assert await proof.until_answered(TIMEOUT_S)
        await proof.kill()
        assert journal.with_name("journal.db-wal").stat().st_size > 0
        kept = journal.rename(tmp_path / "kept")
        told_before = len(proof.log)
        assert await exit_code(proof) == 1
        assert "Put the file back" in proof.log[told_before:]
        assert not journal.exists()
        kept.rename(journal)
        proof.start()
        await proof.until_live()
        assert await proof.stop() == 0
        assert proof.verdict().clean


async def test_what_was_left_with_the_server_is_fetched_though_its_reason_ended_during_a_hand_over_that_failed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def reached(self: Departure, path: str) -> None: ...

    async def kept(self: Departure, *given: object) -> bool:
        return False

    monkeypatch.setattr(Departure, "connect", reached)
    monkeypatch.setattr(Departure, "hand_over", kept)
    rig.identity("agent")
    rig.hub.create_agent("peer")
    daemon = await rig.start()
    monkeypatch.setattr(SqliteJournal, "full", True)
    await rig.until(lambda: rig.states() == ["throttled"])
    rig.hub.post("peer", "agent", "hello")
    # Nobody has looked at the disk since.
    monkeypatch.setattr(SqliteJournal, "full", False)
    await daemon.operations.hand_over(
        HandOverRequest(protocol=PROTOCOL, tables=SCHEMA.version, version="0", pid=os.getpid(), socket="nowhere")
    )
    await rig.until(lambda: rig.states() == ["live"])
    await rig.until_handled(1)
