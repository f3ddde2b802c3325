"""From an HTTP request to a route's work and back: keys, request ids, error envelopes, faults.

A route's work is a plain function of the service and a `Call`. It runs between two awaits, so nothing can come between
what it checks and what it does.

Always true: every answer carries x-request-id, the caller's own if it sent one. Every refusal is the flat envelope.
Not here: what the routes do (routes/), and development's own calls (control.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import msgspec
from aiohttp import web

from agentd.hub.accounts import Account
from agentd.hub.answers import Answer, ApiError, answer, invalid, not_found
from agentd.hub.faults import Action, Fault, Point
from agentd.hub.greeting import read_bearer
from agentd.hub.idempotency import Ticket
from agentd.hub.service import Service
from agentd.wire.agentchat.types import CODE_BY_STATUS, SOCKET_PATH, ErrorCode, Header

_log = logging.getLogger("agentd.hub")

_TOO_LARGE = ApiError(413, ErrorCode.PAYLOAD_TOO_LARGE, "The body is too large")

_Body = TypeVar("_Body")
Endpoint = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Call(msgspec.Struct, frozen=True):
    """One request. path: the route's named parts, decoded. query: the first value of each name. base: as it came in."""

    caller: Account | None
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    base: str = ""

    @property
    def account(self) -> Account:
        """Who calls; on routes that need a key there always is one."""
        assert self.caller is not None
        return self.caller

    def read(self, type_: type[_Body]) -> _Body:
        """The body as a wire type. Raises ApiError 400."""
        try:
            return msgspec.json.decode(self.body, type=type_)
        except msgspec.DecodeError as error:
            raise invalid(str(error)) from None

    def number(self, name: str) -> int | None:
        """A query value as an int of 0 or above; None if it is absent. Raises ApiError 400."""
        value = self.query.get(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdigit()):
            raise invalid(f"{name} is not a number")
        return int(value)


class Route(msgspec.Struct, frozen=True):
    """One REST route. name: what faults and counters call it. keyless: works without a key.

    suspended: works for a suspended agent too. file: its body is a file, as large as one may be.
    """

    method: str
    path: str
    name: str
    work: Callable[[Service, Call], Answer]
    keyless: bool = False
    suspended: bool = False
    file: bool = False


def endpoint(service: Service, route: Route) -> Endpoint:
    """The aiohttp handler of a route."""

    async def serve(request: web.Request) -> web.StreamResponse:
        service.counters[f"rest.{route.name}"] += 1
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return respond(request, _TOO_LARGE.answer())
        if len(body) > (service.settings.attachment_max_bytes if route.file else service.settings.body_max_bytes):
            return respond(request, _TOO_LARGE.answer())
        caller = _caller(service, request)
        try:
            ticket = _ticket(service, route, request, caller, body)
        except ApiError as error:
            return respond(request, error.answer())
        if isinstance(ticket, Answer):
            return respond(request, ticket)
        try:
            return await _served(
                service, route, request, Call(caller, request.match_info, request.query, body, _base(request)), ticket
            )
        finally:
            if ticket is not None:
                service.idempotency.end(ticket)

    return serve


async def _served(
    service: Service, route: Route, request: web.Request, call: Call, ticket: Ticket | None
) -> web.StreamResponse:
    caller = call.caller
    fault = service.faults.at(
        Point.REST,
        now=asyncio.get_running_loop().time(),
        identity="" if caller is None else caller.handle,
        route=route.name,
    )
    if fault is not None:
        early = await fail_before(service, fault, request)
        if early is not None:
            return early
    made = _carry_out(service, route, call)
    if ticket is not None:
        service.idempotency.keep(ticket, made)
    if fault is not None:
        made = _spoil(made, fault, request)
    return respond(request, made)


def _ticket(
    service: Service, route: Route, request: web.Request, caller: Account | None, body: bytes
) -> Ticket | Answer | None:
    """What a changing call runs under, or the answer that its key has already had. Raises ApiError."""
    key = request.headers.get(Header.IDEMPOTENCY_KEY)
    # Messages have keys of their own.
    if key is None or caller is None or route.method == "GET" or route.path == "/v1/messages":
        return None
    now = asyncio.get_running_loop().time()
    return service.idempotency.begin(caller, key, f"{route.method} {request.raw_path}".encode() + body, now)


def _base(request: web.Request) -> str:
    return f"{request.scheme}://{request.host}"


def socket_endpoint(service: Service) -> Endpoint:
    """The aiohttp handler of `GET /v1/ws`."""

    async def serve(request: web.Request) -> web.StreamResponse:
        caller = _caller(service, request)
        fault = service.faults.at(
            Point.UPGRADE,
            now=asyncio.get_running_loop().time(),
            identity="" if caller is None else caller.handle,
        )
        if fault is not None:
            early = await fail_before(service, fault, request)
            if early is not None:
                return early
        if read_bearer(request.headers) is not None:
            try:
                _check_key(caller, suspended=False)
            except ApiError as error:
                return respond(request, error.answer())
        if request.headers.get("upgrade", "").lower() != "websocket":
            return respond(request, invalid("Expected a WebSocket upgrade").answer())
        return await service.sockets.serve(request, caller)

    return serve


def mount(app: web.Application, service: Service, routes: list[Route]) -> None:
    """Add the socket, the REST routes and the answer to every other path."""
    app.router.add_route("GET", SOCKET_PATH, socket_endpoint(service))
    for route in routes:
        app.router.add_route(route.method, route.path, endpoint(service, route))
    nowhere = Route("*", "/{path:.*}", "unknown", _nowhere, keyless=True)
    app.router.add_route(nowhere.method, nowhere.path, endpoint(service, nowhere))


def respond(request: web.Request, made: Answer) -> web.Response:
    """An answer as aiohttp's response."""
    request_id = request.headers.get(Header.REQUEST_ID) or f"req_{secrets.token_hex(8)}"
    headers = {**made.headers, Header.REQUEST_ID: request_id}
    return web.Response(status=made.status, body=made.body, headers=headers, content_type=made.content_type)


async def fail_before(service: Service, fault: Fault, request: web.Request) -> web.Response | None:
    """Carry out a fault that strikes before the work; None if the work goes on."""
    match fault.action:
        case Action.STATUS:
            code = CODE_BY_STATUS.get(fault.status, ErrorCode.INTERNAL_ERROR)
            error = ApiError(fault.status, code, "Injected fault", None, fault.retry_after_s)
            return respond(request, error.answer())
        case Action.DISCONNECT:
            hang_up(request)
        case Action.HANG:
            await _hang(service)
            hang_up(request)
        case Action.DELAY:
            await asyncio.sleep(fault.delay_s)
            return None
        case _:
            return None
    return web.Response()


def hang_up(request: web.Request) -> None:
    """Abort the connection of a request, so that no answer to it arrives."""
    if request.transport is not None:
        request.transport.abort()


async def _hang(service: Service) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(service.settings.hang_max_s):
            await service.stopping.wait()


def _spoil(made: Answer, fault: Fault, request: web.Request) -> Answer:
    match fault.action:
        case Action.DISCONNECT_AFTER:
            hang_up(request)
        case Action.NOT_JSON:
            return Answer(b"<html>Bad Gateway</html>", made.status)
        case Action.MALFORMED_ROW:
            rows = msgspec.json.decode(made.body)
            if isinstance(rows, list) and fault.row < len(rows):
                rows[fault.row] = {"id": 7, "content": "not an object"}
                return answer(rows, made.status, made.headers)
        case _:
            pass
    return made


def _carry_out(service: Service, route: Route, call: Call) -> Answer:
    try:
        if not route.keyless:
            _check_key(call.caller, suspended=route.suspended)
        return route.work(service, call)
    except ApiError as error:
        return error.answer()
    except Exception:
        _log.exception("route %s failed", route.name)
        return ApiError(500, ErrorCode.INTERNAL_ERROR, "The hub failed").answer()


def _caller(service: Service, request: web.Request) -> Account | None:
    key = read_bearer(request.headers)
    return None if key is None else service.accounts.by_key(key)


def _check_key(caller: Account | None, *, suspended: bool) -> None:
    if caller is None:
        raise ApiError(401, ErrorCode.UNAUTHORIZED, "A valid API key is needed")
    if caller.status == "suspended" and not suspended:
        raise ApiError(403, ErrorCode.AGENT_SUSPENDED, "This agent is suspended")


def _nowhere(service: Service, call: Call) -> Answer:
    raise not_found(ErrorCode.NOT_FOUND, "No such route")
