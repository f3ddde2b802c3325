"""What everything that runs here has in common: lanes to take from, workers, the clock, the way to disk.

The engine hands out work, plugin by plugin in turn; what a piece of work is, its kind knows (`deliveries`, `wakeups`,
`signals`). Whoever finishes one tells the lanes, and the engine looks for the next.

Always true: a turn's effects are one commit, and become visible to later turns with it. There is one timer, at the
first of all deadlines. In a conversation that is paused nothing is handed out.
Not here: what a turn is about, and what becomes of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from agentd import metrics
from agentd.core.events import Send
from agentd.core.retry import Again, Backoff, Bury, after_failure
from agentd.dispatcher.backlog import Delivery, Inherited, Item, Key, Served
from agentd.dispatcher.clock import Clock
from agentd.dispatcher.commits import Commits, Log, succeeded
from agentd.dispatcher.fates import asked_wait_s, effects, log_failure, reminders, told
from agentd.dispatcher.handing import Successor
from agentd.dispatcher.pauses import Pauses
from agentd.dispatcher.room import Room
from agentd.dispatcher.timers import Timers
from agentd.dispatcher.trials import Trial, Trials
from agentd.dispatcher.workers import Workers
from agentd.errors import GiveUp, NotConnected, RetryLater
from agentd.host.context import TurnContext
from agentd.host.turns import DeadlinePassed, Failure
from agentd.journal.storage import Change
from agentd.tracing import Traces

log = logging.getLogger("agentd.dispatcher")

_HOLD_LOOK_S = 0.002

Work = tuple[Served, Key, Item]
Waits = Callable[[], None]


def calls_max(concurrency: int, plugins: int) -> int:
    """How many calls may run at once over all plugins: as configured, and at least one of each."""
    return max(concurrency, plugins)


class Engine:
    """The engine of one dispatcher. `carry_out`, `on_deadline` and `on_paused` are hung in before `start`.

    served: every plugin by name. slots: calls that can be marked as running, whatever their share. outbox_room: how
    many more sends an identity's outbox takes. on_queued: a commit put these sends into the outbox. chance: at random
    from [0, 1). taken_at: monotonic seconds of the last hand-out.
    under_way: the turns that run. overruns: threads that run on past their deadline, and the lanes that wait for them.
    successor: who decides what becomes of the turns that run, once that is another process. traces: who follows
    events, or None.
    """

    carry_out: Callable[[Work, Waits], Coroutine[Any, Any, None]]
    on_deadline: Callable[[], None]
    on_paused: Callable[[Served, int], None]

    def __init__(
        self,
        journal: Log,
        served: dict[str, Served],
        concurrency: int,
        slots: int,
        trials: Trials,
        *,
        clock: Clock,
        backoff: Backoff,
        chance: Callable[[], float],
        outbox_room: Callable[[str], int],
        on_queued: Callable[[Sequence[Send]], None],
        traces: Traces | None = None,
    ) -> None:
        self.traces = traces
        self.journal = journal
        self.served = served
        self.clock = clock
        self.backoff = backoff
        self.chance = chance
        self.commits = Commits(journal, self._journal_failed, self.stir)
        self.room: Room[Callable[[], None]] = Room(outbox_room)
        self.timers = Timers()
        self.pauses = Pauses()
        self.trials = trials
        self.taken_at = 0.0
        self.stopping = False
        self.under_way: set[TurnContext[Any]] = set()
        self.overruns: dict[asyncio.Future[Any], tuple[Served, Key]] = {}
        self.successor: Successor | None = None
        self._holding = False
        self._after_overruns: list[Callable[[], None]] = []
        self._on_queued = on_queued
        self._concurrency = concurrency
        self._slots = slots
        self._short: list[Served] = []
        self._workers = Workers(concurrency, self._take, lambda work, waits: self.carry_out(work, waits), self.stir)
        self.shared_anew()
        self._rota: deque[Served] = deque()
        self._committing = 0
        self._timer_at: float | None = None
        self._cancel_timer: Callable[[], None] | None = None
        self._stirred: asyncio.Future[None] | None = None

    # --- life

    def shared_anew(self) -> None:
        """There are more plugins, or fewer: each has its share of the calls that may run at once."""
        self._limit = self._workers.limit = min(calls_max(self._concurrency, len(self.served)), self._slots)
        self._share = self._limit // max(1, len(self.served))

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Workers are born in this group from now on, and a journal that fails ends it."""
        self._tasks = tasks
        for served in self.served.values():
            served.taken_at = self.clock.monotonic()
        self._workers.start(tasks)

    async def stop(self, timeout_s: float, commit_s: float) -> None:
        """Hand nothing out, let turns finish for so long, and put what gathered on disk."""
        self.stopping = True
        deadline = self.clock.monotonic() + timeout_s
        if self._cancel_timer is not None:
            self._cancel_timer()
        await self._workers.stop(timeout_s, self._cancelling)
        await self.commits.finish(max(commit_s, deadline - self.clock.monotonic()))

    def _cancelling(self) -> None:
        for served in self.served.values():
            served.plugin.turns.stopping = True

    async def quiet(self) -> None:
        """Return when nothing runs, nothing could run now, and every commit is on disk; delayed lanes may remain."""
        loop = asyncio.get_running_loop()
        while self._is_busy():
            self._stirred = loop.create_future()
            await self._stirred

    def _is_busy(self) -> bool:
        # A lane runs on without a worker while a thread that overran its deadline does.
        running = self._workers.running or any(served.lanes.running for served in self.served.values())
        return bool(running or self._rota or self._committing or self.commits.under_way)

    def stir(self) -> None:
        """Something has ended: whoever waits for quiet looks again."""
        if self._stirred is not None and not self._stirred.done():
            self._stirred.set_result(None)

    def _journal_failed(self, error: BaseException) -> None:
        if self.stopping:
            log.error("the journal failed: %s", error)
            return
        self.stopping = True
        self._tasks.create_task(_raise(error), name="journal-failed")

    # --- work

    def push(self, served: Served, key: Key, item: Item, identity: str) -> None:
        """Put something at the end of a lane. identity: whose it is."""
        served.lanes.push(key, item, identity)
        self.enlist(served)

    def enlist(self, served: Served) -> None:
        """Something of this plugin may be ready to run."""
        if not served.listed:
            served.listed = True
            self._rota.append(served)

    def wake(self) -> None:
        """There may be work: see to it that somebody takes it."""
        if self._rota or self.trials:
            self._workers.wake()

    def _take(self) -> Work | None:
        """The next piece of work, plugin by plugin in turn."""
        if self._holding:
            return None
        now = self.clock.monotonic()
        if self._short:
            self._rota.extend(self._short)
            self._short.clear()
        trial = None
        while self.trials and (trial := self.trials.current(now)) is not None:
            if (work := self._tried(trial, now)) is not None:
                return work
            if trial.served.lanes.is_running(trial.key) or not trial.served.plugin.up:
                break
            self.trials.over(trial.served, trial.key)
        if self.trials and trial is not None and trial.whole:
            return None
        while self._rota:
            served = self._rota.popleft()
            room = self._room_for(served)
            if room <= 0 or (self.trials and trial is not None and served is trial.served):
                self._short.append(served)
                continue
            breakers = served.breakers
            if served.plugin.up and (not breakers.troubled or breakers.whole.may_begin(now)):
                barred = breakers.barred(now) if breakers.troubled else ()
                while (taken := served.lanes.take(now, room, barred)) is not None:
                    # What the predecessor runs is under way already.
                    if self.pauses and not isinstance(taken[1], Inherited) and self._is_paused(served, taken[0]):
                        continue
                    self._rota.append(served)
                    self.taken_at = served.taken_at = now
                    return served, *taken
                if served.lanes.waiting and room < served.lanes.limit - served.lanes.running:
                    self._short.append(served)
                    continue
            served.listed = False
        return None

    def _tried(self, trial: Trial, now: float) -> Work | None:
        """Work of the lane that has the floor."""
        served, key = trial.served, trial.key
        item = served.lanes.take_only(key, now) if served.plugin.up else None
        if item is None or self._is_paused(served, key):
            return None
        self.taken_at = served.taken_at = now
        if isinstance(item, Delivery):
            self.trials.began(now)
            self.arm()
        return served, key, item

    def _room_for(self, served: Served) -> int:
        """How many calls of this plugin may begin and leave every other one its share of those that may run at once.

        So that plugins whose handlers all hang take the room of no other.
        """
        free = self._limit - self._workers.running
        if len(self.served) == 1:
            return free
        owed = sum(max(0, self._share - each.lanes.running) for each in self.served.values() if each is not served)
        return max(free - owed, self._share - served.lanes.running)

    def _is_paused(self, served: Served, key: Key) -> bool:
        if not isinstance(key, int) or not self.pauses.met(key, served):
            return False
        served.lanes.hold(key)
        self.on_paused(served, key)
        return True

    def resumed(self, number: int) -> None:
        """Let the lanes of a conversation run that was paused."""
        for served in self.pauses.end(number):
            served.lanes.release(number)
            self.enlist(served)
        self.wake()

    def up_again(self, served: Served) -> None:
        """An isolated plugin has a worker again."""
        self.enlist(served)
        self.wake()

    def done(self, served: Served, key: Key, count: int = 1) -> None:
        """So many items of this lane are finished with."""
        served.lanes.done(key, count)
        served.offline.pop(key, None)
        self.enlist(served)

    # --- time

    def delay(self, served: Served, key: Key, until: float) -> None:
        """The head of this lane runs again at this monotonic time."""
        served.lanes.delay(key, until)
        self.enlist(served)
        self.arm()

    def arm(self) -> None:
        """Have one timer, at the first of all deadlines."""
        deadlines = [served.lanes.next_deadline() for served in self.served.values()]
        for served in self.served.values():
            deadlines += served.breakers.trials() if served.breakers.troubled else ()
        now, unix = self.clock.monotonic(), self.clock.unix()
        for at in (self.timers.next_due(), self.pauses.next_end()):
            if at is not None:
                deadlines.append(now + max(0.0, at - unix))
        deadlines.append(self.trials.next_end())
        first = min((each for each in deadlines if each is not None), default=None)
        if first is None or first == self._timer_at or self.stopping or self._holding:
            return
        if self._cancel_timer is not None:
            self._cancel_timer()
        self._timer_at = first
        self._cancel_timer = self.clock.call_at(first, self._deadline)

    def _deadline(self) -> None:
        self._cancel_timer = self._timer_at = None
        now = self.clock.monotonic()
        for served in self.served.values():
            if served.lanes.wake(now) or (served.breakers.troubled and served.breakers.whole.may_begin(now)):
                self.enlist(served)
        self.on_deadline()
        self.arm()
        self.wake()
        if self._short:
            self._workers.wake()

    # --- handing over

    async def left_to_successor(self, ctx: TurnContext[Any], failure: Failure | None) -> bool:
        """Whether another process decides what becomes of a turn that has ended."""
        return self.successor is not None and await self.successor.takes(ctx, failure)

    async def hold(self, timeout_s: float) -> None:
        """Hand nothing out; return when nothing is under way but turns, and whatever has ended is on disk.

        Raises TimeoutError, and goes on as before.
        """
        self._holding = True
        if self._cancel_timer is not None:
            self._cancel_timer()
        self._cancel_timer = self._timer_at = None
        deadline = self.clock.monotonic() + timeout_s
        while True:
            for commit in self.room.let_all_go():
                commit()
            self.commits.flush()
            if self._workers.running == len(self.under_way) and not (self._committing or self.commits.under_way):
                return
            if self.clock.monotonic() > deadline:
                self.go_on()
                raise TimeoutError
            await asyncio.sleep(_HOLD_LOOK_S)

    def go_on(self) -> None:
        """Hand out again: there is no successor."""
        self._holding = False
        self.successor = None
        after, self._after_overruns = self._after_overruns, []
        for then in after:
            then()
        for served in self.served.values():
            self.enlist(served)
        self.on_deadline()
        self.arm()
        self.wake()

    # --- effects

    def hold_for_commit(self, served: Served, key: Key) -> None:
        """This lane waits for a commit: no later turn of it may run on what may never reach the disk."""
        served.lanes.hold(key)
        self._committing += 1

    def committed(self) -> None:
        """That commit has ended."""
        self._committing -= 1
        self.stir()

    def effects(self, ctx: TurnContext[Any], first: int = 0, last: int = 0) -> list[Change]:
        """What a turn staged, as changes; its puts are visible to other turns from now on. first, last: positions."""
        if ctx.puts:
            ctx.home.state.committing(ctx.puts)
        return effects(ctx, self.clock.unix(), first, last) if ctx.staged else []

    def effects_on_disk(self, ctx: TurnContext[Any], commit: asyncio.Future[None]) -> None:
        """Ring those who carry them on."""
        if not succeeded(commit):
            return
        if ctx.puts:
            ctx.home.state.committed(ctx.puts)
        if ctx.reminders:
            for timer in reminders(ctx):
                self.timers.put(timer)
            if (served := self.served.get(ctx.name)) is not None:
                served.plugin.timers = self.timers.count(ctx.name)
            self.arm()
        if ctx.sends:
            self._on_queued(ctx.sends)

    def when_room(self, ctx: TurnContext[Any], commit: Callable[[], None]) -> None:
        """Commit a turn as soon as the outboxes that it sends to have room."""
        if not ctx.sends or self.room.admit(commit, ctx.sends):
            commit()
        elif len(self.room) == 1:
            log.warning("the outbox is full: turns that send wait for it", extra={"identity": ctx.identity})

    def room_again(self) -> None:
        """Sends have left an outbox: commit the turns that waited for that."""
        while not self.stopping and len(self.room) and (commit := self.room.pop()) is not None:
            commit()

    # --- failures

    def postponed(self, served: Served, key: Key, ctx: TurnContext[Any], failure: Failure) -> bool:
        """Tell the breakers of a failure. True if it is not the event's: the same again later, uncounted."""
        error = failure.error
        if isinstance(error, NotConnected):
            self._await_identity(served, key, ctx, failure)
            return True
        asked_s = asked_wait_s(error)
        if self._is_its_own(served, key, ctx.identity, error, asked_s):
            return False
        now = self.clock.monotonic()
        until = served.breakers.standing(ctx.identity).until
        until = max(until, now + (asked_s or 0.0))
        log_failure(f"failed with its plugin, again in {until - now:.1f} s", ctx, failure)
        self.once_it_ended(error, served, key, lambda: self.delay(served, key, until))
        self.arm()
        return True

    def _await_identity(self, served: Served, key: Key, ctx: TurnContext[Any], failure: Failure) -> None:
        """A turn has called a platform that its identity is not connected to: neither its fault nor the plugin's.

        As long as that lasts it runs again ever more seldom: whatever else it does is done each time.
        """
        served.breakers.untold(ctx.identity, key)
        failures = served.offline[key] = served.offline.get(key, 0) + 1
        again = after_failure(failures, failures + 1, self.backoff, self.chance(), asked_wait_s(failure.error))
        assert isinstance(again, Again)
        log_failure(f"its identity is not connected, again in {again.after_s:.1f} s", ctx, failure)
        self.delay(served, key, self.clock.monotonic() + again.after_s)

    def _is_its_own(self, served: Served, key: Key, identity: str, error: BaseException, asked_s: float | None) -> bool:
        """Whether a failure is one of this event, and not of the plugin, as a whole or for this identity."""
        breakers, name = served.breakers, served.plugin.name
        if isinstance(error, GiveUp):
            breakers.succeeded(identity, key)
            return True
        whole_plugin = isinstance(error, RetryLater) and error.whole_plugin
        was_closed, waited = breakers.whole.closed, breakers.waiting()
        now = self.clock.monotonic()
        counts = breakers.failed(identity, key, now, asked_s=asked_s, whole_plugin=whole_plugin)
        if not breakers.standing(identity).closed:
            served.troubles[identity] = served.troubles[""] = told(error)
        if was_closed and not breakers.whole.closed:
            log.warning("the whole plugin seems out of order: its conversations wait", extra={"plugin": name})
            metrics.BREAKER_OPENED.inc(name)
        elif breakers.waiting().keys() - waited.keys():
            about = {"plugin": name, "identity": identity}
            log.warning("the plugin seems out of order for this identity: its conversations wait", extra=about)
            metrics.BREAKER_OPENED.inc(name)
        return counts

    def verdict(self, served: Served, failures: int, failure: Failure) -> Again | Bury:
        """What follows from so many failures, this one included."""
        error, handler = failure
        own = handler.attempts if handler is not None else None
        return after_failure(
            failures,
            0 if isinstance(error, GiveUp) else own or served.plugin.settings.attempts,
            self.backoff,
            self.chance(),
            asked_wait_s(error),
        )

    def once_it_ended(self, error: BaseException, served: Served, key: Key, then: Callable[[], None]) -> None:
        """Go on with a lane as soon as nothing of a failed call runs any more."""
        overrun = error.overrun if isinstance(error, DeadlinePassed) else None
        if overrun is None:
            then()
        else:
            # The thread still works on this event: what comes next in the lane would run beside it.
            self.overruns[overrun] = served, key
            overrun.add_done_callback(lambda ended: self._overrun_ended(then, ended))

    def _overrun_ended(self, then: Callable[[], None], overrun: asyncio.Future[Any]) -> None:
        self.overruns.pop(overrun, None)
        if not overrun.cancelled():
            overrun.exception()  # counted as a failure already, whatever it was
        if self.successor is not None:
            self._after_overruns.append(then)
        elif not self.stopping:
            then()
            self.wake()
        self.stir()


async def _raise(error: BaseException) -> None:
    raise error
