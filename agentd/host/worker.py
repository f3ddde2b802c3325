"""A worker: the process that one plugin runs in, if its configuration says `isolate = "process"`.

    python -m agentd.host.worker FD PARENT

It loads the plugin as the daemon would, and runs its turns with the same Turns and contexts; what a turn reads, it asks
the daemon for over the pipe at FD, and what a turn staged goes back at its end.

Always true: what was said leaves at once and in order, from whatever thread, so that it outlives whatever follows. When
the pipe ends, so does this process. For lack of memory it ends itself, since what else that hit cannot be known.
Not here: the effects (the daemon's), what the messages are (pipe.py), restarts (isolated.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from agentd import logs
from agentd.core.events import Send, Sent
from agentd.errors import ConfigError, PluginLoadError
from agentd.host import pipe
from agentd.host.api import SURFACES, Port
from agentd.host.context import TurnContext
from agentd.host.faults import made_again, taken_apart
from agentd.host.handlers import Handler
from agentd.host.lifecycle import Loaded, load
from agentd.host.limits import CpuAllowance, die_with, leave_no_core, limit_memory
from agentd.host.relay import Relay
from agentd.host.shipped import Shown, TurnOut, declarations
from agentd.host.turns import DeadlinePassed, Failure

log = logging.getLogger("agentd.host.worker")

_READ_BYTES = 262_144
_NICE = 10  # whatever a plugin burns, the daemon answers pings and commits first
_CANCEL_S = 3.0  # how long cancelled calls may take to end, as in the daemon
_EXIT_DYING = 70


class Pipe:
    """This side of the socket. It blocks, so that what is written has left; reads do not wait."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(True)
        self._frames = pipe.Frames()
        # Re-entrant: a collector's run inside may log.
        self._writing = threading.RLock()
        # Made now, since there is no memory when it is needed.
        self._out_of_memory = pipe.framed(pipe.Dying("it is out of memory (see memory_max_mb of its settings)"))

    def tell(self, message: pipe.FromWorker) -> None:
        """Write one message, from any thread. Raises FrameTooLarge."""
        frame = pipe.framed(message)
        with self._writing:
            self._write(frame)

    def die_out_of_memory(self) -> NoReturn:
        """Say so and end."""
        self._write(self._out_of_memory)
        os._exit(_EXIT_DYING)

    def _write(self, frame: bytes) -> None:
        try:
            self._socket.sendall(frame)
        except OSError:  # nobody is there
            os._exit(1)

    def listen(self, take: Callable[[pipe.ToWorker], None]) -> None:
        """Call `take` with each message from now on; end the process when the pipe ends."""
        asyncio.get_running_loop().add_reader(self._socket, self._read, take)

    def _read(self, take: Callable[[pipe.ToWorker], None]) -> None:
        try:
            content = self._socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            content = b""
        if not content:
            os._exit(0)
        try:
            for body in self._frames.fed(content):
                take(pipe.to_worker(body))
        except MemoryError:
            self.die_out_of_memory()
        except Exception:  # what one message meant is lost: whoever waits for it must not wait for ever
            log.exception("the worker cannot go on")
            os._exit(_EXIT_DYING)


class Worker:
    """Everything of one worker. Messages come in through `take`; `run` returns when it was told to end."""

    def __init__(self, out: Pipe) -> None:
        self._pipe = out
        self._plugin: Loaded | None = None
        self._cpu = CpuAllowance(None)
        self._asked: dict[int, asyncio.Future[bytes | None]] = {}
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Serve."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._loop_failed)
        # Where a whole service is told to stop at once, the daemon stops its workers when their turns have ended.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _left_to_the_daemon)
        async with asyncio.TaskGroup() as self._tasks:
            self._pipe.listen(self.take)
            await self._over.wait()

    def take(self, message: pipe.ToWorker) -> None:
        """Do what the daemon asks for."""
        match message:
            case pipe.Call():
                self._cpu.renew()
                call = self._tasks.create_task(self._call(message), name=f"call {message.id}")
                self._calls[message.id] = call
                call.add_done_callback(partial(self._call_ended, message.id))
            case pipe.Answer():
                self._answered(message)
            case pipe.Cancel():
                if (cancelled := self._calls.get(message.id)) is not None:
                    cancelled.cancel()
            case pipe.Serves():
                self._loaded.serves = frozenset(message.identities)
            case pipe.Start():
                self._load(message)
            case pipe.SetUp():
                self._tasks.create_task(self._set_up(), name="setup")
            case pipe.TearDown():
                self._tasks.create_task(self._tear_down(), name="teardown")

    @property
    def _loaded(self) -> Loaded:
        assert self._plugin is not None, "the daemon starts a worker before it uses it"
        return self._plugin

    # --- the plugin's life

    def _load(self, start: pipe.Start) -> None:
        sys.path[:] = start.path
        root = logging.getLogger()
        root.addHandler(Relay(self._pipe.tell))
        root.setLevel(start.log_level)
        logging.captureWarnings(True)
        settings = start.settings
        if settings.memory_max_mb is not None:
            limit_memory(settings.memory_max_mb)
        self._cpu = CpuAllowance(settings.cpu_max_s)
        self._cpu.renew()
        try:
            plugin = load(start.name, settings, Path(start.base), self._read_state)
            handlers = declarations(start.name, plugin.plugin.declared)
        except ConfigError as error:
            self._pipe.tell(pipe.Refused(problems=[logs.encodable(each) for each in error.problems]))
            return
        except PluginLoadError as error:
            self._pipe.tell(pipe.Refused(reason=logs.encodable(str(error))))
            return
        self._plugin = plugin
        hooks = plugin.plugin
        self._pipe.tell(
            pipe.Declares(
                plugin.version,
                hooks.watches,
                handlers,
                len(hooks.middlewares),
                len(hooks.setups),
                len(hooks.teardowns),
            )
        )

    async def _set_up(self) -> None:
        self._cpu.renew()
        try:
            await self._loaded.setup()
        except PluginLoadError as error:
            if isinstance(error.__cause__, MemoryError):
                self._pipe.die_out_of_memory()
            self._pipe.tell(pipe.Refused(reason=logs.encodable(str(error))))
        else:
            self._cpu.lift()
            self._pipe.tell(pipe.IsSetUp())

    async def _tear_down(self) -> None:
        """The daemon waits for no call any more."""
        self._loaded.turns.stopping = True
        running = list(self._calls.values())
        for call in running:
            call.cancel()
        if running:
            await asyncio.wait(running, timeout=_CANCEL_S)
        self._cpu.renew()
        await self._loaded.teardown()
        self._pipe.tell(pipe.TornDown())
        # In order, so that what a plugin left to the interpreter's end happens.
        self._over.set()

    # --- calls

    async def _call(self, call: pipe.Call) -> None:
        plugin = self._loaded
        shown, ctx = call.turn.turn(plugin)
        ctx.home.send_now = partial(self._send_now, call.id)
        port = None if call.turn.platform is None else _Port(self, call.id, call.turn.platform)
        ctx.home.api_of = partial(_only, port)
        ctx.owner, ctx.about = self, call.id
        if call.turn.traceparent is not None:
            # Only here: no worker pays for loading it while nobody traces.
            from agentd.tracing.joining import joined

            ctx.joins = joined(call.turn.traceparent)
        if call.turn.batch_for is None:
            # Matched here as well: a `where` is known here alone, and one that raises is the turn's failure.
            failure = await plugin.turns.run(shown, None, ctx, _no_other_waits)
        else:
            failure = await self._batch(plugin.handlers.all[call.turn.batch_for], shown, ctx)
        if failure is not None and isinstance(failure.error, MemoryError):
            self._pipe.die_out_of_memory()
        try:
            self._pipe.tell(pipe.Done(call.id, TurnOut.of(ctx, failure, plugin.handlers.all)))
        except Exception as error:  # too much of it, or text that is no text
            self._pipe.tell(pipe.Done(call.id, TurnOut(fault=taken_apart(error))))
        self._watch_overrun(call.id, failure)

    async def _batch(self, handler: Handler, shown: Shown, ctx: TurnContext[Any]) -> Failure | None:
        """Show a batch to its handler, without what its `where` does not want."""
        assert isinstance(shown, tuple)
        try:
            wanted = tuple(event for event in shown if handler.matches(event))
        except Exception as error:
            return Failure(error, handler)
        if not wanted:
            return None
        if ctx.event in shown and ctx.event not in wanted:
            ctx.event = wanted[-1]
        return await self._loaded.turns.run(wanted, (handler,), ctx, _no_other_waits)

    def got_on(self, ctx: TurnContext[Any], noted: bytes) -> None:
        """See context.Owner."""
        assert isinstance(ctx.about, int)
        self._pipe.tell(pipe.Progress(ctx.about, noted))

    async def says_now(self, ctx: TurnContext[Any]) -> None:
        """See context.Owner. The daemon tells the turn's owner there, before it sends."""

    def _watch_overrun(self, call_id: int, failure: Failure | None) -> None:
        if failure is not None and isinstance(failure.error, DeadlinePassed) and failure.error.overrun is not None:
            failure.error.overrun.add_done_callback(partial(self._overrun_ended, call_id))

    def _overrun_ended(self, call_id: int, overrun: asyncio.Future[Any]) -> None:
        if not overrun.cancelled():
            overrun.exception()  # the turn has failed already, whatever it was
        self._pipe.tell(pipe.OverrunEnded(call_id))

    def _call_ended(self, call_id: int, _: asyncio.Task[None]) -> None:
        del self._calls[call_id]
        if not self._calls:
            self._cpu.lift()

    # --- what turns ask

    async def _read_state(self, plugin: str, conversation: int, key: str) -> bytes | None:
        return await self._answer_to(pipe.AskState(next(self._numbers), conversation, key))

    async def _send_now(self, call_id: int, send: Send) -> Sent:
        answer = await self._answer_to(pipe.AskSend(next(self._numbers), call_id, msgspec.json.encode(send)))
        assert answer is not None
        return msgspec.json.decode(answer, type=Sent)

    async def call_api(self, call_id: int, name: str, arguments: Mapping[str, Any], key: str | None) -> bytes:
        """Have the daemon make a call of `ctx.api`. Returns its answer as JSON."""
        ask = pipe.AskApi(next(self._numbers), call_id, name, msgspec.msgpack.encode(arguments), key)
        answer = await self._answer_to(ask)
        assert answer is not None
        return answer

    async def _answer_to(self, ask: pipe.AskState | pipe.AskSend | pipe.AskApi) -> bytes | None:
        answer: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._asked[ask.id] = answer
        try:
            self._pipe.tell(ask)
            return await answer
        finally:
            del self._asked[ask.id]

    def _answered(self, answer: pipe.Answer) -> None:
        asked = self._asked.get(answer.id)
        if asked is None or asked.done():  # its turn was cancelled
            return
        if answer.fault is None:
            asked.set_result(answer.value)
        else:
            asked.set_exception(made_again(answer.fault))

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), MemoryError):
            self._pipe.die_out_of_memory()
        loop.default_exception_handler(context)


class _Port:
    """See host.api.Port: the daemon makes the calls, and the key of the identity stays there."""

    def __init__(self, worker: Worker, call_id: int, platform: str) -> None:
        self.platform = platform
        self._worker = worker
        self._call_id = call_id

    async def ask(self, name: str, arguments: Mapping[str, Any], key: str | None) -> Any:
        """See host.api.Port."""
        answer = await self._worker.call_api(self._call_id, name, arguments, key)
        return msgspec.json.decode(answer, type=SURFACES[self.platform].method(name).returns)


def _only(port: Port | None, identity: str) -> Port | None:
    """A turn asks for no identity but its own."""
    return port


def _no_other_waits() -> None:
    """Every call has a task of its own here, so that nobody waits for this one to give up the loop."""


def _left_to_the_daemon() -> None:
    """It ends the pipe, or kills."""


def main(fd: int, parent: int) -> None:
    """Serve the daemon at the other end of this socket."""
    die_with(parent)
    leave_no_core()
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.nice(_NICE)
    _show_stack_of_whoever_burns_too_much()
    out = Pipe(fd)
    try:
        asyncio.run(Worker(out).run())
    except* MemoryError:
        out.die_out_of_memory()


def _show_stack_of_whoever_burns_too_much() -> None:
    """On stderr, which the daemon logs, before the signal does what it does."""
    import faulthandler

    faulthandler.register(signal.SIGXCPU, chain=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
