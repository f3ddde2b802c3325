"""A plugin in a process of its own, to the dispatcher like any other.

The plugin is loaded, set up and run by a worker (worker.py) that this process starts, and starts again whenever it has
died. What is declared is known here as plain values, so that filters are evaluated here; a `where` is asked in the
worker, as part of the turn.

    down ── started, loaded, set up ──> up ── it died, or was killed ──> down, and again after a growing delay

Always true: no code of the plugin runs here. While the plugin is down no call is begun, and `on_up` tells when one may
be.
Not here: how calls end (calls.py), what a turn ships (shipped.py), the process (process.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from pathlib import Path
from types import CodeType
from typing import Any

import msgspec

from agentd import metrics
from agentd.config import PluginSettings
from agentd.core.events import Digest, Send, Sent, Timer
from agentd.core.retry import Again, Backoff, after_failure
from agentd.errors import ConfigError, PluginLoadError
from agentd.host import pipe
from agentd.host.api import Port, no_api
from agentd.host.calls import Bounds, Calls, WorkerDied
from agentd.host.context import TurnContext, plugin_log
from agentd.host.faults import made_again, taken_apart
from agentd.host.handlers import Handler, Handlers
from agentd.host.lifecycle import Loaded, load
from agentd.host.process import Process
from agentd.host.relay import said_again
from agentd.host.shipped import Declaration, Shown, TurnIn, declared_again
from agentd.host.state import PluginState, Read
from agentd.host.turns import Failure
from agentd.plugin import Log

log = logging.getLogger("agentd.host.isolated")

_RESTARTS = Backoff(first_s=0.25, max_s=60.0)  # a start costs some 0.1 s of CPU; a mended plugin is back in a minute
# The service manager's own, and what would make a worker's log look like ours.
_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "JOURNAL_STREAM", "LISTEN_FDS", "LISTEN_PID")


class Isolated:
    """See lifecycle.Loaded, whose place it takes in the dispatcher.

    hidden: variables of the environment that the worker does not get. up: calls may begin. on_up: called when they may
    again. restarts: how often the worker was started anew.
    """

    send_now: Callable[[Send], Awaitable[Sent]]
    serves: frozenset[str] = frozenset()
    in_process = False

    def __init__(
        self, name: str, settings: PluginSettings, base: Path, read: Read, hidden: Collection[str] = ()
    ) -> None:
        self.name = name
        self.settings = settings
        self.version = ""
        self.config = None
        self.handlers = Handlers(name, ())
        self.state = PluginState(name, read, settings.state_value_max_bytes, settings.state_max_mb << 20)
        self.timers = 0
        self.timers_max = settings.timers_max
        self.minds_timers = self.takes_digests = self.watches = False
        self.backlog_of: Callable[[str, str], int | None] = lambda identity, target: None
        self.api_of: Callable[[str], Port | None] = no_api
        self.loop = asyncio.get_running_loop()
        self.turns = _Turns(self)
        self.up = False
        self.on_up: Callable[[], None] = lambda: None
        self.restarts = 0
        self._base = base
        self._hidden = frozenset((*hidden, *_NOT_INHERITED))
        self._declared: list[Declaration] = []
        self._shape: pipe.Declares | None = None
        self._process: Process | None = None
        self._reply: asyncio.Future[pipe.FromWorker] | None = None
        self._told_serves: frozenset[str] = frozenset()
        self._calls = Calls(name, settings.kill_grace_s, self._kill)
        self._answering: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._down_why = "it is being started"
        self._next_start_at: float | None = None
        self._rises = asyncio.Event()
        self._is_over = False
        self._keeping: asyncio.Task[None] | None = None

    @property
    def log(self) -> Log:
        """The plugin's log."""
        return plugin_log(self.name)

    def secret(self, name: str) -> str:
        """See agentd.plugin.PluginContext: read in the worker, where alone they are asked for."""
        raise LookupError(f"the secrets of {self.name} are known to its worker alone ({name!r})")

    def codes(self) -> Iterable[tuple[CodeType, str]]:
        """None: its code is never on a stack of this process."""
        return ()

    def standing(self) -> dict[str, Any]:
        """For people: its process, or why there is none and when the next is tried."""
        wait_s = None if self._next_start_at is None else max(0.0, self._next_start_at - time.monotonic())
        return {
            "up": self.up,
            "pid": self._process.pid if self._process is not None else None,
            "restarts": self.restarts,
            "reason": "" if self.up else self._down_why,
            "next_start_in_s": wait_s,
        }

    # --- the plugin's life

    async def load(self) -> None:
        """Start a worker and have it load the plugin. Raises PluginLoadError or ConfigError, as lifecycle.load does."""
        loaded = await self._started()
        self.handlers = Handlers(self.name, declared_again(loaded.handlers))
        self.minds_timers = any(each.event is Timer and each.every_s is None for each in self.handlers.all)
        self.takes_digests = any(each.event is Digest for each in self.handlers.all)
        self.watches = loaded.watches
        self._declared = loaded.handlers
        self._place_handlers(loaded)

    async def setup(self) -> None:
        """Run its setups. Raises PluginLoadError if one fails."""
        await self._set_up()
        self._keeping = asyncio.create_task(self._keep_up(), name=f"worker of {self.name}")
        self._keeping.add_done_callback(self._kept)

    async def teardown(self) -> None:
        """Have it run its teardowns and end, or kill it if it does not in time."""
        was_up = self.up
        self._go_down()
        self._is_over = True
        self._rises.set()  # for calls that wait, in vain from now on
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait((self._keeping,))
            if was_up and self._process is not None and self._shape is not None:
                await self._torn_down(self._process, self._shape)
        await self.end()

    async def end(self) -> None:
        """Leave no process behind, whatever state it is in."""
        process, self._process = self._process, None
        if process is not None:
            self._calls.killed = True
            process.kill("the daemon stops")
            self._end_calls(await process.ended)

    async def _torn_down(self, process: Process, shape: pipe.Declares) -> None:
        bound_s = self.settings.timeout_s * shape.teardowns + self.settings.kill_grace_s
        try:
            await self._ask(pipe.TearDown(), bound_s)
            await asyncio.wait((process.ended,), timeout=self.settings.kill_grace_s)
        except PluginLoadError as error:
            log.warning("teardown: %s", error, extra={"plugin": self.name})

    async def _keep_up(self) -> None:
        """Start a new worker whenever there is none, until cancelled."""
        while True:
            process = self._process
            how = "it could not be started" if process is None else await asyncio.shield(process.ended)
            self._died(how)
            while not self.up:
                await self._pause()
                try:
                    await self._start_again()
                except (PluginLoadError, ConfigError) as error:
                    self._down_why = str(error)
                    log.error("its worker cannot start: %s", error, extra={"plugin": self.name})
                    await self._give_up_start()

    def _kept(self, keeping: asyncio.Task[None]) -> None:
        """A broken invariant must not look like a plugin that waits for its worker."""
        if not keeping.cancelled() and (error := keeping.exception()) is not None:
            self._down_why = f"agentd itself failed: {error!r}"
            log.critical("its worker is not looked after any more", exc_info=error, extra={"plugin": self.name})

    async def _pause(self) -> None:
        self._failures += 1
        delay = after_failure(self._failures, sys.maxsize, _RESTARTS, random.random())
        assert isinstance(delay, Again)
        self._next_start_at = time.monotonic() + delay.after_s
        await asyncio.sleep(delay.after_s)
        self._next_start_at = None

    async def _start_again(self) -> None:
        self.restarts += 1
        loaded = await self._started()
        if [each.anywhere() for each in loaded.handlers] != [each.anywhere() for each in self._declared]:
            raise PluginLoadError(
                f"plugin {self.name}: its handlers are not those that it was loaded with; run: agentd reload "
                "(an installed one: restart agentd)"
            )
        self._place_handlers(loaded)
        await self._set_up()
        log.info("its worker runs again", extra={"plugin": self.name})

    def _place_handlers(self, loaded: pipe.Declares) -> None:
        for handler, declaration in zip(self.handlers.all, loaded.handlers, strict=True):
            handler.place = declaration.place

    async def _give_up_start(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill("it could not be started")
            await process.ended

    async def _started(self) -> pipe.Declares:
        """A new process that has loaded the plugin."""
        environ = {name: value for name, value in os.environ.items() if name not in self._hidden}
        try:
            self._process = process = Process(environ, self._take, self._print, self._go_down)
            await process.connect()
        except OSError as error:  # too many processes or descriptors, or the program has been replaced
            about = f" ({error.filename})" if error.filename else ""
            raise PluginLoadError(
                f"plugin {self.name}: its worker cannot be started: {error.strerror}{about}"
            ) from error
        self._told_serves = frozenset()
        level = logging.getLogger(f"agentd.plugins.{self.name}").getEffectiveLevel()
        start = pipe.Start(self.name, self.settings, str(self._base.absolute()), sys.path, level)
        loaded = await self._ask(start, self.settings.start_timeout_s)
        assert isinstance(loaded, pipe.Declares), loaded
        self.version = loaded.version
        self._shape = loaded
        return loaded

    async def _set_up(self) -> None:
        assert self._shape is not None
        bound_s = self.settings.timeout_s * self._shape.setups + self.settings.start_timeout_s
        await self._ask(pipe.SetUp(), bound_s)
        self.up = True
        self._rises.set()
        self.on_up()

    async def _ask(self, message: pipe.ToWorker, bound_s: float) -> pipe.FromWorker:
        """What the worker replies. Raises what it refuses with, or PluginLoadError if it ends or takes too long."""
        process = self._process
        assert process is not None
        self._reply = asyncio.get_running_loop().create_future()
        process.tell(message)
        await asyncio.wait((self._reply, process.ended), timeout=bound_s, return_when=asyncio.FIRST_COMPLETED)
        if self._reply.done():
            return _accepted(self._reply.result())
        doing = {pipe.Start: "loaded", pipe.SetUp: "set up"}.get(type(message), "torn down")
        if process.ended.done():
            raise PluginLoadError(
                f"plugin {self.name}: its worker died while it was being {doing}: {process.ended.result()}"
            )
        process.kill(f"it was not {doing} in time")
        raise PluginLoadError(
            f"plugin {self.name}: its worker was not {doing} within {bound_s:g} s, and was killed; "
            "look at what it does then, or raise its start_timeout_s or timeout_s"
        )

    # --- what the worker says

    def _take(self, message: pipe.FromWorker) -> None:
        match message:
            case pipe.Done():
                self._done(message)
            case pipe.Progress():
                if (call := self._calls[message.id]) is not None:
                    self._calls.got_on(call, message.noted)
            case pipe.AskState() | pipe.AskSend() | pipe.AskApi():
                answer = asyncio.create_task(self._answer(message), name=f"{self.name}: answer {message.id}")
                self._answering.add(answer)
                answer.add_done_callback(self._answering.discard)
            case pipe.Said():
                said_again(message, self.name)
            case pipe.OverrunEnded():
                self._calls.overrun_ended(message.id)
            case pipe.Dying():
                pass  # the process remembers why
            case _:
                if self._reply is not None and not self._reply.done():
                    self._reply.set_result(message)

    def _print(self, level: int, line: str) -> None:
        logging.getLogger(f"agentd.plugins.{self.name}").log(level, "%s", line, extra={"plugin": self.name})

    async def _answer(self, ask: pipe.AskState | pipe.AskSend | pipe.AskApi) -> None:
        process = self._process
        try:
            if isinstance(ask, pipe.AskState):
                answer = pipe.Answer(ask.id, await self.state.read((ask.conversation, ask.key)))
            elif isinstance(ask, pipe.AskSend):
                answer = pipe.Answer(ask.id, msgspec.json.encode(await self._sent(ask)))
            else:
                answer = pipe.Answer(ask.id, msgspec.json.encode(await self._called(ask)))
        except Exception as error:
            answer = pipe.Answer(ask.id, fault=taken_apart(error))
        if process is None:
            return
        try:
            process.tell(answer)
        except pipe.FrameTooLarge as error:
            process.tell(pipe.Answer(ask.id, fault=taken_apart(error)))

    async def _sent(self, ask: pipe.AskSend) -> Sent:
        ctx = self._turn_of(ask.call)
        await ctx.says_now()
        return await ctx.home.send_now(msgspec.json.decode(ask.send, type=Send))

    async def _called(self, ask: pipe.AskApi) -> Any:
        ctx = self._turn_of(ask.call)
        port = ctx.home.api_of(ctx.identity)
        assert port is not None, "the worker was told that there is none"
        if ask.key is not None:
            await ctx.says_now()
        return await port.ask(ask.name, msgspec.msgpack.decode(ask.arguments), ask.key)

    def _turn_of(self, call_id: int) -> TurnContext[Any]:
        call = self._calls[call_id]
        if call is None:
            raise RuntimeError("this turn has ended; whatever a handler does, it does before it returns")
        return call.ctx

    # --- calls

    async def call(self, shown: Shown, ctx: TurnContext[Any], handlers: tuple[Handler, ...]) -> Failure | None:
        """Run a turn in the worker, once there is one. ctx: gets what was staged."""
        while not self.up:
            if self._is_over:
                return Failure(WorkerDied("its plugin was torn down before", blamed=False, alone=False), None)
            await self._rises.wait()
        process = self._process
        assert process is not None
        if self.serves != self._told_serves:
            process.tell(pipe.Serves(sorted(self.serves)))
            self._told_serves = self.serves
        call = self._calls.begin(ctx, handlers, self._bounds(handlers))
        batch_for = self.handlers.all.index(handlers[0]) if isinstance(shown, tuple) else None
        try:
            process.tell(pipe.Call(call.id, TurnIn.of(shown, ctx, batch_for)))
            return await call.ended
        except pipe.FrameTooLarge as error:
            return Failure(error, None)
        except asyncio.CancelledError:
            process.tell(pipe.Cancel(call.id))
            raise
        finally:
            self._calls.forget(call)

    def _bounds(self, handlers: tuple[Handler, ...]) -> Bounds:
        """Each step of a turn has its own deadline."""
        assert self._shape is not None
        timeout_s, most_s = self.settings.timeout_s, self.settings.timeout_max_s
        around = 2 * self._shape.middlewares
        each_s = [timeout_s if each.timeout_s is None else each.timeout_s for each in handlers or self.handlers.all]
        return Bounds(
            each_s=max(each_s),
            whole_s=sum(each_s) + around * timeout_s,
            most_s=sum(max(each, most_s) for each in each_s) + around * max(timeout_s, most_s),
        )

    def _done(self, done: pipe.Done) -> None:
        call = self._calls[done.id]
        if call is None:
            return
        self._failures = 0
        call.ctx.said = done.turn.said
        if done.turn.state_full:
            self.state.refused()
        fault = done.turn.fault
        if fault is None:
            done.turn.stage(call.ctx)
            self._calls.through(call, None)
            return
        handler = None if fault.handler is None else self.handlers.all[fault.handler]
        overrun = self._calls.overran(call) if done.turn.overruns else None
        self._calls.through(call, Failure(made_again(fault, overrun), handler))

    # --- up and down

    def _kill(self, why: str) -> None:
        if self._process is not None:
            self._go_down()
            self._process.kill(why)

    def _go_down(self) -> None:
        """No call is begun from now on."""
        self.up = False
        self._rises.clear()

    def _died(self, how: str) -> None:
        self._go_down()
        metrics.WORKER_DEATHS.inc(self.name)
        self._down_why = f"its worker died: {how}"
        log.error("its worker died: %s; calls that ran: %d", how, len(self._calls), extra={"plugin": self.name})
        self._end_calls(how)
        self._process = None

    def _end_calls(self, how: str) -> None:
        for answer in self._answering:
            answer.cancel()
        self._calls.end_all(how)


Hosted = Loaded | Isolated
"""A plugin that can run, in this process or in one of its own."""


class _Turns:
    """See turns.Turns. stopping: for the worker to mind, which is told so by itself."""

    def __init__(self, plugin: Isolated) -> None:
        self._plugin = plugin
        self.running = 0
        self.stopping = False
        self._idle: asyncio.Future[None] | None = None

    async def run(
        self,
        event: Shown,
        handlers: tuple[Handler, ...] | None,
        ctx: TurnContext[Any],
        waits: Callable[[], None],
    ) -> Failure | None:
        """See turns.Turns.run."""
        waits()
        self.running += 1
        try:
            return await self._plugin.call(event, ctx, handlers or ())
        finally:
            ctx.end()
            self.running -= 1
            if self._idle is not None and not self.running and not self._idle.done():
                self._idle.set_result(None)

    async def idle(self) -> None:
        """See turns.Turns.idle."""
        while self.running:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle


async def load_hosted(
    name: str, settings: PluginSettings, base: Path, read: Read, hidden: Collection[str] = ()
) -> Hosted:
    """Load a plugin as its settings say. See lifecycle.load. hidden: variables that hold keys."""
    if settings.isolate == "none":
        return load(name, settings, base, read)
    plugin = Isolated(name, settings, base, read, hidden)
    try:
        await plugin.load()
    except BaseException:
        await plugin.end()
        raise
    return plugin


def _accepted(reply: pipe.FromWorker) -> pipe.FromWorker:
    if not isinstance(reply, pipe.Refused):
        return reply
    raise PluginLoadError(reply.reason) if reply.problems is None else ConfigError(reply.problems)
