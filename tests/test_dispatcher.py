"""Order within a lane, independence between lanes, effects with their cursor, and every fate of an event."""

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.config import Dispatch, JournalSettings, PluginSettings
from agentd.core.events import Gap, Message, Record, Send, Signal, Timer, Typing
from agentd.core.retry import Backoff
from agentd.dispatcher import Dispatcher, LoopClock, Marks
from agentd.errors import GiveUp, JournalUnusable, RetryLater
from agentd.host.context import TurnContext
from agentd.host.lifecycle import Loaded
from agentd.host.stalls import StallWatch
from agentd.journal.running import Unfinished
from agentd.journal.sqlite import open_journal
from agentd.journal.storage import (
    Appended,
    Attempt,
    Change,
    Conversation,
    CursorMoved,
    Paused,
    Queued,
    StoredRecord,
    TimerSet,
)
from agentd.plugin import Context, Plugin
from agentd.testing import HandClock, MemoryJournal

Handle = Callable[[Message, Context], Any]


class Journal(MemoryJournal):
    """Keeps what was committed, and how; while `full` nothing reaches the disk."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[tuple[Change, ...]] = []
        self.full = False
        self.broken: Exception | None = None
        self._waiting: list[tuple[asyncio.Future[None], tuple[Change, ...]]] = []

    def commit(self, *changes: Change) -> asyncio.Future[None]:
        if self.broken:
            failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            failed.set_exception(self.broken)
            return failed
        if not self.full:
            self.commits.append(changes)
            return super().commit(*changes)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, changes))
        return future

    def has_room(self) -> None:
        self.full = False
        waiting, self._waiting = self._waiting, []
        for future, changes in waiting:
            self.commits.append(changes)
            super().commit(*changes)
            future.set_result(None)

    def waiting_effects(self) -> bool:
        return any(isinstance(change, Queued) for _, changes in self._waiting for change in changes)

    def cursor(self, plugin: str, conversation: str) -> int | None:
        return self._cursors.get((plugin, self._numbers[("me", conversation)]))


def marks(high: int, low: int) -> Marks:
    return Marks(high, low, 1 << 30, 1 << 29)


class Rig:
    """A dispatcher on a journal in memory, with plugins made from bare functions."""

    def __init__(self, journal: Journal | None = None, clock: Any = None, **settings: Any) -> None:
        self.journal = journal or Journal()
        self.clock = clock
        self.settings = Dispatch(**settings)
        self.plugins: dict[str, Loaded] = {}
        self.serves: dict[str, list[str]] = {"me": []}
        self.queued: list[Send] = []
        self.shedding: list[bool] = []
        self.sheds: set[str] = set()
        self.backlog = marks(1_000, 100)
        self.unfinished: list[Unfinished] = []

    def plugin(
        self, name: str, *handlers: Handle, filters: Any = None, event: Any = Message, **settings: Any
    ) -> Loaded:
        plugin = Plugin(name)
        for handler in handlers:
            plugin.on(event, **(filters or {}))(handler)
        return self.load(plugin, **settings)

    def load(self, plugin: Plugin[Any], **settings: Any) -> Loaded:
        given = PluginSettings(use=plugin.name, **settings)
        loaded = Loaded(plugin.name, plugin, given, "v1", self.journal.state_get)
        self.plugins[plugin.name] = loaded
        self.serves["me"].append(plugin.name)
        return loaded

    def dispatcher(self) -> Dispatcher:
        return Dispatcher(
            self.journal,
            self.plugins,
            self.serves,
            self.settings,
            revive=self.journal.revive,
            on_queued=self.queued.extend,
            on_backlog=self._behind,
            marks=self.backlog,
            clock=self.clock,
            backoff=Backoff(first_s=0.01, max_s=0.02) if self.clock is None else Backoff(),
            chance=lambda: 0.0,
            unfinished=self.unfinished,
        )

    def _behind(self, identity: str, is_so: bool) -> None:
        self.shedding.append(is_so)
        (self.sheds.add if is_so else self.sheds.discard)(identity)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Dispatcher]:
        for plugin in self.plugins.values():
            await plugin.setup()
        async with asyncio.TaskGroup() as tasks:
            dispatcher = self.dispatcher()
            await dispatcher.start(tasks)
            try:
                yield dispatcher
            finally:
                await dispatcher.stop(0.2)
                for plugin in self.plugins.values():
                    await plugin.teardown()

    def said(self, conversation: str, text: str = "", **fields: Any) -> Record:
        """Something that is on disk, to be offered."""
        sender = fields.pop("sender", "peer")
        identity = fields.pop("identity", "me")
        number = self.journal.next_seq(identity, conversation)
        return self.journal.append(
            Message(
                identity=identity,
                conversation=conversation,
                seq=number,
                id=f"{conversation}.{number}",
                sender=sender,
                text=text or str(number),
                answer_to=f"@{sender}",
                **fields,
            ),
            0.0,
        )


class Ledger:
    """A handler that writes down what it was given."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str | None]] = {}

    async def __call__(self, message: Message, ctx: Context) -> None:
        self.texts.setdefault(message.conversation, []).append(message.text)


# --- order and independence


async def test_each_conversation_is_handled_in_order_and_every_cursor_reaches_the_end() -> None:
    rig, ledger = Rig(), Ledger()
    rig.plugin("p", ledger)
    async with rig.running() as dispatcher:
        for burst in range(10):
            dispatcher.offer([rig.said(f"c{number}", str(burst)) for number in range(20)])
        await dispatcher.quiet()
        assert ledger.texts == {f"c{number}": [str(burst) for burst in range(10)] for number in range(20)}
        assert dispatcher.handled == {"me": 200}
        assert dispatcher.pending == {"me": 0}
    assert rig.journal.cursor("p", "c19") == 200


async def test_a_handler_that_waits_delays_no_other_conversation() -> None:
    rig, ledger = Rig(), Ledger()
    release = asyncio.Event()

    async def handle(message: Message, ctx: Context) -> None:
        if message.conversation == "stuck":
            await release.wait()
        await ledger(message, ctx)

    rig.plugin("p", handle)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("stuck"), rig.said("stuck"), rig.said("free"), rig.said("free")])
        while len(ledger.texts.get("free", [])) < 2:
            await asyncio.sleep(0)
        assert "stuck" not in ledger.texts
        assert dispatcher.pending == {"me": 2}
        release.set()
        await dispatcher.quiet()
        assert ledger.texts["stuck"] == ["1", "2"]


async def test_a_blocking_def_handler_delays_no_other_conversation_and_not_the_loop() -> None:
    rig, ledger = Rig(), Ledger()
    release = threading.Event()

    def handle(message: Message, ctx: Context) -> None:
        if message.conversation == "stuck":
            release.wait(10)
        ledger.texts.setdefault(message.conversation, []).append(message.text)

    rig.plugin("p", handle)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("stuck"), rig.said("free"), rig.said("free")])
        while len(ledger.texts.get("free", [])) < 2:
            await asyncio.sleep(0.001)
        assert "stuck" not in ledger.texts
        release.set()
        await dispatcher.quiet()
        assert ledger.texts["stuck"] == ["1"]


async def test_a_plugin_at_its_limit_leaves_the_workers_to_others() -> None:
    rig, ledger = Rig(concurrency=3), Ledger()
    release = asyncio.Event()
    inside: list[str] = []

    async def hog(message: Message, ctx: Context) -> None:
        inside.append(message.conversation)
        await release.wait()

    rig.plugin("hog", hog, concurrency=2)
    rig.plugin("quick", ledger)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said(f"c{number}") for number in range(10)])
        while len(ledger.texts) < 10:
            await asyncio.sleep(0)
        assert len(inside) == 2
        release.set()
        await dispatcher.quiet()
        assert len(inside) == 10


async def test_handlers_that_never_wait_still_let_the_loop_run() -> None:
    rig = Rig()
    turns = 0

    async def busy(message: Message, ctx: Context) -> None:
        end = time.monotonic() + 0.001
        while time.monotonic() < end:
            pass

    rig.plugin("p", busy)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said(f"c{number % 7}") for number in range(100)])
        while dispatcher.pending["me"]:
            turns += 1
            await asyncio.sleep(0)
    assert turns >= 10


async def test_as_many_calls_run_at_once_as_the_settings_allow_and_no_more() -> None:
    rig = Rig(concurrency=5)
    inside = most = 0

    async def handle(message: Message, ctx: Context) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.002)
        inside -= 1

    rig.plugin("p", handle)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said(f"c{number}") for number in range(30)])
        await dispatcher.quiet()
        assert most == 5


async def test_several_handlers_of_one_plugin_run_in_order_in_one_transaction() -> None:
    rig = Rig()
    calls = []

    async def first(message: Message, ctx: Context) -> None:
        calls.append("first")
        ctx.state.put("n", 1)
        ctx.reply("one")

    async def second(message: Message, ctx: Context) -> None:
        calls.append(f"second sees {await ctx.state.get('n', int)}")
        ctx.reply("two")

    rig.plugin("p", first, second)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c")])
        await dispatcher.quiet()
    assert calls == ["first", "second sees 1"]
    effects = [[type(change).__name__ for change in commit] for commit in rig.journal.commits[1:]]
    assert effects == [["CursorMoved", "StatePut", "Queued", "Queued"]]
    assert [send.content.text for send in rig.queued] == ["one", "two"]


# --- what is passed over


async def test_an_event_that_nobody_wants_moves_the_cursor_without_a_call() -> None:
    rig, ledger = Rig(), Ledger()
    rig.plugin("p", ledger, filters={"sender": "ann"})
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c"), rig.said("c", sender="ann"), rig.said("c"), rig.said("c", own=True)])
        assert dispatcher.undispatched == 1
        await dispatcher.quiet()
        assert dispatcher.pending == {"me": 0}
    assert ledger.texts == {"c": ["2"]}
    assert rig.journal.cursor("p", "c") == 4


async def test_records_of_an_identity_without_plugins_are_handled_at_once() -> None:
    rig = Rig()
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c"), rig.said("c")])
        assert dispatcher.handled == {"me": 2}
        assert dispatcher.pending == {"me": 0}


async def test_a_record_is_pending_until_the_last_of_its_plugins_is_through_with_it() -> None:
    rig, ledger = Rig(), Ledger()
    release = asyncio.Event()

    async def slow(message: Message, ctx: Context) -> None:
        await release.wait()

    rig.plugin("quick", ledger)
    rig.plugin("slow", slow)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("a"), rig.said("b")])
        while len(ledger.texts) < 2:
            await asyncio.sleep(0)
        assert dispatcher.pending == {"me": 2}
        release.set()
        await dispatcher.quiet()
        assert dispatcher.pending == {"me": 0}


async def test_cursors_of_turns_without_effects_are_gathered() -> None:
    rig, ledger = Rig(), Ledger()
    rig.plugin("p", ledger)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c") for _ in range(500)])
        await dispatcher.quiet()
    moves = [change for commit in rig.journal.commits for change in commit if isinstance(change, CursorMoved)]
    assert moves[-1].position == 500
    assert len(moves) < 50


# --- failure


async def test_a_failing_event_is_tried_again_before_the_next_of_its_lane() -> None:
    rig, ledger = Rig(), Ledger()
    failures = iter([ValueError("once"), RetryLater(0.001), TimeoutError()])

    async def handle(message: Message, ctx: Context) -> None:
        assert ctx.attempt <= 4
        if message.text == "1" and (error := next(failures, None)) is not None:
            ctx.reply("never seen")
            raise error
        await ledger(message, ctx)

    rig.plugin("p", handle)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c"), rig.said("c"), rig.said("d", text="other")])
        while dispatcher.pending["me"]:
            await asyncio.sleep(0.001)
        assert ledger.texts == {"c": ["1", "2"], "d": ["other"]}
        assert rig.queued == []


async def test_attempts_spent_make_a_dead_letter_with_its_traceback_and_the_lane_goes_on() -> None:
    rig, ledger = Rig(), Ledger()

    async def handle(message: Message, ctx: Context) -> None:
        if message.text == "poison":
            raise ValueError("cannot digest ac_0123456789abcdef")
        await ledger(message, ctx)

    rig.plugin("p", handle, attempts=3)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c", "poison"), rig.said("c", "food")])
        while dispatcher.pending["me"]:
            await asyncio.sleep(0.001)
    [dead] = rig.journal.dead
    assert (dead.attempts, dead.position, dead.plugin_version) == (3, 1, "v1")
    assert dead.error == "ValueError: cannot digest [redacted]"
    assert "in handle" in dead.traceback
    assert "ac_0123456789abcdef" not in dead.traceback
    assert ledger.texts == {"c": ["food"]}
    assert rig.journal.failed == {}


async def test_each_event_has_all_its_attempts() -> None:
    rig, ledger = Rig(), Ledger()
    tried: list[tuple[str | None, int]] = []

    async def handle(message: Message, ctx: Context) -> None:
        tried.append((message.text, ctx.attempt))
        if [text for text, _ in tried].count(message.text) == 1:
            raise ValueError
        await ledger(message, ctx)

    rig.plugin("p", handle, attempts=2)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c") for _ in range(3)])
        while dispatcher.pending["me"]:
            await asyncio.sleep(0.001)
    assert tried == [(text, attempt) for text in "123" for attempt in (1, 2)]
    assert rig.journal.dead == []


async def test_giving_up_needs_no_second_attempt() -> None:
    rig = Rig()

    async def handle(message: Message, ctx: Context) -> None:
        raise GiveUp("not for me")

    rig.plugin("p", handle)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c")])
        await dispatcher.quiet()
    assert [(dead.attempts, dead.error) for dead in rig.journal.dead] == [(1, "GiveUp: not for me")]
    assert rig.journal.cursor("p", "c") == 1


async def test_a_traceback_of_any_length_is_cut() -> None:
    rig = Rig()

    async def handle(message: Message, ctx: Context) -> None:
        raise GiveUp("x" * 100_000)

    rig.plugin("p", handle)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c")])
        await dispatcher.quiet()
    assert len(rig.journal.dead[0].traceback) <= 8_000
    assert len(rig.journal.dead[0].error) <= 500


@pytest.mark.parametrize(
    "error", [SystemExit(1), asyncio.CancelledError(), StopAsyncIteration(), ExceptionGroup("g", [OSError()])]
)
async def test_whatever_a_handler_raises_is_its_own_failure_only(error: BaseException) -> None:
    rig, ledger = Rig(), Ledger()

    async def at_once(message: Message, ctx: Context) -> None:
        raise error

    async def after_a_while(message: Message, ctx: Context) -> None:
        await asyncio.sleep(0)
        raise error

    rig.plugin("quick", at_once, attempts=1)
    rig.plugin("later", after_a_while, attempts=1)
    rig.plugin("healthy", ledger)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c"), rig.said("c")])
        await dispatcher.quiet()
    assert len(rig.journal.dead) == 4
    assert ledger.texts == {"c": ["1", "2"]}


async def test_a_handler_that_cancels_its_own_task_fails_like_any_other_and_its_worker_lives() -> None:
    rig, ledger = Rig(concurrency=1), Ledger()

    def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def and_returns(message: Message, ctx: Context) -> None:
        ctx.reply("never seen")
        cancel()

    async def and_waits(message: Message, ctx: Context) -> None:
        cancel()
        await asyncio.sleep(0)

    async def after_waiting(message: Message, ctx: Context) -> None:
        await asyncio.sleep(0)
        cancel()
        cancel()

    async def and_catches_it(message: Message, ctx: Context) -> None:
        await asyncio.sleep(0)
        cancel()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)

    async def and_raises(message: Message, ctx: Context) -> None:
        cancel()
        raise ValueError("its own words")

    handlers = (and_returns, and_waits, after_waiting, and_catches_it, and_raises)
    for number, handler in enumerate(handlers):
        rig.plugin(f"p{number}", handler, attempts=1)
    rig.plugin("healthy", ledger)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c"), rig.said("c")])
        await dispatcher.quiet()
        assert dispatcher.pending == {"me": 0}
    told = sorted(f"{dead.plugin} {dead.error.split(':')[0]}" for dead in rig.journal.dead)
    kinds = ["CancelledItself"] * 4 + ["ValueError"]
    assert told == sorted(f"p{number} {kind}" for number, kind in enumerate(kinds) for _ in range(2))
    assert ledger.texts == {"c": ["1", "2"]}
    assert rig.queued == []


async def test_a_cancellation_from_outside_is_obeyed_even_if_the_handler_cancels_itself_too() -> None:
    rig = Rig()
    inside = asyncio.Event()

    async def handle(message: Message, ctx: Context) -> None:
        inside.set()
        try:
            await asyncio.Event().wait()
        finally:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    loaded = rig.plugin("p", handle)
    await loaded.setup()
    record = rig.said("c")
    ctx: TurnContext[Any] = TurnContext(loaded, record.event, 1, 1)
    turn = asyncio.create_task(loaded.turns.run(record.event, None, ctx, lambda: None))
    await inside.wait()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert turn.cancelling() == 1


async def test_deadlines_and_task_groups_inside_a_handler_are_no_self_cancellation() -> None:
    rig, ledger = Rig(), Ledger()

    async def handle(message: Message, ctx: Context) -> None:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            pass
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(asyncio.sleep(10))
                raise ValueError
        except* ValueError:
            await ledger(message, ctx)

    rig.plugin("p", handle, attempts=1)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c")])
        await dispatcher.quiet()
    assert rig.journal.dead == []
    assert ledger.texts == {"c": ["1"]}


async def test_context_variables_that_a_turn_sets_are_seen_in_it_and_by_no_later_one() -> None:
    rig = Rig(concurrency=1)
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="clean")
    at_start: list[str] = []
    at_end: list[str] = []
    plugin = Plugin("p")

    @plugin.middleware
    async def around(event: Message, ctx: Context) -> AsyncIterator[None]:
        at_start.append(variable.get())
        variable.set("set by the middleware")
        yield
        at_end.append(variable.get())

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        assert variable.get() == "set by the middleware"
        if message.seq % 2:
            await asyncio.sleep(0)
        variable.set("set by the handler")

    @plugin.on(Message)
    def in_a_thread(message: Message, ctx: Context) -> None:
        assert variable.get() == "set by the handler"
        variable.set("set in a thread")

    rig.load(plugin, attempts=1)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c") for _ in range(4)])
        await dispatcher.quiet()
    assert at_start == ["clean"] * 4
    assert at_end == ["set by the handler"] * 4
    assert rig.journal.dead == []


async def test_a_filter_that_raises_is_a_failure_of_its_plugin_and_not_of_intake() -> None:
    rig, ledger = Rig(), Ledger()
    rig.plugin("broken", ledger, filters={"where": lambda message: 1 / 0}, attempts=1)
    rig.plugin("healthy", ledger)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c")])
        await dispatcher.quiet()
    assert ledger.texts == {"c": ["1"]}
    assert "ZeroDivisionError" in rig.journal.dead[0].error


async def test_a_handler_past_its_deadline_is_cancelled_and_counted() -> None:
    rig = Rig()
    cancelled = []

    async def handle(message: Message, ctx: Context) -> None:
        ctx.reply("never seen")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(message.text)
            raise

    async def stubborn(message: Message, ctx: Context) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ctx.reply("too late")

    rig.plugin("p", handle, attempts=1, timeout_s=0.01)
    rig.plugin("q", stubborn, attempts=1, timeout_s=0.01)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c")])
        await dispatcher.quiet()
    assert cancelled == ["1"]
    assert sorted(dead.error.rsplit(".", 1)[-1] for dead in rig.journal.dead) == [
        "01 s",
        "01 s",
    ]
    assert rig.queued == []


async def test_a_thread_that_overruns_keeps_its_lane_until_it_ends_and_its_effects_are_lost() -> None:
    rig, ledger = Rig(concurrency=1), Ledger()
    release, refused = threading.Event(), threading.Event()

    def handle(message: Message, ctx: Context) -> None:
        if message.text == "hang":
            release.wait(10)
            try:
                ctx.reply("too late")
            except RuntimeError:
                refused.set()
        else:
            ledger.texts.setdefault(message.conversation, []).append(message.text)

    rig.plugin("p", handle, attempts=1, timeout_s=0.02)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c", "hang"), rig.said("c", "next"), rig.said("d", "other")])
        while not (rig.journal.dead and ledger.texts):
            await asyncio.sleep(0.001)
        assert ledger.texts == {"d": ["other"]}
        assert rig.journal.cursor("p", "c") == 1
        release.set()
        await dispatcher.quiet()
        assert ledger.texts == {"d": ["other"], "c": ["next"]}
    assert refused.is_set()
    assert rig.queued == []


async def test_delays_follow_the_clock_and_what_the_handler_asked_for() -> None:
    clock = HandClock()
    rig = Rig(clock=clock)
    tried: list[float] = []

    async def handle(message: Message, ctx: Context) -> None:
        tried.append(clock.monotonic())
        if len(tried) < 4:
            raise RetryLater(30.0) if len(tried) == 1 else ValueError

    rig.plugin("p", handle)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c")])
        await dispatcher.quiet()
        for _ in range(100):
            if (due := clock.next_timer(clock.monotonic() + 1)) is not None:
                due()
            await dispatcher.quiet()
    # Asked for 30 s; then half of 2 s and half of 4 s, since chance is nought.
    assert tried == [0.0, 30.0, 31.0, 33.0]


# --- disk


async def test_a_full_journal_makes_lanes_with_effects_wait_and_loses_nothing() -> None:
    rig, ledger = Rig(), Ledger()

    async def handle(message: Message, ctx: Context) -> None:
        await ledger(message, ctx)
        ctx.reply(message.text)

    rig.plugin("p", handle)
    async with rig.running() as dispatcher:
        rig.journal.full = True
        dispatcher.offer([rig.said("c"), rig.said("c"), rig.said("d")])
        while len(ledger.texts) < 2:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert ledger.texts == {"c": ["1"], "d": ["1"]}
        assert rig.queued == []
        rig.journal.has_room()
        await dispatcher.quiet()
        assert ledger.texts == {"c": ["1", "2"], "d": ["1"]}
        assert len(rig.queued) == 3


async def test_a_cursor_never_falls_back_behind_a_turn_that_committed_it() -> None:
    rig = Rig()

    async def handle(message: Message, ctx: Context) -> None:
        ctx.reply("hello")

    rig.plugin("p", handle, filters={"text": "wanted"})
    async with rig.running() as dispatcher:
        rig.journal.full = True
        dispatcher.offer([rig.said("c")])
        await asyncio.sleep(0)
        dispatcher.offer([rig.said("c")])
        dispatcher.offer([rig.said("c", "wanted"), rig.said("c")])
        while not rig.journal.waiting_effects():
            await asyncio.sleep(0)
        rig.journal.has_room()
        await dispatcher.quiet()
    moves = [change for commit in rig.journal.commits for change in commit if isinstance(change, CursorMoved)]
    # The turn's own cursor stands behind what was passed over after it.
    assert [move.position for move in moves] == [1, 4]


async def test_other_conversations_see_plugin_state_as_soon_as_its_turn_has_committed() -> None:
    rig = Rig()
    seen: list[int] = []

    async def handle(message: Message, ctx: Context) -> None:
        seen.append(await ctx.plugin_state.get("n", int, 0))
        ctx.plugin_state.put("n", seen[-1] + 1)

    rig.plugin("p", handle)
    async with rig.running() as dispatcher:
        rig.journal.full = True
        for number in range(3):
            dispatcher.offer([rig.said(f"c{number}")])
            while len(seen) <= number:
                await asyncio.sleep(0)
        rig.journal.has_room()
        await dispatcher.quiet()
    assert seen == [0, 1, 2]


async def test_a_journal_that_fails_ends_the_dispatcher_loudly() -> None:
    rig = Rig()

    async def handle(message: Message, ctx: Context) -> None:
        ctx.reply("hello")

    rig.plugin("p", handle)
    with pytest.raises(ExceptionGroup) as caught:
        async with rig.running() as dispatcher:
            rig.journal.broken = JournalUnusable("corrupt")
            dispatcher.offer([rig.said("c")])
            await asyncio.Event().wait()
    assert caught.group_contains(JournalUnusable)
    assert rig.queued == []


async def test_sends_ring_only_when_they_are_on_disk() -> None:
    rig = Rig()
    seen: list[int] = []

    async def handle(message: Message, ctx: Context) -> None:
        ctx.reply("hello")
        seen.append(len(rig.journal.sent))

    rig.plugin("p", handle)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c")])
        await dispatcher.quiet()
        assert [send.client_msg_id for send in rig.queued] == list(rig.journal.sent)
    assert seen == [0]


# --- deaths of the process


def died(rig: Rig, *records: Record, plugin: str = "p") -> None:
    """The process before this one died while it handled these."""
    rig.unfinished = [Unfinished(plugin, record.position, record.position) for record in records]


async def test_an_event_that_ran_at_two_deaths_is_a_dead_letter_and_its_lane_goes_on() -> None:
    rig, ledger = Rig(), Ledger()
    rig.plugin("p", ledger)
    async with rig.running():
        pass
    deadly = rig.said("c", "deadly")
    rig.said("c", "next")
    rig.settings = msgspec.structs.replace(rig.settings, concurrency=1)
    rig.journal.failed["p", 1] = Attempt("p", 1, deadly.position, 0, "", 0.0, deaths=1)
    died(rig, deadly)
    async with rig.running() as dispatcher:
        await dispatcher.quiet()
        assert dispatcher.pending == {"me": 0}
    assert ledger.texts == {"c": ["next"]}
    assert rig.journal.dead[0].error.startswith("ProcessDied: the process died 2 times")
    assert rig.journal.dead[0].attempts == 2


async def test_one_death_is_counted_on_disk_before_the_event_runs_again() -> None:
    rig = Rig()
    seen: list[tuple[int, int]] = []

    async def handle(message: Message, ctx: Context) -> None:
        seen.append((ctx.attempt, rig.journal.failed["p", 1].deaths))

    rig.plugin("p", handle)
    async with rig.running():
        pass
    died(rig, rig.said("c"))
    async with rig.running() as dispatcher:
        await dispatcher.quiet()
    assert seen == [(2, 1)]
    assert rig.journal.failed == {}


async def test_deaths_are_not_forgotten_when_the_event_fails_in_between() -> None:
    rig = Rig(clock=HandClock())

    async def handle(message: Message, ctx: Context) -> None:
        raise ValueError

    rig.plugin("p", handle)
    async with rig.running():
        pass
    died(rig, rig.said("c"))
    async with rig.running() as dispatcher:
        await dispatcher.quiet()
    assert (rig.journal.failed["p", 1].count, rig.journal.failed["p", 1].deaths) == (1, 1)


async def test_what_was_handled_before_the_death_is_not_blamed_for_it() -> None:
    rig, ledger = Rig(), Ledger()
    rig.plugin("p", ledger)
    async with rig.running() as dispatcher:
        record = rig.said("c")
        dispatcher.offer([record])
        await dispatcher.quiet()
    died(rig, record)
    async with rig.running() as dispatcher:
        await dispatcher.quiet()
    assert rig.journal.failed == {}


async def test_events_that_were_there_at_two_deaths_run_alone_before_anything_else_does() -> None:
    rig = Rig()
    inside: set[str] = set()
    together: list[set[str]] = []

    async def handle(message: Message, ctx: Context) -> None:
        inside.add(message.conversation)
        together.append(set(inside))
        await asyncio.sleep(0.001)
        inside.remove(message.conversation)

    rig.plugin("p", handle)
    async with rig.running():
        pass
    suspects = [rig.said(name) for name in ("s1", "s2", "s3")]
    rig.said("free")
    for number, record in enumerate(suspects, 1):
        rig.journal.failed["p", number] = Attempt("p", number, record.position, 0, "", 0.0, deaths=1)
    died(rig, *suspects)
    async with rig.running() as dispatcher:
        await dispatcher.quiet()
        assert dispatcher.pending == {"me": 0}
    assert [names for names in together if names & {"s1", "s2", "s3"}] == [{"s1"}, {"s2"}, {"s3"}]
    assert together[-1] == {"free"}
    assert rig.journal.dead == []


async def test_a_suspect_that_does_not_end_soon_holds_nobody_up_for_long() -> None:
    rig, ledger = Rig(clock=HandClock()), Ledger()
    never = asyncio.Event()

    async def handle(message: Message, ctx: Context) -> None:
        if message.conversation == "suspect":
            await never.wait()
        await ledger(message, ctx)

    rig.plugin("p", handle)
    async with rig.running():
        pass
    suspect = rig.said("suspect")
    rig.said("free")
    rig.journal.failed["p", 1] = Attempt("p", 1, suspect.position, 0, "", 0.0, deaths=4)
    async with rig.running() as dispatcher:
        while not dispatcher.standing("p")["running"]:
            await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
        assert ledger.texts == {}
        due = rig.clock.next_timer(10.0)
        assert due is not None
        due()
        while not ledger.texts:
            await asyncio.sleep(0)
        assert ledger.texts == {"free": ["1"]}


async def test_a_suspect_whose_conversation_is_paused_holds_nobody_up() -> None:
    rig, ledger = Rig(), Ledger()
    rig.plugin("p", ledger)
    async with rig.running():
        pass
    suspect = rig.said("suspect")
    rig.said("free")
    rig.journal.failed["p", 1] = Attempt("p", 1, suspect.position, 0, "", 0.0, deaths=4)
    rig.journal.paused[1] = Paused(
        number=1, identity="me", conversation="suspect", at=0.0, until=None, reason="by command"
    )
    async with rig.running() as dispatcher:
        await dispatcher.quiet()
        assert ledger.texts == {"free": ["1"]}


# --- a plugin out of order as a whole


async def tick(dispatcher: Dispatcher, clock: HandClock, seconds: float) -> None:
    until = clock.monotonic() + seconds
    while (due := clock.next_timer(until)) is not None:
        due()
        await dispatcher.quiet()


async def test_a_plugin_that_fails_in_many_conversations_pauses_and_its_events_keep_their_attempts() -> None:
    clock = HandClock()
    rig, ledger = Rig(clock=clock, breaker_lanes=3, breaker_first_s=10.0), Ledger()
    down = True
    calls = 0

    async def handle(message: Message, ctx: Context) -> None:
        nonlocal calls
        calls += 1
        if down:
            raise ConnectionError("database")
        await ledger(message, ctx)

    rig.plugin("p", handle, attempts=2, concurrency=1)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said(f"c{number}") for number in range(20)])
        await dispatcher.quiet()
        assert calls == 3
        assert dispatcher.standing("p")["breaker"] == "open"
        assert dispatcher.standing("p")["trial_in_s"] == 10.0
        assert dispatcher.standing("p")["trouble"] == "ConnectionError: database"
        for _ in range(5):  # each trial is another conversation's, none of which loses anything by it
            await tick(dispatcher, clock, 60.0)
        assert 3 < calls < 20
        assert rig.journal.dead == []
        down = False
        await tick(dispatcher, clock, 600.0)
        assert dispatcher.standing("p")["breaker"] == "closed"
        assert dispatcher.standing("p")["trouble"] == ""
        assert dispatcher.pending == {"me": 0}
    assert len(ledger.texts) == 20
    assert rig.journal.dead == []


async def test_a_plugin_that_fails_for_one_identity_alone_pauses_for_that_one_only() -> None:
    clock = HandClock()
    rig, ledger = Rig(clock=clock, breaker_lanes=3, breaker_first_s=10.0), Ledger()
    rig.serves = {"broken": ["p"], "me": []}
    mended = False
    calls = 0

    async def handle(message: Message, ctx: Context) -> None:
        nonlocal calls
        if message.identity == "broken":
            calls += 1
            if not mended:
                raise PermissionError("the key of its model is refused")
        await ledger(message, ctx)

    rig.plugin("p", handle, attempts=2)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said(f"b{number}", identity="broken") for number in range(10)])
        await dispatcher.quiet()
        assert dispatcher.breaker("p", "broken")["breaker"] == "open"
        assert dispatcher.breaker("p", "me")["breaker"] == "closed"
        assert dispatcher.standing("p")["breaker"] == "closed"
        told = dispatcher.standing("p")["waiting_identities"]
        why = "PermissionError: the key of its model is refused"
        assert told == [{"identity": "broken", "breaker": "open", "trial_in_s": 10.0, "trouble": why}]
        made = calls
        dispatcher.offer([rig.said(f"c{number}") for number in range(10)])
        await dispatcher.quiet()
        assert ledger.texts == {f"c{number}": ["1"] for number in range(10)}, "nobody else waits"
        assert calls == made
        await tick(dispatcher, clock, 60.0)
        assert made < calls <= made + 3, "trials, one at a time, further and further apart"
        mended = True
        await tick(dispatcher, clock, 600.0)
        assert dispatcher.standing("p")["waiting_identities"] == []
        assert dispatcher.pending == {"broken": 0, "me": 0}
    assert rig.journal.dead == []


async def test_a_plugin_that_says_so_pauses_as_a_whole_and_no_other_does() -> None:
    clock = HandClock()
    rig, ledger = Rig(clock=clock), Ledger()
    tried: list[float] = []

    async def handle(message: Message, ctx: Context) -> None:
        tried.append(clock.monotonic())
        if len(tried) == 1:
            raise RetryLater(30.0, whole_plugin=True)

    rig.plugin("p", handle, attempts=1)
    rig.plugin("healthy", ledger)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("a"), rig.said("b")])
        await dispatcher.quiet()
        assert tried == [0.0]
        assert ledger.texts == {"a": ["1"], "b": ["1"]}
        await tick(dispatcher, clock, 29.0)
        assert tried == [0.0]
        await tick(dispatcher, clock, 2.0)
        assert tried == [0.0, 30.0, 30.0]
        assert dispatcher.pending == {"me": 0}


async def test_poison_in_as_many_conversations_does_not_stop_the_healthy_ones_for_good() -> None:
    clock = HandClock()
    rig, ledger = Rig(clock=clock, breaker_lanes=3), Ledger()

    async def handle(message: Message, ctx: Context) -> None:
        if message.text == "poison":
            raise ValueError
        await ledger(message, ctx)

    rig.plugin("p", handle, attempts=2)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said(f"bad{number}", "poison") for number in range(4)])
        dispatcher.offer([rig.said("good"), rig.said("good")])
        await dispatcher.quiet()
        await tick(dispatcher, clock, 3_600.0)
        assert dispatcher.pending == {"me": 0}
    assert ledger.texts == {"good": ["1", "2"]}
    assert len(rig.journal.dead) == 4


# --- what a conversation does after a dead letter


async def test_a_lane_that_holds_stands_still_behind_its_dead_letter_until_it_is_released() -> None:
    rig, ledger = Rig(), Ledger()

    async def handle(message: Message, ctx: Context) -> None:
        if message.text == "poison":
            raise GiveUp("no")
        await ledger(message, ctx)

    rig.plugin("p", handle, on_dead="hold")
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c", "poison"), rig.said("c", "next"), rig.said("d", "other")])
        await dispatcher.quiet()
        assert ledger.texts == {"d": ["other"]}
        held = [{"identity": "me", "conversation": "c", "event_id": "c.1"}]
        assert dispatcher.standing("p")["held"] == held
    async with rig.running() as dispatcher:  # a restart runs nothing of it
        await dispatcher.quiet()
        assert ledger.texts == {"d": ["other"]}
        assert dispatcher.standing("p")["held"] == held
        assert len(rig.journal.dead) == 1
        assert not dispatcher.release("p", "me", "d")
        assert dispatcher.release("p", "me", "c")
        assert not dispatcher.release("p", "me", "c")
        await dispatcher.quiet()
        assert dispatcher.pending == {"me": 0}
        assert dispatcher.standing("p")["held"] == []
    assert ledger.texts == {"d": ["other"], "c": ["next"]}
    assert rig.journal.failed == {}


async def test_a_handlers_own_policy_goes_before_its_plugins() -> None:
    rig = Rig()

    async def handle(message: Message, ctx: Context) -> None:
        raise GiveUp("no")

    rig.plugin("p", handle, filters={"on_dead": "skip"}, on_dead="hold")
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c"), rig.said("c")])
        await dispatcher.quiet()
        assert dispatcher.pending == {"me": 0}


# --- memory and bounds


async def test_a_lane_beyond_its_memory_reads_on_from_the_journal_in_order() -> None:
    rig, ledger = Rig(lane_memory=4), Ledger()
    release = asyncio.Event()

    async def handle(message: Message, ctx: Context) -> None:
        await release.wait()
        await ledger(message, ctx)

    rig.plugin("p", handle, filters={"where": lambda message: message.seq % 3})
    async with rig.running() as dispatcher:
        for _ in range(10):
            dispatcher.offer([rig.said("c") for _ in range(5)])
        assert dispatcher.undispatched == 4
        assert dispatcher.pending == {"me": 50}
        release.set()
        await dispatcher.quiet()
        dispatcher.offer([rig.said("c")])
        await dispatcher.quiet()
        assert ledger.texts["c"] == [str(seq) for seq in range(1, 52) if seq % 3]
        assert dispatcher.pending == {"me": 0}
        assert dispatcher.handled == {"me": 51}
        assert dispatcher.undispatched == 0
    assert rig.journal.cursor("p", "c") == 51


async def test_a_record_that_is_on_disk_but_not_offered_yet_is_handled_once() -> None:
    rig, ledger = Rig(lane_memory=3), Ledger()
    rig.plugin("p", ledger)
    async with rig.running() as dispatcher:
        offered, later = [rig.said("c") for _ in range(4)], [rig.said("c")]
        dispatcher.offer(offered)
        await dispatcher.quiet()
        dispatcher.offer(later)
        await dispatcher.quiet()
    assert ledger.texts == {"c": ["1", "2", "3", "4", "5"]}


async def test_the_backlog_bell_rings_once_at_the_high_mark_and_once_at_the_low() -> None:
    rig = Rig()
    rig.backlog = marks(10, 3)
    release = asyncio.Event()

    async def handle(message: Message, ctx: Context) -> None:
        await release.wait()

    rig.plugin("p", handle)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c") for _ in range(9)])
        assert rig.shedding == []
        dispatcher.offer([rig.said("c"), rig.said("d")])
        assert rig.shedding == [True]
        release.set()
        await dispatcher.quiet()
        assert rig.shedding == [True, False]


async def test_an_identity_that_floods_sheds_alone_and_the_others_find_memory_and_calls() -> None:
    rig, ledger = Rig(), Ledger()
    rig.backlog = marks(40, 8)
    rig.serves = {"flooded": [], "quiet": [], "me": []}
    release = asyncio.Event()

    async def handle(message: Message, ctx: Context) -> None:
        if message.identity == "flooded":
            await release.wait()
        await ledger(message, ctx)

    rig.plugin("p", handle, concurrency=8)
    for names in rig.serves.values():
        names[:] = ["p"]
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said(f"f{number}", identity="flooded") for _ in range(5) for number in range(20)])
        assert rig.sheds == {"flooded"}
        assert dispatcher.undispatched == 30, "three quarters of what there is"
        await asyncio.sleep(0)
        for number in range(10):
            dispatcher.offer([rig.said("c", f"{number}"), rig.said("q", f"{number}", identity="quiet")])
            while not ledger.texts.get("q") or ledger.texts["q"][-1] != f"{number}":
                await asyncio.sleep(0)
        assert ledger.texts == {key: [f"{number}" for number in range(10)] for key in "cq"}
        assert rig.sheds == {"flooded"}
        release.set()
        await dispatcher.quiet()
        assert rig.sheds == set()
        for number in range(20):
            assert ledger.texts[f"f{number}"] == ["1", "2", "3", "4", "5"]
        assert dispatcher.pending == {"flooded": 0, "quiet": 0, "me": 0}


async def test_several_that_flood_come_to_have_the_same_and_each_takes_again_in_its_time() -> None:
    rig, ledger = Rig(), Ledger()
    rig.backlog = marks(40, 20)
    rig.serves = {"a": [], "b": [], "c": []}
    rig.serves["me"] = []
    gates = {name: asyncio.Event() for name in "abc"}

    async def handle(message: Message, ctx: Context) -> None:
        await gates[message.identity].wait()
        await ledger(message, ctx)

    rig.plugin("p", handle)
    for names in rig.serves.values():
        names[:] = ["p"]
    async with rig.running() as dispatcher:
        for _ in range(20):
            dispatcher.offer([rig.said(f"{name}{number}", identity=name) for name in "abc" for number in range(4)])
        assert rig.sheds == set("abc")
        assert dispatcher.undispatched <= 40
        for name in "abc":
            gates[name].set()
            while name in rig.sheds:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
        await dispatcher.quiet()
        texts = [str(number) for number in range(1, 21)]
        assert ledger.texts == {f"{name}{number}": texts for name in "abc" for number in range(4)}


async def test_lanes_behind_calls_that_hang_give_their_memory_back_though_nothing_else_happens() -> None:
    clock = HandClock()
    rig, ledger = Rig(clock=clock), Ledger()
    rig.backlog = marks(10, 3)
    release = asyncio.Event()

    async def handle(message: Message, ctx: Context) -> None:
        await release.wait()
        await ledger(message, ctx)

    rig.plugin("p", handle, concurrency=1)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said(conversation) for conversation in "cde" for _ in range(4)])
        await asyncio.sleep(0)
        assert rig.shedding == [True]
        while (due := clock.next_timer(2.5)) is not None:
            due()
        assert rig.shedding == [True, False]
        assert dispatcher.undispatched == 3
        release.set()
        await dispatcher.quiet()
        assert ledger.texts == {conversation: ["1", "2", "3", "4"] for conversation in "cde"}
        assert dispatcher.pending == {"me": 0}


async def test_memory_holds_no_more_than_the_high_mark_even_if_nobody_sheds() -> None:
    rig, ledger = Rig(), Ledger()
    rig.backlog = marks(10, 5)
    rig.plugin("p", ledger)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said(f"c{number}") for number in range(40) for _ in range(3)])
        assert dispatcher.undispatched == 10
        await dispatcher.quiet()
        assert ledger.texts == {f"c{number}": ["1", "2", "3"] for number in range(40)}


async def test_catching_up_after_a_restart_fills_memory_to_the_low_mark_only() -> None:
    rig, ledger = Rig(concurrency=1), Ledger()
    rig.backlog = marks(1_000, 20)
    most = 0

    async def handle(message: Message, ctx: Context) -> None:
        nonlocal most
        most = max(most, dispatcher.undispatched)
        await ledger(message, ctx)

    rig.plugin("p", handle)
    async with rig.running():
        pass
    for _ in range(10):
        for number in range(10):
            rig.said(f"c{number}")
    async with rig.running() as dispatcher:
        await dispatcher.quiet()
        assert dispatcher.pending == {"me": 0}
    assert ledger.texts == {f"c{number}": [str(seq) for seq in range(1, 11)] for number in range(10)}
    assert most <= 20 + 10  # and one record of each lane that found no room


# --- restart


async def test_a_restart_goes_on_where_each_plugin_stood() -> None:
    rig, quick, slow = Rig(), Ledger(), Ledger()
    gate = asyncio.Event()

    async def handle(message: Message, ctx: Context) -> None:
        if message.text in ("3", "2"):
            await gate.wait()
        await slow(message, ctx)

    rig.plugin("quick", quick)
    rig.plugin("slow", handle)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c") for _ in range(4)])
        while "c" not in slow.texts or len(quick.texts["c"]) < 4:
            await asyncio.sleep(0)
    assert slow.texts == {"c": ["1"]}
    rig.said("c")
    gate.set()
    async with rig.running() as dispatcher:
        await dispatcher.quiet()
        assert dispatcher.pending == {"me": 0}
        assert dispatcher.handled == {"me": 5}
    assert slow.texts == {"c": ["1", "2", "3", "4", "5"]}
    assert quick.texts == {"c": ["1", "2", "3", "4", "5"]}


async def test_what_a_stop_cuts_off_is_not_counted_as_a_failure() -> None:
    rig = Rig()

    async def handle(message: Message, ctx: Context) -> None:
        ctx.reply("never seen")
        await asyncio.Event().wait()

    rig.plugin("p", handle)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c")])
        await asyncio.sleep(0)
    assert rig.journal.failed == {}
    assert rig.journal.dead == []
    assert rig.queued == []


async def test_a_stop_lets_running_turns_finish() -> None:
    rig, ledger = Rig(), Ledger()

    async def handle(message: Message, ctx: Context) -> None:
        await asyncio.sleep(0.05)
        await ledger(message, ctx)

    rig.plugin("p", handle)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c"), rig.said("c")])
        await asyncio.sleep(0.01)
    assert ledger.texts == {"c": ["1"]}
    assert rig.journal.cursor("p", "c") == 1


async def test_attempts_are_counted_across_a_restart_and_the_delay_still_holds() -> None:
    clock = HandClock()
    rig = Rig(clock=clock)
    tried: list[tuple[float, int]] = []

    async def handle(message: Message, ctx: Context) -> None:
        tried.append((clock.monotonic(), ctx.attempt))
        raise RetryLater(10.0)

    rig.plugin("p", handle, attempts=3)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c")])
        await dispatcher.quiet()
    async with rig.running() as dispatcher:
        await dispatcher.quiet()
        assert tried == [(0.0, 1)]
        while dispatcher.pending["me"]:
            if (due := clock.next_timer(clock.monotonic() + 1)) is not None:
                due()
            await dispatcher.quiet()
    assert tried == [(0.0, 1), (10.0, 2), (20.0, 3)]
    assert rig.journal.dead[0].attempts == 3


async def test_a_plugin_that_is_added_later_does_not_answer_what_was_said_before_it_came() -> None:
    rig, old, new = Rig(), Ledger(), Ledger()
    rig.plugin("old", old)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c"), rig.said("quiet since")])
        await dispatcher.quiet()
    rig.plugin("new", new)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c"), rig.said("d")])
        await dispatcher.quiet()
    assert old.texts == {"c": ["1", "2"], "d": ["1"], "quiet since": ["1"]}
    assert new.texts == {"c": ["2"], "d": ["1"]}
    async with rig.running() as dispatcher:
        await dispatcher.quiet()
    assert "quiet since" not in new.texts


async def test_what_came_since_a_plugins_first_start_is_handled_after_a_crash_before_any_cursor() -> None:
    rig, ledger = Rig(), Ledger()
    rig.plugin("p", ledger)
    async with rig.running():
        pass
    rig.said("c")
    async with rig.running() as dispatcher:
        await dispatcher.quiet()
    assert ledger.texts == {"c": ["1"]}


async def test_a_stored_event_that_cannot_be_decoded_is_a_dead_letter_and_not_the_end() -> None:
    rig, ledger = Rig(), Ledger()
    rig.plugin("p", ledger)
    async with rig.running():
        pass
    for _ in range(3):
        rig.said("c")
    revive = rig.journal.revive

    def broken(stored: StoredRecord) -> Any:
        if stored.position == 2:
            raise ValueError("what is this")
        return revive(stored)

    rig.journal.revive = broken  # a payload that no version of ours can read
    async with rig.running() as dispatcher:
        await dispatcher.quiet()
        assert dispatcher.pending == {"me": 0}
    assert ledger.texts == {"c": ["1", "3"]}


# --- signals


async def test_a_newer_signal_replaces_an_older_one_that_nobody_saw_yet() -> None:
    rig = Rig()
    seen: list[bool] = []
    release = asyncio.Event()

    async def handle(signal: Typing, ctx: Context) -> None:
        seen.append(signal.active)
        await release.wait()

    rig.plugin("p", handle, event=Typing)
    async with rig.running() as dispatcher:
        for active in (True, False, True, False):
            dispatcher.signal(Typing(identity="me", conversation="c", sender="bob", active=active))
        while not seen:
            await asyncio.sleep(0)
        release.set()
        await dispatcher.quiet()
    assert seen == [False]


async def test_gap_reports_do_not_replace_each_other_and_other_signals_go_nowhere() -> None:
    rig = Rig()
    seen: list[int] = []

    async def handle(gap: Gap, ctx: Context) -> None:
        seen.append(gap.start)
        ctx.send("@owner", f"lost {gap.start}")

    rig.plugin("p", handle, event=Gap)
    async with rig.running() as dispatcher:
        for start in (5, 9):
            dispatcher.signal(Gap(identity="me", conversation="c", epoch=1, start=start, stop=start + 1, absent=1))
        dispatcher.signal(Typing(identity="me", conversation="c", sender="bob", active=True))
        await dispatcher.quiet()
    assert seen == [5, 9]
    assert [send.content.text for send in rig.queued] == ["lost 5", "lost 9"]


async def test_signals_are_bounded_and_a_handler_that_fails_on_one_is_only_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig()
    seen = 0

    async def handle(signal: Signal, ctx: Context) -> None:
        nonlocal seen
        seen += 1
        raise ValueError("boom")

    rig.plugin("p", handle, event=Typing)
    async with rig.running() as dispatcher:
        for number in range(1_200):
            dispatcher.signal(Typing(identity="me", sender=f"s{number}", active=True))
        await dispatcher.quiet()
        assert dispatcher.signals_dropped == 200
    assert seen == 1_000
    assert "handler failed on a signal" in caplog.records[0].getMessage()


# --- middleware, state, stalls


async def test_middlewares_wrap_the_turn_and_see_its_failure() -> None:
    rig = Rig()
    calls: list[str] = []
    plugin = Plugin("p")

    @plugin.middleware
    async def outer(event: Message, ctx: Context) -> AsyncIterator[None]:
        calls.append("outer in")
        await asyncio.sleep(0)
        try:
            yield
        except ValueError:
            calls.append("outer forgives")
        calls.append("outer out")

    @plugin.middleware
    async def inner(event: Message, ctx: Context) -> AsyncIterator[None]:
        calls.append("inner in")
        yield
        calls.append("inner out")

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None:
        calls.append("handle")
        if message.text == "bad":
            raise ValueError

    rig.load(plugin)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c", "good")])
        await dispatcher.quiet()
        assert calls == ["outer in", "inner in", "handle", "inner out", "outer out"]
        calls.clear()
        dispatcher.offer([rig.said("c", "bad")])
        await dispatcher.quiet()
        assert calls == ["outer in", "inner in", "handle", "outer forgives", "outer out"]
        assert dispatcher.pending == {"me": 0}
    assert rig.journal.failed == {}


async def test_a_middleware_that_hangs_meets_the_deadline() -> None:
    rig = Rig()
    plugin = Plugin("p")

    @plugin.middleware
    async def around(event: Message, ctx: Context) -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield

    @plugin.on(Message)
    async def handle(message: Message, ctx: Context) -> None: ...

    rig.load(plugin, timeout_s=0.01, attempts=1)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c")])
        await dispatcher.quiet()
    assert "DeadlinePassed" in rig.journal.dead[0].error


async def test_a_def_handler_reads_state_through_wait() -> None:
    rig = Rig()
    seen: list[int] = []

    def handle(message: Message, ctx: Context) -> None:
        count = ctx.wait(ctx.state.get("count", int, 0)) + 1
        ctx.state.put("count", count)
        seen.append(count)

    rig.plugin("p", handle)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c") for _ in range(3)])
        await dispatcher.quiet()
    assert seen == [1, 2, 3]


async def test_the_deadline_that_a_handler_reads_is_its_own() -> None:
    rig = Rig()
    left: list[float] = []

    async def handle(message: Message, ctx: Context) -> None:
        left.append(ctx.deadline - time.time())

    rig.plugin("p", handle, filters={"timeout_s": 7.0})
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c")])
        await dispatcher.quiet()
    assert 6.0 < left[0] <= 7.01


async def test_a_handler_that_blocks_the_loop_is_named_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    rig = Rig()

    async def handle(message: Message, ctx: Context) -> None:
        time.sleep(0.3)  # what an author must not do

    loaded = rig.plugin("greeter", handle)
    with StallWatch(0.05, dict(loaded.codes())) as watch:
        async with rig.running() as dispatcher:
            dispatcher.offer([rig.said("c")])
            await dispatcher.quiet()
            while not watch.stalled_s:
                await asyncio.sleep(0.01)
    told = caplog.records[0].getMessage()
    assert "plugin greeter, handler" in told
    assert "time.sleep(0.3)" in told


# --- on the real disk


@asynccontextmanager
async def on_disk(path: Path, handle: Handle, queued: list[Send]) -> AsyncIterator[tuple[Any, Dispatcher]]:
    """A dispatcher on a journal on disk. Leaving it is a crash: what was not committed by then is gone."""
    journal = await open_journal(path, JournalSettings(linger_ms=0.0))
    plugin = Plugin("p")
    plugin.on(Message)(handle)
    loaded = Loaded("p", plugin, PluginSettings(use="p"), "", journal.state_get)
    await loaded.setup()

    def revive(stored: StoredRecord) -> Message:
        return message_at(int(stored.payload))

    async with asyncio.TaskGroup() as tasks:
        dispatcher = Dispatcher(
            journal,
            {"p": loaded},
            {"me": ["p"]},
            Dispatch(),
            revive=revive,
            on_queued=queued.extend,
            on_backlog=lambda identity, is_so: None,
            marks=marks(1_000, 100),
            clock=LoopClock(),
        )
        await dispatcher.start(tasks)
        try:
            yield journal, dispatcher
        finally:
            await dispatcher.stop(0.0)
            await loaded.teardown()
            await journal.close()


def message_at(seq: int) -> Message:
    return Message(
        identity="me",
        conversation="c",
        seq=seq,
        id=f"m{seq}",
        sender="bob",
        text=str(seq),
        answer_to="@bob",
        payload=str(seq).encode(),
    )


async def journaled(journal: Any, seqs: Sequence[int]) -> list[Record]:
    records = [Record(journal.next_position(), 1, message_at(seq), 0.0) for seq in seqs]
    last = records[-1]
    mark = Conversation(1, "me", "c", 1, 1, seqs[-1], last.event.id, seqs[-1], last.position)
    await journal.commit(mark, *[Appended(record) for record in records])
    return records


async def test_state_and_sends_survive_restarts_on_the_real_journal_each_once(tmp_path: Path) -> None:
    queued: list[Send] = []

    async def count(message: Message, ctx: Context) -> None:
        total = await ctx.state.get("count", int, 0) + 1
        everywhere = await ctx.plugin_state.get("count", int, 0) + 1
        ctx.state.put("count", total)
        ctx.plugin_state.put("count", everywhere)
        ctx.reply(f"{message.text} is number {total}")

    for seqs in ([1, 2, 3], [4, 5]):
        async with on_disk(tmp_path / "journal.db", count, queued) as (journal, dispatcher):
            dispatcher.offer(await journaled(journal, seqs))
            await dispatcher.quiet()
    async with on_disk(tmp_path / "journal.db", count, queued) as (journal, dispatcher):
        await dispatcher.quiet()
        assert await journal.state_get("p", 1, "count") == b"5"
        assert await journal.state_get("p", 0, "count") == b"5"
        outbox = await journal.outbox_open("me")
        assert dispatcher.handled == {"me": 5}
    assert [send.content.text for send in outbox] == [f"{n} is number {n}" for n in range(1, 6)]
    assert len(queued) == 5


async def test_a_turn_cut_off_before_its_commit_repeats_with_the_same_keys_on_the_real_journal(tmp_path: Path) -> None:
    keys: list[str] = []
    gate = asyncio.Event()

    async def handle(message: Message, ctx: Context) -> None:
        keys.append(ctx.reply("hello"))
        await gate.wait()

    async with on_disk(tmp_path / "journal.db", handle, []) as (journal, dispatcher):
        dispatcher.offer(await journaled(journal, [1]))
        while not keys:
            await asyncio.sleep(0)
        assert await journal.outbox_open("me") == []
    gate.set()
    async with on_disk(tmp_path / "journal.db", handle, []) as (journal, dispatcher):
        await dispatcher.quiet()
        [send] = await journal.outbox_open("me")
    assert keys == [send.client_msg_id] * 2


async def test_a_repeat_of_a_committed_turn_adds_nothing_to_the_outbox(tmp_path: Path) -> None:
    async def handle(message: Message, ctx: Context) -> None:
        ctx.reply("first words")

    async with on_disk(tmp_path / "journal.db", handle, []) as (journal, dispatcher):
        dispatcher.offer(await journaled(journal, [1]))
        await dispatcher.quiet()
        [send] = await journal.outbox_open("me")
        other = Send(
            identity="me", target="@bob", content=send.content, client_msg_id=send.client_msg_id, cause="again"
        )
        await journal.commit(Queued(other, 1.0))
        assert [each.cause for each in await journal.outbox_open("me")] == [send.cause]


# --- those who would take all


async def test_plugins_whose_handlers_all_hang_leave_every_other_its_share() -> None:
    rig, ledger = Rig(concurrency=8), Ledger()
    never = asyncio.Event()

    async def hang(message: Message, ctx: Context) -> None:
        await never.wait()

    for number in range(3):
        rig.plugin(f"hangs-{number}", hang)
    rig.plugin("healthy", ledger)
    async with rig.running() as dispatcher:
        for number in range(50):
            dispatcher.offer([rig.said(f"c{number}")])
        while len(ledger.texts) < 50:
            await asyncio.sleep(0)
        # What is left over beyond the shares is theirs who came first.
        assert sum(dispatcher.standing(f"hangs-{number}")["running"] for number in range(3)) == 6


async def test_one_plugin_alone_may_run_as_many_calls_as_it_is_allowed() -> None:
    rig = Rig(concurrency=8)
    never = asyncio.Event()

    async def hang(message: Message, ctx: Context) -> None:
        await never.wait()

    rig.plugin("p", hang, concurrency=16)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said(f"c{number}") for number in range(50)])
        while dispatcher.standing("p")["running"] < 8:
            await asyncio.sleep(0)


async def deaf_to_cancellation(message: Message, ctx: Context) -> None:
    while message.text == "deaf":
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3_600)


async def test_a_handler_that_is_deaf_to_its_deadline_is_left_behind_and_its_lane_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig()
    rig.plugin("p", deaf_to_cancellation, filters={"timeout_s": 0.05, "attempts": 1})
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c", "deaf"), rig.said("c", "fine")])
        await dispatcher.quiet()
        assert dispatcher.handled == {"me": 2}
    assert [dead.error.partition(":")[0] for dead in rig.journal.dead] == ["DeadlinePassed"]
    assert "ignores that it was cancelled" in caplog.text


async def test_a_stop_ends_whatever_a_handler_does_about_it() -> None:
    rig = Rig()
    rig.plugin("p", deaf_to_cancellation)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c", "deaf")])
        while not dispatcher.standing("p")["running"]:
            await asyncio.sleep(0)
    assert rig.journal.cursor("p", "c") is None  # given back uncounted
    assert rig.journal.failed == {}


async def test_a_handlers_own_time_limits_are_its_own_business_until_the_end() -> None:
    rig = Rig()
    steps: list[str] = []

    async def handle(message: Message, ctx: Context) -> None:
        for _ in range(3):
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(3_600)
            except TimeoutError:
                steps.append("timed out")
        await asyncio.sleep(0.02)
        steps.append("done")

    rig.plugin("p", handle)
    async with rig.running() as dispatcher:
        dispatcher.offer([rig.said("c")])
        await dispatcher.quiet()
    assert steps == ["timed out"] * 3 + ["done"]


async def test_a_stop_while_a_timers_attempt_is_on_its_way_to_disk_costs_it_none() -> None:
    rig, woken = Rig(), []
    plugin = Plugin("p")

    @plugin.on(Timer)
    async def wake(timer: Timer, ctx: Context) -> None:
        woken.append(timer.id)

    rig.load(plugin, attempts=1)
    rig.journal.timer_rows["t"] = TimerSet("t", "p", "me", 0, "", "", 1.0, b"null")
    async with rig.running():
        rig.journal.full = True
        while not rig.journal._waiting:
            await asyncio.sleep(0.001)
    rig.journal.has_room()
    assert (woken, rig.journal.timer_rows["t"].failures) == ([], 0)
