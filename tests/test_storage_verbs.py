"""The verbs on the journal's file, beside a real daemon's process and without one."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agentd import cli
from agentd.cli.progress import Progress
from agentd.config import JournalSettings
from agentd.core.events import Message, Record
from agentd.demo.proof import Proof
from agentd.journal.retention import SLICE
from agentd.journal.sqlite import copies, open_journal
from agentd.journal.sqlite.opening import SCHEMA
from agentd.journal.storage import Appended, Conversation


def agentd_command(*words: str | Path, state: Path) -> Result:
    clean = {name: None for name in os.environ if name.startswith(("AGENTD_", "NO_COLOR"))}
    return CliRunner(env=clean).invoke(cli.cli, [*map(str, words), "--state", str(state)], prog_name="agentd")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder with a journal of three old events that no plugin waits for."""
    asyncio.run(_fill(tmp_path / "state", 3, b"{}"))
    return tmp_path / "state"


async def _fill(state: Path, events: int, payload: bytes = bytes(2_000)) -> None:
    journal = await open_journal(state / "journal.db", JournalSettings())
    for seq in range(1, events + 1):
        event = Message(identity="a", conversation="c", seq=seq, epoch=1, id=f"m{seq}", sender="@b", payload=payload)
        mark = Conversation(1, "a", "c", 1, 1, seq, event.id, seq, seq)
        journal.commit(mark, Appended(Record(journal.next_position(), 1, event, 1.5)))
    await journal.commit()
    await journal.close()


async def test_a_running_daemon_is_backed_up_and_not_disturbed(tmp_path: Path) -> None:
    async with Proof(tmp_path, 1) as proof:
        proof.peer("peer")
        proof.start()
        await proof.until_live()
        proof.hub.post("peer", proof.identities[0], "before")
        assert await proof.until_answered(20)
        target = tmp_path / "backup.db"
        told = await asyncio.to_thread(agentd_command, "backup", target, "--json", state=tmp_path / "state")
        assert told.exit_code == 0, told.output
        assert json.loads(told.stdout)["bytes"] == target.stat().st_size
        refused = await asyncio.to_thread(agentd_command, "restore", target, "--yes", state=tmp_path / "state")
        assert refused.exit_code == 1
        assert f"pid {proof.daemon_pid}" in refused.stderr, "who has it"
        shown = await asyncio.to_thread(agentd_command, "retention", "--dry-run", state=tmp_path / "state")
        assert shown.exit_code == 0, shown.output
        kept = await asyncio.to_thread(agentd_command, "retention", state=tmp_path / "state")
        assert (kept.exit_code, kept.stderr) == (0, "0 rows let go\n")
        shrunk = await asyncio.to_thread(agentd_command, "vacuum", "--json", state=tmp_path / "state")
        assert shrunk.exit_code == 0, shrunk.output
        assert json.loads(shrunk.stdout)["bytes"] > 0
        proof.hub.post("peer", proof.identities[0], "after")
        assert await proof.until_answered(20)
        assert await proof.stop() == 0
    with contextlib.closing(sqlite3.connect(target)) as backup:
        payloads = b"".join(row[0] for row in backup.execute("SELECT payload FROM event"))
    assert b"before" in payloads
    assert b"after" not in payloads


async def test_a_daemon_over_a_restored_journal_fetches_what_came_since_and_answers_nothing_twice(
    tmp_path: Path,
) -> None:
    async with Proof(tmp_path, 1) as proof:
        proof.peer("peer")
        proof.start()
        await proof.until_live()
        proof.hub.post("peer", proof.identities[0], "one")
        assert await proof.until_answered(20)
        backup = tmp_path / "backup.db"
        await asyncio.to_thread(copies.back_up, tmp_path / "state" / "journal.db", backup)
        for text in ("two", "three"):
            proof.hub.post("peer", proof.identities[0], text)
        assert await proof.until_answered(20)
        assert await proof.stop() == 0
        told = await asyncio.to_thread(agentd_command, "restore", backup, "--yes", state=tmp_path / "state")
        assert told.exit_code == 0, told.output
        proof.start()
        await proof.until_live()
        proof.hub.post("peer", proof.identities[0], "four")
        assert await proof.until_answered(30)
        verdict = proof.verdict()
        assert verdict.clean, verdict
        assert verdict.handled_again == 2, "what came after the backup was handled again, and its answers were known"
        assert await proof.stop() == 0


def test_a_backup_does_not_replace_a_file_unless_told(state: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    assert agentd_command("backup", target, state=state).exit_code == 0
    again = agentd_command("backup", target, state=state)
    assert again.exit_code == 1
    assert "--force" in again.stderr
    assert agentd_command("backup", target, "--force", state=state).exit_code == 0


def test_nothing_is_restored_where_nobody_can_be_asked(state: Path, tmp_path: Path) -> None:
    agentd_command("backup", tmp_path / "copy", state=state)
    refused = agentd_command("restore", tmp_path / "copy", state=state)
    assert refused.exit_code == 2
    assert "--yes" in refused.stderr


def test_nobody_is_asked_about_a_restore_that_cannot_be_done(state: Path, tmp_path: Path) -> None:
    missing = agentd_command("restore", tmp_path / "gone", state=state)
    assert (missing.exit_code, "gone" in missing.stderr) == (1, True)
    agentd_command("backup", tmp_path / "copy", state=state)
    with copies.owned(state / "journal.db"):
        held = agentd_command("restore", tmp_path / "copy", state=state)
    assert (held.exit_code, "is in use by" in held.stderr) == (1, True)


def test_retention_shows_first_and_lets_go_then(state: Path, tmp_path: Path) -> None:
    bounds = ("--config", tmp_path / "agentd.toml")
    bounds[1].write_text("[agentd.retention]\nevents_max_age_days = 90\n")
    shown = agentd_command("retention", "--dry-run", *bounds, state=state)
    assert "events older than 90 days: 3 may go, 6 B, from 1970-01-01 to 1970-01-01, 1 to 3" in shown.stdout
    machine = json.loads(agentd_command("retention", "--dry-run", "--json", *bounds, state=state).stdout)
    assert machine["would_go"]["events older than 90 days"]["rows"] == 3
    assert machine["went"] == []
    assert "3 rows let go" in agentd_command("retention", *bounds, state=state).stderr
    after = json.loads(agentd_command("retention", "--dry-run", "--json", *bounds, state=state).stdout)
    assert after["would_go"]["events older than 90 days"]["rows"] == 0
    assert [(went["start"], went["stop"], went["rows"]) for went in after["went"]] == [(1, 4, 3)]


@pytest.mark.parametrize("bound", ["retention]\njournal_max_mb = 4", "journal]\nmax_mb = 5"])
def test_what_would_go_for_the_size_is_shown_first(tmp_path: Path, bound: str) -> None:
    """Below the size at which the journal takes nothing more, room is made as well."""
    state = tmp_path / "state"
    asyncio.run(_fill(state, 3_000))
    (config := tmp_path / "agentd.toml").write_text(f"[agentd.{bound}\n")
    shown = json.loads(agentd_command("retention", "--dry-run", "--json", "--config", config, state=state).stdout)
    [(reason, found)] = [(why, found) for why, found in shown["would_go"].items() if found["rows"]]
    assert reason == "events, the oldest, since the journal is above 4 MB"
    assert found["first"] == 1
    assert found["bytes"] >= shown["excess_bytes"] > 0
    assert agentd_command("retention", "--config", config, state=state).exit_code == 0
    after = json.loads(agentd_command("retention", "--dry-run", "--json", "--config", config, state=state).stdout)
    assert after["excess_bytes"] == 0
    [went] = after["went"]
    assert went["start"] == 1
    assert abs(went["stop"] - 1 - found["last"]) <= 2 * SLICE, "what was shown is what went, give or take a slice"


def test_retention_obeys_the_configuration(state: Path, tmp_path: Path) -> None:
    assert "0 rows let go" in agentd_command("retention", state=state).stderr, "by default nothing is too old"
    config = tmp_path / "agentd.toml"
    config.write_text("[agentd.retention]\nevents_max_age_days = -1\n")
    assert agentd_command("retention", "--config", config, state=state).exit_code == 78


def test_a_journal_of_an_older_agentd_can_give_room_back_while_it_is_open_after_one_vacuum(state: Path) -> None:
    with contextlib.closing(sqlite3.connect(state / "journal.db")) as connection:
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("VACUUM")
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    assert agentd_command("vacuum", state=state).exit_code == 0
    with contextlib.closing(sqlite3.connect(state / "journal.db")) as connection:
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)


async def test_a_running_daemon_over_such_a_journal_says_what_it_takes(state: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(state / "journal.db")) as connection:
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("VACUUM")
    async with Proof(tmp_path, 1) as proof:
        proof.start()
        await proof.until_live()
        refused = await asyncio.to_thread(agentd_command, "vacuum", state=state)
        assert refused.exit_code == 1
        assert "stop the daemon, run agentd vacuum once" in refused.stderr
        assert await proof.stop() == 0


def test_a_vacuum_says_what_it_gained(state: Path) -> None:
    told = json.loads(agentd_command("vacuum", "--json", state=state).stdout)
    assert told["bytes"] <= told["bytes_before"]


def test_upgrade_check_of_todays_journal_and_of_its_backup(state: Path, tmp_path: Path) -> None:
    agentd_command("backup", tmp_path / "copy", state=state)
    for words in ((), (tmp_path / "copy",)):
        told = agentd_command("upgrade-check", *words, "--rehearse", state=state)
        assert told.exit_code == 0
        assert "nothing to upgrade" in told.stdout
        assert "rehearsed on a copy" in told.stdout
    assert sorted(each.name for each in tmp_path.iterdir()) == ["copy", "state"]


def test_upgrade_check_refuses_a_newer_journal_with_the_remedy(state: Path) -> None:
    with contextlib.closing(sqlite3.connect(state / "journal.db")) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA.version + 1}")
    told = agentd_command("upgrade-check", state=state)
    assert told.exit_code == 1
    assert "restore the backup of before its upgrade" in told.stdout
    machine = json.loads(agentd_command("upgrade-check", "--json", state=state).stdout)
    assert (machine["readable"], machine["version"], machine["known"]) == (False, SCHEMA.version + 1, SCHEMA.version)


@pytest.mark.parametrize(
    "words", [["backup", "nothing.db"], ["vacuum"], ["retention"], ["upgrade-check"]], ids=lambda w: w[0]
)
def test_where_there_is_no_journal_every_verb_says_how_to_name_one(words: list[str], tmp_path: Path) -> None:
    told = agentd_command(*words, state=tmp_path / "nothing")
    assert told.exit_code == 1
    assert "--state" in told.stderr


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What was written to a terminal."""
    written: list[str] = []
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.echo", lambda text, **_: written.append(text))
    return lambda: "".join(written)


def test_progress_is_told_after_a_second_with_the_time_that_is_left(terminal: Callable[[], str]) -> None:
    now = [0.0]
    progress = Progress("copying", lambda: now[0])
    progress(10, 100)
    assert terminal() == ""
    now[0] = 2.0
    progress(25, 100)
    assert "copying: 25 %, about 6 s left" in terminal()
    progress.over()
    assert terminal().endswith("\r\x1b[K")


def test_a_line_without_an_end_is_refused_before_it_has_filled_memory(tmp_path: Path) -> None:
    file = tmp_path / "endless.jsonl"
    with file.open("wb") as endless:
        endless.truncate(8 << 30)  # takes no room
    command = [sys.executable, "-m", "agentd", "import", str(file), "--state", str(tmp_path / "state")]
    told = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)),
    )
    assert told.returncode == 1
    assert "line 1 is no event as `agentd export` writes it (it is longer than 67,108,864 bytes)" in told.stderr
    assert "Traceback" not in told.stderr


_BESIDE_A_SERVICE = """
import pathlib
import sys

from agentd import cli
from agentd.cli import storage

storage.SERVICE_STATE = pathlib.Path(sys.argv.pop(1))
cli.main()
"""


def _like_anybody() -> None:
    """Root may read everything by two capabilities, which the program that is begun then has no more."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


@pytest.mark.parametrize("words", [["backup", "copy.db"], ["vacuum"], ["retention", "--dry-run"], ["upgrade-check"]])
def test_what_belongs_to_the_service_is_told_without_a_traceback(words: list[str], tmp_path: Path) -> None:
    """As for anybody but root, on a machine where agentd runs as a service."""
    theirs = tmp_path / "of-the-service"
    theirs.mkdir(0o000)
    command = [sys.executable, "-c", _BESIDE_A_SERVICE, str(theirs), *words]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, preexec_fn=_like_anybody)
    assert (told.returncode, told.stderr) == (
        1,
        f"agentd: {theirs / 'journal.db'} belongs to another user; use sudo, or name other files\n",
    )
