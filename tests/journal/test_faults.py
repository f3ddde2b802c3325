"""What an error of SQLite means."""

import sqlite3

import pytest

from agentd.errors import JournalUnusable
from agentd.journal.sqlite import copies, faults, open_journal


def error(code, name="SQLITE_X"):
    raised = sqlite3.OperationalError("words that may quote content")
    raised.sqlite_errorcode = code
    raised.sqlite_errorname = name
    return raised


def test_a_full_database_waits_for_room(tmp_path):
    verdict = faults.verdict(error(sqlite3.SQLITE_FULL), tmp_path / "journal.db")
    assert isinstance(verdict, faults.MustWait)
    assert verdict.full


def test_a_full_database_on_a_disk_with_room_names_its_own_limit_if_it_has_one(tmp_path, monkeypatch):
    full = error(sqlite3.SQLITE_FULL)
    limited = faults.verdict(full, tmp_path / "journal.db", limited=True)
    assert limited.full
    assert limited.at_limit
    assert "agentd.journal.max_mb" in str(limited)
    assert not faults.verdict(full, tmp_path / "journal.db").at_limit
    monkeypatch.setattr(faults, "has_room", lambda folder: False)
    assert not faults.verdict(full, tmp_path / "journal.db", limited=True).at_limit, "the disk is to blame"


def test_an_io_error_on_a_disk_without_room_waits_for_room(tmp_path, monkeypatch):
    # SQLite reports an exhausted quota like this.
    monkeypatch.setattr(faults, "has_room", lambda folder: folder != tmp_path)
    verdict = faults.verdict(error(sqlite3.SQLITE_IOERR_WRITE), tmp_path / "journal.db")
    assert isinstance(verdict, faults.MustWait)
    assert verdict.full


def test_an_io_error_on_a_disk_with_room_gives_the_file_up(tmp_path):
    verdict = faults.verdict(error(sqlite3.SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC"), tmp_path / "journal.db")
    assert isinstance(verdict, JournalUnusable)
    assert "SQLITE_IOERR_FSYNC" in str(verdict)
    assert "disk" in str(verdict)


def test_a_file_that_another_process_holds_waits_but_is_not_full(tmp_path):
    verdict = faults.verdict(error(sqlite3.SQLITE_BUSY_SNAPSHOT), tmp_path / "journal.db")
    assert isinstance(verdict, faults.MustWait)
    assert not verdict.full


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT_INDEX, sqlite3.SQLITE_NOTADB])
def test_damage_names_the_file_and_the_remedy_and_quotes_nothing(tmp_path, code):
    verdict = faults.verdict(error(code), tmp_path / "journal.db")
    assert isinstance(verdict, JournalUnusable)
    assert str(tmp_path / "journal.db") in str(verdict)
    assert ".recover" in str(verdict)
    assert "quote" not in str(verdict)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_ERROR])
def test_everything_else_is_the_fault_of_the_statement(tmp_path, code):
    assert faults.verdict(error(code), tmp_path / "journal.db") is None


def test_an_error_without_a_code_is_the_fault_of_the_statement(tmp_path):
    assert faults.verdict(sqlite3.ProgrammingError("wrong type"), tmp_path / "journal.db") is None


def test_a_disk_with_room_is_told_from_a_folder_that_is_not_ours(tmp_path):
    assert faults.has_room(tmp_path)
    assert faults.has_room(tmp_path / "missing")


@pytest.mark.parametrize("replaced", [False, True])
async def test_nothing_is_said_to_be_on_disk_that_went_to_a_file_without_the_journals_name(
    journal, arrived, path, settings, replaced
):
    """As when somebody puts a backup in place by hand while the daemon runs: SQLite goes on writing to the former."""
    await journal.commit(*arrived(seq=1))
    copies.back_up(path, path.parent / "backup")
    await journal.commit(*arrived(seq=2))
    kept = path.rename(path.parent / "kept")
    if replaced:
        (path.parent / "backup").rename(path)
    assert journal.size_bytes == (path.stat().st_size if replaced else 0)
    with pytest.raises(JournalUnusable, match=r"moved, removed or replaced while agentd had it open"):
        await journal.commit(*arrived(seq=3))
    await journal.close()
    kept.rename(path)
    again = await open_journal(path, settings)
    assert await again.last_position() == 2
    await again.close()
