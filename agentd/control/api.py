"""Serves the control socket: HTTP/1.1 with JSON over a Unix socket, for the daemon's owner and root.

Protocol, version 1. Within a version, fields and calls are only added.

    GET  /v1                          {api, version}
    GET  /v1/status[?identity=NAME]   what `Daemon.status` gives; with a name, that identity alone
    POST /v1/send                     {target, content, identity?, wait_s?, client_msg_id?} to {client_msg_id, ...}
    GET  /v1/gaps[?identity=NAME][&open=0|1][&limit=N]     {gaps: [...]}, newest first
    GET  /v1/tail[?identity=NAME][&since=POSITION]         JSON lines without end; blank ones mean nothing
    POST /v1/stop                     {stopping: true}, at once

What cannot be done has a status from 400 and {code, message, remedy}: 400 BAD_REQUEST, 403 NOT_OWNER,
404 UNKNOWN_IDENTITY or UNKNOWN_CALL, 422 the platform's code, 503 UNAVAILABLE, 504 OUTCOME_UNKNOWN, 507 JOURNAL,
500 INTERNAL.

Always true: the socket has mode 0600 from its first moment, and the user on the other end is asked of the kernel for
every request. A slow or vanished reader of `tail` costs one suspended iterator.
Not here: what a daemon does with a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import errno
import logging
import os
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec
import orjson
from aiohttp import web

from agentd import __version__
from agentd.control.address import short_name
from agentd.control.refusal import ControlError
from agentd.core.events import Content
from agentd.errors import JournalError, OutcomeUnknown, Refused, Unavailable

API = 1

_BODY_MAX_BYTES = 4_194_304  # as much as the largest frame
_GAPS_MAX = 10_000
_WAIT_MAX_S = 600.0
_SHUTDOWN_TIMEOUT_S = 0.3  # enough for what is answered from memory; a tail or a waiting send is cancelled then
_UCRED = struct.Struct("3i")  # pid, uid, gid, as SO_PEERCRED gives them

log = logging.getLogger(__name__)


class Daemon(Protocol):
    """What the control socket asks of the daemon. Names of identities were checked before they come here."""

    def status(self) -> dict[str, Any]:
        """The whole state, from memory; never blocks.

        {version, pid, uptime_s, state_dir, hub_url (None unless embedded), identities, plugins, journal, ...}; each
        identity: {name, platform, handle, url, state, state_since (ISO 8601, UTC), state_reason, conversations,
        journaled, handled, pending, gaps_open, absent, dead, outbox_ready, outbox_unknown, last_pong_age_s,
        last_inbound_age_s, last_audit_age_s, last_commit_age_s, ...}. Ages: seconds, or None for never.
        """
        ...

    async def send(
        self, identity: str | None, target: str, content: Content, wait_s: float, client_msg_id: str | None
    ) -> dict[str, Any]:
        """Put a message into the outbox, and wait up to `wait_s` for its acceptance and the first reply.

        identity: None stands for the only one, or the embedded hub's own user. client_msg_id: None for a new key.
        Returns {client_msg_id, state, seq, conversation, error, reply}; `reply` is {text, sender, seq} or None.
        Raises ControlError if no identity is meant clearly.
        """
        ...

    async def gaps(self, identity: str | None, open_only: bool, limit: int) -> list[dict[str, Any]]:
        """Gaps, newest first.

        {identity, conversation, epoch, start, stop, found_at, closed_at, attempts, outcome, absent, reason}; the range
        is half-open, found_at and closed_at (None while open) are ISO 8601, UTC.
        """
        ...

    def tail(self, identity: str | None, since: int | None) -> AsyncGenerator[dict[str, Any], None]:
        """Records as they are committed, or from behind a journal position; ends when the daemon stops.

        {position, identity, conversation, seq, id, sender, source, own, late, type, text, received_at}. A reader that
        falls behind is not waited for: what it misses is read from the journal.
        """
        ...

    async def stop(self) -> None:
        """Begin to stop; returns before that is done."""
        ...


class SendRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/send."""

    target: Annotated[str, msgspec.Meta(min_length=1)]
    content: Content
    identity: str | None = None
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=_WAIT_MAX_S)] = 0.0
    client_msg_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None


class ControlServer:
    """The listening end. `owners`: the user ids that may ask; this process's own and root unless told."""

    def __init__(self, daemon: Daemon, paths: Sequence[Path], owners: Collection[int] | None = None) -> None:
        self._daemon = daemon
        self._paths = paths
        self._owners = frozenset((0, os.geteuid()) if owners is None else owners)
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            handler_cancellation=True,  # a client that has gone ends its tail
            shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
        )
        self._listening = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Listen. Raises OSError if a daemon listens there already, or the folder cannot be written."""
        await self._runner.setup()
        self._listening.push_async_callback(self._runner.cleanup)
        try:
            for path in self._paths:
                await self._listen(path)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop listening, end every tail, remove the sockets."""
        await self._listening.aclose()

    async def _listen(self, path: Path) -> None:
        assert self._runner.server is not None
        bound = _bind(path)
        self._listening.callback(_unlink, path, path.stat().st_ino)  # noqa: ASYNC240 -- a local inode, just made
        try:
            server = await asyncio.get_running_loop().create_unix_server(self._runner.server, sock=bound)
        except BaseException:
            bound.close()
            raise
        self._listening.callback(server.close)

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=_BODY_MAX_BYTES, middlewares=[_answered, self._owner_only])
        application.router.add_get("/v1", self._version)
        application.router.add_get("/v1/status", self._status)
        application.router.add_post("/v1/send", self._send)
        application.router.add_get("/v1/gaps", self._gaps)
        application.router.add_get("/v1/tail", self._tail)
        application.router.add_post("/v1/stop", self._stop)
        return application

    @web.middleware
    async def _owner_only(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if _peer_uid(request) not in self._owners:
            raise ControlError(
                403, "NOT_OWNER", "this daemon belongs to another user", "run the command as that user or as root"
            )
        return await handler(request)

    async def _version(self, request: web.Request) -> web.StreamResponse:
        return _json({"api": API, "version": __version__})

    async def _status(self, request: web.Request) -> web.StreamResponse:
        status = self._daemon.status()
        if name := self._identity(request.query.get("identity"), status):
            status = {**status, "identities": [each for each in status["identities"] if each["name"] == name]}
        return _json(status)

    async def _send(self, request: web.Request) -> web.StreamResponse:
        try:
            wanted = msgspec.json.decode(await request.read(), type=SendRequest)
        except msgspec.DecodeError as error:
            raise _bad_request(str(error)) from None
        content = wanted.content
        if content.text is None and content.data is None and content.attachment_id is None:
            raise _bad_request("content has neither text, data nor attachment_id")
        identity = self._identity(wanted.identity)
        return _json(await self._daemon.send(identity, wanted.target, content, wanted.wait_s, wanted.client_msg_id))

    async def _gaps(self, request: web.Request) -> web.StreamResponse:
        identity = self._identity(request.query.get("identity"))
        limit = _number(request, "limit", 100)
        if not 1 <= limit <= _GAPS_MAX:
            raise _bad_request(f"limit must lie between 1 and {_GAPS_MAX}")
        open_only = request.query.get("open", "1") != "0"
        return _json({"gaps": await self._daemon.gaps(identity, open_only, limit)})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        identity = self._identity(request.query.get("identity"))
        since = _number(request, "since", 0) if "since" in request.query else None
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        try:
            async with contextlib.aclosing(self._daemon.tail(identity, since)) as records:
                await response.write(b"\n")  # the head leaves with the first bytes, and a client waits for it
                async for record in records:
                    await response.write(orjson.dumps(record) + b"\n")
        except ConnectionResetError:
            pass  # the reader has gone
        return response

    async def _stop(self, request: web.Request) -> web.StreamResponse:
        await self._daemon.stop()
        return _json({"stopping": True})

    def _identity(self, name: str | None, status: dict[str, Any] | None = None) -> str | None:
        if name is None:
            return None
        names = [each["name"] for each in (status or self._daemon.status())["identities"]]
        if name in names:
            return name
        close = difflib.get_close_matches(name, names, n=1)
        known = f"name one of: {', '.join(sorted(names))}" if names else "the configuration has none"
        raise ControlError(
            404,
            "UNKNOWN_IDENTITY",
            f"there is no identity {name!r}",
            f"did you mean {close[0]!r}?" if close else known,
        )


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong becomes an answer with code, message and remedy."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        return _refusal(_bad_request(f"the body is longer than {_BODY_MAX_BYTES} bytes"))
    except web.HTTPException as error:
        return _refusal(
            ControlError(
                error.status, "UNKNOWN_CALL", f"no call {request.method} {request.path}", f"this is API version {API}"
            )
        )
    except Exception as error:
        return _refusal(_explained(error))


def _explained(error: Exception) -> ControlError:
    match error:
        case ControlError():
            return error
        case Refused():
            return ControlError(422, error.code, f"the platform refused it: {error.message or error.code}")
        case Unavailable():
            return ControlError(503, "UNAVAILABLE", f"not now: {error}", "try again in a moment")
        case OutcomeUnknown():
            return ControlError(504, "OUTCOME_UNKNOWN", str(error), "repeat it with the same key")
        case JournalError():
            return ControlError(507, "JOURNAL", str(error), "see: agentd status")
        case _:
            log.error("a call on the control socket failed", exc_info=error)
            return ControlError(500, "INTERNAL", f"the daemon failed ({type(error).__name__})", "see its log")


def _bad_request(message: str) -> ControlError:
    return ControlError(400, "BAD_REQUEST", message, "mend the request")


def _refusal(refused: ControlError) -> web.Response:
    return _json({"code": refused.code, "message": refused.message, "remedy": refused.remedy}, status=refused.status)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _number(request: web.Request, name: str, default: int) -> int:
    given = request.query.get(name)
    if given is None:
        return default
    if not given.isdecimal() or len(given) > 18:
        raise _bad_request(f"{name} must be a whole number")
    return int(given)


def _peer_uid(request: web.Request) -> int | None:
    """The user on the other end, as the kernel knows it; None if the connection has gone."""
    connection = request.get_extra_info("socket")
    if connection is None:
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(credentials)[1])


def _bind(path: Path) -> socket.socket:
    """A bound socket with mode 0600. A socket that nobody listens on any more is replaced."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # Before bind, so that the file never has another mode; umask would be the whole process's.
        os.fchmod(bound.fileno(), 0o600)
        with short_name(path) as name:
            _make_room(path, name)
            bound.bind(name)
    except BaseException:
        bound.close()
        raise
    return bound


def _make_room(path: Path, name: str) -> None:
    if not path.is_socket():
        return  # nothing, or something that bind will refuse to replace
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(name)
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "another daemon listens there; stop it, or use another state folder", str(path))


def _unlink(path: Path, inode: int) -> None:
    """Remove our socket, but not one that a successor has put there."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()
