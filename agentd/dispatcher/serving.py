"""Which plugins serve which identity: at the start, and as that changes while turns run.

    add, remove         a plugin is there, or is not any more
    swap                another generation of it
    serve, forget       an identity with its plugins, or with others than before; or it is gone

Always true: a plugin that is new to an identity begins at the end of the log; one that has served it before goes on
where it stood. What is taken from service is handed out no more, turns under way end as they end, and until they have,
the plugin cannot serve that identity again. Its cursors, failures, timers and pauses stay on disk.
Not here: running anything, loading plugins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial

from agentd import config
from agentd.core.breaker import Limits
from agentd.core.events import Send, Sent
from agentd.core.quarantine import is_tried
from agentd.dispatcher.backlog import Backlog, Delivery, Inherited, Item, Join, Key, Lane, Line, ReadOn, Rewind, Served
from agentd.dispatcher.deliveries import Deliveries
from agentd.dispatcher.engine import Engine
from agentd.dispatcher.loading import Loading
from agentd.dispatcher.timers import Due
from agentd.dispatcher.trials import Trial
from agentd.dispatcher.wakeups import Wakeups
from agentd.errors import StillRunning, Unavailable
from agentd.host.isolated import Hosted
from agentd.journal.running import Running
from agentd.journal.storage import SUBSCRIPTIONS, Attempt, Conversation, Paused, StatePut

Cursors = Mapping[str, Mapping[int, int]]
Failed = Mapping[tuple[str, int], Attempt]


class Serving:
    """That of one dispatcher. conduct: of every identity, changed here. send_now: what plugins get. holds: puts
    what the process before this one runs in a lane at its head.

    serves: every identity with its plugins.
    """

    def __init__(
        self,
        engine: Engine,
        backlog: Backlog,
        loading: Loading,
        wakeups: Wakeups,
        deliveries: Deliveries,
        running: Running,
        limits: Limits,
        *,
        conduct: dict[str, config.Conduct],
        send_now: Callable[[Send], Awaitable[Sent]],
        holds: Callable[[Lane], None],
    ) -> None:
        self._engine = engine
        self._journal = engine.journal
        self._backlog = backlog
        self._loading = loading
        self._wakeups = wakeups
        self._deliveries = deliveries
        self._running = running
        self._limits = limits
        self._conduct = conduct
        self._send_now = send_now
        self._holds = holds
        self._since: dict[tuple[str, str], int] = {}
        self._leaving: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._hurried = asyncio.Event()
        self.serves: dict[str, list[Served]] = {}

    def since(self, identity: str, plugin: str) -> int:
        """The position behind which a plugin serves an identity."""
        return self._since[identity, plugin]

    def identities_of(self, served: Served) -> list[str]:
        """Those that it serves, in the order in which they came."""
        return [identity for identity, plugins in self.serves.items() if served in plugins]

    # --- plugins

    def there_is(self, plugin: Hosted) -> Served:
        """A plugin, set up, that serves nobody yet."""
        served = Served(plugin, self._running.tag(plugin.name), self._limits, self._conduct)
        self._engine.served[plugin.name] = served
        self._engine.shared_anew()
        self._introduce(served)
        return served

    async def add(self, plugin: Hosted) -> None:
        """The same, for one that may have been in service before."""
        assert plugin.name not in self._engine.served, plugin.name
        replays = await self._journal.replays(plugin.name)
        self.there_is(plugin).replays = replays

    def remove(self, plugin: str) -> Hosted:
        """A plugin that serves nobody any more is gone. Turns under way end with it: see `swap`."""
        served = self._engine.served.pop(plugin)
        self._engine.shared_anew()
        assert not served.identities, served.identities
        if not any(name == plugin and not over.done() for (_, name), over in self._leaving.items()):
            self._running.untag(plugin)
        return served.plugin

    def swap(self, plugin: Hosted) -> Hosted:
        """Another generation handles what comes from now on. Returns the one before."""
        served = self._engine.served[plugin.name]
        before = served.plugin
        limits = plugin.state.value_max_bytes, plugin.state.max_bytes
        plugin.state = before.state
        plugin.state.value_max_bytes, plugin.state.max_bytes = limits
        plugin.backlog_of = before.backlog_of
        plugin.api_of = before.api_of
        served.run_by(plugin, self._conduct)
        self._introduce(served)
        plugin.timers = before.timers
        self._engine.enlist(served)
        self._engine.wake()
        return before

    async def restore_timers(self, served: Served) -> None:
        """Have the timers that the handlers of a plugin want now."""
        await self._wakeups.restore(served, self.identities_of(served))
        self._wakeups.push_due()
        self._engine.arm()
        self._engine.wake()

    def _introduce(self, served: Served) -> None:
        """Tell a plugin what it needs to know of everything else."""
        served.plugin.serves = frozenset(served.identities)
        served.plugin.send_now = self._send_now
        served.plugin.on_up = partial(self._engine.up_again, served)

    # --- identities

    async def start(
        self, serves: Mapping[str, Sequence[str]], judged: Callable[[Cursors], Awaitable[Sequence[Attempt]]]
    ) -> None:
        """Take every identity up where it was left. judged: every failed event, once it is known who is to blame."""
        engine = self._engine
        for identity, names in serves.items():
            for name in names:
                await self._subscribe(identity, name)
        cursors = {name: await self._journal.cursors(name) for name in engine.served}
        failed = {(each.plugin, each.conversation): each for each in await judged(cursors)}
        pauses = await self._journal.pauses()
        for name, served in engine.served.items():
            served.replays = await self._journal.replays(name)
        for identity, names in serves.items():
            plugins = [engine.served[name] for name in dict.fromkeys(names)]
            await self._take_up(identity, plugins, cursors, failed, pauses)
        for served in engine.served.values():
            await self._wakeups.restore(served, self.identities_of(served))

    async def serve(self, identity: str, names: Sequence[str], conduct: config.Conduct) -> list[str]:
        """Have these plugins handle what comes to an identity, and let it carry itself so; it may be a new one.

        Returns the plugins that do not serve it any more. Raises StillRunning, before anything is changed, if a plugin
        is asked back whose last turn has not ended.
        """
        plugins = [self._engine.served[name] for name in dict.fromkeys(names)]
        known = self.serves.get(identity, [])
        fresh = [each for each in plugins if each not in known]
        if running := self.still_running(identity, [served.plugin.name for served in fresh]):
            raise StillRunning(f"a handler of plugin {running[0]} still runs for identity {identity}")
        guarded, self._conduct[identity] = self._conduct.get(identity), conduct
        if identity not in self.serves:
            self._deliveries.carry(identity)
            await self._begin(identity, plugins)
            return []
        if guarded is None or guarded.loop_guard != conduct.loop_guard:
            self._deliveries.carry(identity)
            await self._restore_guard(identity)
        gone = [each for each in known if each not in plugins]
        for served in plugins:
            served.carry(identity, conduct)
        for served in gone:
            self._part(identity, served)
        for served in fresh:
            await self._join(identity, served)
        for served in fresh:
            await self.restore_timers(served)
        return [served.plugin.name for served in gone]

    async def forget(self, identity: str, timeout_s: float) -> list[str]:
        """Let nothing of an identity run any more; what it still gets is left on disk. See Dispatcher."""
        gone = self.serves[identity]
        for served in list(gone):
            self._part(identity, served)
        del self.serves[identity]
        for pause in self._engine.pauses:
            if pause.identity == identity:
                self._engine.pauses.end(pause.number)
        self._backlog.forget(identity)
        self._loading.forget(identity)
        self._deliveries.guards.pop(identity, None)
        self._conduct.pop(identity, None)
        left = await self.until_left([(identity, served.plugin.name) for served in gone], timeout_s)
        return [name for _, name in left]

    async def until_left(self, places: Sequence[tuple[str, str]], timeout_s: float) -> list[tuple[str, str]]:
        """See Dispatcher."""
        futures = {place: self._leaving[place] for place in places}
        if futures:
            waits = [asyncio.ensure_future(each) for each in (asyncio.wait(futures.values()), self._hurried.wait())]
            try:
                await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waits:
                    each.cancel()
        return [place for place, over in futures.items() if not over.done()]

    def hurry(self) -> None:
        """Wait for nobody's last turn any more, now or later."""
        self._hurried.set()

    def still_running(self, identity: str, plugins: Iterable[str]) -> list[str]:
        """Those of which a turn of their last service has not ended."""
        serving = {served.plugin.name for served in self.serves.get(identity, ())}
        places = [(identity, name) for name in plugins if name not in serving]
        return [name for _, name in places if (over := self._leaving.get((identity, name))) and not over.done()]

    async def _begin(self, identity: str, plugins: Sequence[Served]) -> None:
        """An identity that is not served yet, and for which nothing comes in before this is over."""
        self._backlog.begin(identity)
        names = [served.plugin.name for served in plugins]
        for name in names:
            await self._subscribe(identity, name)
        cursors = {name: await self._journal.cursors(name) for name in names}
        attempts = [each for name in names for each in await self._journal.attempts(name)]
        failed = {(each.plugin, each.conversation): each for each in attempts}
        await self._take_up(identity, plugins, cursors, failed, await self._journal.pauses())
        for served in plugins:
            await self.restore_timers(served)

    async def _take_up(
        self,
        identity: str,
        plugins: Sequence[Served],
        cursors: Cursors,
        failed: Failed,
        pauses: Iterable[Paused],
    ) -> None:
        for pause in pauses:
            if pause.identity == identity:
                self._engine.pauses.begin(pause)
        await self._restore_guard(identity)
        totals = await self._journal.totals(identity)
        self.serves[identity] = list(plugins)
        for served in plugins:
            served.carry(identity, self._conduct[identity])
            self._introduce(served)
        for conversation in await self._journal.conversations(identity):
            await self._resume(conversation, cursors, failed)
        self._backlog.handled[identity] = totals.journaled - self._backlog.pending[identity]

    async def _subscribe(self, identity: str, plugin: str) -> int:
        """The position from which on a plugin serves an identity; what was journaled before is not its to answer."""
        key = f"{identity}/{plugin}"
        stored = await self._journal.state_get(SUBSCRIPTIONS, 0, key)
        if stored is None:
            stored = str(await self._journal.last_position()).encode()
            # On disk before the first event: after a crash, what came since must not look like what was there before.
            await self._journal.commit(StatePut(SUBSCRIPTIONS, 0, key, stored))
        since = self._since[identity, plugin] = int(stored)
        return since

    async def _restore_guard(self, identity: str) -> None:
        """What was answered before the restart counts against loops all the same."""
        settings = self._conduct[identity].loop_guard
        since = self._engine.clock.unix() - settings.window_s
        # The sends of one turn were queued together, and are one answer.
        answers = dict.fromkeys(await self._journal.answers_since(identity, since))
        for conversation, peer, at in answers:
            self._deliveries.guards[identity].answered(conversation, peer, at)

    async def _resume(self, conversation: Conversation, cursors: Cursors, failed: Failed) -> None:
        line = Line(conversation.number, conversation.identity, conversation.position)
        line.conversation = conversation.conversation
        for served in self.serves[line.identity]:
            name = served.plugin.name
            cursor = cursors[name].get(line.number, self._since[line.identity, name])
            behind = await self._journal.count_behind(line.number, cursor) if cursor < line.last else 0
            lane = Lane(line, served, cursor, -behind)
            lane.before = failed.get((name, line.number))
            line.lanes.append(lane)
            self._holds(lane)
        if self._backlog.restore(line):
            for lane in line.lanes:
                if lane.done_count < 0:
                    self._loading.read_on(lane)
                    if lane.before is not None and is_tried(lane.before.deaths):
                        self._engine.trials.call(Trial(lane.served, line.number, True))

    async def _join(self, identity: str, served: Served) -> None:
        """One more plugin serves an identity, while its mail goes on coming in."""
        name = served.plugin.name
        since = await self._subscribe(identity, name)
        cursors = await self._journal.cursors(name)
        failed = {each.conversation: each for each in await self._journal.attempts(name)}
        # No await from here on: what is offered next is offered to this plugin, too.
        before = self.serves[identity]
        served.carry(identity, self._conduct[identity])
        for lane in self._backlog.join(identity, served, before, lambda number: cursors.get(number, since)):
            lane.before = failed.get(lane.number)
            self._engine.push(served, lane.number, Join(lane), identity)
        self.serves[identity] = [*before, served]
        self._introduce(served)
        self._engine.wake()

    def _part(self, identity: str, served: Served) -> None:
        """A plugin does not serve an identity any more."""
        engine, name = self._engine, served.plugin.name
        self.serves[identity] = [each for each in self.serves[identity] if each is not served]
        served.left(identity)
        self._introduce(served)
        self._backlog.part(identity, served)
        if engine.traces is not None:
            engine.traces.parted(name, identity)
        idle: set[Key] = {*self._deliveries.part()}
        engine.timers.forget(name, identity)
        served.plugin.timers = engine.timers.count(name)
        for about in [each for each in served.signals if each[1] == identity]:
            del served.signals[about]
        keys = [key for key, head in served.lanes.heads() if _identity_of(key, head) == identity]
        idle |= {key for key in keys if isinstance(key, int) and engine.pauses.leave(key, served)}
        engine.trials.leave(served, keys)
        left = _Leaving(keys)
        self._leaving[identity, name] = left.over
        for key in keys:
            items = served.lanes.first(key, served.lanes.depth(key))
            served.lanes.close(key, partial(self._gone, left, key, items))
            if key in idle:
                served.lanes.drop(key)
        engine.arm()

    def _gone(self, left: _Leaving, key: Key, items: Sequence[Item]) -> None:
        deliveries = [item for item in items if isinstance(item, Delivery)]
        if deliveries and (waiting := deliveries[0].lane.memory):
            self._backlog.unloaded(deliveries[-waiting:])
            self._loading.check_marks(deliveries[0].lane.line.identity)
        for item in items:
            if isinstance(item, Rewind) and not item.done.done():
                item.done.set_exception(Unavailable("the plugin does not serve this identity any more"))
        left.without(key)


class _Leaving:
    """The lanes of one plugin over one identity whose turns have not ended. over: they have."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = set(keys)
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._keys:
            self.over.set_result(None)

    def without(self, key: Key) -> None:
        """This one has."""
        self._keys.discard(key)
        if not self._keys and not self.over.done():
            self.over.set_result(None)


def _identity_of(key: Key, head: Item) -> str:
    if isinstance(head, (Delivery, ReadOn, Join)):
        return head.lane.line.identity
    if isinstance(head, Rewind):
        return head.identity
    if isinstance(head, Due):
        return head.timer.identity
    if isinstance(head, Inherited):
        return head.elsewhere.turn.identity
    assert isinstance(key, tuple)
    return str(key[1])
