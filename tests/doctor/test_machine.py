"""What the doctor says of a machine: real folders, limits and journals."""

from __future__ import annotations

import os
import resource
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd import __version__
from agentd.config import Identity, JournalSettings, KeySource, Settings
from agentd.doctor import FAIL, OK, WARN, examine, machine
from agentd.doctor.finding import Finding
from agentd.journal.sqlite import lock, open_journal
from agentd.journal.sqlite.opening import SCHEMA


def states(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(each.check, each.state) for each in findings]


def test_what_is_installed_is_fine() -> None:
    [finding] = machine.versions()
    assert finding.state == OK
    assert __version__ in finding.told


@pytest.mark.parametrize(
    ("requirement", "told"),
    [
        ("msgspec>=0.20,<1", None),
        ("msgspec>=99", "is needed"),
        ("msgspec<0.1,>=0.0.1", "is needed"),
        ("no-such-library>=1", "is not installed"),
    ],
)
def test_a_library_is_judged_by_the_version_that_was_asked_for(
    requirement: str, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda _: [requirement, 'pytest>=99; extra == "test"'])
    problems = [each for each in machine.versions() if each.state == FAIL]
    assert [told in each.told for each in problems if told] == ([True] if told else [])
    assert all(requirement in each.remedy for each in problems)


def test_an_old_sqlite_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.opening, "LIBRARY", "3.36.0")
    assert [each.about for each in machine.versions() if each.state == FAIL] == ["SQLite"]


def test_a_private_state_folder_is_fine_and_an_open_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    assert states(machine.state_folder(folder)) == [("state folder", OK)]
    folder.chmod(0o755)
    [finding] = machine.state_folder(folder)
    assert finding.state == WARN
    assert finding.remedy == f"chmod 700 {folder}"


def test_a_state_folder_that_is_not_there_is_fine_where_it_can_be_made(tmp_path: Path) -> None:
    assert states(machine.state_folder(tmp_path / "a" / "b")) == [("state folder", OK)]
    assert not (tmp_path / "a").exists()


def test_a_file_in_the_state_folders_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    assert states(machine.state_folder(tmp_path / "state")) == [("state folder", FAIL)]


def test_a_state_folder_of_another_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: uid + 1)
    [finding] = machine.state_folder(tmp_path)
    assert finding.state == FAIL
    assert "chown" in finding.remedy


def test_the_disk_is_measured_and_nothing_stays_behind(tmp_path: Path) -> None:
    findings = machine.disk(tmp_path / "not" / "there")
    assert [each.check for each in findings] == ["disk speed", "disk room"]
    assert "p99" in findings[0].told
    assert list(tmp_path.iterdir()) == []


def test_a_slow_disk_and_a_full_one_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_sync_times", lambda _: (0.05, 0.4))
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage(10_000_000))
    assert states(machine.disk(tmp_path)) == [("disk speed", WARN), ("disk room", FAIL)]
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage(500_000_000))
    assert states(machine.disk(tmp_path))[1] == ("disk room", WARN)


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def settings(count: int) -> Settings:
    key = KeySource(env="KEY")
    return Settings(identity={f"i{number}": Identity(url="https://a.example", key=key) for number in range(count)})


@pytest.mark.usefixtures("few_descriptors")
def test_the_limit_of_open_files_must_fit_the_identities() -> None:
    assert states(machine.descriptors(settings(3), None)) == [("descriptors", OK)]
    [finding] = machine.descriptors(settings(300), None)
    assert finding.state == FAIL
    assert "LimitNOFILE" in finding.remedy
    running = machine.Running(os.getpid(), __version__, "/state")
    assert "the daemon may open 200 files" in machine.descriptors(settings(3), running)[0].told


async def test_a_journal_is_looked_at_with_who_holds_it(tmp_path: Path) -> None:
    assert machine.journal(tmp_path, None) == []
    journal = await open_journal(tmp_path / "journal.db", JournalSettings())
    running = machine.Running(os.getpid(), __version__, str(tmp_path))
    assert states(machine.journal(tmp_path, running)) == [("journal", OK)]
    [_, held] = machine.journal(tmp_path, None)
    assert held.state == FAIL
    assert f"pid {os.getpid()}" in held.told
    await journal.close()
    assert states(machine.journal(tmp_path, None)) == [("journal", OK)]


async def test_looking_at_who_holds_a_journal_takes_no_lock(tmp_path: Path) -> None:
    journal = await open_journal(tmp_path / "journal.db", JournalSettings())
    await journal.close()
    assert lock.holder(tmp_path / "journal.db") is None, "the file is there, its holder has gone"
    watch = "import sys; from pathlib import Path; from agentd.journal.sqlite import lock\n"
    watch += "print('looking', flush=True)\nwhile True: lock.holder(Path(sys.argv[1]))"
    with subprocess.Popen([sys.executable, "-c", watch, tmp_path / "journal.db"], stdout=subprocess.PIPE) as looking:
        assert looking.stdout is not None
        looking.stdout.readline()
        for _ in range(50):
            again = await open_journal(tmp_path / "journal.db", JournalSettings())  # refused if somebody locked it
            await again.close()
        looking.kill()


async def test_a_damaged_journal_and_a_newer_one_are_told(tmp_path: Path) -> None:
    journal = await open_journal(tmp_path / "journal.db", JournalSettings())
    await journal.close()
    connection = sqlite3.connect(tmp_path / "journal.db")
    connection.execute(f"PRAGMA user_version = {SCHEMA.version + 1}")
    connection.close()
    [newer] = machine.journal(tmp_path, None)
    assert (newer.state, "upgrade-check" in newer.remedy) == (FAIL, True)
    (tmp_path / "journal.db").write_bytes(b"rubbish " * 1_000)
    [damaged] = machine.journal(tmp_path, None)
    assert (damaged.state, "restore" in damaged.remedy) == (FAIL, True)


def test_where_no_daemon_runs_that_is_no_fault(tmp_path: Path) -> None:
    running, findings = machine.daemon(None, {"AGENTD_STATE": str(tmp_path)})
    assert running is None
    assert states(findings) == [("daemon", OK)]


def test_a_daemon_that_runs_is_asked_about_its_identities(served: Any) -> None:
    running, findings = machine.daemon(None, {"AGENTD_STATE": str(served.path.parent)})
    assert running is not None
    assert findings[0].check == "daemon"
    assert all(each.state == OK for each in findings if each.check == "state" and each.told == "live")


def test_a_socket_that_nobody_answers_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "control.sock"))
    running, findings = machine.daemon(None, {"AGENTD_STATE": str(tmp_path)})
    assert running is None
    assert states(findings) == [("daemon", WARN)]


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A state folder within one that this user may not enter, as the service's is for everybody else."""
    state = tmp_path / "private" / "state"
    state.mkdir(parents=True)
    (state / "journal.db").touch()
    (tmp_path / "private").chmod(0)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65_534)
    yield state
    os.seteuid(was)
    (tmp_path / "private").chmod(0o700)


def test_a_state_folder_that_this_user_may_not_enter_is_told_and_ends_no_check(closed: Path) -> None:
    [finding] = machine.state_folder(closed)
    assert (finding.state, finding.told) == (FAIL, "cannot be looked at (Permission denied)")
    assert machine.daemon(None, {"AGENTD_STATE": str(closed)})[0] is None
    assert machine.journal(closed, None) == []
    assert machine.known_handles(closed) == {}
    assert {each.check for each in machine.disk(closed)} == {"disk speed", "disk room"}


def test_a_name_that_no_file_can_have_is_told_and_ends_no_check(tmp_path: Path) -> None:
    examined = examine(None, {"AGENTD_STATE": str(tmp_path / ("x" * 300))})
    assert [each.told for each in examined if each.check == "state folder"] == [
        "cannot be looked at (File name too long)"
    ]
