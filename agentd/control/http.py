"""Serves health, metrics and the page over HTTP, where the configuration asks for it.

    GET  /healthz                   the process answers: 200 {alive}; the only one that needs no token
    GET  /readyz                    mail is flowing: 200 {ready, reasons: []}, or 503 with reasons, each
                                    {code, identity, words, since}; codes: core.health.CODES
    GET  /metrics                   for Prometheus; docs/metrics.md
    GET  /                          the page, or, to a browser that was not let in, how to get there
    POST /session                   {invitation} to a cookie; 403 if it was used or is too old
    POST /session/end               the cookie is worth nothing any more
    POST /api/invitations           {invitation}: works once; for the token's holder alone
    GET  /api/status                as on the control socket
    GET  /api/stream                server-sent events: `part` {name, html} when a part of the page has changed,
                                    `records` {html, count, skipped} as they are committed
    GET  /api/dead/letter?number=N  a dead letter, with its event and traceback
    POST /api/dead/drop             {number}; the same for replay
    GET  /api/explanation?position=N&identity=NAME
                                    {html, act}: what the plugins make of an event, and what to do about it
    GET  /api/conversations?identity=NAME[&prefix=TEXT]
                                    {conversations: [id]} that begin so, those with the newest records first
    POST /api/pause                 {conversation, identity, for_s: seconds, or null for until it is resumed}
    POST /api/resume                {conversation, identity}
    POST /api/outbox/retry          {client_msg_id, identity}; the same for drop
    POST /api/release               {plugin, conversation, identity}
    POST /api/say                   {text} to the embedded hub's echo agent; where there is one

What cannot be done is answered as on the control socket: a status from 400 and {code, message, remedy}.

Always true: who asks has the token or a session, and every call that changes something comes from this very page: its
Origin is checked besides the cookie, which is not sent from elsewhere. The name it was asked under is an address, or
one that is known: a name that was pointed here later (DNS rebinding) is not. Nothing is cached, no secret stands in a
URL, and the page loads nothing from anywhere else.
Not here: who is let in (sessions.py), what the page shows (page.py), how it is kept up to date (feed.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import orjson
from aiohttp import web
from aiohttp.http import HttpProcessingError

from agentd import config
from agentd.config import listening_address
from agentd.control import page
from agentd.control.answers import as_json, bad_request, refusal, streamed, whole, whole_number
from agentd.control.api import PAUSE_MAX_S, Daemon, LetterChosen
from agentd.control.explained import explanation
from agentd.control.exposition import CONTENT_TYPE
from agentd.control.feed import Feed
from agentd.control.readings import Readings, limits, why_not_ready
from agentd.control.refusal import ControlError
from agentd.control.sessions import TOKEN_NAME, Sessions, take_token
from agentd.core.events import Content
from agentd.core.health import Reason
from agentd.core.hosts import is_address
from agentd.core.moments import iso
from agentd.errors import AgentdError

T = TypeVar("T")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_COOKIE = "agentd_session"
_SAY_WAIT_S = 10.0
_SAID_MAX_CHARS = 10_000
_SUGGESTED = 20  # conversations, to somebody who names one
_SHUTDOWN_TIMEOUT_S = 0.3
_BODY_WAIT_S = 10.0  # far more than it takes; who sends one byte a minute keeps a connection from others
_STATIC = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

log = logging.getLogger(__name__)

_NONSENSE = (HttpProcessingError, web.RequestPayloadError)
_unreadable = logging.getLogger(f"{__name__}.unreadable")
# Whoever can connect could fill the log with them.
_unreadable.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], _NONSENSE)))


class Invited(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /session."""

    invitation: Annotated[str, msgspec.Meta(max_length=200)]


class SendOf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /api/outbox/retry and /api/outbox/drop."""

    client_msg_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    identity: str


class Held(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /api/release."""

    plugin: str
    conversation: str
    identity: str


class Pause(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /api/pause."""

    conversation: Annotated[str, msgspec.Meta(min_length=1)]
    identity: str
    for_s: Annotated[float, msgspec.Meta(gt=0, le=PAUSE_MAX_S)] | None = None


class Resume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /api/resume."""

    conversation: Annotated[str, msgspec.Meta(min_length=1)]
    identity: str


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /api/say."""

    text: Annotated[str, msgspec.Meta(min_length=1, max_length=_SAID_MAX_CHARS)]


class HttpServer:
    """The listening end. url: where, once it listens; None before, and while it cannot."""

    def __init__(self, daemon: Daemon, settings: config.Agentd) -> None:
        self._daemon = daemon
        self._http = settings.http
        self._limits = limits(settings)
        self._readings = Readings(daemon.status, self._limits)
        self._feed = Feed(daemon, self._limits, self._http.streams_max)
        self._state = Path(settings.state)
        self._server: asyncio.Server | None = None
        self._names = {"localhost", *map(str.lower, self._http.hosts)}
        self._asked: set[asyncio.BaseProtocol] = set()
        """Connections on which somebody asks who is let in, until the answer has left."""
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            logger=_unreadable,
            handler_cancellation=True,  # a browser that has gone ends its stream
            shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
            max_line_size=self._http.header_max_bytes,
            max_field_size=self._http.header_max_bytes,
        )
        self._cookie = _COOKIE
        self.url: str | None = None

    async def start(self) -> None:
        """Listen. Mail matters more than the page: where the address cannot be had, that is logged, and no more."""
        try:
            token = take_token(self._state)
        except OSError as error:
            log.error("%s cannot be had (%s): no page and no metrics", self._state / TOKEN_NAME, error.strerror)
            return
        self._sessions = Sessions(token, sessions_max=self._http.sessions_max, session_max_s=self._http.session_max_s)
        host, port = listening_address(self._http.listen)
        await self._runner.setup()
        assert self._runner.server is not None
        accept = _Accept(self._runner.server, self._http.connections_max, self._asked)
        try:
            self._server = await asyncio.get_running_loop().create_server(accept, host, port)
        except OSError as error:
            log.error(
                "cannot listen on %s (%s): no page and no metrics; free the address, or set another one at "
                "[agentd.http] listen, and restart",
                self._http.listen,
                error.strerror,
            )
            return
        self._readings.__enter__()
        port = self._server.sockets[0].getsockname()[1]
        # Browsers keep the ports of a host apart in all but cookies, and there may be two daemons.
        self._cookie = f"{_COOKIE}_{port}"
        self.url = f"http://{_reached_at(host)}:{port}"
        log.info("the page and the metrics are at %s; to open it: agentd dashboard", self.url)

    async def close(self) -> None:
        """Stop listening and end every stream."""
        self.url = None
        self._readings.__exit__()
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application(
            client_max_size=self._http.body_max_bytes,
            middlewares=[self._asks, _answered, self._known_name, self._let_in],
        )
        application.on_response_prepare.append(_add_headers)
        routes = application.router
        routes.add_get("/healthz", self._healthz)
        routes.add_get("/readyz", self._readyz)
        routes.add_get("/metrics", self._metrics)
        routes.add_get("/", self._page)
        routes.add_get("/static/{name}", self._static)
        routes.add_post("/session", self._begin_session)
        routes.add_post("/session/end", self._end_session)
        routes.add_post("/api/invitations", self._invite)
        routes.add_get("/api/status", self._status)
        routes.add_get("/api/stream", self._stream, allow_head=False)
        routes.add_get("/api/dead/letter", self._letter)
        routes.add_post("/api/dead/replay", self._replay_letter)
        routes.add_post("/api/dead/drop", self._drop_letter)
        routes.add_post("/api/outbox/retry", self._retry_send)
        routes.add_post("/api/outbox/drop", self._drop_send)
        routes.add_post("/api/release", self._release)
        routes.add_get("/api/explanation", self._explanation)
        routes.add_get("/api/conversations", self._conversations)
        routes.add_post("/api/pause", self._pause)
        routes.add_post("/api/resume", self._resume)
        routes.add_post("/api/say", self._say)
        return application

    # -- who may ask ------------------------------------------------------------------------------------------------

    @web.middleware
    async def _asks(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Remember that this connection is in use, until all of the answer is handed to the system.

        Not for those who are not let in, who could send a body byte by byte on as many as there may be.
        """
        if self._is_let_in(request):
            self._asked.add(request.protocol)
        try:
            response = await handler(request)
            with contextlib.suppress(ConnectionError):  # the reader has gone
                await response.prepare(request)
                await response.write_eof()
            return response
        finally:
            self._asked.discard(request.protocol)

    @web.middleware
    async def _known_name(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse a name that somebody pointed at this address, and a page of somebody else's."""
        name = _host_name(request.headers.get("Host", ""))
        if not (is_address(name) or name in self._names):
            raise ControlError(
                421,
                "UNKNOWN_HOST",
                "it is not known under this name",
                "ask by address, or add it to [agentd.http] hosts",
            )
        origin = request.headers.get("Origin")
        if origin is not None and _place(origin) != request.headers["Host"]:
            raise ControlError(403, "OTHER_ORIGIN", "another page may not ask", "use agentd's own page")
        return await handler(request)

    @web.middleware
    async def _let_in(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let through who has the token or a session, and everybody to what is no secret."""
        is_open = request.path in ("/healthz", "/", "/session") or request.path.startswith("/static/")
        if is_open or self._is_let_in(request):
            return await handler(request)
        raise ControlError(
            401,
            "NO_TOKEN",
            "this needs a token",
            f"a browser: agentd dashboard; a program: Authorization: Bearer, with {self._state / TOKEN_NAME}",
        )

    def _is_let_in(self, request: web.Request) -> bool:
        return self._has_token(request) or self._has_session(request)

    def _has_token(self, request: web.Request) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self._sessions.is_token(token.strip())

    def _has_session(self, request: web.Request) -> bool:
        """A call that changes something must come from the page itself: other ports share its cookies."""
        cookie = request.cookies.get(self._cookie, "")
        from_the_page = request.method == "GET" or "Origin" in request.headers
        return from_the_page and self._sessions.is_let_in(cookie, time.monotonic())

    async def _begin_session(self, request: web.Request) -> web.StreamResponse:
        invited = await _body(request, Invited)
        cookie = self._sessions.accept(invited.invitation, time.monotonic())
        if cookie is None:
            raise ControlError(403, "NO_INVITATION", "this link was used, or is too old", "run: agentd dashboard")
        response = as_json({"let_in": True})
        response.set_cookie(
            self._cookie, cookie, max_age=int(self._http.session_max_s), httponly=True, samesite="Strict", path="/"
        )
        return response

    async def _end_session(self, request: web.Request) -> web.StreamResponse:
        self._sessions.end(request.cookies.get(self._cookie, ""))
        response = as_json({"let_in": False})
        response.del_cookie(self._cookie, path="/")
        return response

    async def _invite(self, request: web.Request) -> web.StreamResponse:
        if not self._has_token(request):
            raise ControlError(403, "NO_TOKEN", "only the token's holder may invite", "run: agentd dashboard")
        return as_json({"invitation": self._sessions.invite(time.monotonic())})

    # -- for programs -----------------------------------------------------------------------------------------------

    async def _healthz(self, request: web.Request) -> web.StreamResponse:
        return as_json({"alive": True})

    async def _readyz(self, request: web.Request) -> web.StreamResponse:
        now = time.monotonic()
        found = why_not_ready(self._daemon.status(), self._limits, now)
        told = {"ready": not found, "reasons": [_told(reason, now) for reason in found]}
        return as_json(told, status=503 if found else 200)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=(await self._readings.page()).encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return as_json(self._daemon.status())

    # -- the page ---------------------------------------------------------------------------------------------------

    async def _page(self, request: web.Request) -> web.StreamResponse:
        if not self._is_let_in(request):
            return web.Response(text=page.doorway(), content_type="text/html")
        parts = await self._feed.parts()
        return web.Response(text=page.document(self._daemon.status(), parts), content_type="text/html")

    async def _static(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in _STATIC:
            raise web.HTTPNotFound
        body = files("agentd.control").joinpath("static", name).read_bytes()
        return web.Response(body=body, content_type=_STATIC[name], charset="utf-8")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        with self._feed.opened():
            events = self._feed.events(partial(self._is_let_in, request))
            return await streamed(request, "text/event-stream", _told_as_events(events))

    async def _letter(self, request: web.Request) -> web.StreamResponse:
        return as_json(await self._daemon.dead_show(whole_number("number", request.query.get("number", ""))))

    async def _replay_letter(self, request: web.Request) -> web.StreamResponse:
        return as_json(await whole(self._daemon.dead_replay((await _body(request, LetterChosen)).number)))

    async def _drop_letter(self, request: web.Request) -> web.StreamResponse:
        return as_json(await whole(self._daemon.dead_drop((await _body(request, LetterChosen)).number)))

    async def _retry_send(self, request: web.Request) -> web.StreamResponse:
        chosen = await _body(request, SendOf)
        return as_json(await whole(self._daemon.outbox_retry(self._known(chosen.identity), chosen.client_msg_id)))

    async def _drop_send(self, request: web.Request) -> web.StreamResponse:
        chosen = await _body(request, SendOf)
        return as_json(await whole(self._daemon.outbox_drop(self._known(chosen.identity), chosen.client_msg_id)))

    async def _release(self, request: web.Request) -> web.StreamResponse:
        held = await _body(request, Held)
        released = self._daemon.release(held.plugin, self._known(held.identity), held.conversation)
        return as_json({"released": released})

    async def _explanation(self, request: web.Request) -> web.StreamResponse:
        identity = self._known(request.query.get("identity", ""))
        explained = await self._daemon.explain(
            str(whole_number("position", request.query.get("position", ""))), identity, None
        )
        found = explained["events"][0]
        place = (identity, found["event"]["conversation"])
        pauses = self._daemon.status()["pauses"]
        pause = next((each for each in pauses if (each["identity"], each["conversation"]) == place), None)
        return as_json(explanation(found, pause))

    async def _conversations(self, request: web.Request) -> web.StreamResponse:
        identity = self._known(request.query.get("identity", ""))
        found = await self._daemon.conversations(identity, request.query.get("prefix", ""), _SUGGESTED)
        return as_json({"conversations": [each["conversation"] for each in found]})

    async def _pause(self, request: web.Request) -> web.StreamResponse:
        wanted = await _body(request, Pause)
        return as_json(await whole(self._daemon.pause(self._known(wanted.identity), wanted.conversation, wanted.for_s)))

    async def _resume(self, request: web.Request) -> web.StreamResponse:
        wanted = await _body(request, Resume)
        return as_json(await whole(self._daemon.resume(self._known(wanted.identity), wanted.conversation)))

    async def _say(self, request: web.Request) -> web.StreamResponse:
        if self._daemon.status()["hub_url"] is None:
            raise ControlError(404, "NOT_EMBEDDED", "there is no embedded hub to talk to", "see: agentd send")
        said = await _body(request, Said)
        return as_json(await self._daemon.send(None, page.ECHO, Content(text=said.text), _SAY_WAIT_S, None))

    def _known(self, identity: str) -> str:
        if identity in (each["name"] for each in self._daemon.status()["identities"]):
            return identity
        raise ControlError(404, "UNKNOWN_IDENTITY", f"there is no identity {identity!r}", "load the page again")


class _Accept:
    """Makes a protocol per connection; past the bound, one that closes at once, as do all that are not in use.

    asked: those that are.
    """

    def __init__(self, server: web.Server, connections_max: int, asked: Collection[asyncio.BaseProtocol]) -> None:
        self._server = server
        self._connections_max = connections_max
        self._asked = asked

    def __call__(self) -> asyncio.BaseProtocol:
        if len(self._server.connections) < self._connections_max:
            return self._server()
        for connection in self._server.connections:
            if connection not in self._asked:
                connection.force_close()
        return _Closed()


class _Closed(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
    response.headers.pop("Server", None)  # nobody needs to know our versions


@web.middleware
async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong becomes an answer with code, message and remedy."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        return refusal(ControlError(413, "TOO_LARGE", "the body is too long", "see [agentd.http] body_max_bytes"))
    except web.HTTPException as error:
        return refusal(ControlError(error.status, "UNKNOWN_CALL", f"no call {request.method} {request.path}"))
    except ControlError as refused:
        return refusal(refused)
    except AgentdError as error:
        return refusal(ControlError(503, "UNAVAILABLE", str(error), "try again in a moment"))
    except Exception as error:
        log.exception("a call over HTTP failed")
        return refusal(ControlError(500, "INTERNAL", f"the daemon failed ({type(error).__name__})", "see its log"))


async def _body(request: web.Request, shape: type[T]) -> T:
    # A form of another page's cannot send this type without asking first.
    if request.content_type != "application/json":
        raise ControlError(415, "NOT_JSON", "the body must be application/json", "mend the request")
    try:
        async with asyncio.timeout(_BODY_WAIT_S):
            body = await request.read()
    except (web.RequestPayloadError, ConnectionError, TimeoutError) as error:
        what = f"the body did not come as it was announced ({type(error).__name__})"
        raise bad_request(what) from None
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, RecursionError) as error:
        raise bad_request(str(error)) from None


async def _told_as_events(events: AsyncGenerator[tuple[str, dict[str, Any]], None]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(events):
        async for name, data in events:
            yield b"event: " + name.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"


def _told(reason: Reason, now: float) -> dict[str, str | None]:
    return {
        "code": reason.code,
        "identity": reason.identity,
        "words": reason.words,
        "since": iso(time.time() - (now - reason.since)),
    }


def _host_name(host: str) -> str:
    """The name in a Host header, without its port; "" if it makes no sense."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _place(origin: str) -> str:
    """Name and port in an Origin header; "" if it makes no sense."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _reached_at(host: str) -> str:
    """How this machine's own browser reaches what listens there."""
    own = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- asked about, not listened on
    return f"[{own}]" if ":" in own else own
