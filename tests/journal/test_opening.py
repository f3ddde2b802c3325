"""Opening: made once, checked always, upgraded with a backup, and refused with the remedy rather than replaced."""

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agentd.errors import JournalUnusable
from agentd.journal.sqlite import open_journal, opening
from agentd.journal.sqlite.opening import SCHEMA, Schema, load_schema
from agentd.journal.storage import StatePut

VERSIONS = Path(__file__).parent / "versions"


@pytest.fixture
async def closed(path, settings, arrivals):
    """A journal with some events in it, closed, all of it in its one file."""
    journal = await open_journal(path, settings)
    arrived = arrivals(journal)
    for seq in range(1, 200):
        journal.commit(*arrived(seq=seq, payload=bytes(450)))
    await journal.commit()
    await journal.close()
    assert not path.with_name("journal.db-wal").exists()
    return path


@contextlib.contextmanager
def database(path):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def pragma(path, name):
    with database(path) as connection:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]


def objects(connection):
    return sorted(connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"))


async def refused(path, settings, **more):
    with pytest.raises(JournalUnusable) as caught:
        await open_journal(path, settings, **more)
    return str(caught.value)


async def test_a_new_journal_is_private_synced_and_in_wal(journal, path):
    settings = await journal._connection.run(
        lambda db: [
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    )
    assert settings == ["wal", 2, 1]
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_the_reading_connection_cannot_write(journal):
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await journal._reader.run(lambda db: db.execute("DELETE FROM event"))


async def test_what_a_killed_first_start_left_behind_is_no_obstacle(path, settings):
    path.parent.mkdir()
    path.with_name("journal.db.new").write_bytes(b"half")
    journal = await open_journal(path, settings)
    await journal.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["journal.db", "journal.db.lock"]


async def test_a_missing_wal_is_fine(closed, settings):
    closed.with_name("journal.db-wal").unlink(missing_ok=True)
    journal = await open_journal(closed, settings)
    assert await journal.last_position() == 199
    await journal.close()


async def test_a_position_is_not_used_again_after_the_log_was_trimmed(closed, settings):
    with database(closed) as connection:
        connection.execute("DELETE FROM event")
    journal = await open_journal(closed, settings)
    assert journal.next_position() == 200
    assert await journal.last_position() == 199
    await journal.close()


@pytest.mark.parametrize("damage", ["middle", "header", "cut", "rubbish"])
async def test_a_damaged_file_is_refused_with_the_remedy_and_left_alone(closed, settings, damage):
    content = bytearray(closed.read_bytes())
    match damage:
        case "middle":
            content[8_192:40_960] = b"\xa5" * 32_768
        case "header":
            content[:100] = b"\x00" * 100
        case "cut":
            del content[20_480:]
        case "rubbish":
            content = bytearray(b"not a database " * 1_000)
    closed.write_bytes(content)
    told = await refused(closed, settings)
    assert str(closed) in told
    assert ".recover" in told
    assert closed.read_bytes() == content


async def test_an_empty_file_is_not_taken_for_a_new_journal(closed, settings):
    closed.write_bytes(b"")
    assert "a journal never is" in await refused(closed, settings)
    assert closed.read_bytes() == b""


async def test_a_journal_that_vanished_from_beside_its_wal_is_not_made_anew(closed, settings):
    wal = closed.with_name("journal.db-wal")
    closed.unlink()
    wal.write_bytes(b"the last commits")
    assert str(wal) in await refused(closed, settings)
    assert not closed.exists()
    assert wal.read_bytes() == b"the last commits"


async def test_another_database_is_not_taken_for_a_journal(path, settings):
    path.parent.mkdir()
    with database(path) as connection:
        connection.execute("CREATE TABLE recipe (name TEXT)")
    assert "not a journal" in await refused(path, settings)
    with database(path) as connection:
        assert [name for _, name, _ in objects(connection)] == ["recipe"]


async def test_a_folder_that_cannot_be_made_is_refused_with_its_name(tmp_path, settings):
    (tmp_path / "file").write_bytes(b"")
    assert str(tmp_path / "file" / "journal.db") in await refused(tmp_path / "file" / "journal.db", settings)


async def test_a_folder_in_place_of_the_file_is_refused(tmp_path, settings):
    (tmp_path / "journal.db").mkdir()
    assert str(tmp_path / "journal.db") in await refused(tmp_path / "journal.db", settings)


@pytest.mark.parametrize("mode", ["IMMEDIATE", "EXCLUSIVE"])
async def test_a_file_that_another_program_holds_is_refused_with_the_remedy(closed, settings, monkeypatch, mode):
    monkeypatch.setattr(opening, "_BUSY_TIMEOUT_S", 0.01)
    with database(closed) as intruder:
        intruder.execute(f"BEGIN {mode}")
        told = await refused(closed, settings)
    assert "another process" in told
    assert "fuser" in told
    journal = await open_journal(closed, settings)
    await journal.close()


async def test_commits_wait_while_another_program_holds_the_file(closed, settings, monkeypatch, logged):
    monkeypatch.setattr(opening, "_BUSY_TIMEOUT_S", 0.01)
    journal = await open_journal(closed, settings)
    with database(closed) as intruder:
        intruder.execute("BEGIN IMMEDIATE")
        future = journal.commit(StatePut("echo", 0, "k", b"1"))
        await logged.wait_for("held by another process")
        assert not journal.full
        assert not future.done()
        intruder.execute("ROLLBACK")
        await future
    assert await journal.state_get("echo", 0, "k") == b"1"
    await journal.close()


SPOIL = """
import sys
with open(sys.argv[1], "r+b") as file:
    size = file.seek(0, 2)
    file.seek(4096)
    file.write(b"\\xa5" * (size - 4096))
"""


async def test_damage_that_shows_while_running_ends_all_commits(closed, settings, monkeypatch, arrivals):
    monkeypatch.setattr(opening, "_CACHE_KIB", 0)  # so that pages are read from the disk and not remembered
    journal = await open_journal(closed, settings)
    # By another process: closing a file here would drop this process's locks on it.
    subprocess.run([sys.executable, "-c", SPOIL, closed], check=True)
    arrived = arrivals(journal)
    first = journal.commit(*arrived("conv_a", 500))
    with pytest.raises(JournalUnusable, match="recover"):
        await first
    with pytest.raises(JournalUnusable, match="recover"):
        await journal.commit(StatePut("echo", 0, "k", b"1"))
    await journal.close()


async def test_damage_that_a_read_meets_ends_all_commits_too(closed, settings, monkeypatch, logged):
    monkeypatch.setattr(opening, "_CACHE_KIB", 0)
    journal = await open_journal(closed, settings)
    subprocess.run([sys.executable, "-c", SPOIL, closed], check=True)
    with pytest.raises(JournalUnusable, match="recover"):
        await journal.read_lane(1, 0, 500)
    assert any("given up" in line for line in logged.lines)
    with pytest.raises(JournalUnusable, match="recover"):
        await journal.commit(StatePut("echo", 0, "k", b"1"))
    await journal.close()


NEXT = Schema(
    SCHEMA.version + 1,
    SCHEMA.create.replace(f"user_version = {SCHEMA.version}", f"user_version = {SCHEMA.version + 1}")
    + "\nCREATE TABLE lease (number INTEGER PRIMARY KEY) STRICT;",
    SCHEMA.steps | {SCHEMA.version + 1: "CREATE TABLE lease (number INTEGER PRIMARY KEY) STRICT;"},
)


async def test_a_newer_journal_is_refused_and_left_alone(path, settings):
    journal = await open_journal(path, settings, schema=NEXT)
    await journal.close()
    content = path.read_bytes()
    told = await refused(path, settings)
    assert f"version {NEXT.version}" in told
    assert "backup" in told
    assert path.read_bytes() == content


async def test_an_older_journal_is_upgraded_and_was_copied_before(closed, settings):
    journal = await open_journal(closed, settings, schema=NEXT)
    assert await journal.last_position() == 199
    await journal.close()
    assert pragma(closed, "user_version") == NEXT.version
    [backup] = closed.parent.glob(f"journal.db.v{SCHEMA.version}-*.backup")
    assert backup.stat().st_mode & 0o777 == 0o600
    restored = await open_journal(backup, settings)
    assert await restored.last_position() == 199
    await restored.close()


async def test_a_journal_of_this_version_is_not_copied(closed, settings):
    journal = await open_journal(closed, settings)
    await journal.close()
    assert list(closed.parent.glob("*backup*")) == []


async def test_an_upgrade_that_fails_leaves_the_old_version_whole(closed, settings):
    half = "CREATE TABLE lease (number INTEGER PRIMARY KEY) STRICT; INSERT INTO nowhere VALUES (1);"
    failing = msgspec.structs.replace(NEXT, steps=SCHEMA.steps | {NEXT.version: half})
    assert "backup" in await refused(closed, settings, schema=failing)
    assert pragma(closed, "user_version") == SCHEMA.version
    journal = await open_journal(closed, settings)
    assert await journal.last_position() == 199
    await journal.close()


async def test_a_copy_that_was_cut_short_does_not_stop_the_next_upgrade(closed, settings):
    closed.with_name("journal.db.backup-unfinished").write_bytes(b"half")
    journal = await open_journal(closed, settings, schema=NEXT)
    await journal.close()
    assert len(list(closed.parent.glob("*backup*"))) == 1


@pytest.mark.parametrize("dump", sorted(VERSIONS.glob("*.sql")), ids=lambda dump: dump.stem)
async def test_every_version_ever_released_upgrades_to_the_schema_of_today(path, settings, dump):
    path.parent.mkdir()
    with database(path) as connection:
        connection.executescript(dump.read_text())
        assert connection.execute("SELECT count(*) FROM event").fetchone()[0] > 0
    journal = await open_journal(path, settings)
    assert await journal.last_position() > 0
    await journal.close()
    with database(path) as upgraded, database(":memory:") as fresh:
        fresh.executescript(SCHEMA.create)
        assert objects(upgraded) == objects(fresh)


def test_each_version_from_the_second_has_one_step(tmp_path):
    (tmp_path / "migrations").mkdir()
    (tmp_path / "schema.sql").write_text("PRAGMA user_version = 3;\n")
    (tmp_path / "migrations" / "0002_timers.sql").write_text("SELECT 2;")
    with pytest.raises(ValueError, match="one step for each version"):
        load_schema(tmp_path)
    (tmp_path / "migrations" / "0003_more.sql").write_text("SELECT 3;")
    assert load_schema(tmp_path).steps == {2: "SELECT 2;", 3: "SELECT 3;"}
    (tmp_path / "migrations" / "0003_again.sql").write_text("SELECT 3;")
    with pytest.raises(ValueError, match="one step for each version"):
        load_schema(tmp_path)
