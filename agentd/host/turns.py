"""Runs one turn: the handlers of one plugin that want one event, in order, inside the plugin's middlewares.

A coroutine is started by hand. Most handlers that only decide and stage return at once, and cost neither a timer nor
a trip through the loop; only one that truly waits is given a deadline and awaited.

Always true: a handler runs in its caller's task, or in one of the plugin's threads. `waits` is called at most once, the
first time that the turn gives up the loop. After the turn its context stages nothing.
Not here: what follows from a failure (the dispatcher, core/retry.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import Any, NamedTuple

from agentd.core.events import Event, Signal
from agentd.host.context import TurnContext
from agentd.host.handlers import Handler
from agentd.host.threads import Threads

Middleware = Callable[[Any, Any], AsyncIterator[None]]


class DeadlinePassed(Exception):
    """A handler did not return in time. overrun: its thread's future, if it runs on, since no thread can be stopped."""

    def __init__(self, name: str, timeout_s: float, overrun: asyncio.Future[Any] | None = None) -> None:
        self.overrun = overrun
        super().__init__(f"{name} did not return within {timeout_s:g} s")


class Failure(NamedTuple):
    """A turn that left nothing behind. handler: which one failed, or None for filters and middlewares."""

    error: BaseException
    handler: Handler | None


class Turns:
    """How one plugin's turns run. timeout_s: the deadline of a handler that names none, and of a middleware's step."""

    def __init__(self, threads: Threads, middlewares: tuple[Middleware, ...], timeout_s: float) -> None:
        self._threads = threads
        self._middlewares = middlewares
        self._timeout_s = timeout_s

    async def run(
        self,
        event: Event | Signal,
        handlers: tuple[Handler, ...],
        ctx: TurnContext[Any],
        waits: Callable[[], None],
    ) -> Failure | None:
        """Call every handler with the event. Returns what failed, or None.

        Raises CancelledError only if the caller's task was cancelled; a handler's own is a failure like any other.
        """
        turn = _Turn(self, event, ctx, waits)
        try:
            if self._middlewares:
                await turn.through(self._middlewares, handlers)
            else:
                for handler in handlers:
                    await turn.call(handler)
        except (Exception, SystemExit) as error:
            return Failure(error, turn.running)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return Failure(error, turn.running)
        finally:
            ctx.end()
        return None

    def timeout_of(self, handler: Handler | None) -> float:
        """Seconds that a handler may take."""
        own = handler.timeout_s if handler is not None else None
        return self._timeout_s if own is None else own

    def in_thread(self, handler: Handler, event: Event | Signal, ctx: TurnContext[Any]) -> asyncio.Future[Any]:
        """Call a `def` handler."""
        return self._threads.submit(handler.function, event, ctx)


class _Turn:
    """One turn under way. running: the handler that runs, or None between handlers."""

    __slots__ = ("_ctx", "_event", "_turns", "_waits", "running")

    def __init__(self, turns: Turns, event: Event | Signal, ctx: TurnContext[Any], waits: Callable[[], None]) -> None:
        self._turns = turns
        self._event = event
        self._ctx = ctx
        self._waits: Callable[[], None] | None = waits
        self.running: Handler | None = None

    async def call(self, handler: Handler) -> None:
        """Run one handler to its end or its deadline."""
        self.running = handler
        if handler.threaded:
            await self._call_in_thread(handler)
        else:
            timeout_s = self._begin(handler)
            await self._bounded(handler.function(self._event, self._ctx), handler.name, timeout_s)
        self.running = None

    async def through(self, middlewares: tuple[Middleware, ...], handlers: tuple[Handler, ...]) -> None:
        """Run the handlers inside the middlewares, the first outermost."""
        if not middlewares:
            for handler in handlers:
                await self.call(handler)
            return
        around = contextlib.asynccontextmanager(middlewares[0])(self._event, self._ctx)
        name = getattr(middlewares[0], "__qualname__", "middleware")
        await self._bounded(_entered(around), name, self._begin(None))
        try:
            await self.through(middlewares[1:], handlers)
        except (Exception, asyncio.CancelledError) as error:
            if not await self._bounded(_left(around, error), name, self._begin(None)):
                raise
        else:
            await self._bounded(_left(around, None), name, self._begin(None))

    def _begin(self, handler: Handler | None) -> float:
        timeout_s = self._turns.timeout_of(handler)
        self._ctx.deadline_at = time.monotonic() + timeout_s
        return timeout_s

    async def _call_in_thread(self, handler: Handler) -> None:
        timeout_s = self._begin(handler)
        future = self._turns.in_thread(handler, self._event, self._ctx)
        self._gives_up_the_loop()
        done, _ = await asyncio.wait((future,), timeout=timeout_s)
        if not done:
            self._ctx.end()
            raise DeadlinePassed(handler.name, timeout_s, overrun=future)
        result = future.result()
        if asyncio.iscoroutine(result):
            result.close()
            raise TypeError(f"{handler.name} returned a coroutine; make it `async def`")

    async def _bounded(self, coroutine: Coroutine[Any, Any, Any], name: str, timeout_s: float) -> Any:
        try:
            waited = coroutine.send(None)
        except StopIteration as end:
            return end.value
        self._gives_up_the_loop()
        scope = asyncio.timeout(self._ctx.deadline_at - time.monotonic())
        try:
            async with scope:
                result = await _rest_of(coroutine, waited)
        except TimeoutError as error:
            if scope.expired():
                raise DeadlinePassed(name, timeout_s) from error
            raise
        if scope.expired():  # it caught its own cancellation and returned: too late all the same
            raise DeadlinePassed(name, timeout_s)
        return result

    def _gives_up_the_loop(self) -> None:
        if self._waits is not None:
            self._waits()
            self._waits = None


@types.coroutine
def _rest_of(coroutine: Coroutine[Any, Any, Any], waited: Any) -> Generator[Any, Any, Any]:
    """Await what is left of a coroutine that was started by hand and now waits for `waited`."""
    try:
        while True:
            try:
                answer = yield waited
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:
                waited = coroutine.throw(error)
            else:
                waited = coroutine.send(answer)
    except StopIteration as end:
        return end.value


async def _entered(around: contextlib.AbstractAsyncContextManager[None]) -> None:
    await around.__aenter__()


async def _left(around: contextlib.AbstractAsyncContextManager[None], error: BaseException | None) -> bool:
    if error is None:
        return bool(await around.__aexit__(None, None, None))
    return bool(await around.__aexit__(type(error), error, error.__traceback__))
