"""A hub on a real port, and peers that speak to it as a client would."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect

from agentd.hub.server import Hub
from agentd.hub.settings import HubSettings

WAIT_S = 5.0


class Reply:
    """A REST answer."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Socket:
    """An open connection after (or, with `greet=False`, before) HELLO."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.hello: dict[str, Any] = {}

    async def say(self, **frame: Any) -> None:
        await self.connection.send(json.dumps(frame))

    async def frame(self) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_S):
            return json.loads(await self.connection.recv())

    async def message(self) -> dict[str, Any]:
        frame = await self.frame()
        assert frame["type"] == "message.new", frame
        return frame["payload"]

    async def messages(self, count: int) -> list[dict[str, Any]]:
        return [await self.message() for _ in range(count)]

    async def seqs(self, count: int) -> list[int]:
        return [message["seq"] for message in await self.messages(count)]

    async def ack(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            await self.say(type="ack", message_id=message["id"])

    async def settled(self) -> None:
        """Wait until the hub has read everything said so far: it answers a ping after that."""
        async with asyncio.timeout(WAIT_S):
            await (await self.connection.ping())

    async def closed(self) -> tuple[int | None, str | None]:
        """Wait for the end, frames aside. Returns the close code and the reason."""
        async with asyncio.timeout(WAIT_S):
            with contextlib.suppress(Exception):
                while True:
                    await self.connection.recv()
            await self.connection.wait_closed()
        return self.connection.close_code, self.connection.close_reason


class Peer:
    """One agent's client."""

    def __init__(self, hub: Hub, session: aiohttp.ClientSession, stack: contextlib.AsyncExitStack, key: str) -> None:
        self.hub = hub
        self.key = key
        self._session = session
        self._stack = stack

    async def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        sent = {"authorization": f"Bearer {self.key}"} if self.key else {}
        async with self._session.request(
            method, self.hub.url + path, json=body, headers=sent | (headers or {})
        ) as response:
            return Reply(response.status, response.headers, await response.read())

    async def get(self, path: str) -> Any:
        reply = await self.call("GET", path)
        assert reply.status == 200, reply.body
        return reply.json

    async def post(self, path: str, body: Any = None) -> Any:
        reply = await self.call("POST", path, body)
        assert reply.status in (200, 201), reply.body
        return reply.json

    async def send(self, to: str, text: str, client_msg_id: str = "", **more: Any) -> Reply:
        body = {"to": to, "client_msg_id": client_msg_id or text, "content": {"text": text}}
        return await self.call("POST", "/v1/messages", body | more)

    async def dial(self, **options: Any) -> Socket:
        """Open a socket without saying HELLO."""
        url = self.hub.ws_url + "/v1/ws"
        return Socket(await self._stack.enter_async_context(connect(url, ping_interval=None, **options)))

    async def socket(self, capabilities: tuple[str, ...] = ("ack",), **options: Any) -> Socket:
        """Open a socket and wait for hello.ok."""
        socket = await self.dial(**options)
        await socket.say(type="hello", api_key=self.key, capabilities=list(capabilities))
        socket.hello = await socket.frame()
        assert socket.hello["type"] == "hello.ok"
        return socket


class World:
    """A running hub and its peers."""

    def __init__(self, hub: Hub, session: aiohttp.ClientSession, stack: contextlib.AsyncExitStack) -> None:
        self.hub = hub
        self._session = session
        self._stack = stack

    def peer(self, handle: str) -> Peer:
        return self.with_key(self.hub.create_agent(handle))

    def with_key(self, key: str) -> Peer:
        return Peer(self.hub, self._session, self._stack, key)

    def peers(self, *handles: str) -> list[Peer]:
        return [self.peer(handle) for handle in handles]


Start = Callable[..., Awaitable[World]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts a hub with the settings given; rules that only slow tests down are off unless asked for."""
    async with contextlib.AsyncExitStack() as stack:

        async def begin(**settings: Any) -> World:
            lenient = {"sends_per_s": 0, "group_sends_per_s": 0, "cold_rule": False, "close_timeout_s": 0.3}
            hub = await stack.enter_async_context(Hub(HubSettings(**(lenient | settings))))
            session = await stack.enter_async_context(aiohttp.ClientSession())
            sockets = await stack.enter_async_context(contextlib.AsyncExitStack())
            return World(hub, session, sockets)

        yield begin


@pytest.fixture
async def world(start: Start) -> World:
    """A hub with lenient settings."""
    return await start()
