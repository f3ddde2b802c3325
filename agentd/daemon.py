"""Builds the parts, wires them, and stops them in reverse order. The composition root.

    intake --records--> dispatcher --sends--> sender --own seqs--> intake      all through the journal

Always true: whatever was started is stopped, last first. A stop waits for running handlers up to a deadline that
always ends; a second signal does not wait. A failure of one identity stays there; only the journal's ends the process.
Not here: any decision about events, and what is answered to people who ask (operations).
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import resource
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from agentd import __version__, config, logs
from agentd.control.address import listening_paths
from agentd.control.api import ControlServer
from agentd.control.systemd import ServiceManager
from agentd.core.events import Event, Record, Send, Signal, Source
from agentd.core.reconnect import Throttle
from agentd.core.retry import Backoff
from agentd.dispatcher import Dispatcher, Marks, calls_max
from agentd.errors import AgentdError, ConfigError, PluginLoadError, Unavailable, ValueDamaged, first_of
from agentd.generations import Generations
from agentd.handover import FORMER, RESTART, Arrival, Asked, Departure, NotHandedOver, Whereabouts
from agentd.host.api import Port
from agentd.host.stalls import StallWatch
from agentd.identities import Identities, key_reader
from agentd.journal.retention import Retention, below
from agentd.journal.running import open_running
from agentd.journal.sqlite import SCHEMA, SqliteJournal
from agentd.journal.storage import Carried, StoredRecord
from agentd.keepalive import Keepalive
from agentd.operations import Followers, Operations, Parts, Sending, Vitals
from agentd.reloading import Reloading
from agentd.retracing import retrace
from agentd.sender import Sender
from agentd.supervisor import Bells, Shared, Supervisor
from agentd.takeover import Takeover
from agentd.tracing import Traces, open_tracer
from agentd.transport.address import proxy_for
from agentd.transport.rest import Pool

if TYPE_CHECKING:
    from agentd.control.http import HttpServer
    from agentd.hub.server import Hub
    from agentd.tracing.tracer import Tracer

log = logging.getLogger("agentd")

EXIT_FAILED = 1
EXIT_CONFIG = 78

_JOURNAL_LOOK_S = 0.25
_REST_S = 0.3  # for answers to sends; what is not answered then is asked for again, under the same key
_GONE_S = 2.0  # for the lock of a process that was killed while it handed over
_BEYOND_S = 30.0  # past the time that turns may take in the process before us, which gives them back itself
_HEARD_S = 10.0  # for a service manager that is busy to take the word of who succeeds us
_LAST_CALLS_S = 0.05  # for who had connected before our successor had the name of the socket
_EMBEDDED_USER = "me"
_EMBEDDED = {"me": ("visitor", ()), "echo": ("echo", ("echo",))}
"""Identity to its handle on the embedded hub and its plugins."""


def run(
    settings: config.Settings,
    *,
    config_path: Path | None,
    reread: Callable[[], config.Settings] | None = None,
    watch_files: bool = False,
    take_over: bool = False,
) -> int:
    """Run the daemon in the foreground until it is told to stop. Returns the exit code.

    reread: reads the configuration as it is when the daemon is told to reload. watch_files, take_over: see Daemon.
    """
    logs.configure(settings.agentd.log_level, backlog_max_bytes=settings.agentd.log_backlog_max_bytes)
    faulthandler.enable()
    # A core file, as a watchdog's SIGABRT leaves one, would hold every key; the stacks are in the log.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The journal's thread gives the interpreter up at every row; with the default of 5 ms a commit of 500 rows beside
    # a busy loop takes 57 ms, with this 10.
    sys.setswitchinterval(0.0005)
    try:
        _make_folder(Path(settings.agentd.state))
        uvloop.run(_main(settings, config_path, reread, watch_files, take_over))
    except ConfigError as error:
        return _told(error, EXIT_CONFIG)
    except PluginLoadError as error:
        return _told(error, EXIT_CONFIG)
    except AgentdError as error:
        return _told(error, EXIT_FAILED)
    return 0


def _make_folder(state: Path) -> None:
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(
            [f"{state}: the state folder cannot be made ({error.strerror}); name another with --state or agentd.state"]
        ) from None


def _told(error: AgentdError, code: int) -> int:
    for line in str(error).splitlines():
        log.error("%s", line)
    return code


async def _main(
    settings: config.Settings,
    config_path: Path | None,
    reread: Callable[[], config.Settings] | None,
    watch_files: bool,
    take_over: bool,
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        state = Path(settings.agentd.state)
        journal = SqliteJournal(state / "journal.db", settings.agentd.journal)
        stack.push_async_callback(journal.close)
        if settings.embedded and take_over:
            raise ConfigError(
                ["--take-over: the daemon's own hub cannot be taken over; stop that daemon, and start anew"]
            )
        if not take_over:
            await journal.open()
        hub: Hub | None = None
        keys: dict[str, Callable[[], str]] = {
            name: key_reader(identity) for name, identity in settings.identity.items()
        }
        if settings.embedded:
            # Only here: a daemon with identities of its own starts a sixth sooner without it.
            from agentd.hub.server import Hub
            from agentd.hub.settings import HubSettings

            hub = await stack.enter_async_context(Hub(HubSettings(database=str(state / "hub.db"))))
            settings, keys = _embedded(settings, hub)
        base = config_path.parent if config_path is not None else Path.cwd()
        daemon = Daemon(settings, base, journal, keys, hub, reread=reread, watch_files=watch_files, take_over=take_over)
        await daemon.run()


def _embedded(settings: config.Settings, hub: Hub) -> tuple[config.Settings, dict[str, Callable[[], str]]]:
    """Two identities on our own hub: one to speak as, and one that echoes. Their keys live as long as the process."""
    keys: dict[str, Callable[[], str]] = {}
    identities: dict[str, config.Identity] = {}
    for name, (handle, plugins) in _EMBEDDED.items():
        key = hub.rotate_key(handle) if hub.has_agent(handle) else hub.create_agent(handle)
        logs.conceal(key)
        keys[name] = partial(str, key)
        identities[name] = config.Identity(
            url=hub.url,
            key=config.KeySource(env="none: embedded"),
            plugins=plugins,
            loop_guard=config.LoopGuard(answers_max=0),  # it is a person that speaks as "me"
        )
    plugins_in_use = settings.plugin or {"echo": config.PluginSettings(use="echo")}
    return (
        config.Settings(agentd=settings.agentd, identity=identities, plugin=plugins_in_use),
        keys,
    )


class Daemon:
    """Every part of one process. started: everything runs. operations: what can be asked of it, from then on.

    reread: reads the configuration when `reload` is asked for; without it there is nothing new to read. watch_files:
    plugins are reloaded when their files change. take_over: from the process that runs over the same state, if there is
    one; then the journal is opened here, once it has been handed over.
    """

    def __init__(
        self,
        settings: config.Settings,
        base: Path,
        journal: SqliteJournal,
        keys: Mapping[str, Callable[[], str]],
        hub: Hub | None,
        *,
        reread: Callable[[], config.Settings] | None = None,
        watch_files: bool = False,
        take_over: bool = False,
    ) -> None:
        self._settings = settings
        self._take_over = take_over
        self._journal = journal
        self._retention = Retention(journal, below(settings.agentd.retention, settings.agentd.journal.max_mb))
        self._keys = keys
        self._hub = hub
        self._reread = reread or (lambda: settings)
        self._watch_files = watch_files
        self._http: HttpServer | None = None
        self._began = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self.started = asyncio.Event()
        self._supervisors: dict[str, Supervisor] = {}
        self._followers = Followers(settings.agentd.control.tail_queue_max)
        self._sending = Sending(
            journal,
            self._supervisors,
            self._followers,
            queued=self._queued,
            room=self._outbox_room,
            speaker=_EMBEDDED_USER if hub is not None else None,
        )
        self._turns_find = Whereabouts(journal.state_get, self._sending.send_now)
        self._generations = Generations(
            base, self._turns_find.state_get, journal.state_bytes, self._backlog_of, self._api_of
        )
        self._arrival: Arrival | None = None
        self._tracer: Tracer | None = None
        self._pressed_for = ""
        self._vitals = Vitals(_JOURNAL_LOOK_S, settings.agentd.health.lag_window_s)
        # Whoever takes over takes over the watchdog, too, which was meant for the process before.
        meant_for = "WATCHDOG_PID" if take_over else ""
        self._manager = ServiceManager({name: value for name, value in os.environ.items() if name != meant_for})
        self._keepalive = Keepalive(self._manager, journal, self._supervisors)
        self._asked = Asked(self._manager, SCHEMA.version, self._keeps_everything)

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start everything, serve until told to stop, stop everything. Raises JournalError, PluginLoadError."""
        async with contextlib.AsyncExitStack() as stack:
            self._tracer = await asyncio.to_thread(self._open_tracer)
            if self._tracer is not None:
                stack.push_async_callback(self._tracer.close)
            pool = await stack.enter_async_context(Pool(self._settings.agentd.rest.connections_per_host_max))
            stack.push_async_callback(self._generations.close)
            await self._generations.start(self._settings)
            self._watch = stack.enter_context(
                StallWatch(self._settings.agentd.dispatch.stall_s, self._generations.codes)
            )
            if self._take_over:
                await self._arrive(stack)
            await self._make_identities(pool)
            self._dispatcher = self._generations.dispatcher = self._make_dispatcher()
            self._reloading = Reloading(
                self._settings,
                self._reread,
                self._generations,
                self._identities,
                self._dispatcher,
                embedded=self._hub is not None,
            )
            self._takeover = Takeover(
                self._journal,
                self._reloading.conduct,
                self._dispatcher.pause,
                self._dispatcher.paused,
                time.time,
            )
            self._vitals.position = await self._journal.last_position()
            if self._tracer is not None:
                await retrace(self._tracer.traces, self._journal, self._settings.identity, self._revive)
            self.operations = Operations(
                self._parts(),
                self._sending,
                self._followers,
                self._reload,
                self._asked.hand_over,
                self._asked.have_replaced,
            )
            control = ControlServer(self.operations, listening_paths(Path(self._settings.agentd.state), os.environ))
            stack.push_async_callback(self._close_http)
            try:
                async with asyncio.TaskGroup() as tasks:
                    await self._dispatcher.start(tasks, self._arrival.turns if self._arrival is not None else ())
                    if self._arrival is not None:
                        self._arrival.answers(self._state_of, self._sending.send_now)
                    self._begin(tasks)
                    await control.start(in_place=self._arrival is not None)
                    await self._start_http()
                    with self._signals(tasks):  # before anybody is told that it runs, who may send one at once
                        self._greet()
                        self.started.set()
                        self._manager.ready()
                        if self._arrival is not None:
                            self._arrival.serves()
                        departure = await self._serve(tasks, control)
                        if departure is not None:
                            await self._depart(departure, control)
                    if departure is None:
                        await self._stop()
            except ExceptionGroup as failed:
                raise first_of(failed) from failed
            finally:
                await control.close()

    # -- one part after the other ----------------------------------------------------------------------------------

    def _begin(self, tasks: asyncio.TaskGroup) -> None:
        """Start what needs the journal to be ours, the dispatcher excepted."""
        self._keepalive.goes_by_the_journal()
        self._around = [
            tasks.create_task(self._takeover.run(), name="takeover"),
            tasks.create_task(self._watch_journal(), name="journal pressure"),
            tasks.create_task(self._retention.run(), name="retention"),
            tasks.create_task(self._watch_plugins(), name="files of plugins"),
        ]
        self._identities.start(tasks)

    async def _serve(self, tasks: asyncio.TaskGroup, control: ControlServer) -> Departure | None:
        """Return when told to stop, or, with the departure, when another process has taken over."""
        stopping = tasks.create_task(self._stopping.wait(), name="told to stop")
        while True:
            departing = self._asked.departing
            either: list[asyncio.Future[Any]] = [stopping, departing]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                if departing.done():
                    departing.result().call_off("it is stopping")
                return None
            departure = departing.result()
            control.handing_over = True
            if await self._hand_over(departure):
                stopping.cancel()
                return departure
            control.handing_over = False
            self._asked.kept()
            self._turns_find.back()
            self._begin(tasks)
            await self._start_http()

    async def _stop(self) -> None:
        log.info("stopping")
        self._manager.stopping()
        self._manager.status("stopping: running handlers may finish")
        if (upgrade := self._asked.upgrade) is not None:
            upgrade.call_off()
        await _cancelled(self._around)
        self._reloading.give_up()
        # A change that has begun to be made is made, so that what it began can be stopped.
        async with self._generations.changing:
            # First the handlers: one that waits for the answer to a send of its own needs the sender.
            await self._dispatcher.stop(self._settings.agentd.dispatch.drain_timeout_s)
            await self._identities.stop()

    # -- from one process to the next ------------------------------------------------------------------------------

    async def _arrive(self, stack: contextlib.AsyncExitStack) -> None:
        """Have the journal, from the process that runs if there is one. Raises NotHandedOver, JournalError."""
        state = Path(self._settings.agentd.state)
        paths = listening_paths(state, os.environ)
        self._arrival = await Arrival.ask(paths[0], state, SCHEMA.version, self._manager.address)
        former = os.environ.pop(FORMER, "")  # not for what we start ourselves
        if self._arrival is None and former:
            raise NotHandedOver(
                f"the daemon that started this one (pid {former}) does not answer at {paths[0]}: "
                "its state is elsewhere, or it has gone; stop that one, then start this one"
            )
        if self._arrival is None:
            log.info("no daemon runs over %s: there is nothing to take over", state)
            await self._journal.open(wait_s=_GONE_S)
        else:
            stack.callback(self._arrival.close)
            await self._journal.open(checked=True)
            await self._arrival.taken()
            self._arrival.bound(self._settings.agentd.dispatch.hand_over_timeout_s + _BEYOND_S)
            stack.callback(self._keepalive.goes_by_the_journal)
            self._keepalive.goes_by_the_loop()

    def _keeps_everything(self) -> tuple[str, str] | None:
        """Why there can be no hand-over now, and what to do instead."""
        if self._hub is not None:
            return "this daemon runs its own hub, which ends with it", RESTART
        if self._stopping.is_set():
            return "it is stopping", "wait for its end, then start"
        if self._arrival is not None and self._arrival.open:
            return f"{self._arrival.open} turns still run in the process before it", "wait for their end"
        if self._generations.changing.locked():
            return "its configuration is being changed", "try again in a moment"
        if trouble := self._journal_trouble():
            return trouble, "see: agentd doctor"
        return None

    async def _hand_over(self, departure: Departure) -> bool:
        """End what needs the journal, and let it go. False if it is here again."""
        self._keepalive.goes_by_the_loop()
        async with self._generations.changing:  # files of plugins may have changed at the last moment
            await _cancelled(self._around)
        await self._close_http()
        if self._supervisors:
            resting = [asyncio.ensure_future(each.rest(_REST_S)) for each in self._supervisors.values()]
            await asyncio.wait(resting)
        await self._identities.stop()
        for supervisor in self._supervisors.values():
            supervisor.enter("off", "another process takes over")
        return await departure.hand_over(self._dispatcher, self._journal, partial(self._turns_find.moved, departure))

    async def _depart(self, departure: Departure, control: ControlServer) -> None:
        """Another process has everything but the turns that run: wait for their end."""
        self._keepalive.goes_by_the_journal()
        if (upgrade := self._asked.upgrade) is not None:
            await upgrade.released()
        self._manager.succeeded_by(departure.successor)
        leaving = asyncio.ensure_future(_left(departure, control))
        timeout_s = self._settings.agentd.dispatch.hand_over_timeout_s
        await departure.drain(self._dispatcher, timeout_s, self._stopping.wait())
        if not departure.serves.done():
            leaving.cancel()
        await asyncio.wait((leaving,))
        await self._manager.heard(_HEARD_S)

    async def _state_of(self, plugin: str, conversation: int, key: str) -> bytes | None:
        """What a turn of the process before us reads."""
        if plugin not in self._generations.plugins:
            raise RuntimeError(f"{plugin} is not served any more")
        return await self._generations.plugins[plugin].state.read((conversation, key))

    # -- the page ----------------------------------------------------------------------------------------------------

    async def _start_http(self) -> None:
        """Serve the page and the metrics, where the configuration asks for them."""
        if self._settings.agentd.http.listen:
            # Only here: nobody else pays for loading it.
            from agentd.control.http import HttpServer

            self._http = HttpServer(self.operations, self._settings.agentd)
            await self._http.start()
            self._vitals.http_url = self._http.url

    async def _close_http(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def _make_identities(self, pool: Pool) -> None:
        settings = self._settings.agentd
        shared = Shared(
            settings,
            self._journal,
            Throttle(
                settings.link.dials_per_s,
                first=len(self._settings.identity) if self._arrival is not None else 0,
                first_per_s=settings.link.take_over_dials_per_s,
            ),
            Bells(self._records, self._signal, self._settled),
            accounts={},
            shedding=lambda: self._vitals.shedding,
            traces=self._traces,
        )
        self._identities = Identities(self._journal, shared, pool, self._supervisors)
        await self._identities.make(self._settings.identity, self._keys)

    def _make_dispatcher(self) -> Dispatcher:
        plugins = self._generations.plugins
        intake, dispatch = self._settings.agentd.intake, self._settings.agentd.dispatch
        file = Path(self._settings.agentd.state) / "running"
        running, unfinished = open_running(file, list(plugins), calls_max(dispatch.concurrency, len(plugins)))
        return Dispatcher(
            self._journal,
            plugins,
            {name: identity.plugins for name, identity in self._settings.identity.items()},
            dispatch,
            revive=self._revive,
            on_queued=self._queued,
            on_backlog=self._behind,
            outbox_room=self._outbox_room,
            marks=Marks(
                intake.undispatched_high,
                intake.undispatched_low,
                intake.undispatched_high_mb * 1_048_576,
                intake.undispatched_low_mb * 1_048_576,
            ),
            conduct=self._settings.identity,
            backoff=Backoff(first_s=dispatch.retry_first_s, max_s=dispatch.retry_max_s),
            send_now=self._turns_find.send_now,
            running=running,
            # What runs in the process before us is no reason to think that it died of that.
            unfinished=() if self._arrival is not None else unfinished,
            traces=self._traces,
        )

    def _open_tracer(self) -> Tracer | None:
        return open_tracer(self._settings.agentd.tracing, os.environ, self._system_of, proxy_for)

    @property
    def _traces(self) -> Traces | None:
        return None if self._tracer is None else self._tracer.traces

    def _system_of(self, identity: str) -> str:
        platform = self._identities.platforms.get(identity)
        return "" if platform is None else platform.name

    def _parts(self) -> Parts:
        return Parts(
            current=lambda: self._reloading.settings,
            journal=self._journal,
            retention=self._retention,
            supervisors=self._supervisors,
            generations=self._generations,
            dispatcher=self._dispatcher,
            stalls=self._watch,
            vitals=self._vitals,
            revive=self._revive,
            hub_url=self._hub.url if self._hub is not None else None,
            began=self._began,
            stopping=self._stopping,
            tracer=self._tracer,
        )

    async def stop(self) -> None:
        """Begin to stop; `run` returns when that is done."""
        self._stopping.set()

    async def _reload(self) -> dict[str, Any]:
        """See control.api.Daemon."""
        if self._stopping.is_set():
            raise Unavailable("the daemon is stopping")
        if self._asked.departing.done():
            raise Unavailable("another process is taking over")
        self._manager.reloading()
        try:
            return await self._reloading.reload()
        finally:
            self._manager.ready()

    async def _hang_up(self) -> None:
        """SIGHUP: nobody waits for an answer, the log has it."""
        try:
            await self._reload()
        except (ConfigError, Unavailable):
            pass  # said already, or it does not matter any more
        except Exception:
            log.exception("the configuration could not be read again")

    async def _watch_plugins(self) -> None:
        if self._watch_files:
            await self._reloading.watch()

    @contextlib.contextmanager
    def _signals(self, tasks: asyncio.TaskGroup) -> Iterator[None]:
        """The first SIGTERM or SIGINT stops in order; the second ends the process at once. SIGHUP reloads."""

        def by_default() -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)

        def stop() -> None:
            # At once: what is under way may take long to notice the first, as a hand-over does.
            by_default()
            self._stopping.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stop)
        self._loop.add_signal_handler(signal.SIGHUP, lambda: tasks.create_task(self._hang_up(), name="reload"))
        try:
            yield
        finally:
            self._loop.remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a stop that is under way goes on
            by_default()

    def _greet(self) -> None:
        names = ", ".join(self._supervisors) or "none"
        log.info("agentd %s runs, identities: %s, state in %s", __version__, names, self._settings.agentd.state)
        if self._hub is not None:
            folder = self._settings.agentd.state
            state = "" if Path(folder) == Path("state").absolute() else f" --state {shlex.quote(folder)}"
            sys.stderr.write(_WELCOME.format(url=self._hub.url, agentd=_own_command(), state=state))
            sys.stderr.flush()

    # -- bells ------------------------------------------------------------------------------------------------------

    def _records(self, records: Sequence[Record]) -> None:
        # Once we stop they would only move cursors, behind the last commit. They are on disk for the next start.
        if not self._stopping.is_set():
            self._dispatcher.offer(records)
            self._takeover.records(records)
        self._followers.offer(records)
        if records:
            self._vitals.position = records[-1].position

    def _signal(self, happened: Signal) -> None:
        self._dispatcher.signal(happened)

    def _queued(self, sends: Sequence[Send]) -> None:
        if (traces := self._traces) is not None:
            traces.queued(sends)
        for send in sends:
            if (supervisor := self._supervisors.get(send.identity)) is not None:
                supervisor.queued((send,))  # else it waits on disk for the identity's return

    def _sender_of(self, identity: str) -> Sender | None:
        supervisor = self._supervisors.get(identity)
        return None if supervisor is None else supervisor.sender

    def _backlog_of(self, identity: str, target: str) -> int | None:
        sender = self._sender_of(identity)
        return None if sender is None else sender.peer_backlog(target)

    def _api_of(self, identity: str) -> Port | None:
        return self._identities.carriers.get(identity)

    def _outbox_room(self, identity: str) -> int:
        sender = self._sender_of(identity)
        return self._settings.agentd.sending.outbox_max if sender is None else sender.room

    def _settled(self, carried: Carried) -> None:
        self._dispatcher.room_again()
        self._sending.settled(carried)
        if (traces := self._traces) is not None:
            traces.settled(carried)

    def _behind(self, identity: str, is_so: bool) -> None:
        if (supervisor := self._supervisors.get(identity)) is not None:
            supervisor.behind(is_so)

    def _press(self, reason: str, pressed: bool) -> None:
        """Shed while there is any reason to: what is not taken in stays with the server."""
        why = self._vitals.press(reason, pressed, self._loop.time())
        for supervisor in self._supervisors.values():
            supervisor.shed(why)

    async def _watch_journal(self) -> None:
        """A disk that takes nothing must not make the queue before it grow."""
        while True:
            self._vitals.slept(self._loop.time())
            await asyncio.sleep(_JOURNAL_LOOK_S)
            self._vitals.woke(self._loop.time())
            self._keepalive.look()
            # An outbox may have got room while its sender was not running, which rings nobody.
            self._dispatcher.room_again()
            if (now := self._journal_trouble()) != self._pressed_for:
                for reason in filter(None, (now, self._pressed_for)):
                    self._press(reason, reason == now)
                self._pressed_for = now

    def _journal_trouble(self) -> str:
        """Why nothing more should be put in the journal's queue, or ""."""
        if self._journal.at_limit:
            return "the journal has reached agentd.journal.max_mb"
        if self._journal.full or self._journal_behind:
            return "the disk takes no commits"
        return ""

    @property
    def _journal_behind(self) -> bool:
        return self._journal.waiting > self._settings.agentd.journal.waiting_max

    def _revive(self, stored: StoredRecord) -> Event:
        if stored.damage:
            raise ValueDamaged(stored.damage)
        platform = self._identities.platforms[stored.identity]
        return platform.revive(stored.payload, epoch=stored.epoch, late=stored.late, source=Source(stored.source))


_WELCOME = """
agentd runs with its own hub at {url}.
Identity "me" is there to speak as, and "echo" answers.
In a second terminal, in this folder:

    {agentd} send{state} @echo "hello"   say something, see the answer
    {agentd} status{state}               who is connected, what happened
    {agentd} tail{state}                 events as they are committed

Ctrl-C stops it. Next: write a plugin (README, "A first plugin").
"""


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def _left(departure: Departure, control: ControlServer) -> None:
    """Leave the control socket to the successor once it is there."""
    await asyncio.shield(departure.serves)
    await asyncio.sleep(_LAST_CALLS_S)
    await control.close()


def _own_command() -> str:
    """How a second terminal in this folder calls this very program."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m agentd"
    return shlex.quote(str(program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program))
