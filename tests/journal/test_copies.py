"""Backup, restore, vacuum and the look at a version: real files, and a daemon's journal that is being written."""

import asyncio
import os
import sqlite3
import threading
import time

import pytest

from agentd.errors import JournalUnusable
from agentd.journal.sqlite import copies, open_journal
from agentd.journal.sqlite.opening import SCHEMA, Schema, load_schema
from agentd.journal.storage import StatePut

NEXT = Schema(
    SCHEMA.version + 1,
    SCHEMA.create.replace(f"user_version = {SCHEMA.version}", f"user_version = {SCHEMA.version + 1}")
    + "\nCREATE TABLE lease (number INTEGER PRIMARY KEY) STRICT;",
    SCHEMA.steps | {SCHEMA.version + 1: "-- Leases.\nCREATE TABLE lease (number INTEGER PRIMARY KEY) STRICT;"},
)


@pytest.fixture
async def closed(path, settings, arrivals):
    journal = await open_journal(path, settings)
    arrived = arrivals(journal)
    for seq in range(1, 200):
        journal.commit(*arrived(seq=seq, payload=bytes(450)))
    await journal.commit()
    await journal.close()
    return path


async def last_position(path, settings):
    journal = await open_journal(path, settings)
    try:
        return await journal.last_position()
    finally:
        await journal.close()


async def test_a_backup_of_a_journal_that_is_written_is_whole_and_takes_part_of_nothing(
    path, settings, arrivals, tmp_path
):
    """Each commit puts an event and its mark; a copy that had one without the other would be no moment of it."""
    journal = await open_journal(path, settings)
    arrived = arrivals(journal)
    await journal.commit(*arrived(payload=bytes(2_000)))
    stop = threading.Event()
    backups = []
    committed = [1]

    def copy_again_and_again():
        while len(backups) < 5:
            backups.append(tmp_path / f"backup-{len(backups)}")
            copies.back_up(path, backups[-1])
            before = committed[-1]
            while committed[-1] == before:
                time.sleep(0.001)
        stop.set()

    copying = asyncio.create_task(asyncio.to_thread(copy_again_and_again))
    seq = 1
    while not stop.is_set() or seq < 50:
        for _ in range(20):
            seq += 1
            journal.commit(*arrived(seq=seq, payload=bytes(2_000)))
        await journal.commit()
        committed.append(seq)
    await copying
    await journal.close()
    tops = []
    for backup in backups:
        connection = sqlite3.connect(backup)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        events, top = connection.execute("SELECT count(*), max(seq) FROM event").fetchone()
        assert (events, top) == (top, connection.execute("SELECT mark FROM conversation").fetchone()[0])
        connection.close()
        tops.append(top)
        assert backup.stat().st_mode & 0o777 == 0o600
        assert await last_position(backup, settings) == top
    assert tops == sorted(tops)
    assert tops[-1] > tops[0], "it was written meanwhile"


async def test_a_backup_gives_up_before_the_file_beside_the_journal_has_grown_too_large(
    path, settings, arrivals, tmp_path
):
    journal = await open_journal(path, settings)
    arrived = arrivals(journal)
    for seq in range(1, 2_501):
        journal.commit(*arrived(seq=seq, payload=bytes(2_000)))
    await journal.commit()
    begun, go_on = threading.Event(), threading.Event()

    def copied(done, of):
        begun.set()
        assert go_on.wait(20)

    copying = asyncio.create_task(
        asyncio.to_thread(copies.back_up, path, tmp_path / "copy", wal_max_mb=1, progress=copied)
    )
    assert await asyncio.to_thread(begun.wait, 20)
    at_first = journal.wal_bytes
    while journal.wal_bytes < at_first + 1_000_000:
        seq += 1
        await journal.commit(*arrived(seq=seq, payload=bytes(200_000)))
    go_on.set()
    with pytest.raises(JournalUnusable, match="--wal-max-mb"):
        await copying
    assert list(tmp_path.glob("copy*")) == []
    await journal.close()


@pytest.mark.parametrize("encryption", ["plain"], indirect=True)  # it opens the file itself
async def test_a_backup_without_a_daemon_is_the_same_and_leaves_nothing_else_behind(closed, settings, tmp_path):
    copies.back_up(closed, tmp_path / "copy")
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["copy"]
    assert await last_position(tmp_path / "copy", settings) == 199


async def test_a_file_that_is_there_is_replaced_only_if_told(closed, tmp_path):
    target = tmp_path / "copy"
    target.write_text("precious")
    with pytest.raises(JournalUnusable, match="--force"):
        copies.back_up(closed, target)
    assert target.read_text() == "precious"
    copies.back_up(closed, target, force=True)
    assert target.stat().st_size > 10_000


async def test_the_journal_itself_is_no_place_for_its_backup(closed, tmp_path):
    (tmp_path / "link").symlink_to(closed)
    content = closed.read_bytes()
    with pytest.raises(JournalUnusable, match="the journal itself"):
        copies.back_up(closed, tmp_path / "link", force=True)
    assert closed.read_bytes() == content


@pytest.mark.parametrize("encryption", ["plain"], indirect=True)  # it opens the file itself
async def test_a_backup_that_cannot_be_finished_leaves_no_half_of_itself(closed, tmp_path):
    content = bytearray(closed.read_bytes())
    content[8_192:40_960] = b"\xa5" * 32_768
    closed.write_bytes(content)
    with pytest.raises(JournalUnusable):
        copies.back_up(closed, tmp_path / "copy")
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == []


async def test_two_backups_to_one_file_at_a_time_do_not_build_in_each_others(closed, settings, tmp_path):
    """The second began the file anew, and the first gave the name to what the second had of it."""
    daemon = await open_journal(closed, settings)
    begun, go_on = threading.Event(), threading.Event()

    def first(done, of):
        begun.set()
        assert go_on.wait(20)

    copying = asyncio.create_task(asyncio.to_thread(copies.back_up, closed, tmp_path / "copy", progress=first))
    assert await asyncio.to_thread(begun.wait, 20)
    with pytest.raises(JournalUnusable, match="is being written by another process"):
        copies.back_up(closed, tmp_path / "copy")
    go_on.set()
    await copying
    await daemon.close()
    assert [each.name for each in tmp_path.glob("copy*")] == ["copy"]
    assert await last_position(tmp_path / "copy", settings) == 199


async def test_what_a_killed_backup_left_is_begun_anew(closed, settings, tmp_path):
    left = tmp_path / "copy.unfinished"
    left.write_bytes(b"half a journal" * 1_000)
    left.chmod(0o644)
    copies.back_up(closed, tmp_path / "copy")
    assert [each.name for each in tmp_path.glob("copy*")] == ["copy"]
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600
    assert await last_position(tmp_path / "copy", settings) == 199


async def test_a_rehearsal_beside_a_daemon_lets_its_file_grow_no_more_than_a_backup_does(
    closed, settings, tmp_path, monkeypatch
):
    monkeypatch.setattr(copies, "WAL_MAX_MB", -1)  # as if it had grown already
    daemon = await open_journal(closed, settings)
    with pytest.raises(JournalUnusable, match="rehearse on a backup"):
        copies.rehearse(closed, tmp_path)
    await daemon.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root works for another user")
async def test_what_root_restores_can_be_opened_by_the_user_of_the_folder(closed, tmp_path):
    copies.back_up(closed, tmp_path / "copy")
    folder = tmp_path / "of-the-service"
    folder.mkdir()
    os.chown(folder, 65_534, 65_533)
    copies.restore(tmp_path / "copy", folder / "journal.db")
    owners = {each.name: (each.stat().st_uid, each.stat().st_gid) for each in folder.iterdir()}
    assert owners == dict.fromkeys(("journal.db", "journal.db.lock"), (65_534, 65_533))


@pytest.mark.parametrize("content", [None, "not a database " * 100])
async def test_what_is_no_journal_is_told_so(tmp_path, content):
    path = tmp_path / "journal.db"
    if content:
        path.write_text(content)
    with pytest.raises(JournalUnusable, match=r"no journal at|cannot be used"):
        copies.back_up(path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


async def test_a_restored_journal_is_the_backup_and_the_former_is_kept(closed, settings, arrivals, tmp_path):
    copies.back_up(closed, tmp_path / "copy")
    journal = await open_journal(closed, settings)
    await journal.commit(StatePut("echo", 0, "since", b"1"))
    await journal.close()
    (closed.parent / "running").write_bytes(b"marks")
    kept = copies.restore(tmp_path / "copy", closed)
    assert not (closed.parent / "running").exists()
    assert closed.stat().st_mode & 0o777 == 0o600
    journal = await open_journal(closed, settings)
    assert await journal.last_position() == 199
    assert await journal.state_get("echo", 0, "since") is None
    await journal.close()
    former = await open_journal(kept, settings)
    assert await former.state_get("echo", 0, "since") == b"1"
    await former.close()


async def test_a_damaged_journal_is_kept_with_its_last_commits_when_it_is_replaced(closed, settings, tmp_path):
    copies.back_up(closed, tmp_path / "copy")
    closed.write_bytes(b"\xa5" * 40_960)
    wal = closed.with_name("journal.db-wal")
    wal.write_bytes(b"last commits")
    kept = copies.restore(tmp_path / "copy", closed)
    assert kept.read_bytes() == b"\xa5" * 40_960
    assert kept.with_name(f"{kept.name}-wal").read_bytes() == b"last commits"
    assert not wal.exists()
    assert await last_position(closed, settings) == 199


async def test_last_commits_of_a_journal_that_is_gone_are_not_read_into_the_restored_one(closed, settings, tmp_path):
    copies.back_up(closed, tmp_path / "copy")
    closed.unlink()
    left = [closed.with_name(f"journal.db{suffix}") for suffix in ("-wal", "-shm")]
    for each in left:
        each.write_bytes(b"of another")
    kept = copies.restore(tmp_path / "copy", closed)
    assert not any(each.exists() for each in left)
    assert kept.name.endswith("-wal")
    assert kept.read_bytes() == b"of another"
    assert await last_position(closed, settings) == 199


async def test_a_backup_is_restored_where_there_is_no_journal_yet(closed, settings, tmp_path):
    copies.back_up(closed, tmp_path / "copy")
    elsewhere = tmp_path / "elsewhere" / "journal.db"
    elsewhere.parent.mkdir()
    assert copies.restore(tmp_path / "copy", elsewhere) is None
    assert await last_position(elsewhere, settings) == 199


async def test_nothing_is_restored_or_vacuumed_under_a_running_daemon(closed, settings, tmp_path):
    copies.back_up(closed, tmp_path / "copy")
    journal = await open_journal(closed, settings)
    for work in (lambda: copies.restore(tmp_path / "copy", closed), lambda: copies.vacuum(closed)):
        with pytest.raises(JournalUnusable, match=f"pid {os.getpid()}"):
            work()
    await journal.commit(StatePut("echo", 0, "k", b"1"))
    await journal.close()


async def test_a_backup_from_a_newer_agentd_is_not_restored(closed, settings, tmp_path):
    newer = tmp_path / "newer.db"
    journal = await open_journal(newer, settings, schema=NEXT)
    await journal.close()
    before = closed.read_bytes()
    with pytest.raises(JournalUnusable, match=f"version {NEXT.version}"):
        copies.restore(newer, closed)
    assert closed.read_bytes() == before


@pytest.mark.parametrize("encryption", ["plain"], indirect=True)  # it opens the file itself
async def test_a_vacuum_gives_back_what_is_not_used(closed, settings):
    connection = sqlite3.connect(closed)
    connection.execute("DELETE FROM event")
    connection.commit()
    connection.close()
    before, after = copies.vacuum(closed)
    assert after < before
    assert after == closed.stat().st_size
    assert closed.stat().st_mode & 0o777 == 0o600


async def test_a_journal_of_this_version_needs_no_steps(closed):
    found = copies.standing(closed)
    assert (found.version, found.steps, found.readable) == (SCHEMA.version, (), True)


async def test_an_older_journal_is_readable_after_the_steps_that_are_told(closed):
    found = copies.standing(closed, NEXT)
    assert found.readable
    assert found.steps == ((NEXT.version, "Leases."),)


async def test_a_newer_journal_is_not_readable(tmp_path, settings):
    newer = tmp_path / "newer.db"
    journal = await open_journal(newer, settings, schema=NEXT)
    assert not copies.standing(newer).readable, "also while a daemon has it open"
    await journal.close()
    assert not copies.standing(newer).readable


async def test_a_rehearsal_upgrades_a_copy_and_leaves_the_journal_alone(closed, tmp_path):
    content = closed.read_bytes()
    copies.rehearse(closed, tmp_path, NEXT)
    assert copies.standing(tmp_path / "rehearsal.db", NEXT).version == NEXT.version
    assert closed.read_bytes() == content


async def test_a_step_that_cannot_be_carried_out_shows_in_the_rehearsal(closed, tmp_path):
    failing = Schema(NEXT.version, NEXT.create, SCHEMA.steps | {NEXT.version: "INSERT INTO nowhere VALUES (1);"})
    with pytest.raises(JournalUnusable):
        copies.rehearse(closed, tmp_path, failing)


async def test_looking_at_a_backup_leaves_nothing_beside_it(closed, tmp_path):
    folder = tmp_path / "readonly"
    folder.mkdir()
    copies.back_up(closed, folder / "copy")
    copies.standing(folder / "copy")
    assert [each.name for each in folder.iterdir()] == ["copy"]


async def test_a_folder_with_a_second_version_is_upgraded_to_step_by_step(closed, settings, tmp_path):
    """What the next release will be: its page of tables, and one step from this one."""
    folder = tmp_path / "next"
    (folder / "migrations").mkdir(parents=True)
    column = "ALTER TABLE identity ADD COLUMN note TEXT NOT NULL DEFAULT '';"
    step = f"-- A note on each identity.\n{column}\nUPDATE identity SET note = 'upgraded';"
    (folder / "migrations" / "0002_note.sql").write_text(step)
    page = SCHEMA.create.replace("user_version = 1", "user_version = 2")
    (folder / "schema.sql").write_text(f"{page}\n{column}")
    schema = load_schema(folder)
    assert copies.standing(closed, schema).steps == ((2, "A note on each identity."),)
    before = closed.read_bytes()
    copies.rehearse(closed, tmp_path, schema)
    assert closed.read_bytes() == before
    journal = await open_journal(closed, settings, schema=schema)
    await journal.close()
    assert copies.standing(closed, schema) == copies.Standing(2, 2, ())
    with pytest.raises(JournalUnusable, match="newer agentd"):
        await open_journal(closed, settings)
    [backup] = closed.parent.glob("journal.db.v1-*.backup")
    kept = copies.restore(backup, closed)
    assert copies.standing(closed) == copies.Standing(1, 1, ())
    assert copies.standing(kept, schema).version == 2, "the way back keeps the way forward"
    assert await last_position(closed, settings) == 199
