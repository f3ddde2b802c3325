"""The turns that a worker runs, from when it is told to when it has told their end, or is gone.

Always true: every call ends once: with its result, its failure, its deadline, or WorkerDied. A worker that does not
notice that a deadline passed is killed for it, and nobody is blamed but the call whose deadline it was. The same for a
thread that runs on past its deadline.
Not here: the worker (isolated.py), what a death leads to (the dispatcher).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from agentd.host.context import TurnContext
from agentd.host.handlers import Handler
from agentd.host.turns import DeadlinePassed, Failure


class WorkerDied(Exception):
    """The worker died while this event was handled, among others perhaps.

    how: it died. blamed: the daemon did not end it itself, so that this event may have been the reason. alone: nothing
    else ran.
    """

    def __init__(self, how: str, *, blamed: bool, alone: bool) -> None:
        self.how = how
        self.blamed = blamed
        self.alone = alone
        super().__init__(f"its worker process died while this event was handled: {how}")


class Bounds(NamedTuple):
    """How long the worker may take. each_s: one handler. whole_s: all steps of the turn. most_s: if it gets on."""

    each_s: float
    whole_s: float
    most_s: float


class Call:
    """A turn that the worker runs. ended: its failure, or None if it did its work. began_at: seconds of the loop."""

    __slots__ = ("allowance", "began_at", "bounds", "ctx", "ended", "handlers", "id")

    def __init__(
        self, id_: int, ctx: TurnContext[Any], handlers: tuple[Handler, ...], bounds: Bounds, began_at: float
    ) -> None:
        self.id = id_
        self.ctx = ctx
        self.handlers = handlers
        self.bounds = bounds
        self.began_at = began_at
        self.ended: asyncio.Future[Failure | None] = asyncio.get_running_loop().create_future()
        self.allowance: asyncio.TimerHandle | None = None

    @property
    def only_handler(self) -> Handler | None:
        """Whichever of several ran, only the worker knew."""
        return self.handlers[0] if len(self.handlers) == 1 else None


class _Overrun(NamedTuple):
    """A thread that its turn no longer waits for. over: when it has ended. allowance: when the worker is killed."""

    over: asyncio.Future[Any]
    allowance: asyncio.TimerHandle


class Calls:
    """Those of one plugin, over all its workers. kill: end the worker, for this reason.

    killed: the worker was told to end, for a reason that is known.
    """

    def __init__(self, plugin: str, grace_s: float, kill: Callable[[str], None]) -> None:
        self._plugin = plugin
        self._grace_s = grace_s
        self._kill_worker = kill
        self._loop = asyncio.get_running_loop()
        self._running: dict[int, Call] = {}
        self._overruns: dict[int, _Overrun] = {}
        self._numbers = itertools.count(1)
        self.killed = False

    def __len__(self) -> int:
        """How many run."""
        return len(self._running)

    def __getitem__(self, id_: int) -> Call | None:
        """A call that somebody still waits for."""
        call = self._running.get(id_)
        return None if call is None or call.ended.done() else call

    def begin(self, ctx: TurnContext[Any], handlers: tuple[Handler, ...], bounds: Bounds) -> Call:
        """A call to be told to the worker."""
        call = Call(next(self._numbers), ctx, handlers, bounds, self._loop.time())
        self._running[call.id] = call
        self._allow(call)
        return call

    def _allow(self, call: Call) -> None:
        if call.allowance is not None:
            call.allowance.cancel()
        until = min(self._loop.time() + call.bounds.whole_s, call.began_at + call.bounds.most_s)
        call.allowance = self._loop.call_at(until + self._grace_s, self._overdue, call)

    def got_on(self, call: Call, noted: bytes) -> None:
        """The worker has told its progress."""
        self._allow(call)
        call.ctx.progressed = noted
        if call.ctx.owner is not None:
            call.ctx.owner.got_on(call.ctx, noted)

    def forget(self, call: Call) -> None:
        """Nobody waits for it any more."""
        self._running.pop(call.id, None)
        if call.allowance is not None:
            call.allowance.cancel()

    def through(self, call: Call, failure: Failure | None) -> None:
        """The worker has told its end."""
        call.ended.set_result(failure)

    def overran(self, call: Call) -> asyncio.Future[Any]:
        """A thread of this call runs on, for as long as it is let. Returns when it has ended."""
        over: asyncio.Future[Any] = self._loop.create_future()
        why = "a thread of it did not end after its deadline"
        self._overruns[call.id] = _Overrun(over, self._loop.call_later(self._grace_s, self._kill, why))
        return over

    def overrun_ended(self, call_id: int) -> None:
        """That thread has ended."""
        overrun = self._overruns.pop(call_id, None)
        if overrun is not None:
            overrun.allowance.cancel()
            overrun.over.set_result(None)

    def end_all(self, how: str) -> None:
        """The worker is gone."""
        running = [call for call in self._running.values() if not call.ended.done()]
        blamed, self.killed = not self.killed, False
        # A thread that runs on may have been the reason as well.
        died = WorkerDied(how, blamed=blamed, alone=blamed and len(running) + len(self._overruns) == 1)
        for call in running:
            call.ended.set_result(Failure(died, call.only_handler))
        for call_id in list(self._overruns):
            self.overrun_ended(call_id)

    def _overdue(self, call: Call) -> None:
        """The worker has not even noticed that this call's deadline passed."""
        if call.ended.done() or self.killed:  # whatever waited behind another call may be without fault
            return
        handler = call.only_handler
        name = handler.name if handler is not None else f"a turn of {self._plugin}"
        call.ended.set_result(Failure(DeadlinePassed(name, call.bounds.each_s), handler))
        self._kill(f"it did not end a call by its deadline ({name})")

    def _kill(self, why: str) -> None:
        self.killed = True
        self._kill_worker(why)
