"""Live connections: the handshake, what clients say on the socket, pushes, and the drain after hello.ok.

A connection is registered for pushes before its drain starts, so a live message can overtake older drained ones, as
on the platform.

Always true: a message is pushed to every socket of every recipient, but for mutes, pauses and faults; nothing is pushed
twice on one connection unless a fault does it. Nothing awaits between storing a message and pushing it.
Not here: bytes and timers of one connection (connection.py), and what is pushed when (the routes and control.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

from agentd.hub.accounts import Account, Accounts
from agentd.hub.connection import Connection
from agentd.hub.conversations import Conversations
from agentd.hub.faults import Action, Fault, Faults, Point
from agentd.hub.frames import close_frame, text_frame
from agentd.hub.greeting import Guest, guest_by_header, guest_by_hello
from agentd.hub.mailbox import Mailbox, Stored
from agentd.hub.relations import Relations
from agentd.hub.settings import HubSettings
from agentd.wire.agentchat import types as wire
from agentd.wire.agentchat.types import CloseCode, FrameType

_MESSAGE_NEW = b'{"type":"message.new","payload":'
_REORDER_HOLD_S = 0.5
"""A frame that nothing overtakes goes out after this, or reordering would lose the last message."""
_BACKED_UP_BYTES = 1_048_576
_BACKED_UP_PAUSE_S = 0.002
_BACKED_UP_MAX_S = 10.0


class Sockets:
    """Every live connection of the hub. `frames_pushed`: `message.new` frames written, live and drained."""

    def __init__(
        self,
        settings: HubSettings,
        accounts: Accounts,
        relations: Relations,
        conversations: Conversations,
        mailbox: Mailbox,
        faults: Faults,
        counters: Counter[str],
    ) -> None:
        self._settings = settings
        self._accounts = accounts
        self._relations = relations
        self._conversations = conversations
        self._mailbox = mailbox
        self._faults = faults
        self._counters = counters
        self._by_agent: dict[int, list[Connection]] = {}
        self._greeting: set[asyncio.Transport] = set()
        self._flush_timer: asyncio.TimerHandle | None = None
        self._frame_waits: list[tuple[int, asyncio.Future[None]]] = []
        self._emptied: asyncio.Future[None] | None = None
        self.frames_pushed = 0
        self.presence_changed: Callable[[Account], None] = lambda account: None
        self.client_said: Callable[[Account, wire.ClientFrame], None] = lambda account, frame: None
        self.restart_wanted: Callable[[], None] = lambda: None

    # --- who is connected ---

    def of(self, account: Account) -> list[Connection]:
        """An agent's connections, oldest first."""
        return list(self._by_agent.get(account.number, ()))

    def count(self) -> int:
        """How many connections have been greeted and are still there."""
        return len(self.all())

    def all(self) -> list[Connection]:
        """Every connection that has been greeted."""
        return [connection for connections in self._by_agent.values() for connection in connections]

    def end_all(self, code: int, reason: str) -> None:
        """Close every connection; those that cannot be closed (frozen, or not yet named) are aborted."""
        for connection in self.all():
            if connection.is_open:
                connection.close(code, reason)
            else:
                connection.abort()
        for transport in list(self._greeting):
            transport.abort()

    async def until_empty(self) -> None:
        """Wait until no connection is left. Each ends by itself within the close timeout after `end_all`."""
        while self._by_agent:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    # --- pushing ---

    def push(self, messages: Sequence[Stored]) -> None:
        """Push stored messages to every socket of their recipients (and, if the hub echoes, of their sender)."""
        faulty = self._faults.any_at(Point.PUSH)
        batches: dict[Connection, list[bytes]] = {}
        for message in messages:
            frame = b""
            for recipient in self._listeners(message):
                for connection in self._by_agent.get(recipient, ()):
                    frame = frame or text_frame(_MESSAGE_NEW + message.payload + b"}")
                    if faulty:
                        self._emit(connection, Point.PUSH, message.conversation, message.seq, message.id, frame)
                    elif not connection.deaf:
                        batches.setdefault(connection, []).append(frame)
                        self._legacy_delivered(connection, message.id)
        for connection, frames in batches.items():
            self._write(connection, b"".join(frames), len(frames))

    def _listeners(self, message: Stored) -> list[int]:
        listeners = [
            number
            for number in message.recipients
            if number in self._by_agent
            and self._accounts.by_number(number).paused_by_owner != "full"
            and not self._relations.is_muted(number, message.sender, message.conversation)
        ]
        if self._settings.echo_own_sends:
            listeners.append(self._accounts.get(message.sender).number)
        return listeners

    def tell(self, agents: Iterable[int], type_: str, payload: Any) -> None:
        """Send an event without a seq to every socket of these agents. Faults do not touch it."""
        frame = b""
        for agent in agents:
            for connection in self._by_agent.get(agent, ()):
                if connection.deaf:
                    continue
                frame = frame or text_frame(wire.encoder.encode({"type": type_, "payload": payload}))
                if connection.write(frame):
                    self._counters[f"frames.{type_}"] += 1

    async def until_writable(self, agents: Iterable[int]) -> None:
        """Wait until the sockets of these agents have read most of what was written.

        Bulk posts would otherwise run into the overload limit by themselves. Asks every 2 ms, which only bulk posts
        and drains do, and goes on after 10 s, so that a reader that has stopped meets the limit.
        """
        connections = [c for agent in agents for c in self._by_agent.get(agent, ())]
        for _ in range(int(_BACKED_UP_MAX_S / _BACKED_UP_PAUSE_S)):
            if not any(c.is_open and c.unsent_bytes > _BACKED_UP_BYTES for c in connections):
                return
            await asyncio.sleep(_BACKED_UP_PAUSE_S)

    async def until_pushed(self, count: int) -> None:
        """Wait until `frames_pushed` has reached a number."""
        if self.frames_pushed >= count:
            return
        wait = (count, asyncio.get_running_loop().create_future())
        self._frame_waits.append(wait)
        try:
            await wait[1]
        finally:
            if wait in self._frame_waits:
                self._frame_waits.remove(wait)

    def _write(self, connection: Connection, frames: bytes, count: int) -> None:
        if connection.write(frames):
            self._counters["frames.message.new"] += count
            self.frames_pushed += count
            for wait in [w for w in self._frame_waits if w[0] <= self.frames_pushed]:
                self._frame_waits.remove(wait)
                if not wait[1].done():
                    wait[1].set_result(None)

    def _legacy_delivered(self, connection: Connection, message_id: str) -> None:
        if not connection.acks:
            self._settle(connection.account, message_id)

    def _emit(
        self, connection: Connection, point: Point, conversation: str, seq: int, message_id: str, frame: bytes
    ) -> None:
        """Write one row, or do with it what a fault says."""
        if connection.deaf or not connection.is_open:
            return
        fault = self._faults.at(
            point,
            now=asyncio.get_running_loop().time(),
            identity=connection.account.handle,
            conversation=conversation,
            seq=seq,
        )
        if fault is None:
            self._legacy_delivered(connection, message_id)
            self._write_row(connection, frame)
        else:
            self._emit_wrongly(connection, fault, message_id, frame)

    def _emit_wrongly(self, connection: Connection, fault: Fault, message_id: str, frame: bytes) -> None:
        loop = asyncio.get_running_loop()
        match fault.action:
            case Action.DUPLICATE:
                self._write_row(connection, frame)
                self._write_row(connection, frame)
            case Action.DELAY:
                loop.call_later(fault.delay_s, self._write_row, connection, frame)
            case Action.REORDER:
                self._release(connection)
                connection.held = frame
                loop.call_later(_REORDER_HOLD_S, self._release, connection)
            case Action.CUT_MID_FRAME:
                connection.cut_mid_frame(frame)
            case Action.RESTART:
                self.restart_wanted()
            case _:
                afflict(connection, fault)
        if fault.action is not Action.DROP:
            self._legacy_delivered(connection, message_id)

    def _write_row(self, connection: Connection, frame: bytes) -> None:
        self._write(connection, frame, 1)
        self._release(connection)

    def _release(self, connection: Connection) -> None:
        held, connection.held = connection.held, None
        if held is not None:
            self._write(connection, held, 1)

    # --- one connection's life ---

    async def serve(self, request: web.Request, account: Account | None) -> web.StreamResponse:
        """Handle `GET /v1/ws` from the upgrade to the end. account: whose key the upgrade request carried."""
        socket = web.WebSocketResponse(
            autoping=False, autoclose=False, compress=False, max_msg_size=self._settings.frame_max_bytes
        )
        await socket.prepare(request)
        transport = request.transport
        if transport is None:
            return socket
        self._greeting.add(transport)
        try:
            guest: Guest | str
            if account is not None:
                guest = guest_by_header(account, request.headers)
            else:
                guest = await guest_by_hello(socket, self._accounts, self._settings.hello_timeout_s)
            if isinstance(guest, str):
                await self._refuse(socket, transport, guest)
        finally:
            self._greeting.discard(transport)
        if isinstance(guest, Guest):
            await self._attend(socket, transport, guest)
        transport.close()
        return socket

    async def _refuse(self, socket: web.WebSocketResponse, transport: asyncio.Transport, reason: str) -> None:
        self._counters["connections.refused"] += 1
        transport.write(close_frame(CloseCode.POLICY, reason))
        try:
            async with asyncio.timeout(self._settings.close_timeout_s):
                while (await socket.receive()).type in (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING):
                    pass
        except TimeoutError:
            transport.abort()

    async def _attend(self, socket: web.WebSocketResponse, transport: asyncio.Transport, guest: Guest) -> None:
        async with asyncio.TaskGroup() as tasks:
            acks = guest.wants_acks and self._settings.ack_capability
            connection = Connection(transport, self._settings, guest.account, tasks, acks=acks)
            drain = None
            try:
                if self._welcome(connection):
                    drain = tasks.create_task(self.drain(connection), name=f"drain @{guest.account.handle}")
                await self._read(socket, connection)
            finally:
                connection.finish()
                if drain is not None:
                    drain.cancel()
                self._forget(connection)

    def _welcome(self, connection: Connection) -> bool:
        """Answer HELLO, register the connection, and afflict it if a fault says so. Returns whether to drain."""
        fault = self._faults.at(Point.ACCEPT, now=asyncio.get_running_loop().time(), identity=connection.account.handle)
        if fault is None or fault.action not in (Action.CLOSE, Action.HANG, Action.CUT):
            ok = wire.HelloOk(capabilities=[wire.CAPABILITY_ACK] if connection.acks else None)
            connection.write(text_frame(wire.encoder.encode(ok)))
            connection.start_heartbeat()
        if fault is not None:
            connection.deaf = fault.action is Action.HANG
            afflict(connection, fault)
        self._counters["connections.opened"] += 1
        others = self._by_agent.setdefault(connection.account.number, [])
        others.append(connection)
        if len(others) == 1:
            self.presence_changed(connection.account)
        return connection.is_open and not connection.deaf

    def _forget(self, connection: Connection) -> None:
        self._counters["connections.closed"] += 1
        others = self._by_agent.get(connection.account.number, [])
        if connection in others:
            others.remove(connection)
        if not others:
            self._by_agent.pop(connection.account.number, None)
            if not self._by_agent and self._emptied is not None and not self._emptied.done():
                self._emptied.set_result(None)
            self.presence_changed(connection.account)

    async def _read(self, socket: web.WebSocketResponse, connection: Connection) -> None:
        while True:
            connection.keep_stalled()
            message = await socket.receive()
            if message.type is WSMsgType.TEXT:
                self._heard(connection, message.data)
            elif message.type is WSMsgType.PING:
                connection.heard_ping(bytes(message.data))
            elif message.type is WSMsgType.PONG:
                connection.heard_pong()
            elif message.type is WSMsgType.CLOSE:
                connection.heard_close(message.data)
                return
            elif message.type is not WSMsgType.BINARY:
                return

    def _heard(self, connection: Connection, text: str) -> None:
        try:
            frame = wire.decode_client_frame(text)
        except msgspec.DecodeError:
            self._counters["client_frames.malformed"] += 1
            return
        if frame.type == FrameType.ACK:
            self._counters["acks"] += 1
            if connection.acks and frame.message_id is not None:
                self._settle(connection.account, frame.message_id)
            return
        self._counters[f"client_frames.{frame.type}"] += 1
        self.client_said(connection.account, frame)

    # --- acks ---

    def _settle(self, account: Account, message_id: str) -> None:
        if self._mailbox.settle(account.number, message_id):
            self.flush_acks()
        elif self._flush_timer is None:
            loop = asyncio.get_running_loop()
            self._flush_timer = loop.call_later(self._settings.ack_linger_s, self.flush_acks)

    def flush_acks(self) -> None:
        """Write the acks taken so far. Runs by itself shortly after an ack."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        self._mailbox.flush()

    # --- drain ---

    async def drain(self, connection: Connection) -> None:
        """Send one connection what is stored for its agent: in pages, with a pause, up to the platform's maximum."""
        settings, number = self._settings, connection.account.number
        after = None
        for _ in range(settings.drain_pages_max):
            if connection.account.paused_by_owner == "full" or not connection.is_open:
                return
            rows = self._mailbox.envelopes(number, after, settings.drain_page) or []
            for row in rows:
                frame = text_frame(_MESSAGE_NEW + row.row + b"}")
                self._emit(connection, Point.DRAIN, row.conversation, row.seq, row.message_id, frame)
                if connection.unsent_bytes > _BACKED_UP_BYTES:
                    await self.until_writable([number])
            if len(rows) < settings.drain_page:
                return
            after = rows[-1].delivery_id
            await asyncio.sleep(settings.drain_pause_s)

    def drain_again(self, account: Account) -> None:
        """Start a drain on every socket of an agent, as the platform does when its owner resumes it."""
        for connection in self.of(account):
            connection.tasks.create_task(self.drain(connection), name=f"drain @{account.handle}")


def afflict(connection: Connection, fault: Fault) -> None:
    """Carry out a fault that befalls the connection rather than a row. Those for rows alone change nothing here."""
    match fault.action:
        case Action.CUT:
            connection.abort()
        case Action.CLOSE:
            connection.close(fault.code, "Injected fault")
        case Action.HALF_OPEN:
            connection.freeze()
        case Action.SLOW_READER:
            connection.stop_reading()
        case Action.NO_PONG:
            connection.no_pong = True
        case Action.DEAF:
            connection.deaf = True
        case _:
            pass
