"""When commits are written, with a disk that the test holds in its hand."""

import asyncio
import time

import pytest

from agentd.errors import JournalError, JournalFull, JournalUnusable
from agentd.journal.sqlite.faults import MustWait
from agentd.journal.sqlite.group_commit import GroupCommit, Linger


class Disk:
    """Keeps each group until the test lets it through, or fails it."""

    def __init__(self):
        self.groups = []
        self.verdicts = asyncio.Queue()
        self.asked = asyncio.Queue()

    async def write(self, calls):
        await self.asked.put(calls)
        verdict = await self.verdicts.get()
        if isinstance(verdict, Exception):
            raise verdict
        self.groups.append([change for call in calls for change in call])
        return verdict

    async def let_through(self, verdict=None):
        calls = await self.asked.get()
        await self.verdicts.put({} if verdict is None else verdict)
        return [change for call in calls for change in call]


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
async def queue(disk):
    queue = GroupCommit(disk.write, linger_s=0.0, full_retry_s=0.001)
    task = asyncio.create_task(queue.run())
    yield queue
    queue.close()
    async with asyncio.timeout(10):
        await task


async def test_a_lone_commit_is_written_at_once(queue, disk):
    future = queue.commit(("a",))
    await disk.let_through()
    await future
    assert disk.groups == [["a"]]


async def test_what_arrives_during_a_write_goes_into_the_next_group_in_order(queue, disk):
    first = queue.commit(("a",))
    await disk.asked.get()
    rest = [queue.commit((letter,)) for letter in "bcd"]
    await disk.verdicts.put({})
    await first
    assert not any(future.done() for future in rest)
    assert await disk.let_through() == ["b", "c", "d"]
    await asyncio.gather(*rest)
    assert (queue.commits, queue.changes) == (2, 4)


async def test_only_the_offender_of_a_group_fails(queue, disk):
    futures = [queue.commit((letter,)) for letter in "abc"]
    await disk.let_through({1: JournalError("taken")})
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert results[0] is None
    assert str(results[1]) == "taken"
    assert results[2] is None


async def test_a_commit_whose_caller_went_away_is_written_all_the_same(queue, disk):
    gone, stayed = queue.commit(("a",)), queue.commit(("b",))
    gone.cancel()
    await disk.let_through()
    await stayed
    assert disk.groups == [["a", "b"]]


async def test_without_room_the_same_group_is_tried_again_and_nothing_overtakes_it(queue, disk, logged):
    first = queue.commit(("a",))
    await disk.let_through(MustWait("no room", full=True))
    second = queue.commit(("b",))
    for _ in range(3):
        assert await disk.let_through(MustWait("no room", full=True)) == ["a"]
        assert queue.held_up.full
        assert not first.done()
    assert await disk.let_through() == ["a"]
    assert await disk.let_through() == ["b"]
    await asyncio.gather(first, second)
    assert queue.held_up is None
    assert [line.partition(":")[0] for line in logged.lines] == [
        "commits wait, nothing is acknowledged",
        "commits are written again; it was",
    ]


async def test_closing_writes_what_waits(disk):
    queue = GroupCommit(disk.write, linger_s=0.0, full_retry_s=1.0)
    future = queue.commit(("a",))
    queue.close()
    task = asyncio.create_task(queue.run())
    await disk.let_through()
    await task
    assert future.done()
    assert disk.groups == [["a"]]


async def test_closing_without_room_refuses_what_waits_and_does_not_hang(disk, logged):
    queue = GroupCommit(disk.write, linger_s=0.0, full_retry_s=3600.0)
    task = asyncio.create_task(queue.run())
    writing = queue.commit(("a",))
    await disk.let_through(MustWait("no room", full=True))
    await logged.wait_for("commits wait")
    behind = queue.commit(("b",))
    queue.close()
    await disk.let_through(MustWait("no room", full=True))
    await task
    assert isinstance(writing.exception(), JournalFull)
    assert isinstance(behind.exception(), JournalError)


async def test_after_closing_a_commit_is_refused(disk):
    queue = GroupCommit(disk.write, linger_s=0.0, full_retry_s=1.0)
    queue.close()
    await queue.run()
    with pytest.raises(JournalError, match="closed"):
        await queue.commit(("a",))


@pytest.mark.parametrize("error", [JournalUnusable("damaged"), RuntimeError("a bug")])
async def test_a_writer_that_cannot_go_on_refuses_all_that_waits_and_comes(disk, error):
    queue = GroupCommit(disk.write, linger_s=0.0, full_retry_s=1.0)
    task = asyncio.create_task(queue.run())
    first = queue.commit(("a",))
    await disk.asked.get()
    second = queue.commit(("b",))
    await disk.verdicts.put(error)
    await task
    third = queue.commit(("c",))
    refusals = [future.exception() for future in (first, second, third)]
    assert all(isinstance(refusal, JournalUnusable) for refusal in refusals)
    assert len({id(refusal) for refusal in refusals}) == 3


async def test_a_writer_that_is_cancelled_leaves_no_commit_hanging(disk):
    queue = GroupCommit(disk.write, linger_s=0.0, full_retry_s=1.0)
    task = asyncio.create_task(queue.run())
    writing = queue.commit(("a",))
    await disk.asked.get()
    waiting = queue.commit(("b",))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(writing.exception(), JournalError)
    assert isinstance(waiting.exception(), JournalError)


async def test_waiting_since_tells_the_age_of_the_oldest_unwritten_commit(queue, disk):
    assert queue.waiting_since is None
    before = time.monotonic()
    first = queue.commit(("a",))
    since_first = queue.waiting_since
    assert before <= since_first <= time.monotonic()
    await disk.asked.get()
    second = queue.commit(("b",))
    assert queue.waiting_since == since_first
    await disk.verdicts.put({})
    await first
    assert queue.waiting_since > since_first
    await disk.let_through()
    await second
    assert queue.waiting_since is None
    assert before <= queue.last_commit_at <= time.monotonic()
    assert 0 <= queue.last_commit_s <= time.monotonic() - before


def test_a_lone_commit_never_lingers():
    linger = Linger(0.002)
    assert not linger.wanted(100.0, 1)
    linger.written(100.0)
    assert not linger.wanted(100.003, 1)


def test_under_a_steady_stream_a_small_group_lingers_and_a_large_one_does_not():
    linger = Linger(0.002)
    linger.written(100.0)
    assert linger.wanted(100.001, 1)
    assert not linger.wanted(100.001, 500)


def test_lingering_that_brings_nobody_is_given_up_for_a_while():
    linger = Linger(0.002)
    linger.written(100.0)
    linger.waited(0)
    wanted = [linger.wanted(100.001, 1) for _ in range(100)]
    assert wanted[:32] == [False] * 32
    assert wanted[32]
    linger.waited(3)
    assert linger.wanted(100.001, 1)


def test_no_linger_means_none():
    linger = Linger(0.0)
    linger.written(100.0)
    assert not linger.wanted(100.0, 1)
