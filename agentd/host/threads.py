"""Threads for handlers that block.

The standard library's pool joins its threads when the interpreter ends, so that one handler which never returns would
keep the daemon from ever stopping. These threads are daemons and are left behind.

Always true: at most `limit` threads, born when needed. A call's future ends on the loop it was submitted from.
Not here: deadlines. A thread cannot be stopped; whoever gave up on it keeps its future and knows when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class Threads:
    """A pool of daemon threads, used from one event loop."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._threads = 0
        self._busy = 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()

    def submit(self, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Call the function in a thread, in a copy of this context. The future holds what it returned or raised."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._busy += 1
        future.add_done_callback(self._ended)
        context = contextvars.copy_context()
        if self._busy > self._threads and self._threads < self._limit:
            self._threads += 1
            threading.Thread(target=self._serve, name=f"{self._name}-{self._threads}", daemon=True).start()
        self._jobs.put((lambda: context.run(function, *args), loop, future))
        return future

    def close(self) -> None:
        """Let idle threads end now, and busy ones when they have returned."""
        for _ in range(self._threads):
            self._jobs.put(None)
        self._threads = 0

    def _ended(self, _: asyncio.Future[Any]) -> None:
        self._busy -= 1

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, loop, future = job
            result: Any = None
            failure: BaseException | None = None
            try:
                result = call()
            except BaseException as error:  # SystemExit too: a plugin does not end the daemon
                failure = error
            # A loop that is closed by now belongs to a daemon that has stopped: nobody waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, future, result, failure)


def _settle(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(result)
    elif isinstance(failure, StopIteration):  # which a future cannot hold
        future.set_exception(RuntimeError(f"handler raised {failure!r}"))
    else:
        future.set_exception(failure)
