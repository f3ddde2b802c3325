"""One WebSocket link, from dial to close.

`dial` connects, says hello and yields a `Link`. From then on every text message goes to `on_frame` as the bytes that
came, and `on_burst` follows once for all messages of one read. `send_burst` writes many frames at once.

Always true: what connection.py promises. At most `write_buffer_max_bytes` wait to be written, and one message of at
most `frame_max_bytes` to be completed. The key is in the hello frame and nowhere else: no URL, log, exception or repr.
Not here: what frames mean after the hello (wire/), when to dial again (core/reconnect.py), what waits for an ack. Who
cannot keep up drops frames unacked: there is no way to pause a link.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidProxy, InvalidStatus, InvalidURI, WebSocketException

from agentd import __version__
from agentd.config import Link as LinkSettings
from agentd.core.hosts import is_loopback
from agentd.core.reconnect import CloseMeaning
from agentd.errors import AgentdError, CredentialsRefused, Refused, Unavailable
from agentd.transport.address import require_safe
from agentd.transport.connection import Connection, nothing
from agentd.transport.retry_after import retry_after_s
from agentd.transport.tls import tls_context
from agentd.wire.platform import Frame, Hello, Rejected

_LONG_WORD = re.compile(r"[\w.\-]{16,}")


class Greeting(Protocol):
    """What `dial` asks of a platform; every `wire.platform.Platform` is one."""

    def link_url(self) -> str:
        """Address of the WebSocket, without credentials."""
        ...

    def hello(self) -> bytes:
        """Text of the first frame, with the key as it is now."""
        ...

    def decode(self, frame: str | bytes) -> Frame:
        """The frame as a value; only `Hello` and `Rejected` matter here."""
        ...

    def close_meaning(self, code: int | None, reason: str) -> CloseMeaning:
        """Whether a connection that ended like this during the hello was refused for its key."""
        ...


class Closed(msgspec.Struct, frozen=True):
    """How a connection ended.

    code: what the far end's close frame said (1005: a frame without a code); None where it was cut without one.
    reason: the far end's words, or ours where it had none; long words are hidden, since they may be keys.
    clean: both sides have sent a close frame.
    """

    code: int | None
    reason: str
    clean: bool


class Link:
    """An open connection. `acks`: the far end keeps a message until it is acknowledged."""

    def __init__(self, connection: Connection, acks: bool) -> None:
        self.acks = acks
        self._connection = connection

    @property
    def last_pong(self) -> float:
        """When the last of our pings was answered, or else the connection made: seconds of the loop's clock."""
        return self._connection.last_pong

    @property
    def last_inbound(self) -> float:
        """When the last bytes came in, of whatever kind: seconds of the loop's clock."""
        return self._connection.last_inbound

    @property
    def binary_dropped(self) -> int:
        """Binary messages seen so far. No platform sends any; they are not handed on."""
        return self._connection.binary_dropped

    def send_burst(self, frames: Sequence[bytes]) -> bool:
        """Write every frame as one text message each, in order, with a single write to the socket.

        frames: UTF-8 text. Returns False if nothing was written: the connection is ending, or the far end reads so
        slowly that `write_buffer_max_bytes` wait already.
        """
        return self._connection.send_burst(frames)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye; no frame is handed on any more. `closed` returns at most CLOSE_GRACE_S later."""
        self._connection.leave(code, reason)

    async def closed(self) -> Closed:
        """Wait for the end of the connection. Raises what `on_frame` or `on_burst` raised, if that ended it."""
        await self._connection.gone()
        return _closed(self._connection)


@asynccontextmanager
async def dial(
    platform: Greeting,
    settings: LinkSettings,
    *,
    on_frame: Callable[[bytes], None],
    on_burst: Callable[[], None],
) -> AsyncIterator[Link]:
    """Connect, say hello, yield the link, and close it on the way out.

    on_frame: takes each text message that follows the hello's answer; first called after the body of the `async with`
    has begun, and never after its end. on_burst: called after the last message of each read. What either raises ends
    the connection.
    Raises CredentialsRefused (the key), Refused (the URL), Unavailable (anything else, with what it asked us to wait).
    """
    connection = await _upgrade(platform.link_url(), settings)
    try:
        acks = await _greet(connection, platform, settings.hello_timeout_s)
        connection.watch(settings.ping_interval_s, settings.ping_timeout_s)
        # From the next turn of the loop on: by then the caller knows the link that its callbacks may need.
        connection.loop.call_soon(connection.receive, on_frame, on_burst)
        yield Link(connection, acks)
    finally:
        connection.leave(1000, "")
        await connection.gone()


async def _upgrade(url: str, settings: LinkSettings) -> Connection:
    host = require_safe(url)
    try:
        connection = await _Connect(
            url,
            create_connection=Connection,
            # permessage-deflate costs 3 to 5 µs a frame and much memory a connection, and the frames are small.
            compression=None,
            # Through a proxy, plain text for this machine would leave it.
            proxy=None if is_loopback(host) else True,
            ssl=tls_context() if urlsplit(url).scheme == "wss" else None,
            open_timeout=settings.connect_timeout_s,
            # The library's keepalive first waits for the write buffer to drain, which a half-open socket never does.
            ping_interval=None,
            max_size=settings.frame_max_bytes,
            user_agent_header=f"agentd/{__version__}",
            logger=_LibraryLog(logging.getLogger("websockets.client"), {}),
        )
    except (InvalidURI, UnicodeError):
        raise Refused(0, "BAD_URL", f"{host!r} cannot be dialled; check the identity's url") from None
    except InvalidProxy:
        # The library quotes the proxy's URL, which may hold a password.
        raise Unavailable("the proxy named in the environment is not usable") from None
    except InvalidStatus as exc:
        raise _upgrade_refused(exc) from exc
    except (OSError, WebSocketException, ImportError) as exc:  # ImportError: a SOCKS proxy without python-socks
        raise Unavailable(f"cannot connect to {host}: {exc}") from exc
    assert isinstance(connection, Connection)
    connection.write_buffer_max_bytes = settings.write_buffer_max_bytes
    return connection


def _upgrade_refused(answer: InvalidStatus) -> Unavailable:
    # Whatever the status: the upgrade carries no key, so that 401 and 403 say nothing of it. Proxies answer so.
    asked = retry_after_s(answer.response.headers.get("Retry-After"), time.time())
    return Unavailable(f"the server answered {answer.response.status_code} to the upgrade", asked)


async def _greet(connection: Connection, platform: Greeting, timeout_s: float) -> bool:
    answered: asyncio.Future[Hello | Rejected] = connection.loop.create_future()

    def look(data: bytes) -> None:
        frame = platform.decode(data)
        if isinstance(frame, Hello | Rejected):
            answered.set_result(frame)
            connection.hold()

    connection.receive(look, nothing)
    connection.send_burst([platform.hello()])
    lost = connection.connection_lost_waiter
    either: list[asyncio.Future[Any]] = [answered, lost]
    await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if answered.done():
        return _accepted(answered.result())
    if lost.done():
        raise await _closed_early(connection, platform)
    connection.leave(1008, "HELLO ack timeout")
    raise Unavailable(f"no answer to the hello within {timeout_s:g} s")


def _accepted(answer: Hello | Rejected) -> bool:
    if isinstance(answer, Rejected):
        raise CredentialsRefused(0, "REJECTED", _without_keys(answer.reason))
    return answer.acks


async def _closed_early(connection: Connection, platform: Greeting) -> AgentdError:
    await connection.gone()
    end = _closed(connection)
    if platform.close_meaning(end.code, end.reason) is CloseMeaning.REFUSED:
        return CredentialsRefused(end.code or 0, "CLOSED", end.reason)
    return Unavailable(f"closed during the hello (code {end.code}): {end.reason}")


def _closed(connection: Connection) -> Closed:
    said, both, ours = connection.farewell()
    if said is None:
        return Closed(None, ours, False)
    return Closed(said.code, _without_keys(said.reason), both)


def _without_keys(words: str) -> str:
    return _LONG_WORD.sub("…", words)


class _Connect(connect):
    """Follows no redirect: whoever answers is given the key in the hello frame."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class _LibraryLog(logging.LoggerAdapter[logging.Logger]):
    """The library logs every frame at DEBUG, the hello frame with the key among them."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 -- logging's own spelling
        return level >= logging.WARNING and super().isEnabledFor(level)
