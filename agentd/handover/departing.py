"""The process that hands over: its turns run on here, what they read and what they end with is the successor's.

    serving ── accepted ──> holding ── Released ──> undecided ── Taken ──> departed
       ^                       │                        │
       └───── CalledOff ───────┴── the line ended ──────┘

Always true: from `Released` on nothing here touches the journal, unless it was taken back. Whatever a turn asks for
while it is undecided who has the journal waits for that.
Not here: connections and senders (the daemon ends them first), what a turn leads to (the successor).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec

from agentd.core.events import Send, Sent
from agentd.dispatcher import Dispatcher, Turn
from agentd.errors import AgentdError
from agentd.handover import messages
from agentd.handover.line import Line
from agentd.host.calls import WorkerDied
from agentd.host.context import Owner, TurnContext
from agentd.host.faults import made_again, taken_apart
from agentd.host.pipe import FrameTooLarge
from agentd.host.shipped import TurnOut
from agentd.host.turns import DeadlinePassed, Failure
from agentd.journal.sqlite import SqliteJournal

log = logging.getLogger("agentd.handover")

_HOLD_S = 2.0  # for commits under way and records being read; turns are not waited for
_GONE_S = 2.0  # for the lock of a process that was killed
_TAKE_S = 60.0  # for the successor to open a journal of any size
_SERVE_S = 60.0  # for it to begin to serve: it reads where every lane stands before
_HEARD_S = 5.0  # for it to tell that it knows how the last turn ended

_decode = msgspec.msgpack.Decoder(messages.ToPredecessor).decode


class SuccessorLost(AgentdError):
    """The process that took over has gone while turns of ours were open: they run again, with whoever starts next."""


class Departure:
    """One hand-over, from the request on. successor: its pid. serves: done once it runs.

    `connect`, then `hand_over`; if that gives True, `drain`.
    """

    def __init__(self, successor: int) -> None:
        loop = asyncio.get_running_loop()
        self.successor = successor
        self.serves: asyncio.Future[None] = loop.create_future()
        self._line = Line(_decode, self._take)
        self._taken: asyncio.Future[None] = loop.create_future()
        self._decided: asyncio.Future[bool] = loop.create_future()
        self._ids: dict[TurnContext[Any] | asyncio.Future[Any], int] = {}
        self._owners: dict[TurnContext[Any], Owner | None] = {}
        self._noted: dict[TurnContext[Any], bytes] = {}
        self._open: set[int] = set()
        self._unheard: set[int] = set()
        self._all_heard = asyncio.Event()
        self._asks: dict[int, asyncio.Future[bytes | None]] = {}
        self._numbers = itertools.count(1)

    @property
    def open(self) -> int:
        """Turns that run on here."""
        return len(self._open)

    async def connect(self, path: str) -> None:
        """Connect to where the successor listens. Raises OSError."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self._line, path)

    def forget(self) -> None:
        """Nothing was begun: the successor is told as its answer."""
        self._line.close()

    def call_off(self, why: str) -> None:
        """The journal stays here."""
        self._line.tell(messages.CalledOff(why))
        self._line.close()

    # --- the journal changes hands

    async def hand_over(self, dispatcher: Dispatcher, journal: SqliteJournal, on_moved: Callable[[], None]) -> bool:
        """Let the journal go. on_moved: from then on nothing may be asked of it.

        False if it is here again: everything goes on as before, once connections and senders have been started anew.
        Raises JournalError, and SuccessorLost if nobody can tell whose it is.
        """
        if self._line.ended.done():
            log.warning("the process that wanted to take over is gone")
            return False
        try:
            # What connections and senders have left behind is told to the dispatcher when it is on disk: none of it may
            # come after the journal has gone.
            await asyncio.wait_for(asyncio.shield(journal.commit()), _HOLD_S)
            await dispatcher.hold(_HOLD_S)
        except TimeoutError:
            self.call_off("the disk takes no commits; see: agentd doctor")
            return False
        # Nothing may come between the last look of `hold` and this.
        turns = dispatcher.hand_over(self)
        self._list(turns)
        on_moved()
        await journal.close()
        self._line.tell(messages.Released([(self._ids[each], turn) for each, turn in turns.items()]))
        either: list[asyncio.Future[None]] = [self._taken, self._line.ended]
        await asyncio.wait(either, timeout=_TAKE_S, return_when=asyncio.FIRST_COMPLETED)
        if self._taken.done():
            self._decide(True)
            log.info("handed over; %d turns run on here", len(turns))
            return True
        if self._line.broken or not self._line.ended.done():
            raise SuccessorLost(
                f"the process that takes over has not said within {_TAKE_S:g} s that it has the journal"
            )
        log.warning("the process that wanted to take over has ended before it could; this one goes on")
        await journal.open(checked=True, wait_s=_GONE_S)
        for ctx, owner in self._owners.items():
            ctx.owner = owner
        self._decide(False)
        dispatcher.take_back()
        return False

    def _list(self, turns: dict[TurnContext[Any] | asyncio.Future[Any], Turn]) -> None:
        for each in turns:
            id_ = self._ids[each] = next(self._numbers)
            self._open.add(id_)
            self._unheard.add(id_)
            if isinstance(each, TurnContext):
                self._owners[each] = each.owner
                if each.owner is not None:
                    each.owner = self
            else:
                each.add_done_callback(partial(self._overrun_ended, id_))

    def _decide(self, taken: bool) -> None:
        self._decided.set_result(taken)
        noted, self._noted = self._noted, {}
        for ctx, progress in noted.items():
            if taken:
                self._tell(messages.Progressed(self._ids[ctx], progress))
            elif ctx.owner is not None:
                ctx.owner.got_on(ctx, progress)

    async def decided(self) -> bool:
        """Whether the successor has the journal, once that is known."""
        return await asyncio.shield(self._decided)

    # --- turns: see dispatcher.handing.Successor and host.context.Owner

    async def takes(self, ctx: TurnContext[Any], failure: Failure | None) -> bool:
        """A turn has ended."""
        if not await self.decided():
            return False
        id_ = self._ids[ctx]
        if failure is None:
            self._end(messages.Ended(id_, TurnOut.of(ctx, None, ()), ""))
        elif isinstance(failure.error, WorkerDied):
            self._end(messages.GaveBack(id_))
        else:
            error, handler = failure
            overrun = error.overrun if isinstance(error, DeadlinePassed) else None
            out = TurnOut(fault=taken_apart(error), overruns=overrun is not None, said=ctx.said)
            self._end(messages.Ended(id_, out, handler.name if handler is not None else ""))
            if overrun is not None:
                self._open.add(id_)
                overrun.add_done_callback(partial(self._overrun_ended, id_))
        return True

    def _end(self, message: messages.Ended | messages.GaveBack) -> None:
        if message.id not in self._open:  # declined, or given back
            return
        self._open.discard(message.id)
        try:
            self._line.tell(message)
        except FrameTooLarge as error:
            log.error("a turn cannot be handed over, and runs again: %s", error)
            self._line.tell(messages.GaveBack(message.id))

    def _overrun_ended(self, id_: int, overrun: asyncio.Future[Any]) -> None:
        self._open.discard(id_)
        if self._decided.done() and self._decided.result():
            self._tell(messages.OverrunEnded(id_))
        elif not self._decided.done():
            self._decided.add_done_callback(lambda _: self._overrun_ended(id_, overrun))

    def got_on(self, ctx: TurnContext[Any], noted: bytes) -> None:
        """It told `progress` this."""
        if self._decided.done():
            self._tell(messages.Progressed(self._ids[ctx], noted))
        else:
            self._noted[ctx] = noted

    async def says_now(self, ctx: TurnContext[Any]) -> None:
        """It is about to say something at once."""
        if await self.decided():
            await self._ask(lambda ask: messages.SaysNow(ask, self._ids[ctx]))
        elif ctx.owner is not None:
            await ctx.owner.says_now(ctx)

    # --- what turns ask

    async def state_get(self, plugin: str, conversation: int, key: str) -> bytes | None:
        """A plugin's value, as the successor knows it."""
        return await self._ask(lambda ask: messages.AskState(ask, plugin, conversation, key))

    async def send_now(self, send: Send) -> Sent:
        """Have the successor send this. Raises NotSent."""
        answer = await self._ask(lambda ask: messages.AskSend(ask, msgspec.json.encode(send)))
        return msgspec.json.decode(answer or b"null", type=Sent)

    async def _ask(self, question: Callable[[int], msgspec.Struct]) -> bytes | None:
        if self._line.ended.done():
            raise _lost()
        number = next(self._numbers)
        answer = self._asks[number] = asyncio.get_running_loop().create_future()
        self._tell(question(number))
        try:
            await asyncio.wait((answer, self._line.ended), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise _lost()
            value: bytes | None = await answer
            return value
        finally:
            del self._asks[number]

    def _tell(self, message: msgspec.Struct) -> None:
        self._line.tell(message)

    def _take(self, message: messages.ToPredecessor) -> None:
        match message:
            case messages.Taken():
                self._taken.set_result(None)
            case messages.Serves():
                self.serves.set_result(None)
            case messages.Answer():
                answer = self._asks.get(message.ask)
                if answer is None or answer.done():
                    return
                if message.fault is not None:
                    answer.set_exception(made_again(message.fault))
                else:
                    answer.set_result(message.value)
            case messages.Heard() | messages.Declined():
                self._open.discard(message.id)
                self._unheard.discard(message.id)
                if not self._unheard:
                    self._all_heard.set()

    # --- the end

    async def drain(self, dispatcher: Dispatcher, timeout_s: float, hurry: Awaitable[object]) -> None:
        """Let turns end for so long, or until told to hurry; give back what runs on. Returns when all that is told.

        Raises SuccessorLost.
        """
        deadline = time.monotonic() + timeout_s
        hurried = asyncio.ensure_future(hurry)
        ending = asyncio.ensure_future(self._until_ended(dispatcher, timeout_s))
        await asyncio.wait((ending, hurried, self._line.ended), return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            ending.cancel()
            await asyncio.wait((ending,))
            await dispatcher.stop(0.0)
        hurried.cancel()
        for id_ in sorted(self._open):
            self._tell(messages.GaveBack(id_))
        if self._unheard:
            heard = asyncio.ensure_future(self._all_heard.wait())
            await asyncio.wait((heard, self._line.ended), timeout=_HEARD_S, return_when=asyncio.FIRST_COMPLETED)
            heard.cancel()
        # The control socket is answered here until it is there.
        either: list[asyncio.Future[None]] = [self.serves, self._line.ended]
        await asyncio.wait(either, timeout=_SERVE_S, return_when=asyncio.FIRST_COMPLETED)
        has_gone = self._line.ended.done() and not self.serves.done()
        self._line.close()
        if self._unheard or has_gone:
            raise _lost()
        log.info("every turn has ended, or was given back, after %.1f s", timeout_s - (deadline - time.monotonic()))

    async def _until_ended(self, dispatcher: Dispatcher, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        await dispatcher.stop(timeout_s)
        overruns = [each for each in self._ids if isinstance(each, asyncio.Future) and not each.done()]
        if overruns:
            await asyncio.wait(overruns, timeout=max(0.0, deadline - time.monotonic()))


def _lost() -> SuccessorLost:
    return SuccessorLost("the process that took over has ended; what ran here runs again with the next that starts")


class Whereabouts:
    """What turns need of the journal and the outbox, wherever these are. state_get, send_now: while they are here."""

    def __init__(
        self,
        state_get: Callable[[str, int, str], Awaitable[bytes | None]],
        send_now: Callable[[Send], Awaitable[Sent]],
    ) -> None:
        self._state_get = state_get
        self._send_now = send_now
        self._moved: asyncio.Future[Departure] = asyncio.get_running_loop().create_future()

    def moved(self, departure: Departure) -> None:
        """Ask there from now on."""
        self._moved.set_result(departure)

    def back(self) -> None:
        """They are here again."""
        if self._moved.done():
            self._moved = asyncio.get_running_loop().create_future()

    async def state_get(self, plugin: str, conversation: int, key: str) -> bytes | None:
        """A plugin's value."""
        if self._moved.done() and await (departure := self._moved.result()).decided():
            return await departure.state_get(plugin, conversation, key)
        return await self._state_get(plugin, conversation, key)

    async def send_now(self, send: Send) -> Sent:
        """Send, and tell what became of it. What is under way when it moves is asked for there: its key is the same.

        Raises NotSent.
        """
        moved = self._moved
        if not moved.done():
            here = asyncio.ensure_future(self._send_now(send))
            try:
                await asyncio.wait((here, moved), return_when=asyncio.FIRST_COMPLETED)
                if not moved.done() or _succeeded(here):
                    return here.result()
            finally:
                here.cancel()
        if await (departure := moved.result()).decided():
            return await departure.send_now(send)
        return await self._send_now(send)


def _succeeded(here: asyncio.Future[Sent]) -> bool:
    return here.done() and not here.cancelled() and here.exception() is None
