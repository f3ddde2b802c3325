"""Turns about recorded events: which events make one, what runs, and every fate they can have.

Always true: within a lane events are handled in the order of positions, one turn at a time, and none before the fate of
the one ahead is on its way to disk. A turn's effects and its cursor are one commit; effects of a turn that failed are
nowhere. A repeat has the events that the failed turn had.
Not here: which events are in memory (loading), the engine, what handlers see (host/).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import takewhile
from typing import Any

from agentd import config, metrics
from agentd.core.events import Digest, Event, Message
from agentd.core.loop_guard import Budget, LoopGuard, hops_of
from agentd.core.quarantine import is_tried
from agentd.core.retry import Again
from agentd.core.stretches import Hold, Pass, Take, Wait, Waiting, next_turn
from agentd.dispatcher.backlog import Backlog, Delivery, Lane, Rewind, Served, Stretch
from agentd.dispatcher.commits import succeeded
from agentd.dispatcher.engine import Engine, Waits
from agentd.dispatcher.fates import attempt, dead_letter, log_failure
from agentd.dispatcher.loading import Loading
from agentd.dispatcher.suspects import ProcessDied, Suspects, condemned_by
from agentd.dispatcher.trials import Trial
from agentd.dispatcher.wakeups import Wakeups, set_aside
from agentd.errors import GiveUp
from agentd.host.calls import WorkerDied
from agentd.host.context import TurnContext
from agentd.host.handlers import matching
from agentd.host.turns import Failure
from agentd.journal.running import Running
from agentd.journal.storage import Change, Outcome, Paused, Rewound
from agentd.tracing import Traces, TurnTrace

log = logging.getLogger("agentd.dispatcher")

PASSED = "passed"
"""The outcome of events that were not handled since newer ones say more."""

TRIED_AGAIN = "tried again"
"""Noted of an event whose dead letter somebody wants to be delivered again."""

SET_BACK = "set back"
"""Noted of the events that a lane is to handle again, since somebody wants a replay."""

_STALE = "held: stale mail"
"""Why a conversation is paused by the catch-up policy "hold"."""


class Deliveries:
    """Those of one dispatcher. conduct: of every identity. pause: stops a conversation.

    parked: by (plugin, identity, conversation), lanes that stand behind a dead letter.
    """

    def __init__(
        self,
        engine: Engine,
        backlog: Backlog,
        loading: Loading,
        wakeups: Wakeups,
        running: Running,
        conduct: Mapping[str, config.Conduct],
        *,
        pause: Callable[[Paused], object],
    ) -> None:
        self._engine = engine
        self._backlog = backlog
        self._loading = loading
        self._wakeups = wakeups
        self._running = running
        self._conduct = conduct
        self._pause = pause
        self.suspects = Suspects()
        self.guards = {identity: LoopGuard(_budget(each.loop_guard)) for identity, each in conduct.items()}
        self.parked: dict[tuple[str, str, str], tuple[Lane, Stretch]] = {}

    # --- running

    async def run(self, lane: Lane, delivery: Delivery, waits: Waits) -> None:
        """One turn of a lane, or what stands instead of it."""
        lane.still = lane.settling = False
        if lane.before is not None and self._is_put_off(lane, delivery):
            return
        if lane.ended is not None and self._failed_elsewhere(lane, delivery):
            return
        if delivery.plugin is not lane.served.plugin:
            delivery = self._asked_anew(delivery)
        if delivery.handlers == ():
            self._finish(lane, (delivery,))
        elif (stretch := self._next(lane, delivery)) is not None:
            await self._turn(lane, stretch, waits)
            self._engine.enlist(lane.served)

    def _asked_anew(self, delivery: Delivery) -> Delivery:
        """The same for the generation of the plugin that runs now."""
        plugin = delivery.lane.served.plugin
        return delivery._replace(plugin=plugin, handlers=matching(plugin, delivery.record.event))

    async def _turn(self, lane: Lane, stretch: Stretch, waits: Waits) -> None:
        engine, served = self._engine, lane.served
        first, last = stretch.deliveries[0].record, stretch.deliveries[-1].record
        plugin, breakers = served.plugin, served.breakers
        if breakers.troubled:
            breakers.began(lane.line.identity, lane.number)
        ctx: TurnContext[Any] = TurnContext(
            plugin,
            last.event,
            lane.number,
            lane.failures + lane.deaths + 1,
            cause=first.event,
            again=served.again(lane.number, first.position) if served.replays else "",
            progressed=lane.progress,
            owner=self,
            about=(lane, stretch),
        )
        shown = first.event if stretch.form == "event" else self._shown(lane, stretch)
        lane.runs_until = last.position
        trace = None if engine.traces is None else _traced(engine.traces, stretch, ctx)
        started = lane.began_at = engine.taken_at
        # What runs in a worker cannot end this process.
        mark = self._running.began(served.tag, first.position, last.position) if plugin.in_process else None
        engine.under_way.add(ctx)
        try:
            failure = await plugin.turns.run(shown, stretch.deliveries[0].handlers, ctx, waits)
        except BaseException:
            if trace is not None:
                trace.ended("given back")
            raise
        finally:
            engine.under_way.discard(ctx)
            if mark is not None:
                self._running.ended(mark)
        if engine.successor is not None and await engine.left_to_successor(ctx, failure):
            if trace is not None:
                trace.ended("handed over")
            return
        if engine.trials:
            engine.trials.over(served, lane.number)
        if failure is None:
            outcome = "handled"
            if breakers.troubled:
                breakers.succeeded(lane.line.identity, lane.number)
            self._handled(lane, stretch, ctx)
        elif isinstance(failure.error, WorkerDied):
            lane.progress = ctx.progressed
            outcome = self._worker_died(lane, stretch, ctx, failure, failure.error)
        else:
            lane.progress = ctx.progressed
            outcome = self._failed(lane, stretch, ctx, failure)
        metrics.HANDLER_SECONDS.observe(engine.clock.monotonic() - started, plugin.name, outcome)
        if trace is not None:
            _ended(trace, outcome, ctx, failure)

    def got_on(self, ctx: TurnContext[Any], noted: bytes) -> None:
        """See host.context.Owner."""
        lane, stretch = _about(ctx)
        lane.progress = noted
        self._engine.commits.commit(self._attempt(lane, stretch, None, 0.0))

    async def says_now(self, ctx: TurnContext[Any]) -> None:
        """See host.context.Owner. What is said is said about these events: they are the turn's whatever happens."""
        lane, stretch = _about(ctx)
        if stretch.until and not lane.until:
            await self._engine.commits.commit(self._attempt(lane, stretch, None, 0.0))

    def _attempt(self, lane: Lane, stretch: Stretch, error: BaseException | None, not_before: float) -> Change:
        lane.until = stretch.until
        return attempt(lane, stretch.first.record.position, error, not_before)

    def _shown(self, lane: Lane, stretch: Stretch) -> Digest | tuple[Event, ...]:
        events = tuple(each.record.event for each in stretch.deliveries)
        if stretch.form == "batch":
            return events
        messages = [event for event in events if isinstance(event, Message)]
        identity = events[0].identity
        # The policy may be another one since the digest was first shown.
        kept = (lane.served.catch_up[identity] or self._conduct[identity].catch_up).digest_max
        return Digest(
            identity=identity,
            conversation=events[0].conversation,
            messages=tuple(messages[-kept:]),
            count=len(events),
            first_seq=events[0].seq,
            last_seq=events[-1].seq,
        )

    # --- which events

    def _next(self, lane: Lane, delivery: Delivery) -> Stretch | None:
        """What the next turn is about; None if the lane waits, or if its events were passed over."""
        handlers, policy = delivery.handlers, lane.served.catch_up[lane.line.identity]
        batch = handlers[0].batch if handlers is not None and len(handlers) == 1 else None
        if policy is not None and not self._is_met_first(lane, delivery):
            policy = None
        if (batch is None and policy is None and not lane.until) or lane.deaths or _at(delivery) <= lane.apart:
            return Stretch((delivery,), "event" if batch is None else "batch")
        reach = lane.memory if policy is not None or lane.until else batch.size if batch is not None else 1
        there = self._in_memory(lane, delivery, reach)
        verdict = next_turn(
            [_waiting(each, policy is not None) for each in there],
            self._engine.clock.unix(),
            policy,
            frozen=sum(_at(each) <= lane.until for each in there),
            more=lane.behind,
        )
        return self._decided(lane, there, verdict)

    def _is_met_first(self, lane: Lane, delivery: Delivery) -> bool:
        """No turn has begun with this event, and nobody has let it through."""
        known = lane.failures or lane.deaths or lane.until or lane.served.again(lane.number, _at(delivery))
        return not known and _at(delivery) > lane.let_through

    def _in_memory(self, lane: Lane, head: Delivery, count: int) -> tuple[Delivery, ...]:
        items = lane.served.lanes.first(lane.number, count)[1:]
        behind = takewhile(lambda item: isinstance(item, Delivery), items)
        plugin = lane.served.plugin
        known = [each for each in behind if isinstance(each, Delivery)]
        return (head, *(each if each.plugin is plugin else self._asked_anew(each) for each in known))

    def _decided(self, lane: Lane, there: Sequence[Delivery], verdict: Take | Pass | Wait | Hold) -> Stretch | None:
        engine, now = self._engine, self._engine.clock.unix()
        match verdict:
            case Take(count, "digest"):
                digest = Stretch(tuple(there[:count]), "digest")
                shown = self._shown(lane, digest)
                assert isinstance(shown, Digest)
                handlers = matching(lane.served.plugin, shown)
                head = digest.first._replace(handlers=handlers)
                if handlers is None or handlers:
                    return Stretch((head, *digest.deliveries[1:]), "digest")
                # Its handlers want digests, but not this one.
                self._pass_over(lane, there[:count], "nobody wants a digest of it", now)
            case Take(count, form):
                return Stretch(tuple(there[:count]), form)
            case Pass(count):
                self._pass_over(lane, there[:count], "stale: newer mail follows", now)
            case Wait(seconds):
                lane.settling = True
                engine.delay(lane.served, lane.number, engine.clock.monotonic() + seconds)
            case Hold():
                number, event = lane.number, there[0].record.event
                lane.served.lanes.hold(number)
                self._stand_still(lane, there[0])
                self._pause(
                    Paused(
                        number=number,
                        identity=event.identity,
                        conversation=event.conversation,
                        at=now,
                        until=None,
                        reason=_STALE,
                        watchers=lane.served.plugin.watches,  # who only watches is held by a policy of its own alone
                    )
                )
                engine.pauses.met(number, lane.served)
        return None

    def _pass_over(self, lane: Lane, deliveries: Sequence[Delivery], reason: str, now: float) -> None:
        name, identity = lane.served.plugin.name, lane.line.identity
        data = b'{"reason":"%s","count":%d}' % (reason.encode(), len(deliveries))
        passed = Outcome(name, lane.number, _at(deliveries[0]), _at(deliveries[-1]), PASSED, data, now)
        metrics.PASSED_OVER.inc(identity, name, by=len(deliveries))
        log.info("%d events passed over: %s", len(deliveries), reason, extra={"plugin": name, "identity": identity})
        self._engine.commits.with_cursor(lane, self._loading.position_past(lane, deliveries), passed)
        if (traces := self._engine.traces) is not None:
            for each in deliveries:
                traces.passed_over(name, each.record, each.pending)
        self._finish(lane, deliveries)

    def _is_put_off(self, lane: Lane, delivery: Delivery) -> bool:
        """Take up what is known from before the restart; whether the event must not run now."""
        before, position = lane.before, _at(delivery)
        assert before is not None
        if before.position > position:
            return False
        lane.before = None
        if before.position < position:
            return False
        lane.failures, lane.deaths, lane.until = before.count, before.deaths, before.until
        lane.progress = before.progress
        if before.deaths and before.until:
            # Which of them the process died of will show when they run alone.
            lane.apart, lane.until = before.until, 0
        if before.not_before == math.inf:
            self._park(lane, self._before(lane, delivery))
            return True
        if self.suspects.is_condemned(lane, position):
            died = Failure(ProcessDied(lane.deaths), None)
            log.error("dead letter: %s", died.error, extra={"plugin": lane.served.plugin.name})
            self._bury(lane, Stretch((delivery,), "event"), died)()
            return True
        remaining_s = before.not_before - self._engine.clock.unix()
        if remaining_s > 0:
            self._delay(lane, self._before(lane, delivery).last, self._engine.clock.monotonic() + remaining_s)
        return remaining_s > 0

    def _before(self, lane: Lane, head: Delivery) -> Stretch:
        """What the turn at the head of the lane was about before the restart."""
        there = self._in_memory(lane, head, lane.memory) if lane.until else ()
        return Stretch(tuple(each for each in there if _at(each) <= lane.until) or (head,), "event")

    # --- handled

    def _handled(self, lane: Lane, stretch: Stretch, ctx: TurnContext[Any]) -> None:
        if ctx.said and ctx.peer:
            self.mind_loops(lane, ctx)
        if not ctx.staged:
            self._finish(lane, stretch.deliveries)
            return
        self._engine.hold_for_commit(lane.served, lane.number)
        self._engine.when_room(ctx, partial(self._commit, lane, stretch, ctx))

    def _commit(self, lane: Lane, stretch: Stretch, ctx: TurnContext[Any]) -> None:
        changes = self._engine.effects(ctx, _at(stretch.first), _at(stretch.last))
        past = self._loading.position_past(lane, stretch.deliveries)
        commit = self._engine.commits.with_cursor(lane, past, *changes)
        commit.add_done_callback(partial(self._on_disk, lane, stretch, ctx))

    def _on_disk(self, lane: Lane, stretch: Stretch, ctx: TurnContext[Any], commit: asyncio.Future[None]) -> None:
        engine = self._engine
        if succeeded(commit):
            engine.effects_on_disk(ctx, commit)
            if ctx.sends:
                engine.room.committed(ctx.sends)
                engine.room_again()
            self._finish(lane, stretch.deliveries)
            engine.wake()
        engine.committed()

    def mind_loops(self, lane: Lane, ctx: TurnContext[Any]) -> None:
        """Stop a conversation in which two agents do nothing but answer each other."""
        event, now = ctx.event, self._engine.clock.unix()
        assert isinstance(event, Message)
        if (guard := self.guards.get(event.identity)) is None:  # it was taken from service meanwhile
            return
        reason = guard.answered(event.conversation, ctx.peer, now, hops_of(event.metadata))
        if reason is None or self._engine.pauses.get(lane.number) is not None:
            return
        log.warning(
            "paused, since it looks like a loop: %s; see: agentd resume",
            reason,
            extra={"identity": event.identity, "conversation": event.conversation},
        )
        metrics.LOOPS_STOPPED.inc(event.identity)
        self._pause(
            Paused(
                number=lane.number,
                identity=event.identity,
                conversation=event.conversation,
                at=now,
                until=None,
                reason=f"loop guard: {reason}",
            )
        )

    def _finish(self, lane: Lane, deliveries: Sequence[Delivery]) -> None:
        """The deliveries at the head of this lane have their fate."""
        lane.fresh()
        lane.began_at = 0.0
        self._loading.finished(lane, deliveries)
        self._engine.done(lane.served, lane.number, len(deliveries))

    # --- failed

    def _failed(self, lane: Lane, stretch: Stretch, ctx: TurnContext[Any], failure: Failure) -> str:
        engine = self._engine
        lane.began_at = 0.0
        if engine.postponed(lane.served, lane.number, ctx, failure):
            self._stand_still(lane, stretch.last)
            return "postponed"
        lane.failures += 1
        verdict = engine.verdict(lane.served, lane.failures, failure)
        if isinstance(verdict, Again):
            outcome, then = "retried", self._try_again(lane, stretch, failure, verdict.after_s)
            log_failure(f"attempt {lane.failures} failed, the next in {verdict.after_s:.1f} s", ctx, failure)
        elif stretch.until and not isinstance(failure.error, GiveUp):
            outcome, then = "retried", self._take_apart(lane, stretch, failure)
            log_failure(f"attempt {lane.failures} failed: one by one from here on", ctx, failure)
        else:
            outcome, then = "dead", self._bury(lane, stretch, failure)
            log_failure(f"dead letter after attempt {lane.failures}", ctx, failure)
        engine.once_it_ended(failure.error, lane.served, lane.number, then)
        return outcome

    def _failed_elsewhere(self, lane: Lane, delivery: Delivery) -> bool:
        """Judge a failure in the process before this one. False if nobody here wants the event that it was about."""
        ended, lane.ended = lane.ended, None
        assert ended is not None
        if _at(delivery) != ended.first:
            return False
        there = self._in_memory(lane, delivery, lane.memory)
        self._failed(
            lane, Stretch(tuple(each for each in there if _at(each) <= ended.last), "event"), ended.ctx, ended.failure
        )
        self._engine.enlist(lane.served)
        return True

    def _worker_died(
        self, lane: Lane, stretch: Stretch, ctx: TurnContext[Any], failure: Failure, died: WorkerDied
    ) -> str:
        """As with a death of the whole process: these events again, one by one, and no attempt counted, or never."""
        engine = self._engine
        lane.began_at = 0.0
        lane.served.breakers.died(lane.line.identity, lane.number, engine.clock.monotonic())
        if condemned_by(lane, died) and not stretch.until:
            log_failure(f"dead letter after {lane.deaths} deaths", ctx, failure)
            self._bury(lane, stretch, failure)()
            return "dead"
        log_failure("again once it has a worker", ctx, failure)
        if is_tried(lane.deaths):
            engine.trials.call(Trial(lane.served, lane.number, False))
        if died.blamed:
            engine.commits.commit(self._attempt(lane, stretch, died, 0.0))
            if stretch.until:
                lane.apart, lane.until = stretch.until, 0
        self._delay(lane, stretch.last, engine.clock.monotonic())
        return "postponed"

    def _try_again(self, lane: Lane, stretch: Stretch, failure: Failure, after_s: float) -> Callable[[], None]:
        engine = self._engine
        engine.commits.commit(self._attempt(lane, stretch, failure.error, engine.clock.unix() + after_s))
        return partial(self._delay, lane, stretch.last, engine.clock.monotonic() + after_s)

    def _take_apart(self, lane: Lane, stretch: Stretch, failure: Failure) -> Callable[[], None]:
        """A batch has spent its attempts, perhaps because of one event in it: give each its own."""
        lane.fresh()
        lane.apart = _at(stretch.last)
        self._engine.commits.commit(attempt(lane, _at(stretch.first), failure.error, 0.0))
        return partial(self._delay, lane, stretch.last, self._engine.clock.monotonic())

    def _delay(self, lane: Lane, keep: Delivery, until: float) -> None:
        self._stand_still(lane, keep)
        self._engine.delay(lane.served, lane.number, until)

    def _stand_still(self, lane: Lane, keep: Delivery) -> None:
        """The lane does not move for a while: what comes behind this delivery costs no memory meanwhile."""
        lane.still = True
        if not lane.gone:
            self._loading.unload(lane, keep)

    def _bury(self, lane: Lane, stretch: Stretch, failure: Failure) -> Callable[[], None]:
        own = failure.handler.on_dead if failure.handler is not None else None
        policy = own or lane.served.plugin.settings.on_dead
        past = self._loading.position_past(lane, stretch.deliveries)
        if policy == "detach" and not isinstance(failure.error, (GiveUp, ProcessDied, WorkerDied)):
            due_at = self._engine.clock.unix() + self._engine.backoff.max_s
            rows = [set_aside(each, due_at) for each in stretch.deliveries]
            self._engine.commits.with_cursor(lane, past, *rows)
            self._wakeups.put(rows)
            return partial(self._finish, lane, stretch.deliveries)
        dead = [self._dead(lane, each, failure.error) for each in stretch.deliveries]
        if policy == "hold":
            self._engine.commits.commit(*dead, self._attempt(lane, stretch, failure.error, math.inf))
            return partial(self._park, lane, stretch)
        self._engine.commits.with_cursor(lane, past, *dead)
        return partial(self._finish, lane, stretch.deliveries)

    def _dead(self, lane: Lane, delivery: Delivery, error: BaseException) -> Change:
        attempts = lane.failures + lane.deaths
        now = self._engine.clock.unix()
        return dead_letter(lane.served.plugin, lane.number, _at(delivery), attempts, error, now)

    # --- parked

    def _park(self, lane: Lane, stretch: Stretch) -> None:
        """Its events are dead letters, and the lane stands still until somebody lets it go on."""
        event, name = stretch.first.record.event, lane.served.plugin.name
        if lane.gone:
            self._engine.done(lane.served, lane.number)
            return
        lane.served.lanes.hold(lane.number)
        self._stand_still(lane, stretch.last)
        self.parked[name, event.identity, event.conversation] = lane, stretch
        log.warning(
            "conversation held behind a dead letter; see: agentd release",
            extra={"plugin": name, "identity": event.identity, "conversation": event.conversation},
        )

    def release(self, plugin: str, identity: str, conversation: str) -> bool:
        """Let a lane that is held go on behind its dead letters. False if it is not held."""
        lane, stretch = self.parked.pop((plugin, identity, conversation), (None, None))
        if lane is None or stretch is None:
            return False
        self._finish(lane, stretch.deliveries)
        self._engine.wake()
        return True

    def held_with(self, plugin: str, identity: str, conversation: str, position: int) -> list[int]:
        """Positions of the other events of the turn that a lane is held behind, if this one is among them."""
        _, stretch = self.parked.get((plugin, identity, conversation), (None, None))
        positions = [] if stretch is None else [_at(each) for each in stretch.deliveries]
        return [each for each in positions if each != position] if position in positions else []

    def retry_parked(self, plugin: str, identity: str, conversation: str, position: int) -> Change | None:
        """Let a lane that is held behind this event begin it anew. Returns what must be committed, None if none is."""
        lane, stretch = self.parked.get((plugin, identity, conversation), (None, None))
        if lane is None or stretch is None or all(_at(each) != position for each in stretch.deliveries):
            return None
        del self.parked[plugin, identity, conversation]
        lane.failures = lane.deaths = 0
        fresh = self._attempt(lane, stretch, None, 0.0)
        lane.served.lanes.release(lane.number)
        self._engine.enlist(lane.served)
        return fresh

    # --- service

    def carry(self, identity: str) -> None:
        """This identity carries itself in another way than before, or is new."""
        self.guards[identity] = LoopGuard(_budget(self._conduct[identity].loop_guard))

    def part(self) -> set[int]:
        """Some lanes are gone. Returns the numbers of those that are held, and that nobody would let go on."""
        parked = [place for place, (lane, _) in self.parked.items() if lane.gone]
        return {self.parked.pop(place)[0].number for place in parked}

    # --- going back

    async def rewind(self, served: Served, rewind: Rewind, serves: Sequence[Served]) -> None:
        """A lane goes back in the journal; what it has in memory is read again when it gets there."""
        engine, number = self._engine, rewind.number
        while True:
            if rewind.identity not in served.identities:
                engine.done(served, number)  # which fails the rewind, as all that waits in the lane
                return
            line = self._backlog.line(number, rewind.identity, serves)
            lane = next(each for each in line.lanes if each.served is served)
            position, offered, last = min(rewind.position, lane.told), line.offered, line.last
            behind = await engine.journal.count_between(number, position, last)
            again = await engine.journal.count_between(number, position, lane.told)
            # All that was known of it may have been handled, and forgotten, meanwhile.
            if rewind.identity in served.identities and self._backlog.line(number, rewind.identity, serves) is line:
                break
        self._loading.unload_all(lane)
        replay, until = served.replays.get(number, (0, 0))
        served.replays[number] = replay + 1, max(lane.told, until)
        noted = _set_back(served.plugin.name, number, position, lane.told, engine.clock.unix())
        rewound = Rewound(served.plugin.name, number, position, *served.replays[number])
        commit = engine.commits.rewound(lane, rewound, noted)
        lane.loaded = position
        lane.before = None
        lane.fresh()
        self._backlog.set_back(lane, behind + line.offered - offered)
        self._loading.read_on(lane)
        engine.done(served, number)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((commit,))
        if not rewind.done.done():
            rewind.done.set_result(again)


def _at(delivery: Delivery) -> int:
    return delivery.record.position


def _traced(traces: Traces, stretch: Stretch, ctx: TurnContext[Any]) -> TurnTrace:
    """A turn begins; whoever follows events follows it."""
    last, handlers = stretch.last, stretch.first.handlers
    trace = traces.began(
        ctx.name,
        last.record.event,
        ctx.attempt,
        records=[each.record for each in stretch.deliveries],
        pending=last.pending,
        again=bool(ctx.again),
        handlers=[each.name for each in handlers or ()],
    )
    ctx.joins = trace
    return trace


def _ended(trace: TurnTrace, outcome: str, ctx: TurnContext[Any], failure: Failure | None) -> None:
    if failure is None:
        trace.ended(outcome, sends=ctx.sends or ())
    else:
        trace.ended(outcome, failure.error, "" if failure.handler is None else failure.handler.name)


def _about(ctx: TurnContext[Any]) -> tuple[Lane, Stretch]:
    about: Any = ctx.about
    lane, stretch = about
    assert isinstance(lane, Lane)
    assert isinstance(stretch, Stretch)
    return lane, stretch


def _set_back(plugin: str, number: int, position: int, told: int, now: float) -> Outcome:
    return Outcome(plugin, number, position + 1, told, SET_BACK, None, now)


def _budget(settings: config.LoopGuard) -> Budget:
    return Budget(answers_max=settings.answers_max, window_s=settings.window_s, hops_max=settings.hops_max)


def _waiting(delivery: Delivery, with_time: bool) -> Waiting:
    handlers, record = delivery.handlers, delivery.record
    handler = handlers[0] if handlers is not None and len(handlers) == 1 else None
    sent_at = _unix(record.event.created_at) if with_time else None
    return Waiting(sent_at, record.received_at, None if handler is None else handler.batch, handler)


def _unix(created_at: str) -> float | None:
    try:
        return datetime.fromisoformat(created_at).timestamp()
    except ValueError:
        return None
