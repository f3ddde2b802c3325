"""The process that takes over: asks the one that runs, and hears of the turns that go on there.

Always true: nothing is written to the journal before `taken` has been told. Of a turn that was not on the list nothing
is kept, and of one that was, its end is heard once. A line that ends gives every open turn back.
Not here: opening the journal and starting everything (the daemon), the fates of those turns (dispatcher/predecessor).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from agentd import __version__
from agentd.control.api import bind
from agentd.control.client import Client
from agentd.control.refusal import ControlError, SilentError, UnreachableError
from agentd.core.events import Send, Sent
from agentd.dispatcher import Elsewhere, Over
from agentd.errors import AgentdError
from agentd.handover import messages
from agentd.handover.line import Line
from agentd.host.faults import taken_apart

log = logging.getLogger("agentd.handover")

_SOCKET = "hand-over.{pid}.sock"

_GONE_S = 2.0  # from the end of a line to that of the process
_GONE_LOOK_S = 0.01
_RELEASE_S = 30.0  # for connections to close, and for the journal; far more than either takes
_UCRED = struct.Struct("3i")  # pid, uid, gid, as SO_PEERCRED gives them

StateGet = Callable[[str, int, str], Awaitable["bytes | None"]]

_decode = msgspec.msgpack.Decoder(messages.ToSuccessor).decode


class NotHandedOver(AgentdError):
    """The process that runs keeps everything, or nobody can tell; the text says why, and what to do."""


class Arrival:
    """One take-over. `ask` makes it; then the journal may be opened; `taken`; `serves`; `close` in the end.

    turns: what runs on in the process before.
    """

    def __init__(self) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self.turns: list[Elsewhere] = []
        self._line = Line(_decode, self._take)
        self._released: asyncio.Future[None] = loop.create_future()
        self._by_id: dict[int, Elsewhere] = {}
        self._process: int | None = None
        self._overruns: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._answers: asyncio.Future[tuple[StateGet, Callable[[Send], Awaitable[Sent]]]] = loop.create_future()
        self._line.ended.add_done_callback(self._lost)

    @classmethod
    async def ask(cls, control: Path, state: Path, tables: int, manager: str) -> Arrival | None:
        """Have the process whose control socket this is hand over. tables: which version of the journal we know.
        manager: where the service manager listens that looks after us, or "".

        Returns once its journal is free; None if no process answers there, or that process goes while it is asked.
        Raises NotHandedOver: that process goes on as if it had not been asked.
        """
        arrival = cls()
        path = state / _SOCKET.format(pid=os.getpid())
        _remove_stale(state)
        try:
            bound = bind(path)
        except OSError as error:
            raise NotHandedOver(f"{path} cannot be used: {error.strerror}") from error
        server = await asyncio.get_running_loop().create_unix_server(arrival._end_of_line, sock=bound)
        try:
            return arrival if await arrival._asked(control, path, tables, manager) else None
        except BaseException:
            arrival.close()
            raise
        finally:
            server.close()
            path.unlink(missing_ok=True)

    def _end_of_line(self) -> Line:
        # One connection is expected; whatever comes besides has an end of its own, which nobody looks at.
        return Line(_decode, lambda message: None) if self._line.opened.done() else self._line

    async def _asked(self, control: Path, path: Path, tables: int, manager: str) -> bool:
        wanted = {
            "protocol": messages.PROTOCOL,
            "tables": tables,
            "version": __version__,
            "pid": os.getpid(),
            "socket": str(path.absolute()),  # noqa: ASYNC240 -- no look at the disk
            "manager": manager,
        }
        try:
            accepted = await asyncio.to_thread(Client(control).hand_over, wanted)
        except SilentError as silent:
            # It may yet do so, and must not take us for one that has heard of it.
            raise NotHandedOver(f"the process that runs does not hand over: {silent}") from None
        except UnreachableError:
            return False
        except ControlError as refused:
            raise NotHandedOver(f"the process that runs does not hand over: {refused}") from None
        log.info("taking over from agentd %s, pid %d", accepted["version"], accepted["pid"])
        with contextlib.suppress(OSError):  # it has gone already, or is in another namespace: then nobody can tell
            self._process = os.pidfd_open(accepted["pid"])
        either: list[asyncio.Future[None]] = [self._released, self._line.ended]
        await asyncio.wait(either, timeout=_RELEASE_S, return_when=asyncio.FIRST_COMPLETED)
        if self._released.done():
            self._released.result()
            return True
        if await self._is_gone():
            log.warning("the process that was to hand over has gone")
            return False
        raise NotHandedOver(
            f"the process that runs has not handed over within {_RELEASE_S:g} s; see its log, and: agentd status"
        )

    # --- what the predecessor is told

    async def taken(self) -> None:
        """The journal is open here. Returns once that has left: before, nothing may be written to it.

        If the process that handed over has gone, nobody needs to be told. Raises NotHandedOver if that is not sure: it
        might take the journal back, and would not know what was written.
        """
        self._line.tell(messages.Taken())
        while self._line.unsent:
            await asyncio.sleep(0)
        if self._line.ended.done() and not await self._is_gone():
            raise NotHandedOver("the process that handed over does not listen any more; see its log, and start again")

    async def _is_gone(self) -> bool:
        """The process on the other end has ended, or does in a moment."""
        if self._process is None or not self._line.ended.done():
            return False
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        deadline = time.monotonic() + _GONE_S
        while not poll.poll(0):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_GONE_LOOK_S)
        return True

    def bound(self, timeout_s: float) -> None:
        """Do not let lanes wait for ever for a process that has stopped to move: let it go after so long."""
        self._loop.call_later(timeout_s, self._line.close)

    def answers(self, state_get: StateGet, send_now: Callable[[Send], Awaitable[Sent]]) -> None:
        """Answer from now on what those turns ask."""
        self._answers.set_result((state_get, send_now))

    def serves(self) -> None:
        """Everything runs here."""
        self._line.tell(messages.Serves())

    @property
    def open(self) -> int:
        """Turns that run on in the process before."""
        return sum(not each.over.done() for each in self.turns) + len(self._overruns)

    def close(self) -> None:
        """Hear nothing more."""
        for answer in self._answering:
            answer.cancel()
        self._line.close()
        if self._process is not None:
            os.close(self._process)
            self._process = None

    # --- what it tells

    def _take(self, message: messages.ToSuccessor) -> None:
        match message:
            case messages.Released():
                self._take_list(message)
            case messages.CalledOff():
                self._released.set_exception(NotHandedOver(f"the process that runs keeps everything: {message.why}"))
            case messages.Ended():
                self._ended(message)
            case messages.GaveBack():
                self._over(message.id, None)
            case messages.OverrunEnded():
                self._overrun_ended(message.id)
            case messages.Progressed():
                if (turn := self._by_id.get(message.id)) is not None:
                    turn.got_on(message.noted)
            case messages.SaysNow() | messages.AskSend() | messages.AskState():
                answer = asyncio.create_task(self._answer(message), name=f"answer {message.ask} to the predecessor")
                self._answering.add(answer)
                answer.add_done_callback(self._answering.discard)

    def _take_list(self, released: messages.Released) -> None:
        transport = self._line.opened.result()
        peer: socket.socket = transport.get_extra_info("socket")
        uid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
        if uid not in (0, os.geteuid()):
            self._line.close()
            return
        for id_, turn in released.turns:
            self._by_id[id_] = Elsewhere(turn, partial(self._decline, id_))
        self.turns = list(self._by_id.values())
        self._released.set_result(None)

    def _decline(self, id_: int) -> None:
        self._by_id[id_].ended(None)
        self._line.tell(messages.Declined(id_))

    def _ended(self, ended: messages.Ended) -> None:
        if (turn := self._by_id.get(ended.id)) is None or turn.over.done():
            return
        overrun = None
        if ended.out.overruns:
            overrun = self._overruns[ended.id] = asyncio.get_running_loop().create_future()
        self._over(ended.id, Over(ended.out, ended.handler, overrun))

    def _over(self, id_: int, over: Over | None) -> None:
        if over is None:
            self._overrun_ended(id_)
        if (turn := self._by_id.get(id_)) is not None:
            turn.ended(over)
            self._line.tell(messages.Heard(id_))

    def _overrun_ended(self, id_: int) -> None:
        overrun = self._overruns.pop(id_, None)
        if overrun is not None and not overrun.done():
            overrun.set_result(None)
        elif (turn := self._by_id.get(id_)) is not None and turn.turn.kind == "overrun":
            self._by_id[id_].ended(None)
        self._line.tell(messages.Heard(id_))

    async def _answer(self, ask: messages.SaysNow | messages.AskSend | messages.AskState) -> None:
        value: bytes | None = None
        try:
            state_get, send_now = await asyncio.shield(self._answers)
            match ask:
                case messages.SaysNow():
                    await self._by_id[ask.id].says_now()
                case messages.AskState():
                    value = await state_get(ask.plugin, ask.conversation, ask.key)
                case messages.AskSend():
                    if not self.open:
                        raise RuntimeError("this turn has ended; whatever a handler does, it does before it returns")
                    value = msgspec.json.encode(await send_now(msgspec.json.decode(ask.send, type=Send)))
        except Exception as error:
            self._line.tell(messages.Answer(ask.ask, fault=taken_apart(error)))
        else:
            self._line.tell(messages.Answer(ask.ask, value))

    def _lost(self, _: asyncio.Future[None]) -> None:
        given_back = 0
        for turn in self.turns:
            given_back += not turn.over.done()
            turn.ended(None)
        for id_ in list(self._overruns):
            self._overrun_ended(id_)
        if given_back:
            log.warning("the process before this one has gone: %d turns that ran there run again", given_back)


def _remove_stale(state: Path) -> None:
    """Remove the sockets of processes that were killed while they took over."""
    for path in state.glob(_SOCKET.format(pid="*")):
        pid = path.name.split(".")[1]
        if not Path(f"/proc/{pid}").exists():
            path.unlink(missing_ok=True)
