"""One daemon per journal, with real processes."""

import asyncio
import os
import subprocess
import sys

import pytest

import agentd
from agentd.errors import JournalUnusable
from agentd.journal.sqlite import SqliteJournal, open_journal
from agentd.journal.storage import Conversation

CONVERSATION = Conversation(1, "alice", "conv_1", 1, 1, 1, "msg_1", 1, 0)

HOLD = """
import asyncio, sys
from pathlib import Path
from agentd.config import JournalSettings
from agentd.journal.sqlite import open_journal

async def hold():
    journal = await open_journal(Path(sys.argv[1]), JournalSettings())
    print("open", flush=True)
    sys.stdin.read()

asyncio.run(hold())
"""


async def test_a_second_daemon_is_refused_and_told_about_the_first(path, settings):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        try:
            assert first.stdout.readline() == "open\n"
            with pytest.raises(JournalUnusable) as refused:
                await open_journal(path, settings)
        finally:
            first.kill()
    told = str(refused.value)
    assert all(word in told for word in (str(path), str(first.pid), os.uname().nodename, agentd.__version__, "since"))
    journal = await open_journal(path, settings)  # the lock ended with its process
    await journal.close()


async def test_the_same_process_cannot_open_a_journal_twice(journal, path, settings):
    with pytest.raises(JournalUnusable, match=str(os.getpid())):
        await open_journal(path, settings)


async def test_a_closed_journal_can_be_opened_again_and_closing_twice_is_closing_once(journal, path, settings):
    await journal.close()
    await journal.close()
    again = await open_journal(path, settings)
    await again.close()


async def test_a_lock_without_a_name_in_it_refuses_all_the_same(journal, path, settings):
    path.with_name(path.name + ".lock").write_bytes(b"")
    with pytest.raises(JournalUnusable, match="another process"):
        await open_journal(path, settings)


async def test_a_process_that_does_not_close_its_journal_can_end(path):
    leave = HOLD.replace("sys.stdin.read()", "raise SystemExit(3)")
    ended = subprocess.run([sys.executable, "-c", leave, path], capture_output=True, timeout=20)
    assert ended.returncode == 3


async def test_a_journal_can_be_let_go_and_taken_again_as_it_is(journal, path, settings):
    await journal.commit(CONVERSATION)
    await journal.close()
    other = await open_journal(path, settings)
    await other.close()
    await journal.open(checked=True)
    assert await journal.conversations("alice") == [CONVERSATION]
    assert journal.next_conversation() == CONVERSATION.number + 1


async def test_who_waits_for_a_lock_has_it_when_its_holder_is_gone(path, settings):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "open\n"
        waiting = SqliteJournal(path, settings)
        opening = asyncio.ensure_future(waiting.open(wait_s=20.0))
        await asyncio.sleep(0.1)
        assert not opening.done()
        first.kill()
        await opening
        await waiting.close()
