"""What a hostile server may do with heads, frames and proxies: bounded, on both ways, and the key stays ours."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from agentd.config import Link as LinkSettings
from agentd.config import Rest as RestSettings
from agentd.errors import Unavailable
from agentd.transport.link import dial
from agentd.transport.rest import Rest
from agentd.wire.platform import Request
from tests.tcp import tcp_server

from .far_end import KEY, Platform


@asynccontextmanager
async def server(
    write: Callable[[asyncio.StreamWriter], object], heads: list[bytes] | None = None
) -> AsyncIterator[int]:
    """A server that reads the head of a request and then writes what `write` writes; gives its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if heads is not None:
            heads.append(head)
        result = write(writer)
        if asyncio.iscoroutine(result):
            await result

    async with tcp_server(answer) as port:
        yield port


async def rest_fails(port: int, base: str = "http://127.0.0.1:{}") -> str:
    settings = RestSettings(timeout_s=2.0, retries=0)
    async with Rest(base.format(port), lambda: KEY, settings) as rest:
        with pytest.raises(Unavailable) as caught:
            await rest.perform(Request(method="GET", path="/v1/agents/me"), once=True)
    return str(caught.value)


async def link_fails(port: int, url: str = "ws://127.0.0.1:{}/v1/ws") -> str:
    settings = LinkSettings(connect_timeout_s=2.0)
    with pytest.raises(Unavailable) as caught:
        async with dial(Platform(url.format(port)), settings, on_frame=lambda _: None, on_burst=lambda: None):
            raise AssertionError("nothing was upgraded")
    return str(caught.value)


HEADS = {
    "one header too long": b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "a status line too long": b"HTTP/1.1 200 " + b"a" * 1_000_000 + b"\r\n\r\n",
    "a line that never ends": b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 1_000_000,
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
async def test_an_answer_with_a_huge_head_is_given_up(head: bytes) -> None:
    async with server(lambda writer: writer.write(head)) as port:
        assert "/v1/agents/me" in await rest_fails(port)
        assert KEY not in await link_fails(port)


@pytest.mark.parametrize("fails", [rest_fails, link_fails])
async def test_headers_without_end_take_no_memory_and_end_with_the_deadline(
    fails: Callable[[int], Awaitable[str]],
) -> None:
    async def without_end(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"".join(b"X-%d: %s\r\n" % (number, b"a" * 1_000) for number in range(100)))
            await writer.drain()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with server(without_end) as port, asyncio.timeout(30):
        await fails(port)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


# Proxies


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return lambda port: monkeypatch.setenv("HTTPS_PROXY", f"http://user:s3cret@127.0.0.1:{port}")


async def test_the_environments_proxy_carries_both_ways_and_sees_no_key(through: Callable[[int], None]) -> None:
    heads: list[bytes] = []
    async with server(lambda writer: writer.write(b"HTTP/1.1 502 no\r\n\r\n"), heads) as port:
        through(port)
        told = [
            await rest_fails(0, "https://agentchat.example"),
            await link_fails(0, "wss://agentchat.example/v1/ws"),
        ]
    assert [head.split(b"\r\n")[0] for head in heads] == [b"CONNECT agentchat.example:443 HTTP/1.1"] * 2
    assert all(KEY.encode() not in head for head in heads)
    assert all("s3cret" not in each for each in told)


async def test_a_host_that_is_excepted_from_the_proxy_is_dialled_itself(
    through: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[bytes] = []
    async with server(lambda writer: writer.write(b"HTTP/1.1 502 no\r\n\r\n"), heads) as port:
        through(port)
        monkeypatch.setenv("NO_PROXY", "agentchat.invalid")
        await rest_fails(0, "https://agentchat.invalid")
        await link_fails(0, "wss://agentchat.invalid/v1/ws")
    assert heads == []
