"""REST calls against a server that behaves and misbehaves."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
import ssl
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import formatdate

import pytest
from aiohttp import web

from agentd import __version__
from agentd.config import Rest as RestSettings
from agentd.errors import (
    AgentdError,
    CredentialsRefused,
    NotConnected,
    OutcomeUnknown,
    Refused,
    Unavailable,
    WireViolation,
)
from agentd.transport.rest import Pool, Rest
from agentd.wire.platform import Request, Response, Transfer
from tests.tcp import tcp_server

from .far_end import KEY

GET = Request(method="GET", path="/v1/things")
POST = Request(method="POST", path="/v1/messages", body=b'{"to":"@bob"}')
NOW = 1_700_000_000.0
HURRIED = RestSettings(timeout_s=0.4, retries=0)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
StartServer = Callable[..., Awaitable[int]]


class Nap:
    """Sleeps in no time and remembers how long it would have been."""

    def __init__(self) -> None:
        self.delays_s: list[float] = []

    async def __call__(self, delay_s: float) -> None:
        self.delays_s.append(delay_s)


@pytest.fixture
async def server() -> AsyncIterator[StartServer]:
    """Start a server that answers everything with one handler; gives its port."""
    async with AsyncExitStack() as stack:

        async def start(handler: Handler, *, tls: ssl.SSLContext | None = None) -> int:
            runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.01)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
            await site.start()
            port: int = runner.addresses[0][1]
            return port

        yield start


@pytest.fixture
async def raw_server() -> AsyncIterator[StartServer]:
    """Start a server that writes what it likes, once the head of a request was read; gives its port."""
    async with AsyncExitStack() as stack:

        async def start(answer: bytes, *, hang: bool = False) -> int:
            async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
                if hang:
                    await asyncio.Event().wait()

            return await stack.enter_async_context(tcp_server(say))

        yield start


@asynccontextmanager
async def client(
    port: int,
    settings: RestSettings | None = None,
    *,
    nap: Nap | None = None,
    key: Callable[[], str] = lambda: KEY,
    chance: float = 0.5,
    pool: Pool | None = None,
    base: str = "http://127.0.0.1:{}",
) -> AsyncIterator[Rest]:
    async with Rest(
        base.format(port),
        key,
        settings or RestSettings(),
        pool=pool,
        clock=lambda: NOW,
        sleep=nap or Nap(),
        chance=lambda: chance,
    ) as subject:
        yield subject


async def failure(
    port: int,
    request: Request = GET,
    settings: RestSettings | None = None,
    *,
    once: bool = False,
    nap: Nap | None = None,
    base: str = "http://127.0.0.1:{}",
) -> AgentdError:
    async with client(port, settings, nap=nap, base=base) as subject:
        with pytest.raises(AgentdError) as caught:
            await subject.perform(request, once=once)
    return caught.value


def answering(*answers: tuple[int, dict[str, str]], seen: list[web.BaseRequest] | None = None) -> Handler:
    """Give these statuses and headers one after the other, the last one for ever."""
    left = list(answers)

    async def handle(request: web.BaseRequest) -> web.Response:
        if seen is not None:
            seen.append(request)
        status, headers = left.pop(0) if len(left) > 1 else left[0]
        return web.Response(status=status, headers=headers, body=b"body")

    return handle


# What is sent


async def test_a_request_carries_the_key_and_says_who_asks(server: StartServer) -> None:
    seen: list[web.BaseRequest] = []
    async with client(await server(answering((200, {}), seen=seen))) as subject:
        await subject.perform(GET)
        await subject.perform(GET)
    headers = seen[0].headers
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["X-AgentChat-Client"] == "agentd"
    assert headers["X-AgentChat-Client-Version"] == __version__
    assert headers["User-Agent"].startswith(f"agentd/{__version__} ")
    assert KEY not in str(seen[0].url)
    assert headers["x-request-id"]
    assert headers["x-request-id"] != seen[1].headers["x-request-id"]


async def test_path_and_query_travel_as_the_platform_encoded_them(server: StartServer) -> None:
    seen: list[web.BaseRequest] = []
    request = Request(method="GET", path="/v1/agents/%40alice%2Fx", query={"after": "del_1&2", "limit": "500"})
    async with client(await server(answering((200, {}), seen=seen)), base="http://127.0.0.1:{}/base/") as subject:
        await subject.perform(request)
    assert seen[0].raw_path == "/base/v1/agents/%40alice%2Fx?after=del_1%262&limit=500"


async def test_a_body_travels_as_json_and_an_answer_comes_back_untouched(server: StartServer) -> None:
    async def handle(request: web.BaseRequest) -> web.Response:
        assert request.content_type == "application/json"
        assert await request.read() == POST.body
        return web.Response(status=201, headers={"X-Backlog-Warning": "bob=5001"}, body=b"{not json")

    async with client(await server(handle)) as subject:
        answer = await subject.perform(POST, once=True)
    assert (answer.status, answer.body) == (201, b"{not json")
    assert answer.headers["x-backlog-warning"] == "bob=5001"


async def test_a_new_key_counts_from_the_next_attempt_on(server: StartServer) -> None:
    seen: list[web.BaseRequest] = []
    keys = iter(["old", "new"])
    async with client(await server(answering((503, {}), (200, {}), seen=seen)), key=lambda: next(keys)) as subject:
        await subject.perform(GET)
    assert [request.headers["Authorization"] for request in seen] == ["Bearer old", "Bearer new"]


# What is repeated


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_statuses_that_pass_by_themselves_are_tried_again(server: StartServer, status: int) -> None:
    nap = Nap()
    async with client(await server(answering((status, {}), (status, {}), (200, {}))), nap=nap) as subject:
        assert (await subject.perform(GET)).status == 200
    assert nap.delays_s == [0.25, 0.5]


@pytest.mark.parametrize("status", [200, 204, 301, 304, 400, 403, 404, 409, 410, 413, 422, 501])
async def test_every_other_status_is_an_answer(server: StartServer, status: int) -> None:
    seen: list[web.BaseRequest] = []
    async with client(await server(answering((status, {}), seen=seen))) as subject:
        assert (await subject.perform(GET)).status == status
    assert len(seen) == 1


@pytest.mark.parametrize(("chance", "delays_s"), [(0.0, [0.1875, 0.375, 0.75]), (0.999_999_9, [0.3125, 0.625, 1.25])])
async def test_spent_retries_are_unavailable_under_the_servers_request_id(
    server: StartServer, chance: float, delays_s: list[float]
) -> None:
    seen: list[web.BaseRequest] = []
    nap = Nap()
    port = await server(answering((503, {"x-request-id": "req_7"}), seen=seen))
    async with client(port, nap=nap, chance=chance) as subject:
        with pytest.raises(Unavailable) as caught:
            await subject.perform(POST)
    assert len(seen) == 4
    assert len({request.headers["x-request-id"] for request in seen}) == 1
    assert nap.delays_s == pytest.approx(delays_s)
    assert caught.value.request_id == "req_7"
    assert "503" in str(caught.value)


@pytest.mark.parametrize(
    ("request_", "once"), [(POST, True), (Request(method="POST", path="/v1/register", repeatable=False), False)]
)
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_what_is_asked_once_gives_its_answer_back_whatever_it_is(
    server: StartServer, request_: Request, once: bool, status: int
) -> None:
    seen: list[web.BaseRequest] = []
    async with client(await server(answering((status, {"Retry-After": "60"}), seen=seen))) as subject:
        answer = await subject.perform(request_, once=once)
    assert (answer.status, answer.headers["retry-after"]) == (status, "60")
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("header", "slept_s"),
    [
        ("3", 3.0),
        ("8", 8.0),
        ("0", 0.25),
        (formatdate(NOW + 5, usegmt=True), 5.0),
        (formatdate(NOW - 5, usegmt=True), 0.25),
        ("soon", 0.25),
        ("-3", 0.25),
        ("1e1", 0.25),
        ("Wed, 99 Nov 2023 00:00:00 GMT", 0.25),
    ],
)
async def test_retry_after_lengthens_the_wait_as_seconds_or_as_a_date(
    server: StartServer, header: str, slept_s: float
) -> None:
    nap = Nap()
    async with client(await server(answering((429, {"Retry-After": header}), (200, {}))), nap=nap) as subject:
        assert (await subject.perform(GET)).status == 200
    assert nap.delays_s == [slept_s]


@pytest.mark.parametrize("header", ["60", formatdate(NOW + 60, usegmt=True)])
async def test_a_longer_retry_after_is_told_at_once(server: StartServer, header: str) -> None:
    seen: list[web.BaseRequest] = []
    nap = Nap()
    error = await failure(await server(answering((429, {"Retry-After": header}), seen=seen)), nap=nap)
    assert isinstance(error, Unavailable)
    assert error.retry_after_s == 60.0
    assert (len(seen), nap.delays_s) == (1, [])


@pytest.mark.parametrize(("header", "wait_s"), [("999999999", 86_400.0), ("0", None), (formatdate(NOW - 5), None)])
async def test_a_retry_after_that_makes_no_sense_is_told_as_a_day_or_not_at_all(
    server: StartServer, header: str, wait_s: float | None
) -> None:
    port = await server(answering((503, {"Retry-After": header})))
    async with client(port) as subject:
        answered = await subject.perform(GET, once=True)
    assert answered.retry_after_s == wait_s


async def test_a_broken_connection_is_tried_again(server: StartServer) -> None:
    broken = 2

    async def handle(request: web.BaseRequest) -> web.Response:
        nonlocal broken
        if broken:
            broken -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=200)

    async with client(await server(handle)) as subject:
        assert (await subject.perform(POST)).status == 200


# No answer


async def test_401_says_nothing_of_a_key_that_took_the_place_of_the_one_that_was_asked_with(
    server: StartServer,
) -> None:
    keys = [KEY]

    async def refuse(request: web.BaseRequest) -> web.Response:
        keys.append("ac_live_another")
        return web.Response(status=401)

    async with client(await server(refuse), key=lambda: keys[-1]) as rest:
        with pytest.raises(NotConnected, match="replaced"):
            await rest.perform(POST, once=True)


async def test_401_refuses_the_key(server: StartServer) -> None:
    for once in (False, True):
        error = await failure(await server(answering((401, {"x-request-id": "req_8"}))), POST, once=once)
        assert isinstance(error, CredentialsRefused)
        assert error.request_id == "req_8"


async def test_nobody_listening_is_unavailable_even_for_a_send() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert type(await failure(port, POST, once=True)) is Unavailable
        nap = Nap()
        assert type(await failure(port, GET, nap=nap)) is Unavailable
        assert len(nap.delays_s) == 3


@pytest.mark.parametrize(
    ("request_", "once", "kind"), [(POST, True, OutcomeUnknown), (GET, True, Unavailable), (POST, False, Unavailable)]
)
@pytest.mark.parametrize(
    ("written", "hang"),
    [
        (b"", False),
        (b"", True),
        (b"HTTP/1.1 201 Cre", False),
        (b"HTTP/1.1 201 Created\r\nContent-Length: 10\r\n\r\nhalf", False),
        (b"HTTP/1.1 201 Created\r\nContent-Length: 10\r\n\r\nhalf", True),
        (b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", False),
        (b"\x15\x03\x01 no HTTP at all\r\n\r\n", False),
    ],
    ids=["disconnect", "hang", "cut in the head", "cut in the body", "hang in the body", "cut in a chunk", "no HTTP"],
)
async def test_a_send_whose_answer_never_came_has_an_unknown_outcome(
    raw_server: StartServer, written: bytes, hang: bool, request_: Request, once: bool, kind: type[Exception]
) -> None:
    port = await raw_server(written, hang=hang)
    error: BaseException | None = await failure(port, request_, HURRIED if hang else RestSettings(), once=once)
    assert type(error) is kind
    while error is not None:
        assert KEY not in repr(error) + str(error)
        error = error.__cause__ or error.__context__


async def test_a_send_on_a_connection_used_before_has_an_unknown_outcome_too(server: StartServer) -> None:
    async def handle(request: web.BaseRequest) -> web.Response:
        if request.method == "POST":
            await asyncio.Event().wait()
        return web.Response()

    async with client(await server(handle), HURRIED) as subject:
        await subject.perform(GET)
        with pytest.raises(OutcomeUnknown):
            await subject.perform(POST, once=True)


async def test_a_send_that_waited_in_vain_for_a_connection_was_not_made(
    server: StartServer,
) -> None:
    occupied, over = asyncio.Event(), asyncio.Event()

    async def handle(_: web.BaseRequest) -> web.Response:
        occupied.set()
        await over.wait()
        return web.Response()

    port = await server(handle)
    async with (
        Pool(1) as pool,
        client(port, pool=pool) as first,
        client(port, HURRIED, pool=pool) as second,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(first.perform(GET))
        await occupied.wait()
        with pytest.raises(Unavailable):
            await second.perform(POST, once=True)
        over.set()


async def test_every_attempt_has_a_deadline(raw_server: StartServer) -> None:
    port = await raw_server(b"HTTP/1.1 200 OK\r\n", hang=True)
    began = time.monotonic()
    assert isinstance(await failure(port, GET, RestSettings(timeout_s=0.1, retries=2)), Unavailable)
    assert 0.29 < time.monotonic() - began < 2.0


async def test_cancelling_is_not_mistaken_for_a_failure(raw_server: StartServer) -> None:
    async with client(await raw_server(b"", hang=True)) as subject:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await subject.perform(POST, once=True)


# Answers


@pytest.mark.parametrize("framing", ["length", "chunked", "gzip"])
@pytest.mark.parametrize(("size", "fits"), [(1_000, True), (1_001, False), (5_000_000, False)])
async def test_an_answer_is_bounded_as_it_comes_and_inflated(
    server: StartServer, framing: str, size: int, fits: bool
) -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        body = b"x" * size
        if framing == "length":
            return web.Response(body=body)
        if framing == "gzip":
            return web.Response(body=gzip.compress(body), headers={"Content-Encoding": "gzip"})
        answer = web.StreamResponse()
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        for start in range(0, size, 500):
            await answer.write(body[start : start + 500])
        return answer

    port = await server(handle)
    settings = RestSettings(answer_max_bytes=1_000)
    if not fits:
        assert isinstance(await failure(port, settings=settings), WireViolation)
        return
    async with client(port, settings) as subject:
        assert (await subject.perform(GET)).body == b"x" * size


async def test_an_answer_that_inflates_a_thousandfold_takes_no_more_memory_than_its_bound(server: StartServer) -> None:
    bomb = gzip.compress(bytes(30_000_000))

    async def handle(_: web.BaseRequest) -> web.Response:
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    port = await server(handle)
    tracemalloc.start()
    try:
        assert isinstance(await failure(port, settings=RestSettings(answer_max_bytes=1_000)), WireViolation)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"not gzip"),
        ("gzip", gzip.compress(b"x" * 100, mtime=0)[:-12]),
        ("br", b"x"),
        ("deflate", zlib.compress(b"x")),
    ],
)
async def test_an_answer_that_cannot_be_inflated_is_a_violation(server: StartServer, coding: str, body: bytes) -> None:
    async def handle(_: web.BaseRequest) -> web.Response:
        return web.Response(body=body, headers={"Content-Encoding": coding})

    assert isinstance(await failure(await server(handle)), WireViolation)


async def test_an_empty_answer_may_claim_any_coding_that_was_asked_for(server: StartServer) -> None:
    async with client(await server(answering((304, {"Content-Encoding": "gzip"})))) as subject:
        assert (await subject.perform(GET)).body == b""


async def test_a_redirect_is_an_answer_since_the_key_must_not_go_there(server: StartServer) -> None:
    followed: list[web.BaseRequest] = []
    elsewhere = await server(answering((200, {}), seen=followed))
    location = f"http://127.0.0.1:{elsewhere}/signed"
    async with client(await server(answering((302, {"Location": location})))) as subject:
        answer = await subject.perform(GET)
    assert (answer.status, answer.headers["location"]) == (302, location)
    assert followed == []


# Files


async def test_a_file_travels_without_the_key_and_without_our_name_for_ourselves(server: StartServer) -> None:
    seen: list[web.BaseRequest] = []
    port = await server(answering((200, {}), seen=seen))
    async with client(port) as subject:
        put = Transfer(method="PUT", url=f"http://127.0.0.1:{port}/x?sig=%2Fa", body=b"bytes", content_type="image/png")
        answer = await subject.transfer(put)
    [request] = seen
    assert answer.status == 200
    assert (request.method, request.raw_path, request.headers["Content-Type"]) == ("PUT", "/x?sig=%2Fa", "image/png")
    assert "Authorization" not in request.headers
    assert not [name for name in request.headers if name.lower().startswith("x-")]
    assert KEY not in str(request.headers)


async def test_a_file_is_asked_for_once_and_its_address_is_shown_to_nobody(server: StartServer) -> None:
    seen: list[web.BaseRequest] = []
    port = await server(answering((503, {}), seen=seen))
    async with client(port) as subject:
        where = Transfer(method="GET", url=f"http://127.0.0.1:{port}/signed-word")
        assert (await subject.transfer(where)).status == 503
    assert len(seen) == 1
    async with client(port) as subject:
        with socket.socket() as taken:  # bound, and nobody listens
            taken.bind(("127.0.0.1", 0))
            nowhere = Transfer(method="GET", url=f"http://127.0.0.1:{taken.getsockname()[1]}/signed-word")
            with pytest.raises(Unavailable) as failed:
                await subject.transfer(nowhere)
    assert "signed-word" not in str(failed.value)


async def test_a_file_larger_than_the_bound_is_not_read(server: StartServer) -> None:
    async def large(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"x" * 2_001)

    port = await server(large)
    async with client(port, RestSettings(attachment_max_bytes=2_000)) as subject:
        with pytest.raises(WireViolation, match="2000 bytes"):
            await subject.transfer(Transfer(method="GET", url=f"http://127.0.0.1:{port}/x"))


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1:1/x", "an address on this machine"),
        ("https://localhost/x", "an address on this machine"),
        ("http://store.example/x", "PLAIN_TEXT"),
        ("file:///etc/passwd", "BAD_URL"),
        ("https://store..example/x", "BAD_URL"),
        (f"https://{'s' * 64}.example/x", "BAD_URL"),
    ],
)
async def test_a_platform_elsewhere_cannot_send_us_to_what_is_not_its_own(url: str, why: str) -> None:
    async with client(1, base="https://chat.example:{}") as subject:
        with pytest.raises(Refused, match=why):
            await subject.transfer(Transfer(method="GET", url=url))


async def test_a_request_brings_headers_of_its_own_and_they_cannot_replace_the_key(server: StartServer) -> None:
    seen: list[web.BaseRequest] = []
    port = await server(answering((200, {}), seen=seen))
    async with client(port) as subject:
        headers = {"idempotency-key": "agentd-0-a0", "Authorization": "Bearer another"}
        await subject.perform(Request(method="POST", path="/v1/groups", body=b"{}", headers=headers))
    assert seen[0].headers["Idempotency-Key"] == "agentd-0-a0"
    assert seen[0].headers.getall("Authorization") == [f"Bearer {KEY}"]


# Connections


async def test_requests_run_at_the_same_time(server: StartServer) -> None:
    inside = 0
    all_inside = asyncio.Event()

    async def handle(_: web.BaseRequest) -> web.Response:
        nonlocal inside
        inside += 1
        if inside == 20:
            all_inside.set()
        await all_inside.wait()
        return web.Response()

    async with client(await server(handle), RestSettings(timeout_s=5.0)) as subject, asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(subject.perform(GET))


async def test_identities_share_connections_but_no_cookies(server: StartServer) -> None:
    seen: list[web.BaseRequest] = []
    peers: set[object] = set()
    answer = answering((200, {"Set-Cookie": "session=alice"}), seen=seen)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return await answer(request)

    port = await server(handle)
    async with Pool(10) as pool:
        for key in (lambda: "alice", lambda: "bob"):
            # By name: cookies of bare addresses are kept by nobody.
            async with client(port, pool=pool, key=key, base="http://localhost:{}") as subject:
                await subject.perform(GET)
    assert len(peers) == 1
    assert [request.headers["Authorization"] for request in seen] == ["Bearer alice", "Bearer bob"]
    assert all("Cookie" not in request.headers for request in seen)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://api.example.com", "PLAIN_TEXT"),
        ("https://user:word@api.example.com", "CREDENTIALS_IN_URL"),
        ("api.example.com", "BAD_URL"),
    ],
)
def test_a_url_that_a_key_must_not_be_given_to_is_refused(url: str, code: str) -> None:
    with pytest.raises(Refused) as caught:
        Rest(url, lambda: KEY, RestSettings())
    assert caught.value.code == code


async def test_a_proxy_of_the_environment_is_for_other_machines(
    server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[web.BaseRequest] = []
    proxy = await server(answering((502, {}), seen=seen))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
    async with client(await server(answering((200, {})))) as subject:
        assert (await subject.perform(GET)).status == 200
    assert seen == []
    async with client(443, base="https://agentchat.invalid:{}") as subject:
        with pytest.raises(Unavailable):
            await subject.perform(GET, once=True)
    assert [request.method for request in seen] == ["CONNECT"]
    assert "Authorization" not in seen[0].headers


async def test_a_certificate_that_nobody_vouches_for_ends_the_attempt_before_the_key_is_sent(
    server: StartServer, self_signed_server: ssl.SSLContext
) -> None:
    seen: list[web.BaseRequest] = []
    port = await server(answering((200, {}), seen=seen), tls=self_signed_server)
    error = await failure(port, POST, once=True, base="https://localhost:{}")
    assert type(error) is Unavailable
    assert seen == []


@pytest.mark.usefixtures("trusted")
async def test_a_certificate_of_an_authority_named_in_the_environment_is_accepted(
    server: StartServer, self_signed_server: ssl.SSLContext
) -> None:
    port = await server(answering((200, {})), tls=self_signed_server)
    async with client(port, base="https://localhost:{}") as subject:
        assert (await subject.perform(GET)).status == 200


async def test_the_key_is_in_no_log_and_no_repr(server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with client(await server(answering((200, {})))) as subject:
        answer = await subject.perform(POST)
        assert isinstance(answer, Response)
        assert KEY not in repr(subject) + repr(vars(subject)) + repr(answer)
    assert KEY not in caplog.text


async def test_a_header_that_is_no_text_is_told_as_text(raw_server: StartServer) -> None:
    """Its request id is kept beside a refused send, and the journal holds text only."""
    answer = b"HTTP/1.1 403 Forbidden\r\nX-Request-Id: r\xff1\r\nContent-Length: 2\r\n\r\n{}"
    async with client(await raw_server(answer)) as rest:
        answered = await rest.perform(GET)
    assert answered.headers["x-request-id"] == r"r\udcff1"
