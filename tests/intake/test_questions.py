"""Repeats that only the disk can tell: asked about within a bound, and none forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from agentd.core.events import StreamReset
from agentd.errors import CredentialsRefused, Unavailable
from agentd.intake import Questions
from agentd.intake.questions import Perform
from agentd.wire.platform import Request, Response
from tests.intake.rig import Bench, frame


async def no_request(request: Request) -> Response:
    raise AssertionError("the disk was to be asked, not the platform")


def no_refusal(refused: CredentialsRefused) -> None:
    raise refused


@asynccontextmanager
async def questioned(questions_max: int) -> AsyncIterator[tuple[Bench, Questions]]:
    """An intake that has taken 20 events of each of two conversations; the disk has them."""
    bench = Bench()
    await bench.intake.load()
    bench.intake.settings = msgspec.structs.replace(bench.intake.settings, questions_max=questions_max)
    questions = Questions(bench.intake, no_request, on_credentials=no_refusal)
    bench.intake._on_question = questions.ask
    for conversation in ("conv_1", "conv_2"):
        bench.push(*range(1, 21), conversation=conversation)
    await bench.journal.sync()
    bench.journal.recorded = {(1, seq): f"msg_{seq}" for seq in range(1, 21)}
    bench.wire.acked.clear()
    run = asyncio.create_task(questions.run())
    try:
        yield bench, questions
    finally:
        run.cancel()
        await asyncio.wait([run])


async def settle(bench: Bench) -> None:
    for _ in range(20):
        await bench.journal.sync()
        await asyncio.sleep(0)


async def test_repeats_beyond_the_bound_are_left_unacknowledged_and_fetched_again_later() -> None:
    async with questioned(questions_max=5) as (bench, questions):
        bench.push(*range(1, 21))
        await asyncio.sleep(0)  # the commit of their first copies has ended, and the workers have not begun
        assert questions.full
        assert questions.waiting == 5
        assert questions.forgone == 14, "the one at the mark is known by heart"
        surveys = bench.surveys
        await settle(bench)
        assert not questions.full
        assert len(bench.wire.acked) == 6
        assert bench.surveys == surveys + 1, "a drain is asked for, once"
        for _ in range(4):
            bench.push(*(seq for seq in range(1, 21) if f"msg_{seq}" not in bench.wire.acked))
            await settle(bench)
        assert sorted(bench.wire.acked) == sorted(f"msg_{seq}" for seq in range(1, 21))


async def test_one_repeat_of_each_conversation_is_asked_about_whatever_the_bound() -> None:
    async with questioned(questions_max=1) as (bench, questions):
        bench.push(*range(1, 20))
        bench.push(*range(1, 20), conversation="conv_2")
        await asyncio.sleep(0)
        assert questions.waiting == 2
        await settle(bench)
        assert bench.wire.acked == ["msg_1", "msg_19"]
        bench.push(21)
        bench.push(21, conversation="conv_2")
        await settle(bench)
        assert [record.event.seq for record in bench.records[-2:]] == [21, 21], "nothing waits for what was not asked"


async def test_a_conversation_that_started_over_waits_for_no_answer_about_its_former_numbering() -> None:
    async with questioned(questions_max=100) as (bench, questions):
        bench.push(3)
        await asyncio.sleep(0)
        assert questions.waiting == 1
        decisions = bench.intake.sequencer.reset(
            "conv_1", asyncio.get_running_loop().time(), top=3, adopt=True, known_ids=frozenset()
        )
        bench.intake.apply(decisions)
        await settle(bench)
        bench.push(4)
        await settle(bench)
        assert bench.records[-1].event.seq == 4


@pytest.mark.parametrize("workers", [1, 4])
async def test_several_events_that_tell_of_one_reset_make_one_and_none_of_them_comes_before_it(workers: int) -> None:
    history: dict[int, dict[str, object]] = {}
    measured = asyncio.Event()

    async def history_of(request: Request) -> Response:
        if "after_seq" not in request.query:
            await measured.wait()
        after = int(request.query.get("after_seq", max(history) - 1))
        rows = [row for seq, row in history.items() if seq > after]
        return Response(status=200, headers={}, body=msgspec.json.encode(rows))

    bench = Bench()
    await bench.intake.load()
    bench.intake.settings = msgspec.structs.replace(bench.intake.settings, refetch_concurrency=workers)
    questions = Questions(bench.intake, history_of, on_credentials=no_refusal)
    bench.intake._on_question = questions.ask
    bench.push(*range(1, 6))
    await bench.journal.sync()
    bench.journal.recorded = {(1, seq): f"msg_{seq}" for seq in range(1, 6)}
    run = asyncio.create_task(questions.run())
    for seq in range(1, 8):  # the sixth would be the next in the old numbering
        pushed = frame(seq, msg_id=f"new_{seq}")
        history[seq] = msgspec.json.decode(pushed)["payload"]
        bench.intake.frame(pushed)
        bench.intake.flush()
        await settle(bench)
    assert [record.event.id for record in bench.records[5:]] == []
    measured.set()
    await settle(bench)
    bench.intake.apply(bench.intake.sequencer.wake(asyncio.get_running_loop().time() + 100))
    await settle(bench)
    told = [(record.event.epoch, record.event.id) for record in bench.records[5:]]
    assert told == [(2, f"new_{seq}") for seq in range(1, 8)]
    assert [signal.epoch for signal in bench.signals if isinstance(signal, StreamReset)] == [2]
    run.cancel()
    await asyncio.wait([run])


@asynccontextmanager
async def renumbering(history: Perform, told: list[CredentialsRefused]) -> AsyncIterator[Bench]:
    """An intake that has five events on disk and meets the first of a new numbering; history: answers questions."""
    bench = Bench()
    await bench.intake.load()
    questions = Questions(bench.intake, history, on_credentials=told.append)
    bench.intake._on_question = questions.ask
    bench.push(*range(1, 6))
    await bench.journal.sync()
    run = asyncio.create_task(questions.run())
    bench.intake.frame(frame(1, msg_id="new_1"))
    bench.intake.flush()
    try:
        yield bench
    finally:
        run.cancel()
        await asyncio.wait([run])


@pytest.mark.parametrize("top", [2, 6], ids=["known to the old numbering", "news to it"])
async def test_what_is_pushed_while_a_reset_is_measured_is_asked_for(top: int) -> None:
    rows = [msgspec.json.decode(frame(1, msg_id="new_1"))["payload"]]
    measured, answered = asyncio.Event(), asyncio.Event()

    async def history(request: Request) -> Response:
        after = int(request.query.get("after_seq", rows[-1]["seq"] - 1))
        shown = [row for row in rows if row["seq"] > after][: int(request.query["limit"])]
        measured.set()
        await answered.wait()
        return Response(status=200, headers={}, body=msgspec.json.encode(shown))

    async with renumbering(history, []) as bench:
        while not measured.is_set():
            await settle(bench)
        rows += [msgspec.json.decode(frame(seq, msg_id=f"new_{seq}"))["payload"] for seq in range(2, top + 1)]
        bench.intake.frame(frame(top, msg_id=f"new_{top}"))
        bench.intake.flush()
        await settle(bench)
        answered.set()
        for later in range(1, 5):
            await settle(bench)
            bench.intake.apply(bench.intake.sequencer.wake(asyncio.get_running_loop().time() + later))
        await settle(bench)
        told = [(record.event.epoch, record.event.id) for record in bench.records[5:]]
        assert told == [(2, f"new_{seq}") for seq in range(1, top + 1)]


async def test_where_the_second_look_fails_everything_unacknowledged_is_drained_again() -> None:
    looks = 0

    async def history(request: Request) -> Response:
        nonlocal looks
        looks += 1
        if looks > 1:
            raise Unavailable("not now")
        row = msgspec.json.decode(frame(1, msg_id="new_1"))["payload"]
        return Response(status=200, headers={}, body=msgspec.json.encode([row]))

    async with renumbering(history, []) as bench:
        await settle(bench)
        assert (bench.intake.sequencer.lines["conv_1"].epoch, bench.surveys) == (2, 1)


async def test_a_key_that_is_refused_while_a_reset_is_measured_is_told() -> None:
    told: list[CredentialsRefused] = []

    async def history(request: Request) -> Response:
        raise CredentialsRefused(401, "UNAUTHORIZED")

    async with renumbering(history, told) as bench:
        await settle(bench)
        assert [refused.status for refused in told] == [401]
        assert bench.intake.sequencer.lines["conv_1"].epoch == 1


async def test_a_page_that_is_shorter_than_asked_for_proves_nothing_absent() -> None:
    rows = [msgspec.json.decode(frame(seq))["payload"] for seq in (1, 2, 3, 5)]

    async def one_at_a_time(request: Request) -> Response:
        behind = [row for row in rows if row["seq"] > int(request.query["after_seq"])]
        return Response(status=200, headers={}, body=msgspec.json.encode(behind[:1]))

    bench = Bench()
    await bench.intake.load()
    questions = Questions(bench.intake, one_at_a_time, on_credentials=no_refusal)
    bench.intake._on_question = questions.ask
    run = asyncio.create_task(questions.run())
    bench.push(1)
    bench.push(5)
    for later in range(1, 10):
        bench.intake.apply(bench.intake.sequencer.wake(asyncio.get_running_loop().time() + later))
        await settle(bench)
    assert [record.event.seq for record in bench.records] == [1, 2, 3, 5]
    assert bench.intake.absent == 1, "4 is nowhere"
    run.cancel()
    await asyncio.wait([run])


async def test_a_row_at_the_mark_that_cannot_be_read_says_nothing_of_what_is_behind_it() -> None:
    rows = [msgspec.json.decode(frame(seq))["payload"] for seq in (1, 2, 3)]
    rows[1]["id"] = 7

    async def one_at_a_time(request: Request) -> Response:
        behind = [row for row in rows if row["seq"] > int(request.query["after_seq"])]
        return Response(status=200, headers={}, body=msgspec.json.encode(behind[:1]))

    bench = Bench()
    await bench.intake.load()
    questions = Questions(bench.intake, one_at_a_time, on_credentials=no_refusal)
    bench.intake._on_question = questions.ask
    run = asyncio.create_task(questions.run())
    bench.push(1, 2)
    bench.push(4)
    for later in range(1, 10):
        bench.intake.apply(bench.intake.sequencer.wake(asyncio.get_running_loop().time() + 10 * later))
        await settle(bench)
    assert [record.event.seq for record in bench.records] == [1, 2, 3, 4]
    assert bench.intake.absent == 0
    run.cancel()
    await asyncio.wait([run])


async def test_repeats_that_the_disk_can_tell_wait_for_no_history_that_does_not_answer() -> None:
    hanging = 0

    async def hang(request: Request) -> Response:
        nonlocal hanging
        hanging += 1
        await asyncio.Event().wait()
        raise AssertionError

    bench = Bench()
    await bench.intake.load()
    questions = Questions(bench.intake, hang, on_credentials=no_refusal)
    bench.intake._on_question = questions.ask
    run = asyncio.create_task(questions.run())
    workers = bench.intake.settings.refetch_concurrency
    for number in range(workers + 1):
        bench.push(1, 3, conversation=f"conv_hangs_{number}")
    bench.push(1, 2)
    await bench.journal.sync()
    bench.intake.apply(bench.intake.sequencer.wake(asyncio.get_running_loop().time() + 10))
    await settle(bench)
    assert hanging == workers
    bench.push(1, 3)
    await settle(bench)
    assert [record.event.seq for record in bench.records if record.event.conversation == "conv_1"] == [1, 2, 3]
    run.cancel()
    await asyncio.wait([run])
