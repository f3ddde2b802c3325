"""Performs the requests that wire/ describes.

One `Rest` serves one identity; the connections underneath are a `Pool`, shared by all of them.

Always true: every attempt has a deadline. Only what is safe to repeat is repeated here, by the platform's table. No
redirect is followed, no cookie kept: the key goes to `base_url` and nowhere else, and no URL, log, exception or repr
holds it. An answer takes at most `answer_max_bytes` of memory, inflated; a file `attachment_max_bytes`.
Not here: what an answer means (wire/), repeating a send under its own key (sender).
"""

from __future__ import annotations

import asyncio
import platform
import random
import time
import uuid
import zlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
import msgspec
from yarl import URL

from agentd import __version__, logs
from agentd.config import Rest as RestSettings
from agentd.core.hosts import is_loopback
from agentd.core.reconnect import backoff_s
from agentd.errors import (
    AgentdError,
    CredentialsRefused,
    NotConnected,
    OutcomeUnknown,
    Refused,
    Unavailable,
    WireViolation,
)
from agentd.transport.address import proxy_for, require_safe
from agentd.transport.retry_after import retry_after_s
from agentd.transport.tls import tls_context
from agentd.wire.platform import Request, Response, Transfer

IDENTITY_HEADERS = {"X-AgentChat-Client": "agentd", "X-AgentChat-Client-Version": __version__}
"""How AgentChat asks clients to name themselves; advisory."""

_REPEATED_STATUSES = frozenset((408, 425, 429, 500, 502, 503, 504))
_READING_METHODS = frozenset(("GET", "HEAD"))
_USER_AGENT = f"agentd/{__version__} {platform.python_implementation()}/{platform.python_version()}"


class Pool:
    """Connections kept open between requests, for every identity of the process. Enter it inside the running loop.

    per_host_max: connections to one host over all identities; a request waits for one within its deadline.
    """

    def __init__(self, per_host_max: int) -> None:
        self._per_host_max = per_host_max

    async def __aenter__(self) -> Self:
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(_note_connected)
        tracing.on_connection_reuseconn.append(_note_connected)
        self.session = aiohttp.ClientSession(
            # Per host only: a platform that hangs must not use up the connections of another.
            connector=aiohttp.TCPConnector(ssl=tls_context(), limit=0, limit_per_host=self._per_host_max),
            # One account's cookie must not speak for another.
            cookie_jar=aiohttp.DummyCookieJar(),
            # Each attempt has its own deadline, and inflating its own bound.
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            trace_configs=[tracing],
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.session.close()


class Rest:
    """One identity's calls to its platform.

    base_url: as the identity is configured; paths are appended to it. key: asked before every attempt, so that a new
    key counts at once. pool: shared connections; without one it opens its own. clock: Unix seconds. chance: in [0, 1).
    Raises Refused where the key must not be sent to `base_url`.
    """

    def __init__(
        self,
        base_url: str,
        key: Callable[[], str],
        settings: RestSettings,
        *,
        pool: Pool | None = None,
        headers: Mapping[str, str] = IDENTITY_HEADERS,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        require_safe(base_url)
        self._base_url = base_url.rstrip("/")
        self._proxy = proxy_for(base_url)
        self._key = key
        self._settings = settings
        self._own_pool = Pool(settings.connections_per_host_max) if pool is None else None
        self._pool = pool or self._own_pool
        self._headers = {**headers, "User-Agent": _USER_AGENT, "Accept-Encoding": "gzip"}
        self._clock = clock
        self._sleep = sleep
        self._chance = chance

    async def __aenter__(self) -> Self:
        if self._own_pool is not None:
            await self._own_pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own_pool is not None:
            await self._own_pool.__aexit__(kind, error, trace)

    async def perform(self, request: Request, *, once: bool = False) -> Response:
        """Carry out one request; any number may run at the same time.

        once: make one attempt and give its answer back whatever the status, since the caller repeats by rules of its
        own. A request that is not `repeatable` is treated so in any case. Otherwise the statuses that pass by
        themselves and broken connections are tried again, `retries` times, waiting as long as the server asks up to
        `backoff_max_s`. Every other status, redirects among them, is an answer for the platform to read.
        Raises CredentialsRefused on 401, NotConnected if that was said of a key that was replaced meanwhile.
        OutcomeUnknown if the one attempt of a writing request may have reached the server and no answer came.
        Unavailable if nothing useful came otherwise, with the wait that the server asked for. WireViolation if the
        answer is too large or damaged.
        Source: AgentChat, the official client's retry table; only 401 speaks of the key, 403 of what it may not do.
        """
        single = once or not request.repeatable
        request_id = uuid.uuid4().hex
        failures = 0
        while True:
            key = self._key()
            outcome = await self._attempt(request, key, request_id)
            if isinstance(outcome, Response):
                if outcome.status == 401:
                    if key != self._key():
                        raise NotConnected("the key was replaced while this was under way")
                    raise CredentialsRefused(401, "UNAUTHORIZED", request_id=_id_of(outcome, request_id))
                if single or outcome.status not in _REPEATED_STATUSES:
                    return outcome
            elif single:
                raise _unanswered(request, outcome, request_id)
            failures += 1
            await self._sleep(self._delay_s(request, outcome, failures, request_id))

    async def transfer(self, transfer: Transfer) -> Response:
        """Bring bytes to an address that the platform named, or get them from there: one attempt, without the key.

        Raises Refused for an address that is no place for them, such as this machine's own for a platform elsewhere.
        Unavailable without an answer, WireViolation if it is too large.
        """
        host = require_safe(transfer.url)
        if is_loopback(host) and not is_loopback(require_safe(self._base_url)):
            raise Refused(0, "BAD_URL", "the platform names an address on this machine, which it cannot know")
        attempt = self._transferred(transfer)
        outcome = await self._outcome(attempt, self._settings.transfer_timeout_s, self._settings.attachment_max_bytes)
        if isinstance(outcome, Response):
            return outcome
        # Not the path: it is signed, and whoever has it needs no key.
        raise Unavailable(f"{transfer.method} at {host}: {outcome.why}")

    def _transferred(self, transfer: Transfer) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"}
        if transfer.content_type is not None:
            headers["Content-Type"] = transfer.content_type
        assert self._pool is not None
        return self._pool.session.request(
            transfer.method,
            URL(transfer.url, encoded=True),
            headers=headers,
            data=transfer.body,
            allow_redirects=False,
            proxy=proxy_for(transfer.url),
            trace_request_ctx=_Progress(),
        )

    def _delay_s(self, request: Request, outcome: Response | _Failure, failures: int, request_id: str) -> float:
        why, asked = f"{request.method} {request.path}: ", None
        if isinstance(outcome, Response):
            why += f"status {outcome.status}"
            asked = outcome.retry_after_s
            request_id = _id_of(outcome, request_id)
        else:
            why += outcome.why
        if failures > self._settings.retries or (asked or 0.0) > self._settings.backoff_max_s:
            raise Unavailable(f"{why} (attempt {failures})", asked, request_id)
        backoff = backoff_s(failures, self._settings.backoff_first_s, self._settings.backoff_max_s, self._chance())
        return max(backoff, asked or 0.0)

    async def _attempt(self, request: Request, key: str, request_id: str) -> Response | _Failure:
        # Failures are given back, not raised: a cause or context from aiohttp may carry the request's headers, which
        # hold the key.
        progress = _Progress()
        opened = self._open(request, key, request_id, progress)
        outcome = await self._outcome(opened, self._settings.timeout_s, self._settings.answer_max_bytes)
        return outcome if isinstance(outcome, Response) else _Failure(outcome.why, progress.connected)

    async def _outcome(
        self, opened: AbstractAsyncContextManager[aiohttp.ClientResponse], timeout_s: float, max_bytes: int
    ) -> Response | _Failure:
        try:
            async with asyncio.timeout(timeout_s), opened as answer:
                body = await _read(answer, max_bytes)
                headers = {name.lower(): logs.encodable(value) for name, value in answer.headers.items()}
                asked_s = retry_after_s(headers.get("retry-after"), self._clock())
                return Response(status=answer.status, headers=headers, body=body, retry_after_s=asked_s)
        except TimeoutError:
            return _Failure(f"no answer within {timeout_s:g} s")
        except (aiohttp.ClientError, OSError) as exc:
            return _Failure(type(exc).__name__)

    def _open(
        self, request: Request, key: str, request_id: str, progress: _Progress
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        headers = {
            **self._headers,
            **request.headers,
            "Authorization": f"Bearer {key}",
            "x-request-id": request_id,
        }
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        assert self._pool is not None
        return self._pool.session.request(
            request.method,
            self._url(request),
            headers=headers,
            data=request.body,
            allow_redirects=False,
            proxy=self._proxy,
            trace_request_ctx=progress,
        )

    def _url(self, request: Request) -> URL:
        # A path without its slash would become part of the host.
        assert request.path.startswith("/"), request.path
        query = "?" + urlencode(request.query) if request.query else ""
        # The path is encoded as the platform wants it: @ travels as %40, and yarl would undo that.
        return URL(self._base_url + request.path + query, encoded=True)


class _Progress:
    """How far an attempt came. From `connected` on, the server may have seen some of it."""

    connected = False


class _Failure(msgspec.Struct, frozen=True):
    """An attempt without an answer. connected: the server may have seen the request."""

    why: str
    connected: bool = False


def _unanswered(request: Request, failure: _Failure, request_id: str) -> AgentdError:
    why = f"{request.method} {request.path}: {failure.why}"
    if failure.connected and request.method not in _READING_METHODS:
        return OutcomeUnknown(f"{why} (x-request-id {request_id})")
    return Unavailable(why, request_id=request_id)


def _id_of(answer: Response, sent: str) -> str:
    return answer.headers.get("x-request-id", sent)


async def _note_connected(_: aiohttp.ClientSession, trace: Any, __: object) -> None:
    trace.trace_request_ctx.connected = True


async def _read(answer: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    inflate = _inflater(answer.headers.get("Content-Encoding", ""))
    body = bytearray()
    try:
        async for chunk in answer.content.iter_any():
            # A small answer can inflate a thousandfold, so it is inflated here, no further than the bound.
            body += chunk if inflate is None else inflate.decompress(chunk, max_bytes + 1 - len(body))
            if len(body) > max_bytes:
                raise WireViolation(f"an answer of more than {max_bytes} bytes")
    except zlib.error:
        raise WireViolation("an answer whose gzip is damaged") from None
    if inflate is not None and body and not inflate.eof:
        raise WireViolation("an answer whose gzip is cut short")
    return bytes(body)


def _inflater(coding: str) -> zlib._Decompress | None:
    match coding.strip().lower():
        case "" | "identity":
            return None
        case "gzip":
            return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    raise WireViolation("an answer in a content coding that was not asked for")
