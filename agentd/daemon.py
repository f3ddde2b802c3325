"""Builds the parts, wires them, and stops them in reverse order. The composition root.

    intake --records--> dispatcher --sends--> sender --own seqs--> intake      all through the journal

Always true: whatever was started is stopped, last first. A stop waits for running handlers up to a deadline that
always ends; a second signal does not wait. A failure of one identity stays there; only the journal's ends the process.
Not here: any decision about events.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop

from agentd import __version__, config, logs, metrics
from agentd.control.address import listening_paths
from agentd.control.api import ControlServer
from agentd.control.refusal import ControlError
from agentd.control.systemd import ServiceManager
from agentd.core.events import SETTLED_STATES, Content, Event, Message, Record, Send, Sent, Signal, Source
from agentd.core.health import Lags
from agentd.core.reconnect import Throttle
from agentd.core.retry import Backoff
from agentd.dispatcher import Dispatcher
from agentd.errors import AgentdError, ConfigError, NotSent, PluginLoadError, Unavailable, first_of
from agentd.host.lifecycle import Loaded, load
from agentd.host.stalls import StallWatch
from agentd.journal.running import open_running
from agentd.journal.sqlite import SqliteJournal, open_journal
from agentd.journal.storage import Carried, DeadDropped, DeadRow, OutboxRow, Queued, StoredRecord
from agentd.sender import Sender
from agentd.supervisor import Bells, Change, Key, Shared, Supervisor
from agentd.transport.rest import Pool, Rest
from agentd.wire.agentchat import AgentChat
from agentd.wire.platform import Platform

if TYPE_CHECKING:
    from agentd.control.http import HttpServer
    from agentd.hub.server import Hub

log = logging.getLogger("agentd")

EXIT_FAILED = 1
EXIT_CONFIG = 78

_JOURNAL_LOOK_S = 0.25
_JOURNAL_WAITING_MAX = 20_000
_TAIL_QUEUE_MAX = 1_000
_TAIL_PAGE = 200
_CHANGES_REMEMBERED = 20_000  # changes of state as status tells them: they stay the same from one question to the next
_EMBEDDED_USER = "me"
_EMBEDDED = {"me": ("visitor", ()), "echo": ("echo", ("echo",))}
"""Identity to its handle on the embedded hub and its plugins."""


def run(settings: config.Settings, *, config_path: Path | None) -> int:
    """Run the daemon in the foreground until it is told to stop. Returns the exit code."""
    logs.configure(settings.agentd.log_level)
    faulthandler.enable()
    # The journal's thread gives the interpreter up at every row; with the default of 5 ms a commit of 500 rows beside
    # a busy loop takes 57 ms, with this 10.
    sys.setswitchinterval(0.0005)
    Path(settings.agentd.state).mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        uvloop.run(_main(settings, config_path))
    except ConfigError as error:
        return _told(error, EXIT_CONFIG)
    except PluginLoadError as error:
        return _told(error, EXIT_CONFIG)
    except AgentdError as error:
        return _told(error, EXIT_FAILED)
    return 0


def _told(error: AgentdError, code: int) -> int:
    for line in str(error).splitlines():
        log.error("%s", line)
    return code


async def _main(settings: config.Settings, config_path: Path | None) -> None:
    async with contextlib.AsyncExitStack() as stack:
        state = Path(settings.agentd.state)
        journal = await open_journal(state / "journal.db", settings.agentd.journal)
        stack.push_async_callback(journal.close)
        hub: Hub | None = None
        keys: dict[str, Callable[[], str]] = {name: _key_of(identity) for name, identity in settings.identity.items()}
        if settings.embedded:
            # Only here: a daemon with identities of its own starts a sixth sooner without it.
            from agentd.hub.server import Hub
            from agentd.hub.settings import HubSettings

            hub = await stack.enter_async_context(Hub(HubSettings(database=str(state / "hub.db"))))
            settings, keys = _embedded(settings, hub)
        base = config_path.parent if config_path is not None else Path.cwd()
        daemon = Daemon(settings, base, journal, keys, hub)
        await daemon.run()


def _key_of(identity: config.Identity) -> Callable[[], str]:
    return lambda: config.resolve_key(identity).reveal()


def _embedded(settings: config.Settings, hub: Hub) -> tuple[config.Settings, dict[str, Callable[[], str]]]:
    """Two identities on our own hub: one to speak as, and one that echoes. Their keys live as long as the process."""
    keys: dict[str, Callable[[], str]] = {}
    identities: dict[str, config.Identity] = {}
    for name, (handle, plugins) in _EMBEDDED.items():
        key = hub.rotate_key(handle) if hub.has_agent(handle) else hub.create_agent(handle)
        logs.conceal(key)
        keys[name] = partial(str, key)
        identities[name] = config.Identity(url=hub.url, key=config.KeySource(env="none: embedded"), plugins=plugins)
    plugins_in_use = settings.plugin or {"echo": config.PluginSettings(use="echo")}
    return (
        config.Settings(agentd=settings.agentd, identity=identities, plugin=plugins_in_use),
        keys,
    )


class Daemon:
    """Every part of one process. Implements `agentd.control.api.Daemon`. started: everything runs and can be asked."""

    def __init__(
        self,
        settings: config.Settings,
        base: Path,
        journal: SqliteJournal,
        keys: Mapping[str, Callable[[], str]],
        hub: Hub | None,
    ) -> None:
        self._settings = settings
        self._base = base
        self._journal = journal
        self._keys = keys
        self._hub = hub
        self._began = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self.started = asyncio.Event()
        self._supervisors: dict[str, Supervisor] = {}
        self._platforms: dict[str, Platform] = {}
        self._tails: set[asyncio.Queue[Record]] = set()
        self._awaited: dict[str, asyncio.Future[Carried]] = {}
        self._pressure: set[str] = set()
        self._manager = ServiceManager()
        self._fed_at = self._loop.time()
        self._position = 0
        self._lags = Lags(_JOURNAL_LOOK_S, settings.agentd.health.lag_window_s)
        self._pressed_at: float | None = None
        self._http: HttpServer | None = None

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start everything, serve until told to stop, stop everything. Raises JournalError, PluginLoadError."""
        async with contextlib.AsyncExitStack() as stack:
            pool = await stack.enter_async_context(Pool())
            plugins = await self._load_plugins(stack)
            codes = dict(code for plugin in plugins.values() for code in plugin.codes())
            self._watch = stack.enter_context(StallWatch(self._settings.agentd.dispatch.stall_s, codes))
            await self._make_supervisors(pool)
            self._dispatcher = self._make_dispatcher(plugins)
            control = ControlServer(self, listening_paths(Path(self._settings.agentd.state), os.environ))
            self._position = await self._journal.last_position()
            try:
                async with asyncio.TaskGroup() as tasks:
                    await self._dispatcher.start(tasks)
                    identities = [
                        tasks.create_task(supervisor.run(), name=f"identity {name}")
                        for name, supervisor in self._supervisors.items()
                    ]
                    pressure = tasks.create_task(self._watch_journal(), name="journal pressure")
                    await control.start()
                    await self._start_http(stack)
                    self._greet()
                    self.started.set()
                    self._manager.ready()
                    with self._signals():
                        await self._stopping.wait()
                    log.info("stopping")
                    self._manager.stopping()
                    pressure.cancel()
                    for identity in identities:
                        identity.cancel()
                    await asyncio.wait(identities) if identities else None
                    await self._dispatcher.stop(self._settings.agentd.dispatch.drain_timeout_s)
            except ExceptionGroup as failed:
                raise first_of(failed) from failed
            finally:
                await control.close()

    async def _start_http(self, stack: contextlib.AsyncExitStack) -> None:
        """Serve the page and the metrics, where the configuration asks for them."""
        if self._settings.agentd.http.listen:
            # Only here: nobody else pays for loading it.
            from agentd.control.http import HttpServer

            self._http = HttpServer(self, self._settings.agentd)
            stack.push_async_callback(self._http.close)
            await self._http.start()

    async def _load_plugins(self, stack: contextlib.AsyncExitStack) -> dict[str, Loaded]:
        """Load and set up every plugin that an identity uses; every problem is told at once."""
        used = {name for identity in self._settings.identity.values() for name in identity.plugins}
        plugins: dict[str, Loaded] = {}
        problems: list[str] = []
        for name in sorted(used):
            try:
                plugins[name] = load(name, self._settings.plugin[name], self._base, self._journal.state_get)
            except AgentdError as error:
                problems += str(error).splitlines()
        if problems:
            raise ConfigError(problems)
        for plugin in plugins.values():
            plugin.backlog_of = self._backlog_of
            stack.push_async_callback(plugin.teardown)
            await plugin.setup()
        return plugins

    async def _make_supervisors(self, pool: Pool) -> None:
        settings = self._settings.agentd
        shared = Shared(
            settings,
            self._journal,
            Throttle(settings.link.dials_per_s),
            Bells(self._records, self._signal, self._settled),
            accounts={},
        )
        handles = await self._journal.handles()
        for name, identity in self._settings.identity.items():
            key = Key(self._keys[name])
            platform = AgentChat(name, identity.url, key.reveal, handles.get(name, ""), version=__version__)
            rest = Rest(identity.url, key.reveal, settings.rest, pool=pool)
            self._platforms[name] = platform
            self._supervisors[name] = Supervisor(name, platform, rest, key, shared)

    def _make_dispatcher(self, plugins: Mapping[str, Loaded]) -> Dispatcher:
        intake, dispatch = self._settings.agentd.intake, self._settings.agentd.dispatch
        file = Path(self._settings.agentd.state) / "running"
        running, unfinished = open_running(file, list(plugins), dispatch.concurrency)
        return Dispatcher(
            self._journal,
            plugins,
            {name: identity.plugins for name, identity in self._settings.identity.items()},
            dispatch,
            revive=self._revive,
            on_queued=self._queued,
            on_backlog=self._shed,
            outbox_room=self._outbox_room,
            backlog=(intake.undispatched_high, intake.undispatched_low),
            backoff=Backoff(first_s=dispatch.retry_first_s, max_s=dispatch.retry_max_s),
            send_now=self._send_now,
            running=running,
            unfinished=unfinished,
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGTERM or SIGINT stops in order; the second ends the process at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._told_to_stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)

    def _told_to_stop(self) -> None:
        self._stopping.set()

    def _greet(self) -> None:
        names = ", ".join(self._supervisors) or "none"
        log.info("agentd %s runs, identities: %s, state in %s", __version__, names, self._settings.agentd.state)
        if self._hub is not None:
            folder = self._settings.agentd.state
            state = "" if Path(folder) == Path("state").absolute() else f" --state {folder}"
            sys.stderr.write(_WELCOME.format(url=self._hub.url, agentd=_own_command(), state=state))
            sys.stderr.flush()

    # -- bells ------------------------------------------------------------------------------------------------------

    def _records(self, records: Sequence[Record]) -> None:
        self._dispatcher.offer(records)
        if records:
            self._position = records[-1].position
        for tail in self._tails:
            for record in records:
                if not tail.full():
                    tail.put_nowait(record)

    def _signal(self, happened: Signal) -> None:
        self._dispatcher.signal(happened)

    def _queued(self, sends: Sequence[Send]) -> None:
        for send in sends:
            self._supervisors[send.identity].queued((send,))

    def _backlog_of(self, identity: str, target: str) -> int | None:
        sender = self._supervisors[identity].sender
        return None if sender is None else sender.peer_backlog(target)

    def _outbox_room(self, identity: str) -> int:
        sender = self._supervisors[identity].sender
        return self._settings.agentd.sending.outbox_max if sender is None else sender.room

    def _settled(self, carried: Carried) -> None:
        self._dispatcher.room_again()
        if (waiting := self._awaited.get(carried.client_msg_id)) is not None and not waiting.done():
            waiting.set_result(carried)

    def _shed(self, backlogged: bool) -> None:
        self._press("handlers are too far behind", backlogged)

    def _press(self, reason: str, pressed: bool) -> None:
        """Shed while there is any reason to: what is not taken in stays with the server."""
        if pressed and not self._pressure:
            self._pressed_at = self._loop.time()
        (self._pressure.add if pressed else self._pressure.discard)(reason)
        for supervisor in self._supervisors.values():
            supervisor.shed(", ".join(sorted(self._pressure)))

    async def _watch_journal(self) -> None:
        """A disk that takes nothing must not make the queue before it grow."""
        behind = False
        while True:
            self._lags.slept(self._loop.time())
            await asyncio.sleep(_JOURNAL_LOOK_S)
            metrics.LOOP_LAG_SECONDS.observe(self._lags.woke(self._loop.time()))
            self._feed_watchdog()
            # An outbox may have got room while its sender was not running, which rings nobody.
            self._dispatcher.room_again()
            if behind != (self._journal.full or self._journal.waiting > _JOURNAL_WAITING_MAX):
                behind = not behind
                self._press("the disk takes no commits", behind)

    def _revive(self, stored: StoredRecord) -> Event:
        platform = self._platforms[stored.identity]
        return platform.revive(stored.payload, epoch=stored.epoch, late=stored.late, source=Source(stored.source))

    # -- control ----------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """See control.api.Daemon."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._began, 3),
            "state_dir": str(Path(self._settings.agentd.state).absolute()),
            "hub_url": self._hub.url if self._hub is not None else None,
            "identities": [self._identity_status(name) for name in self._supervisors],
            "plugins": [
                {
                    "name": name,
                    "use": plugin.use,
                    "identities": self._served_by(name),
                    **self._dispatcher.standing(name),
                }
                for name, plugin in self._settings.plugin.items()
            ],
            "journal": self._journal_status(),
            "loop_stalls": self._watch.stalls,
            **self._process_status(),
        }

    def _process_status(self) -> dict[str, Any]:
        now = self._loop.time()
        lag_at, lag_s = self._lags.worst(now)
        pressed = self._pressed_at if self._pressure else None
        return {
            "http_url": None if self._http is None else self._http.url,
            "position": self._position,
            "shedding": ", ".join(sorted(self._pressure)),
            "shedding_s": None if pressed is None else round(now - pressed, 3),
            "undispatched": self._dispatcher.undispatched,
            "loop_lag_s": round(lag_s, 3),
            "loop_lag_age_s": round(now - lag_at, 3),
        }

    def _identity_status(self, name: str) -> dict[str, Any]:
        status = self._supervisors[name].status()
        committed = self._journal.last_commit_at
        return {
            **status,
            "url": self._settings.identity[name].url,
            "state_since": _iso(status["state_since"]),
            "history": [_change_row(change) for change in status["history"]],
            "plugins": list(self._settings.identity[name].plugins),
            "handled": self._dispatcher.handled[name],
            "pending": self._dispatcher.pending[name],
            "dead": self._dispatcher.dead[name],
            "last_commit_age_s": None if committed is None else round(self._loop.time() - committed, 3),
        }

    def _journal_status(self) -> dict[str, Any]:
        waiting = self._journal.waiting_since
        return {
            "full": self._journal.full,
            "size_bytes": self._journal.size_bytes,
            "commits": self._journal.commits,
            "changes": self._journal.changes,
            "last_commit_s": self._journal.last_commit_s,
            "waiting_s": None if waiting is None else round(self._loop.time() - waiting, 3),
        }

    def _served_by(self, plugin: str) -> list[str]:
        return [name for name, identity in self._settings.identity.items() if plugin in identity.plugins]

    async def send(
        self, identity: str | None, target: str, content: Content, wait_s: float, client_msg_id: str | None
    ) -> dict[str, Any]:
        """See control.api.Daemon."""
        name = identity or self._only_identity()
        key = client_msg_id or f"cli-{uuid.uuid4().hex}"
        send = Send(identity=name, target=target, content=content, client_msg_id=key, cause="control socket")
        deadline = self._loop.time() + wait_s
        with self._tailing() as tail:
            row = await self._until_settled(send, wait_s, self._refuse_if_full)
            answer: dict[str, Any] = {
                "client_msg_id": key,
                "state": row.send.state,
                "seq": row.result_seq,
                "conversation": row.conversation,
                "error": row.error or None,
                "reply": None,
            }
            if row.send.state == "sent" and wait_s:
                answer["reply"] = await self._reply(tail, name, row.conversation, row.result_seq or 0, deadline)
            return answer

    def _refuse_if_full(self, identity: str) -> None:
        if self._outbox_room(identity) <= 0:
            raise ControlError(
                503, "OUTBOX_FULL", f"the outbox of {identity} is full", "see what it holds: agentd outbox ls"
            )

    async def _send_now(self, send: Send) -> Sent:
        """A handler waits for what becomes of a send. Raises NotSent."""
        # As with the sends of a turn, the outbox may be exceeded by this one.
        row = await self._until_settled(send, None, lambda identity: None)
        if row.result_id is None or row.result_seq is None or row.conversation is None:
            raise NotSent(row.send.state, row.error)
        return Sent(
            client_msg_id=send.client_msg_id, id=row.result_id, conversation=row.conversation, seq=row.result_seq
        )

    async def _until_settled(self, send: Send, wait_s: float | None, admit: Callable[[str], None]) -> OutboxRow:
        """Put a send into the outbox unless its key is there, and wait for its end for so long. Returns its row.

        admit: called with the identity before anything is put there; what it raises is raised.
        """
        key, name = send.client_msg_id, send.identity
        settled = self._awaited.setdefault(key, self._loop.create_future())
        try:
            known = await self._journal.outbox_find(key, name)
            if known is None:
                admit(name)
                await self._journal.commit(Queued(send, time.time()))
                self._queued((send,))
            if known is None or known.send.state not in SETTLED_STATES:
                await asyncio.wait((settled,), timeout=wait_s)
        finally:
            self._awaited.pop(key, None)
        row = await self._journal.outbox_find(key, name)
        assert row is not None
        return row

    async def _reply(
        self, tail: asyncio.Queue[Record], identity: str, conversation: str | None, after_seq: int, deadline: float
    ) -> dict[str, Any] | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while True:
                    event = (await tail.get()).event
                    ours = event.identity == identity and event.conversation == conversation
                    if ours and not event.own and event.seq > after_seq and isinstance(event, Message):
                        return {"text": event.text, "sender": event.sender, "seq": event.seq}
        return None

    def _only_identity(self) -> str:
        if self._hub is not None:
            return _EMBEDDED_USER
        if len(self._supervisors) == 1:
            return next(iter(self._supervisors))
        raise ControlError(
            400,
            "WHICH_IDENTITY",
            "there are several identities" if self._supervisors else "there is no identity",
            f"name one with --as: {', '.join(self._supervisors)}" if self._supervisors else "configure one",
        )

    def release(self, plugin: str, identity: str | None, conversation: str) -> int:
        """See control.api.Daemon."""
        names = [identity] if identity is not None else self._served_by(plugin)
        return sum(self._dispatcher.release(plugin, name, conversation) for name in names)

    async def gaps(self, identity: str | None, open_only: bool, limit: int) -> list[dict[str, Any]]:
        """See control.api.Daemon."""
        names = [identity] if identity is not None else list(self._supervisors)
        found = [
            (gap.found_at, _gap_row(name, conversation, gap))
            for name in names
            for conversation, gap in await self._journal.gaps(name, open_only=open_only, limit=limit)
        ]
        found.sort(key=lambda each: each[0], reverse=True)
        return [row for _, row in found[:limit]]

    async def outbox(self, identity: str | None, states: Sequence[str], limit: int) -> list[dict[str, Any]]:
        """See control.api.Daemon."""
        names = [identity] if identity is not None else list(self._supervisors)
        rows = [row for name in names for row in await self._journal.outbox_list(name, states, limit)]
        rows.sort(key=lambda row: row.queued_at, reverse=True)
        return [self._outbox_row(row) for row in rows[:limit]]

    async def outbox_show(self, identity: str | None, client_msg_id: str) -> dict[str, Any]:
        """See control.api.Daemon."""
        return self._outbox_row(await self._outbox_find(identity, client_msg_id))

    async def outbox_retry(self, identity: str | None, client_msg_id: str) -> dict[str, Any]:
        """See control.api.Daemon."""
        row = await self._outbox_find(identity, client_msg_id)
        commit = self._sender(row.send.identity).retry(row)
        if commit is None:
            remedy = "nothing is left to do" if row.send.state == "sent" else "it goes on by itself"
            raise ControlError(409, "NOTHING_TO_RETRY", f"{client_msg_id} is {row.send.state}", remedy)
        await commit
        return await self.outbox_show(row.send.identity, client_msg_id)

    async def outbox_drop(self, identity: str | None, client_msg_id: str) -> dict[str, Any]:
        """See control.api.Daemon."""
        row = await self._outbox_find(identity, client_msg_id)
        commit = self._sender(row.send.identity).drop(row)
        if commit is None:
            settled = row.send.state in SETTLED_STATES
            told = row.send.state if settled else "on its way at this moment"
            remedy = "nothing is left to drop" if settled else "look again in a moment"
            raise ControlError(409, "NOTHING_TO_DROP", f"{client_msg_id} is {told}", remedy)
        await commit
        return await self.outbox_show(row.send.identity, client_msg_id)

    async def _outbox_find(self, identity: str | None, client_msg_id: str) -> OutboxRow:
        await self._journal.commit()  # what is known in memory is on disk then
        names = [identity] if identity is not None else list(self._supervisors)
        found = [row for name in names if (row := await self._journal.outbox_find(client_msg_id, name)) is not None]
        if len(found) == 1:
            return found[0]
        if not found:
            raise ControlError(404, "UNKNOWN_SEND", f"no send has the key {client_msg_id!r}", "see: agentd outbox ls")
        holders = ", ".join(row.send.identity for row in found)
        raise ControlError(
            400, "WHICH_IDENTITY", f"several identities have a send {client_msg_id!r}", f"name: {holders}"
        )

    def _sender(self, identity: str) -> Sender:
        sender = self._supervisors[identity].sender
        if sender is None:
            raise Unavailable(f"identity {identity} is only starting")
        return sender

    def _outbox_row(self, row: OutboxRow) -> dict[str, Any]:
        sender = self._supervisors[row.send.identity].sender
        return {
            **_outbox_row(row),
            "needs_decision": sender is not None and sender.needs_decision(row.send),
            "peer_backlog": None if sender is None else sender.peer_backlog(row.send.target),
        }

    async def dead(self, identity: str | None, dropped_too: bool, limit: int) -> list[dict[str, Any]]:
        """See control.api.Daemon."""
        return [_dead_row(row) for row in await self._journal.dead(identity, limit, dropped_too=dropped_too)]

    async def dead_show(self, number: int) -> dict[str, Any]:
        """See control.api.Daemon."""
        row = await self._dead_find(number)
        stored = await self._journal.read_lane(row.conversation, row.position - 1, 1)
        event = self._event_of(stored[0]) if stored and stored[0].position == row.position else None
        return {**_dead_row(row), "traceback": row.traceback, "event": event}

    async def dead_drop(self, number: int) -> dict[str, Any]:
        """See control.api.Daemon."""
        row = await self._dead_find(number)
        if row.dropped_at is None:
            await self._journal.commit(DeadDropped(number, time.time()))
            if row.identity in self._dispatcher.dead:
                self._dispatcher.dead[row.identity] -= 1
        return await self.dead_show(number)

    async def _dead_find(self, number: int) -> DeadRow:
        if (row := await self._journal.dead_find(number)) is None:
            raise ControlError(404, "UNKNOWN_LETTER", f"there is no dead letter {number}", "see: agentd dead ls --all")
        return row

    def _event_of(self, stored: StoredRecord) -> dict[str, Any] | None:
        try:
            return _tail_row(stored.record(self._revive(stored)))
        except (KeyError, msgspec.DecodeError):
            return None  # of an identity that is gone, or the very reason why it is dead

    async def tail(self, identity: str | None, since: int | None) -> AsyncGenerator[dict[str, Any], None]:
        """See control.api.Daemon."""
        position = since if since is not None else await self._journal.last_position()
        with self._tailing() as bell:
            while not self._stopping.is_set():
                stored = await self._journal.read_log(identity, position, _TAIL_PAGE)
                for row in stored:
                    position = row.position
                    yield _tail_row(row.record(self._revive(row)))
                if len(stored) < _TAIL_PAGE:
                    await bell.get()
                    while not bell.empty():
                        bell.get_nowait()

    def _feed_watchdog(self) -> None:
        """Alive means that the loop breathes (we are here) and that commits are carried out, or the disk is known full.

        A platform that does not answer is no reason to restart us, nor is a disk that a restart cannot empty.
        """
        watchdog_s = self._manager.watchdog_s
        if watchdog_s is None or self._loop.time() - self._fed_at < watchdog_s / 4:
            return
        waiting = self._journal.waiting_since
        if waiting is None or self._journal.full or self._loop.time() - waiting < watchdog_s:
            self._fed_at = self._loop.time()
            self._manager.alive()
            states = Counter(supervisor.state for supervisor in self._supervisors.values())
            self._manager.status(", ".join(f"{count} {state}" for state, count in sorted(states.items())))

    @contextlib.contextmanager
    def _tailing(self) -> Iterator[asyncio.Queue[Record]]:
        tail: asyncio.Queue[Record] = asyncio.Queue(_TAIL_QUEUE_MAX)
        self._tails.add(tail)
        try:
            yield tail
        finally:
            self._tails.discard(tail)

    async def stop(self) -> None:
        """See control.api.Daemon."""
        self._stopping.set()


_WELCOME = """
agentd runs with its own hub at {url}: identity "me" to speak as, and "echo", which answers.
In a second terminal, in this folder:

    {agentd} send{state} @echo "hello"     say something and see the answer
    {agentd} status{state}                 who is connected, and what has happened
    {agentd} tail{state}                   watch events as they are committed

Ctrl-C stops it. Next: write a plugin (README, "A first plugin").
"""


def _own_command() -> str:
    """How a second terminal in this folder calls this very program."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return f"{sys.executable} -m agentd"
    return str(program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program)


@lru_cache(maxsize=_CHANGES_REMEMBERED)
def _change_row(change: Change) -> dict[str, Any]:
    return {"state": change.state, "at": _iso(change.at), "reason": change.reason}


def _gap_row(identity: str, conversation: str, gap: Any) -> dict[str, Any]:
    return {
        "identity": identity,
        "conversation": conversation,
        "epoch": gap.epoch,
        "start": gap.start,
        "stop": gap.stop,
        "found_at": _iso(gap.found_at),
        "closed_at": None if gap.closed_at is None else _iso(gap.closed_at),
        "attempts": gap.attempts,
        "rows": gap.rows,
        "outcome": gap.outcome,
        "absent": gap.absent,
        "reason": gap.reason,
    }


def _outbox_row(row: OutboxRow) -> dict[str, Any]:
    send = row.send
    return {
        "client_msg_id": send.client_msg_id,
        "identity": send.identity,
        "target": send.target,
        "state": send.state,
        "attempts": send.attempts,
        "error": row.error or None,
        "code": row.code or None,
        "request_id": row.request_id,
        "queued_at": _iso(row.queued_at),
        "changed_at": _iso(row.changed_at),
        "not_before": _iso(send.not_before) if send.not_before else None,
        "expires_at": None if send.expires_at is None else _iso(send.expires_at),
        "cause": send.cause,
        "content": msgspec.to_builtins(send.content),
        "result_id": row.result_id,
        "seq": row.result_seq,
        "conversation": row.conversation,
    }


def _dead_row(row: DeadRow) -> dict[str, Any]:
    return {
        "number": row.number,
        "identity": row.identity,
        "conversation": row.conversation_id,
        "position": row.position,
        "plugin": row.plugin,
        "plugin_version": row.plugin_version,
        "attempts": row.attempts,
        "error": row.error,
        "died_at": _iso(row.died_at),
        "dropped_at": None if row.dropped_at is None else _iso(row.dropped_at),
    }


def _tail_row(record: Record) -> dict[str, Any]:
    event = record.event
    message = event if isinstance(event, Message) else None
    return {
        "position": record.position,
        "identity": event.identity,
        "conversation": event.conversation,
        "epoch": event.epoch,
        "seq": event.seq,
        "id": event.id,
        "sender": event.sender,
        "source": event.source.value,
        "own": event.own,
        "late": event.late,
        "type": message.kind if message is not None else type(event).__name__.lower(),
        "text": message.text if message is not None else None,
        "received_at": _iso(record.received_at),
    }


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
