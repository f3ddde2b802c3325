"""SIGKILL at any moment: what was told as committed is there, each commit is whole, and the file is sound."""

import contextlib
import importlib.util
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.journal.sqlite import open_journal

CHILD = Path(__file__).parent / "append_until_killed.py"
SPEC = importlib.util.spec_from_file_location("append_until_killed", CHILD)
child = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(child)


def run_and_kill(path, acks):
    """Let a child append to the journal and kill it when it has told this many positions. Returns all that it told."""
    with subprocess.Popen([sys.executable, CHILD, path], stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            told = [process.stdout.readline() for _ in range(acks + 1)]
        finally:
            process.kill()
        told += process.stdout.readlines()
    assert told[0] == b"open\n", "the child could not open the journal"
    # The last line may have been cut by the kill.
    return [int(line) for line in told[1:] if line.endswith(b"\n")]


@pytest.mark.parametrize("encryption", ["plain"], indirect=True)  # its child opens the file
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_journal_survives_being_killed_again_and_again(path, settings, seed):
    chance = random.Random(seed)
    told = []
    for _ in range(6):
        told += run_and_kill(path, chance.choice([0, 1, chance.randrange(20), chance.randrange(400)]))
        await assert_sound(path, settings, told)
    assert len(told) == len(set(told)) > 100


async def assert_sound(path, settings, told):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    journal = await open_journal(path, settings)
    try:
        records = await journal.read_log(None, 0, 1_000_000)
        assert [record.position for record in records] == list(range(1, len(records) + 1))
        assert all(record.payload == child.payload_of(record.position) for record in records)
        assert max(told, default=0) <= len(records)
        cursors = await journal.cursors("echo")
        for mark in await journal.conversations("alice"):
            own = [record for record in records if record.conversation == mark.number]
            assert mark.mark == len(own) == await journal.count_behind(mark.number, 0)
            places = [(mark.number, 1, seq) for seq in range(1, mark.mark + 1)]
            assert await journal.ids_at(places) == [f"msg_{record.position}" for record in own]
            last = own[-1].position
            assert mark.position == cursors[mark.number] == last
            assert await journal.state_get("echo", mark.number, "last") == str(last).encode()
        assert (await journal.totals("alice")).journaled == len(records)
        assert journal.next_position() == len(records) + 1
    finally:
        await journal.close()
