"""A disk without room: nothing is acknowledged, nothing is lost, and it goes on by itself.

SQLite's own page limit gives the same error as a full filesystem and works everywhere; where this user may mount one,
a real filesystem is filled as well.
"""

import asyncio
import contextlib
import os
import subprocess

import msgspec
import pytest

from agentd.errors import JournalError, JournalFull
from agentd.journal.sqlite import copies, faults, open_journal

PAYLOAD = b"x" * 20_000


def limit_pages(journal, pages):
    return journal._connection.run(lambda db: db.execute(f"PRAGMA max_page_count = {pages}"))


async def test_commits_wait_for_room_in_their_order_and_then_go_on(journal, arrived, logged):
    await journal.commit(*arrived(seq=1))
    await limit_pages(journal, 40)
    waiting = [journal.commit(*arrived(seq=seq, payload=PAYLOAD)) for seq in range(2, 40)]
    await logged.wait_for("commits wait")
    assert journal.full
    assert journal.waiting_since is not None
    assert not any(future.done() for future in waiting)
    assert await journal.last_position() == 1
    behind = journal.commit(*arrived(seq=40))
    await limit_pages(journal, 1_000_000)
    await asyncio.gather(*waiting, behind)
    assert not journal.full
    assert [row.position for row in await journal.read_lane(1, 0, 99)] == list(range(1, 41))


async def test_a_change_that_would_fit_does_not_overtake_one_that_waits(journal, arrived, logged):
    await journal.commit(*arrived(seq=1))
    await limit_pages(journal, 40)
    large = journal.commit(*arrived(seq=2, payload=PAYLOAD * 20))
    await logged.wait_for("commits wait")
    small = journal.commit(*arrived(seq=3))
    await limit_pages(journal, 1_000_000)
    await small
    assert large.done()


async def test_closing_without_room_says_which_commits_are_not_on_disk(path, settings, arrivals, logged):
    journal = await open_journal(path, settings)
    arrived = arrivals(journal)
    await journal.commit(*arrived(seq=1))
    await limit_pages(journal, 40)
    lost = journal.commit(*arrived(seq=2, payload=PAYLOAD * 20))
    await logged.wait_for("commits wait")
    behind = journal.commit(*arrived(seq=3))
    await journal.close()
    assert isinstance(lost.exception(), JournalFull)
    assert isinstance(behind.exception(), JournalError)
    reopened = await open_journal(path, settings)
    assert await reopened.last_position() == 1
    await reopened.close()


async def test_a_journal_that_has_reached_its_own_limit_is_full_and_goes_on_when_the_limit_is_raised(
    path, settings, arrivals, logged
):
    limited = msgspec.structs.replace(settings, max_mb=1)
    journal = await open_journal(path, limited)
    arrived = arrivals(journal)
    waiting = [journal.commit(*arrived(seq=seq, payload=PAYLOAD)) for seq in range(1, 100)]
    await logged.wait_for("agentd.journal.max_mb")
    assert (journal.full, journal.at_limit) == (True, True)
    await journal.close()
    on_disk = sum(future.exception() is None for future in waiting)
    assert on_disk < 99
    assert path.stat().st_size <= 1 << 20
    smaller = await open_journal(path, limited)
    assert await smaller.last_position() == on_disk
    refused = smaller.commit(*arrivals(smaller)(seq=1, conversation="conv_b", payload=PAYLOAD * 50))
    await smaller.close()
    assert isinstance(refused.exception(), JournalFull)
    raised = await open_journal(path, settings)
    await raised.commit(*arrivals(raised)(seq=1, conversation="conv_b", payload=PAYLOAD * 50))
    assert not raised.full
    await raised.close()


@contextlib.contextmanager
def small_filesystem(folder):
    """A real filesystem of 2 MB, filled to the last byte when `fill` is called; None where mounting is not allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this user may not mount a filesystem")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder):
    with contextlib.suppress(OSError), open(folder / "ballast", "wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4_096))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a filesystem")
async def test_a_really_full_filesystem_is_survived(tmp_path, settings, arrivals, logged):
    with small_filesystem(tmp_path / "disk") as folder:
        journal = await open_journal(folder / "journal.db", settings)
        arrived = arrivals(journal)
        await journal.commit(*arrived(seq=1))
        fill(folder)
        assert not faults.has_room(folder)
        waiting = [journal.commit(*arrived(seq=seq, payload=PAYLOAD)) for seq in range(2, 12)]
        await logged.wait_for("commits wait")
        assert journal.full
        (folder / "ballast").unlink()
        await asyncio.gather(*waiting)
        assert faults.has_room(folder)
        assert not journal.full
        await journal.close()
        reopened = await open_journal(folder / "journal.db", settings)
        assert await reopened.last_position() == 11
        await reopened.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a filesystem")
async def test_a_backup_to_a_full_disk_names_that_disk_and_not_the_journals(tmp_path, journal, arrived, path):
    for seq in range(1, 40):
        journal.commit(*arrived(seq=seq, payload=PAYLOAD))
    await journal.commit()
    with small_filesystem(tmp_path / "disk") as folder:
        fill(folder)
        with pytest.raises(JournalFull, match=f"no room for {folder / 'copy'}"):
            copies.back_up(path, folder / "copy")
        assert [each.name for each in folder.glob("copy*")] == []
