"""The whole dispatcher under anything: messages, failures, crashes, pauses, replays, in any order; then the books.

The journal is in memory and time moves by hand, as a plugin's author has them in agentd.testing.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentd.config import CatchUp, Dispatch
from agentd.core.events import Digest, Timer
from agentd.dispatcher import Marks
from agentd.errors import GiveUp, RetryLater
from agentd.journal.storage import DeadRow, Paused
from agentd.plugin import Context, Message, Plugin
from agentd.testing import Harness

T = TypeVar("T")

TALKS = ("ann", "bob", "cyd")
KINDS = (
    "plain",
    "silent",
    "poison",
    "flaky",
    "later",
    "given up",
    "now",
    "remind",
    "slow",
    "batch",
    "batch",
    "batch poison",
)
STALE_S = 3_600.0
LONG_S = 1_000.0  # longer than any delay between attempts
PATIENCE_S = 5.0
LOOP_TURNS = 60  # more than anything needs that does not wait for time or for the gate


class Tight(Harness):
    """With so little memory that lanes have to read the journal, and few calls at once."""

    _dispatch = Dispatch(lane_memory=2, concurrency=3)
    _marks = Marks(8, 4, 1 << 30, 1 << 29)  # the low one: as many as there are lanes


class Anything(RuleBasedStateMachine):
    """seen: by conversation, positions that a handler was given, in order. through: those it has returned from."""

    harnesses: tuple[type[Harness], type[Harness]] = (Tight, Harness)

    @initialize(
        on_dead=st.sampled_from(("skip", "hold", "detach")),
        policy=st.sampled_from(("replay", "latest", "digest", "hold")),
        attempts=st.integers(1, 3),
        roomy=st.booleans(),
    )
    def begin(self, on_dead: Any, policy: Any, attempts: int, roomy: bool) -> None:
        self.seen: dict[str, list[int]] = defaultdict(list)
        self.through: set[int] = set()
        self.replayed: set[str] = set()
        self.redelivered: set[int] = set()
        self.out_of_order = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.tasks: list[asyncio.Future[Any]] = []
        self.runner = asyncio.Runner()
        self.h = self.harnesses[roomy](
            self.plugin(),
            on_dead=on_dead,
            attempts=attempts,
            concurrency=3,
            catch_up=CatchUp(policy=policy, settle_s=1),
        )
        loop = self.runner.get_loop()
        self.commands: asyncio.Queue[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = asyncio.Queue()
        self.life = loop.create_task(self._live())

    # --- the plugin

    def plugin(self) -> Plugin[Any]:
        plugin = Plugin("any")

        @plugin.on(Message, text="^(?!batch)")
        async def one(message: Message, ctx: Context) -> None:
            await self._turn((message,), ctx)

        @plugin.on(Message, text="^batch", batch=3, settle_s=0.5)
        async def several(messages: tuple[Message, ...], ctx: Context) -> None:
            await self._turn(messages, ctx)

        @plugin.on(Digest)
        async def digest(digest: Digest, ctx: Context) -> None:
            # Those too that it only counts.
            whole = [
                each.event
                for each in self.h.journal.records
                if each.event.conversation == digest.conversation
                and digest.first_seq <= each.event.seq <= digest.last_seq
            ]
            await self._turn(tuple(each for each in whole if isinstance(each, Message)), ctx)

        @plugin.on(Timer)
        async def wake(timer: Timer, ctx: Context) -> None:
            await self._say(ctx, "@" + timer.data, "wake")

        return plugin

    async def _turn(self, messages: tuple[Message, ...], ctx: Context) -> None:
        positions = [self._position(message) for message in messages]
        seen = self.seen[messages[0].conversation]
        first_time = not set(seen) & set(positions)
        seen += positions
        kinds = {(message.text or "").partition(":")[0] for message in messages}
        await self._say(ctx, f"@{messages[0].sender}", "/".join(message.id for message in messages), kinds)
        if "slow" in kinds:
            await self.gate.wait()
        if kinds & {"poison", "batch poison"} or ("flaky" in kinds and first_time):
            raise ValueError("no")
        if self.out_of_order:
            raise RetryLater(5, whole_plugin=True)
        if "later" in kinds and first_time:
            raise RetryLater(30)
        if "given up" in kinds:
            raise GiveUp("not mine")
        if "now" in kinds:
            await ctx.send_now("@boss", f"now {messages[0].id}")
        self.through |= set(positions)

    async def _say(self, ctx: Context, target: str, about: str, kinds: set[str] | None = None) -> None:
        """Count on in the state, and say the number: what is missing, twice, or out of order shows in the sends."""
        kinds = kinds or set()
        if kinds == {"silent"}:
            return
        count = await ctx.state.get("count", int, 0) + 1
        ctx.state.put("count", count)
        ctx.send(target, f"{count} {about}")
        if "remind" in kinds:
            ctx.remind(10, data=target.removeprefix("@"))

    def _position(self, message: Message) -> int:
        return next(each.position for each in self.h.journal.records if each.event.id == message.id)

    # --- driving it

    async def _live(self) -> None:
        async with self.h:
            while True:
                work, done = await self.commands.get()
                try:
                    async with asyncio.timeout(PATIENCE_S):
                        done.set_result(await work())
                except Exception as error:
                    done.set_exception(error)
                if work == self._end:
                    return

    def do(self, work: Callable[[], Awaitable[T]]) -> T:
        """Let the one task that the harness lives in do this; if the dispatcher fails, that is raised."""

        async def asked() -> T:
            done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            self.commands.put_nowait((work, done))
            await asyncio.wait((self.life, done), return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                self.life.result()
            return await done

        return self.runner.run(asked())

    async def _rest(self) -> None:
        """Until nothing happens any more, but for what the gate holds up."""
        if self.gate.is_set():
            await self.h.settle()
            return
        for _ in range(LOOP_TURNS):
            await asyncio.sleep(0)
        if self.h.journal.losing:
            await self._crash()

    async def _crash(self) -> None:
        await self.h.crash(settle=False)
        await self._rest()

    async def _advance(self, seconds: float) -> None:
        until = self.h.clock.monotonic() + seconds
        while (callback := self.h.clock.next_timer(until)) is not None:
            callback()
            await self._rest()

    @property
    def dispatcher(self) -> Any:
        return self.h._dispatcher

    def _number(self, talk: str) -> int | None:
        return self.h.journal.number_of("me", f"conv_{talk}")

    def _last(self, talk: str) -> int:
        return max(each.position for each in self.h.journal.records if each.event.conversation == f"conv_{talk}")

    # --- what can happen

    @rule(
        talk=st.sampled_from(TALKS),
        kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=6),
        stale=st.booleans(),
        at_once=st.booleans(),
    )
    def say(self, talk: str, kinds: list[str], stale: bool, at_once: bool) -> None:
        async def work() -> None:
            now = datetime.fromtimestamp(self.h.clock.unix(), UTC)
            for kind in kinds:
                created_at = now - timedelta(seconds=2 * STALE_S) if stale else now
                await self.h.message(f"{kind}:", sender=f"@{talk}", created_at=created_at, settle=False)
                if not at_once:
                    await self._rest()
            await self._rest()

        self.do(work)

    @rule(seconds=st.sampled_from((0.1, 0.6, 2.0, 11.0, 31.0, LONG_S)))
    def pass_time(self, seconds: float) -> None:
        self.do(lambda: self._advance(seconds))

    @rule()
    def crash(self) -> None:
        self.do(self._crash)

    @rule()
    def crash_after_the_next_handler(self) -> None:
        self.h.crash_after_handler()

    @rule()
    def close_or_open_the_gate(self) -> None:
        async def work() -> None:
            if self.gate.is_set():
                self.gate.clear()
            else:
                self.gate.set()
            await self._rest()

        self.do(work)

    @rule()
    def break_or_mend(self) -> None:
        self.out_of_order = not self.out_of_order

    @rule(talk=st.sampled_from(TALKS), for_s=st.sampled_from((None, 5.0, 60.0)))
    def pause(self, talk: str, for_s: float | None) -> None:
        number = self._number(talk)
        if number is None:
            return
        now = self.h.clock.unix()
        until = None if for_s is None else now + for_s
        pause = Paused(
            number=number, identity="me", conversation=f"conv_{talk}", at=now, until=until, reason="by command"
        )

        async def work() -> None:
            self.dispatcher.pause(pause)
            await self._rest()

        self.do(work)

    @rule(talk=st.sampled_from(TALKS))
    def resume(self, talk: str) -> None:
        number = self._number(talk)
        if number is not None:
            self.do(lambda: self._resume(number))

    async def _resume(self, number: int) -> None:
        self.dispatcher.resume(number)
        await self._rest()

    @rule(talk=st.sampled_from(TALKS))
    def release(self, talk: str) -> None:
        self.do(lambda: self._release(talk))

    async def _release(self, talk: str) -> None:
        self.dispatcher.release("any", "me", f"conv_{talk}")
        await self._rest()

    @rule(talk=st.sampled_from(TALKS), back=st.integers(0, 5))
    def replay(self, talk: str, back: int) -> None:
        number = self._number(talk)
        if number is None:
            return

        async def work() -> None:
            # Answered when the lane has got there, which a pause, a failure or a crash may put off.
            position = max(0, self._last(talk) - back)
            self.tasks.append(asyncio.ensure_future(self.dispatcher.rewind("any", "me", number, position)))
            await self._rest()

        self.replayed.add(f"conv_{talk}")
        self.do(work)

    @precondition(lambda self: self._letters())
    @rule(data=st.data())
    def try_a_dead_letter_again(self, data: st.DataObject) -> None:
        letter = data.draw(st.sampled_from(self._letters()))
        self.redelivered.add(letter.position)

        async def work() -> None:
            await self.dispatcher.try_again(letter)
            await self._rest()

        if not self.h.journal.losing:
            self.do(work)

    def _letters(self) -> list[DeadRow]:
        journal = self.h.journal
        rows = []
        for number, dead in enumerate(journal.dead, 1):
            event = journal.records[dead.position - 1].event
            if number not in journal.dropped:
                rows.append(
                    DeadRow(
                        dead.plugin,
                        dead.conversation,
                        dead.position,
                        dead.attempts,
                        dead.error,
                        dead.traceback,
                        dead.plugin_version,
                        dead.died_at,
                        number=number,
                        identity=event.identity,
                        conversation_id=event.conversation,
                        dropped_at=None,
                    )
                )
        return rows

    # --- what is always true

    @invariant()
    def the_state_is_that_of_the_committed_turns(self) -> None:
        if not hasattr(self, "h"):
            return
        told = defaultdict(list)
        for send in self.h.sent:
            if not (send.content.text or "").startswith("now "):
                told[send.target].append(int((send.content.text or "").partition(" ")[0]))
        for talk in TALKS:
            count = self.h.state("count", int, 0, conversation=f"conv_{talk}")
            assert told[f"@{talk}"] == list(range(1, (count or 0) + 1)), talk

    # --- and in the end

    def teardown(self) -> None:
        """Everything may go on, and time passes: then each event has its fate."""
        if not hasattr(self, "h"):
            return
        try:
            self.do(self._calm)
            self.the_state_is_that_of_the_committed_turns()
            self._assert_that_the_books_balance()
        finally:
            if not self.life.done():
                self.do(self._end)
            self.runner.close()

    async def _end(self) -> None:
        for task in self.tasks:
            task.cancel()

    async def _calm(self) -> None:
        self.gate.set()
        self.out_of_order = False
        self.h.journal.dies_at_next_fate = False
        for _ in range(100):
            await self._rest()
            for number in list(self.h.journal.paused):
                await self._resume(number)
            for talk in TALKS:
                await self._release(talk)
            await self._advance(LONG_S)
            waiting = [timer for timer in self.h.timers if timer.due_at < math.inf]
            if not (self.h.pending or waiting or self.h.journal.paused):
                return
        raise AssertionError(f"never through: {self.h.pending} {self.h.timers} {self.dispatcher.standing('any')}")

    def _assert_that_the_books_balance(self) -> None:
        journal = self.h.journal
        passed = set(self._passed())
        dead = {each.position for each in journal.dead}
        lost = [
            each
            for each in journal.records
            if each.position not in self.through and each.position not in dead and each.position not in passed
        ]
        assert not lost, lost
        assert self.dispatcher.handled["me"] == len(journal.records)
        assert self.dispatcher.undispatched == 0
        assert journal.failed == {}
        for conversation, positions in self.seen.items():
            # A replay may bring what was passed over before.
            first = [position for position in dict.fromkeys(positions) if position not in passed]
            assert first == sorted(first), (conversation, positions)
        told: Counter[str] = Counter()
        for send in self.h.sent:
            number, _, about = (send.content.text or "").partition(" ")
            told.update([] if about == "wake" else [f"now {about}"] if number == "now" else about.split("/"))
        for each in journal.records:
            event = each.event
            silent = isinstance(event, Message) and (event.text or "").startswith("silent")
            once = event.conversation not in self.replayed and each.position not in self.redelivered
            if once and not silent and each.position not in dead and each.position not in passed:
                assert told[event.id] == 1, (told[event.id], event, self.h.texts)
            if once:
                assert told[f"now {event.id}"] <= 1, event
        reminded = sum(
            any(each.startswith("remind") for each in self._texts(send.content.text or "")) for send in self.h.sent
        )
        woken = sum((send.content.text or "").endswith(" wake") for send in self.h.sent)
        assert woken + len(self.h.timers) == reminded

    def _passed(self) -> Iterator[int]:
        for outcome in self.h.outcomes:
            if outcome.word == "passed":
                here = [each for each in self.h.journal.records if each.conversation == outcome.conversation]
                yield from (each.position for each in here if outcome.first <= each.position <= outcome.last)

    def _texts(self, sent: str) -> list[str]:
        """The texts of the messages that a numbered send is about."""
        number, _, about = sent.partition(" ")
        if number == "now":
            return []
        texts = {each.event.id: getattr(each.event, "text", "") for each in self.h.journal.records}
        return [texts[id_] for id_ in about.split("/") if id_ in texts]


Anything.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    print_blob=True,
)
TestAnything = Anything.TestCase
