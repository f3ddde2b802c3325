"""Runs one turn: the handlers of one plugin that want one event, in order, inside the plugin's middlewares.

A coroutine is started by hand. Most handlers that only decide and stage return at once, and cost neither a timer nor
a trip through the loop; only one that truly waits is given a deadline and awaited.

Always true: a handler runs in its caller's task, or in one of the plugin's threads. `waits` is called at most once, the
first time that the turn gives up the loop. After the turn its context stages nothing, and the context variables that
it set are forgotten. A task that its own handler cancelled lives on; who else cancels it is obeyed.
Not here: what follows from a failure (the dispatcher, core/retry.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any, NamedTuple

from agentd.core.events import Event, Signal
from agentd.host.context import TurnContext
from agentd.host.handlers import Handler, Handlers
from agentd.host.threads import Threads

_CLEANUP_S = 1.0  # how long a coroutine may go on after it was cancelled for good

log = logging.getLogger("agentd.host.turns")

Middleware = Callable[[Any, Any], AsyncIterator[None]]


class DeadlinePassed(Exception):
    """A handler did not return in time. overrun: its thread's future, if it runs on, since no thread can be stopped."""

    def __init__(self, name: str, timeout_s: float, overrun: asyncio.Future[Any] | None = None) -> None:
        self.overrun = overrun
        super().__init__(f"{name} did not return within {timeout_s:g} s")


class CancelledItself(Exception):
    """A handler cancelled the task that it runs in, which is not its own."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} cancelled its own task; raise GiveUp or RetryLater to end a turn")


class Failure(NamedTuple):
    """A turn that left nothing behind. handler: which one failed, or None for filters and middlewares."""

    error: BaseException
    handler: Handler | None


class Turns:
    """How one plugin's turns run. timeout_s: the deadline of a handler that names none, and of a middleware's step.

    timeout_max_s: how far `ctx.progress` may put a deadline off in all. running: turns under way. stopping: what runs
    is being cancelled, and is not waited for long.
    """

    def __init__(
        self,
        handlers: Handlers,
        threads: Threads,
        middlewares: tuple[Middleware, ...],
        timeout_s: float,
        timeout_max_s: float,
    ) -> None:
        self._match = handlers.match
        self._threads = threads
        self._middlewares = middlewares
        self._timeout_s = timeout_s
        self._timeout_max_s = timeout_max_s
        self.running = 0
        self.stopping = False
        self._idle: asyncio.Future[None] | None = None

    async def run(
        self,
        event: Event | Signal | tuple[Event, ...],
        handlers: tuple[Handler, ...] | None,
        ctx: TurnContext[Any],
        waits: Callable[[], None],
    ) -> Failure | None:
        """Call every handler with the event, or with a batch of them. Returns what failed, or None.

        handlers: None to match the event here, where a filter that raises is a failure like any other.

        Raises CancelledError only if the caller's task was cancelled; a handler's own is a failure like any other.
        """
        turn = _Turn(self, event, ctx, waits)
        self.running += 1
        try:
            if handlers is None:
                assert not isinstance(event, tuple)
                handlers = self._match(event)
            if self._middlewares:
                await turn.through(self._middlewares, handlers)
            else:
                for handler in handlers:
                    rest = turn.begin(handler)
                    if rest is not None:
                        await rest
        except (Exception, SystemExit) as error:
            return Failure(error, turn.running)
        except asyncio.CancelledError as error:
            if turn.told_to_stop:
                raise
            return Failure(error, turn.running)
        finally:
            ctx.end()
            self.running -= 1
            if self._idle is not None and not self.running and not self._idle.done():
                self._idle.set_result(None)
        return None

    async def idle(self) -> None:
        """Return when no turn is under way."""
        while self.running:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    def timeout_of(self, handler: Handler | None) -> float:
        """Seconds that a handler may take."""
        own = handler.timeout_s if handler is not None else None
        return self._timeout_s if own is None else own

    def ceiling_of(self, timeout_s: float) -> float:
        """Seconds that a handler may take, however much it gets on."""
        return max(timeout_s, self._timeout_max_s)

    def in_thread(
        self, handler: Handler, event: Event | Signal | tuple[Event, ...], ctx: TurnContext[Any]
    ) -> asyncio.Future[Any]:
        """Call a `def` handler."""
        return self._threads.submit(handler.function, event, ctx)


class _Turn:
    """One turn under way. running: the handler that runs, or None between handlers."""

    __slots__ = ("_context", "_ctx", "_event", "_obeyed", "_result", "_scope", "_task", "_turns", "_waits", "running")

    def __init__(
        self, turns: Turns, event: Event | Signal | tuple[Event, ...], ctx: TurnContext[Any], waits: Callable[[], None]
    ) -> None:
        self._turns = turns
        self._event = event
        self._ctx = ctx
        self._waits: Callable[[], None] | None = waits
        self.running: Handler | None = None
        # What a handler sets lives as long as its turn; the worker's own context stays as it was.
        self._context = contextvars.copy_context()
        if ctx.joins is not None:
            self._context.run(ctx.joins.enter)
        # The loop is named because finding out which one runs costs a system call.
        task = asyncio.current_task(ctx.home.loop)
        assert task is not None
        self._task = task
        self._obeyed = 0
        self._result: Any = None
        self._scope: asyncio.Timeout | None = None
        ctx.running = self

    @property
    def told_to_stop(self) -> bool:
        """The task was cancelled, and not by its own handler."""
        return self._task.cancelling() > 0

    def begin(self, handler: Handler) -> Awaitable[None] | None:
        """Start one handler. Returns None if it is at its end already, else what to await until its end or deadline."""
        self.running = handler
        if handler.threaded:
            return self._call_in_thread(handler)
        self._allow(handler)
        return self._begin(handler.function(self._seen_by(handler), self._ctx), handler.name)

    def _seen_by(self, handler: Handler) -> Event | Signal | tuple[Event, ...]:
        event = self._event
        if handler.batch is not None and isinstance(event, Event):
            return (event,)  # others want it too
        return event

    async def through(self, middlewares: tuple[Middleware, ...], handlers: tuple[Handler, ...]) -> None:
        """Run the handlers inside the middlewares, the first outermost."""
        if not middlewares:
            for handler in handlers:
                rest = self.begin(handler)
                if rest is not None:
                    await rest
                self.running = None
            return
        around = contextlib.asynccontextmanager(middlewares[0])(self._event, self._ctx)
        name = getattr(middlewares[0], "__qualname__", "middleware")
        await self._bounded(_entered(around), name)
        try:
            await self.through(middlewares[1:], handlers)
        except (Exception, asyncio.CancelledError) as error:
            if not await self._bounded(_left(around, error), name):
                raise
        else:
            await self._bounded(_left(around, None), name)

    async def _bounded(self, coroutine: Coroutine[Any, Any, Any], name: str) -> Any:
        self._allow(None)
        rest = self._begin(coroutine, name)
        return self._result if rest is None else await rest

    def _allow(self, handler: Handler | None) -> None:
        timeout_s = self._turns.timeout_of(handler)
        self._ctx.allow(time.monotonic(), timeout_s, self._turns.ceiling_of(timeout_s))

    def put_off(self) -> None:
        """See context.Running."""
        if self._scope is not None and not self._scope.expired():
            # The loop is named because finding out which one runs costs a system call.
            self._scope.reschedule(self._ctx.home.loop.time() + self._ctx.deadline_at - time.monotonic())

    @property
    def is_over(self) -> bool:
        """What runs has been cancelled for good: its deadline has passed, or everything stops."""
        return self._turns.stopping or (self._scope is not None and self._scope.expired())

    async def _call_in_thread(self, handler: Handler) -> None:
        self._allow(handler)
        future = self._context.run(self._turns.in_thread, handler, self._seen_by(handler), self._ctx)
        self._gives_up_the_loop()
        # The deadline may be put off while we wait for it.
        while not future.done() and (remaining_s := self._ctx.deadline_at - time.monotonic()) > 0:
            await asyncio.wait((future,), timeout=remaining_s)
        if not future.done():
            self._ctx.end()
            raise DeadlinePassed(handler.name, self._ctx.allowed_s, overrun=future)
        result = future.result()
        if asyncio.iscoroutine(result):
            result.close()
            raise TypeError(f"{handler.name} returned a coroutine; make it `async def`")

    def _begin(self, coroutine: Coroutine[Any, Any, Any], name: str) -> Awaitable[Any] | None:
        """Run its first step. Returns None if that was all, with `_result`."""
        failure: BaseException | None = None
        waited = None
        try:
            waited = self._context.run(coroutine.send, None)
        except StopIteration as end:
            # Nobody else runs during a step, so that a cancellation that appeared in it is the handler's own.
            if self._task.cancelling() == self._obeyed:
                self._result = end.value
                return None
        except BaseException as error:
            if self._task.cancelling() == self._obeyed:
                raise
            failure = error
        else:
            return self._rest(_Steps(self, self._context, self._task, coroutine, waited, self._obeyed, name), name)
        return self._ended(self._task.cancelling() - self._obeyed, failure, name)

    async def _rest(self, steps: _Steps, name: str) -> Any:
        self._gives_up_the_loop()
        scope = asyncio.timeout(self._ctx.deadline_at - time.monotonic())
        result: Any = None
        failure: BaseException | None = None
        try:
            async with scope:
                self._scope = scope
                result = await steps
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            failure = error
        finally:
            self._scope = None
        if scope.expired() and (failure is None or isinstance(failure, (TimeoutError, asyncio.CancelledError))):
            # Even if it caught its own cancellation and returned: too late all the same.
            failure = DeadlinePassed(name, self._ctx.allowed_s)
        if self._task.cancelling() > self._obeyed:
            # What did not appear in a step came from outside.
            await self._ended(min(steps.own_cancels, self._task.cancelling() - self._obeyed), failure, name)
        if failure is not None:
            raise failure
        return result

    async def _ended(self, own_cancels: int, failure: BaseException | None, name: str) -> None:
        """A coroutine has ended in a task that was cancelled meanwhile: so often by itself."""
        if own_cancels:
            await self._live_on(own_cancels)
        self._obeyed = self._task.cancelling()
        if own_cancels and not self._obeyed and (failure is None or isinstance(failure, asyncio.CancelledError)):
            raise CancelledItself(name) from failure
        if failure is not None:
            raise failure

    async def _live_on(self, own_cancels: int) -> None:
        """Undo cancellations of this task by its own handler.

        Uncancelling alone lowers the count, but (before Python 3.13) leaves the cancellation pending, to strike
        wherever the task waits next. So it is met here.
        """
        self._gives_up_the_loop()
        for _ in range(own_cancels):
            self._task.uncancel()
        before = self._task.cancelling()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        if self._task.cancelling() > before:  # somebody else's came meanwhile, and was met together with ours
            raise asyncio.CancelledError

    def _gives_up_the_loop(self) -> None:
        if self._waits is not None:
            self._waits()
            self._waits = None


class _Steps:
    """What is left of a coroutine that was started by hand and now waits for `waited`, to be awaited.

    One that goes on although it was cancelled for good is closed after a moment, and if it does not mind that either,
    left behind: a lane, or the end of the process, must not wait for it.

    own_cancels: how often it cancelled the task that it runs in.
    """

    __slots__ = ("_context", "_coroutine", "_doom", "_left", "_name", "_task", "_turn", "_waited", "own_cancels")

    def __init__(
        self,
        turn: _Turn,
        context: contextvars.Context,
        task: asyncio.Task[Any],
        coroutine: Coroutine[Any, Any, Any],
        waited: Any,
        cancels_before: int,
        name: str,
    ) -> None:
        self._turn = turn
        self._name = name
        self._doom: asyncio.TimerHandle | None = None
        self._left = False
        self._context = context
        self._task = task
        self._coroutine = coroutine
        self._waited = waited
        self.own_cancels = task.cancelling() - cancels_before

    def __await__(self) -> Generator[Any, Any, Any]:
        run, cancelling, waited = self._context.run, self._task.cancelling, self._waited
        send, throw = self._coroutine.send, self._coroutine.throw
        cancels = cancelling()
        try:
            while True:
                try:
                    answer = yield waited
                except BaseException as error:
                    # A cancellation from outside always comes this way.
                    cancels = cancelling()
                    if isinstance(error, GeneratorExit):
                        self._coroutine.close()
                        raise
                    if self._left:
                        self._task.uncancel()
                        cancels = cancelling()
                        self._close()
                        raise
                    waited = run(throw, error)
                    if self._doom is None and self._turn.is_over:
                        self._doom = asyncio.get_running_loop().call_later(_CLEANUP_S, self._leave)
                else:
                    waited = run(send, answer)
                if cancelling() != cancels:
                    self.own_cancels += max(0, cancelling() - cancels)
                    cancels = cancelling()
        except StopIteration as end:
            return end.value
        finally:
            self.own_cancels += max(0, cancelling() - cancels)
            if self._doom is not None:
                self._doom.cancel()

    def _leave(self) -> None:
        """It had its time to clean up."""
        self._left = True
        self._task.cancel()

    def _close(self) -> None:
        log.error("%s ignores that it was cancelled", self._name)
        with contextlib.suppress(RuntimeError):  # it ignores that it is closed, too
            self._context.run(self._coroutine.close)


async def _entered(around: contextlib.AbstractAsyncContextManager[None]) -> None:
    await around.__aenter__()


async def _left(around: contextlib.AbstractAsyncContextManager[None], error: BaseException | None) -> bool:
    if error is None:
        return bool(await around.__aexit__(None, None, None))
    return bool(await around.__aexit__(type(error), error, error.__traceback__))
