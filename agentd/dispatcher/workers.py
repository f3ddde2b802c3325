"""The tasks that handlers run in.

At any time at most one worker, the taker, looks for work. It runs handlers one after the other in its own task; only
when one of them waits does it hand the taking on to another worker, which is woken or born then. So work that never
waits costs no switch between tasks, and work that waits never keeps other work from starting.

Always true: at most `limit` workers; none is born while an idle one is there. The taker gives the loop its turn at
least every slice, however busy it is.
Not here: what the work is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

log = logging.getLogger("agentd.dispatcher")

W = TypeVar("W")

_SLICE_S = 0.005  # handlers that never wait run this long before sockets and timers get their turn
_CANCEL_S = 3.0  # how long cancelled work may take to end: longer than host.turns waits for a handler's cleaning up


class Workers(Generic[W]):
    """A pool that grows to `limit` tasks.

    take: the next piece of work, or None. carry_out: do it; calls `waits` before it first gives up the loop.
    on_rest: called when there is nothing to take.
    """

    def __init__(
        self,
        limit: int,
        take: Callable[[], W | None],
        carry_out: Callable[[W, Callable[[], None]], Awaitable[None]],
        on_rest: Callable[[], None],
    ) -> None:
        self.running = 0
        self.limit = limit
        self._take = take
        self._carry_out = carry_out
        self._on_rest = on_rest
        self._idle: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._has_taker = False
        self._stopping = False

    def start(self, group: asyncio.TaskGroup) -> None:
        """Workers are born in this group from now on."""
        self._group = group

    def wake(self) -> None:
        """There may be work: see to it that somebody takes it."""
        if self._has_taker or self._stopping or self._group is None:
            return
        while self._idle:
            resting = self._idle.pop()
            if not resting.done():
                resting.set_result(None)
                self._has_taker = True
                return
        if len(self._tasks) < self.limit:
            task = self._group.create_task(self._work(), name=f"handlers-{len(self._tasks)}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._has_taker = True

    async def stop(self, timeout_s: float, before_cancel: Callable[[], None]) -> None:
        """Take nothing new; let what runs finish for so long, then cancel it."""
        self._stopping = True
        for resting in self._idle:
            if not resting.done():
                resting.set_result(None)
        if not self._tasks:
            return
        _, late = await asyncio.wait(set(self._tasks), timeout=timeout_s)
        if late:
            before_cancel()
        for task in late:
            task.cancel()
        if late:
            _, stuck = await asyncio.wait(late, timeout=_CANCEL_S)
            if stuck:
                log.error("%d handlers ignore that they were cancelled", len(stuck))

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            await self._work_on()
            if self._stopping:
                return
            resting = loop.create_future()
            self._idle.append(resting)
            await resting

    async def _work_on(self) -> None:
        """Be the taker until there is nothing to take, or somebody else has become it."""
        waited = False

        def waits() -> None:
            nonlocal waited
            waited = True
            self._has_taker = False
            self.wake()

        task = asyncio.current_task()
        assert task is not None
        slice_ends = time.monotonic() + _SLICE_S
        while not self._stopping and (work := self._take()) is not None:
            self.running += 1
            try:
                await self._carry_out(work, waits)
            finally:
                self.running -= 1
            if waited:
                if task.cancelling() and not self._stopping:
                    # The handler swallowed what was meant for us: the task group that we live in ends.
                    raise asyncio.CancelledError
                if self._has_taker:
                    return
                self._has_taker = True
                waited = False
            if time.monotonic() >= slice_ends:
                await asyncio.sleep(0)
                slice_ends = time.monotonic() + _SLICE_S
        self._has_taker = False
        self._on_rest()
