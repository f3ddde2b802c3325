"""Wake-ups: in their conversation's turn, once each, across restarts, with keys that a repeat repeats."""

import asyncio
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.dispatcher.timers import Timers, next_beat, recurring
from agentd.errors import GiveUp, PluginLoadError
from agentd.journal.storage import TimerGone, TimerSet
from agentd.plugin import Context, Event, Message, Plugin, RetryLater, Signal, Timer
from agentd.testing import Harness

# --- which are due


def timer(id_: str, due_at: float, name: str = "", identity: str = "me") -> TimerSet:
    return TimerSet(id_, "p", identity, 0, "", name, due_at, b"null")


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 100) | st.just(math.inf)), max_size=30))
def test_each_timer_is_due_once_at_the_time_it_was_given_last(puts: list[tuple[int, float]]) -> None:
    timers, last = Timers(), {}
    for number, due_at in puts:
        timers.put(timer(str(number), due_at))
        last[str(number)] = due_at
    finite = {id_: due_at for id_, due_at in last.items() if due_at < math.inf}
    assert timers.next_due() == min(finite.values(), default=None)
    due = timers.pop_due(1_000.0)
    assert {each.id: each.due_at for each in due} == finite
    assert [each.due_at for each in due] == sorted(finite.values())
    assert timers.pop_due(1_000.0) == []


def test_one_that_was_dropped_is_not_due() -> None:
    timers = Timers()
    timers.put(timer("a", 1.0))
    timers.drop("a")
    assert timers.next_due() is None


@given(st.floats(0, 1e6), st.floats(0.5, 1e4), st.floats(0, 1e5))
def test_the_next_beat_is_the_first_on_the_beat_that_is_not_past(
    began: float, interval_s: float, late_s: float
) -> None:
    [first] = recurring("p", {"f": interval_s}, ["me"], [], began)
    assert isinstance(first, TimerSet)
    now = first.due_at + late_s
    following = next_beat(first, interval_s, now)
    assert now < following.due_at <= now + interval_s * 1.001 + 0.01
    assert following.id != first.id
    beats = (following.due_at - first.due_at) / interval_s
    assert beats == pytest.approx(round(beats), abs=0.02)


def test_a_recurring_handler_keeps_its_time_and_one_that_is_gone_loses_its_timer() -> None:
    kept, gone = timer("every-k-5", 5.0, "kept"), timer("every-g-5", 5.0, "gone")
    changes = recurring("p", {"kept": 9.0, "new": 10.0}, ["me"], [kept, gone, timer("t", 1.0)], 100.0)
    [fresh] = [each for each in changes if isinstance(each, TimerSet)]
    assert (fresh.name, fresh.due_at) == ("new", 110.0)
    assert [each.id for each in changes if isinstance(each, TimerGone)] == ["every-g-5"]


# --- reminders


def reminding(**options: Any) -> tuple[Plugin[None], list[Any]]:
    plugin = Plugin("p")
    fired: list[Any] = []

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        ctx.state.put("asked", message.text)
        ctx.remind(60.0, data={"about": message.text})

    @plugin.on(Timer, **options)
    async def wake(timer: Timer, ctx: Context) -> None:
        fired.append((timer.data["about"], ctx.attempt, await ctx.state.get("asked", str)))
        ctx.send("@bob", f"you said {timer.data['about']}")

    return plugin, fired


async def test_a_reminder_comes_at_its_time_in_its_conversation_with_its_data() -> None:
    plugin, fired = reminding()
    async with Harness(plugin) as h:
        await h.message("tea")
        await h.advance(59)
        assert fired == []
        assert len(h.timers) == 1
        await h.advance(2)
        assert fired == [("tea", 1, "tea")]
        assert h.texts == ["you said tea"]
        assert h.timers == []
        await h.advance(600)
        assert len(fired) == 1


async def test_what_was_due_while_nobody_was_there_comes_at_once_after_the_restart_and_once() -> None:
    plugin, fired = reminding()
    async with Harness(plugin) as h:
        await h.message("tea")
        h.clock.pass_by(600.0)
        await h.crash()
        assert fired == [("tea", 1, "tea")]
        await h.crash()
        assert len(fired) == 1


async def test_a_crash_between_the_handler_and_its_commit_repeats_it_with_the_same_keys() -> None:
    plugin, fired = reminding()
    async with Harness(plugin) as h:
        await h.message("tea")
        h.crash_after_handler()
        await h.advance(61)
        assert [about for about, _, _ in fired] == ["tea", "tea"]
        assert [send.client_msg_id for send in h.lost] == [send.client_msg_id for send in h.sent]
        assert h.texts == ["you said tea"]
        assert h.timers == []


async def test_a_turn_that_fails_reminds_nobody() -> None:
    plugin = Plugin("p")

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        ctx.remind(1.0)
        raise GiveUp("no")

    @plugin.on(Timer)
    async def wake(timer: Timer, ctx: Context) -> None: ...

    async with Harness(plugin) as h:
        await h.message("a")
        assert h.timers == []


async def test_a_timer_and_an_event_of_one_conversation_never_run_together() -> None:
    plugin = Plugin("p")
    inside = most = 0

    async def work() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        inside -= 1

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        ctx.remind(1.0)
        await work()

    @plugin.on(Timer)
    async def wake(timer: Timer, ctx: Context) -> None:
        await work()

    async with Harness(plugin) as h:
        for _ in range(5):
            await h.message("a")
        h.clock.pass_by(5.0)
        for _ in range(5):
            await h.message("b", settle=False)
        await h.advance(0.0)
        await h.advance(10.0)
        assert h.timers == []
        assert h.pending == 0
    assert most == 1


async def test_a_timer_that_fails_comes_again_and_stays_with_its_reason_when_it_is_given_up() -> None:
    plugin, attempts = Plugin("p"), []

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        ctx.remind(at=datetime.fromtimestamp(h.clock.unix(), UTC) + timedelta(seconds=10))

    @plugin.on(Timer, attempts=2)
    async def wake(timer: Timer, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise ValueError("broken")

    async with Harness(plugin) as h:
        await h.message("a")
        await h.advance(3_600)
        assert attempts == [1, 2]
        [left] = h.timers
        assert (left.failures, left.error, left.due_at) == (2, "ValueError: broken", math.inf)
        await h.crash()
        await h.advance(3_600)
        assert attempts == [1, 2]


async def test_a_timer_whose_handler_ends_the_process_is_not_run_for_ever() -> None:
    plugin = Plugin("p")
    runs: list[int] = []

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        ctx.remind(0.0)

    @plugin.on(Timer)
    async def wake(timer: Timer, ctx: Context) -> None:
        runs.append(ctx.attempt)
        await asyncio.Event().wait()

    async with Harness(plugin, attempts=3) as h:
        await h.message("a", settle=False)
        await h.message("b", sender="@ann", settle=False)
        for _ in range(3):
            before = len(runs)
            while len(runs) < before + 2:
                for callback in iter(lambda: h.clock.next_timer(h.clock.monotonic()), None):
                    callback()
                await asyncio.sleep(0)
            await h.crash(settle=False)
        await h.settle()
        assert sorted(runs) == [1, 1, 2, 2, 3, 3]
        assert [each.error for each in h.timers] == ["the process died while it ran"] * 2


async def test_starts_while_its_whole_plugin_waits_cost_a_timer_no_attempt() -> None:
    plugin, attempts = Plugin("p"), []

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        ctx.remind(1.0)

    @plugin.on(Timer)
    async def wake(timer: Timer, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if len(attempts) < 5:
            raise RetryLater(60, whole_plugin=True)

    async with Harness(plugin, attempts=2) as h:
        await h.message("a")
        for _ in range(5):
            await h.advance(2)
            await h.crash()
        assert attempts == [1] * 5
        assert h.timers == []


async def test_what_a_timers_turn_has_noted_is_known_to_its_repeat_however_that_comes_about() -> None:
    plugin = Plugin("p")
    known: list[Any] = []

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        ctx.remind(1.0)

    @plugin.on(Timer)
    async def wake(timer: Timer, ctx: Context) -> None:
        known.append(ctx.last_progress)
        ctx.progress(len(known))
        if len(known) == 1:
            raise RetryLater(60, whole_plugin=True)
        if len(known) == 2:
            raise ValueError("broken")
        if len(known) == 3:
            await asyncio.Event().wait()  # until the daemon is stopped

    async with Harness(plugin) as h:
        await h.message("a")
        await h.advance(2)
        await h.advance(120)
        while len(known) < 3:
            h.clock.pass_by(60)
            for callback in iter(lambda: h.clock.next_timer(h.clock.monotonic()), None):
                callback()
            await asyncio.sleep(0)
        await h._dispatcher.stop(0.0)
        await h.crash()
        assert known == [None, 1, 2, 3]
        assert h.timers == []


async def test_a_timer_has_the_attempts_of_its_handler_and_not_those_of_the_plugin() -> None:
    plugin, attempts = Plugin("p"), []

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        ctx.remind(1.0)

    @plugin.on(Timer, attempts=4)
    async def wake(timer: Timer, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise ValueError("broken")

    async with Harness(plugin, attempts=2) as h:
        await h.message("a")
        await h.advance(3_600)
        assert attempts == [1, 2, 3, 4]
        assert [each.error for each in h.timers] == ["ValueError: broken"]


async def test_wrong_times_and_reminders_that_nobody_would_notice_fail_in_the_authors_line() -> None:
    plugin, errors = Plugin("p"), []

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        now = datetime.now(UTC)
        wrong: list[Any] = [{}, {"after_s": 1, "at": now}, {"after_s": -1}, {"after_s": math.nan}]
        for given_ in [*wrong, {"at": now.replace(tzinfo=None)}, {"after_s": 1}]:
            try:
                ctx.remind(**given_)
            except (ValueError, RuntimeError) as error:
                errors.append(type(error))

    async with Harness(plugin) as h:
        await h.message("a")
    assert errors == [ValueError] * 5 + [RuntimeError]


async def test_a_plugin_cannot_have_more_timers_than_its_settings_allow() -> None:
    plugin, _ = reminding()
    async with Harness(plugin, timers_max=2, attempts=1) as h:
        for _ in range(3):
            await h.message("a")
        assert len(h.timers) == 2
        assert "timers_max" in h.dead[0].error


# --- what recurs


async def test_a_recurring_handler_runs_on_its_beat_and_makes_up_for_a_pause_with_one_run() -> None:
    plugin, ran = Plugin("p"), []

    @plugin.every("5m")
    async def look(timer: Timer, ctx: Context) -> None:
        ran.append((ctx.identity, h.clock.monotonic()))
        ctx.send("@owner", "all is well")

    async with Harness(plugin) as h:
        await h.advance(299)
        assert ran == []
        await h.advance(302)
        assert ran == [("me", 300.0), ("me", 600.0)]
        h.clock.pass_by(1_000.0)  # to 1601: the beats of 900, 1200 and 1500 are missed
        await h.crash()
        await h.advance(0)
        assert ran[2:] == [("me", 1_601.0)]
        await h.advance(300)
        assert ran[3:] == [("me", 1_800.0)]
        assert len({send.client_msg_id for send in h.sent}) == 4


async def test_a_recurring_handler_that_fails_goes_on_at_its_next_beat() -> None:
    plugin, ran = Plugin("p"), []

    @plugin.every(60, attempts=1)
    async def look(timer: Timer, ctx: Context) -> None:
        ran.append(h.clock.monotonic())
        raise ValueError

    async with Harness(plugin) as h:
        await h.advance(185)
    assert ran == [60.0, 120.0, 180.0]


async def test_each_handler_gets_its_own_timers_and_a_catch_all_gets_none() -> None:
    plugin, got = Plugin("p"), []

    @plugin.every("1m")
    async def often(timer: Timer, ctx: Context) -> None:
        got.append("often")
        ctx.remind(1.0)

    @plugin.every("1h")
    def seldom(timer: Timer, ctx: Context) -> None:
        got.append("seldom")

    @plugin.on(Timer)
    async def wake(timer: Timer, ctx: Context) -> None:
        got.append("wake")

    @plugin.on(Signal)
    async def catch_signals(signal: Signal, ctx: Context) -> None:
        got.append("signal")

    @plugin.on(Event)
    async def catch_events(event: Event, ctx: Context) -> None:
        got.append("event")

    async with Harness(plugin) as h:
        await h.advance(65)
    assert got == ["often", "wake"]


@pytest.mark.parametrize("interval", ["", "5", "m", "-1s", "1.2.3h", 0, -5])
async def test_an_interval_that_is_none_is_refused_with_its_place(interval: Any) -> None:
    plugin = Plugin("p")

    @plugin.every(interval)
    async def look(timer: Timer, ctx: Context) -> None: ...

    with pytest.raises(PluginLoadError, match=r"test_timers\.py:\d+: plugin p: the interval of"):
        async with Harness(plugin):
            pass
