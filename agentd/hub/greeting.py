"""Who a new socket belongs to: by a HELLO frame, or by a key in the upgrade request.

Source: AgentChat's socket handshake. The texts of the refusals are the platform's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec
from aiohttp import WSMsgType, web

from agentd.hub.accounts import Account, Accounts
from agentd.wire.agentchat import types as wire
from agentd.wire.agentchat.types import FrameType, Header


class Guest(msgspec.Struct, frozen=True):
    """A client that has named itself. wants_acks: it offered the ack capability."""

    account: Account
    wants_acks: bool


def read_bearer(headers: Mapping[str, str]) -> str | None:
    """The key of an Authorization header, or None without one."""
    credentials = headers.get(Header.AUTHORIZATION)
    return None if credentials is None else credentials.removeprefix("Bearer ").strip()


def guest_by_header(account: Account, headers: Mapping[str, str]) -> Guest:
    """A client whose key came with the upgrade; its capabilities are in a header too."""
    offered = headers.get(Header.CAPABILITIES, "").replace(",", " ").split()
    return Guest(account, wire.CAPABILITY_ACK in offered)


async def guest_by_hello(socket: web.WebSocketResponse, accounts: Accounts, hello_timeout_s: float) -> Guest | str:
    """Wait for the HELLO frame. Returns the guest, or why it is refused (close code 1008)."""
    try:
        async with asyncio.timeout(hello_timeout_s):
            message = await socket.receive()
    except TimeoutError:
        return "HELLO frame required"
    if message.type is not WSMsgType.TEXT:
        return "HELLO frame required first"
    try:
        hello = wire.decode_client_frame(message.data)
    except msgspec.DecodeError:
        return "HELLO frame required first"
    if hello.type != FrameType.HELLO:
        return "HELLO frame required first"
    account = accounts.by_key(hello.api_key or "")
    if account is None:
        return "Invalid token"
    if account.status == "suspended":
        return "Account suspended"
    return Guest(account, wire.CAPABILITY_ACK in (hello.capabilities or ()))
