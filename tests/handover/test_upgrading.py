"""The process that is to take over, as the one that runs starts it: real processes, which do as they are told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.control.refusal import ControlError
from agentd.handover import upgrading
from agentd.handover.departing import Departure
from agentd.handover.upgrading import Upgrade, own_command

_PATIENCE_S = 10.0
SILENT = "import time; time.sleep(600)"


def program(text: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", text]


@pytest.fixture
def ends() -> Iterator[list[int]]:
    """Processes that are ended with the test."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def refused(upgrade: Upgrade) -> ControlError:
    async with asyncio.timeout(_PATIENCE_S):
        with pytest.raises(ControlError) as told:
            await upgrade.outcome()
    return told.value


@pytest.mark.parametrize(("code", "told"), [(1, "code 1"), (78, "code 78: its configuration or a plugin is broken")])
async def test_how_it_ended_is_told_if_it_ends_before_it_was_accepted(code: int, told: str) -> None:
    upgrade = await Upgrade.begin(program(f"raise SystemExit({code})"))
    refusal = await refused(upgrade)
    assert refusal.message == f"the new process has ended with {told}"
    assert "this one goes on" in refusal.remedy


async def test_one_that_has_ended_is_not_killed_since_its_number_may_be_anothers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upgrade = await Upgrade.begin(program("raise SystemExit(1)"))
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(pid))
    await refused(upgrade)
    upgrade.call_off()
    assert killed == []


async def test_what_it_was_told_goes_before_how_it_ended() -> None:
    upgrade = await Upgrade.begin(program("raise SystemExit(1)"))
    upgrade.refused(ControlError(409, "NOT_HANDED_OVER", "its journal is of version 1", "stop this one"))
    refusal = await refused(upgrade)
    assert (refusal.code, str(refusal)) == ("NOT_UPGRADED", "its journal is of version 1; stop this one")


async def test_one_that_asks_for_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrading, "_BEGIN_S", 0.2)
    upgrade = await Upgrade.begin(program(SILENT))
    assert "asked for nothing within 0.2 s" in (await refused(upgrade)).message
    assert not Path(f"/proc/{upgrade.pid}").exists()


async def test_one_that_is_called_off_is_ended() -> None:
    upgrade = await Upgrade.begin(program(SILENT))
    upgrade.call_off()
    assert "ended with code -9" in (await refused(upgrade)).message


async def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=f"{tmp_path}/gone cannot be started; install agentd there again"):
        await Upgrade.begin([f"{tmp_path}/gone"])


async def test_once_it_is_accepted_nothing_is_between_it_and_whoever_looks_after_orphans(ends: list[int]) -> None:
    upgrade = await Upgrade.begin(program(SILENT))
    ends.append(upgrade.pid)
    launcher = parent_of(upgrade.pid)
    assert parent_of(launcher) == os.getpid()
    departure = Departure(upgrade.pid)
    upgrade.accepted(departure, "9.9")
    await upgrade.released()
    assert not Path(f"/proc/{launcher}").exists()
    assert parent_of(upgrade.pid) not in (launcher, os.getpid())
    upgrade.call_off()
    assert Path(f"/proc/{upgrade.pid}").exists(), "what was accepted is not ended from here"
    departure.serves.set_result(None)
    assert await upgrade.outcome() == (departure, "9.9")


async def test_one_that_was_accepted_and_took_nothing_over_is_told(ends: list[int]) -> None:
    upgrade = await Upgrade.begin(program(SILENT))
    ends.append(upgrade.pid)
    upgrade.accepted(Departure(upgrade.pid), "9.9")
    upgrade.kept()
    assert (await refused(upgrade)).message == "the new process has not taken over"
    await upgrade.released()


async def test_it_writes_where_this_process_writes(tmp_path: Path) -> None:
    output = os.dup(1)
    file = os.open(tmp_path / "output", os.O_WRONLY | os.O_CREAT)
    try:
        os.dup2(file, 1)
        upgrade = await Upgrade.begin(program("import sys; sys.exit(print('hello', sys.stdin.read(), flush=True))"))
        await refused(upgrade)
    finally:
        os.dup2(output, 1)
        os.close(output)
        os.close(file)
    assert (tmp_path / "output").read_text().split() == ["hello"]


@pytest.mark.parametrize("given", [["run"], ["run", "--take-over"]])
def test_the_command_is_that_of_this_process_and_takes_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: list[str]
) -> None:
    installed = tmp_path / "agentd"
    installed.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(installed), *given])
    assert own_command() == [str(installed), "run", "--take-over"]
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "__main__.py"), *given])
    assert own_command() == [sys.executable, "-m", "agentd", "run", "--take-over"]
